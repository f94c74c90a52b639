"""Small result files that can be committed: what they are of, and numbers. A helper of `experiments`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from probekit import sources
from probekit._differences import differences
from probekit._judging import JUDGED

About = Mapping[str, Any]
"""What a result is of: plain values by name, all of which have to agree before it is used again."""


class ResultError(RuntimeError):
    """A result file that is damaged, or of something else than what is asked for now."""


def write_result(path: Path, about: About, frame: pl.DataFrame, **measured: object) -> None:
    """Write a frame and what it is of, one row a line; the file appears whole or not at all."""
    head = json.dumps({"about": dict(about), **measured, "columns": frame.columns}, indent=1)[1:-1].strip(
        "\n"
    )
    lines = ",\n".join(json.dumps(row) for row in frame.rows())
    with sources.replacing(path) as partial:
        partial.write_text(f'{{\n{head},\n "rows": [\n{lines}\n]\n}}\n', encoding="utf-8")


def read_result(path: Path, about: About | None = None) -> dict[str, Any]:
    """The content of a result file. Raises `ResultError` if it is damaged or not of what `about` says."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found: About = content["about"]
        rows = [len(row) == len(content["columns"]) for row in content["rows"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ResultError(
            f"{path} is not a whole result file ({error!r}). Remove it to have it made again."
        ) from error
    if not all(rows):
        raise ResultError(f"{path} has rows of the wrong length. Remove it to have it made again.")
    if about is not None and (differs := differences(found, about)):
        raise ResultError(
            f"{path} is of something else than what is asked for now: {'; '.join(differs)}. "
            "Remove it to have it made again, or go back to what it is of."
        )
    return content


def results(paths: Iterable[Path]) -> pl.DataFrame:
    """The judged rows of these result files, with columns arm and seed, in their order."""
    schema = {"arm": pl.String, "seed": pl.Int64, **JUDGED}
    frames = [pl.DataFrame(schema=schema)]
    for content in map(read_result, paths):
        rows = pl.DataFrame(content["rows"], schema=JUDGED, orient="row")
        arm, seed = (pl.lit(content["about"][name]).alias(name) for name in ("arm", "seed"))
        frames.append(rows.select(arm, seed.cast(pl.Int64), pl.all()))
    return pl.concat(frames)
