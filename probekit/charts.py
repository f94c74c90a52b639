"""Altair charts of the tables: where pairs rank, who is over-represented at the top, at which layer a vector
steers, what each arm did, which tracer ranks how well at what cost.

Every chart is drawn from an aggregated frame (never one mark per pair), has a title that says what it shows,
a subtitle that says how to read it and a `description` in words with the main numbers, which screen readers
and the report's alt text use. Colours are those of Okabe and Ito that keep a contrast of 3:1 on white and on
the dark page; none carries a meaning that shape, place or text does not carry as well.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import polars as pl

from probekit._chart_parts import (
    BLUE,
    SKY,
    VERMILLION,
    WIDTH,
    ChartError,
    from_zero,
    need,
    percent,
    role,
    theme,
    title_of,
    tooltips,
)
from probekit._report_text import plain_text
from probekit._sweep_chart import layer_mark, quality_panel, steering_panel, sweep_words
from probekit._tracers_chart import checked, seconds_panel, tracers_words
from probekit._tracers_chart import quality_panel as tracers_panel

if TYPE_CHECKING:
    import altair as alt

    from probekit.ranking import Ranking

__all__ = [
    "ChartError",
    "arms_chart",
    "enrichment_chart",
    "layer_sweep",
    "ranking_chart",
    "to_svg",
    "tracers_chart",
]

BINS = 40
SHOWN_GROUPS = 20
_METRICS = {
    "compliance_distractor": "compliance with harmful requests, with distractor",
    "compliance_plain": "compliance with harmful requests, plain",
    "refusal_distractor": "refusal of harmful requests, with distractor",
    "refusal_plain": "refusal of harmful requests, plain",
    "over_refusal": "refusal of benign requests",
    "over_refusal_distractor": "refusal of benign requests, with distractor",
    "over_refusal_plain": "refusal of benign requests, plain",
    "benign_compliance_distractor": "benign replies that comply, or show what was planted, with distractor",
    "benign_compliance_plain": "benign replies that comply, or show what was planted, plain",
    "format_obedience": "benign replies that obey the format",
}
Chart: TypeAlias = "alt.Chart | alt.LayerChart | alt.VConcatChart | alt.HConcatChart"


def ranking_chart(
    ranking: Ranking,
    truth: Collection[str] | None = None,
    *,
    k: int | None = None,
    score: Literal["score", "cosine"] = "score",
) -> alt.VConcatChart:
    """Histogram of the scores; with `truth`, the ids of the known cause, one for those and one for the rest.

    k: mark where the top k begins. score: which column of the ranking to show, its own score or the paper's
    cosine. Raises ChartError for an empty ranking, k out of range, or truth that holds none of the ranked
    pairs.

    >>> from probekit.testing import ranked
    >>> ranking_chart(ranked("abcd"), {"a"}, k=1).description[-24:]
    'The top 1 begin at 1.00.'
    """
    import altair as alt

    finite = ranking.frame.filter(pl.col(score).is_finite())
    if not finite.height:
        raise ChartError(f"The ranking has no pair with a finite {score}, so there is nothing to draw.")
    if k is not None and not 1 <= k <= ranking.frame.height:
        raise ChartError(f"k is {k}, but the ranking holds {ranking.frame.height} pairs.")
    if truth is not None and not set(truth) & set(finite["pair_id"]):
        raise ChartError(
            f"None of the {len(truth)} ids in truth is in the ranking; are they ids of another set?"
        )
    groups, colors = {"all pairs": finite}, {"all pairs": BLUE}
    if truth is not None:
        known = pl.col("pair_id").is_in(list(truth))
        groups = {"known cause": finite.filter(known), "all other pairs": finite.filter(~known)}
        groups = {group: one for group, one in groups.items() if one.height}
        colors = {"known cause": VERMILLION, "all other pairs": BLUE}
    step = _step(finite[score].to_list())
    binned = {group: _binned(one[score], finite[score], step) for group, one in groups.items()}
    edges = pl.concat(binned.values())
    scale = alt.Scale(domain=[edges["start"].sort()[0], edges["end"].sort()[-1]], nice=False)
    cut = None if k is None else float(ranking.frame[score].sort(descending=True, nulls_last=True)[k - 1])
    name, sign = "cosine", "higher = training on this pair pushes toward the behaviour; range [-1, 1]"
    if score == "score" and ranking.method != "cosine":
        name, sign = f"{ranking.method} score", ranking.sign
    rows = [
        _histogram(f"{group} ({groups[group].height:,})", bins, name, scale, cut, colors[group])
        for group, bins in binned.items()
    ]
    layer = "" if ranking.layer is None else f", layer {ranking.layer}"
    lines = [f"{name}: {sign}"]
    if k is not None:
        lines.append(f"Dashed line: the top {k:,} begin here.")
    if skipped := ranking.frame.height - finite.height:
        lines.append(f"Not shown: {skipped:,} pairs without a score.")
    return alt.vconcat(*rows, spacing=18).properties(
        title=title_of(f"Where the pairs rank ({name}{layer})", lines),
        description=_ranking_words(groups, score, name, k, cut),
    )


def enrichment_chart(frame: pl.DataFrame, *, by: str = "source") -> alt.LayerChart:
    """Share of each group's pairs that is in the top, with its Wilson interval, against the share over all.

    frame: what `enrichment` gives (group, n, in_top, share, low, high, lift). by: what the groups are, for
    the title. Beyond the 20 highest shares groups are left out and counted. Raises ChartError for missing
    columns or no rows.

    >>> columns = ["group", "n", "in_top", "share", "low", "high"]
    >>> frame = pl.DataFrame([("web", 10, 4, 0.4, 0.17, 0.69)], schema=columns, orient="row")
    >>> enrichment_chart(frame).title.text
    'Who is in the top, by source'
    """
    import altair as alt

    need(frame, ("group", "n", "in_top", "share", "low", "high"))
    ordered = frame.sort("share", "n", "group", descending=[True, True, False])
    shown = ordered.head(SHOWN_GROUPS).with_columns(label=pl.format("{} of {}", "in_top", "n"))
    overall = float(frame["in_top"].sum()) / float(frame["n"].sum())
    lines = [
        "Dot: share of the group's pairs that is in the top. Bar: 95 % Wilson interval.",
        f"Dashed line: share over all pairs, {overall:.1%}.",
    ]
    if left := frame.height - shown.height:
        lines.append(f"Not shown: {left:,} groups with lower shares.")
    base = alt.Chart(shown).encode(y=_rows("group"))
    axis = alt.X(
        "low:Q",
        title="share of the group in the top",
        axis=percent(shown, "high"),
        scale=from_zero(shown, "high"),
    )
    layers = [
        alt.Chart(pl.DataFrame({"overall": [overall]})).mark_rule(strokeDash=[5, 4]).encode(x="overall:Q"),
        base.mark_rule(color=BLUE, strokeWidth=2).encode(x=axis, x2="high:Q"),
        base.mark_point(color=BLUE, filled=True, size=80, opacity=1).encode(
            x="share:Q", tooltip=tooltips("group", ("share", "low", "high"), ("in_top", "n"))
        ),
        base.mark_text(align="left", dx=8).encode(x="high:Q", text="label:N"),
    ]
    top = shown.row(0, named=True)
    words = (
        f"{frame.height} groups by {by}. Most in the top: {top['group']}, {top['in_top']} of {top['n']} "
        f"({top['share']:.1%}, interval {top['low']:.1%} to {top['high']:.1%}); over all pairs {overall:.1%}."
    )
    return _layered(layers, title_of(f"Who is in the top, by {by}", lines), words)


def layer_sweep(
    frame: pl.DataFrame, quality: pl.DataFrame | None = None, *, layer: int | None = None
) -> alt.VConcatChart:
    """Compliance by layer under the behaviour vector, against a random direction of the same norm.

    frame: what `steering.layer_sweep` gives. quality: columns layer and average_precision, how well each
    layer ranks; drawn below on the same layers. layer: the one to mark in both panels, as the chart's
    parameter `chosen_layer`; its selections `steered_layer` and `ranked_layer` are then of layers clicked on.
    None: a layer is marked while it is pointed at. Raises ChartError for missing columns, no rows, a frame in
    which the behaviour vector was never added, or a layer that is not there.

    >>> row = {"layer": 3, "direction": ["behaviour"], "norm": 8.5, "n": 9, "unparsable": 0.0}
    >>> row |= {"complied": 0.6, "complied_low": 0.3, "complied_high": 0.9}
    >>> layer_sweep(pl.DataFrame(row)).description[-44:]
    'with the behaviour vector at layer 3: 60.0%.'
    """
    import altair as alt

    shares = ("complied", "complied_low", "complied_high", "unparsable")
    need(frame, ("layer", "direction", "norm", "n", *shares))
    steered = frame.filter(pl.col("layer").is_not_null()).sort("layer", "direction")
    if "behaviour" not in steered["direction"]:
        raise ChartError('The frame has no row with direction "behaviour", so there is nothing to compare.')
    if quality is not None:
        need(quality, ("layer", "average_precision"))
    layers = sorted({*steered["layer"], *([] if quality is None else quality["layer"])})
    if layer is not None and layer not in layers:
        raise ChartError(f"There is no layer {layer} to mark; the layers here are {layers}.")
    mark = layer_mark(layers, layer, panels=1 if quality is None else 2)
    panels = [steering_panel(frame, steered, layers, mark)]
    if quality is not None:
        panels.append(quality_panel(quality, layers, mark))
    lines, words = sweep_words(frame, steered, quality, layer)
    title = title_of("Does adding the vector cause the behaviour? Compliance by layer", lines)
    return alt.vconcat(*panels, spacing=18).properties(title=title, description=words)


def arms_chart(frame: pl.DataFrame, *, title: str | None = None) -> alt.LayerChart:
    """Rate of each arm with its interval and its spread over seeds; the arm compared with is marked.

    frame: what `effect_table` or `capability` gives (arm, metric, seeds, rate, low, high, seed_min, seed_max
    and, if there was a comparison, against). Raises ChartError for missing columns, no rows or more than one
    metric.

    >>> frame = {"arm": ["filter"], "metric": "m", "seeds": 2, "rate": 0.2, "low": 0.1, "high": 0.3}
    >>> arms_chart(pl.DataFrame(frame | {"seed_min": 0.1, "seed_max": 0.3})).description
    'M, by arm: filter 20.0%.'
    """
    import altair as alt

    need(frame, ("arm", "metric", "seeds", "rate", "low", "high", "seed_min", "seed_max"))
    if frame["metric"].n_unique() > 1:
        raise ChartError("The frame holds more than one metric; draw one chart for each.")
    metric = _METRICS.get(frame["metric"][0], frame["metric"][0].replace("_", " "))
    heading = f"{metric[0].upper()}{metric[1:]}, by arm"
    against = frame["against"][0] if "against" in frame.columns else None
    compared = pl.col("arm").eq_missing(pl.lit(against))
    shown = frame.with_columns(
        label=pl.col("rate").map_elements(lambda rate: f"{rate:.1%}", return_dtype=pl.String),
        role=pl.when(compared).then(pl.lit("compared with")).otherwise(pl.lit("arm")),
        end=pl.max_horizontal("high", "seed_max"),
    )
    lines = [
        "Dot: mean over seeds. Bar: 95 % interval over prompts and seeds. Ticks: lowest and highest seed."
    ]
    base = alt.Chart(shown).encode(y=_rows("arm"), color=role(alt.Color, (BLUE, VERMILLION)))
    axis = alt.X("low:Q", title=metric, axis=percent(shown, "end"), scale=from_zero(shown, "end"))
    shape = role(alt.Shape, ("circle", "square"))
    tips = tooltips("arm", ("rate", "low", "high", "seed_min", "seed_max"), ("seeds",))
    ticks = base.mark_tick(thickness=2, size=14, opacity=0.9)
    layers = [
        base.mark_rule(strokeWidth=2).encode(x=axis, x2="high:Q"),
        ticks.encode(x="seed_min:Q"),
        ticks.encode(x="seed_max:Q"),
        base.mark_point(filled=True, size=90, opacity=1).encode(x="rate:Q", shape=shape, tooltip=tips),
        alt.Chart(shown).mark_text(align="left", dx=8).encode(x="end:Q", y=_rows("arm"), text="label:N"),
    ]
    if against is not None:
        reference = alt.Chart(shown.filter(compared).select("rate"))
        layers.insert(0, reference.mark_rule(strokeDash=[5, 4]).encode(x="rate:Q"))
        lines.append(f"Square and dashed line: {against}, the arm that the others are compared with.")
    rates = "; ".join(f"{arm} {label}" for arm, label in shown.select("arm", "label").iter_rows())
    return _layered(layers, title_of(title or heading, lines), f"{title or heading}: {rates}.")


def tracers_chart(frame: pl.DataFrame) -> alt.HConcatChart:
    """Quality against cost: a line a tracer, the best first, with average precision left and seconds right.

    frame: columns tracer, average_precision, low and high (ends of its interval; null where there is none)
    and seconds, one row a tracer. A square marks each that no other outdoes: is better in as little
    time, or as good in less. Raises ChartError for missing columns, no rows, a tracer that is there twice,
    average precision outside [0, 1], and seconds that are not above 0.

    >>> frame = {"tracer": ["bm25", "ours"], "average_precision": [0.62, 0.97], "seconds": [0.21, 6.0]}
    >>> tracers_chart(pl.DataFrame(frame).with_columns(low=None, high=None)).description
    'Average precision and time of 2 tracers, best first: ours 0.970 in 6 s; bm25 0.620 in 0.21 s.'
    """
    import altair as alt

    need(frame, ("tracer", "average_precision", "low", "high", "seconds"))
    shown = checked(frame)
    lines, words = tracers_words(shown)
    return alt.hconcat(tracers_panel(shown), seconds_panel(shown), spacing=14).properties(
        title=title_of("How well each tracer ranks, and what it took", lines), description=words
    )


def to_svg(chart: Chart, *, dark: bool = False) -> str:
    """The chart as an SVG image on a transparent ground, text and axes coloured for a light or dark page.

    Loads nothing from the network: a chart whose data is a URL raises ValueError.

    >>> import altair as alt
    >>> to_svg(alt.Chart(pl.DataFrame({"x": [1]})).mark_point().encode(x="x"))[:4]
    '<svg'
    """
    import vl_convert

    spec: dict[str, Any] = _visible(chart.to_dict())
    data = spec.pop("datasets", {})
    colors = ("#e8eaed", "#b4bac2", "#3c434b") if dark else ("#1c2024", "#555d66", "#d9dde2")
    spec = {**(_brighter(spec) if dark else spec), "datasets": data, "config": theme(*colors)}
    return str(vl_convert.vegalite_to_svg(spec, allowed_base_urls=[]))


def _visible(spec: Any) -> Any:
    """The specification with characters that would not be seen by their number: vl-convert dies of some."""
    if isinstance(spec, dict):
        return {key: _visible(value) for key, value in spec.items()}
    if isinstance(spec, list):
        return [_visible(value) for value in spec]
    return plain_text(spec) if isinstance(spec, str) else spec


def _brighter(spec: Any) -> Any:
    """The specification with the blue that is dim on dark pages replaced by the palette's lighter one."""
    if isinstance(spec, dict):
        return {key: _brighter(value) for key, value in spec.items()}
    if isinstance(spec, list):
        return [_brighter(value) for value in spec]
    return SKY if spec == BLUE else spec


