"""SFT and DPO through TRL, with what every arm and seed shares computed once.

Two things are the same in every arm, epoch and seed of a contest: the reference log-probabilities of each reply,
and, where only the upper blocks are trained, what the frozen lower blocks put out. `Shared` keeps both, so that an
arm pays for its own blocks only; the loss is TRL's own, unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from probekit import sources
from probekit.checkpoints import Checkpoint
from probekit.pairs import PairSet

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch


class TrainingError(ValueError):
    """Rows, blocks or settings that cannot be trained on."""


@dataclass(frozen=True)
class Recipe:
    """How an adapter is trained: LoRA on the blocks from `first_block` up, linear decay after a warm-up.

    rank, alpha: of LoRA, on all linear maps of a block. learning_rate: the peak. batch_size: rows (SFT) or pairs
    (DPO) a step. beta: DPO's. sft_weight: weight of the SFT loss on chosen replies added to DPO's (0 = none).
    """

    first_block: int = 0
    rank: int = 16
    alpha: int = 32
    learning_rate: float = 1e-4
    warmup: float = 0.1
    batch_size: int = 16
    beta: float = 0.1
    sft_weight: float = 0.0


@dataclass
class Shared:
    """What all arms and seeds trained from one M0 share; give the same object to each of their trainings.

    logps: log-probability of each reply under M0, by (prompt tokens, reply tokens). trunk: output of the frozen
    blocks below `first_block` for each text, by its tokens, (tokens, d) float32.
    """

    checkpoint: Checkpoint
    first_block: int = 0
    logps: dict[tuple[tuple[int, ...], tuple[int, ...]], float] = field(default_factory=dict, repr=False)
    trunk: dict[bytes, torch.Tensor] = field(default_factory=dict, repr=False)


def train_sft(
    checkpoint: Checkpoint,
    rows: Sequence[dict[str, str]],
    out: Path,
    *,
    recipe: Recipe,
    epochs: int,
    seed: int = 0,
) -> Path:
    """Supervised fine-tuning on rows {"user", "reply"}, loss on the reply; writes a PEFT adapter folder.

    Nothing is truncated: a row longer than the context raises `TrainingError`. The folder appears when training
    has ended, all or nothing; if it is there already it is returned as it is.
    """
    if (out / "adapter_config.json").is_file():
        return out
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    for i, row in enumerate(rows):
        length = len(checkpoint.render([{"role": "user", "content": row["user"]}], row["reply"]).ids)
        if length >= checkpoint.max_length:
            raise TrainingError(
                f"SFT row {i} has {length} tokens, more than the context of {checkpoint.max_length}; shorten or drop it"
            )
    data = Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": row["user"]}],
                "completion": [{"role": "assistant", "content": row["reply"]}],
            }
            for row in rows
        ]
    )
    steps = -(-len(rows) * epochs // recipe.batch_size)
    with _quiet(), _replies_only():
        trainer = SFTTrainer(
            model=checkpoint.hf,
            args=SFTConfig(
                **_arguments(recipe, steps=steps, seed=seed),
                completion_only_loss=True,
                max_length=None,
                train_sampling_strategy="group_by_length",
            ),
            train_dataset=data,
            processing_class=checkpoint.tokenizer,
            peft_config=_lora(recipe, checkpoint),
        )
        return _run(trainer, out, checkpoint)


def train_dpo(
    shared: Shared,
    pairs: PairSet,
    out: Path,
    *,
    order: Sequence[tuple[str, bool]],
    recipe: Recipe,
    seed: int = 0,
) -> Path:
    """DPO on `pairs` in exactly the order given; writes a PEFT adapter folder for the shared M0.

    pairs: the original, unedited set. order: (pair id, swapped) for each example, `steps * batch_size` of them, as
    `arms.order` makes it: the edits are in the order, so every arm has the same data order and number of steps.
    seed: of the adapter's initialisation. Raises `TrainingError` for an order that does not fill its batches, names
    unknown pairs, or for a pair longer than the context; nothing is truncated.
    """
    if (out / "adapter_config.json").is_file():
        return out
    if not order or len(order) % recipe.batch_size:
        raise TrainingError(
            f"the order has {len(order)} examples, which does not fill batches of {recipe.batch_size}"
        )
    if recipe.first_block != shared.first_block:
        raise TrainingError(
            f"the recipe trains from block {recipe.first_block}, the shared part from {shared.first_block}"
        )
    checkpoint = shared.checkpoint
    by_id = {row["pair_id"]: row for row in pairs.frame.iter_rows(named=True)}
    if unknown := sorted({pair for pair, _ in order} - set(by_id)):
        raise TrainingError(f"{len(unknown)} pairs of the order are not in the set, first {unknown[0]}")
    from datasets import Dataset
    from trl import DPOConfig

    data = Dataset.from_list([_example(by_id[pair], swapped) for pair, swapped in order])
    losses = {"loss_type": ["sigmoid"]}
    if recipe.sft_weight:
        losses = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, recipe.sft_weight]}
    arguments = _arguments(recipe, steps=len(order) // recipe.batch_size, seed=seed)
    with _quiet(), _frozen_trunk(shared), _replies_only():
        trainer = _shared_reference_trainer()(
            shared=shared,
            model=checkpoint.hf,
            args=DPOConfig(
                **arguments, **losses, beta=recipe.beta, max_length=None, precompute_ref_log_probs=True,
                train_sampling_strategy="sequential",
            ),
            train_dataset=data,
            processing_class=checkpoint.tokenizer,
            peft_config=_lora(recipe, checkpoint),
        )  # fmt: skip
        return _run(trainer, out, checkpoint)


def _example(row: dict[str, Any], swapped: bool) -> dict[str, Any]:
    chosen, rejected = (row["rejected"], row["chosen"]) if swapped else (row["chosen"], row["rejected"])
    return {
        "prompt": row["prompt"],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


def _lora(recipe: Recipe, checkpoint: Checkpoint) -> Any:
    import torch
    from peft import LoraConfig
    from transformers.pytorch_utils import Conv1D

    if not 0 <= recipe.first_block < checkpoint.n_blocks:
        raise TrainingError(
            f"first_block is {recipe.first_block}; {checkpoint.name} has blocks 0 to {checkpoint.n_blocks - 1}"
        )
    names = [
        f"{checkpoint.blocks_path}.{i}.{name}"
        for i in range(recipe.first_block, checkpoint.n_blocks)
        for name, module in checkpoint.hf.get_submodule(f"{checkpoint.blocks_path}.{i}").named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D)
    ]
    return LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, target_modules=names, task_type="CAUSAL_LM")


def _arguments(recipe: Recipe, *, steps: int, seed: int) -> dict[str, Any]:
    import tempfile

    return {
        "output_dir": tempfile.gettempdir(),  # nothing is written there: save_strategy is "no"
        "per_device_train_batch_size": recipe.batch_size,
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": max(1, round(recipe.warmup * steps)),
        "max_steps": steps,
        "seed": seed,
        "bf16": False,  # on these cores a mixed-precision step is no faster (benchmarks/), and fp32 is exact
        "activation_checkpointing": False,
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 1,
        "dataloader_pin_memory": False,
    }


def _run(trainer: Any, out: Path, checkpoint: Checkpoint) -> Path:
    import json

    try:
        trainer.train()
        out.parent.mkdir(parents=True, exist_ok=True)
        with sources.replacing(out) as unfinished:
            trainer.model.save_pretrained(unfinished)
            log = [entry for entry in trainer.state.log_history if "loss" in entry]
            (unfinished / "training_log.json").write_text(json.dumps(log, indent=1))
    finally:
        # The adapter was put into the checkpoint's own modules: take it out, whatever happened.
        trainer.model.unload()
        checkpoint.hf.eval().requires_grad_(False)
    return out


def _shared_reference_trainer() -> Any:
    from trl import DPOTrainer

    class SharedReferenceTrainer(DPOTrainer):  # type: ignore[misc]
        """TRL's DPO trainer, with reference log-probs looked up in `Shared` and computed by TRL where missing."""

        def __init__(self, shared: Shared, **kwargs: Any) -> None:
            self.shared = shared
            super().__init__(**kwargs)

        def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
            logps = self.shared.logps
            keys = [
                [(tuple(row["prompt_ids"]), tuple(row[side])) for side in ("chosen_ids", "rejected_ids")]
                for row in dataset
            ]
            missing = list(
                {tuple(k): i for i, k in enumerate(keys) if not all(x in logps for x in k)}.values()
            )
            for start in range(0, len(missing), batch_size):
                batch = missing[start : start + batch_size]
                inputs = self.data_collator([dataset[i] for i in batch])
                inputs = {k: v.to(self.accelerator.device) for k, v in inputs.items()}
                for side, values in enumerate(self.compute_ref_log_probs(self.model, inputs)):
                    logps.update(
                        {keys[i][side]: value for i, value in zip(batch, values.tolist(), strict=True)}
                    )
            for side, column in enumerate(("ref_chosen_logps", "ref_rejected_logps")):
                dataset = dataset.add_column(column, [logps[key[side]] for key in keys])
            return dataset

    return SharedReferenceTrainer


