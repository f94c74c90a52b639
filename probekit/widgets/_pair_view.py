"""One pair in full as the pair browser shows it: the prompt's turns, and both replies in marked pieces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from probekit.widgets._pair_table import NAME, facts, short
from probekit.widgets._token_scores import REPLIES, shaded_replies
from probekit.widgets._word_marks import marked_replies, plain_pieces

SHOWN = 200_000  # characters of a text: ten times what a model reads; `PairBrowser.frame` has them all


def pair_view(row: Mapping[str, Any], tokens: pl.DataFrame | None) -> dict[str, Any]:
    """A row of `pair_table` as JSON: numbers, texts in pieces (see `_word_marks`), notes for the reader."""
    replies = [row[reply][:SHOWN] for reply in REPLIES]
    marked = marked_replies(*replies)
    spans = None if tokens is None else tokens.filter(pair_id=row["pair_id"])
    shaded, strongest = ([None, None], "") if spans is None else shaded_replies(replies, spans)
    counts = zip((marked.chosen, marked.rejected), marked.counts, shaded, strict=True)
    return {
        **facts(row),
        "prompt": [
            [short(turn["role"], NAME), plain_pieces([[turn["content"][:SHOWN], ""]]), _rest(turn["content"])]
            for turn in row["prompt"]
        ],
        "replies": [
            {
                "name": reply,
                "by": short(row[f"{reply}_model"], NAME),
                "pieces": pieces,
                "counts": count,
                "tokens": scores,
                "rest": _rest(row[reply]),
            }
            for reply, (pieces, count, scores) in zip(REPLIES, counts, strict=True)
        ],
        "note": marked.note,
        "strongest": strongest,
    }


def _rest(text: str) -> str:
    left = len(text) - SHOWN
    return f"{left:,} more characters are in browser.frame." if left > 0 else ""
