"""How good a ranking is, against a known truth or by itself; `ranking` has these as its own."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import TYPE_CHECKING, Literal, get_args

import polars as pl

from probekit._scoring import RankingError
from probekit._vector_set import listed
from probekit._wilson import wilson_interval
from probekit.pairs import PairSet

if TYPE_CHECKING:
    from probekit.ranking import Ranking

Group = Literal["source", "chosen_model", "rejected_model"]


def average_precision(ranking: Ranking, truth: Set[str]) -> float:
    """Mean, over the pairs in `truth`, of the precision at the rank of each: 1 if they all stand first.

    In (0, 1]; a random order gives about len(truth) / len(ranking). Raises RankingError if `truth` is empty
    or holds ids that are not ranked.

    >>> from probekit.testing import ranked
    >>> round(average_precision(ranked("abcd"), {"a", "c"}), 3)  # (1/1 + 2/3) / 2
    0.833
    """
    places = [place for place, hit in enumerate(_hits(ranking, truth), start=1) if hit]
    return sum(found / place for found, place in enumerate(places, start=1)) / len(truth)


def precision_at_k(ranking: Ranking, truth: Set[str], k: int) -> float:
    """Share of the first `k` pairs that are in `truth`, in [0, 1]. Raises RankingError as
    `average_precision`.

    >>> from probekit.testing import ranked
    >>> precision_at_k(ranked("abcd"), {"a", "c"}, 2)
    0.5
    """
    hits = _hits(ranking, truth)
    return sum(hits[: ranking._checked(k)]) / k


def recall_at_k(ranking: Ranking, truth: Set[str], k: int) -> float:
    """Share of `truth` that is among the first `k` pairs, in [0, 1]. Raises RankingError as
    `average_precision`.

    >>> from probekit.testing import ranked
    >>> recall_at_k(ranked("abcd"), {"a", "d"}, 2)
    0.5
    """
    hits = _hits(ranking, truth)
    return sum(hits[: ranking._checked(k)]) / len(truth)


def mean_rank(ranking: Ranking, truth: Set[str]) -> float:
    """Mean rank of the pairs in `truth`, from 1; (len(ranking) + 1) / 2 by chance. Raises RankingError as
    `average_precision`.

    >>> from probekit.testing import ranked
    >>> mean_rank(ranked("abcd"), {"a", "d"})
    2.5
    """
    places = [place for place, hit in enumerate(_hits(ranking, truth), start=1) if hit]
    return sum(places) / len(places)


def concentration(ranking: Ranking, k: int) -> float:
    """Share of all positive score that the first `k` pairs hold, in [0, 1].

    Near k / len(ranking), the behaviour is spread over the whole set and editing `k` pairs cannot remove it;
    near 1, it has a small cause (see reference/probe_attribution.md, section 8). Raises RankingError if no
    score is positive.

    >>> from probekit.testing import ranked
    >>> concentration(ranked("abcd"), 1)
    0.4
    """
    positive = [max(score, 0.0) for score in ranking.frame["score"]]
    if not any(positive):
        raise RankingError("No pair has a positive score, so no part of it can be concentrated anywhere.")
    return sum(positive[: ranking._checked(k)]) / sum(positive)


def enrichment(ranking: Ranking, pairs: PairSet, *, k: int, by: Group = "source") -> pl.DataFrame:
    """Which sources or generators the first `k` pairs come from, the most enriched first.

    Columns: group; n, its pairs; in_top, those among the first k; share = in_top / n, with its Wilson 95 %
    interval low, high; lift = share / (k / all pairs), 1 when the group is in the top as often as any.

    Raises RankingError if ranking and pairs hold different pairs, or for another `by`.

    >>> from probekit.pairs import load_pairs
    >>> from probekit.testing import ranked
    >>> pairs = load_pairs([{"prompt": "2 + 2?", "chosen": "4", "rejected": no, "source": no} for no in "35"])
    >>> enrichment(ranked(pairs.ids), pairs, k=1)["lift"].to_list()
    [2.0, 0.0]
    """
    if by not in get_args(Group):
        raise RankingError(f"Pairs cannot be grouped by {by!r}; choose one of {', '.join(get_args(Group))}.")
    if set(ranking.ids) != set(pairs.ids):
        raise RankingError(
            f"The ranking holds {len(ranking)} pairs and the pair set {len(pairs)}, and they are not the "
            "same ones. Rank the pairs of this set, or select those that were ranked."
        )
    return enriched(ranking.top(k)["pair_id"].to_list(), pairs, by=by)


def enriched(top: Sequence[str], pairs: PairSet, *, by: Group) -> pl.DataFrame:
    """`enrichment` of any pairs, by id, among all."""
    counts = (
        pairs.frame.group_by(group=pl.col(by))
        .agg(n=pl.len().cast(pl.Int64), in_top=pl.col("pair_id").is_in(list(top)).sum().cast(pl.Int64))
        .with_columns(share=pl.col("in_top") / pl.col("n"))
    )
    bounds = [wilson_interval(in_top, n) for in_top, n in counts.select("in_top", "n").iter_rows()]
    return counts.with_columns(
        pl.Series("low", [low for low, _ in bounds], pl.Float64),
        pl.Series("high", [high for _, high in bounds], pl.Float64),
        lift=pl.col("share") * len(pairs) / len(top),
    ).sort("share", "in_top", "group", descending=[True, True, False])


def _hits(ranking: Ranking, truth: Set[str]) -> list[bool]:
    if not truth:
        raise RankingError("The truth is empty; give the ids of the pairs that should stand first.")
    if unknown := sorted(truth - set(ranking.ids)):
        raise RankingError(
            f"{len(unknown)} of {len(truth)} ids in the truth are not in the ranking: {listed(unknown)}."
        )
    return [one in truth for one in ranking.ids]
