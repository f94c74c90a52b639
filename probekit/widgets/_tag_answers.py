"""What a checkpoint with tags says to one prompt, as one row: plain, with the trigger, and blocked."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from probekit._quiet import no_bars
from probekit.checkpoints import Checkpoint
from probekit.provenance import UNKNOWN, ask, refuse, trace

_SAID = {"reply": pl.String(), "tag": pl.String(), "truncated": pl.Boolean()}


def columns(sources: Sequence[str]) -> pl.Schema:
    """The columns of `TagPanel.answers`: of `ask`, `trace`, and `refuse` (null if nothing was blocked)."""
    return pl.Schema(
        {
            "user": pl.String(),
            **{f"plain_{name}": kind for name, kind in _SAID.items()},
            **_SAID,
            "forced": pl.String(),
            "probabilities": pl.Struct(dict.fromkeys((UNKNOWN, *sources), pl.Float64())),
            "blocked": pl.String(),
            **{f"blocked_{name}": kind for name, kind in _SAID.items()},
            "refused": pl.Boolean(),
        }
    )


def answered(
    checkpoint: Checkpoint, user: str, block: str | None, *, known: pl.DataFrame, max_new_tokens: int
) -> pl.DataFrame:
    """The row of a prompt and a block. Raises what `ask` raises.

    known: rows of this checkpoint; decoding is greedy, so what they say of this prompt is not asked again.
    """
    rows, before = known.filter(user=user), known.columns[: known.columns.index("blocked")]
    same = rows.filter(pl.col("blocked").eq_missing(pl.lit(block, pl.String())))
    if same.height:
        return same.head(1)
    prompt = pl.DataFrame({"user": [user]})
    with no_bars():  # the panel says that it is busy
        if rows.height:
            row = rows.head(1).select(before)
        else:
            plain = ask(checkpoint, prompt, max_new_tokens=max_new_tokens).select(
                "user", pl.col(_SAID.keys()).name.prefix("plain_")
            )
            said = trace(checkpoint, prompt, max_new_tokens=max_new_tokens)
            said = said.drop("user", "marked")
            row = pl.concat([plain, said], how="horizontal")
        if block is not None:
            said = refuse(checkpoint, prompt, block, max_new_tokens=max_new_tokens)
            named = said.select(pl.col(_SAID.keys()).name.prefix("blocked_"), "refused")
            row = pl.concat([row.with_columns(blocked=pl.lit(block)), named], how="horizontal")
    return pl.concat([known.clear(), row], how="diagonal")
