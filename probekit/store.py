"""Vectors on disk: one folder per way of reading, blocks of rows that are either whole or not there.

A store folder holds `manifest.json`, `rows.parquet` and `blocks/*.safetensors`. The manifest says how its
vectors were read (a `StoreKey`), by which library versions, and what is there. A block has one float32 tensor
of shape (rows, width) per layer, named `layer.<i>`, and in its metadata the row ids, the layers, what is
known about each row, and a checksum. A block's file name is the hash of its ids and layers, so the same rows
always land in the same file, whoever writes them and in whatever order; several processes may write at once.
Files appear under their final name only when complete. `rows.parquet` has one row per vector: what the blocks
say about it, and its norm at each layer.

This is the only room that writes vector files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import polars as pl

from probekit import _blocks
from probekit._blocks import Block, StoreError
from probekit._differences import differences
from probekit._vector_set import MappedRows

if TYPE_CHECKING:
    import torch

__all__ = ["FORMAT", "StoreError", "StoreKey", "VectorStore"]

FORMAT = 2
_LIBRARIES = ("probekit-attribution", "torch", "transformers", "nnsight")
_SHOWN = 20  # ids named in an error message
_STALE = 3600  # seconds after which a half-written file is one of a run that was killed

Places = dict[int, dict[str, tuple[Path, int]]]  # layer -> row id -> block, row in it


@dataclass(frozen=True)
class StoreKey:
    """Everything a stored row depends on besides its text and its layer.

    weights, tokenizer, chat_template: the `hashes` of the checkpoint that reads. chat: whether texts are
    rendered with its template; where not, chat_template is "". dtype: the checkpoint's, such as "bfloat16"
    (rows are float32 on disk, whatever it is). other: the fingerprint of the checkpoint that reads the first
    reply of each row, "" when one checkpoint reads both. pooling: how a reply's tokens become one vector.

    >>> StoreKey("abc", tokenizer="def", chat_template="", chat=False, dtype="float32").pooling
    'reply mean'
    """

    weights: str
    tokenizer: str
    chat_template: str
    chat: bool
    dtype: str
    other: str = ""
    pooling: str = "reply mean"


class VectorStore:
    """The vectors in `folder`, which need not exist yet; nothing is written before the first `write`.

    A store opened with another key than the one it was made with raises StoreError naming the fields that
    differ; so does a folder that is not a store, and a block that is damaged.

    >>> import tempfile, torch
    >>> key = StoreKey("abc", tokenizer="def", chat_template="ghi", chat=True, dtype="float32")
    >>> store = VectorStore(tempfile.mkdtemp())
    >>> store.write(key, ["pair"], torch.ones(1, 1, 3), layers=(7,))
    >>> store.read(key, ["pair"], layers=(7,)).shape, store.missing(key, ["pair", "new"], layers=(7,))
    (torch.Size([1, 1, 3]), {(7,): ['new']})
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._places: Places | None = None  # None until first needed

    def __repr__(self) -> str:
        return f"VectorStore({str(self.folder)!r})"

    def missing(
        self, key: StoreKey, ids: Iterable[str], *, layers: Sequence[int]
    ) -> dict[tuple[int, ...], list[str]]:
        """What is still to be computed: for each set of layers, the ids that lack exactly these, in the order
        given.

        Empty when every row is there. An id given twice is listed once. Raises StoreError as the class says.
        """
        self._check(key)
        places = self._index(key)
        gaps: dict[tuple[int, ...], list[str]] = {}
        for one in dict.fromkeys(ids):
            if gap := tuple(layer for layer in layers if one not in places.get(layer, {})):
                gaps.setdefault(gap, []).append(one)
        return gaps

    def read(self, key: StoreKey, ids: Sequence[str], *, layers: Sequence[int]) -> torch.Tensor:
        """The rows of `ids`, in their order: float32, shape (len(ids), len(layers), width).

        Every block touched is verified against its checksum first. Raises StoreError as the class says, and
        when a row is not there.
        """
        import torch

        places = self._places_of(key, ids, layers)
        values = torch.empty(_shape(places))
        for cells in _by_block(places, layers):
            for row, column, vector in cells:
                values[row, column] = vector
        return values

    def mapped(
        self,
        key: StoreKey,
        ids: Sequence[str],
        *,
        layers: Sequence[int],
        dtype: Literal["float32", "float16"] = "float32",
    ) -> MappedRows:
        """As `read`, but as one file in the store, of which only what is asked for is in memory.

        The file is written once, and anew where its checksum no longer fits. float16 takes half the room and
        keeps three digits. Raises StoreError as `read`, when the folder cannot be written, and where a value
        is too large for float16.
        """
        import numpy as np

        places = self._places_of(key, ids, layers)
        paths = {path for found in places for path, _ in found}
        sources = {path.name: _blocks.head(path).tensors for path in sorted(paths)}
        name = _blocks.digest([dataclasses.asdict(key), list(ids), list(layers), dtype, sources])[:16]
        path, shape = self.folder / "mapped" / f"{name}.safetensors", _shape(places)
        header = _tensor_header(shape, dtype)
        checksum = path.with_suffix(".sha256")
        if not (path.is_file() and checksum.is_file() and checksum.read_text() == _file_hash(path)):
            with _blocks.writing(path) as partial:
                with open(partial, "wb") as file:
                    file.write(header)
                    size = len(header) + math.prod(shape) * np.dtype(dtype).itemsize
                    file.truncate(size)
                    if hasattr(os, "posix_fallocate"):  # a full disk would kill who writes through a map
                        os.posix_fallocate(file.fileno(), 0, size)
                for cells in _by_block(places, layers):
                    out = np.memmap(partial, dtype, mode="r+", offset=len(header), shape=shape)
                    for row, column, vector in cells:
                        if float(vector.abs().max()) > float(np.finfo(dtype).max):
                            raise StoreError(
                                f"The vector of {ids[row]} holds numbers too large for {dtype}, which ends "
                                "at 65504. Use float32."
                            )
                        out[row, column] = vector.numpy()
            _blocks.write(checksum, _file_hash(path).encode())
        return MappedRows(path, len(header), shape, dtype)

    def write(
        self,
        key: StoreKey,
        ids: Sequence[str],
        values: torch.Tensor,
        *,
        layers: Sequence[int],
        facts: Mapping[str, Sequence[Any]] | None = None,
    ) -> None:
        """Keep one block of rows: `values` is float32 of shape (len(ids), len(layers), width).

        facts: what `rows.parquet` shall say about them, by column, a JSON value for each row. Rows already
        there in another block are not replaced. Raises StoreError as the class says, for a wrong shape, and
        when the folder cannot be written; nothing half-written is left behind.
        """
        import torch

        self._check(key)
        if values.dtype != torch.float32 or values.dim() != 3 or values.shape[:2] != (len(ids), len(layers)):
            raise StoreError(
                f"{len(ids)} ids and {len(layers)} layers need float32 values of shape "
                f"({len(ids)}, {len(layers)}, width), but the values are {values.dtype} of shape "
                f"{tuple(values.shape)}."
            )
        if not ids:
            return
        places = self._index(key)
        self._write_manifest(key)
        norms = {f"norm.{layer}": values[:, place].norm(dim=1).tolist() for place, layer in enumerate(layers)}
        block, content = _blocks.make(
            dataclasses.asdict(key), ids, values, layers=layers, facts={**(facts or {}), **norms}
        )
        _blocks.write(self._blocks / block.name, content)
        _add(places, self._blocks / block.name, block)

    def holds(self, key: StoreKey, ids: Sequence[str], *, layers: Sequence[int]) -> bool:
        """Whether the block of exactly these rows is there now, whoever wrote it."""
        return (self._blocks / Block(dataclasses.asdict(key), list(ids), list(layers), {}, "").name).is_file()

    def _places_of(
        self, key: StoreKey, ids: Sequence[str], layers: Sequence[int]
    ) -> list[list[tuple[Path, int]]]:
        """For each layer, the block and row of each id; StoreError where one is not there."""
        if gaps := self.missing(key, ids, layers=layers):
            lacking = [one for some in gaps.values() for one in some]
            raise StoreError(
                f"{len(lacking)} of {len(set(ids))} rows are not in the store {self.folder} for layers "
                f"{tuple(layers)}: {', '.join(lacking[:_SHOWN])}. "
                "Compute them first: pair_vectors(..., store=...)."
            )
        places = self._index(key)
        return [[places[layer][one] for one in ids] for layer in layers]

    def finish(self, key: StoreKey) -> pl.DataFrame:
        """Write down what is in the store, in `manifest.json` and `rows.parquet`, and return the latter.

        One row per vector in the order of ids: pair_id, what `write` was told about it, and norm.<layer>, its
        length in activation units. Nothing but the blocks is asked, so several processes may call it, and it
        writes nothing where all is written down already. What killed runs left half-written is removed.
        Raises StoreError as the class says, and when the folder cannot be written.
        """
        self._check(key)
        while True:
            self._places = None  # other processes may have written since
            blocks = self._all_blocks(key)
            table = _rows(list(blocks.values()))
            if table.is_empty():
                return table
            content = io.BytesIO()
            table.write_parquet(content)
            _blocks.write(self.folder / "rows.parquet", content.getvalue())
            layers = {layer for block in blocks.values() for layer in block.layers}
            self._write_manifest(key, layers=sorted(layers), ids=table["pair_id"].to_list())
            if set(blocks) == set(self._blocks.glob("*.safetensors")):
                break  # else a block came meanwhile, and what was written down may be older than another's
        for folder in (self.folder, self._blocks, self.folder / "mapped"):
            for left in folder.glob(".partial-*"):
                with suppress(FileNotFoundError):  # other processes remove their own
                    if left.is_dir() and time.time() - left.stat().st_mtime > _STALE:
                        shutil.rmtree(left, ignore_errors=True)
        return table

    def _write_manifest(
        self, key: StoreKey, *, layers: Sequence[int] | None = None, ids: Sequence[str] = ()
    ) -> None:
        """Before the first block, and with `layers` and `ids` when what is there is written down."""
        before: dict[str, Any] = {"versions": [], "layers": [], "rows": 0, "dataset": ""}
        if self._manifest.is_file():
            before = json.loads(self._manifest.read_text())
        manifest: dict[str, Any] = {"format": FORMAT, "key": dataclasses.asdict(key)}
        manifest |= {name: before[name] for name in ("versions", "layers", "rows", "dataset")}
        ours = {name: version(name) for name in _LIBRARIES}
        if layers is None and ours not in manifest["versions"]:
            manifest["versions"].append(ours)
        elif layers is not None:
            manifest |= {"layers": list(layers), "rows": len(ids), "dataset": _blocks.digest(list(ids))[:16]}
        _blocks.write(self._manifest, (json.dumps(manifest, indent=2) + "\n").encode())

    @property
    def _manifest(self) -> Path:
        return self.folder / "manifest.json"

    @property
    def _blocks(self) -> Path:
        return self.folder / "blocks"

    def _check(self, asked: StoreKey) -> None:
        """Raise StoreError unless this folder is new, or a store made with the key asked for."""
        blocks = any(self._blocks.glob("*.safetensors"))  # first: a manifest is there before any block is
        try:
            manifest = json.loads(self._manifest.read_text())
            if manifest["format"] != FORMAT:
                raise StoreError(
                    f"{self._manifest} has format {manifest['format']!r}; this version of probekit reads "
                    f"format {FORMAT}. Use another folder, or the version that wrote it."
                )
            here = StoreKey(**manifest["key"])
        except FileNotFoundError:
            if blocks:
                raise StoreError(
                    f"{self.folder} holds vectors but no manifest.json, so nothing says which model they are "
                    "from. Restore the file, or delete the folder and compute them again."
                ) from None
            return
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(
                f"{self._manifest} is not the manifest of a vector store ({error}). "
                "Restore the file, or choose another folder."
            ) from error
        except OSError as error:
            raise StoreError(f"{self._manifest} cannot be read: {error}. Choose another folder.") from error
        if differs := differences(dataclasses.asdict(here), dataclasses.asdict(asked)):
            raise StoreError(
                f"The vectors in {self.folder} were read differently from what is asked for: "
                f"{'; '.join(differs)}. Use another folder for these settings."
            )

    def _index(self, key: StoreKey) -> Places:
        if self._places is None:
            places: Places = {}
            for path, block in self._all_blocks(key).items():
                _add(places, path, block)
            self._places = places
        return self._places

    def _all_blocks(self, key: StoreKey) -> dict[Path, Block]:
        blocks = {path: _blocks.head(path) for path in sorted(self._blocks.glob("*.safetensors"))}
        for path, block in blocks.items():
            if differs := differences(block.key, dataclasses.asdict(key)):
                raise StoreError(
                    f"{path} was read differently from the rest of its store: {'; '.join(differs)}. Two runs "
                    "with other settings have begun here at once; delete the files of one of them."
                )
        return blocks


