from __future__ import annotations

import json
import random
import re
from typing import Any
from xml.etree import ElementTree

import polars as pl
import pytest

from probekit import charts
from probekit.charts import ChartError
from probekit.effects import effect_table
from probekit.pairs import load_pairs
from probekit.ranking import SCHEMA, Ranking, enrichment
from probekit.testing import planted_pairs, ranked

OKABE_ITO = {"#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"}
PAIRS = load_pairs(planted_pairs(48))
TRUTH = set(PAIRS.frame.filter(pl.col("source") == "planted")["pair_id"])
RANKING = ranked(sorted(PAIRS.ids, key=lambda one: one not in TRUTH))


def with_scores(scores: list[float], *, method: str = "cosine") -> Ranking:
    ordered = sorted(scores, reverse=True)
    rows = [(place, f"{place:x}", score, score, False) for place, score in enumerate(ordered, 1)]
    return Ranking(pl.DataFrame(rows, schema=SCHEMA, orient="row"), 7, method, "higher = more; range [0, 1]")


def effects_frame(**rates: float) -> pl.DataFrame:
    names = [name.replace("_", " ") for name in rates]
    rows = [
        (arm, seed, f"p{prompt}", True, "caps", 0, "complied" if prompt < 20 * rate + seed else "refused")
        for arm, rate in zip(names, rates.values(), strict=True)
        for seed in range(2)
        for prompt in range(20)
    ]
    columns = ["arm", "seed", "prompt_id", "harmful", "distractor", "sample", "verdict"]
    return effect_table(pl.DataFrame(rows, schema=columns, orient="row"), boot=50)


def sweep_frame(layers: list[int], *, plain: float = 0.02) -> pl.DataFrame:
    """What `steering.layer_sweep` gives for 50 prompts: only the middle layer steers."""
    rows = [(None, "none", 0.0, plain, 0.0)]
    for place, layer in enumerate(layers):
        best = place == len(layers) // 2
        rows += [
            (layer, "random", 3.5, 0.04, 0.1 * best),
            (layer, "behaviour", 3.5, 0.6 if best else 0.1, 0.0),
        ]
    columns = ["layer", "direction", "norm", "complied", "unparsable"]
    return pl.DataFrame(rows, schema=columns, orient="row", infer_schema_length=None).with_columns(
        n=50,
        complied_low=(pl.col("complied") - 0.05).clip(0),
        complied_high=(pl.col("complied") + 0.05).clip(None, 1),
    )


def tracers_frame(*rows: tuple[str, float, float | None, float]) -> pl.DataFrame:
    """Tracers with average precision, half of its interval's width and seconds."""
    columns = ["tracer", "average_precision", "half", "seconds"]
    frame = pl.DataFrame(rows, schema=columns, orient="row").with_columns(pl.col("half").cast(pl.Float64))
    quality, half = pl.col("average_precision"), pl.col("half")
    return frame.with_columns(low=quality - half, high=quality + half).drop("half")


TRACERS = tracers_frame(
    ("chance", 0.15, None, 0.001),
    ("slow", 0.9, 0.05, 400.0),
    ("ours", 0.95, 0.02, 6.0),
    ("length", 0.6, None, 0.01),
    ("tied", 0.6, 0.1, 0.4),
)
SWEEP = sweep_frame([4, 9, 14])
QUALITY = pl.DataFrame({"layer": range(20), "average_precision": [0.3 + 0.03 * i for i in range(20)]})
ENRICHMENT = enrichment(RANKING, PAIRS, k=12)
EFFECTS = effects_frame(baseline=0.9, filter=0.2, random_filter=0.8)
CHARTS = {
    "ranking": charts.ranking_chart(RANKING),
    "ranking with truth": charts.ranking_chart(RANKING, TRUTH, k=12),
    "enrichment": charts.enrichment_chart(ENRICHMENT),
    "arms": charts.arms_chart(EFFECTS),
    "layer sweep": charts.layer_sweep(SWEEP),
    "layer sweep with quality": charts.layer_sweep(SWEEP, QUALITY),
    "layer sweep with a chosen layer": charts.layer_sweep(SWEEP, QUALITY, layer=9),
    "tracers": charts.tracers_chart(TRACERS),
    "tracers without intervals": charts.tracers_chart(TRACERS.with_columns(low=None, high=None)),
}


