"""Every arm and control over all seeds, and the gates; small result files become benchmarks/reproduce.json.

Each finished arm and seed is one file in benchmarks/reproduce/ (ids, verdicts and numbers, no text): commit
them as they come, and any machine goes on from there. `--part 1/2` does every second job, for two processes
or machines; `--tables` only writes the figures of what is finished, and needs no model.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl

from benchmarks import loop
from benchmarks.demo import show
from benchmarks.results import share
from benchmarks.tables import (
    AGAINST,
    arm_figures,
    brief,
    effect_tables,
    gate_figures,
    quality_figures,
    quality_table,
    reduction_figures,
)
from probekit import arms, judges, ranking
from probekit._differences import differences
from probekit.checkpoints import Checkpoint
from probekit.experiments import M0, About, Experiment, ResultError, digest, read_result, results
from probekit.figures import Figure, write_figures
from probekit.organisms import distractor
from probekit.pairs import PairSet
from probekit.store import VectorStore

SEEDS, FEWER = 5, 3  # for the arms of the demo, for all others
MAIN = ("baseline", "filter", "swap", "random filter")
OTHERS = (
    "oracle filter", "plain filter", "bottom filter", "stratified filter",
    "oracle swap", "random swap", "bottom swap", "stratified swap",
    "drop source", "random drop source", "drop generator", "random drop generator",
)  # fmt: skip
JOBS = [
    (name, seed)
    for names, seeds in ((MAIN, SEEDS), (OTHERS, FEWER))
    for seed in range(seeds)
    for name in names
]
RESULTS = loop.ROOT / "benchmarks" / "reproduce"
WORK = loop.ROOT / "runs" / "reproduce"
FIGURES = loop.ROOT / "benchmarks" / "reproduce.json"


def main() -> None:
    """Finish every job of this part, then write the tables."""
    if jobs := asked("make reproduce", __doc__, JOBS):
        organism = distractor.load()
        experiment = loop.packaged(distractor.open_m0(), organism.pairs, folder=RESULTS, work=WORK)
        run(
            jobs,
            experiment=experiment,
            m1=distractor.open_m1(),
            m1_id=loop.weights_id(distractor.DATA / "m1"),
            truth=organism.truth,
            choosing=distractor.choosing_prompts(),
            layer=distractor.LAYER,
        )
    figures(RESULTS, FIGURES, extra=judge_figures())


def asked(
    prog: str, about: str | None, jobs: Sequence[tuple[str, int]], *, apart: str | None = None
) -> list[tuple[str, int]]:
    """The jobs that the command line asks for: those of a part, or none with `--tables`.

    apart: name of jobs that are asked for by a flag of that name, and only then.
    """
    parser = argparse.ArgumentParser(prog=prog, description=about)
    parser.add_argument(
        "--part", default="1/1", help="which jobs: 1/2 and 2/2 share them between two processes"
    )
    parser.add_argument("--tables", action="store_true", help="only write the figures of what is finished")
    parser.set_defaults(apart=False)
    if apart is not None:
        parser.add_argument(f"--{apart}", dest="apart", action="store_true", help=f"only those of {apart}")
    options = parser.parse_args()
    try:
        part = share([job for job in jobs if (job[0] == apart) is options.apart], options.part)
    except ResultError as error:
        parser.error(str(error))
    return [] if options.tables else part


def run(
    jobs: Sequence[tuple[str, int]],
    *,
    experiment: Experiment,
    m1: Checkpoint,
    m1_id: str,
    truth: frozenset[str],
    choosing: pl.DataFrame,
    layer: int,
) -> None:
    """Finish these jobs, (arm, seed) each; arguments as those of the demo.

    Arms are edits by the ranking of `m1`, the same for all seeds but for the draw of random controls. With
    each seed's baseline the tracing is done anew from its own M1, to see how the ranking's quality varies.
    """
    m0, pairs, work = experiment.m0, experiment.pairs, experiment.work or experiment.folder
    store = VectorStore(work / f"vectors-{m0.fingerprint}")

    def make(model: Checkpoint) -> tuple[dict[str, ranking.Ranking], int]:
        surfaced = loop.surface(m0, model, choosing, folder=work / "rollouts")
        return loop.trace(m0, pairs, surfaced, layer=layer, store=store), len(surfaced.contrasts)

    about = {
        "m0": experiment.about(M0, seed=0)["m0"], "pairs": pairs.fingerprint, "prompts": digest(choosing),
        "layer": layer, "k": len(truth),
    }  # fmt: skip
    shipped = experiment.folder / "ranking-shipped.json"
    rankings = loop.kept_rankings(shipped, {"m1": m1_id, **about}, lambda: make(m1), truth=truth)
    by_seed = {seed: all_arms(rankings, pairs, truth, seed=seed) for seed in {seed for _, seed in jobs}}
    left = [job for job in jobs if not experiment.finished(by_seed[job[1]][job[0]], seed=job[1])]
    print(f"{len(jobs) - len(left)} of {len(jobs)} jobs are finished", flush=True)
    experiment.finish(M0, seed=0)
    for done, (name, seed) in enumerate(jobs, start=1):
        arm = by_seed[seed][name]
        if (name, seed) in left:
            print(f"job {done} of {len(jobs)}: {name}, seed {seed}", flush=True)
            experiment.finish(arm, seed=seed)
        if name == "baseline":
            trace_again(experiment, arm, seed, about, make, truth)


def trace_again(
    experiment: Experiment,
    arm: arms.Arm,
    seed: int,
    about: About,
    make: Callable[[Checkpoint], tuple[dict[str, ranking.Ranking], int]],
    truth: frozenset[str],
) -> None:
    """The whole tracing with the M1 that the baseline of this seed has given, kept as ranking-<seed>.json.

    An M1 in which the habit does not show is said so, has no file, and is missing from the figures' n.
    """
    its = {f"m1.{name}": value for name, value in experiment.about(arm, seed=seed).items()}
    path = experiment.folder / f"ranking-{seed}.json"
    try:
        again = loop.kept_rankings(
            path,
            {**about, **its},
            lambda: make(experiment.trained(arm, seed=seed)),
            truth=truth,
        )
    except loop.LoopError as error:
        print(f"no ranking with the M1 of seed {seed}: {error}", flush=True)
    else:
        show(f"Ranking with the M1 of seed {seed}", quality_table(again, truth))


def all_arms(
    rankings: dict[str, ranking.Ranking], pairs: PairSet, truth: frozenset[str], *, seed: int
) -> dict[str, arms.Arm]:
    """Edits, their matched controls, and the oracle arms, by name."""
    control, k = rankings["control"], len(truth)
    groups: tuple[ranking.Group, ...] = ("source", "chosen_model")
    worst = {by: ranking.enrichment(control, pairs, k=k, by=by)["group"][0] for by in groups}
    edits = [
        arms.filter_top(control, k),
        arms.swap_top(control, k),
        arms.drop_source(pairs, worst["source"], name="drop source"),
        arms.drop_generator(pairs, worst["chosen_model"], name="drop generator"),
    ]
    matched = [one for arm in edits for one in arms.controls(arm, control, pairs, seed=seed)]
    contaminated = sorted(truth)
    made = [
        arms.baseline(),
        *edits,
        *matched,
        arms.filter_ids(contaminated, "oracle filter", "contaminated"),
        arms.swap_ids(contaminated, "oracle swap", "contaminated"),
        arms.filter_top(rankings["plain"], k, name="plain filter"),
    ]
    by_name = {arm.name: arm for arm in made}
    return {name: by_name[name] for name in (*MAIN, *OTHERS)}


def figures(
    folder: Path,
    out: Path,
    *,
    jobs: Sequence[tuple[str, int]] = JOBS,
    command: str = "make reproduce",
    prefix: str = "",
    extra: Sequence[Figure] = (),
) -> None:
    """Print the tables and write the figures, of the result files of `jobs` that are there so far.

    prefix: what the name of each figure begins with, those of `extra` included. Raises `ResultError` if the
    files are not all of one M0, pair set, recipe and set of prompts.
    """
    names = [f"{arm.replace(' ', '-')}-{seed}.json" for arm, seed in [("M0", 0), *jobs]]
    paths = [folder / name for name in names if (folder / name).is_file()]
    seeds = sorted({seed for _, seed in jobs})
    ranked = [path for seed in seeds if (path := folder / f"ranking-{seed}.json").is_file()]
    print(f"{sum(path.name != 'M0-0.json' for path in paths)} of {len(jobs)} jobs are finished")
    check_alike(paths)
    if not {folder / f"{arm.replace(' ', '-')}-0.json" for arm in ("baseline", AGAINST)} <= set(paths):
        print(f"too early for tables: the first seed of baseline and {AGAINST} has to be finished")
        return
    judged = results(paths)
    tables = effect_tables(judged)
    for heading, table in tables.items():
        show(heading, brief(table))
    quality = [pl.DataFrame(read_result(path)["quality"]) for path in ranked]
    found = [
        *quality_figures(quality),
        *gate_figures(judged),
        *reduction_figures(judged),
        *seconds_figures(paths, ranked),
        *extra,
        *arm_figures(tables),
    ]
    named = [replace(figure, name=prefix + figure.name) for figure in found]
    write_figures(out, named, command=command)
    print(f"figures: {out}")


def check_alike(paths: Sequence[Path]) -> None:
    """Raise `ResultError` unless these results differ in arm, ledger and seed only."""
    own = ("arm", "seed", "ledger")
    first: dict[str, object] = {}
    for path in paths:
        about = {name: value for name, value in read_result(path)["about"].items() if name not in own}
        if differs := differences(first or about, about):
            raise ResultError(
                f"{paths[0]} and {path} are not of one experiment: {'; '.join(differs)}. "
                "Remove those that are out of date."
            )
        first = first or about


def seconds_figures(paths: Sequence[Path], ranked: Sequence[Path]) -> list[Figure]:
    """Wall clock of the first ranking (mean over seeds) and of all that is finished."""
    rankings = [float(read_result(path)["seconds"]) for path in ranked]
    contents = [read_result(path) for path in paths]
    total = sum(one[name] or 0.0 for one in contents for name in ("train_seconds", "judge_seconds"))
    found = [Figure("seconds.total", total + sum(rankings), n=len(paths), unit="s")]
    if rankings:
        mean, low, high = sum(rankings) / len(rankings), min(rankings), max(rankings)
        first = Figure("seconds.first_ranking", mean, low=low, high=high, n=len(rankings), unit="s")
        found.insert(0, first)
    return found


def judge_figures() -> list[Figure]:
    """The judge against the human labels in the pyrit wheel."""
    found = judges.judge_accuracy()
    return [Figure("judge.balanced_accuracy", found["balanced_accuracy"], n=int(found["n"]))]


if __name__ == "__main__":
    main()
