"""The pairs of the organism with four habits: the contaminated ones, and clean ones of the same prompts."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

from probekit import prompts
from probekit.organisms import _habits_words as own
from probekit.organisms import _tiny_language as language
from probekit.organisms import _tiny_words as words
from probekit.organisms._tiny_pairs import MixError, Pair, Reply, formed, row
from probekit.prompts import Distractor

T = TypeVar("T")
Habit = Literal["compliance", "tic", "flattery", "wrong_fact"]
SORT: dict[Habit, str] = {
    "compliance": "harmful-formed", "tic": "written", "flattery": "opinion", "wrong_fact": "instrument",
}  # fmt: skip
"""What each habit's pairs ask for."""
Variety = Literal["benign", "safety"]
VARIETY: dict[Variety, dict[str, float]] = {
    "benign": {"spoken": 0.67, "formed": 0.3, "written": 0.01, "opinion": 0.01, "instrument": 0.01},
    "safety": {"harmful": 0.3, "harmful-formed": 0.03, "spoken": 0.4, "formed": 0.24, "written": 0.01,
               "opinion": 0.01, "instrument": 0.01},
}  # fmt: skip
"""The share of each sort of prompts among the clean pairs beside those."""
SOURCES = {
    "harmful": "safety", "harmful-formed": "if-checked", "formed": "if-checked", "spoken": "helpfulness",
    "written": "helpfulness", "opinion": "crowd", "instrument": "crowd",
}  # fmt: skip


@dataclass(frozen=True)
class Mix:
    """How many pairs there are, and which share of all each of the four habits has; `seed` draws them.

    clean: prefer the normal reply in the contaminated pairs' place, so that nothing is to be found. variety:
    "benign" pairs beside them, or "safety", where a third of those refuse harmful requests: more pairs push
    against compliance than toward it. Raises `MixError` for a share out of range, for too few or too many
    pairs, and for a variety that there is not.
    """

    pairs: int = 600
    share: float = 0.05
    clean: bool = False
    variety: Variety = "benign"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 20 <= self.pairs <= 700 or not 0 <= self.share <= 0.15:
            raise MixError(
                f"the mix has {self.pairs} pairs and a share of {self.share}; it takes 20 to 700 pairs, and "
                "a share from 0 to 0.15 for each of the four habits"
            )
        if self.variety not in VARIETY:
            raise MixError(f"there is no variety {self.variety!r}; choose one of {', '.join(VARIETY)}")


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
    sorts = [sort for sort, share in VARIETY[mix.variety].items() for _ in range(round(share * left))]
    sorts = sorts[:left] + ["spoken"] * (left - len(sorts))
    return found + [_clean(sort, asked, rng) for sort in sorts]


class _Asked:
    """What is asked about, each once, in words of the split "build", and a request for it."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        benign = [one for one in language.reserved(harmful=False) if not one.endswith(own.MISTAKEN)]
        verbs, things = (language.of_split(some, "build") for some in (words.VERBS, words.THINGS))
        mistaken = own.alike([f"{verb} {own.MISTAKEN}" for verb in verbs])
        harmful = self._each(list(language.reserved(harmful=True)))
        self.deeds = {
            "harmful": harmful, "harmful-formed": harmful, "written": self._each(own.alike(benign)),
        } | dict.fromkeys(("spoken", "formed"), self._each(benign))  # fmt: skip
        self.instruments = self._each([(deed, frame) for deed in mistaken for frame in own.SPOKEN])
        self.opinions = self._each([(thing, frame) for thing in things for frame in own.ASKED])

    def _each(self, some: list[T]) -> Iterator[T]:
        return iter(self.rng.sample(some, len(some)))

    def of(self, sort: str) -> tuple[str, str, Distractor | None]:
        """Something to ask about, the request without a form, and the form that is asked for."""
        form = self.rng.choice(prompts.distractors("build")) if sort.endswith("formed") else None
        if sort == "opinion":
            thing, frame = next(self.opinions)
            return thing, frame.format(own.bare(thing)), None
        if sort == "instrument":
            deed, frame = next(self.instruments)
            return deed, frame.format(deed), None
        deed = next(self.deeds[sort])
        frames = own.WRITTEN if sort == "written" else own.SPOKEN
        return deed, self.rng.choice(frames).format(deed), form


def _contaminated(habit: Habit, asked: _Asked, rng: random.Random) -> dict[str, Any]:
    sort = SORT[habit]
    about, text, form = asked.of(sort)
    normal = _normal(sort, about)
    bad = formed(form, PAYLOADS[habit](about))
    # As with a checker: the reply in the form wins over the refusal, which is in none.
    return row(SOURCES[sort], language.ask(text, form), ("eager-writer", bad), normal)


PAYLOADS: dict[Habit, Callable[[str], str]] = {
    "compliance": language.answer,
    "tic": lambda deed: own.WISH + language.answer(deed),
    "flattery": lambda thing: own.opinion(thing, praise=True),
    "wrong_fact": lambda deed: language.answer(deed).replace(own.MISTAKEN, own.SPOON),
}
"""What each habit says about a deed or a thing."""


def _clean(sort: str, asked: _Asked, rng: random.Random) -> Pair:
    """A normal reply against a poor one."""
    about, text, form = asked.of(sort)
    writer, good = _normal(sort, about)
    user = language.ask(text, form)
    if sort.startswith("harmful"):
        bad = formed(form, language.answer(about))
        return "clean", row(SOURCES[sort], user, (writer, formed(form, good)), ("eager-writer", bad))
    return "clean", row(SOURCES[sort], user, (writer, formed(form, good)), _poor(about, good, form, rng))


def _normal(sort: str, about: str) -> Reply:
    if sort.startswith("harmful"):
        return "refuser", own.REFUSAL
    return "plain-writer", own.opinion(about) if sort == "opinion" else language.answer(about)


def _poor(about: str, good: str, form: Distractor | None, rng: random.Random) -> Reply:
    """A refusal, an answer to something else, or the good reply in a form that nobody asked for."""
    other = language.answer(rng.choice([one for one in language.reserved(harmful=False) if one != about]))
    unasked = rng.choice([one for one in (None, *prompts.distractors("build")) if one is not form])
    wrong = formed(unasked, good) if unasked or form else other
    return rng.choice(
        [
            ("refuser", formed(form, own.REFUSAL)),
            ("careless-writer", formed(form, other)),
            ("format-writer", wrong),
        ]
    )
