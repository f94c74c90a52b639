"""The frozen lower blocks of a model under training, computed once for each text: a helper of `training`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@contextmanager
def frozen_trunk(hf: Any, path: str, first_block: int, known: dict[bytes, torch.Tensor]) -> Iterator[None]:
    """While open, the blocks below `first_block` run only for texts whose output is not in `known` yet.

    hf: the model, whose decoder blocks are the module list at `path`. known: output of the last such block
    for each text, by the bytes of its token ids, (tokens, d) in the model's dtype; grows as texts come by.
    Exact where batches are right-padded: a token's output depends on the tokens before it only. Every block
    is called as the model calls it, so masks and positions that differ between blocks (gemma3) stay right.
    """
    import torch

    if first_block == 0:
        yield
        return
    above, _, name = path.rpartition(".")
    blocks = hf.get_submodule(path)
    batch = _Batch(known)
    frozen = [
        _frozen(block, batch, last=i == first_block - 1) for i, block in enumerate(blocks[:first_block])
    ]
    hook = hf.register_forward_pre_hook(batch.note, with_kwargs=True)
    setattr(hf.get_submodule(above), name, torch.nn.ModuleList([*frozen, *blocks[first_block:]]))
    try:
        yield
    finally:
        hook.remove()
        setattr(hf.get_submodule(above), name, blocks)


class _Batch:
    """The texts of the batch that is running, and whether all their outputs are known."""

    def __init__(self, known: dict[bytes, torch.Tensor]) -> None:
        self.known = known
        self.keys: list[tuple[bytes, int]] = []
        self.complete = False

    def note(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        lengths = kwargs["attention_mask"].sum(dim=1).tolist()
        ids = kwargs["input_ids"].cpu().numpy()
        self.keys = [(row[:n].tobytes(), n) for row, n in zip(ids, lengths, strict=True)]
        self.complete = all(key in self.known for key, _ in self.keys)

    def output(self, hidden: torch.Tensor) -> torch.Tensor:
        """The last frozen block's output (batch, seq, d), zero where padded; kept first if it is new."""
        if not self.complete:
            for row, (key, n) in zip(hidden, self.keys, strict=True):
                self.known[key] = row[:n].clone()
        out = hidden.new_zeros(hidden.shape)
        for row, (key, n) in zip(out, self.keys, strict=True):
            row[:n] = self.known[key]
        return out


def _frozen(block: Any, batch: _Batch, *, last: bool) -> Any:
    import torch

    class Frozen(torch.nn.Module):
        """One block below the trained ones: runs for new texts, without gradients, and else does nothing."""

        def __init__(self) -> None:
            super().__init__()
            self.block = [block]  # in a list, so that LoRA, the optimiser and train() do not see it
            if "attention_type" in vars(block):  # some architectures choose a block's mask by it
                self.attention_type = block.attention_type

        def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            if not batch.complete:
                with torch.no_grad():
                    hidden = self.block[0](hidden, *args, **kwargs)
            return batch.output(hidden) if last else hidden

    return Frozen()
