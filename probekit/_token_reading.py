"""The residual stream at each token of a reply, for what means cannot tell; `vectors` has it as its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from probekit._reading import block_out, check_layers, memory_budget
from probekit.packing import PADDING, Batch, batches, rows

if TYPE_CHECKING:
    import torch
    from nnsight.intervention.envoy import Envoy

    from probekit.checkpoints import Checkpoint, Rendered


def reply_states(
    checkpoint: Checkpoint,
    texts: Sequence[Rendered],
    *,
    layers: Sequence[int],
    token_budget: int | None = None,
) -> Iterator[tuple[int, torch.Tensor]]:
    """The place of each text, and its residual stream at the reply's tokens: float32 (tokens, layers, width).

    Batch by batch, the longest texts first, so that one batch at a time is in memory; every reply with a
    prompt of its own. `response_means` are the means of these over the tokens.

    Raises VectorError for a layer that does not exist, PackingError for a text without reply tokens.

    >>> from probekit.testing import tiny_checkpoint
    >>> text = tiny_checkpoint().render([{"role": "user", "content": "Hi?"}], "Hello.")
    >>> [(place, states.shape[1:]) for place, states in reply_states(tiny_checkpoint(), [text], layers=[2])]
    [(0, torch.Size([1, 32]))]
    """
    check_layers(checkpoint, layers)
    budget = memory_budget(checkpoint, most=token_budget)
    for batch in batches(rows(texts, share=False), token_budget=budget):
        found = _trace(checkpoint, batch, layers)
        for row, states in zip(batch.rows, found, strict=True):
            yield row.texts[0], states[len(row.prompt) : row.width]


def _trace(checkpoint: Checkpoint, batch: Batch, layers: Sequence[int]) -> torch.Tensor:
    """(rows, tokens, layers, width), in a forward pass up to the last layer read."""
    import nnsight
    import torch

    mask = (batch.segments != PADDING).long()
    inputs = {"input_ids": batch.ids, "attention_mask": mask, "position_ids": batch.positions}
    blocks = checkpoint.blocks  # what the trace names is sent along where it runs remotely
    if checkpoint.remote:
        nnsight.register("probekit")
    with torch.no_grad(), checkpoint.model.trace(inputs, use_cache=False, remote=checkpoint.remote) as tracer:
        values: torch.Tensor = nnsight.save(_states(blocks, layers))
        tracer.stop()
    return values


def _states(blocks: Sequence[Envoy], layers: Sequence[int]) -> torch.Tensor:
    """Runs inside a trace, so it reads in the order of the blocks."""
    import torch

    read = {layer: block_out(blocks[layer]).float().cpu() for layer in sorted(layers)}
    return torch.stack([read[layer] for layer in layers], dim=2)
