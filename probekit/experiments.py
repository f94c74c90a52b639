"""Arms and seeds of one pair set: trained and judged, each once, resumable.

A job is an arm with a training seed. What is finished lies in a folder, one small file a job, and is not done
again; a file that is of something else is an error. Sampling is greedy, one reply a prompt: a checkpoint's
replies are then a function of its weights, and the spread between seeds comes from training alone.
"""

from __future__ import annotations

import hashlib
import re
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple, TypeAlias

import polars as pl

from probekit import arms, training
from probekit._frame_cache import cached_frame, digest
from probekit._judging import ASKED, FORMAT_TOKENS, JUDGED, OPENING_TOKENS, PARTS, greedy, judge
from probekit._quiet import no_bars
from probekit._results import About, ResultError, read_result, results, write_result
from probekit.checkpoints import Checkpoint, merged
from probekit.judges import Judge, judge_refusals
from probekit.pairs import PairSet

__all__ = [
    "JUDGED", "M0", "About", "Estimate", "Experiment", "ExperimentError", "Job", "Progress", "ResultError",
    "digest", "ledger_hash", "read_result", "results", "steps", "write_result",
]  # fmt: skip

M0 = arms.baseline(name="M0")  # the arm that is not trained: M0 itself, with seed 0
_OWN = ("arm", "seed", "ledger")  # what differs between the jobs of one experiment
_NO_REPLIES = pl.DataFrame(schema={"prompt_id": pl.String, "user": pl.String, "reply": pl.String})
_TIMED = 3  # optimiser steps for an estimate
_UNFIT = re.compile(r"[^\w.-]")  # for a file name

Job: TypeAlias = tuple[arms.Arm, int]
Step: TypeAlias = Callable[[str, int, int], None]


class ExperimentError(ValueError):
    """Prompts that arms cannot be judged on, or jobs that cannot be told apart."""


class Progress(NamedTuple):
    """Where a job is: `done` of `steps` in its stage, "train" (optimiser steps) or "judge"."""

    arm: str
    seed: int
    stage: str
    done: int
    steps: int

    @property
    def finished(self) -> bool:
        """Whether the job has its result."""
        return self.stage == "judge" and self.done == self.steps


class Estimate(NamedTuple):
    """Seconds that jobs will take, None if nothing is known yet; from how many `measured` trainings."""

    seconds: float | None
    measured: int


class _Stopped(Exception):
    """Somebody asked for an end."""


