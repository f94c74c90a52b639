"""Vectors on disk: one folder per way of reading, blocks of rows that are either whole or not there.

A store folder holds `manifest.json`, which says how its vectors were read (a `StoreKey`), and
`blocks/*.safetensors`. A block has one float32 tensor of shape (rows, width) per layer, named `layer.<i>`,
and in its metadata the row ids, the layers and a checksum. A block's file name is the hash of its ids and
layers, so the same rows always land in the same file, whoever writes them and in whatever order. Files appear
under their final name only when complete.

This is the only room that writes vector files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from probekit._differences import differences
from probekit.sources import SourceError, replacing

if TYPE_CHECKING:
    import torch

FORMAT = 1
_SHOWN = 20  # ids named in an error message


class StoreError(RuntimeError):
    """A store folder that cannot be read, written, or used for what was asked."""


@dataclass(frozen=True)
class StoreKey:
    """Everything a stored row depends on besides its text and its layer.

    fingerprint: of the checkpoint that reads. chat: whether texts are rendered with its chat template. dtype:
    the checkpoint's, such as "float32" (rows are always stored in float32). other: the fingerprint of the
    checkpoint that reads the first reply of each row, "" when one checkpoint reads both. pooling: how a
    reply's tokens become one vector.

    >>> StoreKey("abc", chat=True, dtype="float32").pooling
    'reply mean'
    """

    fingerprint: str
    chat: bool
    dtype: str
    other: str = ""
    pooling: str = "reply mean"


@dataclass(frozen=True)
class _Block:
    path: Path
    ids: list[str]
    layers: tuple[int, ...]


class VectorStore:
    """The vectors in `folder`, which need not exist yet; nothing is written before the first `write`.

    A store opened with another key than the one it was made with raises StoreError naming the fields that
    differ; so does a folder that is not a store, and a block that is damaged.

    >>> import tempfile, torch
    >>> store, key = VectorStore(tempfile.mkdtemp()), StoreKey("abc", chat=True, dtype="float32")
    >>> store.write(key, ["pair"], torch.ones(1, 1, 3), layers=(7,))
    >>> store.read(key, ["pair"], layers=(7,)).shape, store.missing(key, ["pair", "new"], layers=(7,))
    (torch.Size([1, 1, 3]), {(7,): ['new']})
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        # layer -> row id -> (block, row in it); None until first needed
        self._places: dict[int, dict[str, tuple[_Block, int]]] | None = None

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
        places = self._index()
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

        self._check(key)
        if gaps := self.missing(key, ids, layers=layers):
            lacking = [one for some in gaps.values() for one in some]
            raise StoreError(
                f"{len(lacking)} of {len(set(ids))} rows are not in the store {self.folder} for layers "
                f"{tuple(layers)}: {', '.join(lacking[:_SHOWN])}. "
                "Compute them first: pair_vectors(..., store=...)."
            )
        places, opened = self._index(), dict[Path, dict[str, torch.Tensor]]()
        columns = []
        for layer in layers:
            rows = []
            for one in ids:
                block, row = places[layer][one]
                if block.path not in opened:
                    opened[block.path] = _load(block)
                rows.append(opened[block.path][_tensor_name(layer)][row])
            columns.append(torch.stack(rows))
        return torch.stack(columns, dim=1)

    def write(
        self, key: StoreKey, ids: Sequence[str], values: torch.Tensor, *, layers: Sequence[int]
    ) -> None:
        """Keep one block of rows: `values` is float32 of shape (len(ids), len(layers), width).

        Rows already there are not replaced. Raises StoreError as the class says, for a wrong shape, and when
        the folder cannot be written; nothing half-written is left behind.
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
        places = self._index()
        manifest = {"format": FORMAT, "key": dataclasses.asdict(key)}
        if not self._manifest.exists():
            _write(self._manifest, (json.dumps(manifest, indent=2) + "\n").encode())
        tensors = {_tensor_name(layer): values[:, place].contiguous() for place, layer in enumerate(layers)}
        block = _Block(self._blocks / _block_name(ids, layers), list(ids), tuple(layers))
        _write(block.path, _encode(block, tensors))
        _add(places, block)

    @property
    def _manifest(self) -> Path:
        return self.folder / "manifest.json"

    @property
    def _blocks(self) -> Path:
        return self.folder / "blocks"

    def _check(self, asked: StoreKey) -> None:
        """Raise StoreError unless this folder is new, or a store made with the key asked for."""
        try:
            manifest = json.loads(self._manifest.read_text())
            if manifest["format"] != FORMAT:
                raise StoreError(
                    f"{self._manifest} has format {manifest['format']!r}; this version of probekit reads "
                    f"format {FORMAT}. Use another folder, or the version that wrote it."
                )
            here = StoreKey(**manifest["key"])
        except FileNotFoundError:
            if any(self._blocks.glob("*.safetensors")):
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

    def _index(self) -> dict[int, dict[str, tuple[_Block, int]]]:
        if self._places is None:
            places: dict[int, dict[str, tuple[_Block, int]]] = {}
            for path in sorted(self._blocks.glob("*.safetensors")):
                _add(places, _header(path))
            self._places = places
        return self._places


def _add(places: dict[int, dict[str, tuple[_Block, int]]], block: _Block) -> None:
    for layer in block.layers:
        rows = places.setdefault(layer, {})
        for row, one in enumerate(block.ids):
            rows.setdefault(one, (block, row))


def _tensor_name(layer: int) -> str:
    return f"layer.{layer}"


def _block_name(ids: Sequence[str], layers: Sequence[int]) -> str:
    canonical = json.dumps([list(ids), list(layers)])
    return f"{hashlib.sha256(canonical.encode()).hexdigest()[:16]}.safetensors"


def _checksum(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()


def _encode(block: _Block, tensors: dict[str, torch.Tensor]) -> bytes:
    from safetensors.torch import save

    metadata = {
        # one JSON string: safetensors does not keep the order of its metadata, and equal rows must give equal
        # bytes
        "probekit": json.dumps({"ids": block.ids, "layers": block.layers, "sha256": _checksum(tensors)})
    }
    return save(tensors, metadata=metadata)


def _damaged(path: Path, why: str) -> StoreError:
    return StoreError(f"{path} is damaged ({why}). Delete this file; only its rows are computed again.")


def _open_header(path: Path) -> dict[str, object]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return dict(json.loads(file.metadata()["probekit"]))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error}.") from error


def _header(path: Path) -> _Block:
    header = _open_header(path)
    ids, layers = header["ids"], header["layers"]
    if not isinstance(ids, list) or not isinstance(layers, list) or path.name != _block_name(ids, layers):
        raise _damaged(path, "its name does not fit the rows it holds")
    return _Block(path, ids, tuple(layers))


def _load(block: _Block) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    expected = _open_header(block.path)["sha256"]
    try:
        tensors = load(block.path.read_bytes())
    except SafetensorError as error:
        raise _damaged(block.path, str(error)) from error
    if _checksum(tensors) != expected:
        raise _damaged(block.path, "its checksum does not fit")
    return tensors


def _write(path: Path, content: bytes) -> None:
    """Write the whole file or nothing; see `sources.replacing`."""
    try:
        with replacing(
            path, remedy="Make room, or choose another folder; what was stored before is kept."
        ) as partial:
            partial.write_bytes(content)
    except SourceError as error:
        raise StoreError(str(error)) from error
