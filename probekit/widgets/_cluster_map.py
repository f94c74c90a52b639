"""ClusterMap: S as a heat map between its two trees, with the card of what is pointed at beside it.

The browser is sent bins of the window that is shown, a byte each, and one card. It asks in custom messages,
as that of `PairBrowser` does; `cluster_map.js` shows and asks, no more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import anywidget
import polars as pl
import traitlets

from probekit import clustering
from probekit._clusters_trees import Array
from probekit._pair_rows import few
from probekit.clustering import Card, ClusteringError, Clusters, card
from probekit.pairs import PairSet
from probekit.ranking import Ranking
from probekit.vectors import VectorSet
from probekit.widgets._answers import Answers
from probekit.widgets._card_view import card_view
from probekit.widgets._errors import WidgetError
from probekit.widgets._heat_bins import MOST, Span, colour_limit, levels, mean_bins
from probekit.widgets._heat_picture import HABITS, palette, picture
from probekit.widgets._map_sides import blocks, sides_of
from probekit.widgets._map_view import brush_words, heading, static_map
from probekit.widgets._rollout_view import counted
from probekit.widgets._static import StaticTwin, number

_HERE = Path(__file__).parent
_Vectors: TypeAlias = tuple[VectorSet, VectorSet, dict[str, Any]]


class ClusterMap(Answers, StaticTwin, anywidget.AnyWidget):
    """Kept prompts by kept pairs in tree order, coloured by S, with cards of habits and clusters.

    clusters, contrasts, pairs: what `discover` gave, and what the vectors were read from. behaviour,
    pair_vectors: the sets that `discover` took; with them "Rank by this" ranks too, at `layer` (None: that of
    the clusters) and against `control`, as `rank` does.

    A colour is the mean of S over a bin of cells; a window of up to 300 x 520 cells has a bin for each. In
    the browser: a click shows the card of a habit or of a flat cluster; a drag marks a part of either side or
    both ("brushes" it) and shows the card of its prompts; sliders cut the trees. Keys: arrows move, with
    Shift they brush, Enter shows the card, + - 0 zoom, PageUp and PageDown go from cluster to cluster, r
    ranks. In Python:

    - `selected`: the card that was handed on with the button, a trait: read it, set it, observe it;
      `selected.pair_ids` makes an arm, `selected.ranking(...)` a ranking. None until then.
    - `ranking`: by `selected`, if the vectors were given.
    - `show`, `brush`, `zoom`, `cut`: what the controls do. `shown`: the card beside the map;
      `brushed_prompts`, `brushed_pairs`: ids; `clusters`: with the flat clusters of now.
    - `frame`: the map as a table, the mean similarity of each cluster of prompts with each of pairs.

    Where no kernel runs (nbconvert, GitHub) the window stands there as a picture, with tables and the card.

    Raises WidgetError if nothing was kept, if contrasts, pairs or vectors are others than those clustered,
    and if no layer is named where the clusters are of several.

    >>> import torch
    >>> from probekit.clustering import discover
    >>> from probekit.pairs import load_pairs
    >>> from probekit.testing import planted_contrasts, planted_pairs
    >>> pairs, contrasts = load_pairs(planted_pairs(16)), planted_contrasts(16)
    >>> ids, same = contrasts["contrast_id"].to_list(), torch.ones(16, 1, 2)
    >>> behaviour = VectorSet(ids, (3,), same, "01", kind="behaviour")
    >>> found = discover(behaviour, VectorSet(pairs.ids, (3,), same, "01"), draws=20, boot=2)
    >>> ClusterMap(found, contrasts, pairs)
    ClusterMap(16 prompts in 2 clusters, 16 pairs in 2; 1 habit; habit 1 shown; no card selected)
    """

    _esm = _HERE / "cluster_map.js"
    _css = _HERE / "cluster_map.css"
    _setup = traitlets.Dict().tag(sync=True)  # what stays: colours, habits
    _view = traitlets.Dict().tag(sync=True)  # the sides of the window, and what the controls show
    _cells = traitlets.Bytes().tag(sync=True)  # the bins of the window, int8, row by row
    _card = traitlets.Dict().tag(sync=True)  # the card that is shown, {} if there is none
    selected = traitlets.Instance(Card, allow_none=True, help="The card that was handed on.")

    def __init__(
        self,
        clusters: Clusters,
        contrasts: pl.DataFrame,
        pairs: PairSet,
        *,
        behaviour: VectorSet | None = None,
        pair_vectors: VectorSet | None = None,
        layer: int | None = None,
        control: VectorSet | None = None,
    ) -> None:
        self._clusters, self._contrasts, self._pairs = clusters, contrasts, pairs
        self._vectors = _checked(clusters, behaviour, pair_vectors, layer, control)
        self._sides = sides_of(clusters, are_cuts=clusters.method == "ward")
        rows, columns = self._sides
        self._values = clusters.similarity.numpy()[rows.where][:, columns.where]
        self._limit = colour_limit(self._values)
        self._windows: tuple[Span, Span] = (rows.span(None), columns.span(None))
        self._brushes: tuple[Span | None, Span | None] = (None, None)
        self._cards: dict[tuple[str, ...], Card] = {}
        self._card_of(rows.ids[:1])  # which says whether the texts are those that were clustered
        self._ids: tuple[str, ...] = ()
        self._shown: tuple[str, int | None] = ("", None)
        self._ranking: Ranking | None = None
        if len(clusters):
            self._pick(habit=1)
        super().__init__(_setup=self._facts(), **self._state(None))
        self.on_msg(self._answer)

    def __repr__(self) -> str:
        prompts, pairs = (
            f"{counted(len(side), side.name[:-1])} in {len(side.sizes('cluster')):,}" for side in self._sides
        )
        selected = "no card" if self.selected is None else self.selected.name
        return (
            f"ClusterMap({prompts} clusters, {pairs}; {counted(len(self._clusters), 'habit')}; "
            f"{self._name() or 'no card'} shown; {selected} selected)"
        )

    @property
    def clusters(self) -> Clusters:
        """What was given, with the flat clusters of now."""
        return self._clusters

    @property
    def shown(self) -> Card | None:
        """The card beside the map; None if nothing was pointed at."""
        return self._cards.get(self._ids)

    @property
    def ranking(self) -> Ranking | None:
        """All pairs by their pull toward `selected`; None without vectors, or while nothing is selected."""
        return None if self.selected is None else self._ranking

    @property
    def brushed_prompts(self) -> list[str]:
        """The contrast ids of the brush, in tree order; empty without one."""
        return self._sides[0].ids[slice(*(self._brushes[0] or (0, 0)))]

    @property
    def brushed_pairs(self) -> list[str]:
        """The pair ids of the brush, in tree order; empty without one."""
        return self._sides[1].ids[slice(*(self._brushes[1] or (0, 0)))]

    @property
    def frame(self) -> pl.DataFrame:
        """One row for each flat cluster of prompts and of pairs: prompt_cluster, pair_cluster, prompts and
        pairs in them, and their mean similarity. What is in no cluster (HDBSCAN's) is left out.
        """
        return blocks(self._values, *self._sides)

    def svg(self) -> str:
        """The window as a picture, an SVG for a paper: S, trees and cuts, and no text of the data."""
        return picture(self._bins(), self._views(), self._limit)

    def show(
        self, *, habit: int | None = None, cluster: int | None = None, ids: Sequence[str] | None = None
    ) -> None:
        """Show the card of one of these: a habit, a flat cluster of prompts, or prompts by contrast id.

        Raises WidgetError for what is not there, or unless exactly one of them is given.
        """
        self._pick(habit=habit, cluster=cluster, ids=ids)
        self._update()

    def brush(self, *, prompts: Span | None = None, pairs: Span | None = None) -> None:
        """Mark these places of either side, (first, after the last) from 0; without arguments, none.

        If they are prompts, show their card. Raises WidgetError for places that are not there.
        """
        self._brush(prompts, pairs)
        self._update()

    def zoom(self, *, prompts: Span | None = None, pairs: Span | None = None) -> None:
        """Show these places, (first, after the last) from 0; of a side that is not given, all.

        Raises WidgetError for places that are not there.
        """
        self._zoom(prompts, pairs)
        self._update()

    def cut(self, *, prompts: int | None = None, pairs: int | None = None) -> None:
        """Cut the trees into so many flat clusters, as `clustering.cut`; the card stays.

        Raises WidgetError unless they are from 1 to the number kept.
        """
        self._cut(prompts, pairs)
        self._update()

    @traitlets.validate("selected")
    def _ranked(self, proposal: Mapping[str, Any]) -> Card:
        chosen: Card = proposal["value"]  # never None, which traitlets does not check
        if self._vectors is not None:
            behaviour, pair_vectors, options = self._vectors
            self._ranking = chosen.ranking(behaviour, pair_vectors, **options)
        return chosen

    @traitlets.observe("selected")
    def _selected_changed(self, _: object) -> None:
        self._update()

    # ---- what is asked

    def _do(self, content: Mapping[str, Any]) -> None:
        match content:
            case {"do": "zoom", "prompts": prompts, "pairs": pairs}:
                self._zoom(prompts, pairs)
            case {"do": "brush", "prompts": prompts, "pairs": pairs}:
                self._brush(prompts, pairs)
            case {"do": "brush", "around": int(place)}:
                self._brush(self._brushes[0], self._sides[1].run(place))
            case {"do": "cut", "prompts": prompts, "pairs": pairs}:
                self._cut(prompts, pairs)
            case {"do": "show", "habit": int(habit)}:
                self._pick(habit=habit)
            case {"do": "show", "cluster": int(cluster)}:
                self._pick(cluster=cluster)
            case {"do": "rank"} if self.shown is not None:
                self.selected = self.shown
            case _:
                raise WidgetError(f"The browser asked for {content.get('do')!r} in a way that is not known.")

    def _pick(
        self, *, habit: int | None = None, cluster: int | None = None, ids: Sequence[str] | None = None
    ) -> None:
        if sum(one is not None for one in (habit, cluster, ids)) != 1:
            raise WidgetError("A card is of one thing: give habit=, cluster= or ids=.")
        rows, kind = self._sides[0], ""
        if habit is not None:
            kind, ids = "habit", rows.members("habit", habit)
        elif cluster is not None:
            kind, ids = "cluster", rows.members("cluster", cluster)
        which = habit if cluster is None else cluster
        if kind and not ids:
            there = few(number for number, _ in rows.sizes(kind)) or "none"
            raise WidgetError(f"There is no {kind} {which} of prompts; the numbers here are {there}.")
        self._card_of(ids or ())
        self._ids, self._shown = tuple(ids or ()), (kind, which)
        self._brushes = (None, None)

    def _card_of(self, ids: Sequence[str]) -> None:
        """Make the card of these prompts, unless it was: it takes a second for thousands of pairs."""
        if tuple(ids) not in self._cards:
            try:
                made = card(self._clusters, self._contrasts, self._pairs, ids)
            except ClusteringError as error:
                raise WidgetError(str(error)) from error
            self._cards[tuple(ids)] = made

    def _brush(self, prompts: object, pairs: object) -> None:
        rows, columns = (
            None if places is None else side.span(places)
            for places, side in zip((prompts, pairs), self._sides, strict=True)
        )
        if rows is not None:
            self._pick(ids=self._sides[0].ids[slice(*rows)])
        self._brushes = (rows, columns)

    def _zoom(self, prompts: object, pairs: object) -> None:
        rows, columns = self._sides
        self._windows = (rows.span(prompts), columns.span(pairs))

    def _cut(self, prompts: Any, pairs: Any) -> None:
        counts = (prompts, pairs)
        if odd := [one for one in counts if one is not None and type(one) is not int]:
            raise WidgetError(f"{odd[0]!r} clusters were asked for; give a whole number.")
        try:
            self._clusters = clustering.cut(self._clusters, prompts=prompts, pairs=pairs)
        except ClusteringError as error:
            raise WidgetError(str(error)) from error
        rows, columns = (
            old if count is None else new
            for old, new, count in zip(
                self._sides, sides_of(self._clusters, are_cuts=True), counts, strict=True
            )
        )
        self._sides = (rows, columns)
        if prompts is not None and self._shown[0] == "cluster":
            self._shown = ("", None)  # that cluster may be no more

    # ---- what is shown

    def _name(self) -> str:
        kind, which = self._shown
        if not self._ids or kind == "habit":
            return f"habit {which}" if kind else ""
        words = counted(len(self._ids), "prompt")
        return f"cluster {which}" if kind else f"{words} brushed" if self._brushes[0] else words

    def _bins(self) -> Array:
        return levels(mean_bins(self._values, *self._windows), self._limit)

    def _views(self) -> list[dict[str, Any]]:
        marked = (self._ids, () if self.shown is None else self.shown.pair_ids)
        of_sides = zip(self._sides, self._windows, MOST, marked, self._brushes, strict=True)
        return [side.view(window, most, ids, brush) for side, window, most, ids, brush in of_sides]

    def _update(self) -> None:
        with self.hold_sync():
            for name, value in self._state(self.selected).items():
                setattr(self, name, value)

    def _state(self, selected: Card | None) -> dict[str, Any]:
        shown = self.shown
        view = {
            "request": self._request,
            "problem": self._problem,
            "sides": self._views(),
            "sizes": self._sides[0].sizes("cluster"),
            "shown": self._shown,
            "brushed": brush_words(self._values, self._brushes, self._sides),
            "selected": selected is not None and selected is shown,
            "handed": _handed(selected, self._ranking),
        }
        nulls = (self._clusters.push_null, self._clusters.turn_null)
        sent = {} if shown is None else card_view(shown, nulls, self._name())
        return {"_view": view, "_cells": self._bins().tobytes(), "_card": sent}

    def _facts(self) -> dict[str, Any]:
        habits = self._clusters.habits.select("habit", "prompts", "pairs", "tightness")
        return {
            "words": heading(self._clusters, self._sides),
            "limit": self._limit,
            "palettes": {scheme: palette(scheme) for scheme in ("light", "dark")},
            "colours": HABITS,
            "habits": [[*row[:3], number(row[3])] for row in habits.iter_rows()],
            "ranks": self._vectors is not None,
            "static": self._static_class,
        }

    def _static_html(self) -> str:
        words = heading(self._clusters, self._sides)
        shown = "" if self.shown is None else self.shown._repr_html_()
        name = self._static_class
        found = static_map(self._clusters, self.svg(), words, self.frame, name)
        return f'<div class="{name} tex2jax_ignore mathjax_ignore">{found}{shown}</div>'


def _handed(selected: Card | None, ranking: Ranking | None) -> str:
    """What was handed on, in words."""
    if selected is None:
        return ""
    size = counted(selected.contrasts.height, "prompt")
    ranked = "" if ranking is None else f" {len(ranking):,} pairs are ranked by it, in .ranking."
    return f"Handed on in .selected: {selected.name}, {size}.{ranked}"


def _checked(
    clusters: Clusters,
    behaviour: VectorSet | None,
    pair_vectors: VectorSet | None,
    layer: int | None,
    control: VectorSet | None,
) -> _Vectors | None:
    """What `Card.ranking` takes; None without vectors."""
    if behaviour is None or pair_vectors is None:
        if all(one is None for one in (behaviour, pair_vectors, layer, control)):
            return None
        raise WidgetError("To rank, give both behaviour= and pair_vectors=, the sets that discover took.")
    given = (("behaviour", behaviour, clusters.prompts["contrast_id"]),
             ("pair_vectors", pair_vectors, clusters.pairs["pair_id"]))  # fmt: skip
    for name, vectors, ids in given:
        if unlike := sorted({*vectors.ids} ^ {*ids}):
            raise WidgetError(
                f"{name} and the clusters do not have the same ids: {len(unlike)} are in one only, "
                f"{few(unlike)}. Give the vectors that discover took."
            )
    if layer is None and len(clusters.layers) > 1:
        raise WidgetError(f"The clusters are of the layers {clusters.layers}; name one to rank at, layer=.")
    return (
        behaviour,
        pair_vectors,
        {"layer": clusters.layers[0] if layer is None else layer, "control": control},
    )
