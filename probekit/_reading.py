"""How `vectors` reads activations: batches of texts through nnsight, the mean over reply tokens of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from probekit._vector_set import VectorError, repeated
from probekit.packing import Batch, batches, distinct

if TYPE_CHECKING:
    import torch
    from nnsight.intervention.envoy import Envoy
    from tqdm import tqdm

    from probekit.checkpoints import Checkpoint, Rendered


def means(
    checkpoint: Checkpoint,
    texts: Sequence[Rendered],
    *,
    layers: Sequence[int],
    token_budget: int,
    bar: tqdm[None],
) -> torch.Tensor:
    """`response_means` without its checks; the bar moves by one for each text."""
    import torch

    different, places = distinct(texts)
    times = Counter(places)
    rows = torch.empty(len(different), len(layers), checkpoint.width)
    for batch in batches(different, token_budget=token_budget):
        rows[batch.rows] = _trace(checkpoint, batch, layers=layers)
        bar.update(sum(times[row] for row in batch.rows))
    return rows[places]


def _trace(checkpoint: Checkpoint, batch: Batch, *, layers: Sequence[int]) -> torch.Tensor:
    """The reply means of one batch, (rows, layers, width), in a forward pass up to the last layer read."""
    import nnsight
    import torch

    inputs = {"input_ids": batch.ids, "attention_mask": batch.mask, "position_ids": batch.positions}
    with torch.no_grad(), checkpoint.model.trace(inputs, use_cache=False) as tracer:
        rows = nnsight.save(_reply_means(checkpoint, batch.shares, layers))
        tracer.stop()
    return rows


def _reply_means(checkpoint: Checkpoint, shares: torch.Tensor, layers: Sequence[int]) -> torch.Tensor:
    """Runs inside a trace, where reading waits for the model to get there: so in the order of the blocks."""
    import torch

    blocks, read = checkpoint.blocks, {}
    for layer in sorted(layers):
        hidden = block_out(blocks[layer])
        read[layer] = torch.einsum("rt,rtd->rd", shares.to(hidden.device), hidden.float()).cpu()
    return torch.stack([read[layer] for layer in layers], dim=1)


def block_out(block: Envoy) -> torch.Tensor:
    """The residual stream after a decoder block, (batch, sequence, width); to be called inside a trace.

    Since transformers 5 a block gives this tensor itself, where it used to give a tuple with the tensor in
    front. `output[0]` would then silently be batch row 0, so the two are told apart here, and only here.
    """
    output = block.output
    return output[0] if isinstance(output, tuple) else output


def progress(total: int) -> tqdm[None]:
    from tqdm.auto import tqdm

    return tqdm(total=total, desc="reading", unit="reply", disable=None if total else True)


def check_layers(checkpoint: Checkpoint, layers: Sequence[int]) -> None:
    wrong = [layer for layer in layers if not 0 <= layer < checkpoint.n_blocks]
    if wrong or not layers or repeated(layers):
        raise VectorError(
            f"layers = {list(layers)} cannot be read from {checkpoint.name}; give different block indices "
            f"from 0 to {checkpoint.n_blocks - 1}, where i is the output of block i (the paper's "
            "layer 20 is 19)."
        )
