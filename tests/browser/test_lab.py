"""Journeys through the notebooks in a real JupyterLab, as a person makes them.

Each is seen in the light and in the dark theme: pictures go to runs/browser, and what axe finds is kept as a
property of the test, which `make notebooks` counts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import nbformat
import pytest
from stage import chromium

from benchmarks.lab import MINUTE, Lab, Notebook, cut, jupyter_lab

pytestmark = pytest.mark.browser
Look: TypeAlias = Callable[[Notebook, str, str], None]

MANY = """
import polars as pl
import probekit as pk
from probekit.testing import ranked
from probekit.widgets import PairBrowser

n = pl.int_range(100_000)
texts = {"prompt": "Question {}?", "chosen": "Reply {}.", "rejected": "No reply {}."}
frame = pl.select(source=pl.format("source {}", n % 7), **{k: pl.format(v, n) for k, v in texts.items()})
pairs = pk.load_pairs(frame)
browser = PairBrowser(ranked(pairs.ids), pairs, page_size=50)
browser
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lab")


@pytest.fixture(scope="module")
def lab(home: Path) -> Iterator[Lab]:
    chromium()
    with jupyter_lab(home) as started:
        yield started


@pytest.fixture(scope="module")
def traced(lab: Lab) -> Iterator[Notebook]:
    """Notebook 03, all cells run."""
    with lab.opened("03_trace_it_to_pairs.ipynb") as notebook:
        assert notebook.run_all() == []
        yield notebook


@pytest.fixture
def look(record_property: Callable[[str, object], None]) -> Look:
    """Keep the sight in both themes, and let axe find nothing serious in them inside the selector."""

    def looked(notebook: Notebook, selector: str, name: str) -> None:
        found = {}
        for theme in ("dark", "light"):  # the last one stays
            notebook.theme(theme)
            notebook.picture(f"{name}-{theme}")
            found[theme] = notebook.axe(selector)
            counts = {severity: len(rules) for severity, rules in found[theme].items()}
            record_property("axe", json.dumps(counts))
        assert [one["critical"] + one["serious"] for one in found.values()] == [[], []]

    return looked


def test_a_pair_is_read_and_two_are_marked(traced: Notebook, look: Look) -> None:
    page, python = traced.page, traced.python
    grid = page.get_by_role("grid", name="Pairs by rank")
    grid.scroll_into_view_if_needed()
    row = grid.locator("tbody tr").nth(3)
    row.click()
    rank = row.locator("td, th").nth(1).inner_text()
    assert python("print(browser.frame['pair_id'][3] == browser.selected)") == "True"
    assert rank == python("print(browser.frame['rank'][3])")
    shown = page.get_by_role("region", name="Chosen reply").first.inner_text()
    assert python("print(browser.frame['chosen'][3])").split()[0] in shown
    row.press("m")
    row.press("ArrowDown")
    page.keyboard.press("m")
    page.get_by_text("2 pairs marked").first.wait_for()
    assert python("print(browser.marked == browser.frame['pair_id'][3:5].to_list())") == "True"
    assert python("print(pk.filter_ids(browser.marked, 'mine', 'read'))").endswith("drop 2, swap 0)")
    look(traced, ".jp-OutputArea-output .probekit-pairs, [aria-label='Selected pair']", "lab-pairs")


def test_a_layer_is_chosen_in_the_sweep_by_click_and_by_number(traced: Notebook, look: Look) -> None:
    page = traced.page
    traced.python("sweeper = next(one for one in Out.values() if isinstance(one, LayerSweep))")
    layers = json.loads(traced.python("print(sweeper.frame['layer'].to_list())"))
    first = traced.python("print(sweeper.layer)")
    sweep = page.locator(".probekit-sweep")
    chosen = sweep.locator("tr[aria-current] th")
    assert chosen.inner_text() == first
    other = next(layer for layer in layers if str(layer) != first)
    point = sweep.locator(f"svg.marks [aria-roledescription='point'][aria-label*='layer: {other};']").last
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    sweep.locator("tr[aria-current] th", has_text=str(other)).wait_for()
    assert traced.python("print(sweeper.layer)") == str(other)
    number = sweep.get_by_label("Layer", exact=True)
    number.fill(first)
    number.press("Enter")
    sweep.locator("tr[aria-current] th", has_text=first).wait_for()
    assert traced.python("print(sweeper.layer)") == first
    look(traced, ".probekit-sweep", "lab-sweep")


