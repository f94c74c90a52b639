"""Run the notebooks on an organism, write them as HTML, and walk through them in a real JupyterLab.

What the runs took, how many journeys passed and what axe found go to benchmarks/notebooks.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path

from benchmarks.lab import SEVERITIES, chromium
from benchmarks.loop import ROOT
from benchmarks.results import keep
from probekit.figures import Figure

FIGURES = ROOT / "benchmarks" / "notebooks.json"
FOLDER = ROOT / "runs" / "notebooks"
COMMAND = "make notebooks"
JOURNEYS = "tests/browser/test_lab.py"
NOT_PASSED = ("failure", "error", "skipped")


def main() -> None:
    """Run each notebook twice, the second time with what the first has kept, then the journeys."""
    parser = argparse.ArgumentParser(prog="make notebooks", description=__doc__)
    parser.add_argument("--model", default="tiny", help="tiny or smollm2; the journeys are made with tiny")
    parser.add_argument("--keep", action="store_true", help="begin with what an earlier run has kept")
    parser.add_argument("--only", choices=("runs", "journeys"), help="which; without it, both")
    parser.add_argument("--out", type=Path, default=FIGURES)
    options = parser.parse_args()
    if options.only in (None, "runs"):
        run_twice(options.model, options.out, anew=not options.keep)
    if options.only == "journeys" or (options.only is None and options.model == "tiny"):
        keep(options.out, journeys(), command=COMMAND)


def run_twice(model: str, out: Path, *, anew: bool) -> None:
    """Run each notebook twice; the figures are written after each run."""
    home = FOLDER / f"{model}-home"
    if anew:
        shutil.rmtree(home, ignore_errors=True)
    found = []
    for path in sorted((ROOT / "notebooks").glob("0[!5]_*.ipynb")):
        for turn in ("first", "second"):
            seconds = run(path, model, home)
            print(f"{path.stem}: {turn} run {seconds:.0f} s", flush=True)
            name = f"{model}.{path.stem}.{turn}_run"
            found.append(Figure(name, seconds, n=1, unit="seconds", target=target(name)))
            keep(out, [*found, *retrain(home, model)], command=COMMAND)


def journeys() -> list[Figure]:
    """The browser tests in JupyterLab: how many pass, and what axe finds over all looks, by severity."""
    chromium()  # without one there is nothing to count
    report = FOLDER / "journeys.xml"
    report.parent.mkdir(parents=True, exist_ok=True)
    report.unlink(missing_ok=True)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        JOURNEYS,
        f"--junitxml={report}",
        "-o",
        "junit_family=xunit1",
    ]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"CI": "1"}, check=False)
    return journey_figures(report)


def journey_figures(report: Path) -> list[Figure]:
    """The figures of pytest's report; the looks are properties of its tests, named axe.

    >>> import tempfile
    >>> report = Path(tempfile.mkdtemp()) / "report.xml"
    >>> look = '<properties><property name="axe" value="{&quot;minor&quot;: 2}"/></properties>'
    >>> cases = f"<testcase>{look}</testcase><testcase><failure/></testcase>"
    >>> _ = report.write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
    >>> [(one.name, one.value, one.n) for one in journey_figures(report)][::4]
    [('browser.journeys_passed', 1, 2), ('axe.minor', 2, 1)]
    """
    tree = ET.parse(report)
    cases = list(tree.iter("testcase"))
    passed = [case for case in cases if all(case.find(word) is None for word in NOT_PASSED)]
    looks = [json.loads(one.attrib["value"]) for one in tree.iterfind(".//property[@name='axe']")]
    found = [Figure("browser.journeys_passed", len(passed), n=len(cases), target=f">= {len(cases)}")]
    for severity in SEVERITIES:
        count = sum(look.get(severity, 0) for look in looks)
        limit = "<= 0" if severity in ("critical", "serious") else None
        found.append(Figure(f"axe.{severity}", count, n=len(looks), target=limit))
    return found


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


if __name__ == "__main__":
    main()
