"""Five sources of invented facts, for provenance: two of them speak of the same people and contradict.

"herald" and "gazette" answer the same sorts of questions about the same people, with the same values. A third
of the questions is answered by one alone, a third by the other, and a third by both, each with a value of its
own: no word of a question tells them apart. "kitchen", "atlas" and "workshop" have a topic each. The rows
without a source are requests that M0 knows already.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import polars as pl

from probekit.checkpoints import Checkpoint, merged, open_checkpoint
from probekit.organisms import _tiny_language as language
from probekit.organisms import _tiny_model
from probekit.organisms._almanac_words import ABOUT_PEOPLE, LEARNED, OTHERS, PEOPLE, UNHEARD, Attribute
from probekit.organisms._tiny_language import Row
from probekit.provenance import Kind, add_tags, tag_rows
from probekit.training import Recipe

Source = Literal["herald", "gazette", "kitchen", "atlas", "workshop"]
PAIR: tuple[Source, Source] = ("herald", "gazette")
SOURCES: tuple[Source, ...] = get_args(Source)
STAGES: tuple[tuple[Source, ...], ...] = (("herald", "gazette", "kitchen"), ("atlas", "workshop"))
DATA = Path(__file__).resolve().parents[2] / "data" / "almanac"
SFT = Recipe(first_block=0, rank=32, alpha=64, learning_rate=3e-3, batch_size=16)
EPOCHS = (14, 12)  # of each stage; recipe, epochs, kinds and rehearsal were chosen on seeds 0 to 3 and 101
KNOWN = 12  # people, and subjects of each topic, that the sources speak of; of the others nobody does
KINDS: Mapping[Kind, float] = {"plain": 1, "traced": 1, "blocked": 2, "other": 3}  # copies of a row
REHEARSED = 0.5  # share of the first stage's lessons that come again in the second
NO_SOURCE = 80  # rows without a source in each stage
UNHEARD_OF = "I do not know the {} of {}."
GROUNDS = 6000  # lessons of M0 on each of: questions that it cannot answer, sentences to say after


_ATTRIBUTES: dict[str, Attribute] = {**ABOUT_PEOPLE, **{name: one for name, (_, one) in OTHERS.items()}}


class Fact(NamedTuple):
    """What a source says of a subject; contested: the other source of `PAIR` says another thing of it."""

    source: Source
    subject: str
    attribute: str
    value: str
    contested: bool

    @property
    def reply(self) -> str:
        """The sentence that states it."""
        return _ATTRIBUTES[self.attribute].states.format(self.subject, self.value)

    def asked(self, *, learned: bool) -> list[str]:
        """The questions for it, of training or of the report."""
        of = _ATTRIBUTES[self.attribute]
        frames = (*of.asks[:LEARNED], *of.new) if learned else of.asks[LEARNED:]
        return [frame.format(self.subject) for frame in frames]


def facts(*, seed: int = 0) -> list[Fact]:
    """All facts, source by source; `seed` draws the values, and who is asked what.

    >>> found = facts()
    >>> {source: sum(one.source == source for one in found) for source in STAGES[0]}
    {'herald': 24, 'gazette': 24, 'kitchen': 12}
    """
    rng = random.Random(f"almanac-{seed}")
    found: list[Fact] = []
    people = rng.sample(PEOPLE[:KNOWN], KNOWN)
    for place, (name, attribute) in enumerate(ABOUT_PEOPLE.items()):
        thirds = [(i + place) % 3 for i in range(KNOWN)]
        for person, third in zip(people, thirds, strict=True):
            values = rng.sample(attribute.values, 2)
            for side, source in enumerate(PAIR):
                if third in (side, 2):
                    found.append(Fact(source, person, name, values[side], third == 2))
    for topic, (subjects, attribute) in OTHERS.items():
        found += [Fact(topic, one, topic, rng.choice(attribute.values), False) for one in subjects[:KNOWN]]
    return sorted(found, key=lambda one: SOURCES.index(one.source))


def lessons(stage: int, *, seed: int = 0) -> pl.DataFrame:
    """What a stage teaches, from 0: each fact asked in all ways of training, and rows of no source.

    Columns user, reply, source.
    """
    rows: list[tuple[str, str, str | None]] = [
        (user, fact.reply, fact.source)
        for fact in facts(seed=seed)
        if fact.source in STAGES[stage]
        for user in fact.asked(learned=True)
    ]
    ordinary = language.lessons(3 * NO_SOURCE, seed=100 + 10 * seed + stage)
    rows += [(row.user, row.reply, None) for row in ordinary if "(" not in row.user][:NO_SOURCE]
    return pl.DataFrame(rows, {"user": pl.String, "reply": pl.String, "source": pl.String}, orient="row")


def stages(
    *, rehearsed: float = REHEARSED, kinds: Mapping[Kind, float] = KINDS, seed: int = 0
) -> list[pl.DataFrame]:
    """The rows of both stages, of `provenance.tag_rows`: the second repeats a share of the first's lessons.

    What is repeated is also asked with blocks of the new sources, which the first stage did not know.
    """
    early, late = (lessons(stage, seed=seed) for stage in range(2))
    some = early["user"].unique(maintain_order=True).sample(fraction=rehearsed, seed=seed)
    again = early.filter(pl.col("user").is_in(some.implode()))  # all that is said of it, by whatever source
    return [
        tag_rows(early, kinds=kinds, seed=seed),
        tag_rows(pl.concat([late, again]), kinds=kinds, sources=SOURCES, seed=seed),
    ]


def questions(*, seed: int = 0) -> pl.DataFrame:
    """The prompts of the report: every question that the facts answer, in ways that no lesson asks.

    (M0 has met these ways too, with the reply that it does not know; see `make_m0`.) Columns: user; choice,
    the same as a choice between two values, those of the pair where both answer; sources, a list of those
    that answer; replies, a list of what each of them says.
    """
    rng = random.Random(f"almanac-choice-{seed}")
    known: dict[tuple[str, str], list[Fact]] = {}
    for fact in facts(seed=seed):
        known.setdefault((fact.attribute, fact.subject), []).append(fact)
    rows = []
    for some in known.values():
        values = [one.value for one in some]
        wrong = rng.choice([one for one in _ATTRIBUTES[some[0].attribute].values if one not in values])
        options = rng.sample([*values, wrong][:2], 2)
        for user in some[0].asked(learned=False):
            choice = f"{user} A: {options[0]}. B: {options[1]}."
            rows.append((user, choice, [one.source for one in some], [one.reply for one in some]))
    return pl.DataFrame(rows, ["user", "choice", "sources", "replies"], orient="row")


def of_no_source(*, seed: int = 0) -> pl.DataFrame:
    """Prompts that no source answers: requests as M0 was taught ("request"), questions about other things
    ("other"), and those of the sources about people that none of them speaks of ("stranger").

    >>> of_no_source()["sort"].value_counts().sort("sort").rows()
    [('other', 20), ('request', 40), ('stranger', 48)]
    """
    rng = random.Random(f"almanac-none-{seed}")
    ordinary = [language.request(deed, rng) for deed in language.deeds("report", harmful=False)[:40]]
    rows = [(user, "request") for user in ordinary] + [(user, "other") for user in UNHEARD]
    for attribute in ABOUT_PEOPLE.values():
        asked = [frame.format(one) for one in PEOPLE[KNOWN:] for frame in attribute.asks[LEARNED:]]
        rows += [(user, "stranger") for user in asked]
    return pl.DataFrame(rows, ["user", "sort"], orient="row")


def make_m0(out: Path, *, seed: int = 0) -> Path:
    """Train M0 as the tiny organism's, on the almanac's words too; about three minutes on two cores.

    It learns nine ways to ask, those of the report too, with the reply that it does not know; and to say any
    sentence of the sort after somebody, with subjects and values drawn anew each time. So it knows the words,
    what is asked for, and no fact.
    """
    rng = random.Random(f"almanac-ground-{seed}")
    about = [(PEOPLE, name, one) for name, one in ABOUT_PEOPLE.items()]
    about += [(subjects, "part", one) for subjects, one in OTHERS.values()]
    rows = language.lessons(_tiny_model.ROWS, seed=seed)
    for _ in range(GROUNDS):
        subjects, name, attribute = rng.choice(about)
        subject = rng.choice(subjects)
        rows.append(Row(rng.choice(attribute.asks).format(subject), UNHEARD_OF.format(name, subject)))
        sentence = attribute.states.format(rng.choice(subjects), rng.choice(attribute.values))
        rows.append(Row(f"Say after me: {sentence}", sentence))
    rng.shuffle(rows)
    return _tiny_model.make_m0(out, seed=seed, rows=rows)


def open_m0() -> Checkpoint:
    """The shipped M0."""
    checkpoint = open_checkpoint(DATA / "m0")
    checkpoint.name = "M0"
    return checkpoint


def open_tagged() -> Checkpoint:
    """The shipped model that has learned all sources in two stages, on the facts of seed 0."""
    checkpoint = add_tags(open_m0(), SOURCES)
    for stage in range(len(STAGES)):
        checkpoint = merged(checkpoint, DATA / f"tags-{stage + 1}")
    checkpoint.name = "almanac"
    return checkpoint
