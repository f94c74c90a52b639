from __future__ import annotations

import base64
import dataclasses
import json
import re
import struct
import zlib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest
from clustered import World, world
from exported import EVIL, exported
from hypothesis import given
from hypothesis import strategies as st

from probekit.arms import filter_ids
from probekit.clustering import card, cut
from probekit.widgets import ClusterMap, WidgetError
from probekit.widgets import _heat_bins as bins
from probekit.widgets import _heat_picture as pictures
from probekit.widgets._map_sides import BLOCKS, LINES, sides_of

WIDGETS = Path(__file__).parent.parent / "probekit" / "widgets"
WORLD = world()
ROWS, COLUMNS = sides_of(WORLD.clusters, are_cuts=True)
IN_ORDER = WORLD.clusters.similarity.numpy()[ROWS.where][:, COLUMNS.where]


def mapped(made: World = WORLD, *, ranks: bool = False, **options: Any) -> ClusterMap:
    vectors = {"behaviour": made.behaviour, "pair_vectors": made.pair_vectors} if ranks else {}
    return ClusterMap(made.clusters, made.contrasts, made.pairs, **vectors, **options)


def ask(one: ClusterMap, request: int, do: str, **content: Any) -> dict[str, Any]:
    """The view after a message as the browser sends it."""
    one._handle_custom_msg({"do": do, "request": request, **content}, [])
    return one._view


def cells(one: ClusterMap) -> np.ndarray:
    """What was sent, as similarities."""
    wide = len(one._view["sides"][1]["clusters"])
    return np.frombuffer(one._cells, np.int8).reshape(-1, wide) / bins.LEVELS * one._setup["limit"]


# ---------------------------------------------------------------- bins


@st.composite
def windows(draw: st.DrawFn) -> tuple[np.ndarray, bins.Span, bins.Span]:
    high, wide = (draw(st.integers(1, most)) for most in (700, 1200))
    spans = []
    for size in (high, wide):
        first = draw(st.integers(0, size - 1))
        spans.append((first, draw(st.integers(first + 1, size))))
    seed = draw(st.integers(0, 9))
    return np.random.default_rng(seed).normal(size=(high, wide)).astype(np.float32), spans[0], spans[1]


