"""What the whole way costs on this machine: a few pairs are read and trained on, and timed."""

from __future__ import annotations

import dataclasses
import random
import shutil
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from probekit._doctor_checks import ERROR, OK, WARN, Finding, in_bytes
from probekit.checkpoints import Checkpoint
from probekit.pairs import PairSet
from probekit.training import Recipe, Shared, train_dpo
from probekit.vectors import VectorError, pair_vectors, probe_dtype

LONG = 12 * 3600  # seconds after which a run is worth a second thought


class Trial:
    """A few pairs to try, and how much longer all of them take."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        pairs: PairSet,
        measured: pl.DataFrame,
        layers: Sequence[int] | None,
        *,
        n: int,
        seed: int,
    ) -> None:
        fit = measured.filter(pl.col("longest") <= checkpoint.max_length)
        if fit.is_empty():
            raise VectorError("No pair fits the context, so there is nothing to time.")
        ids = random.Random(seed).sample(fit["pair_id"].to_list(), min(n, fit.height))
        self.checkpoint, self.pairs, self.total = checkpoint, pairs.select(ids), len(pairs)
        self.layers = list(range(checkpoint.n_blocks)) if layers is None else list(layers)
        mean = sum(fit["tokens"].to_list()) / fit.height
        tried = fit.filter(pl.col("pair_id").is_in(ids))["tokens"].sum()
        self.times = mean * self.total / tried  # all tokens, by those of the pairs tried


def disk(model: Checkpoint, pairs: int, layers: Sequence[int] | None, folder: Path) -> Finding:
    """Is there room for the vectors? float32, a row for each pair and layer."""
    n = model.n_blocks if layers is None else len(layers)
    one = 4 * pairs * model.width
    there = next(
        place for place in (folder.expanduser().absolute(), *folder.absolute().parents) if place.exists()
    )
    free = shutil.disk_usage(there).free
    words = f"vectors: {in_bytes(one)} a layer, {in_bytes(one * n)} for {plural(n, 'layer')}; "
    words += f"free {in_bytes(free)}"
    if one * n > free:
        return Finding(ERROR, words, "Read fewer layers (layers=), or store them on another disk (folder=).")
    if 2 * one * n > free:
        return Finding(WARN, words, "Read fewer layers: a sweep of some tells which are worth it.")
    return Finding(OK, words)


def precision(trial: Trial, try_bfloat16: bool) -> Finding:
    """Which dtype to read in: measured, if asked for."""
    dtype = str(trial.checkpoint.hf.dtype).removeprefix("torch.")
    if dtype != "float32":
        return Finding(
            OK, f"opened in {dtype}", "In float32, doctor(..., try_bfloat16=True) compares the two."
        )
    if not try_bfloat16:
        return Finding(
            OK, f"opened in {dtype}", "doctor(..., try_bfloat16=True) says if bfloat16 is worth it."
        )
    probe = probe_dtype(trial.checkpoint, trial.pairs, layers=trial.layers, n=len(trial.pairs))
    words = f"bfloat16 is {probe.speedup:.2f} times as fast; lowest cosine with float32 {probe.agreement:.5f}"
    return Finding(OK, words, f'Read in {probe.dtype}: open_checkpoint(..., dtype="{probe.dtype}").')


def reading(trial: Trial) -> Finding:
    """How long reading all pair vectors takes, and whether prompts are shared."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        pair_vectors(trial.checkpoint, trial.pairs.select(trial.pairs.ids[:1]), layers=trial.layers)
        begin = time.perf_counter()
        pair_vectors(trial.checkpoint, trial.pairs, layers=trial.layers)
        seconds = (time.perf_counter() - begin) * trial.times
    words = f"about {in_time(seconds)} for {trial.total:,} pairs at {plural(len(trial.layers), 'layer')}"
    words += f" ({len(trial.pairs)} pairs timed)"
    alone = [str(one.message) for one in said if "its own prompt" in str(one.message)]
    if alone or trial.checkpoint.shares_prompts is False:
        words += f"; {alone[0]}" if alone else "; every reply is read with its own prompt"
        return Finding(
            WARN, words, "It works, in up to twice the time: its attention does not share a prompt."
        )
    if seconds > LONG:
        advice = "A store (store=) keeps what was read; python -m probekit.vectors runs several at once."
        return Finding(WARN, words, advice)
    return Finding(OK, words + "; a prompt is read once for both replies")


def training(trial: Trial, recipe: Recipe | None, epochs: int) -> Finding:
    """How long one DPO arm takes, by the difference between a training of two steps and one of one."""
    recipe = recipe or Recipe(first_block=trial.checkpoint.n_blocks // 2)
    size = max(1, len(trial.pairs) // 2)
    small = dataclasses.replace(recipe, batch_size=size)
    order = [(pair, False) for pair in trial.pairs.ids]
    if len(order) < 2:
        order *= 2
    _trained(trial, small, order[:size])  # the first training imports and warms up
    one, two = (_trained(trial, small, order[: steps * size]) for steps in (1, 2))
    a_step = two - one if two > one else two / 2
    seconds = a_step * len(trial.pairs) / size * trial.times * epochs
    words = f"about {in_time(seconds)} for one arm of {trial.total:,} pairs, {plural(epochs, 'epoch')}, "
    words += f"blocks {recipe.first_block} to {trial.checkpoint.n_blocks - 1} "
    words += f"({len(trial.pairs)} pairs timed)"
    if seconds > LONG:
        return Finding(WARN, words, "Train fewer blocks (Recipe(first_block=...)), or on fewer pairs.")
    return Finding(OK, words, "Later arms with the same Shared take less: it keeps what they have in common.")


def _trained(trial: Trial, recipe: Recipe, order: list[tuple[str, bool]]) -> float:
    """Seconds of a training that shares nothing with others."""
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        shared = Shared(trial.checkpoint, first_block=recipe.first_block)
        train_dpo(shared, trial.pairs, Path(folder) / "arm", order=order, recipe=recipe)
        return time.perf_counter() - begin


def plural(n: int, noun: str) -> str:
    """A number and its noun.

    >>> plural(1, "layer"), plural(2, "layer")
    ('1 layer', '2 layers')
    """
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def in_time(seconds: float) -> str:
    """A time in words.

    >>> in_time(0.25), in_time(100), in_time(10_000)
    ('0.2 s', '1.7 min', '2.8 h')
    """
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.1f} s"
