"""Chance: pairs in a random order, the floor under every tracer."""

from __future__ import annotations

import hashlib

import polars as pl

from probekit.checkpoints import Checkpoint
from probekit.pairs import PairSet
from probekit.ranking import Cost, Ranking, ranking_of

SIGN = "a number drawn for each pair, which says nothing; range [0, 1)"
_DIGITS = 13  # hex digits of a hash that a float holds exactly


def rank(checkpoint: Checkpoint, pairs: PairSet, queries: pl.DataFrame, *, seed: int = 0) -> Ranking:
    """Pairs in an order that depends on their ids and the seed only; checkpoint and queries are not read.

    >>> from probekit.pairs import load_pairs
    >>> from probekit.testing import planted_contrasts, planted_pairs, tiny_checkpoint
    >>> rank(tiny_checkpoint(), load_pairs(planted_pairs(8)), planted_contrasts(2)).name
    'chance'
    """
    drawn = [hashlib.sha256(f"chance-{seed}-{one}".encode()).hexdigest()[:_DIGITS] for one in pairs.ids]
    scores = [int(one, 16) / 16**_DIGITS for one in drawn]
    return ranking_of(pairs.ids, scores, method="chance", sign=SIGN, cost=Cost())
