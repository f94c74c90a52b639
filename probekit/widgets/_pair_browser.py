"""PairBrowser: a ranking as a table, the pairs behind it side by side, and marks that come back to Python.

The browser is sent a page of short rows and one pair. It asks in custom messages, each with a number that
rises: what is older than the last one is ignored on both sides. `pair_browser.js` shows and asks, no more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anywidget
import polars as pl
import traitlets

from probekit._pair_rows import few
from probekit.pairs import PairSet
from probekit.ranking import Ranking
from probekit.widgets._answers import Answers
from probekit.widgets._errors import WidgetError
from probekit.widgets._pair_table import (
    BINS,
    NAME,
    Filter,
    bin_counts,
    check_names,
    check_page_size,
    generators,
    opening,
    options,
    page_rows,
    pair_table,
    score_range,
    short,
)
from probekit.widgets._pair_view import pair_view
from probekit.widgets._static import ROWS, StaticTwin, number, static_table
from probekit.widgets._token_scores import checked_tokens

REPLY = 160  # characters of a reply in a cell of the static table
_HERE = Path(__file__).parent


class PairBrowser(Answers, StaticTwin, anywidget.AnyWidget):
    """The ranked pairs as a table with a histogram of their scores, and the chosen pair in full beside it.

    ranking, pairs: of the same pairs; the order is the ranking's. page_size: rows sent to the browser at a
    time, 1 to 200. tokens: scores of tokens to shade, a frame with the columns of `probekit.tokens.SCHEMA`,
    such as `token_scores` gives.

    In the browser: arrows move, space or m marks, / goes to the text filter, PageUp and PageDown turn the
    page. In Python:

    - `marked`: the ids of the marked pairs in rank order, a trait: read it, set it, observe it.
      `pk.filter_ids(browser.marked, "by hand", "marked in the browser")` makes an arm of it.
    - `filter(...)`: what the controls do, for notebooks that run without a browser.
    - `frame`: what the filter leaves, as a polars frame.

    Where no kernel runs (nbconvert, GitHub) the first 20 pairs stand there as a table.

    Raises WidgetError if ranking and pairs do not hold the same pairs, for a page size out of range, tokens
    that do not fit, or marks that are not pairs of the ranking.

    >>> from probekit.pairs import load_pairs
    >>> from probekit.testing import planted_pairs, ranked
    >>> pairs = load_pairs(planted_pairs(8))
    >>> browser = PairBrowser(ranked(pairs.ids), pairs)
    >>> browser.filter(source="planted")
    >>> browser
    PairBrowser(8 pairs by cosine at layer 0; 2 pass: source planted; 0 marked)
    """

    _esm = _HERE / "pair_browser.js"
    _css = _HERE / "pair_browser.css"
    _setup = traitlets.Dict().tag(sync=True)  # what stays: names, options, the histogram of all scores
    _view = traitlets.Dict().tag(sync=True)  # the page, and what the controls show
    _pair = traitlets.Dict().tag(sync=True)  # the selected pair in full, {} if there is none
    marked = traitlets.List(traitlets.Unicode(), help="Ids of the marked pairs, in rank order.")

    def __init__(
        self, ranking: Ranking, pairs: PairSet, *, page_size: int = 50, tokens: pl.DataFrame | None = None
    ) -> None:
        check_page_size(page_size)
        self._table = pair_table(ranking, pairs)
        self._tokens = None if tokens is None else checked_tokens(tokens, self._table)
        self._name = f"{len(ranking):,} pairs by {ranking.name}"
        self._sign = ranking.sign
        self._page_size = page_size
        self._filter, self._page = Filter(), 0
        self._rows = self._passing()
        self._selected: str | None = self._table["pair_id"][0]
        super().__init__(_setup=self._facts(), **self._state())
        self.on_msg(self._answer)

    def __repr__(self) -> str:
        words = self._filter.words()
        passing = f"{len(self._rows)} pass: {short(words, 80)}; " if words else ""
        return f"PairBrowser({self._name}; {passing}{len(self.marked)} marked)"

    @property
    def frame(self) -> pl.DataFrame:
        """The pairs that the filter leaves, in rank order: rank, pair_id, score, cosine, zero_norm, then
        prompt, chosen, rejected, source, chosen_model, rejected_model as in `PairSet`, and marked (bool).
        """
        return (
            self._table[self._rows]
            .drop("bin")
            .with_columns(marked=pl.col("pair_id").is_in(list(self.marked)))
        )

    @property
    def selection(self) -> tuple[str, ...]:
        """The marked pairs as a value that later marks do not change: what `filter_ids`, `swap_ids` take."""
        return tuple(self.marked)

    @property
    def selected(self) -> str | None:
        """The id of the pair that is shown in full; None if no pair passes the filter."""
        return self._selected

    def filter(
        self,
        *,
        source: str | None = None,
        generator: str | None = None,
        low: float | None = None,
        high: float | None = None,
        text: str = "",
        marked_only: bool = False,
    ) -> None:
        """Show the pairs that pass all of these; without arguments, all pairs.

        source: the pair's source. generator: who wrote either reply. low, high: bounds of the score, both
        included. text: occurs in prompt or replies, in any case. Raises WidgetError for a source or
        generator that no pair has.
        """
        wanted = Filter(source, generator, low, high, text, marked_only)
        check_names(wanted, self._table)
        self._show(wanted)
        self._update()

    @traitlets.validate("marked")
    def _in_rank_order(self, proposal: Mapping[str, Any]) -> list[str]:
        wanted = set(proposal["value"])
        ids = self._table["pair_id"]
        found: list[str] = ids.filter(ids.is_in(list(wanted))).to_list() if wanted else []
        if unknown := sorted(wanted - set(found)):
            raise WidgetError(
                f"{len(unknown)} of the {len(wanted)} marked pairs are not in this ranking of {len(ids)}: "
                f"{few(unknown)}. Mark pairs by their pair_id."
            )
        return found

    @traitlets.observe("marked")
    def _marks_changed(self, _: object) -> None:
        if self._filter.marked_only:
            before = self._page_frame()["pair_id"].to_list()
            self._rows = self._passing()
            self._turn_to(self._page, place=before.index(self._selected) if before else 0)
        self._update()

    def _do(self, content: Mapping[str, Any]) -> None:
        match content:
            case {"do": "filter", "filter": dict(given)}:
                names = {field.name for field in dataclasses.fields(Filter)}
                wanted = Filter(**{name: value for name, value in given.items() if name in names})
                check_names(wanted, self._table)
                self._show(wanted)
            case {"do": "page", "page": int(page)}:
                self._turn_to(page, place=self._page_size if content.get("row") == "last" else 0)
            case {"do": "select", "pair_id": str(pair_id)}:
                if pair_id in self._page_frame()["pair_id"]:  # else its page has been left since
                    self._selected = pair_id
            case {"do": "mark", "pair_id": str(pair_id), "marked": bool(marked)}:
                others = [one for one in self.marked if one != pair_id]
                self.marked = [*others, pair_id] if marked else others
            case {"do": "mark all"}:
                self.marked = [*self.marked, *self._table["pair_id"][self._rows]]
            case {"do": "clear"}:
                self.marked = []
            case _:
                raise WidgetError(f"The browser asked for {content.get('do')!r} in a way that is not known.")

    def _passing(self) -> pl.Series:
        return self._table.select(pl.arg_where(self._filter.passes(self.marked))).to_series()

    def _show(self, wanted: Filter) -> None:
        self._filter = wanted
        self._rows = self._passing()
        self._turn_to(0)

    def _turn_to(self, page: int, *, place: int = 0) -> None:
        """Show this page, or the nearest there is; if that loses the selected pair, select at `place`."""
        page = min(max(page, 0), self._pages() - 1)
        turned, self._page = page != self._page, page
        ids = self._page_frame()["pair_id"]
        if not len(ids):
            self._selected = None
        elif turned or self._selected not in ids:
            self._selected = ids[min(place, len(ids) - 1)]

    def _pages(self) -> int:
        return max(1, -(-len(self._rows) // self._page_size))

    def _page_frame(self) -> pl.DataFrame:
        return self._table[self._rows.slice(self._page * self._page_size, self._page_size)]

    def _update(self) -> None:
        with self.hold_sync():
            for name, value in self._state().items():
                setattr(self, name, value)

    def _state(self) -> dict[str, dict[str, Any]]:
        page = self._page_frame()
        view = {
            "request": self._request,
            "problem": self._problem,
            "filter": dataclasses.asdict(self._filter),
            "page": self._page,
            "pages": self._pages(),
            "left": len(self._rows),
            "marked": len(self.marked),
            "counts": bin_counts(self._table["bin"][self._rows]),
            "rows": page_rows(page, set(self.marked)),
            "selected": self._selected,
        }
        return {"_view": view, "_pair": self._pair_state(page)}

    def _pair_state(self, page: pl.DataFrame) -> dict[str, Any]:
        if self._selected is None:
            return {}
        if self._pair.get("pair_id") == self._selected:  # two long replies take a moment to compare
            return dict(self._pair)
        return pair_view(page.filter(pair_id=self._selected).row(0, named=True), self._tokens)

    def _facts(self) -> dict[str, Any]:
        low, high = score_range(self._table)
        sources, other_sources = options(self._table, "source")
        generators, other_generators = options(self._table, "chosen_model", "rejected_model")
        return {
            "name": self._name,
            "sign": self._sign,
            "total": self._table.height,
            "page_size": self._page_size,
            "sources": sources,
            "other_sources": other_sources,
            "generators": generators,
            "other_generators": other_generators,
            "bins": BINS,
            "low": low,
            "high": high,
            "counts": bin_counts(self._table["bin"]),
            "tokens": self._tokens is not None,
            "static": self._static_class,
        }

    def _static_html(self) -> str:
        words = self._filter.words()
        caption = f"{self._name[0].upper()}{self._name[1:]}; {self._sign}."
        caption += f" {len(self._rows):,} of them pass the filter: {words}." if words else ""
        frame = self.frame
        marks = bool(frame["marked"].any())
        names = ("rank", "score", "cosine", "source", "generator", "prompt", "chosen", "rejected")
        rows = [_static_row(row, marks=marks) for row in frame.head(ROWS).iter_rows(named=True)]
        heads = (*names, "marked") if marks else names
        return static_table(heads, rows, caption, self._static_class, total=frame.height)


def _static_row(row: Mapping[str, Any], *, marks: bool) -> list[str]:
    texts = [str(row["rank"]), number(row["score"]), number(row["cosine"]), short(row["source"], NAME)]
    texts += [short(generators(row), NAME), opening(row["prompt"])]
    texts += [short(row[reply], REPLY) for reply in ("chosen", "rejected")]
    return [*texts, "marked" if row["marked"] else ""] if marks else texts
