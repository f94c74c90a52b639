"""Rankings of preference pairs by how far training on them pushes toward a behaviour.

The paper's score (section 1.4) is score(d) = cos(v_beh, v_d), at one layer, nothing centred or whitened.
Pairs that merely look like the behaviour (benign requests, answered against refused) score as high, so `rank`
also takes vectors of benign twins as a control. Whatever the method, the paper's plain cosine stands beside
the score.
"""

from __future__ import annotations

import html
from collections.abc import Set
from dataclasses import dataclass
from typing import Literal, get_args

import polars as pl

from probekit._scoring import (
    Method,
    Pooling,
    RankingError,
    as_cosine,
    directions,
    gated,
    probe,
    products,
    without,
)
from probekit._vector_set import listed
from probekit._wilson import wilson_interval
from probekit.pairs import PairSet
from probekit.vectors import VectorSet

__all__ = [
    "GATE",
    "SCHEMA",
    "SIGNS",
    "Group",
    "Method",
    "Pooling",
    "Ranking",
    "RankingError",
    "average_precision",
    "concentration",
    "enrichment",
    "precision_at_k",
    "rank",
]

Group = Literal["source", "chosen_model", "rejected_model"]

DEFAULT_METHOD: Method = "probe"
GATE = 0.3

SCHEMA = pl.Schema(
    {
        "rank": pl.Int64(),  # from 1
        "pair_id": pl.String(),
        "score": pl.Float64(),  # what the rows are ordered by; `Ranking.sign` says its sign and range
        "cosine": pl.Float64(),  # the paper's plain score, whatever the method; in [-1, 1]
        "zero_norm": pl.Boolean(),  # the pair's vector is zero: no direction, and no meaningful score
    }
)
"""The columns of `Ranking.frame`, in order."""

_HIGHER = "higher = training on this pair pushes toward the behaviour"
SIGNS: dict[str, str] = {
    "cosine": f"{_HIGHER}; range [-1, 1]",
    "project": f"{_HIGHER}, what its benign twins share left out; range [-1, 1]",
    "subtract": f"{_HIGHER} and away from its benign twins; range [-1, 1]",
    "probe": (
        f"{_HIGHER} rather than its benign twins: a probability in [0, 1] where the cosine passes the gate; "
        "below the gate, cosine minus gate, which is never above 0"
    ),
    "pu": f"{_HIGHER}: probability of being labelled behaviour, not of causing it; range [0, 1]",
}
"""For each method, the sign and range of its scores."""


@dataclass(frozen=True, eq=False, repr=False)
class Ranking:
    """Pairs from the most to the least suspect: `frame` has the columns of `SCHEMA`, one row a pair.

    layer: the block index scored at. method: "cosine", or how the control was used. sign: sign and range of
    the score, in words. pooling: how behaviour vectors were pooled for the cosines. Raises RankingError for
    other columns.
    """

    frame: pl.DataFrame
    layer: int
    method: str
    sign: str
    pooling: str = "pooled"

    def __post_init__(self) -> None:
        if self.frame.schema != SCHEMA:
            raise RankingError(
                f"The frame of a Ranking has the columns {dict(SCHEMA)}, this one has "
                f"{dict(self.frame.schema)}. Make rankings with rank()."
            )

    def __len__(self) -> int:
        return self.frame.height

    def __repr__(self) -> str:
        zero = f", {self.zero_norms} with a zero vector" if self.zero_norms else ""
        return f"Ranking({len(self)} pairs{zero}, {self.method} at layer {self.layer}; {self.sign})"

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(repr(self))}</p>{self.frame._repr_html_()}"

    @property
    def ids(self) -> list[str]:
        """The pair ids from rank 1 on."""
        return self.frame["pair_id"].to_list()

    @property
    def zero_norms(self) -> int:
        """How many pairs have a zero vector, and so a score that says nothing."""
        return int(self.frame["zero_norm"].sum())

    def top(self, k: int) -> pl.DataFrame:
        """The first `k` rows. Raises RankingError unless 1 <= k <= number of pairs."""
        return self.frame.head(self._checked(k))

    def bottom(self, k: int) -> pl.DataFrame:
        """The last `k` rows, lowest first. Raises RankingError unless 1 <= k <= number of pairs."""
        return self.frame.tail(self._checked(k)).reverse()

    def _checked(self, k: int) -> int:
        if not 1 <= k <= len(self):
            raise RankingError(
                f"k = {k}, but the ranking holds {len(self)} pairs; k is a number from 1 to that."
            )
        return k


