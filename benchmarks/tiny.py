"""The gates of the tiny organism over ten seeds, and what its loop takes; writes benchmarks/tiny.json.

Each finished arm and seed is a result file in runs/tiny/: an interrupted run goes on. `--part 1/2` does every
second job; `--tables` only writes the figures of what is finished.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks import loop, reproduce
from probekit.experiments import Experiment, read_result
from probekit.figures import Figure
from probekit.organisms import tiny

SEEDS = 10
LOOP = ("baseline", "filter", "random filter")  # the arms that a walk through the loop trains
GATED = ("baseline", "oracle filter")  # the arms that have gates: first, for all seeds
ARMS = (GATED, tuple(name for name in LOOP if name not in GATED))
JOBS = [(name, seed) for names in ARMS for seed in range(SEEDS) for name in names]
WORK = loop.ROOT / "runs" / "tiny"
RESULTS = WORK / "results"
FIGURES = loop.ROOT / "benchmarks" / "tiny.json"


def main() -> None:
    """Finish every job of this part, then write the figures."""
    if jobs := reproduce.asked("python -m benchmarks.tiny", __doc__, JOBS):
        reproduce.run(
            jobs,
            experiment=experiment(RESULTS, WORK),
            m1=tiny.open_m1(),
            m1_id=loop.weights_id(tiny.DATA / "m1"),
            truth=tiny.load().truth,
            choosing=tiny.choosing_prompts(),
            layer=tiny.LAYER,
        )
    reproduce.figures(
        RESULTS,
        FIGURES,
        jobs=JOBS,
        command="python -m benchmarks.tiny",
        prefix="tiny.",
        extra=seconds(RESULTS, JOBS),
    )


def experiment(folder: Path, work: Path) -> Experiment:
    """The experiment on the tiny organism, judged on its report prompts."""
    return Experiment(
        tiny.open_m0(),
        tiny.load().pairs,
        prompts=tiny.evaluation_prompts(),
        folder=folder,
        recipe=tiny.DPO,
        epochs=tiny.EPOCHS,
        work=work,
        m0_id=loop.weights_id(tiny.DATA / "m0"),
    )


def seconds(folder: Path, jobs: Sequence[tuple[str, int]]) -> list[Figure]:
    """Seconds of a retrain, and of the loop of a seed: surface and trace, then train and judge three arms."""
    contents = {}
    for arm, seed in jobs:
        path = folder / f"{arm.replace(' ', '-')}-{seed}.json"
        if path.is_file():
            contents[arm, seed] = read_result(path)
    trained = [one["train_seconds"] for one in contents.values() if one["train_seconds"] is not None]
    first = folder / "ranking-shipped.json"
    loops = []
    for seed in sorted({seed for _, seed in jobs}):
        of_seed = [contents.get((arm, seed)) for arm in LOOP]
        if first.is_file() and all(one and one["train_seconds"] is not None for one in of_seed):
            arms = sum(one["train_seconds"] + one["judge_seconds"] for one in of_seed if one)
            loops.append(read_result(first)["seconds"] + arms)
    found = []
    for name, values, target in (("retrain", trained, "<= 15"), ("loop", loops, "<= 120")):
        if values:
            mean, low, high = sum(values) / len(values), min(values), max(values)
            ends = {"low": low, "high": high, "n": len(values)}
            found.append(Figure(f"{name}_seconds", mean, **ends, unit="s", target=target))
    return found


if __name__ == "__main__":
    main()
