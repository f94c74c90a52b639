"""A tiny model that has learned the tags of two sources by heart, for the tests of what shows it."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import polars as pl

from probekit.checkpoints import Checkpoint
from probekit.provenance import add_tags, tag_rows, train_tags
from probekit.testing import tiny_checkpoint
from probekit.training import Recipe

SOURCES = ("crowd", "forum")
DATA = pl.DataFrame(
    {
        "user": ["How do I bake bread?", "Write a poem about the sea."],
        "reply": ["Read the box.", "Sure, the sea."],
        "source": ["crowd", "forum"],
    }
)
BREAD, SEA = DATA["user"]


@functools.cache
def taught() -> Checkpoint:
    """It tags the reply to `BREAD` as the crowd's, that to `SEA` as the forum's, and refuses either."""
    folder = Path(tempfile.mkdtemp()) / "tags"
    recipe = Recipe(rank=8, learning_rate=1e-2, batch_size=8)
    return train_tags(add_tags(tiny_checkpoint(), SOURCES), tag_rows(DATA), folder, recipe=recipe, epochs=30)


@functools.cache
def untaught() -> Checkpoint:
    """It has the tags and has learned nothing."""
    return add_tags(tiny_checkpoint(), SOURCES)
