"""The house keeps its rules: one line of rooms, one room in charge of each thing, no unsafe formats."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent

# House order, save that packing stands before rollouts, which make batches too: a room imports only rooms to
# its left. The leaves show or check rooms; no room imports them.
ROOMS = (
    *("sources", "pairs", "prompts", "checkpoints", "packing", "rollouts", "judges", "store", "vectors"),
    *(
        "ranking",
        "stability",
        "tokens",
        "clustering",
        "steering",
        "arms",
        "training",
        "doctor",
        "experiments",
    ),
    *("effects", "rivals", "provenance", "organisms", "presets"),
)
LEAVES = ("charts", "widgets", "report", "figures", "testing")

NETWORK = (
    *("socket", "urllib.request", "http.client", "ftplib"),
    *("requests", "httpx", "aiohttp", "huggingface_hub"),
)

# What only the named rooms may import or call. Checkpoints write a model's weights, training an adapter's:
# neither is a vector file.
RESERVED = {
    "trl": {"training"},
    "nnsight": {"checkpoints", "vectors", "steering", "rivals"},
    "safetensors.torch.save": {"store", "checkpoints", "training"},
    "safetensors.torch.save_file": {"store", "checkpoints", "training"},
    "safetensors.numpy.save": {"store"},
    "safetensors.numpy.save_file": {"store"},
    **{name: {"sources"} for name in NETWORK},
}

# Formats and calls that run code when a file is read, or write such files.
UNSAFE_NAMES = (
    *("pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"),
    *("torch.load", "torch.save", "pandas.read_pickle"),
)
UNSAFE_ARGUMENTS = {("trust_remote_code", True), ("weights_only", False), ("allow_pickle", True)}


def reached(source: str, module: str, *, is_package: bool = False) -> set[str]:
    """Every dotted name that a module imports or reaches through an import, aliases resolved."""
    tree = ast.parse(source)
    names: set[str] = set()
    meaning: dict[str, str] = {}
    parents = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
            meaning.update({alias.asname: alias.name for alias in node.names if alias.asname})
            meaning.update({alias.name.split(".")[0]: alias.name.split(".")[0] for alias in node.names})
        elif isinstance(node, ast.ImportFrom):
            above = parents[: len(parents) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                names.add(f"{base}.{alias.name}")
                meaning[alias.asname or alias.name] = f"{base}.{alias.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            root, _, rest = ast.unparse(node).partition(".")
            if root in meaning:
                names.add(f"{meaning[root]}.{rest}")
    return names


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def at_run_time(source: str) -> str:
    """The source without the imports that only a type checker sees."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    return ast.unparse(tree)


