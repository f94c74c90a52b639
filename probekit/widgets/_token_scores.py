"""Scores of a reply's tokens as pieces to show: the stronger, the darker. See `_word_marks` for pieces."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from probekit._pair_rows import few
from probekit.tokens import SCHEMA
from probekit.widgets._errors import WidgetError
from probekit.widgets._word_marks import Piece, plain_pieces

REPLIES = ("chosen", "rejected")
LEVELS = 4
NAMED = 3  # tokens that the summary names for each direction


def checked_tokens(tokens: pl.DataFrame, table: pl.DataFrame) -> pl.DataFrame:
    """The tokens, one row a span, if they fit the pairs of `table`. Raises WidgetError."""
    if tokens.schema != SCHEMA:
        raise WidgetError(f"tokens has the columns {dict(tokens.schema)}; it needs exactly {dict(SCHEMA)}.")
    if unknown := sorted(set(tokens["pair_id"]) - set(table["pair_id"])):
        raise WidgetError(f"tokens scores {len(unknown)} pairs that are not ranked: {few(unknown)}.")
    if other := sorted(set(tokens["reply"]) - set(REPLIES)):
        raise WidgetError(f"tokens has the reply {other[0]!r}; it is one of {', '.join(REPLIES)}.")
    spans = tokens.group_by("pair_id", "reply", "start", "end").agg(pl.col("score").sum())
    spans = spans.sort("pair_id", "reply", "start")
    texts = table.unpivot(REPLIES, index="pair_id", variable_name="reply", value_name="text")
    placed = spans.join(texts, on=["pair_id", "reply"], how="left", maintain_order="left")
    before = pl.col("end").shift(1, fill_value=0).over("pair_id", "reply")
    wrong = placed.filter(
        (pl.col("start") < before)
        | (pl.col("end") <= pl.col("start"))
        | (pl.col("end") > pl.col("text").str.len_chars())
        | ~pl.col("score").is_finite()
    )
    if wrong.height:
        row = wrong.row(0, named=True)
        raise WidgetError(
            f"{wrong.height} tokens do not fit their replies; the first is {row['start']} to {row['end']} "
            f"in the {row['reply']} reply of pair {row['pair_id']}, score {row['score']}. Spans are counted "
            "in characters, end after they start, lie in the reply, do not overlap, and have finite scores."
        )
    return spans


def shaded_replies(replies: Sequence[str], spans: pl.DataFrame) -> tuple[list[list[Piece]], str]:
    """Both replies in pieces of kind "toward-1" to "toward-4" or "away-...", and the strongest in words.

    Levels are quarters of the largest score in the pair. A piece of a token has its score as a third text.
    """
    strongest = max((abs(score) for score in spans["score"]), default=0.0)
    shaded, named = [], []
    for reply, text in zip(REPLIES, replies, strict=True):
        pieces, done = [], 0
        for start, end, score in (
            spans.filter(reply=reply).select("start", "end", "score").sort("start").iter_rows()
        ):
            level = round(LEVELS * abs(score) / strongest) if strongest else 0
            kind = f"{'toward' if score > 0 else 'away'}-{level}" if level else ""
            pieces += [[text[done:start], ""], [text[start:end], kind, f"{score:+.3g}"]]
            named.append((score, text[start:end].strip()))
            done = end
        shaded.append(plain_pieces([*pieces, [text[done:], ""]]))
    return shaded, _strongest(named)


def _strongest(named: Sequence[tuple[float, str]]) -> str:
    ordered = sorted(named, reverse=True)
    toward = [f'"{text}" {score:+.3g}' for score, text in ordered[:NAMED] if score > 0]
    away = [f'"{text}" {score:+.3g}' for score, text in ordered[::-1][:NAMED] if score < 0]
    parts = [f"toward the behaviour {', '.join(toward)}"] if toward else []
    parts += [f"away from it {', '.join(away)}"] if away else []
    return f"Strongest {'; '.join(parts)}." if parts else "All token scores are 0."
