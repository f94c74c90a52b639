"""Run the notebooks on an organism, write them as HTML; what they took goes to benchmarks/notebooks.json."""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.loop import ROOT
from probekit.figures import Figure, FigureError, read_figures, write_figures

FIGURES = ROOT / "benchmarks" / "notebooks.json"
FOLDER = ROOT / "runs" / "notebooks"


def main() -> None:
    """Run each notebook twice, the second time with what the first has kept, and write the figures."""
    parser = argparse.ArgumentParser(prog="make notebooks", description=__doc__)
    parser.add_argument("--model", default="tiny", help="tiny or smollm2")
    parser.add_argument("--keep", action="store_true", help="begin with what an earlier run has kept")
    parser.add_argument("--out", type=Path, default=FIGURES)
    options = parser.parse_args()
    home = FOLDER / f"{options.model}-home"
    if not options.keep:
        shutil.rmtree(home, ignore_errors=True)
    found = []
    for path in sorted((ROOT / "notebooks").glob("0[1-4]_*.ipynb")):
        for turn in ("first", "second"):
            seconds = run(path, options.model, home)
            print(f"{path.stem}: {turn} run {seconds:.0f} s", flush=True)
            name = f"{options.model}.{path.stem}.{turn}_run"
            found.append(Figure(name, seconds, n=1, unit="seconds", target=target(name)))
            keep(options.out, [*found, *retrain(home, options.model)])


def target(name: str) -> str | None:
    """What the first notebook should take on the tiny organism."""
    return "<= 60" if name == "tiny.01_quickstart.first_run" else None


def run(path: Path, model: str, home: Path) -> float:
    """Run a notebook on a model, write it and its HTML to runs/notebooks/<model>, and give the seconds.

    Raises papermill's error, with the cell, where one fails.
    """
    import nbformat
    import papermill
    from nbconvert import HTMLExporter

    done = FOLDER / model / path.name
    done.parent.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    papermill.execute_notebook(
        path, done, parameters={"MODEL": model, "HOME": str(home)}, cwd=path.parent, progress_bar=False
    )
    seconds = time.perf_counter() - begin
    page, _ = HTMLExporter().from_notebook_node(nbformat.read(done, as_version=4))
    done.with_suffix(".html").write_text(page, encoding="utf-8")
    return seconds


def retrain(home: Path, model: str) -> list[Figure]:
    """Seconds of one retrain, over those that the notebooks have done."""
    results = [json.loads(path.read_text()) for path in home.glob("*/arms/*-[0-9]*.json")]
    seconds = [one["train_seconds"] for one in results if one["train_seconds"] is not None]
    if not seconds:
        return []
    limit = "<= 15" if model == "tiny" else None
    return [
        Figure(
            f"{model}.retrain", statistics.median(seconds), low=min(seconds), high=max(seconds),
            n=len(seconds), unit="seconds", target=limit,
        )
    ]  # fmt: skip


def keep(path: Path, found: Sequence[Figure]) -> None:
    """Have these figures in the file, in the place of those of the same names, beside the others."""
    try:
        before = read_figures(path).figures
    except FigureError:
        before = ()
    new = {one.name: one for one in found}
    both = {one.name: one for one in before} | new
    write_figures(path, [both[name] for name in sorted(both)], command="make notebooks")


if __name__ == "__main__":
    main()
