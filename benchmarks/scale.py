"""Ranking a set as large as the field's largest, from a file: memory, and time over reading and a product."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

from probekit.figures import Figure
from probekit.vectors import MappedRows, VectorSet

PAIRS, WIDTH, BEHAVIOURS = 378_341, 4_096, 150  # allenai/olmo-2-1124-7b-preference-mix, a 7B model
ROWS = 4_096  # written, read or multiplied at a time


def compare(*, pairs: int = PAIRS, width: int = WIDTH, behaviours: int = BEHAVIOURS) -> list[Figure]:
    """The figures `ranking.*`, measured in a process of its own, whose memory is its alone."""
    with tempfile.TemporaryDirectory() as home:
        path = Path(home) / "pairs"
        write(path, pairs, width)
        sizes = [str(number) for number in (pairs, width, behaviours)]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.scale", str(path), *sizes],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    return [
        Figure("ranking.vs_read_plus_product", found["ratio"], n=pairs, unit="times", target="<= 2"),
        Figure("ranking.resident_gb", found["resident_gb"], n=pairs, unit="GB", target="<= 1.5"),
    ]


def write(path: Path, pairs: int, width: int) -> None:
    """Random rows in float16."""
    import torch

    torch.manual_seed(0)
    with open(path, "wb") as file:
        for start in range(0, pairs, ROWS):
            file.write(torch.randn(min(ROWS, pairs - start), width).half().numpy().tobytes())


def measure(path: Path, pairs: int, width: int, behaviours: int) -> dict[str, float]:
    """A ranking with the bank and the twins projected out, over reading the file and a bare product."""
    import torch

    from probekit.ranking import rank

    def some(kind: Literal["behaviour", "twin"]) -> VectorSet:
        names = [f"{kind} {row}" for row in range(behaviours)]
        values = torch.randn(behaviours, 1, width)
        return VectorSet(names, (0,), values, "synthetic", kind=kind, prompt_ids=names)

    behaviour, twins = some("behaviour"), some("twin")
    rows = MappedRows(path, 0, (pairs, 1, width), "float16")
    every = VectorSet([f"{row:09}" for row in range(pairs)], (0,), rows, "synthetic")
    read_file(path)  # into the operating system's cache, for both sides
    begin = time.perf_counter()
    read_file(path)
    bare_product(pairs, width, behaviours)
    bare = time.perf_counter() - begin
    begin = time.perf_counter()
    found = rank(behaviour, every, layer=0, pooling="bank", control=twins, method="project")
    ours = time.perf_counter() - begin
    assert len(found) == pairs
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {"ratio": ours / bare, "resident_gb": resident, "seconds": ours, "bare_seconds": bare}


def read_file(path: Path) -> None:
    """All of it, a piece at a time."""
    buffer = bytearray(2**25)
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def bare_product(pairs: int, width: int, behaviours: int) -> None:
    """What such a ranking multiplies, in float32: the pooled vector, the bank, and the bank without twins."""
    import torch

    some, directions = torch.randn(ROWS, width), torch.randn(width, 2 * behaviours + 1)
    for _ in range(pairs // ROWS):
        some @ directions


if __name__ == "__main__":
    path, *sizes = sys.argv[1:]
    print(json.dumps(measure(Path(path), *map(int, sizes))))
