"""Ratios (hits / counts) per arm, their spread over seeds, a bootstrap by prompt. Private to `effects`.

A table has one row per arm. The statistic is the mean over training seeds of (sum of hits / sum of counts),
for perplexity of exp(that). One draw of prompts serves all arms, so that differences between arms are paired;
seeds are drawn within each arm.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:
    from torch import Generator, Tensor


class EffectError(ValueError):
    """Replies that cannot carry a comparison: missing columns, doubled rows, arms with other prompts."""


@dataclass(frozen=True)
class Cells:
    """What was counted: for each arm hits and counts, float64 (seeds, prompts), prompts sorted by id."""

    metric: str
    hits: dict[str, Tensor]
    counts: dict[str, Tensor]
    exponential: bool = False

    def ratios(self, arm: str) -> Tensor:
        """The statistic of each seed, (seeds,)."""
        ratios = self.hits[arm].sum(1) / self.counts[arm].sum(1)
        return ratios.exp() if self.exponential else ratios


def count_cells(
    rows: pl.DataFrame, arms: pl.DataFrame, keys: Sequence[str], metric: str, *, exponential: bool = False
) -> Cells:
    """Sum the columns `hits` and `counts` of `rows` per arm, seed and prompt, for every run in `arms`.

    Raises EffectError for rows with equal `keys`, fewer than two prompts, runs that were not asked all
    prompts, and runs in which nothing counts: all of these would compare arms that differ by more than their
    training.
    """
    import torch

    if doubled := rows.height - rows.unique(list(keys)).height:
        raise EffectError(f"{metric}: {doubled} rows repeat the {', '.join(keys)} of others; joined twice?")
    prompts = sorted(set(rows["prompt_id"]))
    if len(prompts) < 2:
        raise EffectError(f"{metric}: {len(prompts)} prompts were asked; an interval needs two or more.")
    sums = rows.group_by("arm", "seed", "prompt_id").agg(pl.col("hits", "counts").cast(pl.Float64).sum())
    runs: dict[tuple[str, int], dict[str, tuple[float, float]]]
    runs = {run: {} for run in arms.select("arm", "seed").unique(maintain_order=True).iter_rows()}
    for arm, seed, prompt, hits, counts in sums.iter_rows():
        runs[arm, seed][prompt] = hits, counts
    stacked: dict[str, list[Tensor]] = {}
    for (arm, seed), found in runs.items():
        if absent := [one for one in prompts if one not in found]:
            raise EffectError(
                f"{metric}: arm {arm!r}, seed {seed} has nothing on {len(absent)} of {len(prompts)} prompts, "
                f"such as {absent[0]!r}. All arms and seeds must be judged on the same prompts."
            )
        if not sum(counts for _, counts in found.values()):
            raise EffectError(f"{metric}: arm {arm!r}, seed {seed} has no readable reply, so it has no rate.")
        stacked.setdefault(arm, []).append(torch.tensor([found[one] for one in prompts], dtype=torch.float64))
    both = {arm: torch.stack(seeds).unbind(2) for arm, seeds in stacked.items()}
    hits_of, counts_of = ({arm: pair[side] for arm, pair in both.items()} for side in (0, 1))
    return Cells(metric, hits_of, counts_of, exponential)


def bootstrap(cells: Cells, boot: int, seed: int) -> dict[str, Tensor]:
    """Arm -> the statistic in each of `boot` rounds, (boot,); not finite where nothing readable was drawn."""
    import torch

    if boot < 1:
        raise EffectError(f"boot is {boot}; it is the number of bootstrap rounds, at least 1.")
    size = next(iter(cells.hits.values())).shape[1]
    drawn = torch.randint(size, (boot, size), generator=_generator(f"prompts {seed}"))
    times = torch.zeros(boot, size, dtype=torch.float64)
    times.scatter_add_(1, drawn, torch.ones_like(times))
    rounds = {}
    for arm in cells.hits:
        ratios = (times @ cells.hits[arm].T) / (times @ cells.counts[arm].T)
        seeds = ratios.shape[1]
        # S - 1 of S, with replacement, has the variance of a mean of S; drawing S would understate it. The
        # draw hangs on the arm's name, so that its interval is the same in whatever company.
        chosen = torch.randint(seeds, (boot, max(seeds - 1, 1)), generator=_generator(f"seeds {seed} {arm}"))
        rounds[arm] = (ratios.exp() if cells.exponential else ratios).gather(1, chosen).mean(1)
    return rounds


def arm_table(cells: Cells, rounds: dict[str, Tensor]) -> pl.DataFrame:
    """arm, metric, seeds, prompts, n, rate, low, high, seed_min, seed_max, seed_sd (null for one seed)."""
    rows = []
    for arm in cells.hits:
        ratios = cells.ratios(arm)
        rows.append(
            {
                "arm": arm,
                "metric": cells.metric,
                "seeds": len(ratios),
                "prompts": cells.hits[arm].shape[1],
                "n": int(cells.counts[arm].sum()),
                "rate": ratios.mean().item(),
                **_interval("", rounds[arm]),
                "seed_min": ratios.min().item(),
                "seed_max": ratios.max().item(),
                "seed_sd": ratios.std().item() if len(ratios) > 1 else None,
            }
        )
    floats = ("rate", "low", "high", "seed_min", "seed_max", "seed_sd")
    return pl.DataFrame(rows, schema_overrides=dict.fromkeys(floats, pl.Float64()))


def with_interval(
    table: pl.DataFrame,
    column: str,
    values: dict[str, float | None],
    rounds: dict[str, Tensor],
    *,
    given: tuple[str, ...],
) -> pl.DataFrame:
    """The table with `column` and its interval; `given` arms have it by definition, without interval."""
    names = (column, f"{column}_low", f"{column}_high")
    rows = [
        {column: values[arm]}
        | (_interval(f"{column}_", rounds[arm]) if arm not in given and values[arm] is not None else {})
        for arm in table["arm"]
    ]
    return table.hstack(pl.DataFrame(rows, schema=dict.fromkeys(names, pl.Float64())))


def _interval(prefix: str, rounds: Tensor) -> dict[str, float | None]:
    finite = rounds[rounds.isfinite()]
    if len(finite) < len(rounds) * (1 - 1 / 40):
        return {f"{prefix}low": None, f"{prefix}high": None}
    return {f"{prefix}low": finite.quantile(0.025).item(), f"{prefix}high": finite.quantile(0.975).item()}


def _generator(seed: str) -> Generator:
    import torch

    digest = hashlib.sha256(seed.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
