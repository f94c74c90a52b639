"""A large matrix averaged into bins, few enough to send and to draw, and what stands along its sides."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

from probekit._clusters_trees import Array, Flags, Labels

Span: TypeAlias = tuple[int, int]
"""From the first place to before the last."""

MOST = (300, 520)  # bins down and across: with a byte each, at most 156 kB a view
NONE = -1  # a bin of which nothing has a label
LEVELS = 127  # steps of colour either way from zero


def step(span: Span, most: int) -> int:
    """How many places share a bin, so that there are at most `most` bins; the last bin may have fewer.

    >>> step((0, 500), 300), step((10, 20), 300)
    (2, 1)
    """
    return max(1, -(-(span[1] - span[0]) // most))


def mean_bins(values: Array, rows: Span, columns: Span) -> Array:
    """The mean of each bin of this window, (bins down, bins across), as many as `step` makes.

    The mean and not the strongest value: what makes a cluster is that most of its cells agree, and the
    strongest of twenty cells of noise is strong too.
    """
    part = values[slice(*rows), slice(*columns)]
    for axis, (span, most) in enumerate(zip((rows, columns), MOST, strict=True)):
        starts = np.arange(0, span[1] - span[0], step(span, most))
        counts = np.diff(np.append(starts, span[1] - span[0]))
        sums = np.add.reduceat(part, starts, axis=axis)
        part = sums / (counts if axis else counts[:, None])
    return part


def colour_limit(values: Array) -> float:
    """The |value| at which the colours end: 99.5 % of all values lie within, rounded up to 0.05.

    One for all windows of a matrix, so that a colour means the same in each.
    """
    return float(np.ceil(np.quantile(np.abs(values), 0.995) * 20 - 1e-6).clip(1, 20)) / 20


def levels(means: Array, limit: float) -> Array:
    """The means as int8, -127 to 127 for -limit to limit, and no further.

    >>> levels(np.array([[-2.0, 0.0, 0.25]]), 0.5).tolist()
    [[-127, 0, 64]]
    """
    return np.rint(LEVELS * np.clip(means / limit, -1, 1)).astype(np.int8)


def commonest(labels: Labels, span: Span, most: int) -> list[int]:
    """The label that most of each bin's places have, of those that have one; NONE where none has."""
    size = step(span, most)
    found = []
    for start in range(*span, size):
        some = labels[start : min(start + size, span[1])]
        some = some[some != NONE]
        found.append(int(np.bincount(some).argmax()) if len(some) else NONE)
    return found


def shares(flags: Flags, span: Span, most: int) -> list[int]:
    """Which share of each bin's places have the flag, in percent."""
    starts = np.arange(*span, step(span, most))
    found = np.add.reduceat(flags[: span[1]].astype(np.int64), starts)
    return np.rint(100 * found / np.diff(np.append(starts, span[1]))).astype(int).tolist()