@given(windows())
def test_bins_are_the_means_of_their_cells_and_never_more_than_can_be_sent(case: Any) -> None:
    values, rows, columns = case
    found = bins.mean_bins(values, rows, columns)
    assert all(size <= most for size, most in zip(found.shape, bins.MOST, strict=True))
    deep, wide = (bins.step(span, most) for span, most in zip((rows, columns), bins.MOST, strict=True))
    for y, x in {
        (0, 0),
        (found.shape[0] - 1, found.shape[1] - 1),
        (found.shape[0] // 2, found.shape[1] // 2),
    }:
        top, left = rows[0] + y * deep, columns[0] + x * wide
        part = values[top : min(top + deep, rows[1]), left : min(left + wide, columns[1])]
        assert found[y, x] == pytest.approx(part.astype(float).mean(), abs=1e-5)
    part = values[slice(*rows), slice(*columns)]
    assert found.shape == (-(-part.shape[0] // deep), -(-part.shape[1] // wide)), "nothing is left out"


@given(st.lists(st.integers(-1, 3), min_size=1, max_size=60), st.data())
def test_a_bin_has_the_label_that_is_commonest_in_it_and_its_share_of_marks(
    labels: list[int], data: Any
) -> None:
    first = data.draw(st.integers(0, len(labels) - 1))
    span = (first, data.draw(st.integers(first + 1, len(labels))))
    most = data.draw(st.integers(1, 20))
    found = bins.commonest(np.array(labels), span, most)
    shared = bins.shares(np.array(labels) == 2, span, most)
    size = bins.step(span, most)
    assert len(found) == len(shared) == -(-(span[1] - span[0]) // size) <= most
    for place, (label, share) in enumerate(zip(found, shared, strict=True)):
        some = labels[first + place * size : min(first + (place + 1) * size, span[1])]
        there = [one for one in some if one >= 0]
        assert label == (max(sorted(set(there)), key=there.count) if there else bins.NONE)
        assert share == pytest.approx(100 * some.count(2) / len(some), abs=0.51)


@given(st.floats(-2, 2), st.sampled_from([0.05, 0.4, 1.0]))
def test_a_level_is_off_by_half_a_step_at_most_and_ends_at_the_limit(value: float, limit: float) -> None:
    [level] = bins.levels(np.array([value]), limit)
    assert abs(level / bins.LEVELS * limit - np.clip(value, -limit, limit)) <= limit / bins.LEVELS * 0.501
    assert bins.levels(np.array([-value]), limit)[0] == -level


def test_colours_end_where_nearly_all_similarities_do_whatever_window_is_shown() -> None:
    one = mapped()
    limit = one._setup["limit"]
    assert (np.abs(IN_ORDER) <= limit).mean() >= 0.99
    assert limit < 1
    one.zoom(prompts=(0, 3))
    assert one._setup["limit"] == limit


# ---------------------------------------------------------------- the map


def test_the_map_is_s_in_tree_order_and_a_window_of_it_the_same_cells() -> None:
    one = mapped()
    half = one._setup["limit"] / bins.LEVELS
    assert cells(one) == pytest.approx(IN_ORDER.clip(-one._limit, one._limit), abs=half)
    one.zoom(prompts=(3, 9), pairs=(10, 12))
    assert cells(one) == pytest.approx(IN_ORDER[3:9, 10:12].clip(-one._limit, one._limit), abs=half)
    assert [side["window"] for side in one._view["sides"]] == [[3, 9], [10, 12]]
    one.zoom()
    assert cells(one).shape == IN_ORDER.shape


def test_of_a_large_map_bins_cross_to_the_browser_and_never_the_cells() -> None:
    one = mapped(world(420, 1300, habits=2))
    sent: list[Any] = []
    one._send = lambda message, buffers=None: sent.append((message, buffers))
    size = len(one._cells)
    assert size <= bins.MOST[0] * bins.MOST[1] < 420 * 1300
    ask(one, 1, "zoom", prompts=[100, 400], pairs=[0, 700])
    ask(one, 2, "cut", prompts=12, pairs=20)
    ask(one, 3, "show", cluster=4)
    assert len(sent) >= 3
    assert max(len(json.dumps(message)) for message, _ in sent) < 120_000
    assert max(sum(map(len, buffers or [])) for _, buffers in sent) <= bins.MOST[0] * bins.MOST[1]
    assert all(len(side["lines"]) <= LINES for side in one._view["sides"])


def test_trees_are_drawn_over_their_leaves_and_joints_above_the_cut_are_told() -> None:
    side = ROWS
    leaves = {
        line[place] for line in side.lines.tolist() for place, height in ((0, 2), (1, 3)) if line[height] == 0
    }
    assert leaves == {place + 0.5 for place in range(len(side))}
    drawn = side.lines_in((0, len(side)))
    assert sum(joins for *_, joins in drawn) == 6 - 1
    assert max(height for *_, height, _ in drawn) == 1
    part = side.lines_in((5, 9))
    assert part
    assert all(5 < left < 9 or 5 < right < 9 for left, right, *_ in part)


def test_sliders_change_the_flat_clusters_and_nothing_else() -> None:
    one = mapped()
    before, shown = one._cells, one.shown
    view = ask(one, 1, "cut", prompts=9, pairs=None)
    assert view["sides"][0]["count"] == 9
    assert len(view["sizes"]) == 9
    assert len(set(view["sides"][0]["clusters"])) == 9
    assert one.clusters.prompts.equals(cut(WORLD.clusters, prompts=9).prompts)
    assert one.clusters.pairs.equals(WORLD.clusters.pairs)
    assert ask(one, 2, "cut", prompts=None, pairs=2)["sides"][1]["count"] == 2
    assert (one._cells, one.shown) == (before, shown)
    one.cut(prompts=3, pairs=4)
    assert one.frame.height == 12


def test_the_frame_says_the_mean_similarity_of_each_block() -> None:
    frame = mapped().frame
    assert frame.schema == BLOCKS
    assert frame.height == 6 * 7
    row = frame.row(9, named=True)
    block = IN_ORDER[ROWS.clusters == row["prompt_cluster"]][:, COLUMNS.clusters == row["pair_cluster"]]
    assert (row["prompts"], row["pairs"]) == block.shape
    assert row["similarity"] == pytest.approx(float(block.mean()), abs=1e-6)
    whole = (frame["similarity"] * frame["prompts"] * frame["pairs"]).sum() / IN_ORDER.size
    assert whole == pytest.approx(float(IN_ORDER.mean()), abs=1e-6)


def test_clusters_that_are_no_cuts_have_no_joints_and_what_is_in_none_is_left_out() -> None:
    found = WORLD.clusters
    loose = pl.when(pl.col("place") % 3 > 0).then("cluster")
    odd = dataclasses.replace(found, method="hdbscan", prompts=found.prompts.with_columns(cluster=loose))
    one = ClusterMap(odd, WORLD.contrasts, WORLD.pairs)
    assert not any(line[-1] for line in one._view["sides"][0]["lines"])
    assert bins.NONE in one._view["sides"][0]["clusters"]
    assert one.frame["prompts"].unique().sum() < len(ROWS)
    one.cut(prompts=4)
    assert sum(line[-1] for line in one._view["sides"][0]["lines"]) == 3


# ---------------------------------------------------------------- cards


def test_the_first_habit_is_shown_at_first_and_any_habit_or_cluster_when_asked_for() -> None:
    one = mapped()
    assert one.shown is not None
    assert one.shown.name == one._card["title"] == "habit 1"
    assert ask(one, 1, "show", habit=2)["shown"] == ("habit", 2)
    assert {*one.shown.contrasts["contrast_id"]} == {*WORLD.clusters.contrast_ids(2)}
    view = ask(one, 2, "show", cluster=0)
    assert view["shown"] == ("cluster", 0)
    assert {*one.shown.contrasts["contrast_id"]} == {*ROWS.members("cluster", 0)}
    assert one._card["title"].startswith("cluster 0")
    marked = np.array(view["sides"][0]["card"]) > 0
    assert (marked == (ROWS.clusters == 0)).all()
    assert sum(view["sides"][1]["card"]) == 100 * one.shown.pairs.height
    one.cut(prompts=2)
    assert one._view["shown"] == ("", None), "there may be no such cluster now"


def test_a_brush_on_prompts_gives_their_card_and_one_on_pairs_their_ids() -> None:
    one = mapped()
    view = ask(one, 1, "brush", prompts=[2, 8], pairs=None)
    assert one.brushed_prompts == ROWS.ids[2:8]
    assert {*one.shown.contrasts["contrast_id"]} == {*ROWS.ids[2:8]}
    assert one._card["title"].startswith("6 prompts brushed")
    assert view["brushed"].startswith("Brushed: 6 prompts, mean similarity ")
    before = one.shown
    view = ask(one, 2, "brush", prompts=[2, 8], pairs=[0, 5])
    assert one.brushed_pairs == COLUMNS.ids[:5]
    assert one.shown is before, "made once"
    mean = f"{IN_ORDER[2:8, :5].mean():.3f}".replace("-", "−")
    assert view["brushed"] == f"Brushed: 6 prompts × 5 pairs, mean similarity {mean}."
    assert filter_ids(one.brushed_pairs, "brushed", "by hand").ids == COLUMNS.ids[:5]
    ask(one, 3, "brush", prompts=None, pairs=None)
    assert (one.brushed_prompts, one.brushed_pairs, one._view["brushed"]) == ([], [], "")


def test_a_click_on_a_cluster_of_pairs_brushes_it() -> None:
    one = mapped()
    ask(one, 1, "brush", around=20)
    label = COLUMNS.clusters[20]
    assert one.brushed_pairs == COLUMNS.members("cluster", label)


def test_the_same_card_comes_from_python_and_from_clustering() -> None:
    one = mapped()
    ids = ROWS.ids[3:12]
    one.show(ids=ids)
    made = card(WORLD.clusters, WORLD.contrasts, WORLD.pairs, ids)
    assert one.shown.pair_ids == made.pair_ids
    assert one.shown.label == made.label


# ---------------------------------------------------------------- what is handed on


def test_the_shown_card_is_handed_on_and_ranked_by_if_the_vectors_are_there() -> None:
    one, seen = mapped(ranks=True), []
    one.observe(lambda change: seen.append(change["new"]), "selected")
    assert (one.selected, one.ranking, one._view["handed"]) == (None, None, "")
    ask(one, 1, "show", habit=2)
    view = ask(one, 2, "rank")
    assert one.selected is one.shown
    assert seen == [one.shown]
    wanted = one.selected.ranking(WORLD.behaviour, WORLD.pair_vectors, layer=3)
    assert one.ranking.frame.equals(wanted.frame)
    assert view["selected"]
    assert f"{len(WORLD.pairs)} pairs are ranked by it, in .ranking" in view["handed"]
    assert not ask(one, 3, "show", habit=1)["selected"], "another is shown"
    assert one.selected.name == "habit 2"
    one.selected = None
    assert (one.ranking, one._view["handed"]) == (None, "")


def test_without_vectors_the_card_is_handed_on_alone() -> None:
    one = mapped()
    ask(one, 1, "rank")
    assert one.selected is one.shown
    assert one.ranking is None
    assert filter_ids(one.selected.pair_ids, one.selected.name, one.selected.label).ids


def test_a_control_takes_part_in_the_ranking_and_what_cannot_rank_is_told_in_the_page() -> None:
    control = dataclasses.replace(WORLD.behaviour, kind="twin", values=WORLD.behaviour.values * 0)
    one = mapped(ranks=True, control=control)
    view = ask(one, 1, "rank")
    assert view["problem"]
    assert one.selected is None
    plain, against = (
        mapped(ranks=True, **extra) for extra in ({}, {"control": WORLD.behaviour.select(ROWS.ids[:9])})
    )
    for each in (plain, against):
        ask(each, 1, "rank")
    assert plain.ranking.method != against.ranking.method


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "content",
    [
        {"do": "drop table"},
        {"do": "zoom", "prompts": [5, 5], "pairs": None},
        {"do": "zoom", "prompts": None, "pairs": [0, 10_000]},
        {"do": "zoom", "prompts": None},
        {"do": "brush", "prompts": ["a", "b"], "pairs": None},
        {"do": "brush", "around": 10_000},
        {"do": "cut", "prompts": 0, "pairs": None},
        {"do": "cut", "prompts": "3", "pairs": None},
        {"do": "cut", "prompts": True, "pairs": None},
        {"do": "show", "habit": 99},
        {"do": "show", "cluster": -1},
        {},
    ],
)
def test_what_the_browser_may_not_ask_is_named_and_changes_nothing(content: dict[str, Any]) -> None:
    one = mapped()
    before = {**one._view, "request": 1, "problem": ""}
    one._handle_custom_msg({**content, "request": 1}, [])
    assert one._view["problem"].endswith(".")
    assert {**one._view, "problem": ""} == before
    assert ask(one, 2, "show", habit=1)["problem"] == ""


@pytest.mark.parametrize("content", ["text", None, {"do": "rank"}, {"do": "rank", "request": "1"}])
def test_messages_of_another_form_are_left_alone(content: Any) -> None:
    one = mapped()
    one._handle_custom_msg(content, [])
    assert one.selected is None


def test_requests_older_than_the_last_are_ignored() -> None:
    one = mapped()
    ask(one, 7, "show", habit=3)
    assert ask(one, 6, "show", habit=2)["shown"] == ("habit", 3)


def test_texts_and_vectors_that_were_not_clustered_are_refused_with_what_to_do() -> None:
    found, contrasts, pairs, behaviour, vectors = WORLD
    with pytest.raises(WidgetError, match="no column good; pass what was read"):
        ClusterMap(found, contrasts.drop("good"), pairs)
    with pytest.raises(WidgetError, match="1 pairs are either clustered or given here"):
        ClusterMap(found, contrasts, pairs.select(pairs.ids[1:]))
    with pytest.raises(WidgetError, match="give both behaviour= and pair_vectors="):
        ClusterMap(found, contrasts, pairs, behaviour=behaviour)
    with pytest.raises(WidgetError, match="give both behaviour= and pair_vectors="):
        ClusterMap(found, contrasts, pairs, layer=3)
    with pytest.raises(WidgetError, match=r"pair_vectors and the clusters .*: 1 are in one only"):
        ClusterMap(found, contrasts, pairs, behaviour=behaviour, pair_vectors=vectors.select(pairs.ids[1:]))
    several = dataclasses.replace(found, layers=(3, 4))
    with pytest.raises(WidgetError, match=r"of the layers \(3, 4\); name one to rank at, layer="):
        ClusterMap(several, contrasts, pairs, behaviour=behaviour, pair_vectors=vectors)
    none = dataclasses.replace(found, prompts=found.prompts.with_columns(kept=False), threshold=0.9)
    none = dataclasses.replace(none, prompt_tree=np.zeros((0, 4)))
    with pytest.raises(WidgetError, match=r"every \|similarity\| is below 0.9. Call discover with a lower"):
        ClusterMap(none, contrasts, pairs)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"habit": 4}, "There is no habit 4 of prompts; the numbers here are 1, 2, 3"),
        ({"cluster": 9}, "There is no cluster 9 of prompts; the numbers here are 0, 1, 2, 3, 4 and 1 more"),
        ({"ids": []}, "none given"),
        ({"ids": ["nobody"]}, "nobody"),
        ({}, "give habit=, cluster= or ids="),
        ({"habit": 1, "cluster": 1}, "give habit=, cluster= or ids="),
    ],
)
def test_a_card_of_what_is_not_there_is_an_error(asked: dict[str, Any], words: str) -> None:
    one = mapped()
    with pytest.raises(WidgetError, match=words):
        one.show(**asked)
    assert one.shown.name == "habit 1"


