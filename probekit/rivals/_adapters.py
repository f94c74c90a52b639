"""LoRA adapters at moments of a DPO warm-up, with Adam's second moment there: a helper of `gradient`.

One training gives all moments. A hook that torch calls after every optimiser step copies the factors and
Adam's own state at the end of each epoch, so that nothing is trained twice and nothing is estimated.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probekit import arms
from probekit._quiet import no_bars
from probekit.pairs import PairSet
from probekit.training import Recipe, Shared, adapted_maps, train_dpo

if TYPE_CHECKING:
    import torch

    from probekit.checkpoints import Checkpoint


@dataclass(frozen=True, eq=False, repr=False)
class Adapters:
    """LoRA at one moment: map -> factors A (rank, in) and B (out, rank), float32, on the model's device.

    Its parameters in one row are A and B of each map in order, flattened. scale: alpha / rank. rate: the mean
    learning rate of the epoch that ended here. second_moment: Adam's, with its bias corrected, one number a
    parameter; None before any step, when B is zero and the adapter changes nothing.
    """

    factors: dict[str, tuple[torch.Tensor, torch.Tensor]]
    scale: float
    rate: float
    second_moment: torch.Tensor | None = None

    @property
    def size(self) -> int:
        """How many parameters there are."""
        return sum(a.numel() + b.numel() for a, b in self.factors.values())


def untrained(checkpoint: Checkpoint, recipe: Recipe, *, seed: int) -> Adapters:
    """Adapters as LoRA begins them: A uniform within 1 / sqrt(in), seeded, and B zero."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    device, factors = checkpoint.hf.device, {}
    for name in adapted_maps(recipe, checkpoint):
        shape = checkpoint.hf.get_submodule(name).weight.shape
        linear = isinstance(checkpoint.hf.get_submodule(name), torch.nn.Linear)
        n_out, n_in = shape if linear else reversed(shape)  # gpt2's Conv1D has its weight the other way round
        a = (2 * torch.rand(recipe.rank, n_in, generator=generator) - 1) / n_in**0.5
        factors[name] = (a.to(device), torch.zeros(n_out, recipe.rank, device=device))
    return Adapters(factors, recipe.alpha / recipe.rank, recipe.learning_rate)


def warmed_up(
    shared: Shared, pairs: PairSet, recipe: Recipe, *, epochs: int, share: float, seed: int
) -> list[Adapters]:
    """Adapters at the end of each epoch of a DPO training on a share of the pairs, drawn by `seed`.

    The training is `train_dpo`'s, its learning rate falling over all epochs; it leaves nothing on disk.
    """
    drawn = sorted(pairs.ids, key=lambda one: hashlib.sha256(f"{seed} warm-up {one}".encode()).digest())
    used = pairs.select(drawn[: max(1, round(share * len(pairs)))])
    steps = max(epochs, round(len(used) * epochs / recipe.batch_size))
    order = arms.order(used, arms.baseline(), seed=seed, steps=steps, batch_size=recipe.batch_size)
    ends = [round(steps * epoch / epochs) for epoch in range(epochs + 1)]
    found: list[Adapters] = []
    rates: list[float] = []

    def stepped(optimizer: torch.optim.Optimizer) -> None:
        rates.append(float(optimizer.param_groups[0]["lr"]))
        if len(rates) == ends[len(found) + 1]:
            since = rates[ends[len(found)] :]
            found.append(_copied(shared.checkpoint.hf, optimizer, recipe, sum(since) / len(since)))

    with tempfile.TemporaryDirectory(prefix="probekit-less-") as folder, no_bars(), _after_steps(stepped):
        train_dpo(
            shared,
            used,
            Path(folder) / "warm-up",
            order=order,
            recipe=recipe,
            seed=seed,
            on_step=lambda done, steps: None,
        )
    return found


@contextmanager
def _after_steps(call: Any) -> Iterator[None]:
    """Inside, torch calls back after every step of every optimiser; Accelerate's wrapper is not one."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    handle = register_optimizer_step_post_hook(lambda optimizer, args, kwargs: call(optimizer))
    try:
        yield
    finally:
        handle.remove()


def _copied(hf: Any, optimizer: torch.optim.Optimizer, recipe: Recipe, rate: float) -> Adapters:
    import torch

    beta = optimizer.param_groups[0]["betas"][1]
    factors: dict[str, list[torch.Tensor]] = {}
    moments: dict[str, list[torch.Tensor]] = {}
    for name, parameter in hf.named_parameters():  # lora_A before lora_B of each map
        place, lora, _ = name.partition(".lora_")
        if lora:
            state = optimizer.state[parameter]
            corrected = state["exp_avg_sq"] / (1 - beta ** float(state["step"]))
            factors.setdefault(place, []).append(parameter.detach().float().clone())
            moments.setdefault(place, []).append(corrected.float().flatten())
    return Adapters(
        {place: (a, b) for place, (a, b) in factors.items()},
        recipe.alpha / recipe.rank,
        rate,
        torch.cat([one for both in moments.values() for one in both]),
    )
