"""What a contest keeps of its arms: a file for each in runs/, packed into one an organism to commit."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks import loop
from probekit import arms, sources
from probekit.experiments import About, Experiment, read_result, results

PACKED = loop.ROOT / "benchmarks" / "contest"
ARM = "arm-"  # and the hash of its ledger: arms with the same edits are one, whatever they are called
REPRODUCED = loop.ROOT / "benchmarks" / "reproduce"
CALLED = {
    "filter": "ours filter", "stratified filter": "ours stratified filter", "plain filter": "pooled filter",
    "swap": "ours swap", "stratified swap": "ours stratified swap",
}  # fmt: skip
_OWN = ("arm", "seed", "ledger")
_JUDGED = ("arm", "seed", "prompt_id", "harmful", "distractor", "sample", "verdict")


def of(experiment: Experiment) -> str:
    """16 hex digits over all that the arms of an organism have in common."""
    common = _common(experiment.about(arms.baseline(), seed=0))
    return hashlib.sha256(repr(sorted(common.items())).encode()).hexdigest()[:16]


def judged(name: str, experiment: Experiment) -> pl.DataFrame:
    """The judged rows of all finished arms of an organism as it is now, each arm named by its ledger."""
    wanted = _common(experiment.about(arms.baseline(), seed=0))
    there = sorted(experiment.folder.glob(f"{ARM}*-[0-9]*.json"))
    found = results([one for one in there if _common(read_result(one)["about"]) == wanted]).select(_JUDGED)
    before = [reproduced(name, experiment).select(_JUDGED)]
    if path(name).is_file():
        before.append(pl.read_parquet(path(name)).filter(of=of(experiment)).drop("of"))
    for known in before:
        found = pl.concat([known, found.join(known, on=["arm", "seed"], how="anti")])
    return found


def reproduced(name: str, experiment: Experiment) -> pl.DataFrame:
    """The judged rows of `make reproduce`, which has the same arms of SmolLM2, each named by its ledger.

    Those of our rankings are of another M1 for each seed, `called` as the contest calls them.
    """
    wanted = _common(experiment.about(arms.baseline(), seed=0))
    frames = [pl.DataFrame(schema={**results([]).schema, "called": pl.String}).select(*_JUDGED, "called")]
    for one in sorted(REPRODUCED.glob("*-[0-9].json")) if name == "smollm2" else ():
        about = read_result(one)["about"]
        if _common(about) == wanted and about["arm"] != "M0":  # whose ledger is the baseline's
            names = pl.lit(ARM + about["ledger"]), pl.lit(CALLED.get(about["arm"]), dtype=pl.String)
            rows = results([one]).with_columns(arm=names[0], called=names[1])
            frames.append(rows.select(*_JUDGED, "called"))
    return pl.concat(frames)


def _common(about: About) -> dict[str, Any]:
    """What an arm has in common with others of its organism."""
    return {name: value for name, value in about.items() if name not in _OWN}


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
