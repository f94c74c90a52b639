"""What is public is documented, and what the documents say to run or to look at is there."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import probekit
from benchmarks import reference

ROOT = Path(__file__).parent.parent
DOCUMENTS = ("README.md", "CONTRIBUTING.md")
README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
every_document = pytest.mark.parametrize("document", DOCUMENTS)


def rooms() -> list[ModuleType]:
    """All modules of the package that are public, whatever they are in."""
    paths = sorted((ROOT / "probekit").rglob("*.py"))
    parts = [path.relative_to(ROOT).with_suffix("").parts for path in paths]
    public = [one for one in parts if not any(name.startswith("_") and name != "__init__" for name in one)]
    return [importlib.import_module(".".join(one).removesuffix(".__init__")) for one in public]


def public_names(room: ModuleType) -> list[str]:
    """What is in `__all__`, or without one the functions and classes that are made there."""
    made = [name for name, value in vars(room).items() if getattr(value, "__module__", "") == room.__name__]
    return list(getattr(room, "__all__", [name for name in made if not name.startswith("_")]))


def undocumented(name: str, value: Any) -> bool:
    """Whether a function or class has no docstring of its own; numbers and tables have none to have."""
    if not (inspect.isfunction(value) or inspect.isclass(value)):
        return False
    words = (value.__doc__ or "").strip()
    return not words or words.startswith(f"{name}(")  # what @dataclass writes where nobody did


def test_every_public_name_of_every_room_is_there_once_and_has_a_docstring() -> None:
    assert len(rooms()) > 25
    for room in rooms():
        assert (room.__doc__ or "").strip(), f"{room.__name__} has no docstring"
        known = public_names(room)
        assert len(set(known)) == len(known), room.__name__
        assert [name for name in known if undocumented(name, getattr(room, name))] == [], room.__name__


def test_the_scan_sees_a_missing_and_a_generated_docstring() -> None:
    def bare() -> None: ...

    class Generated:
        __doc__ = "Generated(x: int)"

    assert undocumented("bare", bare)
    assert undocumented("Generated", Generated)
    assert not undocumented("rooms", rooms)


def test_every_public_function_shows_an_example() -> None:
    functions = [name for name in probekit.__all__ if inspect.isfunction(getattr(probekit, name))]
    assert functions
    assert [name for name in functions if ">>>" not in (getattr(probekit, name).__doc__ or "")] == []


def test_the_reference_in_the_readme_names_every_public_name_and_every_command_of_now() -> None:
    remedy = "write it anew with `.venv/bin/python -m benchmarks.reference`"
    assert reference.filled(README) == README, remedy
    assert all(f"| `{name}` |" in README for name in probekit.__all__)
    assert all(f"| `make {name}` |" in README for name in targets())


def test_the_readme_names_every_notebook_widget_and_figures_file() -> None:
    from probekit import widgets

    wanted = [path.stem for path in (ROOT / "notebooks").glob("*.ipynb")]
    wanted += [name for name in widgets.__all__ if not name.endswith("Error")]
    wanted += [f"benchmarks/{path.name}" for path in (ROOT / "benchmarks").glob("*.json")]
    assert [name for name in wanted if f"`{name}`" not in README] == []


def test_the_walk_through_in_the_readme_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)  # else the folder found earlier stays in use
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    printed = capsys.readouterr().out
    assert "planted" in printed  # the enrichment by source
    assert "random filter" in printed  # the effects


def targets() -> dict[str, str]:
    """The Makefile's commands, each with the module that it runs, or ""."""
    named = re.findall(r"^([a-z]+):.*##.*\n((?:\t.*\n)*)", MAKEFILE, re.MULTILINE)
    return {
        target: "".join(set(re.findall(r"-m ((?:benchmarks|probekit)[\w.]*)", lines)))
        for target, lines in named
    }


def said_to_run(document: str) -> list[str]:
    """The commands in a document's shell blocks and code spans, one a line."""
    text = (ROOT / document).read_text().replace("\\\n", " ")
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    lines = [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    spans = re.findall(r"`([^`\n]+)`", prose)
    return [line for line in [*lines, *spans] if re.match(r"make [a-z]|\S*python -m|accelerate ", line)]


def helped() -> dict[str, str]:
    """What each module that a document tells to run says to --help."""
    found: dict[str, str] = {}
    for module in sorted(
        {module_of(line) for document in DOCUMENTS for line in said_to_run(document)} - {""}
    ):
        command = [sys.executable, "-m", module, "--help"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{module}: {done.stderr}"
        found[module] = done.stdout
    return found


def module_of(line: str) -> str:
    """The module of ours that a command runs, or ""."""
    if line.startswith("make "):
        return targets()[line.split()[1]]
    return "".join(re.findall(r"-m ((?:benchmarks|probekit)[\w.]*)", line))


@every_document
def test_every_command_for_make_is_one(document: str) -> None:
    asked = [line.split()[1] for line in said_to_run(document) if line.startswith("make ")]
    assert asked
    assert set(asked) <= targets().keys()


def test_every_module_that_is_to_be_run_answers_and_knows_the_options_that_are_given() -> None:
    helps = helped()
    assert len(helps) >= 5
    for document in DOCUMENTS:
        for line in said_to_run(document):
            if module := module_of(line):
                given = re.findall(r"--[a-z][\w-]*", line.partition("ARGS=")[2] or line.partition(module)[2])
                assert [option for option in given if option not in helps[module]] == [], line


@every_document
def test_every_link_picture_and_path_in_the_repository_leads_somewhere(document: str) -> None:
    text = (ROOT / document).read_text()
    links = re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"", text)
    near = [one for pair in links for one in pair if one and not re.match(r"https?:|mailto:|#", one)]
    folders = "|".join(("benchmarks", "tests", "data", "notebooks", "probekit", r"\.ci"))
    near += re.findall(rf"`((?:{folders})/[\w./-]*)`", text)
    assert near
    assert [one for one in near if not (ROOT / one.partition("#")[0]).exists()] == []
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    places = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= places


def test_the_readme_opens_with_pictures_that_are_small_and_described() -> None:
    opening = README.partition("\n## ")[0]
    pictures = re.findall(r'<img alt="([^"]*)" src="([^"]+)"', opening)
    assert [Path(source).name for _, source in pictures] == ["pairs.png", "arms.svg"]
    assert all(len(words) > 60 for words, _ in pictures)
    shown = re.findall(r">(\d+\.\d%)<", (ROOT / pictures[1][1]).read_text())
    assert len(shown) >= 5
    assert [share for share in shown if share not in pictures[1][0]] == [], "the words are of another picture"
    assert all(path.stat().st_size < 150_000 for path in (ROOT / "notebooks" / "pictures").iterdir())
