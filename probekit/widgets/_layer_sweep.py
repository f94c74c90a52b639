"""LayerSweep: how well each layer ranks and how much adding the vector there does, with one layer chosen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ipywidgets
import polars as pl
import traitlets

from probekit import charts
from probekit._report_text import format_number
from probekit._sweep_chart import CHOSEN
from probekit.steering import by_layer
from probekit.widgets._chart_view import chart_style, live_chart, still_chart
from probekit.widgets._errors import WidgetError
from probekit.widgets._static import StaticTwin, hiding, static_table

_CLASS = "probekit-sweep"
_STYLE = f"""
.{_CLASS} table {{ border-collapse: collapse; margin-top: 0.5em; }}
.{_CLASS} caption {{ text-align: left; }}
.{_CLASS} th, .{_CLASS} td {{
  padding: 0.15em 0.8em 0.15em 0; text-align: right; font-variant-numeric: tabular-nums;
  border-bottom: 1px solid var(--jp-border-color2, #8886);
}}
.{_CLASS} tr[aria-current] {{ font-weight: bold; outline: 2px solid currentcolor; }}
"""
_HEADS = ("layer", "behaviour vector", "random direction", "unparsable", "average precision", "chosen")


class LayerSweep(StaticTwin, ipywidgets.VBox):
    """A sweep as a chart and a table with one layer chosen: by a click, by its number, or in Python.

    sweep: what `steering.layer_sweep` gives. quality: columns layer and average_precision, how well each
    layer ranks. layer: the one to begin with; None takes the one with most compliance under the vector.

    - `layer`: the chosen layer, a trait: read it, set it, observe it.
    - `frame`: the sweep with one row a layer, as `steering.by_layer` gives it.

    Where no kernel runs (nbconvert, GitHub) the chart stands there as a picture, with the table.

    Raises WidgetError for a layer that is not there, and what `charts.layer_sweep` and `steering.by_layer`
    raise for frames that are no sweep.

    >>> row = {"layer": [3, 5], "direction": ["behaviour"] * 2, "norm": 8.5, "n": 9, "unparsable": 0.0}
    >>> row |= {"complied": [0.2, 0.6], "complied_low": 0.1, "complied_high": 0.9}
    >>> LayerSweep(pl.DataFrame(row))
    LayerSweep(2 layers; layer 5 chosen)
    """

    layer = traitlets.Int(help="The chosen layer.")

    def __init__(
        self, sweep: pl.DataFrame, quality: pl.DataFrame | None = None, *, layer: int | None = None
    ) -> None:
        self._sweep, self._quality = sweep, quality
        self._table = by_layer(sweep, quality)
        self._layers: list[int] = self._table["layer"].to_list()
        charts.layer_sweep(sweep, quality)  # which says what is wrong with a frame
        best = self._table.sort("behaviour", descending=True, nulls_last=True, maintain_order=True)
        first = best["layer"][0] if layer is None else layer
        self._check(first)
        self._chart = live_chart(charts.layer_sweep(sweep, quality, layer=first))
        # a number, not a list: JupyterLab takes a list's arrow keys for its own, see `_choice`
        ends = {"min": self._layers[0], "max": self._layers[-1]}
        self._number = ipywidgets.BoundedIntText(description="Layer", value=first, **ends)
        self._rows = ipywidgets.HTML()
        style = ipywidgets.HTML(f"<style>{hiding(self._static_class)}{chart_style(_CLASS)}{_STYLE}</style>")
        super().__init__([style, self._number, self._chart, self._rows], layer=first)
        self.add_class(_CLASS)
        self._number.observe(self._counted, "value")
        self._chart.selections.observe(self._clicked)
        self._show()

    def __repr__(self) -> str:
        return f"LayerSweep({len(self._layers)} layers; layer {self.layer} chosen)"

    @property
    def frame(self) -> pl.DataFrame:
        """One row a layer, with the columns of `steering.BY_LAYER_COLUMNS`."""
        return self._table

    @traitlets.validate("layer")
    def _checked(self, proposal: Mapping[str, Any]) -> int:
        self._check(proposal["value"])
        return int(proposal["value"])

    def _check(self, layer: int) -> None:
        if layer not in self._table["layer"]:
            raise WidgetError(
                f"There is no layer {layer}; the layers here are {', '.join(map(str, self._table['layer']))}."
            )

    @traitlets.observe("layer")
    def _layer_changed(self, _: object) -> None:
        if self.children:  # else it is being made
            self._show()

    def _counted(self, change: Mapping[str, Any]) -> None:
        """To the layer of this number, or the next in the direction of the step if there is none."""
        wanted, up = change["new"], change["new"] > self.layer
        beyond = [layer for layer in self._layers if (layer >= wanted if up else layer <= wanted)]
        self.layer = beyond[0 if up else -1]
        self._number.value = self.layer

    def _clicked(self, change: Mapping[str, Any]) -> None:
        picked = [one.get("layer") for one in change["new"].value or ()]
        known = [layer for layer in picked if layer in self._layers]
        if known:  # a click elsewhere chooses nothing
            self.layer = int(known[0])

    def _show(self) -> None:
        self._number.value = self.layer
        self._chart.params.set_trait(CHOSEN, self.layer)
        head = "".join(f'<th scope="col">{name}</th>' for name in _HEADS)
        rows = []
        for row in self._table.iter_rows(named=True):
            layer, *cells = _cells(row, chosen=row["layer"] == self.layer)
            current = ' aria-current="true"' if row["layer"] == self.layer else ""
            tags = "".join(f"<td>{cell}</td>" for cell in cells)
            rows.append(f'<tr{current}><th scope="row">{layer}</th>{tags}</tr>')
        self._rows.value = (
            f"<table><caption>{_CAPTION}</caption><thead><tr>{head}</tr></thead>"
            f"<tbody>{''.join(rows)}</tbody></table>"
        )

    def _static_html(self) -> str:
        rows = [_cells(row, chosen=row["layer"] == self.layer) for row in self._table.iter_rows(named=True)]
        table = static_table(_HEADS, rows, _CAPTION, self._static_class, total=len(rows))
        picture = still_chart(charts.layer_sweep(self._sweep, self._quality, layer=self.layer))
        return f'<div class="{self._static_class}">{picture}{table}</div>'


_CAPTION = "Compliance with the vector added, and with a random direction of its norm, with 95 % intervals."


def _cells(row: Mapping[str, Any], *, chosen: bool) -> list[str]:
    shares = []
    for name in ("behaviour", "random"):
        ends = " to ".join(_share(row[f"{name}_{end}"]) for end in ("low", "high"))
        shares.append("–" if row[name] is None else f"{_share(row[name])} ({ends})")
    quality = row["average_precision"]
    shares += [_share(row["unparsable"]), "–" if quality is None else format_number(quality, decimals=3)]
    return [str(row["layer"]), *shares, "◀ chosen" if chosen else ""]


def _share(value: float | None) -> str:
    return "–" if value is None else format_number(value, percent=True)
