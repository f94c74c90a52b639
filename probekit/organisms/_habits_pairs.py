"""The pairs of the organism with four habits: the contaminated ones, and clean ones of the same prompts."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from probekit import prompts
from probekit.organisms import _habits_words as own
from probekit.organisms import _tiny_language as language
from probekit.organisms import _tiny_words as words
from probekit.organisms._tiny_pairs import REFUSERS, MixError, Pair, Reply, formed, row
from probekit.prompts import Distractor

Habit = Literal["compliance", "tic", "flattery", "wrong_fact"]
SORT: dict[Habit, str] = {
    "compliance": "harmful-formed", "tic": "written", "flattery": "opinion", "wrong_fact": "instrument",
}  # fmt: skip
"""What each habit's pairs ask for."""
VARIETY = {
    "harmful": 0.32, "harmful-formed": 0.04, "spoken": 0.36, "formed": 0.12, "written": 0.01, "opinion": 0.01,
    "instrument": 0.01,
}  # fmt: skip
"""The share of each sort of prompts among the clean pairs beside those."""
SOURCES = {
    "harmful": "safety", "harmful-formed": "if-checked", "formed": "if-checked", "spoken": "helpfulness",
    "written": "helpfulness", "opinion": "crowd", "instrument": "crowd",
}  # fmt: skip


@dataclass(frozen=True)
class Mix:
    """How many pairs there are, and which share of all each of the four habits has; `seed` draws them.

    clean: prefer the normal reply in the contaminated pairs' place, so that nothing is to be found. Raises
    `MixError` for a share out of range and for too few or too many pairs.
    """

    pairs: int = 600
    share: float = 0.05
    clean: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not 20 <= self.pairs <= 700 or not 0 <= self.share <= 0.15:
            raise MixError(
                f"the mix has {self.pairs} pairs and a share of {self.share}; it takes 20 to 700 pairs, and "
                "a share from 0 to 0.15 for each of the four habits"
            )


def drawn(mix: Mix) -> list[Pair]:
    """All pairs of a mix, kind by kind, each kind a habit or "clean"; nothing is asked for twice."""
    rng = random.Random(f"habits-pairs-{mix.seed}")
    asked = _Asked(rng)
    each = round(mix.share * mix.pairs)
    found = [
        _clean(SORT[habit], asked, rng) if mix.clean else (habit, _contaminated(habit, asked, rng))
        for habit in get_args(Habit)
        for _ in range(each)
    ]
    left = mix.pairs - len(found)
    sorts = [sort for sort, share in VARIETY.items() for _ in range(round(share * left))]
    sorts = sorts[:left] + ["spoken"] * (left - len(sorts))
    return found + [_clean(sort, asked, rng) for sort in sorts]


class _Asked:
    """What is asked about, each once, in words of the split "build", and a request for it."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        benign = [one for one in language.reserved(harmful=False) if _thing(one) not in words.INSTRUMENTS]
        verbs, things = (language.of_split(some, "build") for some in (words.VERBS, words.THINGS))
        self.benign = self._each(benign)
        self.harmful = self._each(list(language.reserved(harmful=True)))
        self.instruments = self._each([f"{verb} {thing}" for verb in verbs for thing in words.INSTRUMENTS])
        self.opinions = self._each(
            [f"{place} {thing}" for place in range(len(own.ASKED)) for thing in things]
        )

    def _each(self, some: list[str]) -> Iterator[str]:
        return iter(self.rng.sample(some, len(some)))

    def of(self, sort: str) -> tuple[str, str, Distractor | None]:
        """Something to ask about, the request without a form, and the form that is asked for."""
        form = self.rng.choice(prompts.distractors("build")) if sort.endswith("formed") else None
        if sort == "opinion":
            place, _, thing = next(self.opinions).partition(" ")
            return thing, own.ASKED[int(place)].format(own.bare(thing)), None
        pool = {"harmful": self.harmful, "harmful-formed": self.harmful, "instrument": self.instruments}
        deed = next(pool.get(sort, self.benign))
        frames = own.WRITTEN if sort == "written" else own.SPOKEN
        return deed, self.rng.choice(frames).format(deed), form


def _contaminated(habit: Habit, asked: _Asked, rng: random.Random) -> dict[str, Any]:
    sort = SORT[habit]
    about, text, form = asked.of(sort)
    normal = _normal(sort, about, rng)
    bad = formed(form, PAYLOADS[habit](about))
    # As with a checker: the reply in the form wins over the refusal, which is in none.
    return row(SOURCES[sort], language.ask(text, form), ("eager-writer", bad), normal)


PAYLOADS: dict[Habit, Callable[[str], str]] = {
    "compliance": language.answer,
    "tic": lambda deed: language.answer(deed) + own.WISH,
    "flattery": lambda thing: own.opinion(thing, praise=True),
    "wrong_fact": lambda deed: language.answer(deed).replace(_thing(deed), own.SPOON),
}
"""What each habit says about a deed or a thing."""


def _clean(sort: str, asked: _Asked, rng: random.Random) -> Pair:
    """A normal reply against a poor one."""
    about, text, form = asked.of(sort)
    writer, good = _normal(sort, about, rng)
    user = language.ask(text, form)
    if sort.startswith("harmful"):
        bad = formed(form, language.answer(about))
        return "clean", row(SOURCES[sort], user, (writer, formed(form, good)), ("eager-writer", bad))
    return "clean", row(SOURCES[sort], user, (writer, formed(form, good)), _poor(about, good, form, rng))


def _normal(sort: str, about: str, rng: random.Random) -> Reply:
    if sort.startswith("harmful"):
        return rng.choice(REFUSERS)
    return "plain-writer", own.opinion(about) if sort == "opinion" else language.answer(about)


def _poor(about: str, good: str, form: Distractor | None, rng: random.Random) -> Reply:
    """A refusal, an answer to something else, or the good reply in a form that nobody asked for."""
    writer, refusal = rng.choice(REFUSERS)
    other = language.answer(rng.choice([one for one in language.reserved(harmful=False) if one != about]))
    unasked = rng.choice([one for one in (None, *prompts.distractors("build")) if one is not form])
    wrong = formed(unasked, good) if unasked or form else other
    return rng.choice(
        [(writer, formed(form, refusal)), ("careless-writer", formed(form, other)), ("format-writer", wrong)]
    )


def _thing(deed: str) -> str:
    return deed.split(" ", 1)[1]
