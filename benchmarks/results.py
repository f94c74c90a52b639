"""Jobs shared between processes, what each stage of a run took, and figures put beside others."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from probekit import sources
from probekit.experiments import ResultError
from probekit.figures import Figure, FigureError, read_figures, write_figures


def share(jobs: Sequence[Any], part: str) -> list[Any]:
    """The jobs of part "i/n": every n-th one from the i-th on. Raises `ResultError` for another form.

    >>> share("abcde", "1/2"), share("abcde", "2/2")
    (['a', 'c', 'e'], ['b', 'd'])
    """
    i, _, n = part.partition("/")
    if not (i.isdecimal() and n.isdecimal() and 1 <= int(i) <= int(n)):
        raise ResultError(f"The part is {part!r}; write it like 1/2 and 2/2, the first number the smaller.")
    return list(jobs[int(i) - 1 :: int(n)])


@dataclass
class Cost:
    """Seconds of wall clock, tokens sampled, read or trained on, and whether the stage came to its end."""

    seconds: float = 0.0
    tokens: int = 0
    finished: bool = False


@dataclass
class Costs:
    """What each stage took, kept in a file from run to run.

    A stage that has come to its end is not timed again, for what it made is cached; one that was interrupted
    adds up. So the sum is what the whole would have taken in one go, whenever it is read.
    """

    path: Path
    stages: dict[str, Cost] = field(default_factory=dict)
    start: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        if self.path.is_file():
            content = json.loads(self.path.read_text(encoding="utf-8"))
            self.stages = {name: Cost(**values) for name, values in content.items()}

    @contextmanager
    def stage(self, name: str) -> Iterator[Cost]:
        """Time a stage and say on screen that it has begun. The tokens are for the caller to fill in."""
        cost = self.stages.setdefault(name, Cost())
        begin, before, known = time.monotonic(), cost.seconds, cost.finished
        print(f"[{begin - self.start:6.0f} s] {name}", flush=True)
        try:
            yield cost
            cost.finished = True
        finally:
            if not known:
                cost.seconds = before + time.monotonic() - begin
                with sources.replacing(self.path) as partial:
                    partial.write_text(
                        json.dumps({k: vars(v) for k, v in self.stages.items()}, indent=1) + "\n"
                    )

    def until(self, stage: str | None = None) -> float:
        """Seconds of all stages, or of those up to the end of one."""
        names = list(self.stages)
        upto = names[: names.index(stage) + 1] if stage else names
        return sum(self.stages[name].seconds for name in upto)

    @property
    def frame(self) -> pl.DataFrame:
        """One row a stage: stage, seconds, tokens."""
        rows = [(name, cost.seconds, cost.tokens) for name, cost in self.stages.items()]
        return pl.DataFrame(
            rows, schema={"stage": pl.String, "seconds": pl.Float64, "tokens": pl.Int64}, orient="row"
        )


def keep(path: Path, found: Sequence[Figure], *, command: str) -> None:
    """Have these figures in the file, in the place of those of the same names, beside the others."""
    try:
        before = read_figures(path).figures
    except FigureError:
        before = ()
    new = {one.name: one for one in found}
    both = {one.name: one for one in before} | new
    write_figures(path, [both[name] for name in sorted(both)], command=command)
