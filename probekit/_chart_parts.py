"""What the charts share: colours, axes that begin at 0, titles, and checks of the tables drawn."""

from __future__ import annotations

import base64
import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

if TYPE_CHECKING:
    import altair as alt

BLUE, SKY, VERMILLION = "#0072B2", "#56B4E9", "#D55E00"  # of the palette of Okabe and Ito
WIDTH = 640


class ChartError(ValueError):
    """A table that a chart cannot show: missing columns, no rows, no finite score."""


def role(
    channel: Any,
    values: tuple[Any, Any],
    field: str = "role",
    names: tuple[str, str] = ("arm", "compared with"),
) -> Any:
    import altair as alt

    return channel(f"{field}:N", scale=alt.Scale(domain=list(names), range=list(values)), legend=None)


def _end(frame: pl.DataFrame, column: str) -> float:
    """Where the longest bar ends, at least 1 %."""
    return max(0.01, *(float(one) for one in frame[column].drop_nulls()))


def from_zero(frame: pl.DataFrame, column: str) -> alt.Scale:
    import altair as alt

    # room to the right of the longest bar for its label
    return alt.Scale(domain=[0, _end(frame, column) * 1.18], nice=False)


def percent(frame: pl.DataFrame, column: str) -> alt.Axis:
    import altair as alt

    end = min(1.0, _end(frame, column) * 1.18)
    step = next(
        size for size in (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2) if end / size <= 10 or size == 0.2
    )
    values = [round(step * place, 3) for place in range(math.floor(end / step + 1e-9) + 1)]
    return alt.Axis(format=".1~%", values=values)


def tooltips(name: str, shares: Sequence[str], counts: Sequence[str]) -> list[alt.Tooltip]:
    import altair as alt

    quantities = [*((one, ".1%") for one in shares), *((one, ",d") for one in counts)]
    return [alt.Tooltip(f"{name}:N"), *(alt.Tooltip(f"{one}:Q", format=form) for one, form in quantities)]


def title_of(text: str, lines: Sequence[str]) -> alt.Title:
    import altair as alt

    return alt.Title(text, subtitle=[part for line in lines for part in textwrap.wrap(line, 105)])


def need(frame: pl.DataFrame, columns: Sequence[str]) -> None:
    if missing := [one for one in columns if one not in frame.columns]:
        raise ChartError(
            f"The frame lacks the columns {', '.join(missing)}; it has {', '.join(frame.columns)}."
        )
    if not frame.height:
        raise ChartError("The frame has no rows, so there is nothing to draw.")


def data_url(svg: str) -> str:
    """An SVG image as the address of an <img>."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def theme(text: str, faint: str, line: str) -> dict[str, Any]:
    """Vega-Lite's config for a transparent ground: colours of text, of lesser text and of lines."""
    # metrically the same as the font vl-convert measures with, so that labels fit where they are put
    font = "Arial, 'Liberation Sans', Helvetica, sans-serif"
    axis = {
        "labelColor": text, "titleColor": faint, "gridColor": line, "domainColor": line, "tickColor": line,
        "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "labelLimit": 260,
        "labelFlush": False,
    }  # fmt: skip
    return {
        "background": "transparent",
        "padding": {"left": 0, "right": 8, "top": 4, "bottom": 4},
        "font": font,
        "axis": axis,
        "axisY": {"domain": False, "ticks": False, "labelPadding": 10},
        "title": {
            "color": text, "subtitleColor": faint, "fontSize": 15, "subtitleFontSize": 12, "anchor": "start",
            "frame": "bounds", "offset": 14, "subtitlePadding": 5,
        },
        "text": {"color": text, "fontSize": 12},
        "rule": {"color": text},
        "view": {"stroke": None},
    }  # fmt: skip
