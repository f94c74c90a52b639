"""A block of a vector store: one safetensors file of rows, checked to the last byte when it is read."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probekit.sources import SourceError, replacing

if TYPE_CHECKING:
    import torch


class StoreError(RuntimeError):
    """A store folder that cannot be read, written, or used for what was asked."""


@dataclass(frozen=True)
class Block:
    """What a block says of itself.

    key: how its rows were read. ids: of the rows, in their order. layers: one tensor each. facts: a value for
    each row, by name of a column of rows.parquet. tensors: checksum over names, dtypes, shapes and bytes.
    """

    key: dict[str, Any]
    ids: list[str]
    layers: list[int]
    facts: dict[str, list[Any]]
    tensors: str

    @property
    def name(self) -> str:
        """Its file: the same rows read in the same way are always the same file."""
        return f"{digest([self.key, self.ids, self.layers])[:16]}.safetensors"


def digest(value: object) -> str:
    """Of anything that is JSON."""
    return hashlib.sha256(json.dumps(value, separators=(",", ":")).encode()).hexdigest()


def make(
    key: dict[str, Any],
    ids: Sequence[str],
    values: torch.Tensor,
    *,
    layers: Sequence[int],
    facts: Mapping[str, Sequence[Any]],
) -> tuple[Block, bytes]:
    """A block and its file's content; `values` is float32 of shape (rows, layers, width)."""
    from safetensors.torch import save

    tensors = {_tensor(layer): values[:, place].contiguous() for place, layer in enumerate(layers)}
    told = {name: list(column) for name, column in facts.items()}
    block = Block(key, list(ids), list(layers), told, _checksum(tensors))
    head = dataclasses.asdict(block)
    # One string: safetensors does not keep the order of its metadata, and equal rows must give equal bytes.
    content = json.dumps({"head": head, "sha256": digest(head)})
    return block, save(tensors, metadata={"probekit": content})


def head(path: Path) -> Block:
    """What the block at `path` says of itself, checked. Raises StoreError if it is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            said = json.loads(file.metadata()["probekit"])
        if digest(said["head"]) != said["sha256"]:
            raise ValueError("the checksum of its header does not fit")
        block = Block(**said["head"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error}.") from error
    if path.name != block.name:
        raise _damaged(path, "its name does not fit the rows it holds")
    return block


def load(path: Path) -> dict[int, torch.Tensor]:
    """The rows of the block at `path`, (rows, width), by layer. Raises StoreError if a byte is wrong."""
    from safetensors import SafetensorError
    from safetensors.torch import load as decode

    block = head(path)
    try:
        tensors = decode(path.read_bytes())
    except SafetensorError as error:
        raise _damaged(path, str(error)) from error
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error}.") from error
    if _checksum(tensors) != block.tensors:
        raise _damaged(path, "its checksum does not fit")
    return {layer: tensors[_tensor(layer)] for layer in block.layers}


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """The whole file or nothing; see `sources.replacing`. Raises StoreError if it cannot be written."""
    try:
        with replacing(
            path, remedy="Make room, or choose another folder; what was stored before is kept."
        ) as partial:
            yield partial
    except SourceError as error:
        raise StoreError(str(error)) from error


def write(path: Path, content: bytes) -> None:
    """Have this content in the file; what is there already is not written again."""
    if path.is_file() and path.read_bytes() == content:
        return
    with writing(path) as partial:
        partial.write_bytes(content)


def _tensor(layer: int) -> str:
    return f"layer.{layer}"


def _checksum(tensors: dict[str, torch.Tensor]) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()


def _damaged(path: Path, why: str) -> StoreError:
    return StoreError(f"{path} is damaged ({why}). Delete this file; only its rows are computed again.")