@dataclass(frozen=True)
class Experiment:
    """Trains and judges arms of one pair set from one M0.

    prompts: what every arm is judged on, a prompt frame (prompt_id, user, harmful, distractor). folder: where
    results go: ids, verdicts and numbers, no text. recipe, epochs: of every training; an arm has the steps of
    `epochs` passes over the unedited pairs, whatever it drops. work: where adapters and M0's replies go,
    large or text; default folder/work. m0_id: what M0 is called in result files, default its fingerprint.
    opening_tokens: sampled where a reply's opening is judged; format_tokens: where its form is. judge: gives
    each reply its verdict, with "complied" for the behaviour; one of your own gets format_tokens of every
    reply, for it may read past the opening.

    While an arm is trained M0 itself holds the adapter; afterwards it is what it was. Judging takes a second
    copy of M0's weights. Raises ExperimentError for prompts without these columns or with doubled rows, and
    for a judge without a name of its own.

    >>> from probekit.pairs import load_pairs
    >>> from probekit.prompts import prompt_frame
    >>> from probekit.testing import planted_pairs, tiny_checkpoint
    >>> asked = prompt_frame(["How do I bake bread?"], harmful=False, source="mine")
    >>> pairs, folder = load_pairs(planted_pairs(4)), Path(tempfile.mkdtemp())
    >>> experiment = Experiment(tiny_checkpoint(), pairs, prompts=asked, folder=folder)
    >>> experiment.run([(M0, 0)]).select("arm", "seed", "harmful", "distractor").row(0)
    ('M0', 0, False, None)
    """

    m0: Checkpoint
    pairs: PairSet
    _: KW_ONLY
    prompts: pl.DataFrame = field(repr=False)
    folder: Path
    recipe: training.Recipe = field(default_factory=training.Recipe)
    epochs: int = 1
    work: Path | None = None
    m0_id: str | None = None
    opening_tokens: int = OPENING_TOKENS
    format_tokens: int = FORMAT_TOKENS
    judge: Judge = judge_refusals

    def __post_init__(self) -> None:
        if missing := [name for name in ASKED if name not in self.prompts.columns]:
            raise ExperimentError(f"The prompts lack {', '.join(missing)}; make them with prompt_frame.")
        if not self.prompts.height:
            raise ExperimentError("There are no prompts, so no arm could be judged.")
        if doubled := self.prompts.select("prompt_id", "distractor").is_duplicated().sum():
            raise ExperimentError(
                f"{doubled} of {self.prompts.height} prompts share prompt_id and distractor with another, so "
                "their replies could not be told apart. Drop the doubled rows."
            )
        if not isinstance(self.judge, FunctionType) or "<" in self.judge.__qualname__:
            raise ExperimentError(
                f"The judge {self.judge!r} has no name by which results could tell it from another; give a "
                "function that a module defines."
            )

    @cached_property
    def shared(self) -> training.Shared:
        """What all trainings share, computed once."""
        return training.Shared(self.m0, first_block=self.recipe.first_block)

    def run(
        self,
        jobs: Iterable[Job],
        *,
        stop: threading.Event | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> pl.DataFrame:
        """Finish these jobs in their order, and give the judged rows of all that are then finished.

        stop: once set, the run ends at the next optimiser step or part of judging. Of the job that was cut
        short nothing is left: it begins anew next time, or is only judged, if its training had ended.
        progress: called at every step, in the place of bars. Gives the frame that `effects` takes: arm, seed
        and the columns of `JUDGED`. Raises ResultError, before anything is trained, for a result of something
        else, and ExperimentError for two different arms of one name and seed.
        """
        jobs = list(jobs)
        left = self.remaining(jobs)
        try:
            with no_bars(progress is not None):
                for arm, seed in left:
                    self.finish(arm, seed=seed, step=_reporter(arm, seed, stop, progress))
        except _Stopped:
            pass
        return self.judged(jobs)

    def remaining(self, jobs: Iterable[Job]) -> list[Job]:
        """The jobs that have no result yet, each once. Raises as `run` does."""
        found: dict[Path, Job] = {}
        for arm, seed in jobs:
            path = self.path(arm.name, seed)
            other = found.setdefault(path, (arm, seed))[0]
            if (other.name, ledger_hash(other)) != (arm.name, ledger_hash(arm)):
                raise ExperimentError(
                    f"Two arms would have the result file {path.name}: {other} and {arm}. Give them names of "
                    "their own."
                )
        return [job for job in found.values() if not self.finished(job[0], seed=job[1])]

    def judged(self, jobs: Iterable[Job]) -> pl.DataFrame:
        """The judged rows of those of the jobs that are finished, in their order."""
        paths = dict.fromkeys(
            self.path(arm.name, seed) for arm, seed in jobs if self.finished(arm, seed=seed)
        )
        return results(paths)

    def estimate(self, jobs: Iterable[Job], *, measure: bool = True) -> Estimate:
        """How long the jobs that are left will take: each as the median of those that are finished.

        measure: where none is finished, time a few optimiser steps and prompts (what is computed once for all
        arms is then not counted); without it, the seconds are None.
        """
        left, alike = self.remaining(jobs), self._alike()
        untrained = sum(self._untrained(arm, seed) for arm, seed in left)
        trained = [one["train_seconds"] for one in alike if one["train_seconds"] is not None]
        if left and not (trained if untrained else alike):
            if not measure:
                return Estimate(None, 0)
            train, judge = self._timed
        else:
            train = statistics.median(trained or [0.0])
            judge = statistics.median([one["judge_seconds"] for one in alike] or [0.0])
        return Estimate(untrained * train + len(left) * judge, len(trained))

    def finish(self, arm: arms.Arm, *, seed: int, step: Step | None = None) -> None:
        """Train one arm with one seed on all its steps, judge it, write its result file.

        step: called with stage, done and steps, as `Progress` has them; what it raises ends the job. Raises
        ResultError where there is a result file of something else.
        """
        if self.finished(arm, seed=seed):
            return
        told, new, begin = step or _silent, self._untrained(arm, seed), time.monotonic()
        if new:
            told("train", 0, steps(self.pairs, self.recipe, self.epochs))
        model = self.trained(arm, seed=seed, step=step)
        trained = time.monotonic()
        told("judge", 0, PARTS)
        judged = self._judge(model, self.prompts, self.benign_replies(), told)
        seconds = {
            "train_seconds": trained - begin if new else None,  # an earlier run trained it, and was cut short
            "judge_seconds": time.monotonic() - trained,
        }
        write_result(self.path(arm.name, seed), self.about(arm, seed=seed), judged, **seconds)
        told("judge", PARTS, PARTS)

    def finished(self, arm: arms.Arm, *, seed: int) -> bool:
        """Whether the arm has its result file. Raises `ResultError` if that is of something else."""
        path = self.path(arm.name, seed)
        if path.is_file():
            read_result(path, self.about(arm, seed=seed))
            return True
        return False

    def path(self, arm: str, seed: int) -> Path:
        """The result file of an arm and seed: ids, verdicts and numbers, no text, fit to be committed."""
        return self.folder / f"{_UNFIT.sub('-', arm)}-{seed}.json"

    def about(self, arm: arms.Arm, *, seed: int) -> dict[str, Any]:
        """Everything that the result of an arm and seed depends on."""
        return {"arm": arm.name, "seed": seed, "ledger": ledger_hash(arm), **self._common}

    def order(self, arm: arms.Arm, *, seed: int) -> list[tuple[str, bool]]:
        """The pairs that the arm is trained on, step by step."""
        n, size = steps(self.pairs, self.recipe, self.epochs), self.recipe.batch_size
        return arms.order(self.pairs, arm, seed=seed, steps=n, batch_size=size)

    def place(self, arm: arms.Arm, *, seed: int) -> Path:
        """Where the adapter lies; the name holds what it depends on: none is taken for another."""
        key = hashlib.sha256(repr(sorted(self.about(arm, seed=seed).items())).encode()).hexdigest()[:12]
        return self._work / f"{self.path(arm.name, seed).stem}-{key}" / "adapter"

    def trained(self, arm: arms.Arm, *, seed: int, step: Step | None = None) -> Checkpoint:
        """The model of an arm and seed: a copy of M0 with its adapter merged, which is trained if need be.

        step: as in `finish`.
        """
        if arm.name == M0.name:
            return self.m0
        order, place = self.order(arm, seed=seed), self.place(arm, seed=seed)
        on_step = None if step is None else partial(step, "train")
        adapter = training.train_dpo(
            self.shared, self.pairs, place, order=order, recipe=self.recipe, seed=seed, on_step=on_step
        )
        return merged(self.m0, adapter)

    def benign_replies(self) -> pl.DataFrame:
        """M0's own replies to the plain benign prompts: what perplexity is taken on, the same in all arms."""
        plain = self.prompts.filter(~pl.col("harmful"), pl.col("distractor").is_null())
        path = self._work / f"replies-{self.m0.fingerprint}-{digest(plain)}.parquet"
        replies = cached_frame(path, lambda: greedy(self.m0, plain.select(ASKED), self.format_tokens))
        return replies.filter(pl.col("reply").str.strip_chars() != "")

    def _judge(
        self, model: Checkpoint, asked: pl.DataFrame, replies: pl.DataFrame, step: Step
    ) -> pl.DataFrame:
        opening = self.opening_tokens if self.judge is judge_refusals else self.format_tokens
        tokens = (opening, self.format_tokens)
        return judge(model, asked, replies, tokens, lambda done: step("judge", done, PARTS), self.judge)

    def _untrained(self, arm: arms.Arm, seed: int) -> bool:
        return arm.name != M0.name and not self.place(arm, seed=seed).is_dir()

    @property
    def _work(self) -> Path:
        return self.work or self.folder / "work"

    @cached_property
    def _common(self) -> dict[str, Any]:
        """What the results of all jobs depend on."""
        choices: dict[str, tuple[object, object]] = {
            "opening_tokens": (self.opening_tokens, OPENING_TOKENS),
            "format_tokens": (self.format_tokens, FORMAT_TOKENS),
            "judge": (_name(self.judge), _name(judge_refusals)),
        }
        return {
            "m0": self.m0_id or self.m0.fingerprint, "pairs": self.pairs.fingerprint,
            "prompts": digest(self.prompts), "epochs": self.epochs,
            **{f"recipe.{name}": value for name, value in asdict(self.recipe).items()},
            # named only where they are not the usual ones: older files do not have them
            **{name: value for name, (value, usual) in choices.items() if value != usual},
        }  # fmt: skip

    def _alike(self) -> list[dict[str, Any]]:
        """The content of all result files of this experiment, whatever their arm and seed."""
        found = [read_result(path) for path in sorted(self.folder.glob("*-[0-9]*.json"))]
        common = [{k: v for k, v in one["about"].items() if k not in _OWN} for one in found]
        return [one for one, its in zip(found, common, strict=True) if its == self._common]

    @cached_property
    def _timed(self) -> tuple[float, float]:
        """Seconds of a training and of a judging, from a few steps and prompts."""
        n, at, none = steps(self.pairs, self.recipe, self.epochs), list[float](), arms.baseline()
        few = arms.order(self.pairs, none, seed=0, steps=_TIMED, batch_size=self.recipe.batch_size)
        asked = self.prompts.sample(min(16, self.prompts.height), seed=0)
        with tempfile.TemporaryDirectory() as folder, no_bars():
            training.train_dpo(
                self.shared, self.pairs, Path(folder) / "adapter", order=few, recipe=self.recipe,
                on_step=lambda *_: at.append(time.monotonic()),
            )  # fmt: skip
            begin = time.monotonic()
            self._judge(self.m0, asked, _NO_REPLIES, _silent)
        judge = (time.monotonic() - begin) * self.prompts.height / asked.height
        return (at[-1] - at[-_TIMED]) / (_TIMED - 1) * n, judge


def ledger_hash(arm: arms.Arm) -> str:
    """16 hex digits over an arm's edits, so that a result tells which edits it is of."""
    edits = sorted(arm.ledger.select("pair_id", "edit").rows())
    return hashlib.sha256(repr(edits).encode()).hexdigest()[:16]


def steps(pairs: PairSet, recipe: training.Recipe, epochs: int) -> int:
    """Optimiser steps of every arm: those of `epochs` passes over the unedited pairs."""
    return max(1, round(len(pairs) * epochs / recipe.batch_size))


def _name(judge: Judge) -> str:
    return f"{judge.__module__}.{judge.__qualname__}"


def _silent(stage: str, done: int, steps: int) -> None:
    pass


def _reporter(
    arm: arms.Arm, seed: int, stop: threading.Event | None, progress: Callable[[Progress], None] | None
) -> Step:
    def step(stage: str, done: int, steps: int) -> None:
        if progress is not None:
            progress(Progress(arm.name, seed, stage, done, steps))
        if stop is not None and stop.is_set() and done < steps:  # what has just ended is kept
            raise _Stopped

    return step