def every(spec: Any, key: str) -> list[Any]:
    """All values under this key, anywhere in the specification."""
    if isinstance(spec, list):
        return [one for part in spec for one in every(part, key)]
    if not isinstance(spec, dict):
        return []
    found = [one for part in spec.values() for one in every(part, key)]
    return [*found, spec[key]] if key in spec else found


def drawn(chart: charts.Chart) -> list[dict[str, Any]]:
    """The rows of data that the chart draws."""
    return [row for rows in chart.to_dict()["datasets"].values() for row in rows]


@pytest.mark.parametrize("name", CHARTS)
def test_every_chart_has_a_title_a_subtitle_and_a_description_with_numbers(name: str) -> None:
    spec = CHARTS[name].to_dict()
    assert spec["title"]["text"]
    assert spec["title"]["subtitle"]
    assert re.search(r"\d", spec["description"])


@pytest.mark.parametrize("name", CHARTS)
@pytest.mark.parametrize("dark", [False, True])
def test_every_chart_renders_to_well_formed_svg_without_outside_references(name: str, dark: bool) -> None:
    svg = charts.to_svg(CHARTS[name], dark=dark)
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    links = [value for node in root.iter() for key, value in node.attrib.items() if key.endswith("href")]
    assert links == []
    assert "url(http" not in svg


@pytest.mark.parametrize("name", CHARTS)
def test_every_colour_is_of_the_okabe_ito_palette(name: str) -> None:
    spec = CHARTS[name].to_dict() | {"datasets": {}}
    assert set(re.findall(r"#[0-9A-Fa-f]{6}\b", json.dumps(spec | {"config": {}}))) <= OKABE_ITO


def luminance(color: str) -> float:
    parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(("dark", "ground"), [(False, "#ffffff"), (True, "#14171a")])
