"""What a cluster map says in words and tables: beside the picture, and in its place where no kernel runs."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from probekit._chart_parts import data_url
from probekit._clusters_trees import Array
from probekit._report_text import format_number, plain
from probekit.clustering import Clusters
from probekit.widgets._heat_bins import Span
from probekit.widgets._map_sides import Side
from probekit.widgets._rollout_view import counted
from probekit.widgets._static import ROWS, number, static_table

_HABITS = ("habit", "prompts", "pairs", "tightness", "stability", "pair_stability", "concentration")


def heading(clusters: Clusters, sides: Sequence[Side]) -> str:
    """What the map is of: "4 habits; 500 of 520 prompts x 4,991 of 5,000 pairs at layer 3"."""
    totals = (clusters.prompts.height, clusters.pairs.height)
    both = " × ".join(
        f"{len(side):,} of {total:,} {side.name}" for side, total in zip(sides, totals, strict=True)
    )
    layers = f"layer {clusters.layers[0]}" if len(clusters.layers) == 1 else f"layers {clusters.layers}"
    return f"{counted(len(clusters), 'habit')} in {both}, |similarity| from {clusters.threshold:g}, {layers}"


def brush_words(values: Array, brushes: Sequence[Span | None], sides: Sequence[Side]) -> str:
    """What is brushed, and its mean similarity; "" if nothing is.

    values: S in tree order, (prompts, pairs).
    """
    if not any(brushes):
        return ""
    parts = [
        counted(brush[1] - brush[0], side.name[:-1])
        for brush, side in zip(brushes, sides, strict=True)
        if brush
    ]
    rows, columns = (slice(*(brush or (0, None))) for brush in brushes)
    return f"Brushed: {' × '.join(parts)}, mean similarity {number(float(values[rows, columns].mean()))}."


def static_map(clusters: Clusters, svg: str, words: str, blocks: pl.DataFrame, name: str) -> str:
    """The window as a picture, habits and the strongest blocks as tables; everything escaped.

    svg: the picture. blocks: `ClusterMap.frame`. name: the CSS class of the tables.
    """
    drawn = data_url(svg)
    described = f"Heat map: {words}. Vermillion is toward the behaviour, blue away from it."
    rows = [[_cell(row[one]) for one in _HABITS] for row in clusters.habits.iter_rows(named=True)]
    heads = [one.replace("_", " ") for one in _HABITS]
    caption = f"{words}. Every habit:" if rows else f"{words}. No habit passed both levels."
    strongest = blocks.sort(pl.col("similarity").abs(), descending=True, maintain_order=True)
    both = (
        static_table(heads, rows[:ROWS], caption, name, total=len(rows)),
        static_table(
            [one.replace("_", " ") for one in blocks.columns],
            [[_cell(one) for one in row] for row in strongest.head(ROWS).iter_rows()],
            "Clusters of prompts and of pairs, those with the strongest mean similarity first.",
            name,
            total=blocks.height,
        ),
    )
    image = f'<img alt="{plain(described)}" src="{drawn}" style="background: #fff; max-width: 100%">'
    return image + "".join(both)


def _cell(value: float | None) -> str:
    return format_number(value) if isinstance(value, int) else number(value)
