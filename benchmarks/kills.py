"""Kill a run that fills a store, at random moments, again and again: nothing lost, no vector wrong."""

from __future__ import annotations

import multiprocessing
import random
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probekit import _texts, vectors
from probekit.pairs import load_pairs
from probekit.store import VectorStore
from probekit.testing import tiny_checkpoint

LAYERS = (1, 3)
BLOCK_ROWS = 32  # small, so that there are many moments between two blocks
PAIRS = 512


@dataclass(frozen=True)
class Survived:
    """What `kill` saw.

    kills: processes killed while they ran. stores: folders that were filled in spite of it. wrong: those that
    differ from the folder of an undisturbed run in a byte of any file. blocks: in each. computed: blocks
    begun over all runs; no more than blocks * stores + kills if none is ever lost but the one at hand.
    """

    kills: int
    stores: int
    wrong: int
    blocks: int
    computed: int


def fill(folder: str, log: str) -> None:
    """Fill a store; in the log, a line for each block that is begun."""
    import torch

    torch.set_num_threads(1)
    _texts.BLOCK_ROWS = BLOCK_ROWS  # in a process of its own
    whole = vectors._read

    def logged(*given: Any, **options: Any) -> Any:
        with open(log, "a") as lines:
            lines.write("block\n")
        return whole(*given, **options)

    vectors._read = logged
    rows = [
        {"prompt": f"What is {i}?", "chosen": f"It is {i}.", "rejected": f"It is {i + 1}, is it not?"}
        for i in range(PAIRS)
    ]
    vectors.pair_vectors(
        tiny_checkpoint(), load_pairs(rows), layers=LAYERS, store=VectorStore(folder), token_budget=2048
    )


def kill(times: int, *, seed: int = 0) -> Survived:
    """Start runs and kill them, `times` in all, each after a random part of what an undisturbed one takes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "nnsight", "transformers.models.llama.modeling_llama"])
    moments = random.Random(seed)
    kills = stores = wrong = 0
    with tempfile.TemporaryDirectory() as home:
        place, log = Path(home), Path(home, "log")

        def start(folder: Path) -> Any:
            process = context.Process(target=fill, args=(str(folder), str(log)))
            process.start()
            return process

        start(place / "first").join()  # loads what is loaded once
        log.write_text("")
        begin = time.monotonic()
        start(place / "undisturbed").join()
        longest = time.monotonic() - begin
        expected, blocks = files(place / "undisturbed"), len(log.read_text().split())
        log.write_text("")
        while kills < times:
            folder, done = place / f"store-{stores}", False
            while not done:
                process = start(folder)
                if kills < times:
                    process.join(moments.uniform(0, longest))
                    process.kill()  # SIGKILL; of one that has ended, nothing
                process.join()
                if process.exitcode not in (0, -signal.SIGKILL):
                    raise RuntimeError(f"a run ended with exit code {process.exitcode}: see above")
                done = process.exitcode == 0
                kills += not done
            stores += 1
            wrong += files(folder) != expected
        return Survived(kills, stores, wrong, blocks, len(log.read_text().split()))


def together(processes: int) -> dict[str, bytes]:
    """What is in a store that so many processes have filled at once, none knowing of the others."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "nnsight", "transformers.models.llama.modeling_llama"])
    with tempfile.TemporaryDirectory() as home:
        given = (str(Path(home, "store")), str(Path(home, "log")))
        runs = [context.Process(target=fill, args=given) for _ in range(processes)]
        for run in runs:
            run.start()
        for run in runs:
            run.join()
        if any(run.exitcode for run in runs):
            raise RuntimeError("a run ended with an error: see above")
        return files(Path(home, "store"))


def files(folder: Path) -> dict[str, bytes]:
    """The bytes of all files in a folder, but for those that a killed run was writing."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".partial-") for part in path.parts)
    }


if __name__ == "__main__":
    print(kill(50))