@pytest.mark.parametrize("name", CHARTS)
def test_marks_and_text_stand_out_from_light_and_dark_pages(name: str, dark: bool, ground: str) -> None:
    root = ElementTree.fromstring(charts.to_svg(CHARTS[name], dark=dark))
    marks = ("bar", "point", "tick", "rule mark")
    shown = [
        (node.get("fill") or node.get("stroke"), 4.5 if node.tag.endswith("text") else 3)
        for node in root.iter()
        if node.tag.endswith("text") or node.get("aria-roledescription") in marks
    ]
    assert {needed for _, needed in shown} == {3, 4.5}
    for color, needed in shown:
        high, low = sorted((luminance(color), luminance(ground)), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= needed, color


def test_the_reference_arm_is_told_by_shape_and_line_and_text_and_not_by_colour_alone() -> None:
    spec = CHARTS["arms"].to_dict()
    shapes = [one["scale"]["range"] for one in every(spec, "shape") if isinstance(one, dict)]
    assert shapes == [["circle", "square"]]
    assert any("random filter" in line for line in spec["title"]["subtitle"])


def test_known_causes_stand_in_a_panel_of_their_own_with_a_heading() -> None:
    panels = CHARTS["ranking with truth"].to_dict()["vconcat"]
    assert [panel["title"]["text"] for panel in panels] == ["known cause (12)", "all other pairs (36)"]


def test_a_truth_that_holds_every_pair_gives_one_panel() -> None:
    panels = charts.ranking_chart(RANKING, PAIRS.ids).to_dict()["vconcat"]
    assert [panel["title"]["text"] for panel in panels] == ["known cause (48)"]


@pytest.mark.parametrize("seed", range(5))
def test_the_histogram_counts_every_pair_once_and_in_its_own_bin(seed: int) -> None:
    rng = random.Random(seed)
    scores = [round(rng.uniform(-1, 1), 2) for _ in range(500)]
    bins = [row for row in drawn(charts.ranking_chart(with_scores(scores))) if "pairs" in row]
    assert sum(one["pairs"] for one in bins) == 500
    assert len(bins) <= charts.BINS
    for one in bins[:-1]:
        inside = [score for score in scores if one["start"] - 1e-9 <= score < one["end"] - 1e-9]
        assert one["pairs"] == len(inside)


@pytest.mark.parametrize("scores", [[0.5], [0.5, 0.5], [0.0], [1.0] * 3, [-1.0, 1.0], [1e-7, 2e-7]])
def test_extreme_sets_of_scores_are_drawn_whole(scores: list[float]) -> None:
    chart = charts.ranking_chart(with_scores(scores))
    bins = drawn(chart)
    assert sum(one["pairs"] for one in bins) == len(scores)
    assert all(one["start"] < one["end"] for one in bins)
    assert charts.to_svg(chart)


def test_probabilities_of_one_do_not_stretch_the_axis_beyond_one() -> None:
    bins = drawn(charts.ranking_chart(with_scores([0.0, 0.5, 1.0], method="probe")))
    assert max(one["end"] for one in bins) == pytest.approx(1)


def test_a_large_ranking_makes_a_small_chart() -> None:
    rng = random.Random(0)
    chart = charts.ranking_chart(with_scores([rng.gauss(0, 0.3) for _ in range(50_000)]))
    assert len(json.dumps(chart.to_dict())) < 20_000


def test_the_line_of_the_top_k_stands_at_the_kth_score() -> None:
    cuts = [row["cut"] for row in drawn(charts.ranking_chart(RANKING, TRUTH, k=12)) if "cut" in row]
    assert set(cuts) == {RANKING.frame["score"][11]}


def test_pairs_without_a_score_are_counted_in_the_subtitle() -> None:
    frame = RANKING.frame.with_columns(
        pl.when(pl.col("rank") > 45).then(None).otherwise("score").alias("score")
    )
    title = charts.ranking_chart(Ranking(frame, 0, "probe", "higher = more")).to_dict()["title"]
    assert title["subtitle"][-1] == "Not shown: 3 pairs without a score."


def test_the_axis_says_method_layer_sign_and_range() -> None:
    title = charts.ranking_chart(with_scores([0.1, 0.9], method="probe")).to_dict()["title"]
    assert "probe score, layer 7" in title["text"]
    assert title["subtitle"][0] == "probe score: higher = more; range [0, 1]"


def test_long_signs_are_broken_into_lines_that_fit() -> None:
    ranking = Ranking(RANKING.frame, 0, "probe", "higher = " + "very " * 60)
    assert all(len(line) <= 105 for line in charts.ranking_chart(ranking).to_dict()["title"]["subtitle"])


def test_groups_are_ordered_by_share_and_labelled_with_counts() -> None:
    rows = [row for row in drawn(CHARTS["enrichment"]) if "label" in row]
    assert rows[0]["group"] == "planted"
    assert rows[0]["label"] == "12 of 12"
    assert [row["share"] for row in rows] == sorted((row["share"] for row in rows), reverse=True)


def test_groups_beyond_the_limit_are_counted_and_not_forgotten() -> None:
    many = pl.DataFrame({"group": [f"g{place:02}" for place in range(33)], "n": 10, "in_top": 1})
    many = many.with_columns(share=0.1, low=0.02, high=0.4, lift=1.0)
    chart = charts.enrichment_chart(many, by="chosen_model")
    assert len([row for row in drawn(chart) if "label" in row]) == 20
    assert chart.to_dict()["title"]["subtitle"][-1] == "Not shown: 13 groups with lower shares."
    assert "33 groups by chosen_model" in chart.to_dict()["description"]


def test_arms_stand_in_the_order_of_the_table_and_show_their_rates_as_text() -> None:
    rows = [row for row in drawn(CHARTS["arms"]) if "label" in row]
    first = [row["arm"] for row in rows][:3]
    assert first == EFFECTS["arm"].to_list()
    assert {row["label"] for row in rows} == {f"{rate:.1%}" for rate in EFFECTS["rate"]}


def test_no_tick_of_a_share_lies_above_100_percent() -> None:
    values = [
        one for axis in every(CHARTS["arms"].to_dict(), "axis") for one in (axis or {}).get("values", [])
    ]
    assert max(values) == 1.0


def test_arms_without_a_comparison_are_drawn_alike() -> None:
    chart = charts.arms_chart(EFFECTS.drop("against"))
    assert {row["role"] for row in drawn(chart) if "role" in row} == {"arm"}
    assert charts.to_svg(chart)


def test_behaviour_and_random_are_told_by_shape_and_line_and_text_and_not_by_colour_alone() -> None:
    spec = CHARTS["layer sweep"].to_dict()
    for channel, values in (("shape", ["circle", "square"]), ("strokeDash", [[1, 0], [6, 4]])):
        found = [one["scale"]["range"] for one in every(spec, channel) if isinstance(one, dict)]
        assert found == [values]
    assert "Circle, solid line: the behaviour vector. Square, dashed line" in spec["title"]["subtitle"][0]


def test_a_sweep_shows_every_layer_with_its_interval_and_what_there_is_without_steering() -> None:
    rows = [row for row in drawn(CHARTS["layer sweep"]) if "complied" in row]
    shown = {(row["layer"], row["direction"], row["complied_low"], row["complied_high"]) for row in rows}
    assert shown == set(SWEEP.select("layer", "direction", "complied_low", "complied_high").iter_rows())
    subtitle, words = CHARTS["layer sweep"].title.subtitle, CHARTS["layer sweep"].description
    assert "Dotted line: without steering, 2.0%." in subtitle
    assert "Unparsable, which is no compliance: at most 10.0% (random, layer 9)." in subtitle
    assert words == (
        "Compliance of 50 replies a layer, at 3 layers. Without steering 2.0%. Highest with the behaviour "
        "vector at layer 9: 60.0%, random 4.0%."
    )


def test_pointing_at_a_layer_marks_it_in_both_panels_which_have_the_same_layers() -> None:
    spec = CHARTS["layer sweep with quality"].to_dict()
    views = {one["name"]: one["views"] for one in spec["params"]}
    for panel, name in zip(spec["vconcat"], ("steered_layer", "ranked_layer"), strict=True):
        assert views[name] == [one["name"] for one in panel["layer"] if "name" in one]
        (marked,) = [one for part in panel["layer"] for one in part.get("transform", [])]
        either = [{"empty": False, "param": one} for one in views]
        assert marked == {"filter": {"or": either}}
        scales = {json.dumps(one["x"]["scale"]) for one in every(panel, "encoding") if "x" in one}
        assert scales == {'{"domain": [-0.5, 19.5], "nice": false, "zero": false}'}
    assert "Average precision is highest at layer 19: 0.870." in spec["description"]
    assert len(CHARTS["layer sweep"].to_dict()["vconcat"]) == 1


@pytest.mark.parametrize("frame", [SWEEP.filter(layer=9), sweep_frame([0], plain=1.0), SWEEP.tail(1)])
def test_sweeps_of_one_layer_and_without_the_plain_replies_are_drawn(frame: pl.DataFrame) -> None:
    assert charts.to_svg(charts.layer_sweep(frame, QUALITY[:1]))


def test_a_chosen_layer_is_marked_in_both_panels_and_named_in_words() -> None:
    chart = charts.layer_sweep(SWEEP, QUALITY, layer=9)
    spec = chart.to_dict()
    assert {"name": "chosen_layer", "value": 9} in spec["params"]
    for panel in spec["vconcat"]:
        assert panel["layer"][0]["transform"] == [{"filter": "(datum.layer === chosen_layer)"}]
        assert panel["layer"][0]["mark"]["type"] == "rule"
    picked = {one["name"]: one["select"]["on"] for one in spec["params"] if "select" in one}
    assert picked == {"steered_layer": "click", "ranked_layer": "click"}
    assert "Layer 9 is marked" in chart.description
    with pytest.raises(ChartError, match=r"no layer 99 to mark; the layers here are \[4, 9, 14\]"):
        charts.layer_sweep(SWEEP, layer=99)


def test_a_tracer_stands_on_the_same_line_in_both_panels_and_every_layer_the_best_first() -> None:
    spec = CHARTS["tracers"].to_dict()
    best = ["ours", "slow", "length", "tied", "chance"]
    lines = [one["scale"]["domain"] for one in every(spec["hconcat"], "y")]
    assert len(lines) == 5
    assert all(one == best for one in lines)


def test_a_tracer_shows_its_quality_interval_and_seconds_as_measured() -> None:
    shown = {
        tuple(row[name] for name in TRACERS.columns) for row in drawn(CHARTS["tracers"]) if "seconds" in row
    }
    assert shown == set(TRACERS.iter_rows())
    assert CHARTS["tracers"].description == (
        "Average precision and time of 5 tracers, best first: ours 0.950 in 6 s; slow 0.900 in 400 s; "
        "length 0.600 in 0.01 s; tied 0.600 in 0.4 s; chance 0.150 in 0.001 s."
    )


def test_tracers_without_an_interval_have_no_bar_and_are_counted() -> None:
    svg = ElementTree.fromstring(charts.to_svg(CHARTS["tracers"]))
    assert len([node for node in svg.iter() if node.get("aria-roledescription") == "rule mark"]) == 3
    subtitle = CHARTS["tracers"].title.subtitle
    assert "No interval was measured for 2 of the 5 tracers." in subtitle
    assert "Bar" in subtitle[0]
    assert "Bar" not in CHARTS["tracers without intervals"].title.subtitle[0]


@pytest.mark.parametrize("seed", range(5))
def test_a_square_marks_every_tracer_that_no_other_outdoes_and_no_other(seed: int) -> None:
    rng = random.Random(seed)
    # with ties in quality, in seconds and in both
    rows = [(f"t{place}", rng.randrange(10) / 10, None, float(rng.randrange(1, 10))) for place in range(30)]
    outdone = {
        name
        for name, quality, _, seconds in rows
        if any(q >= quality and s <= seconds and (q, s) != (quality, seconds) for _, q, _, s in rows)
    }
    chart = charts.tracers_chart(tracers_frame(*rows))
    assert {row["tracer"] for row in drawn(chart) if row.get("role") == "tracer"} == outdone
    shapes = [one["scale"]["range"] for one in every(chart.to_dict(), "shape") if isinstance(one, dict)]
    assert shapes == [["circle", "square"]] * 2


@pytest.mark.parametrize("seconds", [1e-5, 1.0, 4e4])
def test_one_tracer_alone_is_drawn_at_any_cost(seconds: float) -> None:
    assert charts.to_svg(charts.tracers_chart(tracers_frame(("only", 1.0, 0.0, seconds))))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (("ours", 0.5, None, 1.0), "more than one row for ours"),
        (("odd", 1.2, None, 1.0), "odd has average precision 1.2"),
        (("odd", float("nan"), None, 1.0), "odd has average precision nan"),
        (("odd", 0.5, None, 0.0), r"and seconds 0\.0"),
        (("odd", 0.5, None, float("inf")), "and seconds inf"),
    ],
)
def test_tracers_that_cannot_be_drawn_are_refused(
    row: tuple[str, float, float | None, float], words: str
) -> None:
    with pytest.raises(ChartError, match=words):
        charts.tracers_chart(pl.concat([TRACERS, tracers_frame(row)]))


