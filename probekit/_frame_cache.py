"""Frames that are made once and kept in a file, whose name says what they are of."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import polars as pl

from probekit import sources


def digest(frame: pl.DataFrame) -> str:
    """16 hex digits over a frame's columns and rows."""
    return hashlib.sha256(frame.write_json().encode()).hexdigest()[:16]


def cached_frame(path: Path, make: Callable[[], pl.DataFrame]) -> pl.DataFrame:
    """The frame in `path`, made and written there first if need be; the name has to say what it is of."""
    if not path.is_file():
        made = make()
        with sources.replacing(path) as partial:
            made.write_parquet(partial)
    return pl.read_parquet(path)
