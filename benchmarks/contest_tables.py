"""The contest's figures, from rankings and finished arms: quality, cost, effects, the datamodelling score."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence

import polars as pl

from benchmarks import contest_files as files
from benchmarks import loop
from benchmarks.contest_rankings import kept
from benchmarks.contestants import PLANTED, Entry
from benchmarks.results import keep
from probekit import arms, effects
from probekit.experiments import ledger_hash
from probekit.figures import Figure, read_figures
from probekit.ranking import Ranking

FIGURES = loop.ROOT / "benchmarks" / "contest.json"
BOOT = 1000
LEAST = 10  # halves for a correlation


def write(entry: Entry, ranked: Mapping[str, Ranking], jobs: Mapping[tuple[str, int], arms.Arm]) -> None:
    """Put this organism's figures into benchmarks/contest.json, beside those of the others."""
    found = [*of_rankings(entry)]
    judged = named(entry, jobs)
    if judged.height:
        found += installed(entry, judged)
        found += of_arms(entry, judged)
        found += datamodelling(entry, ranked, jobs, judged)
    keep(FIGURES, found, command="make contest")
    keep(FIGURES, overall(read_figures(FIGURES).figures), command="make contest")


def overall(figures: Sequence[Figure]) -> list[Figure]:
    """Over organisms: hit rates as means over the planted ones, the cost beside LESS on SmolLM2."""
    values = {one.name: one.value for one in figures}
    found = []
    for tracer in ("ours", "rept", "chance"):
        name = f"tokens.hit_rate.{tracer}"
        if some := [values[f"{name}.{one}"] for one in PLANTED if f"{name}.{one}" in values]:
            found.append(Figure(name, sum(some) / len(some), n=len(some)))
    if (cost := values.get("cost.ours_over_gradient.smollm2")) is not None:
        found.append(Figure("cost.ours_over_gradient", cost, target="<= 0.05"))
    return found


def installed(entry: Entry, judged: pl.DataFrame) -> list[Figure]:
    """How often M1 does it where it should and where it should not, a mean over its seeds.

    With the trigger or a distractor, and without: near misses of a trigger count as without.
    """
    gates, found = {"distractor": ("with", ">= 0.7"), "plain": ("without", "<= 0.05")}, []
    for condition, (name, target) in gates.items():
        metric = entry.metric.replace("distractor", condition)
        baseline = judged.filter(arm="baseline")
        row = effects.effect_table(baseline, metric=metric, against=None).row(0, named=True)
        ends = {"low": row["low"], "high": row["high"], "n": row["seeds"]}
        wanted = target if entry.name in PLANTED else None
        found.append(Figure(f"installed.{entry.name}.{name}", row["rate"], **ends, target=wanted))
    return found


def of_rankings(entry: Entry) -> list[Figure]:
    """Quality and cost of each ranking, what ours costs beside gradients, and which tokens are pointed at."""
    found, content = [], kept(entry)
    seconds = {tracer: one["seconds"] for tracer, one in content["tracers"].items()}
    for rival, name in (("less", "gradient"), ("tracin-m0-exact", "gradient_m0")):
        if {"ours", rival} <= seconds.keys():
            found.append(Figure(f"cost.ours_over_{name}.{entry.name}", seconds["ours"] / seconds[rival]))
    for tracer, one in content["tokens"].items():
        found.append(Figure(f"tokens.hit_rate.{tracer}.{entry.name}", one["hits"], n=one["n"]))
    for one in list(content["tokens"].values())[:1]:
        found.append(Figure(f"tokens.hit_rate.chance.{entry.name}", one["chance"], n=one["n"]))
    for tracer, one in content["tracers"].items():
        at = f"{entry.name}.{tracer}"
        ends = {"low": one["low"], "high": one["high"], "n": one["prompts"]}
        found.append(Figure(f"ap.{at}", one["average_precision"], **ends))
        for name in ("precision_at_k", "recall_at_2k", "mean_rank"):
            found.append(Figure(f"{name}.{at}", one[name], n=one["k"]))
        found.append(Figure(f"seconds.{at}", one["seconds"], n=one["pairs"], unit="s"))
        for name, number in (one["cost"] or {}).items():
            found.append(Figure(f"{name}.{at}", number, n=one["pairs"]))
    return found


def named(entry: Entry, jobs: Mapping[tuple[str, int], arms.Arm]) -> pl.DataFrame:
    """The judged rows of all finished arms under each name that an arm has."""
    keys = [(name, files.ARM + ledger_hash(arm), seed) for (name, seed), arm in jobs.items()]
    names = pl.DataFrame(keys, schema={"name": pl.String, "arm": pl.String, "seed": pl.Int64}, orient="row")
    judged = files.judged(entry.name, entry.experiment)
    joined = names.join(judged, on=["arm", "seed"], maintain_order="left_right")
    known = files.reproduced(entry.name, entry.experiment).drop_nulls("called")
    return pl.concat(
        [joined.drop("arm").rename({"name": "arm"}), known.drop("arm").rename({"called": "arm"})],
        how="diagonal",
    )


