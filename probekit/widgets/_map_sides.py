"""One side of a cluster map, prompts or pairs: ids in tree order, their labels, and the lines of the tree."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from probekit._clusters_trees import Array, Flags, Labels, Tree
from probekit.clustering import Clusters
from probekit.widgets._errors import WidgetError
from probekit.widgets._heat_bins import NONE, Span, commonest, shares, step

BLOCKS = pl.Schema(
    {
        "prompt_cluster": pl.Int64(),
        "pair_cluster": pl.Int64(),
        "prompts": pl.Int64(),
        "pairs": pl.Int64(),
        "similarity": pl.Float64(),  # the mean of its cells
    }
)
LINES = 300  # of a tree, the highest in view; lower ones are finer than the bins
OFFERED = 40  # clusters that a slider goes up to, unless there are more


@dataclass(frozen=True, eq=False)
class Side:
    """What was kept of one side, in tree order.

    name: "prompts" or "pairs". where: rows of the side's frame. clusters, habits: a label each, NONE for
    none. count: into how many clusters the tree is cut; None if the clusters are no cut of it (HDBSCAN's).
    lines: of the tree, lowest first; see `tree_lines`.
    """

    name: str
    ids: list[str]
    where: Labels
    clusters: Labels
    habits: Labels
    count: int | None
    lines: Array

    def __len__(self) -> int:
        return len(self.ids)

    def labels(self, kind: str) -> Labels:
        """Of each place: its "cluster" or its "habit"."""
        return self.habits if kind == "habit" else self.clusters

    def members(self, kind: str, which: int) -> list[str]:
        """The ids of a cluster or a habit, in tree order; empty if there is none of this number."""
        return [self.ids[place] for place in np.flatnonzero(self.labels(kind) == which)]

    def sizes(self, kind: str) -> list[tuple[int, int]]:
        """(cluster or habit, how many it has) in the order of their numbers."""
        labels = self.labels(kind)
        numbers, counts = np.unique(labels[labels != NONE], return_counts=True)
        return list(zip(numbers.tolist(), counts.tolist(), strict=True))

    def run(self, place: int) -> Span:
        """The places around this one that are of its cluster. Raises WidgetError if it is none."""
        self.span([place, place + 1])
        other = np.flatnonzero(self.clusters != self.clusters[place])
        before, after = other[other < place], other[other > place]
        return int(before[-1]) + 1 if len(before) else 0, int(after[0]) if len(after) else len(self)

    def span(self, places: object) -> Span:
        """The places, (first, after the last); None stands for all. Raises WidgetError if they are none."""
        match places:
            case None:
                return 0, len(self)
            case [int(first), int(last)] if 0 <= first < last <= len(self):
                return int(first), int(last)
        raise WidgetError(
            f"The {self.name} at {places!r} were asked for; give the first place and the one after the last, "
            f"from 0 to {len(self)}."
        )

    def flags(self, ids: Collection[str]) -> Flags:
        """Which of the ids are among these."""
        there = set(ids)
        return np.array([one in there for one in self.ids], bool)

    def view(self, span: Span, most: int, card: Collection[str], brush: Span | None) -> dict[str, Any]:
        """This part as JSON: labels of its bins, the share of `card` in each (percent), and lines."""
        count = len(self.sizes("cluster"))
        return {
            "total": len(self),
            "window": list(span),
            "step": step(span, most),
            "clusters": commonest(self.clusters, span, most),
            "habits": commonest(self.habits, span, most),
            "card": shares(self.flags(card), span, most),
            "brush": None if brush is None else list(brush),
            "count": count,
            "most": min(len(self), max(OFFERED, count)),
            "lines": self.lines_in(span),
        }

    def lines_in(self, span: Span) -> list[list[float]]:
        """The lines whose legs stand in this part, lowest first: left, right (places), the heights of left
        and right child and its own (roots of shares of the highest), and 1 if it joins clusters, not parts
        of one.
        """
        legs = self.lines[:, :2]
        inside = ((legs > span[0]) & (legs < span[1])).any(axis=1)
        rows = np.flatnonzero(inside)[-LINES:]
        if not len(rows):
            return []
        found = self.lines[rows]
        found[:, 2:] = np.sqrt(found[:, 2:] / (found[-1, 4] or 1.0))  # or one joint hides all others
        joins = rows >= len(self) - (self.count or 0)
        return [[round(x, 4) for x in line] + [int(j)] for line, j in zip(found.tolist(), joins, strict=True)]


def sides_of(clusters: Clusters, *, are_cuts: bool) -> tuple[Side, Side]:
    """Prompts and pairs. are_cuts: whether the flat clusters are cuts of the trees.

    Raises WidgetError if nothing of a side was kept.
    """
    found = (
        _side("prompts", clusters.prompts, "contrast_id", clusters.prompt_tree, is_cut=are_cuts),
        _side("pairs", clusters.pairs, "pair_id", clusters.pair_tree, is_cut=are_cuts),
    )
    if not all(map(len, found)):
        raise WidgetError(
            f"No prompt or pair was kept: every |similarity| is below {clusters.threshold}. Call discover "
            "with a lower threshold."
        )
    return found


def blocks(values: Array, rows: Side, columns: Side) -> pl.DataFrame:
    """`ClusterMap.frame`. values: S in tree order, (prompts, pairs)."""
    found = []
    for one, high in rows.sizes("cluster"):
        mean = values[rows.clusters == one].mean(axis=0)
        found += [
            (one, other, high, wide, float(mean[columns.clusters == other].mean()))
            for other, wide in columns.sizes("cluster")
        ]
    return pl.DataFrame(found, BLOCKS, orient="row")


def _side(name: str, frame: pl.DataFrame, key: str, tree: Tree, *, is_cut: bool) -> Side:
    kept = frame.with_row_index("where").filter("kept")
    ordered = kept.sort("place")
    clusters, habits = (ordered[one].fill_null(NONE).to_numpy() for one in ("cluster", "habit"))
    return Side(
        name,
        ordered[key].to_list(),
        ordered["where"].cast(pl.Int64).to_numpy(),
        clusters,
        habits,
        ordered["cluster"].n_unique() if is_cut else None,
        tree_lines(tree, kept["place"].to_numpy()),
    )


def tree_lines(tree: Tree, places: Labels) -> Array:
    """Left, right, height of the left child, of the right child, and its own, of each joint: (n - 1, 5).

    places: of the leaves in the drawing; a leaf stands at its place + 0.5, a joint between its children.
    """
    count = len(places)
    at = np.concatenate([places + 0.5, np.zeros(len(tree))])
    high = np.zeros(count + len(tree))
    found = np.zeros((len(tree), 5))
    for row, (one, other, height) in enumerate(tree[:, :3].tolist()):
        left, right = sorted((int(one), int(other)), key=lambda child: float(at[child]))
        found[row] = at[left], at[right], high[left], high[right], height
        at[count + row], high[count + row] = (at[left] + at[right]) / 2, height
    return found
