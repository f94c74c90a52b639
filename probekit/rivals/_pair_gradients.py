"""The gradient of each pair's DPO loss with respect to LoRA, many pairs in one backward: for `gradient`.

LoRA adds scale * B A x to what a map puts out. With inputs x and output gradients g of a pair's tokens, its
loss has the gradients scale * sum_t g_t (A x_t)^T for B and scale * sum_t (B^T g_t) x_t^T for A. Hooks on the
adapted maps add the adapter, keep x and take g as the backward comes by: no parameter needs a gradient of its
own, and nothing below the first adapted map is in the graph. (nnsight reads one run's values; here each batch
needs a sum over tokens while its backward goes on, for which torch's hooks are the shorter way.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from probekit._attention import plain_attention
from probekit._frozen import frozen_trunk
from probekit._quiet import bar
from probekit._texts import Text
from probekit.rivals import RivalError
from probekit.rivals._adapters import Adapters
from probekit.training import MICRO, Recipe, Shared

if TYPE_CHECKING:
    import torch

    from probekit.checkpoints import Checkpoint

Loss = Literal["recipe", "dpo", "dpo-norm"]
PAPER_BETA = 5.0  # of the length-normalised DPO loss (reference 6.1)


class Example(NamedTuple):
    """A pair as the training sees it, in tokens: each reply ends with the end of its turn."""

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]

    @property
    def longest(self) -> int:
        """Tokens of the prompt with the longer reply."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


@dataclass
class Meter:
    """Tokens run through the model, padding included: forward, and of these backward too."""

    forward: int = 0
    backward: int = 0


def example(checkpoint: Checkpoint, text: Text) -> Example:
    """The tokens that TRL makes of a pair; `RivalError` if they do not fit the context.

    The replies begin where the tokens of the prompt alone and with a reply part, and end as the chat template
    ends a turn.
    """

    def tokens(reply: str | None) -> list[int]:
        last = [] if reply is None else [{"role": "assistant", "content": reply}]
        talk = [*text.prompt, *last]
        ids = checkpoint.tokenizer.apply_chat_template(
            talk, tokenize=True, return_dict=False, add_generation_prompt=reply is None
        )
        return [int(one) for one in ids]

    checkpoint.prompt_text(text.prompt)  # raises where there is no chat template
    prompt, chosen, rejected = tokens(None), tokens(text.replies[0]), tokens(text.replies[1])
    columns = enumerate(zip(prompt, chosen, rejected, strict=False))
    start = next((i for i, column in columns if len(set(column)) > 1), len(prompt))
    found = Example(tuple(chosen[:start]), tuple(chosen[start:]), tuple(rejected[start:]))
    if found.longest > checkpoint.max_length:
        raise RivalError(
            f"{text.name} has {found.longest} tokens, more than the context of {checkpoint.max_length}; "
            "leave it out, nothing is truncated"
        )
    return found


