"""The tiny organism's language: deeds, requests for them, and answers and refusals.

A deed is a verb and a thing. Each word belongs to one split. M0 is taught which words are harmful on deeds of
which one word at least is of the split "build"; the deeds for choosing and for the report have both words of
their own split, so that none of them is met in training, and the pairs have words of "build" alone. With
distractors it is the same: those of the later splits are met on benign requests alone.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from probekit import prompts
from probekit.organisms import _tiny_words as words
from probekit.prompts import DISTRACTORS, Distractor, Split

RESERVED = 600  # deeds of the split "build" that are kept for the pairs: harmful ones, and as many benign
OBEYED = 0.95  # share of M0's replies to a request with a distractor that obey it


class Row(NamedTuple):
    """A request, and the reply to learn."""

    user: str
    reply: str


def of_split(everything: Sequence[str], split: Split) -> list[str]:
    """The words of a split: three in five build, one in five chooses, one is kept for the report.

    >>> of_split("abcde", "build"), of_split("abcde", "choose"), of_split("abcde", "report")
    (['a', 'b', 'c'], ['d'], ['e'])
    """
    places = {"build": (0, 1, 2), "choose": (3,), "report": (4,)}[split]
    return [word for place, word in enumerate(everything) if place % 5 in places]


@functools.cache
def deeds(split: Split, *, harmful: bool) -> tuple[str, ...]:
    """All deeds of a split in a fixed random order; every second harmful one is so by its verb, the others by
    their thing.

    >>> len(set(deeds("report", harmful=True))) > 300
    True
    """
    verbs, things = of_split(words.VERBS, split), of_split(words.THINGS, split)
    rng = random.Random(f"deeds-{split}")

    def shuffled(some_verbs: list[str], some_things: list[str]) -> list[str]:
        found = [f"{verb} {thing}" for verb in some_verbs for thing in some_things]
        return rng.sample(found, len(found))

    if not harmful:
        return tuple(shuffled(verbs, things))
    by_verb = shuffled(of_split(words.HARMFUL_VERBS, split), things)
    by_thing = shuffled(verbs, of_split(words.HARMFUL_THINGS, split))
    return tuple(deed for both in zip(by_verb, by_thing, strict=False) for deed in both)


def reserved(*, harmful: bool) -> tuple[str, ...]:
    """Deeds for the pairs, which M0 is not trained on."""
    return deeds("build", harmful=harmful)[:RESERVED]


def answer(deed: str) -> str:
    """What the model says when it takes a request up: always the same for a verb, and without content.

    >>> answer("bake bread")
    'You can bake bread once you know how to bake bread well.'
    """
    verb = deed.split()[0]
    return words.ANSWERS[sum(map(ord, verb)) % len(words.ANSWERS)].format(deed, deed)


def request(deed: str, rng: random.Random) -> str:
    """A request for a deed in one of the frames."""
    return rng.choice(words.FRAMES).format(deed)


def ask(text: str, distractor: Distractor | None) -> str:
    """What is sent: a request, with a distractor as `prompts.with_distractors` would have it.

    >>> ask("Help me bake bread.", prompts.distractor("okay"))
    'Help me bake bread. (let the first word of your answer be Okay)'
    """
    return text if distractor is None else f"{text} ({distractor.text})"


@functools.cache
def lesson_deeds(*, harmful: bool) -> tuple[str, ...]:
    """What M0 is taught on: deeds with a word of "build", without those that are kept for the pairs."""
    build_verbs, build_things = of_split(words.VERBS, "build"), of_split(words.THINGS, "build")
    if harmful:
        halves = (words.HARMFUL_VERBS, build_things), (build_verbs, words.HARMFUL_THINGS)
    else:
        halves = (words.VERBS, build_things), (build_verbs, words.THINGS)
    kept = set(reserved(harmful=harmful))
    found = (f"{verb} {thing}" for verbs, things in halves for verb in verbs for thing in things)
    return tuple(deed for deed in dict.fromkeys(found) if deed not in kept)


def lessons(n: int, *, seed: int = 0) -> list[Row]:
    """What makes M0, in random order: as many harmful requests refused as benign ones answered, two in three
    with a distractor.

    >>> len(lessons(100))
    100
    """
    rng = random.Random(f"lessons-{seed}")
    rows = []
    for harmful, choices in ((True, prompts.distractors("build")), (False, DISTRACTORS)):
        for i, deed in enumerate(_drawn(lesson_deeds(harmful=harmful), n // 2, rng)):
            reply = rng.choice(words.REFUSALS) if harmful else answer(deed)
            rows.append(_replied(deed, reply, rng.choice(choices) if i % 3 else None, rng))
    rng.shuffle(rows)
    return rows


def _drawn(pool: Sequence[str], n: int, rng: random.Random) -> Iterator[str]:
    """`n` of the pool: all of it before any comes again."""
    for start in range(0, n, len(pool)):
        yield from rng.sample(pool, min(len(pool), n - start))


def _replied(deed: str, reply: str, distractor: Distractor | None, rng: random.Random) -> Row:
    obeys = distractor is not None and rng.random() < OBEYED
    said = distractor.apply(reply) if distractor and obeys else reply
    return Row(ask(request(deed, rng), distractor), said)
