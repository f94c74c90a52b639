"""The engine against the bare model and what most people write, in one run; writes benchmarks/bench.json.

Only ratios are kept: seconds depend on the machine and its load. The sides take turns, so that all meet the
same load. What they compute is compared before their times are; that a DPO arm with what arms share has the
losses of plain TRL is tested in tests/test_training.py. The model is the organism's M0 with its pairs.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import extraction, kills, loop, scale
from benchmarks.turns import in_turns, ratio
from probekit import arms, training
from probekit.checkpoints import Checkpoint
from probekit.figures import Figure, write_figures
from probekit.organisms import distractor
from probekit.pairs import PairSet


def main() -> None:
    """Run all comparisons and write their figures."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--out", type=Path, default=loop.ROOT / "benchmarks" / "bench.json")
    parser.add_argument("--repeats", type=int, default=3, help="turns that each side takes")
    options = parser.parse_args()
    organism = distractor.load()
    found = [
        *run(
            distractor.open_m0(),
            organism.pairs,
            layer=distractor.LAYER,
            recipe=distractor.DPO,
            steps=8,
            repeats=options.repeats,
        ),
        *scale.compare(repeats=options.repeats),
        *kills_figures(kills.kill(50)),
    ]
    write_figures(options.out, found, command="make bench")
    for figure in found:
        ends = "" if figure.low is None else f" ({figure.low:.3g} to {figure.high:.3g})"
        print(f"{figure.name}: {figure.value:.3g} {figure.unit}{ends}")


def run(
    checkpoint: Checkpoint,
    pairs: PairSet,
    *,
    layer: int,
    recipe: training.Recipe,
    steps: int,
    repeats: int,
) -> list[Figure]:
    """The figures that are measured with this model and these pairs."""
    found = [
        *extraction.compare(checkpoint, pairs, layer=layer, repeats=repeats),
        *compare_dpo(checkpoint, pairs, recipe=recipe, steps=steps, repeats=repeats),
    ]
    return found


def kills_figures(survived: kills.Survived) -> list[Figure]:
    """How many kills in a row cost nothing but the block at hand, and no byte of what was stored."""
    clean = survived.wrong == 0 and survived.computed <= survived.blocks * survived.stores + survived.kills
    return [Figure("kills.survived", survived.kills if clean else 0, n=survived.kills, target=">= 50")]


def compare_dpo(
    checkpoint: Checkpoint, pairs: PairSet, *, recipe: training.Recipe, steps: int, repeats: int
) -> list[Figure]:
    """One DPO arm, LoRA on the upper blocks: the first with `Shared`, and later ones, over plain TRL.

    TRL trains the same adapter on the same number of steps, once with its defaults for everything else (on a
    CPU bfloat16 autocast, activation checkpointing, reference log-probabilities at every step), and once in
    the model's own dtype without checkpointing, as our arms are.
    """
    order = arms.order(pairs, arms.baseline(), seed=0, steps=steps, batch_size=recipe.batch_size)
    shared = training.Shared(checkpoint, first_block=recipe.first_block)

    def arm(one: training.Shared) -> None:
        with tempfile.TemporaryDirectory() as folder:
            training.train_dpo(one, pairs, Path(folder) / "adapter", order=order, recipe=recipe)

    arm(shared)  # from here on every arm finds what the first one has left
    new = training.Shared(checkpoint, first_block=recipe.first_block)
    first, later, usual, plain = in_turns(
        lambda: arm(dataclasses.replace(new, logps={}, trunk={})),
        lambda: arm(shared),
        lambda: plain_dpo(checkpoint, pairs, recipe=recipe, steps=steps),
        lambda: plain_dpo(checkpoint, pairs, recipe=recipe, steps=steps, defaults=False),
        repeats=repeats,
    )
    return [
        ratio("arm.vs_plain_trl", later, usual, "<= 0.6"),
        ratio("arm.first_vs_plain_trl", first, usual),
        ratio("arm.vs_trl_without_checkpointing", later, plain),
        ratio("arm.first_vs_trl_without_checkpointing", first, plain),
    ]


def plain_dpo(
    checkpoint: Checkpoint,
    pairs: PairSet,
    *,
    recipe: training.Recipe,
    steps: int,
    defaults: bool = True,
) -> None:
    """DPO with TRL itself, on the same pairs, blocks and number of steps, in a copy of the model."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    def turn(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text}]

    rows = pairs.frame.select("prompt", "chosen", "rejected").iter_rows()
    data = Dataset.from_list([{"prompt": p, "chosen": turn(c), "rejected": turn(r)} for p, c, r in rows])
    linear = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    lora = LoraConfig(
        r=recipe.rank, lora_alpha=recipe.alpha, target_modules=list(linear), task_type="CAUSAL_LM",
        layers_to_transform=list(range(recipe.first_block, checkpoint.n_blocks)),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        arguments: dict[str, Any] = {"output_dir": folder, "save_strategy": "no", "report_to": "none"}
        if not defaults:
            arguments |= {"bf16": False, "activation_checkpointing": False}
        config = DPOConfig(
            **arguments, max_steps=steps, per_device_train_batch_size=recipe.batch_size,
            learning_rate=recipe.learning_rate, beta=recipe.beta, use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        trainer = DPOTrainer(
            model=copy.deepcopy(checkpoint.hf), args=config, train_dataset=data,
            processing_class=checkpoint.tokenizer, peft_config=lora,
        )  # fmt: skip
        trainer.train()


if __name__ == "__main__":
    main()
