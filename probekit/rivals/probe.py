"""Probes: our rankings by cosine with their variants, and a trained logistic probe, on the same vectors."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal, get_args

import polars as pl

from probekit import ranking, vectors
from probekit._texts import contrast_texts
from probekit.checkpoints import Checkpoint
from probekit.pairs import PairSet
from probekit.ranking import Cost, Ranking
from probekit.rivals import RivalError
from probekit.store import VectorStore
from probekit.vectors import VectorSet

if TYPE_CHECKING:
    import torch

Method = Literal["logistic", "pooled", "mean", "bank", "project", "subtract", "probe", "pu"]

SIGN = (
    "higher = the chosen reply is more like the behaviour than the rejected one; difference of the log-odds "
    "of a trained probe, unbounded"
)


def rank(
    checkpoint: Checkpoint,
    pairs: PairSet,
    queries: pl.DataFrame,
    *,
    layer: int,
    method: Method = "logistic",
    twins: pl.DataFrame | None = None,
    store: VectorStore | None = None,
) -> Ranking:
    """Rank by what M0's residual stream after block `layer` says of each pair.

    method:
    - "logistic": logistic regression on reply means, bad against good (the trained probe of
      reference/probe_attribution.md, section 8). Its weights w score the vectors of the pairs: w . v_d =
      (w . abar(chosen) + b) - (w . abar(rejected) + b), the difference of its log-odds of the two replies.
      With twins, both replies of these count as good.
    - "pooled", "mean", "bank": the paper's cosine, poolings as in `ranking.rank`.
    - "project", "subtract", "probe", "pu": with benign twins as a control, as in `ranking.rank`; twins: their
      contrasts, with the columns of `queries`.
    store: where vectors are kept; what is there already costs nothing.

    The cost holds the tokens of pairs, queries and twins, and one float32 vector a pair. Raises RivalError
    for another method, and for one that needs twins without them; else as `vectors.pair_vectors`,
    `vectors.behaviour_vectors` and `ranking.rank`.

    >>> from probekit.pairs import load_pairs
    >>> from probekit.testing import planted_contrasts, planted_pairs, tiny_checkpoint
    >>> pairs = load_pairs(planted_pairs(8))
    >>> rank(tiny_checkpoint(), pairs, planted_contrasts(4), layer=1, method="pooled").name
    'cosine at layer 1'
    """
    if method not in get_args(Method):
        raise RivalError(f"There is no method {method!r}; choose one of {', '.join(get_args(Method))}.")
    if method in get_args(ranking.Method) and twins is None:
        raise RivalError(f'method="{method}" needs twins=, contrasts of benign twins (see twin_contrasts).')
    before = checkpoint.tokens_read
    of_pairs = vectors.pair_vectors(checkpoint, pairs, layers=[layer], store=store)
    if method == "logistic":
        found = _by_decision(of_pairs, _direction(checkpoint, queries, twins, layer), layer)
    else:
        behaviour = vectors.behaviour_vectors(checkpoint, queries, layers=[layer], store=store)
        match method:
            case "pooled" | "mean" | "bank":
                found = ranking.rank(behaviour, of_pairs, layer=layer, pooling=method)
            case _:
                assert twins is not None
                control = vectors.twin_vectors(checkpoint, twins, layers=[layer], store=store)
                found = ranking.rank(behaviour, of_pairs, layer=layer, control=control, method=method)
    tokens = checkpoint.tokens_read - before
    cost = Cost(forward_tokens=tokens, stored_bytes=4 * len(pairs) * checkpoint.width)
    return dataclasses.replace(found, cost=cost)


def _by_decision(of_pairs: VectorSet, direction: torch.Tensor, layer: int) -> Ranking:
    """Rank by the product with a direction. Rounded, so that equal vectors tie."""
    import torch

    found = [(rows @ direction, (rows == 0).all(dim=1)) for rows in of_pairs.chunks(layer)]
    scores, zero = (torch.cat(parts) for parts in zip(*found, strict=True))
    return ranking.ranking_of(
        of_pairs.ids,
        (scores.round(decimals=9) + 0.0).tolist(),
        method="logistic",
        sign=SIGN,
        layer=layer,
        zero_norm=zero.tolist(),
    )


def _direction(
    checkpoint: Checkpoint, queries: pl.DataFrame, twins: pl.DataFrame | None, layer: int
) -> torch.Tensor:
    """The weights of a logistic probe of bad against good and twins' replies, float64 of shape (width,).

    scikit-learn's, with its standard settings (L2, C = 1), on features scaled to unit variance, because those
    of a residual stream differ by orders of magnitude; the weights are of the features as they are.
    """
    import torch
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    texts, others = contrast_texts(queries), [] if twins is None else contrast_texts(twins)
    sides = [(0, texts), (1, texts), (0, others), (1, others)]
    rendered = [checkpoint.render(text.prompt, text.replies[side]) for side, some in sides for text in some]
    means = vectors.response_means(checkpoint, rendered, layers=[layer])[:, 0].double().numpy()
    scaler = StandardScaler().fit(means)
    fitted = LogisticRegression(C=1.0, max_iter=1000, random_state=0)
    fitted.fit(scaler.transform(means), [1] * len(texts) + [0] * (len(means) - len(texts)))
    return torch.from_numpy(fitted.coef_[0] / scaler.scale_)
