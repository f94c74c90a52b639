"""What a contest keeps of its arms: a file for each in runs/, packed into one an organism to commit."""

from __future__ import annotations

import hashlib
from pathlib import Path

import polars as pl

from benchmarks import loop
from probekit import arms, sources
from probekit.experiments import Experiment, results

PACKED = loop.ROOT / "benchmarks" / "contest"
ARM = "arm-"  # and the hash of its ledger: arms with the same edits are one, whatever they are called
_OWN = ("arm", "seed", "ledger")
_JUDGED = ("arm", "seed", "prompt_id", "harmful", "distractor", "sample", "verdict")


def of(experiment: Experiment) -> str:
    """16 hex digits over all that the arms of an organism have in common."""
    about = experiment.about(arms.baseline(), seed=0)
    common = sorted((name, value) for name, value in about.items() if name not in _OWN)
    return hashlib.sha256(repr(common).encode()).hexdigest()[:16]


def judged(name: str, experiment: Experiment) -> pl.DataFrame:
    """The judged rows of all finished arms of an organism, each arm named by its ledger."""
    found = results(sorted(experiment.folder.glob(f"{ARM}*-[0-9]*.json"))).select(_JUDGED)
    packed = path(name)
    if packed.is_file():
        before = pl.read_parquet(packed).filter(of=of(experiment)).drop("of")
        found = pl.concat([before, found.join(before, on=["arm", "seed"], how="anti")])
    return found


def pack(name: str, experiment: Experiment) -> None:
    """Write the judged rows of all finished arms of an organism into one small file to commit."""
    rows = judged(name, experiment).sort("arm", "seed", "harmful", "distractor", "prompt_id", "sample")
    with sources.replacing(path(name)) as partial:
        rows.with_columns(of=pl.lit(of(experiment))).write_parquet(
            partial, compression="zstd", compression_level=19
        )


def path(name: str) -> Path:
    """The packed file of an organism."""
    return PACKED / f"{name}.arms.parquet"