def rank(
    behaviour: VectorSet,
    pairs: VectorSet,
    *,
    layer: int,
    pooling: Pooling = "pooled",
    control: VectorSet | None = None,
    method: Method | None = None,
    gate: float = GATE,
) -> Ranking:
    """Rank `pairs` by their pull toward `behaviour`, ties by pair id.

    Without a control, the score is the paper's cos(v_beh, v_d) (section 1.4), with v_beh (section 1.5)
    - "pooled": the mean of all behaviour vectors; the paper's main variant,
    - "mean": the mean of the means of each prompt,
    - "bank": one vector per prompt, and the score is the largest of their cosines. (The authors' code lets no
      score fall below 0, which leaves the lower half in no order; here it is the plain maximum.)

    With `control`, vectors of benign twins, `method` is one of
    - "project": v_beh without its component along the twins' pooled vector t, v_beh - (v_beh . t / |t|^2) t,
    - "subtract": v_beh / |v_beh| - t / |t|,
    - "probe" (the default): logistic regression of behaviour (1) against twins (0), on unit vectors. Its
      probability is the score of pairs whose cosine is above `gate`. They all stand above the others, which
      are ordered by cosine,
    - "pu": logistic regression of behaviour (1) against the twins and all pairs, as unlabelled (0); the only
      one that needs all pairs' vectors in memory.
    `pooling` is that of the cosine in "project", "subtract" and in the gate of "probe".

    Both regressions are scikit-learn's, on vectors of length 1 with both classes given the same weight, and
    else with its standard settings (L2, C = 1); deterministic. On vectors so short that is a strong penalty,
    which few behaviour vectors in many dimensions need. A pair with a
    zero vector has cosine 0, is marked in the column `zero_norm` and counted in `Ranking.zero_norms`.

    Raises RankingError if the sets come from different checkpoints or chat settings, lack the layer, are
    empty, if a behaviour or twin vector is zero, or nothing is left of the behaviour once its twins are taken
    out.

    >>> import torch
    >>> toward, away = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[-1.0, 1.0]]])
    >>> behaviour = VectorSet(["b"], (7,), toward, "0123", kind="behaviour")
    >>> rank(behaviour, VectorSet(["x", "y"], (7,), torch.cat([away, toward]), "0123"), layer=7).ids
    ['y', 'x']
    """
    _check_choices(pooling, control, method, gate)
    _check_sets(behaviour, pairs, control, layer)
    used = method or (DEFAULT_METHOD if control is not None else None)
    wanted = directions(behaviour, layer, pooling)
    compared, bias = [directions(behaviour, layer, "pooled"), wanted], 0.0
    if control is not None and used in ("project", "subtract"):
        compared[1] = without(wanted, directions(control, layer, "pooled"), used)
    elif control is not None:
        weights, bias = probe(behaviour, control, layer, unlabelled=pairs if used == "pu" else None)
        compared.append(weights)
    found, zero_norm = products(pairs, layer, compared)
    cosine, order = map(as_cosine, found[:2])
    score = order
    if len(found) > 2:
        decision = (found[2] + bias).round(decimals=9) + 0.0  # as in `as_cosine`
        probability = decision.sigmoid().round(decimals=12)
        order, score = gated(decision, order, gate) if used == "probe" else (decision, probability)
    columns = {"score": score, "cosine": cosine, "zero_norm": zero_norm, "order": order}
    frame = (
        pl.DataFrame({"pair_id": pairs.ids} | {name: values.numpy() for name, values in columns.items()})
        .sort("order", "pair_id", descending=[True, False])
        .with_row_index("rank", offset=1)
        .cast({"rank": pl.Int64})
        .select(SCHEMA.names())
    )
    name = used or "cosine"
    return Ranking(frame, layer, name, SIGNS[name], pooling)


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
    top = ranking.top(k)["pair_id"].to_list()
    counts = (
        pairs.frame.group_by(group=pl.col(by))
        .agg(n=pl.len().cast(pl.Int64), in_top=pl.col("pair_id").is_in(top).sum().cast(pl.Int64))
        .with_columns(share=pl.col("in_top") / pl.col("n"))
    )
    bounds = [wilson_interval(in_top, n) for in_top, n in counts.select("in_top", "n").iter_rows()]
    return counts.with_columns(
        pl.Series("low", [low for low, _ in bounds], pl.Float64),
        pl.Series("high", [high for _, high in bounds], pl.Float64),
        lift=pl.col("share") * len(pairs) / k,
    ).sort("share", "in_top", "group", descending=[True, True, False])


def _check_choices(pooling: Pooling, control: VectorSet | None, method: Method | None, gate: float) -> None:
    if pooling not in get_args(Pooling):
        raise RankingError(f"There is no pooling {pooling!r}; choose one of {', '.join(get_args(Pooling))}.")
    if method is not None and method not in get_args(Method):
        raise RankingError(f"There is no method {method!r}; choose one of {', '.join(get_args(Method))}.")
    if method is not None and control is None:
        raise RankingError(f'method="{method}" needs control=, the vectors of benign twins (twin_vectors).')
    if not -1 <= gate < 1:
        raise RankingError(f"gate = {gate}; it is a cosine, from -1 (all pass) to below 1.")


def _check_sets(behaviour: VectorSet, pairs: VectorSet, control: VectorSet | None, layer: int) -> None:
    named = {"behaviour": behaviour, "pairs": pairs} | ({} if control is None else {"control": control})
    for name, vectors in named.items():
        if not len(vectors):
            raise RankingError(f"There are no {name} vectors to rank with.")
        if layer not in vectors.layers:
            raise RankingError(
                f"Layer {layer} was not read for {name}; its vectors have the layers {vectors.layers}."
            )
        if vectors.fingerprint != behaviour.fingerprint:
            raise RankingError(
                f"The behaviour vectors are of checkpoint {behaviour.fingerprint}, those of {name} of "
                f"{vectors.fingerprint}; directions of two models cannot be compared. Read both through one."
            )
        if vectors.chat != behaviour.chat:
            raise RankingError(
                f"The behaviour vectors were read with chat={behaviour.chat}, those of {name} with "
                f"chat={vectors.chat}. Read both in the same way."
            )


def _hits(ranking: Ranking, truth: Set[str]) -> list[bool]:
    if not truth:
        raise RankingError("The truth is empty; give the ids of the pairs that should stand first.")
    if unknown := sorted(truth - set(ranking.ids)):
        raise RankingError(
            f"{len(unknown)} of {len(truth)} ids in the truth are not in the ranking: {listed(unknown)}."
        )
    return [one in truth for one in ranking.ids]
