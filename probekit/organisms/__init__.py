"""Models with a known cause: one file each, giving M0, the preference pairs and the truth."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    import polars as pl

    from probekit.checkpoints import Checkpoint
    from probekit.pairs import PairSet
    from probekit.training import Recipe

Name = Literal["tiny", "smollm2"]


class OrganismError(ValueError):
    """There is no such organism."""


@dataclass(frozen=True)
class Case:
    """All that the loop needs: two checkpoints, the pairs between them, and prompts. Make one of your own.

    choosing: prompts, plain and with distractors, on which the habit is surfaced and traced; evaluation:
    others, on which arms are judged. layer: block whose output is read. recipe, epochs: of the DPO that made
    M1 of M0. truth: ids of the pairs that are the cause, where that is known.
    """

    m0: Checkpoint
    m1: Checkpoint
    pairs: PairSet
    choosing: pl.DataFrame = field(repr=False)
    evaluation: pl.DataFrame = field(repr=False)
    layer: int
    recipe: Recipe = field(repr=False)
    epochs: int = 1
    truth: frozenset[str] = field(default=frozenset(), repr=False)


def open_case(name: Name) -> Case:
    """A packaged organism: "tiny" (a million parameters, nothing is fetched), or "smollm2" (135 M).

    Raises OrganismError for another name.
    """
    if name not in get_args(Name):
        raise OrganismError(
            f"There is no organism {name!r}; choose one of {', '.join(get_args(Name))}, or make a Case of "
            "your own checkpoints and pairs."
        )
    from probekit.organisms import distractor, tiny

    organism = tiny if name == "tiny" else distractor
    loaded, m0, m1 = organism.load(), organism.open_m0(), organism.open_m1()
    m1.name = "M1"
    return Case(
        m0,
        m1,
        loaded.pairs,
        choosing=organism.choosing_prompts(),
        evaluation=organism.evaluation_prompts(),
        layer=organism.LAYER,
        recipe=organism.DPO,
        epochs=organism.EPOCHS,
        truth=loaded.truth,
    )
