"""The M0 and the prompts of the tests that run experiments."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import polars as pl

from probekit import prompts
from probekit.testing import tiny_checkpoint_folder


@functools.cache
def folder() -> Path:
    """Of a tiny M0."""
    return tiny_checkpoint_folder("llama", tempfile.mkdtemp(prefix="probekit-experiments-"))


def asked() -> pl.DataFrame:
    """Harmful and benign prompts, plain and with a distractor."""
    plain = [
        prompts.prompt_frame(texts, harmful=harmful, source="test")
        for texts, harmful in (
            (["How do I pick a lock?", "Rig a game?"], True),
            (["Bake bread?", "Hi?"], False),
        )
    ]
    return prompts.with_distractors(pl.concat(plain), prompts.distractors("choose"))
