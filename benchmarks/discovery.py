"""Discovery against planted truth: four habits at once on a tiny model, and clean pairs, over seeds.

Each job (a share of contaminated pairs and a seed) trains an M1, samples the pool and clusters: with what was
asked, without it, and with clean pairs that M1 was not trained on. It leaves a small result in
benchmarks/discovery/, so an interrupted run goes on; `--part 1/2` does every second one, `--smollm2` only the
one on SmolLM2, and `--tables` writes the figures of what is finished, to benchmarks/discovery.json.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, get_args

import polars as pl

from benchmarks import loop, reproduce
from probekit import arms, clustering, judges, rollouts, vectors
from probekit.checkpoints import Checkpoint
from probekit.experiments import About, Experiment, digest, read_result, write_result
from probekit.figures import Figure, write_figures
from probekit.organisms import distractor, habits, habits_smollm2
from probekit.organisms.distractor import Organism
from probekit.pairs import PairSet
from probekit.prompts import Split
from probekit.widgets import ClusterMap

SEEDS = range(20, 30)  # words and recipe of the organism were chosen on seeds 0 to 2, and on the other pool
SPLIT: Split = "report"
SHARES = (0.05, 0.1, 0.02, 0.01)
CLEAN = "clean"
SAFETY = "safety"  # among the other pairs are many that push against compliance
SMOLLM2 = "smollm2"
# Of |S|, where it is not that of `discover`: chosen on the other pool, where 0.4 leaves out too much.
THRESHOLD = {SMOLLM2: 0.1}
FEWER = 5  # seeds of what is beside the first share and the clean pairs
TOKENS = 40  # of a reply; the longest normal one has about 25
RESULTS = loop.ROOT / "benchmarks" / "discovery"
PICTURE = loop.ROOT / "notebooks" / "pictures" / "habits-smollm2.svg"
FIGURES = loop.ROOT / "benchmarks" / "discovery.json"
WORK = loop.ROOT / "runs" / "discovery"
MATCH = 0.5  # F1 from which a reported habit counts as one of the planted ones
Job = tuple[str, int]
"""The share as text, "clean", "safety" or "smollm2", and the seed of pairs and training."""
Read: TypeAlias = tuple[vectors.VectorSet, vectors.VectorSet]
"""Vectors, and those of the prompts."""


def main() -> None:
    """Finish the jobs of this part, then write the figures."""
    every = jobs()
    for job in reproduce.asked("python -m benchmarks.discovery", __doc__, every, apart=SMOLLM2):
        if not place(job).is_file():
            print(f"{job[0]}, seed {job[1]}", flush=True)
            run(job)
    write_figures(FIGURES, figures(every), command="python -m benchmarks.discovery")


def jobs() -> list[Job]:
    """The first share and the clean pairs with all seeds, then the others with fewer."""
    first = [(name, seed) for seed in SEEDS for name in (str(SHARES[0]), CLEAN)]
    others = (SAFETY, *map(str, SHARES[1:]))
    return first + [(name, seed) for name in others for seed in SEEDS[:FEWER]] + [(SMOLLM2, SEEDS[0])]


def place(job: Job) -> Path:
    """The result file of a job."""
    return RESULTS / f"{job[0]}-{job[1]}.json"


def mix_of(job: Job) -> habits.Mix:
    """The mix of a job."""
    name, seed = job
    if name in (CLEAN, SAFETY):
        variety: habits.Variety = "safety" if name == SAFETY else "benign"
        return habits.Mix(share=SHARES[0], clean=name == CLEAN, variety=variety, seed=seed)
    return habits.Mix(share=float(name), seed=seed)


def home_of(job: Job) -> Any:
    """The module that makes the organism."""
    return habits_smollm2 if job[0] == SMOLLM2 else habits


def about(job: Job) -> About:
    """What a result is of."""
    home = home_of(job)
    m0 = distractor.DATA if job[0] == SMOLLM2 else habits.DATA
    return {
        **{f"recipe.{name}": value for name, value in dataclasses.asdict(home.DPO).items()},
        "mix": THRESHOLD if job[0] == SMOLLM2 else dataclasses.asdict(mix_of(job)), "seed": job[1],
        "epochs": home.EPOCHS, "layer": home.LAYER, "asked": digest(home.pool(split=SPLIT)),
        "m0": loop.weights_id(m0 / "m0"),
    }  # fmt: skip


def run(job: Job) -> None:
    """Train, sample, cluster, and write what was found beside the truth."""
    begin, home = time.perf_counter(), home_of(job)
    organism = home.build(seed=job[1]) if job[0] == SMOLLM2 else habits.build(mix_of(job))
    m0, pool, work = home.open_m0(), home.pool(split=SPLIT), WORK / f"{job[0]}-{job[1]}"
    experiment = Experiment(
        m0, organism.pairs, prompts=pool, folder=work, work=work, recipe=home.DPO, epochs=home.EPOCHS
    )
    m1 = experiment.trained(arms.baseline(), seed=job[1])
    replies = [
        rollouts.sample(one, pool, temperature=0, max_new_tokens=TOKENS, cache=folder)
        for one, folder in ((m0, WORK / "m0"), (m1, None))
    ]
    both = [one.sort("prompt_id", "user")["reply"].to_list() for one in replies]
    contrasts = None if both[0] == both[1] else judges.pool_contrasts(*replies).contrasts
    changed = None if contrasts is None else read(m0, contrasts, home.LAYER)
    taught = read(m0, organism.pairs, home.LAYER)
    found = [discovered(changed, taught, job, weighed=one) for one in (True, False)]
    table, without = (beside(one, organism) for one in found)
    if job[0] == SMOLLM2 and found[0] is not None and contrasts is not None:
        PICTURE.write_text(ClusterMap(found[0], contrasts, organism.pairs).svg() + "\n", encoding="utf-8")
    foreign = 0
    if job[0] == str(SHARES[0]):
        clean = habits.build(dataclasses.replace(mix_of(job), clean=True))
        other = discovered(changed, read(m0, clean.pairs, home.LAYER), job, weighed=True)
        foreign = 0 if other is None else len(other)
    shown = habits.judge(replies[1]).group_by("source", "habit").len().sort("source", "habit")
    write_result(
        place(job),
        about(job),
        table.sort("pair_id"),
        seconds=time.perf_counter() - begin,
        contrasts=0 if contrasts is None else contrasts.height,
        fires=shown.rows(),
        without=score(without),
        foreign=foreign,
        **score(table),
    )
    shutil.rmtree(work, ignore_errors=True)


def read(m0: Checkpoint, texts: PairSet | pl.DataFrame, layer: int) -> Read:
    """The vectors of pairs or contrasts, and of their prompts."""
    if isinstance(texts, PairSet):
        differences = vectors.pair_vectors(m0, texts, layers=[layer])
    else:
        differences = vectors.behaviour_vectors(m0, texts, layers=[layer])
    return differences, vectors.prompt_vectors(m0, texts, layers=[layer])


def discovered(changed: Read | None, taught: Read, job: Job, *, weighed: bool) -> clustering.Clusters | None:
    """What discovery finds, None where training changed no reply; weighed: by what was asked."""
    if changed is None:
        return None
    (behaviour, asked), (pairs, of_pairs) = changed, taught
    return clustering.discover(
        behaviour,
        pairs,
        asked=(asked, of_pairs) if weighed else None,
        threshold=THRESHOLD.get(job[0], 0.4),
        layer=home_of(job).LAYER,
        seed=job[1],
    )


def beside(found: clustering.Clusters | None, organism: Organism) -> pl.DataFrame:
    """The pairs with their kind and the habit that each is found behind."""
    kinds = organism.log.select("pair_id", "kind")
    if found is None:
        return kinds.with_columns(habit=pl.lit(None, dtype=pl.Int64))
    return kinds.join(found.pairs.select("pair_id", "habit"), on="pair_id")


def score(pairs: pl.DataFrame) -> dict[str, Any]:
    """How the habits that were found match the planted ones, on the pairs.

    pairs: `kind`, a habit's name or another, and `habit`, the number found or null. f1: of each planted habit
    with the reported one that fits it best. spurious: reported ones that fit none with an F1 of `MATCH`.
    """
    from sklearn.metrics import adjusted_rand_score, f1_score

    planted = [one for one in get_args(habits.Habit) if (pairs["kind"] == one).any()]
    reported = pairs["habit"].drop_nulls().unique().sort().to_list()
    fits = {
        (one, number): f1_score(
            (pairs["kind"] == one).to_list(), (pairs["habit"] == number).fill_null(False).to_list()
        )
        for one in planted
        for number in reported
    }
    best = {one: max([fits[one, number] for number in reported], default=0.0) for one in planted}
    fitting = {number for (_, number), value in fits.items() if value >= MATCH}
    names = pl.when(pl.col("kind").is_in(planted)).then(pl.col("kind")).otherwise(pl.lit("none"))
    rand = adjusted_rand_score(
        pairs.select(names).to_series().to_list(), pairs["habit"].fill_null(0).to_list()
    )
    return {"f1": best, "spurious": len(reported) - len(fitting), "reported": len(reported), "rand": rand}


def figures(every: Sequence[Job]) -> list[Figure]:
    """What the finished jobs give."""
    done = {job: read_result(place(job), about(job)) for job in every if place(job).is_file()}
    found = []
    called = {str(one): f"share.{100 * one:g}" for one in SHARES} | {str(SHARES[0]): "planted"}
    for name, prefix in (called | {SAFETY: SAFETY, SMOLLM2: SMOLLM2}).items():
        if some := [content for (of, _), content in done.items() if of == name]:
            found += of_share(some, prefix)
            if prefix == "planted":
                found += of_share([content["without"] for content in some], "planted_without_prompts")
                alarms = sum(content["foreign"] > 0 for content in some) / len(some)
                found.append(Figure("foreign.false_alarm_rate", alarms, n=len(some)))
    if clean := [content for (of, _), content in done.items() if of == CLEAN]:
        false = sum(content["reported"] > 0 for content in clean) / len(clean)
        found.append(Figure("clean.false_alarm_rate", false, n=len(clean), target="<= 0.1"))
    return found


def of_share(some: Sequence[Mapping[str, Any]], prefix: str) -> list[Figure]:
    """The figures of one share of contamination: means over seeds, and the least F1 of any habit and seed."""
    scores = [value for content in some for value in content["f1"].values()]
    gated = prefix == "planted"
    rows = [
        ("f1_min", min(scores), ">= 0.8"),
        ("f1_mean", sum(scores) / len(scores), None),
        ("adjusted_rand", sum(content["rand"] for content in some) / len(some), ">= 0.7"),
        ("spurious_per_run", sum(content["spurious"] for content in some) / len(some), "<= 1"),
    ]
    found = [
        Figure(f"{prefix}.{name}", value, n=len(some), target=target if gated else None)
        for name, value, target in rows
    ]
    for habit in get_args(habits.Habit):
        values = [content["f1"][habit] for content in some]
        ends = {"low": min(values), "high": max(values), "n": len(values)}
        found.append(Figure(f"{prefix}.f1.{habit}", sum(values) / len(values), **ends))
    return found


if __name__ == "__main__":
    main()