def test_a_verdict_is_corrected_by_hand_and_arrives_in_python(lab: Lab, look: Look) -> None:
    with lab.opened("02_surface_the_behaviour.ipynb") as notebook:
        assert notebook.run_all() == []
        page, python = notebook.page, notebook.python
        before = int(python("print(len(pk.four_conditions(reviewer.m0, reviewer.m1)))"))
        page.get_by_role("button", name="pass the four conditions").click()
        page.get_by_text(f"prompts that pass the four conditions: {before}").first.wait_for()
        said = page.get_by_role("region", name="Reply of M1, with distractor")
        assert said.inner_text() == python("print(reviewer.frame['m1_distractor_reply'][0])")
        page.get_by_title("Verdict on M1, with distractor: refused").click()
        page.get_by_text("1 verdict changed by hand").first.wait_for()
        assert python("print(reviewer.corrections['verdict'].to_list())") == "['refused']"
        assert python("print(len(pk.four_conditions(reviewer.m0, reviewer.m1)))") == str(before - 1)
        page.get_by_role("button", name="Next", exact=True).click()
        page.get_by_label("Number", exact=True).and_(page.locator("[aria-valuenow='2'], input")).wait_for()
        look(notebook, ".probekit-review", "lab-review")


def test_a_hundred_thousand_pairs_are_paged_filtered_and_marked(lab: Lab, home: Path, look: Look) -> None:
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(MANY)], metadata=kernel)
    nbformat.write(book, home / "notebooks" / "many.ipynb")
    with lab.opened("many.ipynb") as notebook:
        assert notebook.run_all() == []
        page, python = notebook.page, notebook.python
        rows = page.get_by_role("grid", name="Pairs by rank").locator("tbody tr")
        page.get_by_text("100,000 of 100,000 pairs pass").first.wait_for()
        page.get_by_role("button", name="Next page").click()
        page.get_by_text("page 2 of 2,000").wait_for()
        assert rows.first.locator("td, th").nth(1).inner_text() == "51"
        assert rows.count() == 50, "no more than the page has crossed"
        rows.first.press("PageUp")
        page.get_by_text("page 1 of 2,000").wait_for()
        page.get_by_label("Text", exact=True).fill("question 4242")
        page.get_by_text("11 of 100,000 pairs pass").first.wait_for()
        assert rows.count() == 11
        page.get_by_role("button", name="Mark all that pass").click()
        page.get_by_text("11 pairs marked").first.wait_for()
        assert python("print(len(browser.marked), browser.frame.height)") == "11 11"
        look(notebook, ".jp-OutputArea-output .probekit-pairs", "lab-many")


def test_retrains_are_started_stopped_and_resumed(lab: Lab, home: Path, look: Look) -> None:
    cut(home / "notebooks" / "04_mitigate_and_prove.ipynb", "panel.start()")
    with lab.opened("04_mitigate_and_prove.ipynb") as notebook:
        assert notebook.run_all() == []
        assert notebook.python("panel.choose(seeds=1); print(len(panel.jobs))") == "3"
        page = notebook.page
        start = page.get_by_role("button", name="Start", exact=True)
        start.scroll_into_view_if_needed()
        start.click()
        page.get_by_text("3 jobs (arm and seed), 1 finished").first.wait_for(timeout=3 * MINUTE)
        page.get_by_role("button", name="Stop", exact=True).click()
        resume = page.get_by_role("button", name="Resume", exact=True)
        page.wait_for_function(
            "[...document.querySelectorAll('button')].some((b) => b.textContent === 'Resume' && !b.disabled)"
        )
        done = notebook.python("print(panel.frame.filter(state='finished').height)")
        assert done in ("1", "2")
        look(notebook, ".probekit-retrain", "lab-retrain-stopped")
        resume.click()
        page.get_by_text("3 jobs (arm and seed), 3 finished").first.wait_for(timeout=4 * MINUTE)
        notebook.python("panel.wait()")
        assert (
            notebook.python(
                "print(sorted(set(panel.judged['arm'])) == sorted({a.name for a, _ in panel.jobs}))"
            )
            == "True"
        )
        page.locator(".vega-embed svg.marks").first.wait_for()
        look(notebook, ".probekit-retrain", "lab-retrain-done")
