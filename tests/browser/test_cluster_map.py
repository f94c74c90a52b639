"""The view of ClusterMap in a real Chromium, alone on a page, with its real Python side behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from clustered import World, world
from exported import EVIL
from stage import FILES, ROOT, chromium, walk

from benchmarks.lab import jupyter_lab
from probekit.widgets import ClusterMap

pytestmark = pytest.mark.browser

HELP = """
const find = (selector) => host.querySelector(selector);
const all = (selector) => [...host.querySelectorAll(selector)];
const button = (name) => all("button").find((one) => one.textContent === name);
const title = () => find(".title").textContent;
const press = async (model, key, more = {}) => {
  const event = new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true, ...more });
  document.activeElement.dispatchEvent(event);
  await pause(260);
  await model.settled();
};
const slide = async (model, range, value) => {
  range.value = value;
  range.dispatchEvent(new Event("input", { bubbles: true }));
  await pause(260);
  await model.settled();
};
// across the cells, as shares of them; below 0 is in the trees
const drag = async (model, from, to) => {
  const canvas = find("canvas");
  canvas.setPointerCapture = () => {}; // for real pointers alone
  const box = canvas.getBoundingClientRect();
  const [wide, high] = [box.width - 108 - 46, box.height - 108 - 24];
  const point = (type, [x, y]) => canvas.dispatchEvent(new PointerEvent(type, {
    clientX: box.left + (x < 0 ? -x : 108 + x * wide), clientY: box.top + (y < 0 ? -y : 108 + y * high),
    button: 0, bubbles: true,
  }));
  point("pointerdown", from);
  point("pointermove", to);
  point("pointerup", to);
  await model.settled();
};
const colours = () => {
  const canvas = find("canvas");
  const image = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  const found = new Map();
  for (let at = 0; at < image.length; at += 4) {
    const one = image.slice(at, at + 3).join();
    found.set(one, (found.get(one) ?? 0) + 1);
  }
  return found;
};
"""


@pytest.fixture(scope="module")
def made() -> World:
    return world(60, 240)


def mapped(made: World) -> ClusterMap:
    vectors: dict[str, Any] = {"behaviour": made.behaviour, "pair_vectors": made.pair_vectors}
    return ClusterMap(made.clusters, made.contrasts, made.pairs, **vectors)


def test_a_slider_makes_clusters_a_click_shows_one_and_its_card_is_ranked_by(made: World) -> None:
    one = mapped(made)
    steps = """
    const { model } = await open(host);
    const seen = { first: title(), cut: all("output").map((one) => one.textContent) };
    await slide(model, all("input[type=range]")[0], 4);
    seen.slid = [all("output")[0].textContent, all("option").length];
    await drag(model, [0.02, 0.03], [0.02, 0.03]); // a click on a cell in the first row
    seen.clicked = [title(), find("select").value];
    await drag(model, [-104, 0.99], [-104, 0.99]); // on the last prompt's strip
    seen.last = title();
    await drag(model, [-94, 0.03], [-94, 0.03]); // on the strip of habits
    seen.habit = title();
    seen.pressed = all(".habits [aria-pressed=true]").length;
    all(".habits button")[1].click();
    await model.settled();
    seen.other = title();
    await drag(model, [0.02, -82], [0.02, -82]); // on a pair's cluster
    seen.pairs = all("[role=status]").map((one) => one.textContent).join("|");
    button("Rank by this").click();
    await model.settled();
    seen.handed = all("section [role=status]")[1].textContent;
    seen.rank = find("section button").textContent;
    return seen;
    """
    seen, asked = walk(one, HELP + steps, "map-click")
    assert seen["first"] == "habit 1"
    assert seen["cut"] == ["6", "7"]
    assert seen["slid"] == ["4", 5]
    rows = one._sides[0]
    labels = [one.clusters.prompts.filter(place=place)["cluster"].item() for place in (0, len(rows) - 1)]
    assert len(set(labels)) == 2
    assert seen["clicked"][0].startswith(f"cluster {labels[0]}")
    assert seen["clicked"][1] == str(labels[0])
    assert seen["last"].startswith(f"cluster {labels[1]}")
    assert seen["habit"].startswith("habit")
    assert seen["pressed"] == 1
    assert seen["other"] == "habit 2"
    assert "Brushed: " in seen["pairs"]
    assert seen["rank"] == "✓ Rank by this"
    assert f"{len(made.pairs)} pairs are ranked by it" in seen["handed"]
    assert one.selected is one.shown
    assert one.selected.name == "habit 2"
    assert one.ranking is not None
    top = set(one.ranking.ids[:10])
    assert top <= set(one.selected.pair_ids)
    assert one.brushed_pairs
    assert set(asked) <= {*FILES}, "nothing else is asked for, of any host"


def test_a_drag_brushes_shows_a_card_and_zooms(made: World) -> None:
    one = mapped(made)
    steps = """
    const { model } = await open(host);
    await drag(model, [0.1, 0.2], [0.503, 0.6]);
    const seen = { title: title(), both: find(".line:has(.waiting)").textContent };
    const before = colours();
    button("Zoom in").click();
    await model.settled();
    seen.zoomed = model.get("_view").sides.map((side) => side.window);
    await drag(model, [-20, 0.5], [-20, 0.9]); // along the tree: prompts alone
    seen.alone = [title(), model.get("_view").sides.map((side) => side.brush)];
    button("Clear brush").click();
    await model.settled();
    seen.none = model.get("_view").sides.map((side) => side.brush);
    button("Zoom out").click();
    await model.settled();
    seen.out = model.get("_view").sides.map((side) => side.window[1] - side.window[0]);
    button("Whole map").click();
    await model.settled();
    seen.whole = model.get("_view").sides.map((side) => side.window);
    seen.sizes = model.get("_view").sides.map((side) => side.total);
    find("canvas").dispatchEvent(new PointerEvent("pointermove", {
      clientX: find("canvas").getBoundingClientRect().left + 130,
      clientY: find("canvas").getBoundingClientRect().top + 130 }));
    seen.here = find(".here").textContent;
    seen.colours = before.size;
    return seen;
    """
    seen, _ = walk(one, HELP + steps, "map-brush")
    rows, columns = seen["zoomed"]
    high, wide = seen["sizes"]
    assert rows == [int(0.2 * high), int(0.6 * high) + 1]
    assert columns == [int(0.1 * wide), int(0.503 * wide) + 1]
    assert seen["title"].startswith(f"{rows[1] - rows[0]} prompts brushed")
    assert f"Brushed: {rows[1] - rows[0]} prompts × {columns[1] - columns[0]} pairs" in seen["both"]
    first, none = seen["alone"][1]
    assert none is None
    assert rows[0] < first[0] < first[1] <= rows[1]
    assert seen["alone"][0].startswith(f"{first[1] - first[0]} prompts brushed")
    assert seen["none"] == [None, None]
    assert seen["out"][0] == 2 * (rows[1] - rows[0])
    assert seen["whole"] == [[0, high], [0, wide]]
    assert "mean similarity" in seen["here"]
    assert seen["colours"] > 40, "the cells are painted"


def test_everything_works_with_the_keyboard_alone(made: World) -> None:
    one = mapped(made)
    steps = """
    const { model } = await open(host);
    let outside = 0;
    document.addEventListener("keydown", () => { outside += 1; });
    const stops = all("button, input, select, [tabindex='0']").filter((one) => one.tabIndex === 0);
    const seen = { stops: stops.map((one) => one.tagName) };
    find("canvas").focus();
    seen.outline = getComputedStyle(find("canvas")).outlineStyle;
    seen.begin = find(".here").textContent;
    await press(model, "ArrowDown");
    await press(model, "ArrowRight");
    seen.moved = find(".here").textContent;
    await press(model, "Enter");
    seen.shown = title();
    await press(model, "PageDown");
    await press(model, "Enter");
    seen.next = title();
    await press(model, "PageUp");
    await press(model, "h");
    seen.habit = title();
    await press(model, "ArrowDown", { shiftKey: true });
    await press(model, "ArrowDown", { shiftKey: true });
    seen.brushed = [title(), model.get("_view").sides.map((side) => side.brush)];
    await press(model, "+");
    seen.zoomed = model.get("_view").sides.map((side) => side.window);
    await press(model, "0");
    seen.whole = model.get("_view").sides.map((side) => side.window);
    await press(model, "r");
    seen.handed = find("section button").getAttribute("aria-pressed");
    await press(model, "Escape");
    seen.cleared = model.get("_view").sides.map((side) => side.brush);
    seen.focus = document.activeElement.tagName;
    seen.outside = outside;
    return seen;
    """
    seen, _ = walk(one, HELP + steps, "map-keyboard", theme="dark")
    assert {"INPUT", "BUTTON", "CANVAS", "SELECT", "DIV"} == set(seen["stops"])
    assert seen["outline"] == "solid"
    assert seen["begin"].startswith("prompt 0 (cluster")
    assert seen["moved"].startswith("prompt 1 (cluster")
    assert "× pair 1 (cluster" in seen["moved"]
    assert seen["shown"].startswith("cluster 0")
    assert seen["next"].startswith("cluster 1")
    assert seen["habit"].startswith("habit")
    assert seen["brushed"][0].startswith("3 prompts brushed")
    assert seen["brushed"][1] == [[0, 3], None]
    assert seen["zoomed"][0] == [0, 3]
    assert seen["whole"][0][0] == 0
    assert seen["whole"][0][1] > 3
    assert seen["handed"] == "true"
    assert one.selected is not None
    assert one.selected.contrasts.height == 3
    assert seen["cleared"] == [None, None]
    assert seen["focus"] == "CANVAS"
    assert seen["outside"] == 0, "JupyterLab hears none of it"


def test_text_from_data_sets_is_only_text() -> None:
    one = mapped(world(text=EVIL))
    steps = """
    const { model } = await open(host);
    all(".habits button")[1].click();
    await model.settled();
    return {
      harmed: window.harmed ?? null,
      tags: [...new Set(all("*").map((one) => one.tagName.toLowerCase()))],
      handlers: all("*").filter((one) => [...one.attributes].some((a) => a.name.startsWith("on"))).length,
      card: find(".body").textContent,
    };
    """
    seen, asked = walk(one, HELP + steps, "map-untrusted", theme="dark")
    assert seen["harmed"] is None
    assert not {"script", "img", "a", "iframe"} & set(seen["tags"])
    assert seen["handlers"] == 0
    assert "<script>alert(1)</script>" in seen["card"]
    assert "U+202E" in seen["card"]
    assert set(asked) <= {*FILES}


def test_the_theme_changes_the_ground_stale_answers_are_ignored_and_the_static_part_hides(
    made: World,
) -> None:
    one = mapped(made)
    static = one._repr_mimebundle_()[0]["text/html"]
    steps = """
    const { model, close } = await open(host);
    const table = document.querySelector(".jp-OutputArea-child");
    const seen = { static: getComputedStyle(table).display };
    const spots = (...grounds) => grounds.map((one) => colours().get(`${one},${one},${one}`) ?? 0);
    seen.light = spots(247, 27);
    document.body.dataset.jpThemeLight = "false";
    await pause(50);
    seen.dark = spots(27, 247);
    model.held = [];
    button("Zoom in").click();
    all(".habits button")[2].click();
    await model.settled();
    await pause(1100);
    seen.waiting = find(".waiting").textContent;
    const [older, newer] = model.held;
    model.held = null;
    model.receive(newer);
    model.receive(older);
    seen.title = title();
    seen.done = find(".waiting").textContent;
    const named = (one) => (one.labels?.[0] ?? one).textContent.trim() !== "";
    seen.nameless = all("input, select, button").filter((one) => !named(one)).length;
    seen.map = find("canvas").getAttribute("aria-label");
    seen.wide = host.scrollWidth <= innerWidth;
    close();
    host.replaceChildren();
    seen.alone = getComputedStyle(table).display;
    return seen;
    """
    output = f'<div class="jp-OutputArea-child">{static}</div>'
    seen, _ = walk(one, HELP + steps, "map-theme", below=output, window=(700, 900))
    assert seen["static"] == "none"
    for zero, other in (seen["light"], seen["dark"]):
        assert zero > 100 > 10 * other, "values near zero have the colour of the ground"
    assert "Waiting for Python" in seen["waiting"]
    assert seen["title"] == "habit 3"
    assert seen["done"] == ""
    assert seen["nameless"] == 0
    assert "3 habits in" in seen["map"]
    assert "Keys: arrows move" in seen["map"]
    assert seen["wide"]
    assert seen["alone"] == "block"


LARGE = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from clustered import world
from probekit.widgets import ClusterMap

made = world(330, 600, habits=4)
cluster_map = ClusterMap(*made[:3], behaviour=made.behaviour, pair_vectors=made.pair_vectors)
cluster_map
"""


