"""The engine against what most people write, side by side in one run; writes benchmarks/bench.json.

Only ratios are kept: seconds depend on the machine and its load. Both sides take turns, so that both meet the
same load. The vectors of both are compared before their times are; that a DPO arm with what arms share has
the losses of plain TRL is tested in tests/test_training.py. The model is a small random llama with a small
vocabulary: these are ratios of blocks and bookkeeping, and larger models have others.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import loop
from probekit import arms, training, vectors
from probekit.checkpoints import Checkpoint
from probekit.figures import Figure, write_figures
from probekit.pairs import PairSet, load_pairs
from probekit.testing import planted_pairs, tiny_tokenizer

if TYPE_CHECKING:
    import torch


def main() -> None:
    """Run both comparisons and write their figures."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--out", type=Path, default=loop.ROOT / "benchmarks" / "bench.json")
    parser.add_argument("--repeats", type=int, default=3, help="turns that each side takes")
    options = parser.parse_args()
    run(options.out, repeats=options.repeats)


def run(out: Path, *, repeats: int, n_pairs: int = 64, blocks: int = 12, width: int = 128) -> list[Figure]:
    """Measure on `n_pairs` pairs and a random llama of this size; write the figures and return them."""
    checkpoint, pairs = small_llama(blocks=blocks, width=width), load_pairs(planted_pairs(n_pairs))
    found = [
        *compare_vectors(checkpoint, pairs, layer=2 * blocks // 3, repeats=repeats),
        *compare_dpo(checkpoint, pairs, first_block=blocks // 2, repeats=repeats),
    ]
    write_figures(out, found, command="make bench")
    for figure in found:
        print(f"{figure.name}: {figure.value:.2f} {figure.unit} ({figure.low:.2f} to {figure.high:.2f})")
    return found


def small_llama(*, blocks: int, width: int) -> Checkpoint:
    """A random llama with the tiny tokenizer of `probekit.testing`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        hidden_size=width, intermediate_size=3 * width, num_hidden_layers=blocks, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, vocab_size=len(tokenizer), initializer_range=0.1,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    return Checkpoint("small llama", LlamaForCausalLM(config).eval().requires_grad_(False), tokenizer)


def compare_vectors(checkpoint: Checkpoint, pairs: PairSet, *, layer: int, repeats: int) -> list[Figure]:
    """Pair vectors of one layer: `pair_vectors` (through nnsight) against one text at a time."""
    import torch

    ours = vectors.pair_vectors(checkpoint, pairs, layers=[layer]).layer(layer)
    torch.testing.assert_close(ours, one_text_at_a_time(checkpoint, pairs, layer=layer), atol=1e-4, rtol=1e-3)
    ours_times, usual = in_turns(
        lambda: vectors.pair_vectors(checkpoint, pairs, layers=[layer]),
        lambda: one_text_at_a_time(checkpoint, pairs, layer=layer),
        repeats=repeats,
    )
    return [ratio("bench.pair_vectors.speedup", ours_times, usual)]


def one_text_at_a_time(checkpoint: Checkpoint, pairs: PairSet, *, layer: int) -> torch.Tensor:
    """The loop that most people write: every text by itself, all hidden states kept, then the mean."""
    import torch

    rows = []
    for prompt, *replies in pairs.frame.select("prompt", "chosen", "rejected").iter_rows():
        means = []
        for reply in replies:
            text = checkpoint.render(prompt, reply)
            with torch.no_grad():
                out = checkpoint.hf(input_ids=torch.tensor([text.ids]), output_hidden_states=True)
            means.append(out.hidden_states[layer + 1][0, text.start : text.stop].mean(0))
        rows.append(means[0] - means[1])
    return torch.stack(rows)


def compare_dpo(checkpoint: Checkpoint, pairs: PairSet, *, first_block: int, repeats: int) -> list[Figure]:
    """One DPO arm, LoRA on the upper blocks: the first with `Shared`, and later ones, against plain TRL.

    TRL trains the same adapter on the same number of steps, once with its defaults for everything else (on a
    CPU bfloat16 autocast, activation checkpointing, reference log-probabilities at every step), and once in
    float32 without checkpointing, as our arms are.
    """
    recipe = training.Recipe(first_block=first_block, batch_size=8)
    steps = loop.steps(pairs, recipe, 1)
    order = arms.order(pairs, arms.baseline(), seed=0, steps=steps, batch_size=recipe.batch_size)
    shared = training.Shared(checkpoint, first_block=first_block)

    def arm(one: training.Shared) -> None:
        with tempfile.TemporaryDirectory() as folder:
            training.train_dpo(one, pairs, Path(folder) / "adapter", order=order, recipe=recipe)

    arm(shared)  # from here on every arm finds what the first one has left
    new = training.Shared(checkpoint, first_block=first_block)
    first, later, usual, plain = in_turns(
        lambda: arm(dataclasses.replace(new, logps={}, trunk={})),
        lambda: arm(shared),
        lambda: plain_dpo(checkpoint, pairs, recipe=recipe, steps=steps),
        lambda: plain_dpo(checkpoint, pairs, recipe=recipe, steps=steps, defaults=False),
        repeats=repeats,
    )
    return [
        ratio("bench.dpo_first_arm.speedup", first, usual),
        ratio("bench.dpo_later_arm.speedup", later, usual),
        ratio("bench.dpo_first_arm.speedup_vs_float32", first, plain),
        ratio("bench.dpo_later_arm.speedup_vs_float32", later, plain),
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


def in_turns(*works: Callable[[], object], repeats: int) -> list[list[float]]:
    """Seconds of each work, all of them run one after the other, `repeats` times."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(repeats):
        for seconds, work in zip(times, works, strict=True):
            begin = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - begin)
    return times


def ratio(name: str, ours: Sequence[float], usual: Sequence[float]) -> Figure:
    """How many times as fast ours is: the median over turns, with the lowest and highest turn."""
    turns = [theirs / mine for mine, theirs in zip(ours, usual, strict=True)]
    low, high = min(turns), max(turns)
    return Figure(name, statistics.median(turns), low=low, high=high, n=len(turns), unit="times")


if __name__ == "__main__":
    main()