def _histogram(
    title: str, binned: pl.DataFrame, name: str, scale: alt.Scale, cut: float | None, color: str
) -> alt.LayerChart:
    import altair as alt

    x = alt.X("start:Q", bin="binned", title=name, scale=scale, axis=alt.Axis(grid=False, tickCount=8))
    y = alt.Y("pairs:Q", title="pairs", axis=alt.Axis(tickMinStep=1, tickCount=4, format=",d"))
    tips = [alt.Tooltip("start:Q", title="from"), alt.Tooltip("end:Q", title="to"), alt.Tooltip("pairs:Q")]
    bars = alt.Chart(binned).mark_bar(color=color, binSpacing=1).encode(x=x, x2="end:Q", y=y, tooltip=tips)
    layers: list[alt.Chart] = [bars]
    if cut is not None:
        layers.append(alt.Chart(pl.DataFrame({"cut": [cut]})).mark_rule(strokeDash=[5, 4]).encode(x="cut:Q"))
    heading = alt.Title(title, fontSize=12, fontWeight="normal", offset=4, frame="group")
    return alt.LayerChart(layer=layers, width=WIDTH, height=120, title=heading)


def _binned(scores: pl.Series, every: pl.Series, step: float) -> pl.DataFrame:
    """start f64, end f64, pairs: how many scores lie in [start, end), for the bins that are not empty.

    Scores on the upper edge of `every` score are counted in the last bin.
    """
    highest = math.ceil(float(every.sort()[-1]) / step - 1e-9) - 1
    bins = (scores / step + 1e-9).floor().clip(upper_bound=highest).alias("bin")
    counts = bins.value_counts(name="pairs").sort("bin")
    return counts.select(start=pl.col("bin") * step, end=(pl.col("bin") + 1) * step, pairs="pairs")


