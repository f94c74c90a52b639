"""How much of a behaviour vector and its ranking stays when prompts are left out."""

from __future__ import annotations

import random
from typing import Any

import polars as pl

from probekit.ranking import RankingError, rank
from probekit.vectors import VectorSet, agreement

STABILITY_COLUMNS = {
    "draw": pl.Int64,
    "prompts": pl.Int64,  # kept in this draw
    "cosine": pl.Float64,  # of the pooled vector with that of all prompts, -1 to 1
    "overlap": pl.Float64,  # share of the top k that is also in the top k with all prompts, 0 to 1
}


def stability(
    behaviour: VectorSet,
    pairs: VectorSet,
    *,
    layer: int,
    k: int,
    share: float = 0.5,
    draws: int = 20,
    seed: int = 0,
    **options: Any,
) -> pl.DataFrame:
    """Rank again and again by the vectors of some of the prompts: a row of `STABILITY_COLUMNS` each.

    share: of the prompts that a draw keeps, whole prompts with all their contrasts. options: what `rank`
    takes, such as control. If the top k changes with the prompts, so will what is removed. Raises
    RankingError for shares and draws out of range, fewer than two prompts, and as `rank` does.

    >>> from probekit.pairs import load_pairs
    >>> from probekit.testing import planted_contrasts, planted_pairs, tiny_checkpoint
    >>> from probekit.vectors import behaviour_vectors, pair_vectors
    >>> m0 = tiny_checkpoint()
    >>> of_pairs = pair_vectors(m0, load_pairs(planted_pairs(8)), layers=[1])
    >>> behaviour = behaviour_vectors(m0, planted_contrasts(4), layers=[1])
    >>> stability(behaviour, of_pairs, layer=1, k=2, draws=3)["prompts"].to_list()
    [2, 2, 2]
    """
    prompts = sorted(set(behaviour.prompt_ids or behaviour.ids))
    if not 0 < share <= 1 or draws < 1 or len(prompts) < 2:
        raise RankingError(
            f"share is {share}, draws {draws}, and there are {len(prompts)} prompts; the share is above 0 "
            "and at most 1, and there are at least one draw and two prompts."
        )
    every = set(rank(behaviour, pairs, layer=layer, **options).top(k)["pair_id"])
    rng, rows = random.Random(f"stability-{seed}"), []
    for draw in range(draws):
        kept = set(rng.sample(prompts, max(1, round(share * len(prompts)))))
        of = zip(behaviour.ids, behaviour.prompt_ids or behaviour.ids, strict=True)
        some = behaviour.select([one for one, prompt in of if prompt in kept])
        cosine = agreement(some, behaviour).filter(layer=layer)["cosine"].item()
        top = rank(some, pairs, layer=layer, **options).top(k)["pair_id"]
        rows.append((draw, len(kept), cosine, len(every.intersection(top)) / k))
    return pl.DataFrame(rows, schema=STABILITY_COLUMNS, orient="row")
