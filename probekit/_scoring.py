"""How `ranking` scores: directions, cosines with them, and probes trained against benign twins."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from probekit._vector_set import listed
from probekit.vectors import VectorSet, by_prompt, pool

if TYPE_CHECKING:
    import torch

Pooling = Literal["pooled", "mean", "bank"]
Method = Literal["project", "subtract", "probe", "pu"]


class RankingError(ValueError):
    """Vectors that cannot be ranked against each other, or a question the ranking cannot answer."""


def directions(vectors: VectorSet, layer: int, pooling: Pooling) -> torch.Tensor:
    """What pairs are compared with, unit vectors in float64 (directions, width): one row, or for a bank one
    per prompt."""
    from torch.nn.functional import normalize

    one_layer = dataclasses.replace(vectors, layers=(layer,), values=vectors.layer(layer).unsqueeze(1))
    found = by_prompt(one_layer).layer(layer) if pooling == "bank" else pool(one_layer, how=pooling)
    if (found == 0).all(dim=1).any():
        raise RankingError(
            f"The {vectors.kind} vectors cancel out to zero at layer {layer} ({pooling}); they point "
            "nowhere, so nothing can be ranked by them."
        )
    return normalize(found.double(), dim=1)


def products(
    pairs: VectorSet, layer: int, directions: Sequence[torch.Tensor]
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """One pass over the pairs' vectors, made unit vectors: for each matrix of directions, the largest dot
    product of each vector with any of its rows, float64; and which vectors are zero.

    In float64 because equal vectors have to tie, and a product of matrices rounds a row differently in
    different places.
    """
    import torch

    sizes = [len(one) for one in directions]
    # Eight at a time, and in this order, the product of few directions took half the time of rows @ every.T.
    every = torch.nn.functional.pad(torch.cat(list(directions)), (0, 0, 0, -sum(sizes) % 8))
    largest: list[list[torch.Tensor]] = [[] for _ in directions]
    zero = []
    for rows in pairs.chunks(layer):
        norm = rows.norm(dim=1, keepdim=True)
        found = (every @ rows.T)[: sum(sizes)] / norm[:, 0].clamp(min=1e-300)
        for kept, part in zip(largest, found.split(sizes), strict=True):
            kept.append(part.amax(dim=0))
        zero.append(norm[:, 0] == 0)
    return [torch.cat(one) for one in largest], torch.cat(zero)


def as_cosine(product: torch.Tensor) -> torch.Tensor:
    """A product of unit vectors in [-1, 1], rounded so that equal vectors tie; + 0.0 makes -0.0 a 0.0."""
    return product.clamp(-1, 1).round(decimals=12) + 0.0


def without(behaviour: torch.Tensor, twin: torch.Tensor, method: Method) -> torch.Tensor:
    """The behaviour's directions once the twins' pooled direction is projected out or subtracted; unit
    vectors, as both given."""
    from torch.nn.functional import normalize

    left = behaviour - (behaviour @ twin.T) * twin if method == "project" else behaviour - twin
    if (left.norm(dim=1) < 1e-6).any():
        raise RankingError(
            f'The behaviour points where its twins do, so nothing is left of it with method="{method}". '
            "Are these the twins, and not the behaviour again?"
        )
    return normalize(left, dim=1)


def probe(
    behaviour: VectorSet, control: VectorSet, layer: int, *, unlabelled: VectorSet | None = None
) -> tuple[torch.Tensor, float]:
    """A logistic probe of behaviour against twins, or twins and unlabelled pairs: weights, (1, width), and
    bias of its log-odds for a unit vector."""
    import torch
    from sklearn.linear_model import LogisticRegression

    ones, twins = _unit(behaviour, layer), _unit(control, layer)
    zeros = twins if unlabelled is None else torch.cat([twins, _unit(unlabelled, layer)])
    labels = [1] * len(ones) + [0] * len(zeros)
    fitted = LogisticRegression(C=1.0, class_weight="balanced", max_iter=1000, random_state=0)
    fitted.fit(torch.cat([ones, zeros]).numpy(), labels)
    return torch.from_numpy(fitted.coef_), float(fitted.intercept_[0])


def _unit(vectors: VectorSet, layer: int) -> torch.Tensor:
    from torch.nn.functional import normalize

    values = vectors.layer(layer)
    zero = [one for one, empty in zip(vectors.ids, (values == 0).all(dim=1).tolist(), strict=True) if empty]
    if zero and vectors.kind != "pair":
        raise RankingError(
            f"{len(zero)} {vectors.kind} vectors are zero at layer {layer}: {listed(zero)}. "
            "They have no direction to train a probe on; leave these contrasts out."
        )
    return normalize(values.double(), dim=1, eps=1e-300)


def gated(decision: torch.Tensor, cosine: torch.Tensor, gate: float) -> tuple[torch.Tensor, torch.Tensor]:
    """What to order by, and the score shown: a probability above the gate, cosine - gate below it."""
    import torch

    passed = cosine > gate
    # Probabilities near 1 round to 1 and would tie, so what passed is ordered by the log-odds, as whole
    # numbers from 0, and everything else by a cosine moved below them.
    order = cosine - 2
    order[passed] = torch.unique(decision[passed], return_inverse=True)[1].to(order.dtype)
    return order, torch.where(passed, decision.sigmoid().round(decimals=12), (cosine - gate).clamp(max=0))
