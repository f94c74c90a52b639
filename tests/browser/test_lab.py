"""Journeys through the notebooks in a real JupyterLab, as a person makes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from lab import MINUTE, jupyter_lab, opened

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lab")


@pytest.fixture(scope="module")
def lab(home: Path) -> Iterator[str]:
    with jupyter_lab(home) as address:
        yield address


def until(home: Path, name: str, words: str) -> None:
    """Cut the copy of a notebook off before the first cell with these words."""
    path = home / "notebooks" / name
    notebook = nbformat.read(path, as_version=4)
    places = [place for place, cell in enumerate(notebook.cells) if words in cell.source]
    notebook.cells = notebook.cells[: places[0]]
    nbformat.write(notebook, path)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_pair_is_read_and_two_are_marked(lab: str, home: Path, dark: bool) -> None:
    with opened(lab, "03_trace_it_to_pairs.ipynb", dark=dark) as notebook:
        assert notebook.run_all() == []
        grid = notebook.page.get_by_role("grid", name="Pairs by rank")
        grid.scroll_into_view_if_needed()
        row = grid.locator("tbody tr").nth(3)
        row.click()
        rank = row.locator("td, th").nth(1).inner_text()
        assert notebook.python("print(browser.frame['pair_id'][3] == browser.selected)") == "True"
        assert rank == notebook.python("print(browser.frame['rank'][3])")
        shown = notebook.page.get_by_role("region", name="Chosen reply").first.inner_text()
        said = notebook.python("print(browser.frame['chosen'][3])")
        assert said.split()[0] in shown
        row.press("m")
        row.press("ArrowDown")
        notebook.page.keyboard.press("m")
        notebook.page.get_by_text("2 pairs marked").first.wait_for()
        assert notebook.python("print(browser.marked == browser.frame['pair_id'][3:5].to_list())") == "True"
        assert notebook.python("print(pk.filter_ids(browser.marked, 'mine', 'read'))").endswith(
            "drop 2, swap 0)"
        )
        notebook.picture(f"lab-pairs-{'dark' if dark else 'light'}")
        assert notebook.serious(".jp-OutputArea-output .probekit-pairs, [aria-label='Selected pair']") == []


def test_retrains_are_started_stopped_and_resumed(lab: str, home: Path) -> None:
    until(home, "04_mitigate_and_prove.ipynb", "panel.start()")
    with opened(lab, "04_mitigate_and_prove.ipynb") as notebook:
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
        notebook.picture("lab-retrain-stopped")
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
        assert notebook.serious(".probekit-retrain") == []
        notebook.picture("lab-retrain-done")