def _add(places: Places, path: Path, block: Block) -> None:
    for layer in block.layers:
        rows = places.setdefault(layer, {})
        for row, one in enumerate(block.ids):
            rows.setdefault(one, (path, row))


def _rows(blocks: Sequence[Block]) -> pl.DataFrame:
    """What `rows.parquet` holds."""
    frames = [
        pl.DataFrame({"pair_id": block.ids, **block.facts}, schema_overrides={"source": pl.String})
        for block in blocks
    ]
    if not frames:
        return pl.DataFrame(schema={"pair_id": pl.String})
    every = pl.concat(frames, how="diagonal")
    columns = [name for name in every.columns if not name.startswith("norm.")]
    norms = sorted(set(every.columns) - set(columns), key=lambda name: int(name.removeprefix("norm.")))
    merged = every.group_by("pair_id").agg(pl.all().drop_nulls().first())
    return merged.sort("pair_id").select(*columns, *norms)


def _shape(places: list[list[tuple[Path, int]]]) -> tuple[int, int, int]:
    width = next(iter(_blocks.load(places[0][0][0]).values())).shape[1]
    return len(places[0]), len(places), width


def _by_block(
    places: list[list[tuple[Path, int]]], layers: Sequence[int]
) -> Iterator[list[tuple[int, int, torch.Tensor]]]:
    """Row, column and vector of all that is asked for, block by block: each is read once."""
    cells: dict[Path, list[tuple[int, int, int]]] = {}
    for column, found in enumerate(places):
        for row, (path, at) in enumerate(found):
            cells.setdefault(path, []).append((row, column, at))
    for path, some in cells.items():
        tensors = _blocks.load(path)
        yield [(row, column, tensors[layers[column]][at]) for row, column, at in some]


def _tensor_header(shape: tuple[int, int, int], dtype: str) -> bytes:
    """What a safetensors file with one tensor of this shape, named values, begins with."""
    size = math.prod(shape) * {"float32": 4, "float16": 2}[dtype]
    name = {"float32": "F32", "float16": "F16"}[dtype]
    header = json.dumps({"values": {"dtype": name, "shape": shape, "data_offsets": [0, size]}}).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header


def _file_hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
