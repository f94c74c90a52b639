"""Vectors with their ids, and the means over them: what `vectors` reads and `ranking` scores.

Public names are those of `probekit.vectors`.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import polars as pl

if TYPE_CHECKING:
    import torch

Kind = Literal["pair", "behaviour", "twin", "prompt"]
T = TypeVar("T")

CHUNK = 2**24  # numbers read at a time from a set too large for the memory: 128 MiB in float64
_SHOWN = 20  # ids named in an error message


class VectorError(ValueError):
    """Texts that cannot be read through the model as asked, or vectors that are not what they should be."""


@dataclass(frozen=True)
class MappedRows:
    """Vectors in a file, of which only the rows asked for are in memory.

    path, offset: where the first row begins, in bytes. shape: (rows, layers, width). dtype: "float32" or
    "float16", row after row in the machine's byte order. What is read is float32.
    """

    path: Path
    offset: int
    shape: tuple[int, int, int]
    dtype: str

    def __getitem__(self, at: Any) -> torch.Tensor:
        """What numpy gives for this index, such as rows[5:8] or rows[[1, 2], 0], in float32."""
        import numpy as np
        import torch

        # Mapped anew each time: pages once touched count as memory of this process until they are let go.
        # Copy on write, because torch takes no array that is read-only.
        rows = np.memmap(self.path, self.dtype, mode="c", offset=self.offset, shape=self.shape)
        return torch.from_numpy(np.asarray(rows[at])).to(torch.float32, copy=True)

    def chunks(self, place: int, step: int) -> Iterator[torch.Tensor]:
        """Up to `step` rows of one layer, float64 of shape (rows, width), each to be used before the next.

        Read into the same memory each time, which took a third of the time of mapping and making it anew.
        """
        import numpy as np
        import torch

        rows, layers, width = self.shape
        step = max(1, step // layers)  # a row is read with all its layers
        found = np.empty((min(step, rows), layers, width), self.dtype)
        wide = torch.empty(len(found), width, dtype=torch.float64)
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            for start in range(0, rows, step):
                some = found[: rows - start]
                if file.readinto(some) != some.nbytes:  # type: ignore[arg-type]
                    raise VectorError(f"{self.path} ends before its row {start + len(some)}; map it again.")
                yield wide[: len(some)].copy_(torch.from_numpy(some[:, place]))


@dataclass(frozen=True, eq=False, repr=False)
class VectorSet:
    """Vectors with their ids: `values` is float32 of shape (rows, layers, width), in activation units.

    Of a set too large for the memory, `values` are `MappedRows`, which are read piece by piece.

    ids: one per row, unique. layers: one block index per column. fingerprint: of the checkpoint in whose
    coordinates the vectors are. kind: what the rows are. prompt_ids: the prompt of each row, for pooling by
    prompt. weights: how much each row counts in the pooled mean (None: all the same). chat: whether the texts
    were rendered with the chat template. other: fingerprint of the checkpoint that read the bad side, None if
    it is the same one.

    Raises VectorError if a length does not fit the values, an id is there twice, or a value is not finite.

    >>> import torch
    >>> VectorSet(["a", "b"], (3, 7), torch.ones(2, 2, 5), fingerprint="0123")
    VectorSet(2 pair vectors, layers (3, 7), width 5, checkpoint 0123, chat on)
    """

    ids: list[str]
    layers: tuple[int, ...]
    values: torch.Tensor | MappedRows
    fingerprint: str
    kind: Kind = "pair"
    prompt_ids: list[str] | None = None
    weights: list[float] | None = None
    chat: bool = True
    other: str | None = None

    def __post_init__(self) -> None:
        import torch

        mapped = isinstance(self.values, MappedRows)
        if len(self.values.shape) != 3 or not (mapped or self.values.dtype == torch.float32):
            raise VectorError(
                f"Vectors are float32 of shape (rows, layers, width), not {self.values.dtype} of shape "
                f"{tuple(self.values.shape)}. Convert them with values.float()."
            )
        rows, layers, _ = self.values.shape
        per_row: dict[str, Sequence[object] | None] = {
            "ids": self.ids,
            "prompt_ids": self.prompt_ids,
            "weights": self.weights,
        }
        for name, given, expected in [
            ("layers", self.layers, layers),
            *((*one, rows) for one in per_row.items()),
        ]:
            if given is not None and len(given) != expected:
                raise VectorError(f"There are {len(given)} {name}, but values has room for {expected}.")
        for name, given in (("ids", self.ids), ("layers", self.layers)):
            if again := repeated(given):
                raise VectorError(f"These {name} of a VectorSet are there more than once: {listed(again)}.")
        if self.weights is not None and not all(0 < weight < float("inf") for weight in self.weights):
            raise VectorError(
                "Weights of a VectorSet are finite numbers above 0; leave out rows that do not count."
            )
        if not isinstance(self.values, MappedRows):
            check_finite(self.values, self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        through = f", bad side through {self.other}" if self.other else ""
        return (
            f"VectorSet({len(self)} {self.kind} vectors, layers {self.layers}, width {self.values.shape[2]}, "
            f"checkpoint {self.fingerprint}{through}, chat {'on' if self.chat else 'off'})"
        )

    def layer(self, layer: int) -> torch.Tensor:
        """The vectors of one layer, shape (rows, width). Raises VectorError if it was not read."""
        return self.values[:, self._place(layer)]

    def chunks(self, layer: int) -> Iterator[torch.Tensor]:
        """`layer` piece by piece: float64 of shape (some rows, width), each to be used before the next."""
        place, values = self._place(layer), self.values
        step = max(1, CHUNK // values.shape[2])
        if isinstance(values, MappedRows):
            yield from values.chunks(place, step)
        else:
            yield from (values[start : start + step, place].double() for start in range(0, len(self), step))

    def _place(self, layer: int) -> int:
        if layer not in self.layers:
            raise VectorError(f"Layer {layer} was not read; these vectors have the layers {self.layers}.")
        return self.layers.index(layer)

    def select(self, ids: Iterable[str]) -> VectorSet:
        """The rows with these ids, in the order given. Raises VectorError for an unknown id."""
        rows = {one: row for row, one in enumerate(self.ids)}
        wanted = list(ids)
        if unknown := [one for one in wanted if one not in rows]:
            raise VectorError(f"{len(unknown)} ids are not in this VectorSet: {listed(unknown)}.")
        places = [rows[one] for one in wanted]
        return dataclasses.replace(
            self,
            ids=wanted,
            values=self.values[places],
            prompt_ids=None if self.prompt_ids is None else [self.prompt_ids[place] for place in places],
            weights=None if self.weights is None else [self.weights[place] for place in places],
        )


def pool(vectors: VectorSet, *, how: Literal["pooled", "mean"] = "pooled") -> torch.Tensor:
    """One vector per layer, float32 of shape (layers, width).

    "pooled", the paper's: the mean over rows, by weight if they have weights, so that a prompt with many
    contrasts counts more. "mean": the mean over prompts of the mean of each prompt's rows.

    Raises VectorError for another `how`, no rows, or "mean" of vectors without prompt ids.

    >>> import torch
    >>> values = torch.tensor([[[1.0]], [[1.0]], [[4.0]]])
    >>> rows = VectorSet(["a", "b", "c"], (0,), values, "0123", prompt_ids=["p", "p", "q"])
    >>> pool(rows).item(), pool(rows, how="mean").item()
    (2.0, 2.5)
    """
    if how not in ("pooled", "mean"):
        raise VectorError(f'There is no pooling {how!r}; choose "pooled" or "mean".')
    if not len(vectors):
        raise VectorError("There are no vectors to pool.")
    if how == "mean":
        return by_prompt(vectors).values[:].double().mean(dim=0).float()
    return _weighted_mean(vectors, range(len(vectors)))


def by_prompt(vectors: VectorSet) -> VectorSet:
    """The mean vector of each prompt, ids = prompt ids, in order of first appearance: the paper's vector
    bank.

    Raises VectorError if the vectors have no prompt ids.

    >>> import torch
    >>> rows = VectorSet(["a", "b"], (0,), torch.tensor([[[1.0]], [[3.0]]]), "0", prompt_ids=["p", "p"])
    >>> by_prompt(rows).layer(0)
    tensor([[2.]])
    """
    import torch

    if vectors.prompt_ids is None:
        raise VectorError(
            f"These {vectors.kind} vectors have no prompt ids, so they cannot be pooled by prompt."
        )
    rows: dict[str, list[int]] = {}
    for row, prompt in enumerate(vectors.prompt_ids):
        rows.setdefault(prompt, []).append(row)
    means = torch.stack([_weighted_mean(vectors, some) for some in rows.values()])
    return dataclasses.replace(vectors, ids=list(rows), values=means, prompt_ids=list(rows), weights=None)


def agreement(
    first: VectorSet, second: VectorSet, *, how: Literal["pooled", "mean"] = "pooled"
) -> pl.DataFrame:
    """Cosine in [-1, 1] between the pooled vectors of two sets, layer by layer: columns layer, cosine.

    For one behaviour read in two ways (through M0 and cross, chat on and off), or from two halves of the
    prompts. Raises VectorError if the sets have other layers or widths.

    >>> import torch
    >>> rows = VectorSet(["a"], (3,), torch.ones(1, 1, 2), "0123")
    >>> agreement(rows, rows)["cosine"].round(6).to_list()
    [1.0]
    """
    import torch

    if first.layers != second.layers or first.values.shape[2] != second.values.shape[2]:
        raise VectorError(f"Vectors can be compared layer by layer if these agree: {first!r}, {second!r}.")
    cosines = torch.cosine_similarity(pool(first, how=how).double(), pool(second, how=how).double(), dim=1)
    return pl.DataFrame({"layer": list(first.layers), "cosine": cosines.tolist()})


def _weighted_mean(vectors: VectorSet, rows: Sequence[int]) -> torch.Tensor:
    import torch

    weights = torch.tensor(
        [1.0 if vectors.weights is None else vectors.weights[row] for row in rows]
    ).double()
    mean = torch.einsum("r,rld->ld", weights / weights.sum(), vectors.values[list(rows)].double())
    return mean.float()


def check_finite(values: torch.Tensor, names: Sequence[str]) -> None:
    finite = values.isfinite().flatten(1).all(dim=1)
    if not finite.all():
        bad = [name for name, good in zip(names, finite.tolist(), strict=True) if not good]
        raise VectorError(
            f"{len(bad)} of {len(names)} vectors are not finite (NaN or infinite): {listed(bad)}. Read them "
            "in float32, or check the model's weights."
        )


def repeated(items: Iterable[T]) -> list[T]:
    return [item for item, times in Counter(items).items() if times > 1]


def listed(items: Sequence[object]) -> str:
    shown = ", ".join(str(item) for item in items[:_SHOWN])
    return shown if len(items) <= _SHOWN else f"{shown} and {len(items) - _SHOWN} more"
