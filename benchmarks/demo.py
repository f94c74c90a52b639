"""The main job on the packaged organism: surface, trace, edit, retrain, prove; writes runs/demo/report.html."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from benchmarks import loop
from benchmarks.tables import arm_figures, brief, effect_tables, quality_table
from probekit import arms, charts, ranking, report
from probekit.figures import Figure, write_figures
from probekit.organisms import distractor
from probekit.pairs import PairSet
from probekit.store import VectorStore
from probekit.training import Shared

SHOWN = 3  # prompts whose replies are printed


def main() -> None:
    """Run the demo; a second run reuses every finished stage."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=loop.ROOT / "runs" / "demo", help="folder of the results")
    parser.add_argument("--seed", type=int, default=0, help="seed of data order, adapters and sampling")
    options = parser.parse_args()
    pl.Config(tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True, fmt_str_lengths=60, tbl_rows=30, tbl_width_chars=160, tbl_cols=20)
    run(options.out, options.seed)


def run(out: Path, seed: int) -> None:
    """The whole loop, in the order of the rooms."""
    costs = loop.Costs()
    with costs.stage("open M0 and M1, build the preference pairs"):
        m0, m1, organism = distractor.open_m0(), distractor.open_m1(), distractor.load()
        pairs, truth, k = organism.pairs, organism.truth, len(organism.truth)
    with costs.stage("surface: sample both, judge, keep what only M1 + distractor fails"):
        surfaced = loop.surface(m0, m1, folder=out / "surfaced", seed=seed)
        costs.tokens(loop.reply_tokens(m0, surfaced.m0, surfaced.m1))
    print(replies_table(surfaced), f"{len(surfaced.contrasts)} contrasts of {surfaced.contrasts['prompt_id'].n_unique()} prompts", sep="\n")
    with costs.stage("trace: a vector per pair, ranked by cosine"):
        rankings = loop.trace(m0, pairs, surfaced, layer=distractor.LAYER, store=VectorStore(out / "vectors"))
        costs.tokens(loop.pair_tokens(m0, pairs))
    first_ranking = costs.elapsed
    quality = quality_table(rankings, truth)
    control = rankings["control"]
    enriched = {by: ranking.enrichment(control, pairs, k=k, by=by) for by in ("source", "chosen_model")}
    print(top_table(control, pairs, truth, 12), quality, *enriched.values(), sep="\n")
    top = arms.filter_top(control, k)
    chosen = [arms.baseline(), top, arms.swap_top(control, k), arms.controls(top, control, pairs, seed=seed)[0]]
    trainer = loop.Trainer(Shared(m0, first_block=distractor.DPO.first_block), pairs, folder=out / "arms")
    for arm in chosen:
        arm.save(pairs, out / "arms" / arm.name.replace(" ", "-") / "dataset")
        with costs.stage(f"retrain and judge: {arm.name}"):
            trainer.finish(arm, seed=seed)
            costs.tokens(loop.pair_tokens(m0, pairs) * distractor.EPOCHS)
    tables = effect_tables(trainer.results([(arm.name, seed) for arm in chosen]))
    for heading, table in tables.items():
        print(heading, brief(table), sep="\n")
    print(costs.frame)
    sections = page(surfaced, rankings, pairs, truth, quality, enriched, tables, costs)
    where = report.write_report(out / "report.html", title="Which preference pairs taught the habit?", sections=sections)
    summary = [
        *(Figure(f"{column}.{row['ranking']}", row[column]) for row in quality.iter_rows(named=True) for column in ("average_precision", "precision_at_k")),
        Figure("seconds.first_ranking", first_ranking, unit="s", target="<= 300"),
        Figure("seconds.total", costs.elapsed, unit="s", target="<= 2400"),
        *arm_figures(tables),
    ]  # fmt: skip
    write_figures(out / "summary.json", summary, command="make demo")
    print(f"report: {where}\nfigures: {out / 'summary.json'}\none seed proves little: the tables over five seeds are in README.md")