GROUND = """(level) => {
  const canvas = document.querySelector('.probekit-map canvas');
  const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  let found = 0;
  for (let at = 0; at < data.length; at += 4) {
    if (data[at] === level && data[at + 1] === level && data[at + 2] === level) found += 1;
  }
  return found > 100;
}"""


def test_in_jupyterlab_the_bins_arrive_keys_work_and_the_card_is_handed_on(tmp_path: Path) -> None:
    chromium()
    with jupyter_lab(tmp_path) as lab:
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(LARGE)], metadata=kernel)
        nbformat.write(book, tmp_path / "notebooks" / "map.ipynb")
        with lab.opened("map.ipynb") as notebook:
            assert notebook.run_all() == []
            page, python = notebook.page, notebook.python
            canvas = page.get_by_role("application")
            canvas.scroll_into_view_if_needed()
            notebook.picture("map-lab-light")
            box = canvas.bounding_box()
            page.mouse.move(box["x"] + 130, box["y"] + 130)
            page.mouse.down()
            page.mouse.move(box["x"] + 230, box["y"] + 200, steps=4)
            page.mouse.up()
            page.get_by_text("prompts brushed").first.wait_for()
            assert int(python("print(len(cluster_map.brushed_prompts))")) > 20
            page.keyboard.press("+")
            page.wait_for_function(
                "document.querySelector('.legend').textContent.includes('similarity of each prompt')"
            )
            page.keyboard.press("0")
            page.wait_for_function("document.querySelector('.legend').textContent.includes('of 2 prompts')")
            page.keyboard.press("PageDown")
            page.keyboard.press("Enter")
            page.get_by_role("heading", name="cluster 1").wait_for()
            page.get_by_role("button", name="Rank by this").click()
            page.get_by_text("600 pairs are ranked by it").wait_for()
            assert python("print(cluster_map.selected is cluster_map.shown)") == "True"
            assert python("print(len(cluster_map.ranking))") == "600"
            slider = page.get_by_label("Clusters of prompts")
            before = int(slider.input_value())
            slider.press("ArrowRight")
            options = "document.querySelector('.probekit-map select').options.length"
            page.wait_for_function(f"{options} === {before + 2}")
            assert python("print(cluster_map.clusters.prompts['cluster'].max())") == str(before)
            for theme in ("dark", "light"):
                notebook.theme(theme)
                page.wait_for_function(GROUND, arg=27 if theme == "dark" else 247)
                notebook.picture(f"map-lab-{theme}")
                found = notebook.axe(".probekit-map")
                assert found["critical"] + found["serious"] == [], theme
