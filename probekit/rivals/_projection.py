"""Seeded Rademacher projections of long rows, block by block: a helper of `gradient`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Rows = tuple[list[int], "torch.Tensor"]  # places, and a row (of numbers) for each of them

BLOCK = 2**21  # signs in memory at a time: 8 MB in float32, which a cache holds
GATHERED = 2**30  # bytes of rows that are projected at once: the signs are drawn anew for each such lot


def projected(rows: Iterator[Rows], dims: int, *, seed: int) -> Iterator[Rows]:
    """The rows times R / sqrt(dims), R of independent signs (parameters, dims) that depend on the seed only.

    Keeps dot products and cosines in expectation, with an error of about 1 / sqrt(dims) (Johnson and
    Lindenstrauss). R is never whole in memory.

    >>> import torch
    >>> ((places, short),) = projected(iter([([0], torch.ones(1, 50))]), 8, seed=0)
    >>> places, short.shape
    ([0], torch.Size([1, 8]))
    """
    lot: list[Rows] = []
    for places, some in rows:
        lot.append((places, some))
        if sum(len(one) for _, one in lot) * some.shape[1] * 4 >= GATHERED:
            yield _projected(lot, dims, seed)
            lot = []
    if lot:
        yield _projected(lot, dims, seed)


def _projected(lot: Sequence[Rows], dims: int, seed: int) -> Rows:
    import torch

    rows = torch.cat([some for _, some in lot])
    out, step = rows.new_zeros(len(rows), dims), max(1, BLOCK // dims)
    for block, at in enumerate(range(0, rows.shape[1], step)):
        some = rows[:, at : at + step]
        out.addmm_(some, _signs(some.shape[1], dims, seed, block).to(rows.device))
    return [place for places, _ in lot for place in places], out / dims**0.5


def _signs(n: int, dims: int, seed: int, block: int) -> torch.Tensor:
    """Signs (n, dims), float32, from the bits of a generator that is seeded for this block."""
    import numpy as np
    import torch

    drawn = np.random.default_rng([seed, block]).bytes(-(-n * dims // 8))
    bits = np.unpackbits(np.frombuffer(drawn, dtype=np.uint8), count=n * dims)
    return torch.from_numpy(bits).float().mul_(2).sub_(1).view(n, dims)
