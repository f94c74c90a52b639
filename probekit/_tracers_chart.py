"""The panels of `charts.tracers_chart`, and what they say in words."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import polars as pl

from probekit._chart_parts import BLUE, VERMILLION, ChartError, role

if TYPE_CHECKING:
    import altair as alt

ROLES: dict[str, Any] = {"field": "role", "names": ("tracer", "not outdone")}
QUALITY_WIDTH, SECONDS_WIDTH = 330, 190
STEP = 26  # pixels a tracer


def checked(frame: pl.DataFrame) -> pl.DataFrame:
    """The rows, best first, with what is drawn beside them; ChartError for what cannot be drawn."""
    twice = frame.filter(pl.col("tracer").is_duplicated())["tracer"].unique(maintain_order=True).to_list()
    if twice:
        raise ChartError(
            f"The frame has more than one row for {', '.join(twice)}; draw one organism a chart."
        )
    quality, seconds = pl.col("average_precision"), pl.col("seconds")
    sound = quality.is_between(0, 1) & seconds.is_finite() & (seconds > 0)
    if (odd := frame.filter(~sound.fill_null(False))).height:
        one = odd.row(0, named=True)
        raise ChartError(
            f"{one['tracer']} has average precision {one['average_precision']} and seconds {one['seconds']}; "
            "a tracer is drawn with a number from 0 to 1 and seconds above 0. Leave it out or measure it."
        )
    ordered = frame.sort("average_precision", "seconds", descending=[True, False])
    points = list(ordered.select("average_precision", "seconds").iter_rows())
    best = [not any(q >= own[0] and s <= own[1] and (q, s) != own for q, s in points) for own in points]
    return ordered.with_columns(
        role=pl.Series(["not outdone" if one else "tracer" for one in best]),
        end=pl.max_horizontal("average_precision", "high"),
        quality=quality.map_elements(lambda one: f"{one:.3f}", return_dtype=pl.String),
        took=seconds.map_elements(_seconds, return_dtype=pl.String),
    )


def quality_panel(shown: pl.DataFrame) -> alt.LayerChart:
    import altair as alt

    # room to the right of 1 for the label there
    scale = alt.Scale(domain=[0, 1.16], nice=False)
    axis = alt.Axis(values=[place / 5 for place in range(6)], format=".1f")
    x = alt.X("average_precision:Q", title="average precision", axis=axis, scale=scale)
    base = alt.Chart(shown).encode(y=_y(shown, named=True))
    bars = alt.Chart(shown.filter(pl.col("low").is_not_null())).encode(
        y=_y(shown, named=True), color=_color()
    )
    layers = [
        bars.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", scale=scale), x2="high:Q"),
        _dots(base).encode(x=x),
        base.mark_text(align="left", dx=8).encode(x=alt.X("end:Q", scale=scale), text="quality:N"),
    ]
    return alt.LayerChart(layer=layers, width=QUALITY_WIDTH, height=STEP * shown.height)


def seconds_panel(shown: pl.DataFrame) -> alt.LayerChart:
    import altair as alt

    ordered = shown["seconds"].sort()
    low, high = float(ordered[0]), max(float(ordered[-1]), 10 * float(ordered[0]))
    span = math.log10(high / low)
    # a dot at the edge is whole, and there is room for the label of the rightmost
    scale = alt.Scale(type="log", domain=[low / 10 ** (0.06 * span), high * 10 ** (0.4 * span)], nice=False)
    powers = range(math.ceil(math.log10(low) - 0.06 * span), math.floor(math.log10(high)) + 1)
    axis = alt.Axis(values=[10.0**one for one in powers], format="~g", labelOverlap=True)
    x = alt.X("seconds:Q", title="seconds, log scale", axis=axis, scale=scale)
    base = alt.Chart(shown).encode(x=x, y=_y(shown, named=False))
    layers = [_dots(base), base.mark_text(align="left", dx=8).encode(text="took:N")]
    return alt.LayerChart(layer=layers, width=SECONDS_WIDTH, height=STEP * shown.height)


def tracers_words(shown: pl.DataFrame) -> tuple[list[str], str]:
    """How to read `tracers_chart`, line by line, and what it shows."""
    without = shown["low"].null_count()
    bar = "" if without == shown.height else " Bar: its interval."
    lines = [f"Left, dot: average precision of the ranking.{bar} Right: what it took."]
    if 0 < without < shown.height:
        lines.append(f"No interval was measured for {without} of the {shown.height} tracers.")
    lines.append("Square: no other tracer here is better in as little time, or as good in less.")
    each = (f"{one['tracer']} {one['quality']} in {one['took']}" for one in shown.iter_rows(named=True))
    return lines, f"Average precision and time of {shown.height} tracers, best first: {'; '.join(each)}."


def _dots(base: alt.Chart) -> alt.Chart:
    import altair as alt

    shares = [alt.Tooltip(f"{one}:Q", format=".3f") for one in ("average_precision", "low", "high")]
    tips = [alt.Tooltip("tracer:N"), *shares, alt.Tooltip("seconds:Q", format=".3g")]
    shape = role(alt.Shape, ("circle", "square"), **ROLES)
    return base.mark_point(filled=True, size=80, opacity=1).encode(shape=shape, color=_color(), tooltip=tips)


def _color() -> alt.Color:
    import altair as alt

    color: alt.Color = role(alt.Color, (BLUE, VERMILLION), **ROLES)
    return color


def _y(shown: pl.DataFrame, *, named: bool) -> alt.Y:
    """The same lines in both panels and all layers, whichever tracers are in them."""
    import altair as alt

    axis = alt.Axis(title=None) if named else None
    return alt.Y("tracer:N", sort=None, axis=axis, scale=alt.Scale(domain=shown["tracer"].to_list()))


def _seconds(one: float) -> str:
    """Two digits, or whole seconds."""
    return f"{one:,.0f} s" if one >= 10 else f"{one:.2g} s"
