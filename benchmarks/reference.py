"""The README's tables of public names, of make's commands and of the contest, from where each is known.

.venv/bin/python -m benchmarks.reference
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import subprocess
from collections.abc import Mapping, Sequence

import probekit
from benchmarks.loop import ROOT
from probekit.figures import Figure, read_figures

README = ROOT / "README.md"
CONTEST = ROOT / "benchmarks" / "contest.json"


def main() -> None:
    """Write the tables anew."""
    argparse.ArgumentParser(prog="python -m benchmarks.reference", description=__doc__).parse_args()
    README.write_text(filled(README.read_text(encoding="utf-8")), encoding="utf-8")


def filled(text: str) -> str:
    """The text with each table between its marks, such as `<!-- names -->` and `<!-- /names -->`.

    Raises ValueError where the text has not exactly one place for one of them.
    """
    for mark, table in (("names", names()), ("commands", commands()), ("contest", contest())):
        begin, end = f"<!-- {mark} -->\n", f"<!-- /{mark} -->"
        if not text.count(begin) == text.count(end) == 1:
            raise ValueError(f"The text needs {begin.strip()} and {end} once, on lines of their own.")
        before, _, rest = text.partition(begin)
        text = before + begin + table + end + rest.partition(end)[2]
    return text


def names() -> str:
    """One row a public name, in the order of use: its room, and what its docstring begins with."""
    imports = [one for one in ast.parse(inspect.getsource(probekit)).body if isinstance(one, ast.ImportFrom)]
    room_of = {name.name: str(one.module).split(".")[1] for one in imports for name in one.names}
    rows = ["| room | name | what it is or does |", "| --- | --- | --- |"]
    before = ""
    for name in probekit.__all__:
        room = "" if room_of[name] == before else f"`{room_of[name]}`"
        rows.append(f"| {room} | `{name}` | {summary(getattr(probekit, name))} |")
        before = room_of[name]
    return "\n".join(rows) + "\n"


def commands() -> str:
    """One row a command of the Makefile, as `make help` lists them."""
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    rows = ["| command | what it does |", "| --- | --- |"]
    for command, words in re.findall(r"^  (make \w+) +(.*)$", shown, re.MULTILINE):
        rows.append(f"| `{command}` | {words} |")
    return "\n".join(rows) + "\n"


ORGANISMS = ("tiny", "tiny-0", "tiny-double", "smollm2", "payload_start", "payload_middle", "wrong_fact")


def contest() -> str:
    """Two tables: each tracer's quality and cost, then what editing by it removes, an organism a column.

    Organisms without figures have no column; the tracers' order is that of the mean average precision.
    """
    figures = {one.name: one for one in read_figures(CONTEST).figures}
    ranked = [one for one in ORGANISMS if f"ap.{one}.ours" in figures]
    names = {name.split(".")[2] for name in figures if name.startswith("ap.")}
    tracers = sorted(names, key=lambda one: (-mean(figures, one, ranked), one))
    quality = [
        (
            f"`{tracer}`",
            *(short(figures.get(f"ap.{one}.{tracer}")) for one in ranked),
            with_ends(figures.get(f"lds.{tracer}")),
            *(short(figures.get(f"seconds.{one}.{tracer}"), 1) for one in ("tiny", "smollm2")),
        )
        for tracer in tracers
    ]
    cured = [one for one in ORGANISMS if any(name.startswith(f"effect.filter.{one}.") for name in figures)]
    edited = [
        (
            f"`{tracer}`" if tracer in names else f"*{tracer}*",
            *(
                with_ends(figures.get(f"effect.{edit}.{one}.{tracer}"))
                for one in cured
                for edit in ("filter", "swap")
            ),
        )
        for tracer in (*tracers, "oracle", "lookalikes")
    ]
    edits = [f"{one}: {edit}" for one in cured for edit in ("filter", "swap")]
    return (
        table(("tracer", *ranked, "datamodelling", "seconds tiny", "smollm2"), quality)
        + "\n"
        + table(("tracer", *edits), [row for row in edited if any(row[1:])])
    )


def mean(figures: Mapping[str, Figure], tracer: str, organisms: Sequence[str]) -> float:
    """A tracer's average precision, over the organisms that it has ranked."""
    found = [figures[name].value for one in organisms if (name := f"ap.{one}.{tracer}") in figures]
    return sum(found) / len(found) if found else 0.0


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, all columns but the first to the right.

    >>> print(table(("a", "b"), [("c", "1")]), end="")
    | a | b |
    | --- | ---: |
    | c | 1 |
    """
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def short(one: Figure | None, digits: int = 2) -> str:
    """A figure's value alone, nothing where there is none."""
    return "" if one is None else f"{one.value:.{digits}f}"


def with_ends(one: Figure | None) -> str:
    """A figure with its interval, in two decimals; nothing where there is none.

    >>> with_ends(Figure("a", 0.5, low=0.25, high=0.75))
    '0.50 (0.25 to 0.75)'
    """
    if one is None:
        return ""
    ends = "" if one.low is None or one.high is None else f" ({one.low:.2f} to {one.high:.2f})"
    return f"{one.value:.2f}{ends}"


def summary(value: object) -> str:
    """The first sentence of a docstring, on one line.

    >>> summary(summary)
    'The first sentence of a docstring, on one line.'
    """
    paragraph = " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())
    sentence = re.match(r".*?[.:](?= [A-Z]|$)", paragraph)
    words = sentence[0] if sentence else paragraph
    return re.sub(":$", ".", words).replace("|", "\\|")


if __name__ == "__main__":
    main()
