"""What transformers and PEFT say on every load, silenced; and our own progress bars, which can be hidden."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_BARS = ContextVar("bars", default=True)  # of its own in every thread: a cell beside one keeps its bars


@contextmanager
def no_bars(hidden: bool = True) -> Iterator[None]:
    """Inside, no `bar` is seen: for callers that show progress themselves."""
    before = _BARS.set(_BARS.get() and not hidden)
    try:
        yield
    finally:
        _BARS.reset(before)


def bar(batches: Sequence[Any], label: str) -> Any:
    """The batches, with a progress bar that goes when they are done."""
    from tqdm.auto import tqdm

    return tqdm(batches, desc=label, unit="batch", leave=False, disable=not _BARS.get())


@contextmanager
def quiet_loading() -> Iterator[None]:
    """No bar for each weight, and no warning that PEFT asks transformers for something by its old name."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # PEFT 0.21 with transformers 5.23; nothing that a user could change
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
            yield
    finally:
        if shown:
            logging.enable_progress_bar()
