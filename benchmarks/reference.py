"""The README's tables of public names, of make's commands and of the contest, from where each is known.

.venv/bin/python -m benchmarks.reference
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import subprocess

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


def contest() -> str:
    """One row a tracer with its quality, effects and cost on tiny, the best average precision first."""
    figures = {one.name: one for one in read_figures(CONTEST).figures}
    quality = [one for name, one in figures.items() if name.startswith("ap.tiny.")]
    rows = [
        "| tracer | average precision | filter removes | same sources | swap removes | datamodelling "
        "| seconds | tokens |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for one in sorted(quality, key=lambda one: -one.value):
        tracer = one.name.removeprefix("ap.tiny.")
        effects = [f"effect.{edit}.tiny.{tracer}" for edit in ("filter", "swap")]
        names = (effects[0], f"{effects[0]}.matched", effects[1], f"lds.{tracer}")
        tokens = [figures.get(f"{way}_tokens.tiny.{tracer}") for way in ("forward", "backward")]
        cells = [with_ends(one), *(with_ends(figures.get(name)) for name in names)]
        cells.append(f"{figures[f'seconds.tiny.{tracer}'].value:.1f}")
        cells.append(" + ".join(f"{count.value:,.0f}" for count in tokens if count is not None))
        rows.append(f"| `{tracer}` | {' | '.join(cells)} |")
    for known in ("oracle", "lookalikes"):  # edits by what is known of the pairs
        both = [with_ends(figures.get(f"effect.{edit}.tiny.{known}")) for edit in ("filter", "swap")]
        rows.append(f"| *{known}* |  | {both[0]} |  | {both[1]} |  |  |  |")
    return "\n".join(rows) + "\n"


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