@contextmanager
def _replies_only() -> Iterator[None]:
    """Have TRL project only reply positions onto the vocabulary, as it does on GPUs: same values, less work."""
    with mock.patch("trl.trainer.utils._use_triton", return_value=True):
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the trainer's own prints and dataset bars; its progress bar stays."""
    import datasets

    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()


@contextmanager
def _frozen_trunk(shared: Shared) -> Iterator[None]:
    """While open, the blocks below `first_block` are one module that looks its output up in `shared.trunk`."""
    import torch

    if shared.first_block == 0:
        yield
        return
    hf, path = shared.checkpoint.hf, shared.checkpoint.blocks_path
    blocks = hf.get_submodule(path)
    trunk = _trunk_module(shared, list(blocks[: shared.first_block]))
    idle = torch.nn.ModuleList(
        [trunk, *map(_pass_through, blocks[1 : shared.first_block]), *blocks[shared.first_block :]]
    )
    parent = hf.get_submodule(path.rpartition(".")[0])
    hook = hf.register_forward_pre_hook(trunk.note_ids, with_kwargs=True)
    setattr(parent, path.rpartition(".")[2], idle)
    try:
        yield
    finally:
        hook.remove()
        setattr(parent, path.rpartition(".")[2], blocks)


def _pass_through(block: Any) -> Any:
    """A block that does nothing, so that the blocks above keep their numbers."""
    import torch

    class PassThrough(torch.nn.Module):
        def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
            return hidden_states

    idle = PassThrough()
    if "attention_type" in vars(block):  # some architectures choose a block's mask by it
        idle.attention_type = block.attention_type
    return idle