def pair_gradients(
    shared: Shared,
    adapters: Adapters,
    examples: Sequence[Example],
    *,
    recipe: Recipe,
    loss: Loss,
    label: str,
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Places in `examples` and their pairs' gradients (places, parameters), float32, batch after batch.

    The reference is M0, that is no adapter: its log-probs are those in `shared`, and the missing ones are
    computed and added. An untrained adapter is its own reference.
    """
    hf = shared.checkpoint.hf
    order = sorted(range(len(examples)), key=lambda i: -examples[i].longest)
    batches = [order[at : at + MICRO] for at in range(0, len(order), MICRO)]
    with ExitStack() as stack:
        stack.enter_context(plain_attention(hf))
        if adapters.second_moment is not None:  # else the lower blocks run once only, and need no keeping
            trunk = frozen_trunk(hf, shared.checkpoint.blocks_path, recipe.first_block, shared.trunk)
            stack.enter_context(trunk)
        for places in bar(batches, label):
            batch = [examples[i] for i in places]
            reference = None if adapters.second_moment is None else _references(shared, batch)
            yield places, _gradients(hf, adapters, batch, reference, recipe, loss)


def _gradients(
    hf: Any,
    adapters: Adapters,
    batch: Sequence[Example],
    reference: torch.Tensor | None,
    recipe: Recipe,
    loss: Loss,
) -> torch.Tensor:
    """Gradients (pairs, parameters) of a batch. reference: log-probs (pairs, 2), None for the policy's."""
    import torch

    with torch.enable_grad(), _adapted(hf, adapters, len(batch)) as gradients:
        policy = log_probs(hf, batch)
        tokens = policy.new_tensor([[len(one.chosen), len(one.rejected)] for one in batch])
        against = policy.detach() if reference is None else reference
        pair_losses(policy, against, tokens, recipe=recipe, loss=loss).sum().backward()
    return gradients


def pair_losses(
    policy: torch.Tensor, reference: torch.Tensor, tokens: torch.Tensor, *, recipe: Recipe, loss: Loss
) -> torch.Tensor:
    """The loss of each pair, from its replies' summed log-probs and tokens, all (pairs, 2), chosen first.

    "dpo": -log sigmoid(beta * (log-ratio of chosen - of rejected)), beta the recipe's. "recipe": that and the
    recipe's SFT loss, the mean over chosen tokens. "dpo-norm": log-ratios divided by the replies' tokens,
    and beta 5 (the paper's baseline, reference 6.1).
    """
    from torch.nn.functional import logsigmoid

    ratio, beta = policy - reference, recipe.beta
    if loss == "dpo-norm":
        ratio, beta = ratio / tokens, PAPER_BETA
    losses = -logsigmoid(beta * (ratio[:, 0] - ratio[:, 1]))
    if loss == "recipe":
        losses = losses - recipe.sft_weight * policy[:, 0] / tokens[:, 0]
    return losses


def log_probs(hf: Any, batch: Sequence[Example]) -> torch.Tensor:
    """Log-probability (nats) of each reply, (pairs, 2): chosen and rejected, all in one forward pass."""
    import torch

    rows = [(one.prompt, reply) for one in batch for reply in (one.chosen, one.rejected)]
    width = max(len(prompt) + len(reply) for prompt, reply in rows)
    first = min(len(prompt) for prompt, _ in rows)  # logits are needed from the token before on
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    read, asked = torch.zeros_like(ids), torch.zeros(len(rows), width, dtype=torch.bool)
    for row, (prompt, reply) in enumerate(rows):
        ids[row, : len(prompt) + len(reply)] = torch.tensor(prompt + reply)
        read[row, : len(prompt) + len(reply)] = 1
        asked[row, len(prompt) : len(prompt) + len(reply)] = True
    ids, read, asked = ids.to(hf.device), read.to(hf.device), asked.to(hf.device)
    kept = width - first + 1
    logits = hf(input_ids=ids, attention_mask=read, use_cache=False, logits_to_keep=kept).logits[:, :-1]
    of_tokens = logits.float().log_softmax(dim=-1).gather(-1, ids[:, first:, None])[..., 0]
    return torch.where(asked[:, first:], of_tokens, 0.0).sum(dim=1).view(-1, 2)


@contextmanager
def _adapted(hf: Any, adapters: Adapters, pairs: int) -> Iterator[torch.Tensor]:
    """While open, `hf` has the adapters; a backward fills the (pairs, parameters) tensor that this gives.

    Rows of a batch are chosen and rejected in turn, so that a pair's tokens lie together.
    """
    import torch

    found = torch.zeros(pairs, adapters.size, device=hf.device)
    at, handles = 0, []
    for name, (a, b) in adapters.factors.items():
        of_a, of_b = found[:, at : at + a.numel()], found[:, at + a.numel() : at + a.numel() + b.numel()]
        handles.append(hf.get_submodule(name).register_forward_hook(_lora(a, b, adapters.scale, of_a, of_b)))
        at += a.numel() + b.numel()
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _lora(a: torch.Tensor, b: torch.Tensor, scale: float, of_a: torch.Tensor, of_b: torch.Tensor) -> Any:
    """A forward hook that adds one map's adapter, and has a backward add its gradients to `of_a`, `of_b`."""
    pairs = len(of_a)

    def forward(module: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        x = args[0]
        inner = x.float() @ a.T
        out = output + (scale * inner @ b.T).to(output.dtype)
        if not out.requires_grad:  # the first adapted maps: the graph begins here
            out.requires_grad_()
        inputs, inners = (one.detach().float().reshape(pairs, -1, one.shape[-1]) for one in (x, inner))

        def backward(gradient: torch.Tensor) -> None:
            g = scale * gradient.float().reshape(pairs, -1, gradient.shape[-1])
            of_b.add_((g.transpose(1, 2) @ inners).flatten(1))
            of_a.add_(((g @ b).transpose(1, 2) @ inputs).flatten(1))

        out.register_hook(backward)
        return out

    return forward


def _references(shared: Shared, batch: Sequence[Example]) -> torch.Tensor:
    """M0's log-probs (pairs, 2) of a batch; looked up in `shared`, where missing ones are put."""
    import torch

    keys = [[(one.prompt, one.chosen), (one.prompt, one.rejected)] for one in batch]
    new = [one for one, both in zip(batch, keys, strict=True) if not all(k in shared.logps for k in both)]
    if new:
        with torch.no_grad():
            for one, values in zip(new, log_probs(shared.checkpoint.hf, new).tolist(), strict=True):
                shared.logps[one.prompt, one.chosen], shared.logps[one.prompt, one.rejected] = values
    found = [[shared.logps[key] for key in both] for both in keys]
    return torch.tensor(found, device=shared.checkpoint.hf.device)


@contextmanager
def metered(hf: Any) -> Iterator[Meter]:
    """While open, counts every token that `hf` runs, the training's too."""
    import torch

    meter = Meter()

    def count(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        tokens = kwargs["input_ids"].numel()
        meter.forward += tokens
        meter.backward += tokens if torch.is_grad_enabled() else 0

    handle = hf.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield meter
    finally:
        handle.remove()
