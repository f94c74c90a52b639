"""Works timed against each other, in turns on one machine, and their ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

from probekit.figures import Figure


def in_turns(*works: Callable[[], object], repeats: int) -> list[list[float]]:
    """Seconds of each work, all of them run one after the other, `repeats` times."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(repeats):
        for seconds, work in zip(times, works, strict=True):
            begin = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - begin)
    return times


def ratio(name: str, first: Sequence[float], second: Sequence[float], target: str | None = None) -> Figure:
    """First over second: the median over turns, with the lowest and highest turn."""
    turns = [one / other for one, other in zip(first, second, strict=True)]
    low, high = min(turns), max(turns)
    return Figure(
        name, statistics.median(turns), low=low, high=high, n=len(turns), unit="times", target=target
    )
