"""What `rept` reads: states after a block, and the gradient of a reply's log-probability at each of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from probekit._reading import block_out, check_layers, memory_budget, put_block_out
from probekit.packing import PADDING, Batch, batches, rows
from probekit.rivals import RivalError

if TYPE_CHECKING:
    import torch

    from probekit.checkpoints import Checkpoint, Rendered


class Traced(NamedTuple):
    """A text as it was read at the positions that its reply's tokens are predicted from.

    place: among the texts. states, gradients: float32 (tokens of the reply, width), row k at the position
    before the k-th token; row 0 is the prompt's last token. Gradients are of `log_p`, the sum of the reply's
    log-probabilities, with respect to the states. tokens: its share of the pass, padding included.
    """

    place: int
    states: torch.Tensor
    gradients: torch.Tensor
    log_p: float
    tokens: int


def traced(
    checkpoint: Checkpoint, texts: Sequence[Rendered], *, layer: int, token_budget: int
) -> Iterator[Traced]:
    """One forward and one backward pass for a batch of texts; the longest first.

    A row does not look at another, so the gradient of the sum of all rows' log-probabilities is each row's
    own. Nothing before block `layer` is part of the graph. Raises RivalError for a checkpoint that is read
    remotely and for a text without a prompt, VectorError for a layer that does not exist.
    """
    check_layers(checkpoint, [layer])
    check_texts(checkpoint, texts)
    budget = memory_budget(checkpoint, most=token_budget)
    for batch in batches(rows(texts, share=False), token_budget=budget):
        states, gradients, sums = _pass(checkpoint, batch, layer)
        for row, text in enumerate(batch.rows):
            at = slice(len(text.prompt) - 1, text.width - 1)
            yield Traced(
                text.texts[0], states[row, at], gradients[row, at], float(sums[row]), batch.ids.shape[1]
            )


def check_texts(checkpoint: Checkpoint, texts: Sequence[Rendered]) -> None:
    if checkpoint.remote not in (False, "local"):
        raise RivalError(
            f"{checkpoint.name} is read remotely; gradients need its weights: leave remote= out."
        )
    if bare := [place for place, text in enumerate(texts) if not text.start]:
        raise RivalError(
            f"{len(bare)} texts have a reply but no token of a prompt, first text {bare[0]}; RepT reads at "
            "the prompt's last token. Leave them out, or render with the chat template."
        )


def log_p(checkpoint: Checkpoint, texts: Sequence[Rendered], *, token_budget: int) -> tuple[list[float], int]:
    """The sum of each reply's log-probabilities, forward only, and the tokens of the passes."""
    import torch

    sums, tokens = [0.0] * len(texts), 0
    budget = memory_budget(checkpoint, most=token_budget)
    for batch in batches(rows(texts, share=False), token_budget=budget):
        with torch.no_grad():
            found = _log_p(checkpoint.hf(**_inputs(batch, checkpoint), use_cache=False).logits, batch)
        tokens += batch.ids.numel()
        for place, value in zip(batch.texts, found.tolist(), strict=True):
            sums[place] = value
    return sums, tokens


def _pass(
    checkpoint: Checkpoint, batch: Batch, layer: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """States and gradients, (rows, tokens, width), and the log-probability of each row's reply."""
    import nnsight
    import torch

    model, block = checkpoint.model, checkpoint.blocks[layer]
    with torch.enable_grad(), model.trace(_inputs(batch, checkpoint), use_cache=False):
        hidden = block_out(block).detach().requires_grad_()
        put_block_out(block, hidden)
        sums = _log_p(model.output.logits, batch)
        total = sums.sum()
        with total.backward(inputs=[hidden]):  # so that weights which require gradients are given none
            gradients: torch.Tensor = nnsight.save(hidden.grad)
        states, found = nnsight.save(hidden.detach()), nnsight.save(sums.detach())
    return states.float().cpu(), gradients.float().cpu(), found.cpu()


def _inputs(batch: Batch, checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    mask = (batch.segments != PADDING).long()
    inputs = {"input_ids": batch.ids, "attention_mask": mask, "position_ids": batch.positions}
    return {name: one.to(checkpoint.hf.device) for name, one in inputs.items()}


def _log_p(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The sum of the log-probabilities of each row's reply, float32 (rows,)."""
    reply = (batch.segments[:, 1:] > 0).to(logits.device)
    targets = batch.ids[:, 1:].to(logits.device)[reply]
    picked = logits[:, :-1][reply].float().log_softmax(dim=-1).gather(1, targets[:, None])[:, 0]
    return picked.new_zeros(len(batch.rows)).index_add(0, reply.nonzero()[:, 0], picked)
