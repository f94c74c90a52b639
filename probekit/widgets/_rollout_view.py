"""What the rollout reviewer says of a case, as text and as HTML in which everything from data is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from probekit._report_text import text_html
from probekit.widgets._pair_table import NAME, OPENING, short
from probekit.widgets._pair_view import SHOWN
from probekit.widgets._rollout_table import KIND_WORDS, KINDS, REPLIES

REPLY = 160  # characters of a reply in a cell of the static table
STYLE = """
.probekit-review { color: var(--jp-ui-font-color1, inherit); }
.probekit-review .asked {
  max-height: 9em; margin: 0.6em 0 0.3em; overflow: auto; line-height: 1.45;
  white-space: pre-wrap; overflow-wrap: anywhere;
}
.probekit-review .text {
  box-sizing: border-box; max-height: 15em; overflow: auto; padding: 0.4em 0.6em; line-height: 1.45;
  white-space: pre-wrap; overflow-wrap: anywhere;
  border: 1px solid var(--jp-border-color0, #767676); border-radius: 4px;
  background: var(--jp-layout-color1, transparent);
}
.probekit-review .control { outline: 1px solid currentcolor; font-size: 85%; }
.probekit-review .problem { font-weight: bold; }
"""


def counted(n: int, one: str, many: str = "") -> str:
    """A number and its noun.

    >>> counted(1, "reply", "replies"), counted(2000, "reply", "replies")
    ('1 reply', '2,000 replies')
    """
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def label_of(number: int, row: Mapping[str, Any]) -> str:
    """A row of `side_by_side` on one line: how its prompt begins, its sample, and the verdicts."""
    verdicts = [
        f"{model.upper()} " + ", ".join(row[f"{model}_{kind}_verdict"] or "–" for kind in KINDS)
        for model in ("m0", "m1")
    ]
    sample = f" (sample {row['sample']})" if row["sample"] else ""
    return f"{number}. {short(_user(row, KINDS[::-1]), OPENING)}{sample} | {' | '.join(verdicts)}"


def asked_html(kind: str, row: Mapping[str, Any]) -> str:
    """What was asked, plain or with the distractor; "" if nothing was."""
    user = _user(row, (kind,))
    if not user:
        return ""
    words = "plain" if kind == "plain" else f"with {text_html(short(row['distractor'] or '', NAME))}"
    region = f'role="region" tabindex="0" aria-label="Prompt, {KIND_WORDS[kind]}"'
    return f'<div class="asked" {region}><b>Prompt, {words}:</b> {_text(user)}</div>'


def reply_html(label: str, rollout: Mapping[str, Any] | None, judge: str | None) -> str:
    """A reply with its facts; judge: the verdict before any correction."""
    if rollout is None or judge is None:
        return f"<div><b>{label}</b>: no reply here.</div>"
    facts = [f"judge: {text_html(judge)}"]
    facts += ["<b>changed by hand</b>"] if rollout["by_hand"] else []
    facts += ["cut off at max_new_tokens"] if rollout.get("truncated") else []
    facts += [f"by {text_html(short(str(rollout['checkpoint']), NAME))}"] if "checkpoint" in rollout else []
    return (
        f"<div><b>{label}</b> · {' · '.join(facts)}</div>"
        f'<div class="text" role="region" tabindex="0" dir="auto" aria-label="Reply of {label}">'
        f"{_text(rollout['reply'])}</div>"
    )


def static_row(number: int, row: Mapping[str, Any]) -> list[str]:
    """A row of `side_by_side` for the table that stands where no kernel runs."""
    texts = [str(number), short(_user(row, KINDS[::-1]), OPENING)]
    for name in REPLIES:
        verdict, hand = row[f"{name}_verdict"], " (by hand)" if row[f"{name}_by_hand"] else ""
        texts.append(f"{verdict}{hand}: {short(row[f'{name}_reply'], REPLY)}" if verdict else "–")
    return texts


def _user(row: Mapping[str, Any], kinds: Sequence[str]) -> str:
    """The first of these prompts that was asked, or nothing."""
    users = [row[f"{model}_{kind}_user"] for kind in kinds for model in ("m0", "m1")]
    return next((user for user in users if user is not None), "")


def _text(text: str) -> str:
    left = len(text) - SHOWN
    return text_html(text[:SHOWN]) + (f" … and {left:,} more characters" if left > 0 else "")
