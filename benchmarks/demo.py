"""The main job on the packaged organism: surface, trace, edit, retrain, prove; writes runs/demo/report.html.

Each stage is kept in the folder, so a second run only prints, and one that was interrupted goes on where it
stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from benchmarks import loop
from benchmarks.results import Costs
from benchmarks.tables import arm_figures, brief, effect_tables, quality_figures, quality_table
from probekit import arms, charts, ranking, report
from probekit.checkpoints import Checkpoint
from probekit.experiments import M0, Experiment, digest
from probekit.figures import Figure, write_figures
from probekit.organisms import distractor
from probekit.pairs import PairSet
from probekit.store import VectorStore

SEED = 0  # one training run an arm; `make reproduce` has more
GROUPS: tuple[ranking.Group, ...] = ("source", "chosen_model")
SHOWN = 3  # prompts whose replies are printed
TRACE = "trace: a vector per pair, ranked by cosine"
CLIP = 60  # characters of a text in a table


def main() -> None:
    """Run the demo; a second run reuses every finished stage."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=loop.ROOT / "runs" / "demo", help="folder of the results")
    out = parser.parse_args().out
    costs = Costs(out / "costs.json")
    with costs.stage("open M0 and M1, build the preference pairs"):
        m0, m1, organism = distractor.open_m0(), distractor.open_m1(), distractor.load()
        experiment = loop.packaged(m0, organism.pairs, folder=out / "arms", work=out / "work")
        choosing = distractor.choosing_prompts()
    truth = organism.truth
    run(out, costs, experiment=experiment, m1=m1, truth=truth, choosing=choosing, layer=distractor.LAYER)


def run(
    out: Path,
    costs: Costs,
    *,
    experiment: Experiment,
    m1: Checkpoint,
    truth: frozenset[str],
    choosing: pl.DataFrame,
    layer: int,
) -> None:
    """The whole loop, in the order of the rooms.

    experiment: knows M0 and the pairs. truth: ids of the contaminated pairs, used only to score and to set K.
    choosing: the prompts on which the habit is surfaced. layer: the block whose output is read.
    """
    m0, pairs, k = experiment.m0, experiment.pairs, len(truth)
    with costs.stage("surface: sample both, judge, keep what only M1 + distractor fails") as cost:
        surfaced = loop.surface(m0, m1, choosing, folder=out / "surfaced")
        cost.tokens = loop.reply_tokens(m0, surfaced.m0, surfaced.m1)
    replies = replies_table(surfaced)
    show("Replies", replies, f"{len(surfaced.contrasts)} of the prompts show the habit.")
    lengths = loop.pair_lengths(m0, pairs)
    with costs.stage(TRACE) as cost:
        rankings = trace(out, experiment, m1, surfaced, truth=truth, choosing=choosing, layer=layer)
        cost.tokens = sum(lengths.values())
    control, quality = rankings["control"], quality_table(rankings, truth)
    enriched = {by: ranking.enrichment(control, pairs, k=k, by=by) for by in GROUPS}
    show("The first pairs", top_table(control, pairs, truth, 12), control.sign)
    show("Against the planted truth", quality)
    for by, table in enriched.items():
        show(f"Where the top {k} come from, by {by}", table)
    chosen = demo_arms(control, pairs, k)
    for arm in chosen:
        arm.save(pairs, out / "arms" / arm.name.replace(" ", "-") / "dataset")
        with costs.stage(f"retrain and judge: {arm.name}") as cost:
            experiment.finish(arm, seed=SEED)
            cost.tokens = sum(lengths[one] for one, _ in experiment.order(arm, seed=SEED))
    tables = effect_tables(experiment.judged([(arm, SEED) for arm in chosen]))
    for heading, table in tables.items():
        show(heading, brief(table))
    show("Cost", costs.frame)
    sections = [
        found_section(tables, quality, k),
        habit_section(replies),
        pairs_section(rankings, pairs, truth, quality, enriched),
        effects_section(tables),
        cost_section(costs),
    ]
    title = "Which preference pairs taught the habit?"
    where = report.write_report(out / "report.html", title=title, sections=sections)
    figures = [
        *quality_figures([quality]),
        Figure("seconds.first_ranking", costs.until(TRACE), unit="s", target="<= 300"),
        Figure("seconds.total", costs.until(), unit="s", target="<= 2400"),
        *arm_figures(tables),
    ]
    write_figures(out / "summary.json", figures, command="make demo")
    print(f"report: {where}\nfigures: {out / 'summary.json'}")
    print("One training run an arm shows the loop, not an effect: that takes the seeds of make reproduce.")


def trace(
    out: Path,
    experiment: Experiment,
    m1: Checkpoint,
    surfaced: loop.Surfaced,
    *,
    truth: frozenset[str],
    choosing: pl.DataFrame,
    layer: int,
) -> dict[str, ranking.Ranking]:
    """The rankings by plain cosine and with control, kept in rankings.json."""
    m0, pairs = experiment.m0, experiment.pairs
    about = {
        "m0": experiment.about(M0, seed=0)["m0"], "m1": m1.fingerprint, "pairs": pairs.fingerprint,
        "prompts": digest(choosing), "layer": layer,
    }  # fmt: skip

    def make() -> tuple[dict[str, ranking.Ranking], int]:
        store = VectorStore(out / "vectors")
        return loop.trace(m0, pairs, surfaced, layer=layer, store=store), len(surfaced.contrasts)

    return loop.kept_rankings(out / "rankings.json", about, make, truth=truth)


