"""The panels of `charts.layer_sweep`, and what they say in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl

from probekit._chart_parts import BLUE, VERMILLION, WIDTH, from_zero, percent, role, tooltips

if TYPE_CHECKING:
    import altair as alt


PICKED = ("steered_layer", "ranked_layer")  # the panels' selections
CHOSEN = "chosen_layer"  # the parameter


def steering_panel(
    frame: pl.DataFrame, steered: pl.DataFrame, layers: Sequence[int], mark: LayerMark
) -> alt.LayerChart:
    import altair as alt

    pair: dict[str, Any] = {"field": "direction", "names": ("behaviour", "random")}
    # side by side, or one interval would hide the other
    at = pl.col("layer") + pl.when(pl.col("direction") == "random").then(0.1).otherwise(-0.1)
    axis, scale = percent(frame, "complied_high"), from_zero(frame, "complied_high")
    x, y = _layer_axis(layers), alt.Y("complied:Q", title="compliance", axis=axis, scale=scale)
    color = role(alt.Color, (BLUE, VERMILLION), **pair)
    both = {
        one: pl.col("complied").filter(pl.col("direction") == one).first().over("layer")
        for one in pair["names"]
    }
    base = alt.Chart(steered.with_columns(at=at, **both)).encode(x=x, y=y, color=color)
    # No text among them: where the nearest point is picked, Vega-Lite 6 shows texts as undefined.
    shares = ("behaviour", "random", "complied_low", "complied_high", "unparsable")
    _, *tips = tooltips("direction", shares, ("layer", "n"))
    points = base.mark_point(filled=True, size=90, opacity=1).encode(
        shape=role(alt.Shape, ("circle", "square"), **pair),
        tooltip=[*tips, alt.Tooltip("norm:Q", format=".3g")],
    )
    best = pl.DataFrame([_best(steered)]).with_columns(
        at=at, label=pl.lit(f"{_best(steered)['complied']:.1%}")
    )
    text = (
        alt.Chart(best).mark_text(align="left", dx=5, dy=-9).encode(x=x, y="complied_high:Q", text="label:N")
    )
    plain = alt.Chart(frame.filter(pl.col("layer").is_null()))
    rows = [
        mark.rule,
        plain.mark_rule(strokeDash=[1, 3], strokeWidth=2).encode(y=y),
        base.mark_rule(strokeWidth=2).encode(y="complied_low:Q", y2="complied_high:Q"),
        base.mark_line().encode(strokeDash=role(alt.StrokeDash, ([1, 0], [6, 4]), **pair)),
        points.add_params(*mark.steered),
        text,
    ]
    return alt.LayerChart(layer=rows, width=WIDTH, height=220)


def quality_panel(quality: pl.DataFrame, layers: Sequence[int], mark: LayerMark) -> alt.LayerChart:
    import altair as alt

    y = alt.Y(
        "average_precision:Q",
        title="average precision",
        axis=alt.Axis(tickCount=4),
        scale=alt.Scale(domain=[0, 1]),
    )
    base = alt.Chart(quality.with_columns(at="layer")).encode(x=_layer_axis(layers), y=y)
    points = base.mark_point(color=BLUE, filled=True, size=60, opacity=1, shape="diamond").encode(
        tooltip=["layer:Q", alt.Tooltip("average_precision:Q", format=".3f")]
    )
    rows = [mark.rule, base.mark_line(color=BLUE), points.add_params(*mark.ranked)]
    return alt.LayerChart(layer=rows, width=WIDTH, height=120)


def _layer_axis(layers: Sequence[int]) -> alt.X:
    import altair as alt

    axis = alt.Axis(values=list(layers), format="d", grid=False, labelOverlap=True)
    scale = alt.Scale(domain=[layers[0] - 0.5, layers[-1] + 0.5], nice=False, zero=False)
    return alt.X("at:Q", title="layer (output of this block, from 0)", axis=axis, scale=scale)


class LayerMark(NamedTuple):
    """A line at one layer, and the parameters by which each panel moves it."""

    rule: alt.Chart
    steered: list[alt.Parameter]
    ranked: list[alt.Parameter]


def layer_mark(layers: Sequence[int], layer: int | None, *, panels: int) -> LayerMark:
    """The line at the layer that is pointed at in any of the panels, or at `layer`."""
    import altair as alt

    event = "pointerover" if layer is None else "click"
    picked = [
        alt.selection_point(name, fields=["layer"], on=event, nearest=True, empty=False)
        for name in PICKED[:panels]
    ]
    every = alt.Chart(pl.DataFrame({"layer": layers}).with_columns(at="layer"))
    if layer is None:
        chosen: list[alt.Parameter] = []
        where: Any = picked[0] if len(picked) == 1 else picked[0] | picked[1]
    else:
        chosen = [alt.param(CHOSEN, value=layer)]
        where = alt.datum.layer == chosen[0]
    rule = every.transform_filter(where).mark_rule(strokeWidth=1 if layer is None else 2)
    return LayerMark(rule.encode(x=_layer_axis(layers)), [picked[0], *chosen], picked[1:])


def _best(steered: pl.DataFrame) -> dict[str, Any]:
    """The row of the behaviour vector with most compliance, the first of equal ones."""
    rows = steered.filter(pl.col("direction") == "behaviour")
    return rows.sort("complied", descending=True, maintain_order=True).row(0, named=True)


def sweep_words(
    frame: pl.DataFrame, steered: pl.DataFrame, quality: pl.DataFrame | None, layer: int | None
) -> tuple[list[str], str]:
    """How to read `layer_sweep`, line by line, and what it shows."""
    best, plain = _best(steered), frame.filter(pl.col("layer").is_null())["complied"].to_list()
    lines = [
        "Circle, solid line: the behaviour vector. Square, dashed line: a random direction of the same norm.",
        "Bar: 95 % Wilson interval of the share of all replies.",
    ]
    words = f"Compliance of {best['n']} replies a layer, at {steered['layer'].n_unique()} layers."
    if plain:
        lines.append(f"Dotted line: without steering, {plain[0]:.1%}.")
        words += f" Without steering {plain[0]:.1%}."
    worst = frame.sort("unparsable", descending=True, maintain_order=True).row(0, named=True)
    if share := worst["unparsable"]:
        where = "" if worst["layer"] is None else f", layer {worst['layer']}"
        lines.append(
            f"Unparsable, which is no compliance: at most {share:.1%} ({worst['direction']}{where})."
        )
    words += f" Highest with the behaviour vector at layer {best['layer']}: {best['complied']:.1%}"
    other = steered.filter(pl.col("direction") == "random", pl.col("layer") == best["layer"])
    words += f", random {other['complied'][0]:.1%}." if other.height else "."
    if quality is not None:
        lines.append("Diamond: average precision of the ranking.")
        top = quality.sort("average_precision", descending=True, maintain_order=True).row(0, named=True)
        words += f" Average precision is highest at layer {top['layer']}: {top['average_precision']:.3f}."
    if layer is not None:
        lines.append(f"Upright line: the chosen layer, at first {layer}.")
        words += f" Layer {layer} is marked."
    elif quality is not None:
        lines[-1] += " Pointing at a layer marks it in both panels."
    return lines, words
