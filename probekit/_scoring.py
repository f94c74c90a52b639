"""How `ranking` scores: directions, cosines with them, and probes trained against benign twins."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal

from probekit._vector_set import listed
from probekit.vectors import VectorSet, by_prompt, pool

if TYPE_CHECKING:
    import torch

Pooling = Literal["pooled", "mean", "bank"]
Method = Literal["project", "subtract", "probe", "pu"]
_CHUNK = 8192  # pair vectors scored at a time, so that memory does not grow with their number


class RankingError(ValueError):
    """Vectors that cannot be ranked against each other, or a question the ranking cannot answer."""


def directions(vectors: VectorSet, layer: int, pooling: Pooling) -> torch.Tensor:
    """What pairs are compared with, float64 (directions, width): one row, or for a bank one per prompt."""
    one_layer = dataclasses.replace(vectors, layers=(layer,), values=vectors.layer(layer).unsqueeze(1))
    found = by_prompt(one_layer).layer(layer) if pooling == "bank" else pool(one_layer, how=pooling)
    if (found == 0).all(dim=1).any():
        raise RankingError(
            f"The {vectors.kind} vectors cancel out to zero at layer {layer} ({pooling}); they point "
            "nowhere, so nothing can be ranked by them."
        )
    return found.double()


def cosines(directions: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """The largest cosine of each vector with any direction, float64 in [-1, 1]; 0 for a zero vector."""
    import torch
    from torch.nn.functional import normalize

    unit = normalize(directions, dim=1)
    chunks = [
        (normalize(chunk.double(), dim=1, eps=1e-300) @ unit.T).amax(dim=1) for chunk in vectors.split(_CHUNK)
    ]
    # A product of matrices rounds a row differently in different places, and equal vectors have to tie.
    return torch.cat(chunks).clamp(-1, 1).round(decimals=12) + 0.0  # + 0.0 makes -0.0 a 0.0


def without(directions: torch.Tensor, twins: torch.Tensor, method: Method) -> torch.Tensor:
    """The behaviour's directions once the twins' pooled direction is projected out or subtracted."""
    from torch.nn.functional import normalize

    unit, twin = normalize(directions, dim=1), normalize(twins, dim=1)
    left = unit - (unit @ twin.T) * twin if method == "project" else unit - twin
    if (left.norm(dim=1) < 1e-6).any():
        raise RankingError(
            f'The behaviour points where its twins do, so nothing is left of it with method="{method}". '
            "Are these the twins, and not the behaviour again?"
        )
    return left


def log_odds(
    behaviour: VectorSet, control: VectorSet, pairs: VectorSet, layer: int, *, unlabelled: bool
) -> torch.Tensor:
    """Log-odds of behaviour against twins, or against twins and all pairs as unlabelled, for each pair."""
    import torch
    from sklearn.linear_model import LogisticRegression

    ones, twins, rows = (_unit(vectors, layer) for vectors in (behaviour, control, pairs))
    zeros = torch.cat([twins, rows]) if unlabelled else twins
    labels = [1] * len(ones) + [0] * len(zeros)
    probe = LogisticRegression(C=1.0, class_weight="balanced", max_iter=1000, random_state=0)
    probe.fit(torch.cat([ones, zeros]).numpy(), labels)
    return torch.from_numpy(probe.decision_function(rows.numpy())).round(decimals=9) + 0.0  # as in `cosines`


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
