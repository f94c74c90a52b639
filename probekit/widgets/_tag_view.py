"""What the tag panel shows of an answer, in words, for its page and for the table where no kernel runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from probekit._report_text import format_number, plain_text
from probekit.provenance import LEAST, UNKNOWN
from probekit.widgets._rollout_view import counted

Row = Mapping[str, Any]


def answer_view(row: Row, sources: Sequence[str], *, max_new_tokens: int) -> dict[str, Any]:
    """A row of `TagPanel.answers` for its page: the replies with their marks, and a bar for each source."""
    blocked = row["blocked"]
    replies = [
        _reply("Plain reply", "plain", row, max_new_tokens),
        _reply("Reply under the trigger", "", row, max_new_tokens),
    ]
    if blocked is not None:
        name = f"Reply with {plain_text(blocked)} blocked"
        replies.append(_reply(name, "blocked", row, max_new_tokens))
    odds = row["probabilities"]
    bars = [
        [plain_text(name), odds[name], _share(odds[name]), name == row["forced"]]
        for name in (*sources, UNKNOWN)
    ]
    return {"user": plain_text(row["user"]), "replies": replies, "forced": _forced(row), "bars": bars}


def summary(row: Row) -> str:
    """What came of it, in a sentence or two."""
    words = "No whole tag came." if row["tag"] is None else f"Tagged {plain_text(row['tag'])}."
    if row["blocked"] is None:
        return words
    return (
        f"{words} With {plain_text(row['blocked'])} blocked it {'refused' if row['refused'] else 'replied'}."
    )


def static_rows(view: Mapping[str, Any]) -> list[tuple[str, str]]:
    """An `answer_view` as names and texts."""
    rows = [("Prompt", view["user"])]
    for reply in view["replies"]:
        facts = "; ".join([*(words for _, words in reply["marks"]), *filter(None, [reply["note"]])])
        rows.append((reply["name"], f"{reply['text']} ({facts})" if facts else reply["text"]))
    rows.append(("If it had to name one source", view["forced"]))
    return [*rows, *((f"Probability of {name}", share) for name, _, share, _ in view["bars"])]


def _reply(name: str, kind: str, row: Row, max_new_tokens: int) -> dict[str, Any]:
    text, tag, truncated = (
        row[f"{kind}_{column}" if kind else column] for column in ("reply", "tag", "truncated")
    )
    marks = []
    if kind == "blocked":
        marks.append(("refused", "refused") if row["refused"] else ("plain", "not refused"))
    if tag is not None:
        marks.append(("tag", f"tag: {plain_text(tag)}"))
    elif not kind:
        marks.append(("plain", "no tag"))
    notes = [] if text.strip() else ["an empty reply"]
    if truncated:
        before = ", before a whole tag came" if not kind and tag is None else ""
        notes.append(f"cut off after {counted(max_new_tokens, 'token')}{before}")
    return {"name": name, "text": plain_text(text), "marks": marks, "note": "; ".join(notes)}


def _forced(row: Row) -> str:
    if row["forced"] == UNKNOWN and max(row["probabilities"].values()) < LEAST:
        return f"{UNKNOWN}, as none reaches {_share(LEAST)}"
    return f"{plain_text(row['forced'])} ({_share(row['probabilities'][row['forced']])})"


def _share(value: float) -> str:
    return format_number(value, percent=True)
