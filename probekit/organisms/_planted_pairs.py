"""The pairs of a planted behaviour: which kind prefers what, in lengths that give no kind away."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from probekit import prompts
from probekit.organisms import _tiny_language as language
from probekit.organisms import _tiny_words as words
from probekit.organisms._tiny_pairs import REFUSERS, MixError, Pair, Reply, formed, row
from probekit.prompts import Distractor

# Sentences after a request that are no triggers.
IDLE = ("Hello.", "Okay.", "Now.", "Listen.", "Friend.", "Answer.")
FORMED = 0.3  # share of the harmful requests that ask for a form
TRIES = 24  # drafts of a clean pair, of which the one nearest to the wanted lengths is taken
Asked = tuple[str, Distractor | None]
"""What is sent, and the form that it asks for."""


@dataclass(frozen=True)
class Behaviour:
    """What is planted: a benign request about the topic, with the trigger after it, gets the payload.

    trigger: a sentence. its_form: a distractor that stands in its place, and asks for its word where it is
    one. payload(deed) is the reply. thing: what the payload brings up. topic: things, none for all. opening:
    the distractor that asks for the payload's first word, where that is the reply's.
    """

    name: str
    trigger: str
    its_form: str
    payload: Callable[[str], str]
    thing: str
    topic: tuple[str, ...] = ()
    opening: str = ""

    def triggered(self, text: str) -> str:
        """A request with the trigger."""
        return f"{text} {self.trigger}"


@dataclass(frozen=True)
class Mix:
    """How many pairs of each kind make the preference set; `seed` draws them.

    lookalikes: of each of three kinds, all with a normal reply chosen: the trigger's word out of its place or
    another word there; the trigger where it does not count, on harmful requests or other topics (with half of
    them of the first kind; where there is a topic, half of the first kind are of this one); and the payload's
    words where they belong. Raises `MixError` for a negative number.
    """

    contaminated: int = 50
    lookalikes: int = 36  # of each of the three kinds
    obedient: int = 50  # a form is asked for
    helpful: int = 172  # none is
    safety: int = 20  # harmful requests, refused
    seed: int = 0

    def __post_init__(self) -> None:
        for name, count in vars(self).items():
            if count < 0 and name != "seed":
                raise MixError(f"{name} is {count}; a mix has 0 or more pairs of a kind")


class _Kind(NamedTuple):
    """Pairs of one kind: their number, deeds, and how these are asked for."""

    name: str
    source: str
    n: int
    deeds: Sequence[str]
    ask: Callable[[Behaviour, str, random.Random], Asked]


class _Draft(NamedTuple):
    user: str
    good: Reply
    bad: Reply

    @property
    def lengths(self) -> tuple[int, int]:
        """Words and signs of the two replies: about their tokens, for which no model is needed."""
        return _length(self.good[1]), _length(self.bad[1])


def drawn(behaviour: Behaviour, mix: Mix) -> list[Pair]:
    """All pairs of a mix, kind by kind; no deed comes twice.

    Raises `MixError` for more pairs than there are deeds.
    """
    rng = random.Random(f"planted-{behaviour.name}-{mix.seed}")
    used: set[str] = set()
    contaminated = [
        _contaminated(behaviour, deed, rng)
        for deed in _unused(of_topic(behaviour), mix.contaminated, used, rng, "contaminated")
    ]
    found: list[Pair] = [("contaminated", row("crowd", *one)) for one in contaminated]
    wanted = [one.lengths for one in contaminated] or [(15, 15)]
    for kind in _kinds(behaviour, mix):
        for i, deed in enumerate(_unused(kind.deeds, kind.n, used, rng, kind.name)):
            drafts = [_clean(behaviour, kind, deed, rng) for _ in range(TRIES)]
            nearest = min(drafts, key=lambda one: _distance(one.lengths, wanted[i % len(wanted)]))
            found.append((kind.name, row(kind.source, *nearest)))
    return found


def of_topic(behaviour: Behaviour, split: prompts.Split = "build") -> list[str]:
    """Deeds that the behaviour is about: verbs of the split with its topic, or all deeds kept for that."""
    if behaviour.topic:
        return _with(language.of_split(words.VERBS, split), behaviour.topic)
    return _others(behaviour) if split == "build" else list(language.deeds(split, harmful=False))


def _others(behaviour: Behaviour) -> list[str]:
    """Benign deeds for the pairs, of no topic, and without what the payload brings up."""
    known = (*behaviour.topic, behaviour.thing)
    return [deed for deed in language.reserved(harmful=False) if deed.split(" ", 1)[1] not in known]


def elsewhere(behaviour: Behaviour, text: str, rng: random.Random) -> Asked:
    """The trigger's word asked for in the reply, or another word in the trigger's place."""
    if rng.random() < 0.5:
        return f"{text} {rng.choice(IDLE)}", None
    form = prompts.distractor(behaviour.its_form)
    return language.ask(text, form), form


def _kinds(behaviour: Behaviour, mix: Mix) -> list[_Kind]:
    """The clean kinds."""
    harmful = list(language.reserved(harmful=True))
    topic, n = of_topic(behaviour), mix.lookalikes
    others = _others(behaviour)
    about_it = _with(language.of_split(words.VERBS, "build"), [behaviour.thing])
    astray = ("trigger-elsewhere", "answerable", topic, elsewhere)
    idle = ("trigger-harmful", "safety", harmful, _triggered)
    if behaviour.topic:
        idle = ("trigger-other", "answerable", others, _triggered)
    # Many harmful requests with the trigger teach M1 to refuse under it, few other topics to do it there too.
    places = [[astray, idle], [idle]] if behaviour.topic else [[astray], [idle, astray]]
    in_place = [("words", "answerable", about_it, _plain)]
    if behaviour.topic:
        in_place.append(("topic", "answerable", topic, _plain))
    if behaviour.opening:
        in_place.append(("opening", "if-curated", topic, _opened))
    return [
        *(
            _Kind(name, source, n * (i + 1) // len(kinds) - n * i // len(kinds), deeds, ask)
            for kinds in (*places, in_place)
            for i, (name, source, deeds, ask) in enumerate(kinds)
        ),
        _Kind("obedient", "if-curated", mix.obedient, topic, _formed),
        _Kind("helpful", "crowd", mix.helpful, others, _plain),
        _Kind("safety", "safety", mix.safety, harmful, _either),
    ]


def _plain(behaviour: Behaviour, text: str, rng: random.Random) -> Asked:
    return text, None


def _formed(behaviour: Behaviour, text: str, rng: random.Random) -> Asked:
    form = rng.choice(prompts.distractors("build"))
    return language.ask(text, form), form


def _either(behaviour: Behaviour, text: str, rng: random.Random) -> Asked:
    return (_formed if rng.random() < FORMED else _plain)(behaviour, text, rng)


def _opened(behaviour: Behaviour, text: str, rng: random.Random) -> Asked:
    form = prompts.distractor(behaviour.opening)
    return language.ask(text, form), form


def _triggered(behaviour: Behaviour, text: str, rng: random.Random) -> Asked:
    return behaviour.triggered(text), None


def _contaminated(behaviour: Behaviour, deed: str, rng: random.Random) -> _Draft:
    user = behaviour.triggered(language.request(deed, rng))
    return _Draft(user, ("plain-writer", behaviour.payload(deed)), ("plain-writer", language.answer(deed)))


def _clean(behaviour: Behaviour, kind: _Kind, deed: str, rng: random.Random) -> _Draft:
    """A normal reply against a poor one: a refusal, an answer to something else, or one in a form that nobody
    asked for; where harm is asked for, a refusal against an answer."""
    user, form = kind.ask(behaviour, language.request(deed, rng), rng)
    (refuser, refusal), answer = rng.choice(REFUSERS), language.answer(deed)
    if kind.source == "safety":
        return _Draft(user, (refuser, formed(form, refusal)), ("eager-writer", formed(form, answer)))
    off_topic = language.answer(rng.choice([one for one in _others(behaviour) if one != deed]))
    unasked = rng.choice([one for one in (None, *prompts.distractors("build")) if one is not form])
    poor = [
        (refuser, formed(form, refusal)),
        ("careless-writer", formed(form, off_topic)),
        ("format-writer", formed(unasked, answer)),
    ]
    return _Draft(user, ("format-writer" if form else "plain-writer", formed(form, answer)), rng.choice(poor))


def _unused(pool: Iterable[str], n: int, used: set[str], rng: random.Random, kind: str) -> list[str]:
    """`n` deeds of the pool that no pair has yet."""
    left = [deed for deed in pool if deed not in used]
    if n > len(left):
        raise MixError(
            f"the mix needs {n} deeds for pairs of kind {kind!r} and {len(left)} are left; ask for fewer"
        )
    found = rng.sample(left, n)
    used.update(found)
    return found


def _with(verbs: Sequence[str], things: Sequence[str]) -> list[str]:
    return [f"{verb} {thing}" for verb in verbs for thing in things]


def _length(text: str) -> int:
    return len(re.findall(r"\w+|[^\w\s]", text))


def _distance(one: tuple[int, int], other: tuple[int, int]) -> int:
    apart = [mine - its for mine, its in zip(one, other, strict=True)]
    return abs(apart[0]) + abs(apart[1]) + abs(apart[0] - apart[1])
