"""What the retrain panel asks for, as jobs, and how far they are and what they gave, as frames."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import polars as pl

from probekit import arms, effects
from probekit.arms import Arm
from probekit.experiments import M0, Experiment, Job, Progress, ledger_hash, read_result
from probekit.ranking import Ranking
from probekit.widgets._errors import WidgetError

EDITS = {
    "filter": "filter the top K",
    "swap": "swap the top K",
    "filter marked": "filter the marked pairs",
    "swap marked": "swap the marked pairs",
}
CONTROLS = {
    "random": "random pairs",
    "bottom": "lowest-ranked pairs",
    "stratified": "same sources and lengths",
}
BESIDE = {"baseline": "all pairs (baseline)", "M0": "M0, not trained"}
OBEDIENCE = "format_obedience"
Seconds: TypeAlias = tuple[float | None, float]  # of training, of judging
JOB_COLUMNS = {
    "arm": pl.String,
    "kind": pl.String,
    "seed": pl.Int64,
    "edited": pl.Int64,  # pairs dropped or swapped
    "state": pl.String,  # "waiting", "train", "judge" (both only while a run goes on) or "finished"
    "done": pl.Int64,  # of that state, and
    "steps": pl.Int64,  # what it needs
    "train_seconds": pl.Float64,  # of what is finished; null where an earlier run had trained it
    "judge_seconds": pl.Float64,
}


@dataclass(frozen=True)
class Plan:
    """Which arms: edits, the matched controls of each, what stands beside them; each with so many seeds."""

    k: int
    edits: tuple[str, ...]
    controls: tuple[str, ...]
    beside: tuple[str, ...]
    seeds: int

    def check(self, offered: Mapping[str, Collection[str]], *, pairs: int, seeds: int) -> None:
        """Raise WidgetError unless all that is asked for is offered."""
        for what, names in offered.items():
            if unknown := [name for name in getattr(self, what) if name not in names]:
                raise WidgetError(
                    f"{what} holds {unknown[0]!r}; what is offered here is {', '.join(names) or 'nothing'}."
                )
        for name, value, most in (("k", self.k, pairs), ("seeds", self.seeds, seeds)):
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise WidgetError(f"{name} is {value!r}; give a whole number from 1 to {most}.")


def planned(
    plan: Plan, experiment: Experiment, ranking: Ranking, *, marked: Sequence[str], others: Sequence[Arm]
) -> list[Job]:
    """The jobs of a plan, seed by seed; random controls are drawn anew with each seed.

    Raises WidgetError if marked pairs are asked for and none is marked, ArmError for an edit or control that
    cannot be made.
    """
    if not marked and any(name.endswith("marked") for name in plan.edits):
        raise WidgetError("No pair is marked in the browser: mark some, or leave the marked pairs out.")
    edits = [_edit(name, plan.k, ranking, marked) for name in plan.edits]
    own = {arm.name: arm for arm in others}
    jobs: list[Job] = [(M0, 0)] if "M0" in plan.beside else []
    for seed in range(plan.seeds):
        jobs += [(arms.baseline(), seed)] if "baseline" in plan.beside else []
        for edit in edits:
            matched = arms.controls(edit, ranking, experiment.pairs, seed=seed) if plan.controls else []
            jobs += [(edit, seed), *((one, seed) for one in matched if one.kind in plan.controls)]
        jobs += [(own[name], seed) for name in plan.beside if name in own]
    return jobs


def _edit(name: str, k: int, ranking: Ranking, marked: Sequence[str]) -> Arm:
    """An edit, named by what it edits: results of another K or of other marks are those of another arm."""
    if name in ("filter", "swap"):
        make = arms.filter_top if name == "filter" else arms.swap_top
        return make(ranking, k, name=f"{name} {k}")
    by_ids: Callable[[Sequence[str], str, str], Arm]
    by_ids = arms.filter_ids if name == "filter marked" else arms.swap_ids
    which = ledger_hash(by_ids(marked, name, name))[:6]
    return by_ids(marked, f"{name} {len(marked)} ({which})", "marked by hand")


def took(experiment: Experiment, arm: str, seed: int) -> Seconds:
    """Seconds of training and of judging of a finished job."""
    content = read_result(experiment.path(arm, seed))
    return content["train_seconds"], content["judge_seconds"]


def job_table(
    jobs: Sequence[Job], finished: Mapping[tuple[str, int], Seconds], now: Progress | None
) -> pl.DataFrame:
    """One row a job, with the columns of `JOB_COLUMNS`. now: where the job is that is being done."""
    rows = []
    for arm, seed in jobs:
        at: tuple[object, ...] = ("waiting", 0, 0, None, None)
        if (arm.name, seed) in finished:
            at = ("finished", 1, 1, *finished[arm.name, seed])
        elif now is not None and (now.arm, now.seed) == (arm.name, seed):
            at = (now.stage, now.done, now.steps, None, None)
        rows.append((arm.name, arm.kind, seed, len(arm), *at))
    return pl.DataFrame(rows, schema=JOB_COLUMNS, orient="row")


def metrics(prompts: pl.DataFrame) -> list[str]:
    """Names of what can be measured on these prompts, for `measured`."""
    formatted = pl.col("distractor").is_not_null()
    conditions = {None: pl.lit(True), "plain": ~formatted, "distractor": formatted, "triggered": formatted}
    found = [
        name
        for name, one in effects.METRICS.items()
        if prompts.filter(pl.col("harmful") == one.harmful, conditions[one.condition]).height
    ]
    return found + ([OBEDIENCE] if prompts.filter(~pl.col("harmful"), formatted).height else [])


def measured(judged: pl.DataFrame, metric: str) -> pl.DataFrame:
    """The table of `effects` for this metric, against the first random arm that is there.

    Raises EffectError where the arms that are there give no table yet.
    """
    names = judged["arm"].unique(maintain_order=True).to_list()
    against = next((name for name in names if name.startswith("random ")), None)
    if metric == OBEDIENCE:
        return effects.capability(judged, against=against)
    return effects.effect_table(judged, metric=metric, against=against)
