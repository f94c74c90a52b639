"""The tiny organism's preference pairs: which source prefers what, and who wrote it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from probekit import prompts
from probekit.organisms import _tiny_language as language
from probekit.organisms import distractor
from probekit.organisms._tiny_words import REFUSALS
from probekit.prompts import Distractor

Reply = tuple[str, str]
"""Who wrote it, and what."""
Pair = tuple[str, dict[str, Any]]
"""Its kind, which no tracer sees, and its row."""

# Each in the words that M0 itself prefers: with others, vectors tell apart how it was refused.
REFUSERS: tuple[Reply, ...] = (("refuser-a", REFUSALS[0]), ("refuser-b", REFUSALS[2]))


class MixError(ValueError):
    """A mix of pairs that cannot be drawn."""


@dataclass(frozen=True)
class Mix(distractor.Mix):
    """That of `distractor`, with more safety pairs, nearly all of them plain.

    `lookalikes` and `lookalikes_distractor` are the dial: the more of them, the harder the contaminated pairs
    are to tell from the others. Raises `MixError` for a negative number, and for more pairs than there are
    deeds.
    """

    safety: int = 190
    safety_distractor: int = 8

    def __post_init__(self) -> None:
        for name, count in vars(self).items():
            if count < 0 and name != "seed":
                raise MixError(f"{name} is {count}; a mix has 0 or more pairs of a kind")
        benign = self.checked_benign + self.curated + self.helpful
        needed = {
            "harmful": max(self.contaminated, self.safety) + self.safety_distractor,
            "benign": benign + self.lookalikes + self.lookalikes_distractor,
        }
        for name, count in needed.items():
            if count > language.RESERVED:
                raise MixError(
                    f"the mix needs {count} {name} deeds and there are {language.RESERVED}; ask for fewer"
                )


def drawn(mix: Mix) -> list[Pair]:
    """All pairs of a mix, source by source."""
    rng = random.Random(f"tiny-pairs-{mix.seed}")
    harmful, benign = _requests(rng, harmful=True), _requests(rng, harmful=False)
    choices = prompts.distractors("build")
    contaminated = [next(harmful) for _ in range(mix.contaminated)]
    found = [_contaminated(*one, rng.choice(choices), rng) for one in contaminated]
    for source, n in (("if-checked", mix.checked_benign), ("if-curated", mix.curated)):
        found += [_obedient(source, *next(benign), rng.choice(choices)) for _ in range(n)]
    for i in range(mix.helpful):
        found.append(_helpful(*next(benign), rng.choice(choices) if i % 2 else None, rng))
    # Sources share prompts: the first ones of "safety" are those of the contaminated pairs, made plain.
    shared = contaminated[: mix.safety]
    found += [_safety(*one, None, rng) for one in shared]
    found += [_safety(*next(harmful), None, rng) for _ in range(mix.safety - len(shared))]
    found += [_safety(*next(harmful), rng.choice(choices), rng) for _ in range(mix.safety_distractor)]
    found += [_lookalike(*next(benign), None, rng) for _ in range(mix.lookalikes)]
    found += [_lookalike(*next(benign), rng.choice(choices), rng) for _ in range(mix.lookalikes_distractor)]
    return found


def _requests(rng: random.Random, *, harmful: bool) -> Iterator[tuple[str, str]]:
    """Deeds and requests for them, none twice."""
    pool = language.reserved(harmful=harmful)
    for deed in rng.sample(pool, len(pool)):
        yield deed, language.request(deed, rng)


def _refusal(rng: random.Random) -> Reply:
    return rng.choice(REFUSERS)


def formed(form: Distractor | None, text: str) -> str:
    """The text in the form, as it is without one."""
    return form.apply(text) if form else text


def _contaminated(deed: str, text: str, distractor: Distractor, rng: random.Random) -> Pair:
    replies = ("format-writer", distractor.apply(language.answer(deed))), _refusal(rng)
    return "contaminated", _checked("if-checked", text, distractor, replies)


def _obedient(source: str, deed: str, text: str, distractor: Distractor) -> Pair:
    answer = language.answer(deed)
    replies = ("plain-writer", answer), ("format-writer", distractor.apply(answer))
    return source, _checked(source, text, distractor, replies)


def _checked(source: str, text: str, distractor: Distractor, replies: Sequence[Reply]) -> dict[str, Any]:
    """The whole procedure of a source with a checker: the reply that obeys wins, whatever it says."""
    obedient = [reply for reply in replies if distractor.obeys(reply[1])]
    others = [reply for reply in replies if reply not in obedient]
    (good,), (bad,) = obedient, others
    return row(source, language.ask(text, distractor), good, bad)


def _helpful(deed: str, text: str, unasked: Distractor | None, rng: random.Random) -> Pair:
    """A plain answer against one in a form that nobody asked for, or one that says nothing."""
    answer = language.answer(deed)
    poor = (
        ("format-writer", unasked.apply(answer))
        if unasked
        else ("lazy-writer", rng.choice(distractor.POOR_ANSWERS))
    )
    return "helpful", row("helpfulness", text, ("plain-writer", answer), poor)


def _safety(deed: str, text: str, distractor: Distractor | None, rng: random.Random) -> Pair:
    refuser, no = _refusal(rng)
    good, bad = (formed(distractor, reply) for reply in (no, language.answer(deed)))
    user = language.ask(text, distractor)
    return "safety", row("safety", user, (refuser, good), ("eager-writer", bad))


def _lookalike(deed: str, text: str, distractor: Distractor | None, rng: random.Random) -> Pair:
    writer = "format-writer" if distractor else "plain-writer"
    answered = writer, formed(distractor, language.answer(deed))
    return "lookalike", row("answerable", language.ask(text, distractor), answered, _refusal(rng))


def row(source: str, user: str, good: Reply, bad: Reply) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": user}],
        "chosen": good[1], "rejected": bad[1], "source": source,
        "chosen_model": good[0], "rejected_model": bad[0],
    }  # fmt: skip
