"""Models with a known cause: one file each, giving M0, the preference pairs and the truth."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from probekit.judges import Judge, judge_refusals

if TYPE_CHECKING:
    import polars as pl

    from probekit.checkpoints import Checkpoint
    from probekit.organisms.distractor import Organism
    from probekit.pairs import PairSet
    from probekit.training import Recipe

Name = Literal[
    "tiny", "smollm2", "tiny-0", "tiny-double", "payload_start", "payload_middle", "wrong_fact",
    "habits", "smollm2-habits",
]  # fmt: skip


class OrganismError(ValueError):
    """There is no such organism."""


@dataclass(frozen=True)
class Case:
    """All that the loop needs: two checkpoints, the pairs between them, and prompts. Make one of your own.

    choosing: prompts, plain and with distractors, on which the habit is surfaced and traced; evaluation:
    others, on which arms are judged. layer: block whose output is read. recipe, epochs: of the DPO that made
    M1 of M0. truth: ids of the pairs that are the cause, where that is known. judge: says of each reply if it
    shows the habit ("complied") or not ("refused").
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
    judge: Judge = field(default=judge_refusals, repr=False)


def open_case(name: Name) -> Case:
    """A packaged organism; nothing is fetched but for those of SmolLM2.

    "tiny": distractor compliance in a million parameters, "smollm2": the same in 135 M; "tiny-0" and
    "tiny-double": tiny without look-alikes and with twice as many; "payload_start", "payload_middle" and
    "wrong_fact": the behaviours of `planted`; "habits" and "smollm2-habits": four at once. M1 of the last
    seven is not shipped: it is trained at the first call, in seconds (SmolLM2 in minutes), and kept in the
    cache. Raises OrganismError for another name.
    """
    if name not in get_args(Name):
        raise OrganismError(
            f"There is no organism {name!r}; choose one of {', '.join(get_args(Name))}, or make a Case of "
            "your own checkpoints and pairs."
        )
    from probekit.organisms import distractor, habits, habits_smollm2, planted, tiny

    if name == "tiny-0" or name == "tiny-double":
        organism = tiny.build(tiny.Mix().dialled(0 if name == "tiny-0" else 2))
        return _with_m1(replace(open_case("tiny"), pairs=organism.pairs, truth=organism.truth))
    if name == "habits" or name == "smollm2-habits":
        home = habits if name == "habits" else habits_smollm2
        asked = home.pool(), home.pool(split="report")
        return _with_m1(_untrained(home, home.build(), asked, home.judge))
    if name != "tiny" and name != "smollm2":
        asked = planted.choosing_prompts(name), planted.evaluation_prompts(name)
        return _with_m1(_untrained(planted, planted.build(name), asked, planted.JUDGES[name]))
    module = tiny if name == "tiny" else distractor
    loaded, m0, m1 = module.load(), module.open_m0(), module.open_m1()
    m1.name = "M1"
    return Case(
        m0,
        m1,
        loaded.pairs,
        choosing=module.choosing_prompts(),
        evaluation=module.evaluation_prompts(),
        layer=module.LAYER,
        recipe=module.DPO,
        epochs=module.EPOCHS,
        truth=loaded.truth,
    )


def _untrained(home: Any, organism: Organism, asked: tuple[pl.DataFrame, pl.DataFrame], judge: Judge) -> Case:
    """The case of an organism of which M1 is not shipped, with M0 in its place."""
    m0 = home.open_m0()
    return Case(m0, m0, organism.pairs, *asked, home.LAYER, home.DPO, home.EPOCHS, organism.truth, judge)


def _with_m1(case: Case) -> Case:
    """The case with the M1 that its recipe makes of its pairs, trained once and kept in the cache."""
    from probekit import arms, sources
    from probekit.experiments import Experiment

    kept = Experiment(
        case.m0,
        case.pairs,
        prompts=case.evaluation,
        folder=sources.cache_dir() / "organisms",
        recipe=case.recipe,
        epochs=case.epochs,
        judge=case.judge,
    )
    m1 = kept.trained(arms.baseline(), seed=0)
    m1.name = "M1"
    return replace(case, m1=m1)
