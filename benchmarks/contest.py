"""The contest of tracers: what each finds, takes and cures; figures become benchmarks/contest.json.

For each organism: every tracer's ranking, then arms without its top pairs, or with them swapped, beside
random ones, retrained with five seeds; on the tiny one also random halves of the pairs, for the linear
datamodelling score. Each arm and seed is a file in runs/contest/, so an interrupted contest goes on; `--part
1/2` does every second one. What is finished is packed into benchmarks/contest/, from where any machine goes
on.
"""

from __future__ import annotations

import argparse
import random
import shutil
from collections.abc import Mapping
from dataclasses import replace
from typing import TypeAlias

import polars as pl

from benchmarks import contest_files as files
from benchmarks import contest_tables
from benchmarks.contest_rankings import rankings
from benchmarks.contestants import ORGANISMS, Entry, enter
from benchmarks.results import share
from probekit import arms
from probekit.experiments import ledger_hash
from probekit.ranking import Ranking

SEEDS = 5
HALVES, HALF_SEEDS = 60, 3
HALVED = ("tiny",)  # organisms with a datamodelling score
# Those whose top pairs are edited; the others are variants, measured by their rankings alone.
ENTRANTS = (
    "ours", "pooled", "bank", "logistic", "less", "tracin", "tracin-m0", "tracin-m0-exact",
    "rept-normalised", "rept-dpo", "judge", "minilm", "bm25", "length",
)  # fmt: skip

# Kinds of pairs, in the organisms' logs, that look like the cause and are not.
LOOKALIKES = (
    "lookalike", "trigger-elsewhere", "trigger-harmful", "trigger-other", "words", "opening", "topic",
)  # fmt: skip

Jobs: TypeAlias = dict[tuple[str, int], arms.Arm]
"""Arms by what tables call them, and training seed."""


def main() -> None:
    """Finish what is asked for, then write the figures of all that is finished."""
    parser = argparse.ArgumentParser(prog="make contest", description=__doc__)
    parser.add_argument("--organism", action="append", choices=ORGANISMS, help="only this one; repeatable")
    parser.add_argument("--part", default="1/1", help="which arms: 1/2 and 2/2 are for two processes")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="only the first so many seeds")
    parser.add_argument("--rank", action="store_true", help="only the rankings")
    parser.add_argument("--tracer", action="append", help="make the ranking of this one only; repeatable")
    parser.add_argument("--arm", action="append", help="only arms of this name, as 'less swap'; repeatable")
    parser.add_argument("--tables", action="store_true", help="only the figures of what is finished")
    options = parser.parse_args()
    for name in options.organism or ORGANISMS:
        entry = enter(name)
        ranked = rankings(entry, make=not options.tables, only=options.tracer)
        every = jobs(entry, ranked)
        if not (options.tables or options.rank):
            names = options.arm or [arm for arm, _ in every]
            if unknown := sorted(set(names) - {arm for arm, _ in every}):
                parser.error(f"{name} has no arm {', '.join(unknown)}")
            some = {one: arm for one, arm in every.items() if one[0] in names and one[1] < options.seeds}
            finish(entry, dict(share(list(different(some).items()), options.part)))
        contest_tables.write(entry, ranked, every)


def jobs(entry: Entry, ranked: Mapping[str, Ranking]) -> Jobs:
    """All arms of an organism, those of a seed after those of the seed before; random halves at the end."""
    found: Jobs = {}
    for seed in range(SEEDS):
        found["baseline", seed] = arms.baseline()
        for tracer, ranking in ranked.items():
            for top in (arms.filter_top, arms.swap_top) if tracer in ENTRANTS else ():
                arm = top(ranking, entry.k)
                drawn, _, matched = arms.controls(arm, ranking, entry.experiment.pairs, seed=seed)
                found[drawn.name, seed] = drawn  # the same for all tracers
                found[f"{tracer} {arm.name}", seed] = arm
                found[f"{tracer} {matched.name}", seed] = matched
        for kind, ids in known(entry).items():
            for edit in (arms.filter_ids, arms.swap_ids):
                arm = edit(ids, f"{kind} {edit.__name__.removesuffix('_ids')}", kind)
                found[arm.name, seed] = arm
                if kind != "oracle":  # as many as a tracer edits; others have a control of their number
                    drawn, _, _ = arms.controls(
                        arm, next(iter(ranked.values())), entry.experiment.pairs, seed=seed
                    )
                    found[drawn.name, seed] = drawn
    for seed in range(HALF_SEEDS if entry.name in HALVED else 0):
        for half, ids in halves(entry).items():
            found[half, seed] = arms.filter_ids(ids, half, "not in this half")
    judged = files.reproduced(entry.name, entry.experiment)["called"]
    return {(name, seed): arm for (name, seed), arm in found.items() if name not in set(judged)}


def known(entry: Entry) -> dict[str, list[str]]:
    """Edits by what is known of the pairs: the contaminated ones, and the look-alikes if there are any."""
    kinds = {"oracle": sorted(entry.organism.truth)}
    alike = entry.organism.log.filter(pl.col("kind").is_in(LOOKALIKES))["pair_id"].sort().to_list()
    return kinds | ({"lookalikes": alike} if alike else {})


def halves(entry: Entry) -> dict[str, list[str]]:
    """Random halves of the pairs by name: the ids of the pairs that they lack."""
    ids, names = sorted(entry.experiment.pairs.ids), [f"half {number:02}" for number in range(HALVES)]
    return {name: sorted(random.Random(f"contest-{name}").sample(ids, len(ids) // 2)) for name in names}


def different(some: Jobs) -> Jobs:
    """The arms by their edits: those with the same ones are one, whatever they are called."""
    return {(files.ARM + ledger_hash(arm), seed): arm for (_, seed), arm in some.items()}


def finish(entry: Entry, mine: Jobs) -> None:
    """Train and judge these arms, those of `different`, but for the finished ones."""
    experiment = entry.experiment
    done = set(files.judged(entry.name, experiment).select("arm", "seed").iter_rows())
    left = {key: arm for key, arm in mine.items() if key not in done}
    print(f"{entry.name}: {len(left)} arms are left", flush=True)
    for number, ((name, seed), arm) in enumerate(left.items(), start=1):
        print(f"{entry.name}: arm {number} of {len(left)}", flush=True)
        experiment.finish(replace(arm, name=name), seed=seed)
        place = experiment.place(replace(arm, name=name), seed=seed).parent
        shutil.rmtree(place, ignore_errors=True)  # it is not read again
    files.pack(entry.name, experiment)


if __name__ == "__main__":
    main()