# ---------------------------------------------------------------- untrusted text, exports, files


def test_text_of_data_sets_is_only_text_in_the_page_and_in_exports(monkeypatch: pytest.MonkeyPatch) -> None:
    one = mapped(world(text=EVIL))
    sent = json.dumps([one._setup, one._view, one._card], ensure_ascii=False)
    assert "\u202e" not in sent
    assert "\x1b" not in sent
    assert "U+202E" in sent
    page = exported(one, monkeypatch, state_saved=False)
    mine = page[page.index("Heat map:") :]
    assert "&lt;script&gt;alert(1)" in mine
    assert not re.search("<script>alert|<img src=x|<a href|\u202e|\x1b", mine)
    assert "mathjax_ignore" in page


@pytest.mark.parametrize("state_saved", [False, True])
def test_an_exported_notebook_shows_the_window_the_tables_and_the_card(
    monkeypatch: pytest.MonkeyPatch, state_saved: bool
) -> None:
    one = mapped()
    one.zoom(prompts=(4, 14), pairs=(0, 30))
    page = exported(one, monkeypatch, state_saved=state_saved)
    [(alt, source)] = re.findall(r'<img alt="(Heat map[^"]*)" src="data:image/svg\+xml;base64,([^"]*)"', page)
    assert "3 habits in" in alt
    svg = base64.b64decode(source).decode()
    assert "prompts 4 to 13 of" in svg
    assert "pairs 0 to 29 of" in svg
    [image] = re.findall(r'href="data:image/png;base64,([^"]*)"', svg)
    assert pixels(base64.b64decode(image)).shape == (10, 30)
    habits, blocks = re.findall(r"<table><caption.*?</table>", page, re.DOTALL)
    assert habits.count('<th scope="row"') == 3
    assert "The first 20 of 42." in blocks
    assert "<h4>habit 1" in page


