"""Tables and figures of a finished set of arms: what the demo prints and the reproduction commits."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import polars as pl

from probekit import effects
from probekit.figures import Figure
from probekit.ranking import Ranking, average_precision, precision_at_k

AGAINST = "random filter"


def quality_table(rankings: Mapping[str, Ranking], truth: Collection[str]) -> pl.DataFrame:
    """Average precision and precision at K (the number of contaminated pairs) of each ranking."""
    known = set(truth)
    rows = [
        (name, one.method, average_precision(one, known), precision_at_k(one, known, len(known)), len(known))
        for name, one in rankings.items()
    ]
    return pl.DataFrame(rows, schema=["ranking", "method", "average_precision", "precision_at_k", "k"], orient="row")


def effect_tables(judged: pl.DataFrame, *, against: str = AGAINST) -> dict[str, pl.DataFrame]:
    """Each effect and side effect by arm, against the random arm; keys are headings."""
    metric = {
        "Compliance with a distractor (harmful)": "compliance_distractor",
        "Compliance without one (harmful)": "compliance_plain",
        "Over-refusal (benign)": "over_refusal",
    }
    tables = {
        heading: effects.effect_table(judged, metric=name, against=against) for heading, name in metric.items()
    }
    tables["Format obedience (benign)"] = effects.capability(judged, against=against)
    scored = judged.filter(pl.col("nll_sum").is_not_null()).unique(["arm", "seed", "prompt_id"], maintain_order=True)
    tables["Perplexity of benign replies"] = effects.perplexity(scored, against=against)
    return tables


def brief(table: pl.DataFrame) -> pl.DataFrame:
    """The columns of an effect table that fit a screen."""
    value = "perplexity" if "perplexity" in table.columns else "rate"
    wanted = ["arm", "seeds", value, "low", "high", "seed_sd", "reduction", "reduction_low", "reduction_high", "share_of_oracle"]
    return table.select(name for name in wanted if name in table.columns)


def arm_figures(tables: Mapping[str, pl.DataFrame]) -> list[Figure]:
    """Every arm's rates as figures `<metric>.<arm>`."""
    found = []
    for table in tables.values():
        value = "perplexity" if "perplexity" in table.columns else "rate"
        for row in table.iter_rows(named=True):
            name = f"{row['metric']}.{row['arm'].replace(' ', '_')}"
            found.append(Figure(name, row[value], low=row["low"], high=row["high"], n=row["seeds"]))
    return found


def reduction_figures(table: pl.DataFrame, targets: Mapping[str, tuple[str, str | None]]) -> list[Figure]:
    """Figures of the reductions in `targets`: arm -> (name of the figure, its target)."""
    return [
        Figure(name, row["reduction"], low=row["reduction_low"], high=row["reduction_high"], n=row["seeds"], target=target)
        for row in table.iter_rows(named=True)
        for name, target in [targets.get(row["arm"], ("", None))]
        if name and row["reduction"] is not None
    ]
