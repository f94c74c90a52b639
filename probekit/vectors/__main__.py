"""`python -m probekit.vectors`: fill a store with pair vectors, in one process or, launched, in several."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from probekit._texts import pair_texts
from probekit._vector_set import VectorError
from probekit.checkpoints import CheckpointError, open_checkpoint
from probekit.packing import PackingError
from probekit.pairs import PairError, load_pairs
from probekit.sources import SourceError
from probekit.store import StoreError, VectorStore
from probekit.vectors import check_readers, fill


def main(arguments: Sequence[str] | None = None) -> None:
    """Compute and store what the store lacks of these pairs' vectors.

    Launched in several processes (`accelerate launch -m probekit.vectors ...`, or torchrun), each takes its
    share of the blocks, on a GPU of its own where there are any; they need not talk to each other. If one
    dies, what it had stored stays, and any later run, with any number of processes, computes the rest.
    """
    parser = argparse.ArgumentParser(prog="python -m probekit.vectors", description=main.__doc__)
    parser.add_argument("--pairs", required=True, help="a preference dataset: file, folder or hub id")
    parser.add_argument("--store", required=True, help="the folder of the vectors")
    parser.add_argument("--layers", required=True, type=int, nargs="+", help="block indices, from 0")
    parser.add_argument("--model", help="hub id or folder of M0; the packaged SmolLM2 if not given")
    parser.add_argument("--adapter", action="append", help="PEFT folder to merge; may be given several times")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16")
    parser.add_argument("--no-chat", action="store_true", help="join prompt and reply bare")
    parser.add_argument("--token-budget", type=int, help="tokens of a forward pass; default: from the memory")
    asked = parser.parse_args(arguments)
    process, processes = (
        int(os.environ.get(name, usual)) for name, usual in (("RANK", 0), ("WORLD_SIZE", 1))
    )
    try:
        pairs = load_pairs(asked.pairs)
        checkpoint = open_checkpoint(asked.model, adapter=asked.adapter, dtype=asked.dtype, device=_device())
        check_readers(checkpoint, None, asked.layers)
        store = VectorStore(asked.store)
        fill(
            store,
            checkpoint,
            pair_texts(pairs),
            layers=asked.layers,
            chat=not asked.no_chat,
            token_budget=asked.token_budget,
            part=(process, processes),
        )
    except (CheckpointError, PackingError, PairError, SourceError, StoreError, VectorError) as error:
        sys.exit(f"process {process} of {processes}: {error}")
    print(f"process {process} of {processes} is done: {asked.store}", flush=True)


def _device() -> str | None:
    """This process's GPU where there are any; else what transformers takes itself."""
    import torch

    if not torch.cuda.is_available():
        return None
    return f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"


if __name__ == "__main__":
    main()