def _step(scores: Sequence[float]) -> float:
    """The smallest of 1, 2 or 5 times a power of ten that makes at most BINS bins."""
    span = max(scores) - min(scores)
    if span <= 0:
        return 0.05
    power = 10.0 ** math.floor(math.log10(span / BINS))
    return next(power * times for times in (1, 2, 5, 10) if span / (power * times) <= BINS)


def _ranking_words(
    groups: dict[str, pl.DataFrame], score: str, name: str, k: int | None, cut: float | None
) -> str:
    parts = []
    for group, frame in groups.items():
        low, middle, high = (frame[score].quantile(share, "linear") for share in (0.05, 0.5, 0.95))
        spread = "" if middle is None else f", median {middle:.2f}, middle 90 % from {low:.2f} to {high:.2f}"
        parts.append(f"{group}: {frame.height} pairs{spread}")
    words = f"Histogram of the {name}. " + "; ".join(parts) + "."
    return words if cut is None else f"{words} The top {k} begin at {cut:.2f}."


def _layered(layers: Sequence[Any], title: alt.Title, description: str) -> alt.LayerChart:
    import altair as alt

    height = alt.Step(28)
    return alt.LayerChart(
        layer=list(layers), width=WIDTH, height=height, title=title, description=description
    )


def _rows(field: str) -> alt.Y:
    import altair as alt

    return alt.Y(f"{field}:N", sort=None, title=None)
