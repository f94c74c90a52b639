"""Notebooks are thin, run in order, and one output of each is checked. nbval itself runs them."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import papermill
import pytest
from nbval.plugin import get_sanitize_patterns

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path, kind: str = "code") -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


def test_nbval_reads_every_rule_of_the_sanitizer() -> None:
    text = (ROOT / "tests" / "nbval.cfg").read_text()
    rules = len(re.findall("^regex: ", text, re.MULTILINE))
    assert rules == len(get_sanitize_patterns(text)) > 0


@every_notebook
def test_a_notebook_is_thin(path: Path) -> None:
    code = [source(cell) for cell in cells(path)]
    assert len(code) <= 12
    for one in code:
        functions = [node for node in ast.walk(ast.parse(one)) if isinstance(node, ast.FunctionDef)]
        assert [node.name for node in functions if node.end_lineno - node.lineno > 5] == []


@every_notebook
def test_the_first_code_cell_and_no_other_is_tagged_parameters(path: Path) -> None:
    tagged = ["parameters" in cell["metadata"].get("tags", []) for cell in cells(path)]
    assert tagged == [True] + [False] * (len(tagged) - 1)


@every_notebook
def test_prose_stands_before_every_code_cell(path: Path) -> None:
    kinds = "".join(cell["cell_type"][0] for cell in json.loads(path.read_text())["cells"])
    assert re.fullmatch(r"(m+c)+m*", kinds)


@every_notebook
def test_outputs_are_committed_from_one_run_in_order_and_are_small(path: Path) -> None:
    code = cells(path)
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert len(path.read_bytes()) < 120_000
    kinds = {key for cell in code for out in cell["outputs"] for key in out.get("data", {})}
    assert not any("widget" in kind for kind in kinds)
    assert not any(
        out["output_type"] == "error" or out.get("name") == "stderr"
        for cell in code
        for out in cell["outputs"]
    )


@every_notebook
def test_one_cell_is_compared_with_its_committed_output(path: Path) -> None:
    checked = [cell for cell in cells(path) if source(cell).startswith("# NBVAL_CHECK_OUTPUT\n")]
    assert len(checked) == 1
    assert checked[0]["outputs"]


def kept() -> dict[str, tuple[int, int]]:
    """Size and time of each file that the notebooks have kept."""
    files = [path for path in (ROOT / "runs" / "notebooks" / "tiny").rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def test_a_second_run_computes_nothing_anew(tmp_path: Path) -> None:
    path = ROOT / "notebooks" / "01_quickstart.ipynb"  # it keeps what it computes where nbval's run finds it
    for turn in ("first", "second"):
        before = kept()
        papermill.execute_notebook(path, tmp_path / f"{turn}.ipynb", cwd=path.parent, progress_bar=False)
    assert any("arms" in name for name in before)
    assert any("vectors" in name for name in before)
    assert kept() == before
