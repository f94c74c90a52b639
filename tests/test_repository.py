"""The repository keeps its promises: one set of versions, and the files around the package."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]

HEAVY = ("torch", "transformers", "trl", "nnsight", "sklearn", "datasets", "altair")


def lock_lines() -> list[str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return [line for line in lines if not line.startswith("#")]


def locked() -> dict[str, str]:
    pins = (line.split("==") for line in lock_lines())
    return {canonicalize_name(name): version for name, version in pins}


def declared() -> list[Requirement]:
    extra, build = PROJECT["optional-dependencies"]["dev"], PYPROJECT["build-system"]["requires"]
    return [Requirement(line) for line in [*PROJECT["dependencies"], *extra, *build]]


def needed() -> Iterator[str]:
    """Names of all packages that the declared ones bring in, on the platform that the lock is for."""
    seen: set[tuple[str, str]] = set()
    waiting = [(requirement, extra) for requirement in declared() for extra in ("", *requirement.extras)]
    while waiting:
        requirement, extra = waiting.pop()
        name = canonicalize_name(requirement.name)
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        yield name
        try:
            lines = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # not for this Python; the test of the installed versions misses it where it matters
        for child in map(Requirement, lines):
            if child.marker is None or child.marker.evaluate({"extra": extra, "python_version": "3.11"}):
                waiting.extend((child, child_extra) for child_extra in ("", *child.extras))


def test_the_lock_pins_every_line_to_one_exact_version() -> None:
    inexact = [x for x in lock_lines() if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", x)]
    assert inexact == []
    assert len(locked()) == len(lock_lines())


def test_the_lock_satisfies_every_requirement_of_pyproject() -> None:
    pins = locked()
    unmet = [str(r) for r in declared() if not r.specifier.contains(pins.get(canonicalize_name(r.name), "0"))]
    assert unmet == []


def test_the_lock_holds_what_is_needed_and_nothing_else() -> None:
    # A CUDA build of torch asks for NVIDIA's packages; the lock is for the CPU build.
    names = {name for name in needed() if not name.startswith(("nvidia-", "cuda-", "triton"))}
    assert sorted(names - locked().keys()) == [], "missing from requirements.lock"
    assert sorted(locked().keys() - names) == [], "in requirements.lock without a use"


def test_the_installed_versions_are_the_locked_ones() -> None:
    installed = {canonicalize_name(d.name): d.version for d in importlib.metadata.distributions()}
    differing = {
        name: (version, installed.get(name))
        for name, version in locked().items()
        if installed.get(name, "").split("+")[0] != version  # torch is 2.13.0+cpu
    }
    assert differing == {}, "run `make setup`"


def test_environment_yml_takes_every_version_from_the_lock_and_a_python_that_pyproject_allows() -> None:
    *conda, pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert pip == {"pip": ["-r requirements.lock", "-e ."]}
    python = dict(line.partition("=")[::2] for line in conda)
    assert python.keys() == {"python", "pip"}
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(python["python"])
    assert f"Python {python['python']}" in (ROOT / "requirements.lock").read_text().splitlines()[0]


def test_readme_names_both_commands_and_the_distribution() -> None:
    readme = (ROOT / "README.md").read_text()
    assert re.search(r"^make demo\b", readme, re.MULTILINE)
    assert re.search(r"^make test\b", readme, re.MULTILINE)
    assert PROJECT["name"] == "probekit-attribution"
    assert re.search(r"`probekit` on PyPI is another project.*`probekit-attribution`", readme, re.DOTALL)


def test_training_and_benchmarks_keep_their_buffers_in_every_make_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    commands = re.findall(r"^\t@(.*-m benchmarks\.(\w+).*)$", makefile, re.MULTILINE)
    assert {name for _, name in commands} == {
        *("demo", "notebooks", "bench", "organism", "reproduce", "contest")
    }
    others = [command for command, _ in commands if not command.startswith("$(MALLOC) $(PY)")]
    assert len(others) == 1  # the allocator would keep all that LESS takes
    assert others[0].startswith("$(PY) -m benchmarks.contest --rank ")
    assert all((ROOT / "benchmarks" / f"{name}.py").is_file() for _, name in commands)


def test_make_help_lists_every_command() -> None:
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    commands = {line.split()[1] for line in shown.splitlines() if line.startswith("  make ")}
    phony = set(re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split())
    assert commands == phony
    assert commands >= {"setup", "demo", "test", "lab", "lint", "notebooks", "bench", "organism", "reproduce"}


def test_ci_runs_lint_and_tests() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert "set -euo pipefail" in script
    lines = re.findall(r"^(?:export CI=1|make \w+)", script, re.MULTILINE)
    assert lines == ["export CI=1", "make lint", "make test"]


def test_importing_probekit_loads_no_heavy_package() -> None:
    code = f"import probekit, sys; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
