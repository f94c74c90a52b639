"""Gradient tracing: LESS adapted to DPO, plain TracIn, and scores that bergson exported.

LESS (Xia et al., 2402.04333) as Xiao & Aranguri's baseline was (2602.11079; reference 6.1): a warm-up trains
LoRA by DPO; at its checkpoints every pair's gradient of the DPO loss is divided by the root of Adam's second
moment, projected by random signs to 8,192 numbers and compared with the gradients of the queries, each taken
as a pair that prefers the bad reply.

Why no library does this for us (their wheels were read in 2026): bergson 2.5.1 has the losses `ce`, `kl` and
`log_odds`, none with a chosen, a rejected and a reference, and requires bitsandbytes, torchvision, torchaudio
and torchopt; its exported scores are taken, by `of_bergson`. dattri-llm 0.1.0 is light and has LESS, but one
gradient a row of tokens where a pair is two; it warns that a DPO-style step is recorded under the last
row's identity, and would leave the adapters, the joining and the reference to us, which is all but the forty
lines of hooks. traker 0.3.2 has losses of classifiers and CLIP, and its fast projection needs CUDA.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import polars as pl

from probekit._texts import contrast_texts, pair_texts
from probekit._vector_set import VectorError
from probekit.checkpoints import Checkpoint
from probekit.pairs import PairSet
from probekit.ranking import Cost, Ranking, ranking_of
from probekit.rivals import RivalError
from probekit.rivals._adapters import Adapters, untrained, warmed_up
from probekit.rivals._bergson import read_scores
from probekit.rivals._pair_gradients import Example, Loss, example, metered, pair_gradients
from probekit.rivals._projection import Rows, projected
from probekit.training import Recipe, Shared

if TYPE_CHECKING:
    import torch

Similarity = Literal["cosine", "dot"]
Taken = Literal["each", "last"]

EPSILON = 1e-8  # of Adam
PROJECTION = 8192
_HIGHER = "higher = training on this pair pushes toward the behaviour"
_UNBOUNDED = f"{_HIGHER}; a dot product of gradients, unbounded"


def less(
    checkpoint: Checkpoint,
    pairs: PairSet,
    queries: pl.DataFrame,
    *,
    recipe: Recipe,
    epochs: int = 4,
    share: float = 1.0,
    taken: Taken = "each",
    loss: Loss = "recipe",
    projection: int | None = PROJECTION,
    similarity: Similarity = "cosine",
    seed: int = 0,
) -> Ranking:
    """LESS for DPO: the mean over checkpoints and queries of cos(P Gamma(d), P grad l(q)).

    l is the DPO loss with M0 (`checkpoint`, the adapter off) as the reference; Gamma(d) = grad l(d) /
    (sqrt(v) + eps), v Adam's second moment at the checkpoint (its first is left out: it makes all pairs
    alike); P the projection; l(q) prefers a query's bad reply to its good one, plain gradient. Training on d
    moves against Gamma(d), so a positive cosine lowers l(q), which is toward the behaviour.

    recipe, epochs: of the warm-up, `train_dpo` from M0 on all pairs, or on a `share` of them. taken: the
    checkpoints at the end of "each" epoch, weighted equally, or the "last" one's alone. loss: "recipe", what
    the warm-up trains on (DPO and the recipe's SFT loss), "dpo" without the latter, or "dpo-norm", the
    paper's: log-ratios a token, beta 5. projection: numbers a gradient is projected to, None for exact
    products. epochs=0: at M0 itself with a new adapter, as `tracin` has it, and nothing to divide by. seed:
    of the warm-up and the projection.

    Pairs whose gradient is zero or not finite at a checkpoint score 0 there and are marked in `zero_norm`.
    The cost counts the warm-up; stored_bytes is what the projected gradients of all pairs take. What is kept
    in memory meanwhile grows with the texts: `Shared` of the warm-up.

    Raises RivalError for queries that are no contrasts, for a setting out of range, for texts longer than the
    context and for queries without any gradient, and TrainingError as `train_dpo` does.

    >>> from probekit.pairs import load_pairs
    >>> from probekit.testing import planted_contrasts, planted_pairs, tiny_checkpoint
    >>> pairs, recipe = load_pairs(planted_pairs(4)), Recipe(first_block=3, rank=2)
    >>> len(less(tiny_checkpoint(), pairs, planted_contrasts(1), recipe=recipe, epochs=0, projection=16))
    4
    """
    if similarity not in get_args(Similarity):
        raise RivalError(f"There is no similarity {similarity!r}; choose cosine or dot.")
    cosine = similarity == "cosine"
    sign = f"{_HIGHER}; a mean of cosines of gradients, in [-1, 1]" if cosine else _UNBOUNDED
    tracer = _Tracer(checkpoint, pairs, queries, recipe=recipe, loss=loss, projection=projection, seed=seed)
    return tracer.ranking("less", sign, epochs=epochs, share=share, taken=taken, cosine=cosine, adam=True)


def tracin(
    checkpoint: Checkpoint,
    pairs: PairSet,
    queries: pl.DataFrame,
    *,
    recipe: Recipe,
    epochs: int = 4,
    share: float = 1.0,
    taken: Taken = "each",
    loss: Loss = "recipe",
    projection: int | None = PROJECTION,
    seed: int = 0,
) -> Ranking:
    """Plain TracIn (Pruthi et al., 2002.08484): sum over checkpoints of rate * mean over queries of the dot.

    As `less`, with neither Adam's second moment nor norms taken out: grad l(d) . grad l(q), weighted by the
    mean learning rate of the epoch that ended at the checkpoint. epochs=0: at the untrained M0 with a new
    adapter, whose B is zero, so that only B's gradients are not: those of the weights, through the random A.

    Options, marks, cost and errors: as `less`.

    >>> from probekit.pairs import load_pairs
    >>> from probekit.testing import planted_contrasts, planted_pairs, tiny_checkpoint
    >>> pairs, recipe = load_pairs(planted_pairs(4)), Recipe(first_block=3, rank=2)
    >>> tracin(tiny_checkpoint(), pairs, planted_contrasts(1), recipe=recipe, epochs=0, projection=16).method
    'tracin'
    """
    tracer = _Tracer(checkpoint, pairs, queries, recipe=recipe, loss=loss, projection=projection, seed=seed)
    return tracer.ranking(
        "tracin", _UNBOUNDED, epochs=epochs, share=share, taken=taken, cosine=False, adam=False
    )


def of_bergson(
    path: str | Path, pairs: PairSet, *, rejected: str | Path | None = None, higher_is_better: bool = True
) -> Ranking:
    """The ranking of scores that `bergson score` left in a folder, with info.json and scores.bin.

    Its rows are the pairs, in the order of `pairs.ids`; a pair's score is the mean over the queries. bergson
    knows no preference loss, so score chosen and rejected replies in runs of their own and give both: the
    score is then that of `path` (the chosen) minus that of `rejected`. That is the DPO gradient at M0, up to
    a factor, where bergson was told to sum losses over tokens. higher_is_better: as in bergson's ScoreConfig;
    False turns the sign. Scores that are not finite count as 0 and are marked in `zero_norm`.

    Raises RivalError for a folder that is not so, is of other rows, or is not finished.

    >>> from probekit.pairs import load_pairs
    >>> from probekit.testing import planted_pairs
    >>> of_bergson("nowhere", load_pairs(planted_pairs(4)))
    Traceback (most recent call last):
    probekit.rivals.RivalError: nowhere has no info.json and scores.bin; give a folder of bergson score
    """
    import numpy as np

    scores = read_scores(Path(path), len(pairs))
    if rejected is not None:
        other = read_scores(Path(rejected), len(pairs))
        if other.shape != scores.shape:
            raise RivalError(f"{path} has {scores.shape[1]} queries, {rejected} has {other.shape[1]}")
        scores = scores - other
    means = scores.mean(axis=1) * (1 if higher_is_better else -1)
    odd = ~np.isfinite(means)
    return ranking_of(
        pairs.ids,
        np.where(odd, 0.0, means).tolist(),
        method="bergson",
        sign=f"{_HIGHER}; unit and range as exported",
        zero_norm=odd.tolist(),
    )


class _Tracer:
    """Pairs and queries in tokens, and the settings of their gradients."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        pairs: PairSet,
        queries: pl.DataFrame,
        *,
        recipe: Recipe,
        loss: Loss,
        projection: int | None,
        seed: int,
    ) -> None:
        if loss not in get_args(Loss):
            raise RivalError(f"There is no loss {loss!r}; choose one of {', '.join(get_args(Loss))}.")
        if projection is not None and projection < 1:
            raise RivalError(f"projection = {projection}; it is a number of dimensions, or None.")
        try:
            texts, asked = pair_texts(pairs), contrast_texts(queries)
        except VectorError as error:
            raise RivalError(str(error)) from error
        self.pairs, self.recipe, self.loss = pairs, recipe, loss
        self.queries = queries["contrast_id"].to_list()
        self.projection, self.seed = projection, seed
        self.trained = [example(checkpoint, text) for text in texts]
        self.asked = [example(checkpoint, text) for text in asked]
        self.shared = Shared(checkpoint, first_block=recipe.first_block)

    def ranking(
        self, method: str, sign: str, *, epochs: int, share: float, taken: Taken, cosine: bool, adam: bool
    ) -> Ranking:
        """Pairs by their influence, summed over the checkpoints of a warm-up."""
        import torch

        if epochs < 0 or not 0 < share <= 1 or taken not in get_args(Taken):
            raise RivalError(
                f"epochs = {epochs}, share = {share}, taken = {taken!r}; epochs are 0 or more, the share is "
                "above 0 and at most 1, and the checkpoints taken are each or last."
            )
        scores = torch.zeros(len(self.trained), len(self.asked), dtype=torch.float64)
        void = torch.zeros(len(self.trained), dtype=torch.bool)
        with metered(self.shared.checkpoint.hf) as meter:
            moments = self._checkpoints(epochs, share)[-1 if taken == "last" else 0 :]
            for adapters in moments:
                found, odd = self._influence(adapters, cosine=cosine, adam=adam)
                scores += found * (1 / len(moments) if method == "less" else adapters.rate)
                void |= odd
        numbers = self.projection or moments[0].size
        cost = Cost(meter.forward, meter.backward, 4 * numbers * len(moments) * len(self.trained))
        apart = dict(zip(self.queries, scores.T.tolist(), strict=True))
        return ranking_of(
            self.pairs.ids,
            scores.mean(dim=1).tolist(),
            method=method,
            sign=sign,
            zero_norm=void.tolist(),
            cost=cost,
            by_query=pl.DataFrame({"pair_id": self.pairs.ids, **apart}),
        )

    def _checkpoints(self, epochs: int, share: float) -> list[Adapters]:
        if not epochs:
            return [untrained(self.shared.checkpoint, self.recipe, seed=self.seed)]
        return warmed_up(self.shared, self.pairs, self.recipe, epochs=epochs, share=share, seed=self.seed)

    def _influence(
        self, adapters: Adapters, *, cosine: bool, adam: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """At one checkpoint: products with the queries, float64 (pairs, queries), and which pairs have none.

        A query without a gradient of its own counts as the mean of the others.
        """
        import torch

        asked, lacking = torch.empty(0), torch.ones(len(self.asked), dtype=torch.bool)
        for places, rows in self._signatures(adapters, self.asked, "query gradients"):
            rows, odd = _directed(rows, cosine)
            asked = asked if asked.numel() else rows.new_zeros(len(self.asked), rows.shape[1])
            asked[places], lacking[places] = rows, odd.cpu()
        if lacking.all():
            raise RivalError(
                f"None of the {len(self.asked)} queries has a gradient that is finite and not zero; are the "
                "model's weights finite?"
            )
        asked[lacking] = asked[~lacking].mean(dim=0)
        influence = torch.zeros(len(self.trained), len(self.asked), dtype=torch.float64)
        void = torch.zeros(len(self.trained), dtype=torch.bool)
        for places, rows in self._signatures(adapters, self.trained, "pair gradients", adam=adam):
            rows, odd = _directed(rows, cosine)
            influence[places] = (rows @ asked.T).double().cpu()
            void[places] = odd.cpu()
        return influence, void

    def _signatures(
        self, adapters: Adapters, examples: Sequence[Example], label: str, *, adam: bool = False
    ) -> Iterator[Rows]:
        """Places and gradients, through Adam's second moment where that is asked for, projected."""
        rows = pair_gradients(
            self.shared, adapters, examples, recipe=self.recipe, loss=self.loss, label=label
        )
        if adam and adapters.second_moment is not None:
            scale = adapters.second_moment.sqrt() + EPSILON
            rows = ((places, some / scale) for places, some in rows)
        return rows if self.projection is None else projected(rows, self.projection, seed=self.seed)


def _directed(rows: torch.Tensor, cosine: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows, of length 1 for a cosine, and zeros for those that are zero or not finite; which these are."""
    import torch

    norms = rows.norm(dim=1, keepdim=True)
    odd = ~norms.isfinite() | (norms == 0)
    return torch.where(odd, 0.0, rows / norms if cosine else rows), odd[:, 0]
