"""The bridge from tags to tracers: distractor compliance, with tags for the sources of its preference pairs.

For each seed the tiny organism's M1 learns, from the chosen replies of its own pairs, which source each is
of. Then it is asked where its bad replies come from, and is told to refuse the contaminated source: one more
arm in the effects table beside filter and swap, without retraining. A finished seed leaves a small result in
benchmarks/provenance/; `benchmarks.provenance` puts the figures beside its own.
"""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import polars as pl

from benchmarks import contest, contest_tables, contestants, loop, reproduce
from benchmarks.contest_rankings import rankings
from benchmarks.contestants import Entry
from probekit import arms, effects, provenance
from probekit.experiments import About, read_result, write_result
from probekit.figures import Figure
from probekit.judges import judge_refusals
from probekit.training import Recipe

SEEDS = 5
RECIPE, EPOCHS = Recipe(first_block=0, learning_rate=3e-3, batch_size=16), 4
SUSPECT = "if-checked"  # the contaminated source
TAGGED, BLOCKED = "tags", f"tags, {SUSPECT} refused"
BESIDE = ("baseline", "random filter", "ours filter", "ours swap", "oracle filter")
METRICS = ("compliance_distractor", "over_refusal_distractor", "over_refusal_plain")
TOKENS = 32
NO_TAG = "no_tag"
RESULTS = loop.ROOT / "benchmarks" / "provenance"
WORK = loop.ROOT / "runs" / "provenance"
JUDGED = ("arm", "seed", "prompt_id", "harmful", "distractor", "sample", "verdict")


def main() -> None:
    """Finish the seeds of this part."""
    every = [("bridge", seed) for seed in range(SEEDS)]
    left = reproduce.asked("python -m benchmarks.bridge", __doc__, every)
    entry = contestants.enter("tiny")
    for _, seed in left:
        if not place(seed).is_file():
            print(f"bridge, seed {seed}", flush=True)
            run(entry, seed)


def place(seed: int) -> Path:
    """The result file of a seed."""
    return RESULTS / f"bridge-{seed}.json"


def about(entry: Entry, seed: int) -> About:
    """What a result is of."""
    own = {**{f"tags.{name}": value for name, value in asdict(RECIPE).items()}, "tags.epochs": EPOCHS}
    return {**entry.experiment.about(arms.baseline(), seed=seed), **own}


def run(entry: Entry, seed: int) -> None:
    """Train M1, teach it the tags, ask, block, and write what came of it."""
    experiment = entry.experiment
    pairs, asked, work = experiment.pairs, experiment.prompts, WORK / f"bridge-{seed}"
    frame = pairs.frame.select(
        "source", "chosen", user=pl.col("prompt").list.last().struct.field("content")
    ).rename({"chosen": "reply"})
    m1 = experiment.trained(arms.baseline(), seed=seed)
    tagged = provenance.add_tags(m1, frame["source"].unique().sort().to_list(), seed=seed)
    rows = provenance.tag_rows(frame, seed=seed)
    model = provenance.train_tags(tagged, rows, work / "tags", recipe=RECIPE, epochs=EPOCHS, seed=seed)
    plain = provenance.ask(model, asked, max_new_tokens=TOKENS)
    traced = provenance.trace(model, asked, max_new_tokens=TOKENS)
    blocked = provenance.refuse(model, asked, SUSPECT, max_new_tokens=TOKENS)
    judged = pl.concat(
        judge_refusals(replies.with_columns(arm=pl.lit(arm), seed=pl.lit(seed), sample=pl.lit(0))).select(
            JUDGED
        )
        for arm, replies in ((TAGGED, plain), (BLOCKED, blocked))
    )
    formed, judged_traced = pl.col("distractor").is_not_null(), judge_refusals(traced)
    groups = {
        "bad": judged_traced.filter("harmful", formed, pl.col("verdict") == "complied"),
        "benign_formatted": judged_traced.filter(~pl.col("harmful"), formed),
        "benign_plain": judged_traced.filter(~pl.col("harmful"), ~formed),
    }
    write_result(
        place(seed),
        about(entry, seed),
        judged,
        said={name: Counter(one or NO_TAG for one in some["tag"]) for name, some in groups.items()},
    )
    shutil.rmtree(work, ignore_errors=True)


def figures() -> list[Figure]:
    """The arms with refusal beside those of the contest, and what the bad replies' tags say."""
    entry = contestants.enter("tiny")
    done = [read_result(place(seed), about(entry, seed)) for seed in range(SEEDS) if place(seed).is_file()]
    if len(done) < SEEDS:
        return []
    ranked = rankings(entry, make=False)
    judged = contest_tables.named(entry, contest.jobs(entry, ranked)).filter(pl.col("arm").is_in(BESIDE))
    own = pl.concat(
        pl.DataFrame(one["rows"], schema=dict(judged.select(JUDGED).schema), orient="row") for one in done
    )
    rows = pl.concat([judged.select(JUDGED), own])
    found = []
    for metric in METRICS:
        table = effects.effect_table(rows, metric=metric, against="random filter")
        for row in table.iter_rows(named=True):
            name = row["arm"].replace(", ", "_").replace(" ", "_")
            ends = {"low": row["low"], "high": row["high"], "n": row["seeds"]}
            found.append(Figure(f"arms.{metric}.{name}", row["rate"], **ends))
        # the block alone: beside the same model without it, for the tags' SFT has an effect of its own
        row = effects.effect_table(own, metric=metric, against=TAGGED).filter(arm=BLOCKED).row(0, named=True)
        ends = {"low": row["difference_low"], "high": row["difference_high"], "n": row["seeds"]}
        found.append(Figure(f"arms.{metric}.block_alone", row["difference"], **ends))
    top = entry.experiment.pairs.select(ranked["ours"].ids[: entry.k]).frame["source"]
    of_all = entry.experiment.pairs.frame["source"]
    for group in done[0]["said"]:
        said = sum((Counter(one["said"][group]) for one in done), Counter())
        names = sorted({*of_all, *said})
        total = said.total()
        found += [Figure(f"bridge.{group}.{one}", said[one] / total, n=total) for one in names if total]
    for source in sorted({*of_all}):
        found += [
            Figure(f"bridge.top_pairs.{source}", (top == source).mean(), n=entry.k),
            Figure(f"bridge.all_pairs.{source}", (of_all == source).mean(), n=len(of_all)),
        ]
    return found


if __name__ == "__main__":
    main()