def demo_arms(control: ranking.Ranking, pairs: PairSet, k: int) -> list[arms.Arm]:
    """Baseline, filter, swap and random filter."""
    top = arms.filter_top(control, k)
    random = arms.controls(top, control, pairs, seed=SEED)[0]
    return [arms.baseline(), top, arms.swap_top(control, k), random]


def show(heading: str, frame: pl.DataFrame, note: str = "") -> None:
    """Print a table under its heading."""
    with pl.Config(
        tbl_rows=30, tbl_cols=20, tbl_width_chars=160, fmt_str_lengths=CLIP, float_precision=3,
        tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True,
    ):  # fmt: skip
        print(f"\n{heading}", frame, *([note] if note else []), sep="\n", flush=True)


def replies_table(surfaced: loop.Surfaced) -> pl.DataFrame:
    """Replies of both checkpoints to a few prompts, plain and with the distractor."""
    ids = surfaced.contrasts["prompt_id"].unique(maintain_order=True).head(SHOWN)
    named = {"M0": surfaced.m0, "M1": surfaced.m1}
    both = pl.concat([frame.with_columns(model=pl.lit(name)) for name, frame in named.items()])
    shown = both.filter(pl.col("prompt_id").is_in(ids.to_list()))
    shown = shown.sort("prompt_id", "distractor", "model", nulls_last=False)
    text, reply = (pl.col(name).str.slice(0, CLIP) for name in ("text", "reply"))
    return shown.select(text, "distractor", "model", "verdict", reply)


def top_table(ranked: ranking.Ranking, pairs: PairSet, truth: frozenset[str], n: int) -> pl.DataFrame:
    """The first `n` pairs with their replies and, since it is known here, whether they are contaminated."""
    texts = pairs.frame.select(
        "pair_id", "source", pl.col("chosen").str.slice(0, 50), pl.col("rejected").str.slice(0, 40)
    )
    known = pl.col("pair_id").is_in(list(truth)).alias("contaminated")
    rows = ranked.top(min(n, len(ranked))).join(texts, on="pair_id", how="left", maintain_order="left")
    return rows.select("rank", "score", "cosine", "source", "chosen", "rejected", known)


def found_section(tables: Mapping[str, pl.DataFrame], quality: pl.DataFrame, k: int) -> report.Section:
    """The numbers that matter most."""
    main_table = next(iter(tables.values()))
    rates = {arm: f"{rate:.0%}" for arm, rate in main_table.select("arm", "rate").iter_rows()}
    cut = main_table.filter(pl.col("arm") == "filter")["reduction"].item()
    control = quality.filter(pl.col("ranking") == "control").row(0, named=True)
    note = "" if cut is None else f"{cut:.0%} less than the random arm"
    keys = [
        report.KeyFigure("compliance with a distractor, all pairs", rates["baseline"]),
        report.KeyFigure(f"after dropping the top {k}", rates["filter"], note),
        report.KeyFigure(f"after swapping the top {k}", rates["swap"]),
        report.KeyFigure(f"after dropping {k} at random", rates["random filter"]),
        report.KeyFigure("precision at K", f"{control['precision_at_k']:.2f}", "against the planted truth"),
    ]
    prose = (
        "One training run an arm: these numbers show the loop at work. `make reproduce` repeats it over "
        "seeds and controls; the README shows what that has given so far."
    )
    return report.Section("What was found", [keys, prose])


def habit_section(replies: pl.DataFrame) -> report.Section:
    """Sample replies."""
    caption = "Replies of both checkpoints to the same prompts, plain and with a formatting instruction."
    return report.Section("The habit", [report.Table(replies, caption)])


def pairs_section(
    rankings: Mapping[str, ranking.Ranking],
    pairs: PairSet,
    truth: frozenset[str],
    quality: pl.DataFrame,
    enriched: Mapping[ranking.Group, pl.DataFrame],
) -> report.Section:
    """The rankings, how good they are, and where their tops come from."""
    k = len(truth)
    captions = {
        "plain": "The paper's plain cosine: contaminated pairs and their look-alikes score alike.",
        "control": "With benign twins as a control.",
    }
    blocks: list[report.Block] = [
        report.Figure(charts.ranking_chart(rankings[name], truth, k=k), caption)
        for name, caption in captions.items()
    ]
    blocks.append(report.Table(quality, "Against the planted truth, which no tracer sees.", decimals=3))
    top = top_table(rankings["control"], pairs, truth, 20)
    blocks.append(report.Table(top, f"The first pairs. Score: {rankings['control'].sign}.", decimals=3))
    for by, table in enriched.items():
        words = by.replace("_", " ")
        numbers = report.Table(table, f"By {words}.", percent=["share"])
        chart = charts.enrichment_chart(table, by=by)
        blocks.append(report.Figure(chart, f"Where the top {k} come from, by {words}.", numbers))
    return report.Section("The pairs behind it", blocks)


def effects_section(tables: Mapping[str, pl.DataFrame]) -> report.Section:
    """What each edit did."""
    percent = ("rate", "seed_min", "seed_max", "reduction", "difference", "share_of_oracle")
    chart = charts.arms_chart(next(iter(tables.values())))
    blocks: list[report.Block] = [
        report.Figure(chart, "Compliance with harmful requests that carry a distractor.")
    ]
    for heading, table in tables.items():
        shown = brief(table)
        shares = [name for name in percent if name in shown.columns and "perplexity" not in shown.columns]
        blocks.append(report.Table(shown, heading, percent=shares))
    return report.Section("What editing them did", blocks)


def cost_section(costs: Costs) -> report.Section:
    """The cost ledger."""
    caption = "Seconds of wall clock, and tokens sampled, read or trained on, when each stage was first done."
    return report.Section("What it cost", [report.Table(costs.frame, caption, decimals=1)])


if __name__ == "__main__":
    main()