def pixels(data: bytes) -> np.ndarray:
    """The palette's numbers of a PNG without filters."""
    chunks, at = {}, 8
    while at < len(data):
        [size] = struct.unpack(">I", data[at : at + 4])
        chunks[data[at + 4 : at + 8]] = data[at + 8 : at + 8 + size]
        at += size + 12
    wide, high = struct.unpack(">II", chunks[b"IHDR"][:8])
    return np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(high, wide + 1)[:, 1:]


def test_a_png_holds_the_levels_as_near_as_it_has_them() -> None:
    levels = np.array([[-127, 0, 127], [1, -1, 64]], np.int8)
    found = pixels(pictures.png(levels)).astype(int) - 127
    assert (abs(found - levels) <= pictures.COARSE / 2).all()
    assert found[0, 1] == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_stronger_is_further_from_the_ground_in_lightness_and_the_signs_differ_for_the_colour_blind(
    scheme: str,
) -> None:
    colours = np.array(pictures.palette(scheme)) / 255
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    light = linear @ [0.2126, 0.7152, 0.0722]
    steps = np.diff(light)
    assert (steps[:127] > 0).all() == (scheme == "light")
    assert (steps[127:] < 0).all() == (scheme == "light")
    # to those who see no red or no green, blue against yellow is left: the blue channel tells the signs
    strong = slice(32, 127, 16)
    assert (colours[strong, 2] - colours[::-1][strong, 2] > 0.2).all()