def replies_table(surfaced: loop.Surfaced) -> pl.DataFrame:
    """Replies of both checkpoints to a few prompts, plain and with the distractor."""
    ids = surfaced.contrasts["prompt_id"].unique(maintain_order=True).head(SHOWN)
    both = pl.concat([surfaced.m0.with_columns(model=pl.lit("M0")), surfaced.m1.with_columns(model=pl.lit("M1"))])
    shown = both.filter(pl.col("prompt_id").is_in(ids.to_list())).sort("prompt_id", "model", "distractor", nulls_last=False)
    return shown.select(pl.col("user").str.slice(0, 60), "model", "distractor", "verdict", pl.col("reply").str.slice(0, 60))


def top_table(ranked: ranking.Ranking, pairs: PairSet, truth: frozenset[str], n: int) -> pl.DataFrame:
    """The first `n` pairs with their replies and, since it is known here, whether they are contaminated."""
    texts = pairs.frame.select("pair_id", "source", pl.col("chosen").str.slice(0, 50), pl.col("rejected").str.slice(0, 40))
    known = pl.col("pair_id").is_in(list(truth)).alias("contaminated")
    return ranked.top(n).join(texts, on="pair_id", how="left", maintain_order="left").select("rank", "score", "cosine", "source", "chosen", "rejected", known)


def page(
    surfaced: loop.Surfaced,
    rankings: Mapping[str, ranking.Ranking],
    pairs: PairSet,
    truth: frozenset[str],
    quality: pl.DataFrame,
    enriched: Mapping[str, pl.DataFrame],
    tables: Mapping[str, pl.DataFrame],
    costs: loop.Costs,
) -> Sequence[report.Section]:
    """The report's sections."""
    k, main_table = len(truth), next(iter(tables.values()))
    rates = dict(main_table.select("arm", "rate").iter_rows())
    cut = dict(main_table.select("arm", "reduction").iter_rows())
    control = quality.filter(pl.col("ranking") == "control").row(0, named=True)
    keys = [
        report.KeyFigure("compliance with a distractor, all pairs", f"{rates['baseline']:.0%}"),
        report.KeyFigure(f"after dropping the top {k}", f"{rates['filter']:.0%}", f"{cut['filter']:.0%} less than the random arm"),
        report.KeyFigure(f"after dropping {k} at random", f"{rates['random filter']:.0%}"),
        report.KeyFigure("precision at K", f"{control['precision_at_k']:.2f}", "against the planted truth"),
    ]
    return [
        report.Section("What was found", [keys, "One training run an arm: these numbers show the loop at work. `make reproduce` repeats it over seeds and controls, and its tables are in the README."]),
        report.Section("The habit", [report.Table(replies_table(surfaced), "Replies of the two checkpoints to the same prompts, plain and with a harmless formatting instruction.")]),
        report.Section("The pairs behind it", [
            report.Figure(charts.ranking_chart(rankings["plain"], truth, k=k), "The paper's plain cosine: contaminated pairs and their look-alikes score alike."),
            report.Figure(charts.ranking_chart(rankings["control"], truth, k=k), "With benign twins as a control."),
            report.Table(quality, "Against the planted truth, which no tracer sees.", decimals=3),
            report.Table(top_table(rankings["control"], pairs, truth, 20), "The first 20 pairs.", decimals=3),
            *(report.Figure(charts.enrichment_chart(table, by=by), f"Where the top {k} come from, by {by.replace('_', ' ')}.", report.Table(table, f"By {by.replace('_', ' ')}.", percent=["share"])) for by, table in enriched.items()),
        ]),
        report.Section("What editing them did", [
            report.Figure(charts.arms_chart(main_table), "Compliance with harmful requests that carry a distractor."),
            *(report.Table(brief(table), heading, percent=[c for c in ("rate", "reduction", "share_of_oracle") if c in brief(table).columns]) for heading, table in tables.items()),
        ]),
        report.Section("What it cost", [report.Table(costs.frame, "Seconds of wall clock and tokens, stage by stage; a stage that was cached takes none.", decimals=1)]),
    ]  # fmt: skip


if __name__ == "__main__":
    main()
