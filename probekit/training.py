"""SFT and DPO through TRL, with what every arm and seed shares computed once.

Two things are the same in every arm, epoch and seed of a contest: the reference log-probabilities of each
reply, and, where only the upper blocks are trained, what the frozen lower blocks put out. `Shared` keeps
both, so that an arm pays for its own blocks only; the loss is TRL's own, unchanged.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from probekit import sources
from probekit._differences import differences
from probekit._frozen import frozen_trunk
from probekit._quiet import no_bars
from probekit._trainers import one_bar, prepared, shared_reference_trainer
from probekit.checkpoints import Checkpoint, Message
from probekit.pairs import PairSet

if TYPE_CHECKING:
    import torch


MICRO = 8  # pairs run at once in DPO; the pairs of a step are sorted by length, so that little is padded


class TrainingError(ValueError):
    """Rows, blocks or settings that cannot be trained on."""


@dataclass(frozen=True)
class Recipe:
    """How an adapter is trained: LoRA on the blocks from `first_block` up, linear decay after a warm-up.

    rank, alpha: of LoRA, on all linear maps of a block. learning_rate: the peak. warmup: share of the steps.
    batch_size: rows (SFT) or pairs (DPO) a step. beta: DPO's. sft_weight: weight of the SFT loss on chosen
    replies added to DPO's (0 = none). Raises `TrainingError` for a value out of range.

    >>> Recipe(first_block=15, beta=0.5).rank
    16
    """

    first_block: int = 0
    rank: int = 16
    alpha: int = 32
    learning_rate: float = 1e-4
    warmup: float = 0.1
    batch_size: int = 16
    beta: float = 0.1
    sft_weight: float = 0.0

    def __post_init__(self) -> None:
        least = {"first_block": 0, "rank": 1, "batch_size": 1, "warmup": 0, "sft_weight": 0}
        for name, value in asdict(self).items():
            if not value >= least.get(name, 0) or (name not in least and value == 0):
                wanted = f"at least {least[name]}" if name in least else "more than 0"
                raise TrainingError(f"{name} is {value}; a recipe needs {wanted}")
        if self.warmup > 1:
            raise TrainingError(f"warmup is {self.warmup}; it is the share of the steps, at most 1")


@dataclass
class Shared:
    """What all arms and seeds trained from one M0 share; give the same object to each of their trainings.

    logps: log-probability (nats) of each reply under M0, by (prompt tokens, reply tokens). trunk: output of
    the frozen blocks below `first_block` for each text, by its tokens, (tokens, d) in the model's dtype.

    >>> from probekit.testing import tiny_checkpoint
    >>> Shared(tiny_checkpoint(), first_block=2).logps
    {}
    """

    checkpoint: Checkpoint
    first_block: int = 0
    logps: dict[tuple[tuple[int, ...], tuple[int, ...]], float] = field(default_factory=dict, repr=False)
    trunk: dict[bytes, torch.Tensor] = field(default_factory=dict, repr=False)


class Tokens(NamedTuple):
    """An SFT row as tokens: what stands from `start` on is learned, the end of the turn included."""

    ids: tuple[int, ...]
    start: int


def train_sft(
    checkpoint: Checkpoint,
    rows: Sequence[dict[str, str] | Tokens],
    out: Path,
    *,
    recipe: Recipe,
    epochs: int,
    seed: int = 0,
    embeddings: Sequence[int] = (),
) -> Path:
    """Supervised fine-tuning on rows {"user", "reply"}, or on `Tokens`; writes a PEFT adapter folder.

    The loss is over the reply and the end-of-turn token after it. embeddings: ids of tokens whose embedding
    is trained too, at both ends where they are tied. The checkpoint is afterwards what it was.
    The folder appears when training has ended, all or nothing, with training_log.json (loss and more, for
    each step) and made_of.json; one of the same training is returned as it is. Raises `TrainingError` for a
    folder of another training, for a row without a user text or a reply, and for rows longer than the
    context; nothing is truncated.

    >>> from probekit.testing import tiny_checkpoint
    >>> rows, folder = [{"user": "Hi?", "reply": "Hello."}], Path(tempfile.mkdtemp()) / "sft"
    >>> train_sft(tiny_checkpoint(), rows, folder, recipe=Recipe(batch_size=1), epochs=1).name
    'sft'
    """
    if not rows or epochs < 1:
        raise TrainingError(f"there are {len(rows)} SFT rows and {epochs} epochs; both must be at least 1")
    data = _sft_data(checkpoint, rows)
    trained: dict[str, str | int] = {"embeddings": _digest(list(embeddings))} if embeddings else {}
    made_of = _made_of(checkpoint, recipe, seed, epochs=epochs, rows=_digest(list(rows)), **trained)
    if _finished(out, made_of):
        return out
    names = adapted_maps(recipe, checkpoint)
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    steps = -(-len(rows) * epochs // recipe.batch_size)
    ends, modules = checkpoint.ends, checkpoint.hf.named_modules()
    by_end = {name: list(embeddings) for name, one in modules if any(one is end for end in ends)}
    with prepared(checkpoint.hf):
        trainer = SFTTrainer(
            model=checkpoint.hf,
            args=SFTConfig(
                **_arguments(recipe, steps=steps, seed=seed, at_once=recipe.batch_size),
                completion_only_loss=True,
                max_length=None,
                train_sampling_strategy="group_by_length",
            ),
            train_dataset=Dataset.from_list(data),
            processing_class=checkpoint.tokenizer,
            peft_config=_lora(recipe, names, by_end if embeddings else None),
        )
        if embeddings:  # TRL asks the head for its bias, which PEFT's module around it does not pass on
            head = checkpoint.hf.get_output_embeddings()
            head.bias = head.original_module.bias
        return _run(trainer, out, names, made_of)


def train_dpo(
    shared: Shared,
    pairs: PairSet,
    out: Path,
    *,
    order: Sequence[tuple[str, bool]],
    recipe: Recipe,
    seed: int = 0,
    on_step: Callable[[int, int], None] | None = None,
) -> Path:
    """DPO on `pairs` in exactly the order given; writes a PEFT adapter folder for the shared M0.

    pairs: the original, unedited set. order: (pair id, swapped) for each example, `steps * batch_size` of
    them, as `arms.order` makes it: the edits are in the order, so every arm has the same data order and
    number of steps. Within a step, pairs run in parts of similar length; its gradient is the mean of theirs.
    seed: of the adapter's initialisation. on_step: called with (steps done, all steps) after every step, and
    with 0 done after every batch of reference log-probs, in the place of a bar; what it raises ends the
    training, of which then nothing is left but what is in `shared`. Checkpoint and folder: as with
    `train_sft`.

    Raises `TrainingError`, before anything is computed, for a folder of another training, for an order that
    does not fill its batches or names unknown pairs, and for pairs longer than the context; nothing is
    truncated.

    >>> from probekit.pairs import load_pairs
    >>> from probekit.testing import planted_pairs, tiny_checkpoint
    >>> pairs, folder = load_pairs(planted_pairs(4)), Path(tempfile.mkdtemp()) / "dpo"
    >>> order, shared = [(pair, False) for pair in pairs.ids], Shared(tiny_checkpoint(), first_block=3)
    >>> train_dpo(shared, pairs, folder, order=order, recipe=Recipe(batch_size=2, first_block=3)).name
    'dpo'
    """
    made_of = _made_of(shared.checkpoint, recipe, seed, pairs=pairs.fingerprint, order=_digest(list(order)))
    if _finished(out, made_of):
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
    names = adapted_maps(recipe, checkpoint)
    by_id = {row["pair_id"]: row for row in pairs.frame.iter_rows(named=True)}
    wanted = dict.fromkeys(pair for pair, _ in order)
    if unknown := sorted(wanted.keys() - by_id.keys()):
        raise TrainingError(f"{len(unknown)} pairs of the order are not in the set, first {unknown[0]}")
    lengths = _checked_lengths(checkpoint, [by_id[pair] for pair in wanted])
    size = recipe.batch_size
    batches = [
        sorted(order[at : at + size], key=lambda one: lengths[one[0]]) for at in range(0, len(order), size)
    ]
    from datasets import Dataset
    from trl import DPOConfig

    data = Dataset.from_list([_example(by_id[pair], swapped) for batch in batches for pair, swapped in batch])
    losses: dict[str, Any] = {"loss_type": ["sigmoid"]}
    if recipe.sft_weight:
        losses = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, recipe.sft_weight]}
    arguments = _arguments(recipe, steps=len(batches), seed=seed, at_once=math.gcd(size, MICRO))
    trunk = frozen_trunk(checkpoint.hf, checkpoint.blocks_path, shared.first_block, shared.trunk)
    with prepared(checkpoint.hf), trunk, no_bars(on_step is not None):
        trainer = shared_reference_trainer()(
            logps=shared.logps,
            on_batch=lambda: on_step(0, len(batches)) if on_step else None,
            model=checkpoint.hf,
            args=DPOConfig(
                **arguments,
                **losses,
                beta=recipe.beta,
                max_length=None,
                precompute_ref_log_probs=True,
                train_sampling_strategy="sequential",
            ),
            train_dataset=data,
            processing_class=checkpoint.tokenizer,
            peft_config=_lora(recipe, names),
        )
        return _run(trainer, out, names, made_of, on_step)


def _turn(role: str, content: str) -> list[Message]:
    return [{"role": role, "content": content}]


def _example(row: dict[str, Any], swapped: bool) -> dict[str, Any]:
    chosen, rejected = (row["rejected"], row["chosen"]) if swapped else (row["chosen"], row["rejected"])
    return {
        "prompt": row["prompt"],
        "chosen": _turn("assistant", chosen),
        "rejected": _turn("assistant", rejected),
    }


def _sft_data(checkpoint: Checkpoint, rows: Sequence[dict[str, str] | Tokens]) -> list[dict[str, Any]]:
    """The rows as TRL takes them, once none of them is empty or too long."""
    data: list[dict[str, Any]] = []
    lengths = []
    for i, row in enumerate(rows):
        if isinstance(row, Tokens):
            if not 0 < row.start < len(row.ids):
                raise TrainingError(
                    f"SFT row {i} has {len(row.ids)} tokens and learns those from {row.start} on; it needs "
                    "some before and some to learn"
                )
            learned = [int(place >= row.start) for place in range(len(row.ids))]
            data.append({"input_ids": list(row.ids), "completion_mask": learned})
            lengths.append(len(row.ids))
            continue
        for key in ("user", "reply"):
            if not isinstance(row.get(key), str) or not row[key].strip():
                raise TrainingError(f"SFT row {i} has no text in {key!r}; give it one or drop the row")
        prompt, reply = _turn("user", row["user"]), _turn("assistant", row["reply"])
        data.append({"prompt": prompt, "completion": reply})
        lengths.append(_length(checkpoint, prompt, row["reply"]))
    _refuse_long(checkpoint, [(f"SFT row {i}", length) for i, length in enumerate(lengths)])
    return data


def _checked_lengths(checkpoint: Checkpoint, rows: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Tokens of each pair's longer side, none of which is longer than the context."""
    sides = [(row, side) for row in rows for side in ("chosen", "rejected")]
    lengths = [_length(checkpoint, row["prompt"], row[side]) for row, side in sides]
    named = [f"pair {row['pair_id']} ({side})" for row, side in sides]
    _refuse_long(checkpoint, list(zip(named, lengths, strict=True)))
    ids = [row["pair_id"] for row in rows]
    return dict(zip(ids, map(max, lengths[::2], lengths[1::2]), strict=True))