def _trunk_module(shared: Shared, blocks: list[Any]) -> Any:
    import torch

    class FrozenTrunk(torch.nn.Module):
        """The frozen lower blocks: a row's output depends on its own tokens only (causal, right-padded)."""

        def __init__(self) -> None:
            super().__init__()
            self.blocks = blocks  # a plain list, so that LoRA and the optimiser do not see them
            if "attention_type" in vars(blocks[0]):
                self.attention_type = blocks[0].attention_type
            self.keys: list[tuple[bytes, int]] = []

        def note_ids(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            lengths = kwargs["attention_mask"].sum(dim=1).tolist()
            ids = kwargs["input_ids"].cpu().numpy()
            self.keys = [(row[:n].tobytes(), n) for row, n in zip(ids, lengths, strict=True)]

        def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
            if any(key not in shared.trunk for key, _ in self.keys):
                with torch.no_grad():
                    full = hidden_states
                    for block in self.blocks:
                        full = block(full, **kwargs)
                for row, (key, n) in zip(full, self.keys, strict=True):
                    shared.trunk[key] = row[:n].clone()
            out = torch.zeros_like(hidden_states)
            for row, (key, n) in zip(out, self.keys, strict=True):
                row[:n] = shared.trunk[key]
            return out

    return FrozenTrunk()


def recipe_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain numbers, for result files."""
    return asdict(recipe)
