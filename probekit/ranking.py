"""Rankings of preference pairs by how far training on them pushes toward a behaviour.

The paper's score (section 1.4) is score(d) = cos(v_beh, v_d), at one layer, nothing centred or whitened.
Pairs that merely look like the behaviour (benign requests, answered against refused) score as high, so `rank`
also takes vectors of benign twins as a control. Whatever the method, the paper's plain cosine stands beside
the score.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, get_args

import polars as pl

from probekit._quality import (
    Group,
    average_precision,
    concentration,
    enrichment,
    mean_rank,
    precision_at_k,
    recall_at_k,
)
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
from probekit.vectors import VectorSet

__all__ = [
    "GATE",
    "SCHEMA",
    "SIGNS",
    "Cost",
    "Group",
    "Method",
    "Pooling",
    "Ranking",
    "RankingError",
    "average_precision",
    "concentration",
    "enrichment",
    "mean_rank",
    "precision_at_k",
    "rank",
    "ranking_of",
    "recall_at_k",
]

DEFAULT_METHOD: Method = "probe"
GATE = 0.3

SCHEMA = pl.Schema(
    {
        "rank": pl.Int64(),  # from 1
        "pair_id": pl.String(),
        "score": pl.Float64(),  # what the rows are ordered by; `Ranking.sign` says its sign and range
        "cosine": pl.Float64(),  # the paper's plain score, in [-1, 1]; null where no pair vectors were read
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


class Cost(NamedTuple):
    """What a ranking took besides time: tokens run forward and backward, padding included, and bytes kept."""

    forward_tokens: int = 0
    backward_tokens: int = 0
    stored_bytes: int = 0


@dataclass(frozen=True, eq=False, repr=False)
class Ranking:
    """Pairs from the most to the least suspect: `frame` has the columns of `SCHEMA`, one row a pair.

    layer: the block index scored at, None where a tracer reads no block. method: "cosine", how the control
    was used, or the tracer's name. sign: sign and range of the score, in words. pooling: how behaviour
    vectors were pooled for the cosines. cost: what it took, where that was counted. by_query: for a tracer
    that scores pair by query, pair_id and a column a query, by its contrast_id; a pair's score is their mean.
    Raises RankingError for other columns.
    """

    frame: pl.DataFrame
    layer: int | None
    method: str
    sign: str
    pooling: str = "pooled"
    cost: Cost | None = None
    by_query: pl.DataFrame | None = None

    def __post_init__(self) -> None:
        if self.frame.schema != SCHEMA:
            raise RankingError(
                f"The frame of a Ranking has the columns {dict(SCHEMA)}, this one has "
                f"{dict(self.frame.schema)}. Make rankings with rank()."
            )

    def __len__(self) -> int:
        return self.frame.height

    def __repr__(self) -> str:
        zero = f", {self.zero_norms} without a score of their own" if self.zero_norms else ""
        return f"Ranking({len(self)} pairs{zero}, {self.name}; {self.sign})"

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(repr(self))}</p>{self.frame._repr_html_()}"

    @property
    def name(self) -> str:
        """The method, and the layer where there is one."""
        return self.method if self.layer is None else f"{self.method} at layer {self.layer}"

    @property
    def ids(self) -> list[str]:
        """The pair ids from rank 1 on."""
        return self.frame["pair_id"].to_list()

    @property
    def zero_norms(self) -> int:
        """How many pairs have a zero vector, and so a score that says nothing."""
        return int(self.frame["zero_norm"].sum())

    def of_queries(self, ids: Sequence[str]) -> Ranking:
        """The ranking by these queries alone. Raises RankingError where scores are not kept by query."""
        if self.by_query is None or not ids or not set(ids) <= set(self.by_query.columns[1:]):
            raise RankingError(
                f"{self.name} keeps no scores of these {len(ids)} queries; run the tracer on them alone."
            )
        some = self.by_query.select("pair_id", *ids)
        zero = dict(self.frame.select("pair_id", "zero_norm").iter_rows())
        names, scores = some["pair_id"].to_list(), some.drop("pair_id").mean_horizontal().to_list()
        return ranking_of(
            names, scores, method=self.method, sign=self.sign, layer=self.layer,
            zero_norm=[zero[name] for name in names], by_query=some,
        )  # fmt: skip

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


def ranking_of(
    ids: Sequence[str],
    scores: Sequence[float],
    *,
    method: str,
    sign: str,
    layer: int | None = None,
    zero_norm: Sequence[bool] | None = None,
    cost: Cost | None = None,
    by_query: pl.DataFrame | None = None,
) -> Ranking:
    """The ranking that scores of any tracer give, the highest first, ties by pair id; without cosines.

    ids, scores: one of each a pair. sign: sign and range of the scores, in words. zero_norm: pairs whose
    score says nothing. cost, by_query: as in `Ranking`. Raises RankingError for repeated ids, scores that are
    not finite, or other numbers of them.

    >>> ranking_of(["x", "y"], [0.1, 0.7], method="length", sign="higher = longer").ids
    ['y', 'x']
    """
    if len(ids) != len(scores) or len(set(ids)) != len(ids):
        raise RankingError(
            f"There are {len(scores)} scores for {len(ids)} pairs, {len(set(ids))} of them different; a "
            "ranking has one score for each pair."
        )
    columns = {"pair_id": list(ids), "score": scores, "zero_norm": zero_norm or [False] * len(ids)}
    frame = pl.DataFrame(columns, schema={name: SCHEMA[name] for name in columns})
    if (odd := frame.filter(~pl.col("score").is_finite().fill_null(False))).height:
        raise RankingError(
            f"{odd.height} of {len(ids)} scores are not finite, first that of pair {odd['pair_id'][0]}."
        )
    frame = (
        frame.sort("score", "pair_id", descending=[True, False])
        .with_row_index("rank", offset=1)
        .select(
            pl.col("rank").cast(pl.Int64),
            "pair_id",
            "score",
            pl.lit(None, pl.Float64).alias("cosine"),
            "zero_norm",
        )
    )
    return Ranking(frame, layer, method, sign, cost=cost, by_query=by_query)


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