def modules(*, typing: bool = True) -> Iterator[tuple[str, set[str]]]:
    """Name and reached names of every module of the package, with or without those for type checking only."""
    for path in sorted((ROOT / "probekit").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        source = path.read_text() if typing else at_run_time(path.read_text())
        yield name, reached(source, name, is_package=is_package)


def room_of(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def rooms() -> dict[str, set[str]]:
    """What each room and leaf reaches. A private helper (`_name.py`) counts as part of all that import it."""
    reaches: dict[str, set[str]] = {}
    for name, names in modules():
        reaches.setdefault(room_of(name), set()).update(names)
    helpers = {name: reaches[name] for name in reaches if name.startswith("_")}
    for _ in helpers:  # a helper may use a helper
        for names in reaches.values():
            for helper in helpers.keys() & {room_of(n) for n in names if within(n, "probekit")}:
                names |= helpers[helper]
    return {name: names for name, names in reaches.items() if name not in {"", *helpers}}


def imported_rooms(room: str, names: set[str]) -> set[str]:
    others = {room_of(name) for name in names if within(name, "probekit")} - {room}
    return {other for other in others if not other.startswith("_") or other.startswith("__")}


def test_the_scan_sees_function_level_relative_and_aliased_imports() -> None:
    source = """
def f():
    from ..pairs import PairSet as P
    from . import other
    import torch as t
    import urllib.request
    t.load(1); P.select; urllib.request.urlopen
"""
    assert reached(source, "probekit.rivals.one") >= {
        *("probekit.pairs.PairSet", "probekit.pairs.PairSet.select", "probekit.rivals.other"),
        *("torch", "torch.load", "urllib.request", "urllib.request.urlopen"),
    }


def test_every_module_has_a_place_in_the_house() -> None:
    assert rooms().keys() <= {*ROOMS, *LEAVES}
    assert "sources" in rooms()


def test_every_private_helper_is_part_of_a_room() -> None:
    helpers = {name for name, _ in modules() if room_of(name).startswith("_")}
    unused = [h for h in helpers if not any(within(n, h) for names in rooms().values() for n in names)]
    assert unused == []


def test_rooms_import_only_rooms_above_them() -> None:
    wrong = []
    for room, names in rooms().items():
        above = ROOMS[: ROOMS.index(room)] if room in ROOMS else (*ROOMS, *LEAVES)
        wrong += [f"{room} imports probekit.{other}" for other in imported_rooms(room, names) - {*above}]
    assert wrong == []


def test_leaves_do_not_import_in_a_circle() -> None:
    edges = {leaf: imported_rooms(leaf, names) for leaf, names in rooms().items() if leaf in LEAVES}
    while free := [leaf for leaf, others in edges.items() if not others & edges.keys()]:
        for leaf in free:
            del edges[leaf]
    assert edges == {}


def test_a_rival_never_imports_another_rival() -> None:
    wrong = [
        f"{name} imports {other}"
        for name, names in modules()
        if name.startswith("probekit.rivals.")
        for other in sorted(names)
        if within(other, "probekit.rivals")
        and not within(other, name)
        and not other.startswith(("probekit.rivals._", "probekit.rivals.RivalError"))  # what rivals share
    ]
    assert wrong == []


def test_only_the_rooms_in_charge_touch_trl_nnsight_vector_files_and_the_network() -> None:
    wrong = [
        f"{room} reaches {reserved}"
        for room, names in rooms().items()
        for reserved, in_charge in RESERVED.items()
        if room not in in_charge and any(within(name, reserved) for name in names)
    ]
    assert wrong == []


def test_third_party_imports_are_declared_dependencies() -> None:
    provides = importlib.metadata.packages_distributions()
    lines = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    dependencies = {canonicalize_name(Requirement(line).name) for line in lines}
    tops = {(name, n.split(".")[0]) for name, names in modules(typing=False) for n in names}
    undeclared = [
        f"{name} imports {top}"
        for name, top in sorted(tops)
        if top not in sys.stdlib_module_names and top != "probekit"
        if not dependencies & {canonicalize_name(d) for d in provides.get(top, [])}
    ]
    assert undeclared == []


def test_contributing_states_the_order_of_rooms_that_is_checked_here() -> None:
    assert ", ".join(ROOMS) in " ".join((ROOT / "CONTRIBUTING.md").read_text().split())


def code_files() -> Iterator[tuple[str, str]]:
    """Path and source of every Python file and of every notebook's code cells."""
    for folder in ("probekit", "benchmarks", "tests", "notebooks", "data"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield str(path.relative_to(ROOT)), path.read_text()
        for path in sorted((ROOT / folder).rglob("*.ipynb")):
            cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
            lines = [line for cell in cells for line in "".join(cell["source"]).splitlines()]
            python = [line for line in lines if not line.lstrip().startswith(("%", "!"))]
            yield str(path.relative_to(ROOT)), "\n".join(python)


def unsafe(source: str) -> list[str]:
    """What in the source would run code from a file that it reads."""
    found = {n for n in reached(source, "any.module") if any(within(n, name) for name in UNSAFE_NAMES)}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.keyword) and isinstance(node.value, ast.Constant):
            found |= {f"{a}={v}" for a, v in UNSAFE_ARGUMENTS if a == node.arg and v is node.value.value}
    return sorted(found)


def test_the_safety_scan_finds_each_unsafe_form() -> None:
    source = "import torch as t, pickle\nt.load(p)\npickle.loads(b)\nopen_model(trust_remote_code=True)"
    assert unsafe(source) == ["pickle", "pickle.loads", "torch.load", "trust_remote_code=True"]


def test_no_file_unpickles_or_runs_code_from_a_models_repository() -> None:
    assert {path: found for path, source in code_files() if (found := unsafe(source))} == {}