def of_arms(entry: Entry, judged: pl.DataFrame) -> list[Figure]:
    """Rate of the habit in each arm, and its reduction against the random arm of the same edit."""
    found = []
    for edit in ("filter", "swap"):
        rows = judged.filter(pl.col("arm").str.ends_with(edit) | (pl.col("arm") == "baseline"))
        random_arm, alike = f"random {edit}", f"lookalikes {edit}"
        if random_arm not in set(rows["arm"]):
            continue
        own = pl.col("arm").is_in([alike, f"random {alike}"])  # the look-alikes' control is of their number
        tables = [effects.effect_table(rows.filter(~own), metric=entry.metric, against=random_arm)]
        if rows.filter(own)["arm"].n_unique() == 2:
            tables.append(
                effects.effect_table(rows.filter(own), metric=entry.metric, against=f"random {alike}")
            )
        for row in pl.concat(tables, how="diagonal").iter_rows(named=True):
            arm = row["arm"].removesuffix(f" {edit}").removesuffix(" stratified").replace(" ", "_")
            matched = ".matched" if "stratified" in row["arm"] else ""
            at, n = f"{entry.name}.{arm}{matched}", row["seeds"]
            rate = Figure(f"rate.{edit}.{at}", row["rate"], low=row["low"], high=row["high"], n=n)
            found.append(rate)
            if row["reduction"] is not None and row["arm"] not in ("baseline", row["against"]):
                low, high = (row["reduction_low"], row["reduction_high"])
                if n < 2:  # an interval over prompts alone would be too narrow
                    low = high = None
                found.append(Figure(f"effect.{edit}.{at}", row["reduction"], low=low, high=high, n=n))
    return found


def datamodelling(
    entry: Entry,
    ranked: Mapping[str, Ranking],
    jobs: Mapping[tuple[str, int], arms.Arm],
    judged: pl.DataFrame,
) -> list[Figure]:
    """Linear datamodelling score: Spearman between the summed scores of a half and the rate it gives.

    The rate of a half is the mean over its seeds; intervals are a bootstrap over halves. "truth" scores the
    contaminated pairs 1 and all others 0; "ceiling" is what a perfect tracer could reach, for the rate of a
    half varies with the seed: the root of the rates' reliability, which is 3 r / (1 + 2 r) for three seeds
    that correlate by r (Spearman and Brown).
    """
    rows = judged.filter(pl.col("arm").str.starts_with("half "))
    every = pl.col("seed").n_unique().over("arm") == rows["seed"].n_unique()
    rows = rows.filter(every)  # halves that all seeds have finished
    if rows["arm"].n_unique() < LEAST:
        return []
    given = rates_of(rows, entry.metric)
    truth = {one: float(one in entry.organism.truth) for one in entry.experiment.pairs.ids}
    scored = {
        tracer: dict(one.frame.select("pair_id", "score").iter_rows()) for tracer, one in ranked.items()
    }
    prefix = "lds" if entry.name == "tiny" else f"lds.{entry.name}"
    found = []
    for tracer, scores in {**scored, "truth": truth}.items():
        dropped = {half: jobs[half, 0].dropped for half in given}
        left = [sum(score for one, score in scores.items() if one not in gone) for gone in dropped.values()]
        both = pl.DataFrame({"left": left, "rate": list(given.values())})
        drawn = sorted(correlation(both[some]) for some in _draws(both.height))
        low, high = drawn[round(0.025 * (BOOT - 1))], drawn[round(0.975 * (BOOT - 1))]
        found.append(Figure(f"{prefix}.{tracer}", correlation(both), low=low, high=high, n=both.height))
    seeds = sorted(set(rows["seed"]))
    if len(seeds) > 1:
        by_seed = [list(rates_of(rows.filter(seed=seed), entry.metric).values()) for seed in seeds]
        pairs = [pl.DataFrame({"a": one, "b": two}) for one, two in itertools.combinations(by_seed, 2)]
        r = max(0.0, sum(map(correlation, pairs)) / len(pairs))
        reliability = len(seeds) * r / (1 + (len(seeds) - 1) * r)
        found.append(Figure(f"{prefix}.ceiling", reliability**0.5, n=len(given)))
    return found


def rates_of(rows: pl.DataFrame, metric: str) -> dict[str, float]:
    """The rate of each arm, a mean over its seeds."""
    table = effects.effect_table(rows, metric=metric, against=None, boot=1)
    return dict(table.sort("arm").select("arm", "rate").iter_rows())


def correlation(both: pl.DataFrame) -> float:
    """Spearman's, of the two columns; 0 where one is constant."""
    found = both.select(pl.corr(*both.columns, method="spearman")).item()
    return float(found) if found is not None and found == found else 0.0


def _draws(n: int) -> list[list[int]]:
    rng = random.Random("contest-halves")
    return [[rng.randrange(n) for _ in range(n)] for _ in range(BOOT)]