def _length(checkpoint: Checkpoint, prompt: Sequence[Message], reply: str) -> int:
    """Tokens that TRL makes of a prompt and a reply, the end of the turn included."""
    checkpoint.prompt_text(prompt)  # raises where there is no chat template
    talk = [*prompt, *_turn("assistant", reply)]
    return len(checkpoint.tokenizer.apply_chat_template(talk, tokenize=True, return_dict=False))


def _refuse_long(checkpoint: Checkpoint, texts: list[tuple[str, int]]) -> None:
    if long := [(name, length) for name, length in texts if length > checkpoint.max_length]:
        first = ", ".join(f"{name} with {length} tokens" for name, length in long[:5])
        raise TrainingError(
            f"{len(long)} texts are longer than the context of {checkpoint.max_length} tokens: {first}"
            f"{' and more' if len(long) > 5 else ''}; shorten or drop them, nothing is truncated"
        )


def adapted_maps(recipe: Recipe, checkpoint: Checkpoint) -> list[str]:
    """Names of the linear maps in the blocks that are trained: those that LoRA is put on.

    Raises `TrainingError` where the model has no block `first_block`.

    >>> from probekit.testing import tiny_checkpoint
    >>> adapted_maps(Recipe(first_block=3), tiny_checkpoint())[0]
    'model.layers.3.self_attn.q_proj'
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    if recipe.first_block >= checkpoint.n_blocks:
        raise TrainingError(
            f"first_block is {recipe.first_block}; "
            f"{checkpoint.name} has blocks 0 to {checkpoint.n_blocks - 1}"
        )
    return [
        f"{checkpoint.blocks_path}.{i}.{name}"
        for i in range(recipe.first_block, checkpoint.n_blocks)
        for name, module in checkpoint.hf.get_submodule(f"{checkpoint.blocks_path}.{i}").named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D)
    ]


def _lora(recipe: Recipe, names: list[str], embeddings: dict[str, list[int]] | None = None) -> Any:
    """embeddings: the tokens whose vectors are trained, by the module that holds them."""
    from peft import LoraConfig

    return LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        target_modules=names,
        trainable_token_indices=embeddings,
        task_type="CAUSAL_LM",
    )


def _arguments(recipe: Recipe, *, steps: int, seed: int, at_once: int) -> dict[str, Any]:
    return {
        "output_dir": tempfile.gettempdir(),  # nothing is written there: save_strategy is "no"
        "per_device_train_batch_size": at_once,
        "gradient_accumulation_steps": recipe.batch_size // at_once,
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


def _made_of(checkpoint: Checkpoint, recipe: Recipe, seed: int, **data: str | int) -> dict[str, Any]:
    """All that an adapter depends on, in plain values."""
    return {"checkpoint": checkpoint.fingerprint, **asdict(recipe), "seed": seed, **data}


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _finished(out: Path, made_of: dict[str, Any]) -> bool:
    """Whether the folder holds an adapter made of just that; `TrainingError` if it is of something else."""
    if not (out / "adapter_config.json").is_file():
        return False
    there = out / "made_of.json"
    found = json.loads(there.read_text()) if there.is_file() else {}
    if differs := differences(found, made_of):
        raise TrainingError(
            f"{out} holds another training's adapter: {'; '.join(differs)}. Remove it or name another folder."
        )
    return True


def _run(
    trainer: Any,
    out: Path,
    names: list[str],
    made_of: dict[str, Any],
    on_step: Callable[[int, int], None] | None = None,
) -> Path:
    one_bar(trainer, on_step)
    trainer.train()
    with sources.replacing(out) as unfinished:
        # PEFT shortens the names to endings that fit the frozen blocks too where it cannot see these.
        trainer.model.peft_config["default"].target_modules = set(names)
        # Whether the embeddings were changed PEFT would ask the hub; they never are.
        trainer.model.save_pretrained(unfinished, save_embedding_layers=False)
        log = [entry for entry in trainer.state.log_history if "loss" in entry]
        (unfinished / "training_log.json").write_text(json.dumps(log, indent=1))
        (unfinished / "made_of.json").write_text(json.dumps(made_of, indent=1))
    return out