NOTHING = pl.lit(None, pl.Float64)


def test_arms_at_zero_and_without_intervals_are_drawn() -> None:
    nothing = EFFECTS.with_columns(rate=0.0, seed_min=0.0, seed_max=0.0, low=NOTHING, high=NOTHING)
    assert "0.0%" in charts.to_svg(charts.arms_chart(nothing))


def test_text_from_data_is_text_in_the_image() -> None:
    evil = ENRICHMENT.with_columns(group=pl.lit('<script>alert("x")</script>&'))
    root = ElementTree.fromstring(charts.to_svg(charts.enrichment_chart(evil)))
    assert not [node for node in root.iter() if node.tag.endswith("script")]
    assert any("<script>" in (node.text or "") for node in root.iter())


def test_characters_that_would_not_be_seen_stand_by_their_number() -> None:
    rows = ENRICHMENT.with_columns(group=pl.lit("a\x1bb\x00c\u202ed"))
    drawn = charts.to_svg(charts.enrichment_chart(rows.head(1)))
    assert "aU+001BbU+0000cU+202Ed" in drawn


def test_charts_load_no_data_from_the_network() -> None:
    import altair as alt

    chart = alt.Chart("http://127.0.0.1:9/data.csv").mark_point().encode(x="x:Q")
    with pytest.raises(ValueError, match=r"127\.0\.0\.1"):
        charts.to_svg(chart)


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ChartError, match="no pair with a finite score"):
        charts.ranking_chart(Ranking(RANKING.frame.clear(), 0, "cosine", ""))
    with pytest.raises(ChartError, match="k is 49"):
        charts.ranking_chart(RANKING, k=49)
    with pytest.raises(ChartError, match="None of the 1 ids in truth"):
        charts.ranking_chart(RANKING, {"elsewhere"})
    with pytest.raises(ChartError, match="lacks the columns low, high"):
        charts.enrichment_chart(ENRICHMENT.drop("low", "high"))
    with pytest.raises(ChartError, match="no rows"):
        charts.arms_chart(EFFECTS.clear())
    with pytest.raises(ChartError, match='no row with direction "behaviour"'):
        charts.layer_sweep(SWEEP.filter(pl.col("direction") != "behaviour"))
    with pytest.raises(ChartError, match="lacks the columns average_precision"):
        charts.layer_sweep(SWEEP, SWEEP)
    with pytest.raises(ChartError, match="lacks the columns low, high"):
        charts.tracers_chart(TRACERS.drop("low", "high"))
    with pytest.raises(ChartError, match="no rows"):
        charts.tracers_chart(TRACERS.clear())
    with pytest.raises(ChartError, match="more than one metric"):
        charts.arms_chart(pl.concat([EFFECTS, EFFECTS.with_columns(metric=pl.lit("over_refusal"))]))
