"""Measured figures in one common form: a run writes them, the README's tables are made from the files.

A figures file is JSON: `{"command", "commit", "machine", "figures": [{"name", "value", "low", "high", "n",
"unit", "target"}]}`. In a Markdown file, the lines between

    <!-- figures:benchmarks/reproduce.json gate.* -->
    <!-- /figures -->

are the table of that file's figures whose names match one of the patterns (all, if there is none), in the
order of the patterns. The pattern `arms.{row}.{column}` gives a table with a row and a column for each part
of the names that stands there. The path is relative to the Markdown file. `python -m probekit.figures
README.md` writes the tables anew; with `--check` it only says whether they are up to date.

>>> Figure("average_precision.control", 0.97, low=0.95, high=0.99, n=5, target=">= 0.95").met
True
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import os
import platform
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from os import PathLike
from pathlib import Path

from probekit.sources import replacing

_TARGET = re.compile(r"(>=|<=) (-?\d+(?:\.\d+)?)")
_OPEN = r"^<!-- figures:(?P<path>\S+)(?P<patterns>[^\n]*?) -->\n"
_CLOSE = r"^<!-- /figures -->$"
_TABLE = re.compile(f"(?P<open>{_OPEN})(?P<old>.*?)(?P<close>{_CLOSE})", re.DOTALL | re.MULTILINE)


class FigureError(ValueError):
    """A figure, a figures file or a table of figures that says something it cannot mean."""


@dataclass(frozen=True)
class Figure:
    """One measured number.

    `name` is dotted, such as `gate.m1.refusal_plain`; `low` and `high` are the ends of its interval, `n` what
    it was counted over (prompts, seeds), `unit` is empty for rates, `target` is `">= 0.95"` or `"<= 10"`.
    Raises `FigureError` for a value or end that is not finite, ends in the wrong order, or another form of
    name or target.
    """

    name: str
    value: float
    low: float | None = field(default=None, kw_only=True)
    high: float | None = field(default=None, kw_only=True)
    n: int | None = field(default=None, kw_only=True)
    unit: str = field(default="", kw_only=True)
    target: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.+-]+", self.name):
            raise FigureError(f"{self.name!r} is no name of a figure: use letters, digits and . _ + - only.")
        for key in ("value", "low", "high"):
            number = getattr(self, key)
            if number is None and key != "value":
                continue
            if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
                raise FigureError(
                    f"The {key} of {self.name} is {number!r}, not a finite number. Write what was measured, "
                    "an int or a float, or leave the figure out."
                )
        if (self.low is None) != (self.high is None):
            raise FigureError(
                f"{self.name} has one end of an interval only: {self.low}, {self.high}. Give both."
            )
        if self.low is not None and self.high is not None and self.low > self.high:
            raise FigureError(
                f"The interval of {self.name} is upside down: {self.low} to {self.high}. Swap them."
            )
        if self.target is not None and not _TARGET.fullmatch(self.target):
            raise FigureError(
                f'The target of {self.name} is {self.target!r}. Write it like ">= 0.95" or "<= 10".'
            )

    @property
    def met(self) -> bool | None:
        """Whether `value` meets `target`; None without a target."""
        if self.target is None:
            return None
        direction, limit = self.target.split()
        return self.value >= float(limit) if direction == ">=" else self.value <= float(limit)


@dataclass(frozen=True)
class Figures:
    """What a figures file holds: the figures and the command, commit and machine that they come from."""

    command: str
    commit: str
    machine: str
    figures: tuple[Figure, ...]


def write_figures(path: str | PathLike[str], figures: Sequence[Figure], *, command: str) -> Path:
    """Write `figures` to the JSON file `path`, with the `command` that makes them anew, and return the path.

    The commit (`-dirty` if files differ from it) and the machine are filled in. The file appears whole or not
    at all. Raises `FigureError` if a name is there twice, `SourceError` if the file cannot be written.

    >>> import tempfile
    >>> path = write_figures(tempfile.mkdtemp() + "/summary.json", [Figure("a", 1.5)], command="make demo")
    >>> read_figures(path).figures
    (Figure(name='a', value=1.5, low=None, high=None, n=None, unit='', target=None),)
    """
    path = Path(path).expanduser()
    _check_names(figures, str(path))
    content = Figures(command=command, commit=_commit(), machine=_machine(), figures=tuple(figures))
    text = json.dumps(asdict(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return path


def read_figures(path: str | PathLike[str]) -> Figures:
    """The content of a figures file. Raises `FigureError` if it is missing or not of the common form."""
    path = Path(path).expanduser()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FigureError(f"There is no figures file {path}. Run the command that writes it first.") from None
    except ValueError as error:  # not JSON, or not UTF-8
        raise FigureError(
            f"{path} is not a figures file: {error}. Run the command that writes it again."
        ) from error
    found = set(content) if isinstance(content, dict) else set()
    if found != {key.name for key in fields(Figures)} or not isinstance(content["figures"], list):
        raise FigureError(
            f"{path} has not the keys command, commit, machine and figures. Run its command again."
        )
    try:
        figures = tuple(Figure(**entry) for entry in content["figures"])
    except (TypeError, FigureError) as error:
        raise FigureError(f"A figure in {path} is not of the common form: {error}") from error
    _check_names(figures, str(path))
    return Figures(content["command"], content["commit"], content["machine"], figures)


def markdown_table(path: str | PathLike[str], patterns: Sequence[str] = ("*",), *, title: str = "") -> str:
    """The figures in the file `path` whose names match one of `patterns` (wildcards as in file names), as a
    Markdown table, and a line on where they come from that calls the file `title` (default: its path).

    Columns in which nothing stands are left out. Raises `FigureError` if a pattern matches no figure.
    """
    content = read_figures(path)
    chosen: dict[str, tuple[Figure, re.Match[str]]] = {}
    for pattern in patterns:
        matches = ((figure, _regex(pattern).match(figure.name)) for figure in content.figures)
        matching = {figure.name: (figure, match) for figure, match in matches if match}
        if not matching:
            raise FigureError(
                f"{path} has no figure that matches {pattern!r}. Correct it, or run its command again."
            )
        chosen |= matching
    if all("{row}" in pattern and "{column}" in pattern for pattern in patterns):
        rows = _wide(list(chosen.values()))
    else:
        rows = [_cells(figure) for figure, _ in chosen.values()]
    used = [column for column in rows[0] if any(row[column] for row in rows)]
    align = {"value": "---:", "n": "---:"}
    lines = [used, [align.get(column, "---") for column in used]]
    lines += [[row[column] for column in used] for row in rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    commit = re.sub(r"^([0-9a-f]{10})[0-9a-f]+", r"\1", content.commit)
    return f"{table}\n\n`{title or path}`, from `{content.command}` at {commit} on {content.machine}.\n"


def _regex(pattern: str) -> re.Pattern[str]:
    """Wildcards as in file names; {row} and {column} each stand for a part of the name, between two dots."""
    parts = fnmatch.translate(pattern)
    for name in ("row", "column"):
        parts = parts.replace(rf"\{{{name}\}}", f"(?P<{name}>[^.]+)")
    return re.compile(parts)


def _wide(chosen: Sequence[tuple[Figure, re.Match[str]]]) -> list[dict[str, str]]:
    """A row for each {row}, with value and interval for each {column}; n is that of its first figure."""
    columns = dict.fromkeys(match["column"] for _, match in chosen)
    rows: dict[str, dict[str, str]] = {}
    for figure, match in chosen:
        cells = _cells(figure)
        first = {"": match["row"].replace("_", " "), "n": cells["n"], **dict.fromkeys(columns, "")}
        interval = f" ({cells['interval']})" if cells["interval"] else ""
        rows.setdefault(match["row"], first)[match["column"]] = cells["value"] + interval
    return list(rows.values())


def fill_tables(markdown: str, *, folder: Path) -> str:
    """`markdown` with the lines between each pair of figures markers replaced by the table asked for.

    Paths in it are relative to `folder`. Raises `FigureError` for a marker without its partner, and as
    `markdown_table` does.
    """
    whole = len(_TABLE.findall(markdown))
    opened = len(re.findall("^<!-- figures:", markdown, re.MULTILINE))
    closed = len(re.findall(_CLOSE, markdown, re.MULTILINE))
    if not opened == closed == whole:
        raise FigureError(
            f"Of the figures markers {opened} open, {closed} close and {whole} do both. Write "
            "`<!-- figures:FILE -->` and `<!-- /figures -->` in turn, each on a line of its own."
        )

    def fill(match: re.Match[str]) -> str:
        patterns = match["patterns"].split() or ["*"]
        table = markdown_table(folder / match["path"], patterns, title=match["path"])
        return f"{match['open']}{table}{match['close']}"

    return _TABLE.sub(fill, markdown)


def _check_names(figures: Sequence[Figure], where: str) -> None:
    twice = [name for name, n in Counter(figure.name for figure in figures).items() if n > 1]
    if twice:
        raise FigureError(
            f"{where} would hold these figures more than once: {', '.join(twice)}. Name each once."
        )


def _cells(figure: Figure) -> dict[str, str]:
    low, high = figure.low, figure.high
    return {
        "figure": f"`{figure.name}`",
        "value": f"{_number(figure.value)} {figure.unit}".strip(),
        "interval": "" if low is None or high is None else f"{_number(low)} to {_number(high)}",
        "n": "" if figure.n is None else f"{figure.n:,}",
        "target": (figure.target or "").replace(">=", "≥").replace("<=", "≤"),
        "met": {None: "", True: "yes", False: "**no**"}[figure.met],
    }


def _number(value: float) -> str:
    """Three digits after the point for rates, fewer for what is large; enough to tell a small one from 0."""
    size = abs(value)
    if size >= 100 or float(value).is_integer():
        return f"{value:,.0f}"
    if 0 < size < 0.001:
        return f"{value:.1e}"
    return f"{value:.1f}" if size >= 10 else f"{value:.3f}"


def _commit() -> str:
    """The commit of the repository that this file lies in, or "unknown"."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def _machine() -> str:
    """What the speed of a run depends on, in one line."""
    cpu = platform.processor() or platform.machine()
    if (cpuinfo := Path("/proc/cpuinfo")).is_file():
        names = re.findall(r"model name\s*:\s*(.+)", cpuinfo.read_text(encoding="utf-8"))
        cpu = names[0] if names else cpu
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{os.cpu_count()} x {cpu}, {memory:.0f} GiB, {platform.system()}, "
        f"Python {platform.python_version()}, torch {version('torch')}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the figures tables of the Markdown files named in `arguments` anew, or check them."""
    parser = argparse.ArgumentParser(prog="python -m probekit.figures", description=main.__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.md")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a table is out of date")
    asked = parser.parse_args(arguments)
    stale = 0
    for path in asked.files:
        old = path.read_text(encoding="utf-8")
        new = fill_tables(old, folder=path.parent)
        if new != old:
            stale += 1
            print(f"{path}: tables {'are out of date' if asked.check else 'written anew'}", file=sys.stderr)
            if not asked.check:
                with replacing(path) as partial:
                    partial.write_text(new, encoding="utf-8")
    return int(asked.check and stale > 0)


if __name__ == "__main__":
    raise SystemExit(main())