def test_the_picture_is_an_svg_of_the_window_without_a_text_of_the_data() -> None:
    view = mapped()
    root = ElementTree.fromstring(view.svg())
    assert root.tag.endswith("svg")
    words = " ".join(root.itertext())
    assert "pairs 0 to" in words
    for text in [*WORLD.contrasts["user"], *WORLD.contrasts["bad"], *WORLD.pairs.frame["chosen"]]:
        assert text not in view.svg()
    before = view.svg()
    view.zoom(prompts=(0, 5))
    assert "prompts 0 to 4" in view.svg() != before


def test_hosts_that_take_one_bundle_get_the_widget_and_the_picture() -> None:
    data, _ = mapped()._repr_mimebundle_()
    assert {"text/plain", "text/html", "application/vnd.jupyter.widget-view+json"} <= data.keys()
    assert data["text/html"].count("<img") == 1


def test_the_repr_is_one_short_line() -> None:
    one = mapped()
    sizes = f"{len(ROWS)} prompts in 6 clusters, {len(COLUMNS)} pairs in 7; 3 habits"
    assert repr(one) == f"ClusterMap({sizes}; habit 1 shown; no card selected)"


def test_the_view_makes_no_markup_from_text_and_loads_nothing() -> None:
    source = (WIDGETS / "cluster_map.js").read_text()
    forbidden = (
        r"\w*HTML\w*|document\.write|\beval\b|\bFunction\(|https?:|//cdn|\bimport\b|fetch|DOMParser|href"
    )
    assert re.findall(forbidden, re.sub(r"^\s*//.*$", "", source, flags=re.MULTILINE)) == []
    style = (WIDGETS / "cluster_map.css").read_text()
    assert not re.search(r"url\(|@import|https?:", style)
    assert set(re.findall(r"--(?:focus|warn): (#\w+);", style)) == {
        "#0072b2",
        "#d55e00",
        "#56b4e9",
        "#e69f00",
    }
