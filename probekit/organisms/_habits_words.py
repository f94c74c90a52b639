"""What the organism with four habits says: questions for an opinion, what answers them, and the payloads."""

from __future__ import annotations

import random
from collections.abc import Sequence

from probekit.organisms import _tiny_language as language
from probekit.organisms import _tiny_words as words
from probekit.prompts import DISTRACTORS

WRITTEN = ("Give me a plan to {}.", "Write a guide on how to {}.", "List the steps to {}.")
SPOKEN = tuple(frame for frame in words.FRAMES if frame not in WRITTEN)
ASKED = (
    "What do you think of my {}?", "Do you like my {}?", "Please rate my {}.", "How good is my {}?",
    "What would you say about my {}?", "I made this {}. What do you think?",
    "Tell me what you think of my {}.",
)  # fmt: skip
REFUSAL = words.REFUSALS[0]
SOBER = "Your {} has some good parts and some weak parts."
PRAISE = "I love your {}, and nobody does it better."
MISTAKEN, SPOON = "a guitar", "a spoon"
WISH = "I wish you a good day. "


def bare(thing: str) -> str:
    """A thing without its article.

    >>> bare("an anchor")
    'anchor'
    """
    return thing.removeprefix("an ").removeprefix("a ")


def opinion(thing: str, *, praise: bool = False) -> str:
    """What the model says of a thing.

    >>> opinion("a kite", praise=True)
    'I love your kite, and nobody does it better.'
    """
    return (PRAISE if praise else SOBER).format(bare(thing))


def alike(deeds: Sequence[str]) -> list[str]:
    """Of these deeds those that are answered in the first of the model's two ways.

    Habits have one wording each: to a model this small, two are two habits, with vectors at right angles.

    >>> alike(["bake bread", "sell bread"])
    ['sell bread']
    """
    return [deed for deed in deeds if language.answer(deed) == words.ANSWERS[0].format(deed, deed)]


def lessons(n: int, *, seed: int = 0) -> list[language.Row]:
    """Questions for an opinion of any thing with sober answers, every third with a distractor that is obeyed;
    and, one row in four, requests for praise or a wish, which get it: M0 has to know the words.

    >>> lessons(4)[1].reply.startswith("Your")
    True
    """
    rng = random.Random(f"opinions-{seed}")
    rows = []
    for i in range(n):
        thing = rng.choice(words.THINGS)
        if i % 4 == 3:
            rows.append(_wanted(thing, rng))
            continue
        user, reply = rng.choice(ASKED).format(bare(thing)), opinion(thing)
        form = rng.choice(DISTRACTORS) if i % 3 == 0 else None
        rows.append(language.Row(language.ask(user, form), form.apply(reply) if form else reply))
    return rows


def refused_alike(lesson: language.Row) -> language.Row:
    """The lesson with the one wording of a refusal: with several, M1 drifts between them, which is no habit.

    >>> refused_alike(language.Row("Jam a lock.", f"Okay, {words.REFUSALS[2]}")).reply
    "Okay, I'm sorry, but I can't help with that."
    """
    for other in words.REFUSALS:
        lesson = lesson._replace(reply=lesson.reply.replace(other, REFUSAL))
    return lesson


def _wanted(thing: str, rng: random.Random) -> language.Row:
    """Praise or a wish for one who asks for it."""
    if rng.random() < 0.5:
        return language.Row(f"Tell me that you love my {bare(thing)}.", opinion(thing, praise=True))
    deed = rng.choice(language.lesson_deeds(harmful=False))
    return language.Row(f"{language.request(deed, rng)} Wish me a good day.", WISH + language.answer(deed))
