"""Ranking a set as large as the field's largest, from a file: memory, and time over reading and a product."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

from benchmarks.turns import in_turns, ratio
from probekit.figures import Figure
from probekit.vectors import MappedRows, VectorSet

PAIRS, WIDTH, BEHAVIOURS = 378_341, 4_096, 150  # allenai/olmo-2-1124-7b-preference-mix, a 7B model
ROWS = 4_096  # written, read or multiplied at a time


def compare(
    *, pairs: int = PAIRS, width: int = WIDTH, behaviours: int = BEHAVIOURS, repeats: int = 3
) -> list[Figure]:
    """The figures `ranking.*`, measured in a process of its own, whose memory is its alone."""
    with tempfile.TemporaryDirectory() as home:
        path = Path(home) / "pairs"
        write(path, pairs, width)
        sizes = [str(number) for number in (pairs, width, behaviours, repeats)]
        # The Makefile has malloc keep what is freed, which training likes; users rank without that.
        usual = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.scale", str(path), *sizes],
            capture_output=True, text=True, check=True, env=usual,
        )  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    return [
        ratio("ranking.vs_read_plus_product", found["seconds"][0], found["seconds"][1], "<= 2"),
        Figure("ranking.resident_gb", found["resident_gb"], n=pairs, unit="GB", target="<= 1.5"),
    ]


def write(path: Path, pairs: int, width: int) -> None:
    """Random rows in float16."""
    import torch

    torch.manual_seed(0)
    with open(path, "wb") as file:
        for start in range(0, pairs, ROWS):
            file.write(torch.randn(min(ROWS, pairs - start), width).half().numpy().tobytes())


def measure(path: Path, pairs: int, width: int, behaviours: int, repeats: int) -> dict[str, Any]:
    """Seconds of a ranking with the bank and the twins projected out, and of reading and a bare product."""
    import torch

    from probekit.ranking import rank

    def some(kind: Literal["behaviour", "twin"]) -> VectorSet:
        names = [f"{kind} {row}" for row in range(behaviours)]
        values = torch.randn(behaviours, 1, width)
        return VectorSet(names, (0,), values, "synthetic", kind=kind, prompt_ids=names)

    behaviour, twins = some("behaviour"), some("twin")
    rows = MappedRows(path, 0, (pairs, 1, width), "float16")
    every = VectorSet([f"{row:09}" for row in range(pairs)], (0,), rows, "synthetic")

    def bare() -> None:
        read_file(path)
        bare_product(pairs, width, behaviours)

    def ours() -> None:
        found = rank(behaviour, every, layer=0, pooling="bank", control=twins, method="project")
        assert len(found) == pairs

    read_file(path)  # into the operating system's cache, for both sides
    times = in_turns(ours, bare, repeats=repeats)
    return {"seconds": times, "resident_gb": most_resident()}


def most_resident() -> float:
    """The most memory that this process has held, in GB; getrusage would count what its parent held too."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    return int(line.split()[1]) * 1024 / 1e9


def read_file(path: Path) -> None:
    """All of it, a piece at a time."""
    buffer = bytearray(2**25)
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def bare_product(pairs: int, width: int, behaviours: int) -> None:
    """What such a ranking multiplies, in float32: the pooled vector, and the bank without the twins."""
    import torch

    some, directions = torch.randn(ROWS, width), torch.randn(width, behaviours + 1)
    for _ in range(pairs // ROWS):
        some @ directions


if __name__ == "__main__":
    path, *sizes = sys.argv[1:]
    print(json.dumps(measure(Path(path), *map(int, sizes))))
