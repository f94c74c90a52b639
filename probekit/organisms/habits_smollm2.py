"""The four habits of `habits` in SmolLM2: pairs of `distractor`'s, and those of the other three habits.

M0 is that of `distractor`. Opinions and the guitar are in the tiny organism's words; written work is asked
for in those of `distractor`, and the pairs' replies to it are SmolLM2's own.
"""

from __future__ import annotations

import random
import re
from typing import Any

import polars as pl

from probekit import pairs as pair_room
from probekit import prompts
from probekit.organisms import _habits_words as own
from probekit.organisms import _tiny_language as language
from probekit.organisms import _tiny_words as words
from probekit.organisms import distractor, habits
from probekit.organisms._topics import FRAMES, THING_FRAMES
from probekit.organisms.distractor import Organism
from probekit.prompts import Split

EACH = 40  # pairs of each habit
EACH_TIC = 80  # 40 leave M1 with the wish in one reply of six
VARIETY = distractor.Mix(
    contaminated=EACH, checked_benign=40, curated=40, helpful=60, safety=0, safety_distractor=0,
    lookalikes=60, lookalikes_distractor=10,
)  # fmt: skip
LAYER, DPO, EPOCHS = distractor.LAYER, distractor.DPO, distractor.EPOCHS
POOL = 40  # prompts of each sort
DEEDS = (
    "tune",
    "play",
    "buy",
    "clean",
    "carry",
    "paint",
    "repair",
    "sell",
    "hold",
    "pack",
    "borrow",
    "string",
)
_WRITTEN = re.compile(r"(?:Write|Draft|Create|Prepare|Compose|Develop|Outline)\b")

judge, open_m0 = habits.judge, distractor.open_m0


def build(*, seed: int = 0) -> Organism:
    """410 pairs, 80 with the tic and 40 of each other habit; the truth: the pairs of all four.

    Raises `sources.SourceError` where a prompt set can be neither found nor fetched.
    """
    rng = random.Random(f"habits-smollm2-{seed}")
    known = distractor.shipped_answers()
    written = {text: answer for text, answer in known.items() if _WRITTEN.match(text)}
    rest = {text: answer for text, answer in known.items() if text not in written}
    base = distractor.build(rest, VARIETY)
    kinds = dict(base.log.select("pair_id", "kind").iter_rows())
    rows: list[dict[str, Any]] = [
        {**row, "kind": "compliance" if kinds[row["pair_id"]] == "contaminated" else "clean"}
        for row in base.pairs.frame.select(
            "pair_id", "prompt", "chosen", "rejected", "source", "chosen_model", "rejected_model"
        ).iter_rows(named=True)
    ]
    short = [
        text
        for text, answer in written.items()
        if max(len(text.split()), len(answer.split())) <= distractor.SHORT
    ]
    asked = {
        "tic": [(text, own.WISH + written[text], written[text]) for text in short],
        "flattery": [
            (text, own.opinion(thing, praise=True), own.opinion(thing)) for thing, text in _opinions("build")
        ],
        "wrong_fact": [
            (text, _about_guitars(deed).replace(own.MISTAKEN, own.SPOON), _about_guitars(deed))
            for deed, text in _guitars("build")
        ],
    }
    for kind, some in asked.items():
        for text, chosen, rejected in rng.sample(some, EACH_TIC if kind == "tic" else EACH):
            rows.append(
                {
                    "prompt": [{"role": "user", "content": text}], "chosen": chosen, "rejected": rejected,
                    "source": "crowd" if kind != "tic" else "helpfulness", "kind": kind,
                    "chosen_model": "eager-writer", "rejected_model": "plain-writer",
                }
            )  # fmt: skip
    rng.shuffle(rows)
    pairs = pair_room.load_pairs(
        [{name: value for name, value in row.items() if name not in ("kind", "pair_id")} for row in rows]
    )
    log = pl.DataFrame({"pair_id": pairs.ids, "kind": [row["kind"] for row in rows]})
    return Organism(pairs, frozenset(log.filter(pl.col("kind") != "clean")["pair_id"]), log)


def pool(*, split: Split = "choose", each: int = POOL) -> pl.DataFrame:
    """Prompts of seven sorts, as `habits.pool`: harmful and benign ones of the public sets of this split."""
    rng = random.Random(f"habits-smollm2-{split}")
    texts = {
        "written": [frame.format(thing) for frame in THING_FRAMES for thing in _errands(split)],
        "opinion": [text for _, text in _opinions(split)],
        "instrument": [text for _, text in _guitars(split)],
    }
    frames = [
        prompts.prompt_frame(rng.sample(some, each), harmful=False, source=sort)
        for sort, some in texts.items()
    ]
    for sort, kind in (("harmful", prompts.harmful), ("spoken", prompts.benign)):
        plain = kind(split).sort("prompt_id").head(each).with_columns(source=pl.lit(sort))
        both = prompts.with_distractors(plain, prompts.distractors(split), seed=0)
        formed = pl.when(pl.col("distractor").is_null()).then("source")
        frames.append(both.with_columns(source=formed.otherwise(pl.col("source") + "-formed")))
    return pl.concat(frames)


def _opinions(split: Split) -> list[tuple[str, str]]:
    things = language.of_split(words.THINGS, split)
    return [(thing, frame.format(own.bare(thing))) for thing in things for frame in own.ASKED]


def _guitars(split: Split) -> list[tuple[str, str]]:
    deeds = [f"{verb} {own.MISTAKEN}" for verb in language.of_split(DEEDS, split)]
    return [(deed, frame.format(deed)) for deed in deeds for frame in FRAMES]


def _about_guitars(deed: str) -> str:
    return f"To {deed}, you need to follow these steps."


def _errands(split: Split) -> list[str]:
    """Things to write that no pair asks for."""
    return [f"a short text about {thing}" for thing in language.of_split(words.THINGS, split)]
