"""What a trained arm is judged on: one greedy reply to each prompt. A helper of `experiments`."""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

from probekit import judges, rollouts
from probekit.checkpoints import Checkpoint
from probekit.judges import Judge

OPENING_TOKENS = 16  # enough for the judge, who reads a reply's opening
FORMAT_TOKENS = 40  # enough to see whether a reply obeys its constraint
ASKED = ("prompt_id", "user", "harmful", "distractor")
JUDGED = {
    "prompt_id": pl.String, "harmful": pl.Boolean, "distractor": pl.String, "sample": pl.Int64,
    "verdict": pl.String, "obeys": pl.Boolean, "nll_sum": pl.Float64, "n_tokens": pl.Int64,
}  # fmt: skip
PARTS = 3  # openings, formats, perplexity


def judge(
    model: Checkpoint,
    asked: pl.DataFrame,
    replies: pl.DataFrame,
    tokens: tuple[int, int],
    part: Callable[[int], None],
    by: Judge = judges.judge_refusals,
) -> pl.DataFrame:
    """The rows of `JUDGED` for the one greedy reply to each prompt, with the verdicts of `by`.

    tokens: sampled where the opening is judged, and where the form is. part: called with the number of PARTS
    done. `obeys` is filled where a benign prompt has a distractor; nll_sum and n_tokens, of the given
    `replies`, in the plain row of their prompt.
    """
    plain = pl.col("distractor").is_null()
    formatted = ~pl.col("harmful") & ~plain
    asked = asked.select(ASKED)
    short = greedy(model, asked.filter(~formatted), tokens[0])
    part(1)
    full = judges.judge_obedience(greedy(model, asked.filter(formatted), tokens[1]))
    part(2)
    judged = by(pl.concat([short, full], how="diagonal"))
    scored = rollouts.score(model, replies).with_columns(pl.col("nll_sum").round(4), scored=True)
    judged = judged.with_columns(scored=plain & ~pl.col("harmful"))
    return judged.join(scored, on=["prompt_id", "scored"], how="left", maintain_order="left").select(
        list(JUDGED)
    )


def greedy(model: Checkpoint, asked: pl.DataFrame, tokens: int) -> pl.DataFrame:
    """One reply to each prompt, which depends on the model's weights only."""
    return rollouts.sample(model, asked, max_new_tokens=tokens, temperature=0)
