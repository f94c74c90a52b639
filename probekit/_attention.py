"""Attention in the form whose backward is fast, for training and gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def plain_attention(hf: Any) -> Iterator[None]:
    """On a CPU, attention written out: the backward of torch's fused one is slow there on short texts."""
    before = hf.config._attn_implementation
    if hf.device.type == "cpu":
        hf.set_attn_implementation("eager")
    try:
        yield
    finally:
        hf.set_attn_implementation(before)
