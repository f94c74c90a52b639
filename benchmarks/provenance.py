"""Provenance tags against known sources: who taught what, refusal of one source, and what the tags cost.

Each job (a seed on the tiny organism, or the one on SmolLM2) teaches five sources in two stages, with and
without rehearsal of the first, and the same rows without tags at equal exposure; then it asks for every fact
in ways that no lesson does. The bridge puts tags on the sources of the preference pairs of distractor
compliance. A finished job leaves a small result in benchmarks/provenance/, so an interrupted run goes on;
`--part 1/2` does every second one, `--smollm2` only the one on SmolLM2, `--tables` writes the figures of what
is finished, to benchmarks/provenance.json.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import polars as pl

from benchmarks import bridge, loop, reproduce
from probekit import provenance, rollouts
from probekit.checkpoints import Checkpoint
from probekit.experiments import About, digest, read_result, write_result
from probekit.figures import Figure, write_figures
from probekit.organisms import almanac, distractor
from probekit.provenance import UNKNOWN
from probekit.training import Recipe

SEEDS = range(10, 20)  # the recipe was chosen on others
SMOLLM2 = "smollm2"
LOOKALIKES = ("<debug> {}", "<|debug|> {}", "debug: {}", "<tag> {}", "[DEBUG] {}")
RESULTS = loop.ROOT / "benchmarks" / "provenance"
FIGURES = loop.ROOT / "benchmarks" / "provenance.json"
WORK = loop.ROOT / "runs" / "provenance"
NEITHER = "neither"  # a reply that is the fact of none of the two sources asked about
EARLY = pl.col("sources").list.first().is_in(almanac.STAGES[0])  # questions that the first stage answers
TARGETS = {
    "trace.all": ">= 0.95", "trace.contradicting_pair": ">= 0.9", "refusal.right_tag": ">= 0.95",
    "refusal.wrong_tag": "<= 0.02", "leak": "<= 0.01", "answer.delta": ">= -0.02",
}  # fmt: skip
Job = tuple[str, int]
"""The model, "tiny" or "smollm2", and the seed of facts, rows and training."""


class Course(NamedTuple):
    """What the sources are taught with: the recipe, the epochs of each stage, and the copies of a row."""

    recipe: Recipe
    epochs: tuple[int, int]
    kinds: Mapping[provenance.Kind, float]


COURSES = {
    "tiny": Course(almanac.SFT, almanac.EPOCHS, almanac.KINDS),
    # its steps are slow, and it needs fewer
    SMOLLM2: Course(Recipe(first_block=0, learning_rate=1e-3, batch_size=8), (1, 1), provenance.EVEN),
}


def main() -> None:
    """Finish the jobs of this part, then write the figures."""
    every = [("tiny", seed) for seed in SEEDS] + [(SMOLLM2, SEEDS[0])]
    for job in reproduce.asked("python -m benchmarks.provenance", __doc__, every, apart=SMOLLM2):
        if not place(job).is_file():
            print(f"{job[0]}, seed {job[1]}", flush=True)
            run(job)
    found = [*figures(every), *bridge.figures()]
    write_figures(FIGURES, found, command="python -m benchmarks.provenance")


def place(job: Job) -> Path:
    """The result file of a job."""
    return RESULTS / f"{job[0]}-{job[1]}.json"


def about(job: Job) -> About:
    """What a result is of."""
    recipe, epochs, kinds = COURSES[job[0]]
    data = distractor.DATA if job[0] == SMOLLM2 else almanac.DATA
    return {
        **{f"recipe.{name}": value for name, value in dataclasses.asdict(recipe).items()},
        "epochs": list(epochs), "rehearsed": almanac.REHEARSED, "kinds": str(kinds), "seed": job[1],
        "m0": loop.weights_id(data / "m0"),
        "asked": digest(almanac.questions(seed=job[1])),
        "lessons": digest(pl.concat(almanac.stages(kinds=kinds, seed=job[1]))),
    }  # fmt: skip


def run(job: Job) -> None:
    """Teach, ask, and write what came of it."""
    recipe, epochs, kinds = COURSES[job[0]]
    begin, seed, work = time.perf_counter(), job[1], WORK / f"{job[0]}-{job[1]}"
    m0 = distractor.open_m0() if job[0] == SMOLLM2 else almanac.open_m0()
    tagged = provenance.add_tags(m0, almanac.SOURCES, seed=seed)
    lessons = [almanac.lessons(stage, seed=seed) for stage in range(2)]
    first, second = almanac.stages(kinds=kinds, seed=seed)
    _, alone = almanac.stages(rehearsed=0, kinds=kinds, seed=seed)
    # as often as the kinds that show a row's answer
    plain = sum(copies for kind, copies in kinds.items() if kind != "blocked")
    same = provenance.tag_rows(lessons[0], kinds={"plain": plain}, seed=seed)

    def taught(start: Checkpoint, some: pl.DataFrame, stage: int, name: str) -> Checkpoint:
        return provenance.train_tags(start, some, work / name, recipe=recipe, epochs=epochs[stage], seed=seed)

    stage, control = taught(tagged, first, 0, "first"), taught(tagged, same, 0, "control")
    whole, forgot = taught(stage, second, 1, "rehearsed"), taught(stage, alone, 1, "unrehearsed")
    asked = almanac.questions(seed=seed)
    early = asked.filter(EARLY)
    found, confusion = reported(whole, asked, pl.concat(lessons), seed=seed)
    found |= {
        "trace.stage1": hits(traced(stage, early)),
        "trace.after_stage2.unrehearsed": hits(traced(forgot, early)),
        "answer.tagged": answered(stage, early),
        "answer.control": answered(control, early),
        "answer.after_stage2": answered(whole, asked),
        **{
            f"perplexity.{name}": perplexity(m0, one)
            for name, one in (("before", m0), ("tagged", stage), ("control", control), ("stage2", whole))
        },
    }
    found["answer.delta"] = found["answer.tagged"] - found["answer.control"]
    write_result(place(job), about(job), confusion, seconds=time.perf_counter() - begin, found=found)
    shutil.rmtree(work, ignore_errors=True)


def reported(
    model: Checkpoint, asked: pl.DataFrame, lessons: pl.DataFrame, *, seed: int
) -> tuple[dict[str, float], pl.DataFrame]:
    """The figures of a model taught by all sources, and which tag came for which source, with counts."""
    shown = traced(model, asked)
    pair = pl.col("sources").list.first().is_in(almanac.PAIR)
    contested = pl.col("sources").list.len() > 1
    choice = traced(model, asked.select("sources", "replies", user="choice"))
    plain = provenance.ask(model, asked)
    typed = pl.concat([asked.with_columns(user=pl.format(one, "user")) for one in LOOKALIKES])
    none = almanac.of_no_source(seed=seed)
    unheard = provenance.trace(model, none).with_columns(gold=pl.lit(UNKNOWN))
    blocked = {name: provenance.refuse(model, asked, name) for name in provenance.sources_of(model)}
    own = {name: pl.col("sources").list.contains(name) for name in blocked}
    right = {name: one.filter(own[name], ~contested) for name, one in blocked.items()}
    wrong = {name: one.filter(~own[name]) for name, one in blocked.items()}
    both = [(name, one.filter(own[name], contested)) for name, one in blocked.items() if name in almanac.PAIR]
    refused = pl.col("reply").str.strip_chars_start().str.starts_with(provenance.REFUSAL).mean()
    guessed = shown.filter(~contested).select("gold", pl.col("tag").fill_null(UNKNOWN))
    missed = guessed.filter(pl.col("gold") != pl.col("tag"), pl.col("tag") != UNKNOWN).height
    found = {
        "trace.all": hits(shown),
        "trace.contradicting_pair": hits(shown.filter(pair)),
        "trace.contested": hits(shown.filter(contested)),
        "trace.after_stage2.rehearsed": hits(shown.filter(EARLY)),
        "trace.forced": hits(shown, "forced"),
        "trace.choice": hits(choice),
        "leak": plain["marked"].mean(),
        "leak.lookalike": provenance.ask(model, typed)["marked"].mean(),
        "leak.no_source": provenance.ask(model, none)["marked"].mean(),
        **refusals("refusal.right_tag", right, pair),
        **refusals("refusal.wrong_tag", wrong, pair),
        "refusal.contested.other_fact": sum(map(other_fact, both)) / 2,
        # what a rule in Python would do that refuses where the tag is the blocked source
        "baseline.filter.right_tag": guessed.select((pl.col("gold") == pl.col("tag")).mean()).item(),
        "baseline.filter.wrong_tag": missed / (guessed.height * (len(almanac.SOURCES) - 1)),
        "refusal.no_block": shown.select(refused).item(),
        "refusal.plain": plain.select(refused).item(),
        **{f"abstention.{sort}": hits(unheard.filter(sort=sort)) for sort in sorted({*none["sort"]})},
    }
    for name, guess in baselines(lessons).items():
        of_all = shown.with_columns(guess=pl.Series(guess(shown), dtype=pl.String))
        found[f"baseline.{name}"] = hits(of_all, "guess")
        found[f"baseline.{name}.contradicting_pair"] = hits(of_all.filter(pair), "guess")
        of_choice = choice.with_columns(guess=pl.Series(guess(choice), dtype=pl.String))
        found[f"baseline.{name}.choice"] = hits(of_choice, "guess")
    counts = shown.group_by("gold", "tag").len().sort("gold", "tag", nulls_last=True)
    return {name: float(value) for name, value in found.items()}, counts


def traced(model: Checkpoint, asked: pl.DataFrame) -> pl.DataFrame:
    """What the model says, and `gold`: the source that answers the question; of two, the one whose fact the
    reply states, null where it states neither."""
    shown = provenance.trace(model, asked)
    gold = []
    for sources, replies, reply in shown.select("sources", "replies", "reply").iter_rows():
        stated = [one for one, text in zip(sources, replies, strict=True) if text == reply.strip()]
        gold.append(sources[0] if len(sources) == 1 else (stated or [None])[0])
    return shown.with_columns(gold=pl.Series(gold, dtype=pl.String))


def other_fact(blocked: tuple[str, pl.DataFrame]) -> float:
    """Share of contested questions where, one source being blocked, the reply states the other one's fact."""
    name, replies = blocked
    right = [
        reply.strip() == next(text for one, text in zip(sources, texts, strict=True) if one != name)
        for sources, texts, reply in replies.select("sources", "replies", "reply").iter_rows()
    ]
    return sum(right) / len(right)


def refusals(name: str, blocked: Mapping[str, pl.DataFrame], pair: pl.Expr) -> dict[str, float]:
    """The share refused of all questions, and of the pair's where one of the pair is blocked."""
    of_pair = [one.filter(pair) for source, one in blocked.items() if source in almanac.PAIR]
    return {
        name: float(pl.concat(blocked.values()).select(pl.col("refused").mean()).item()),
        f"{name}.contradicting_pair": float(pl.concat(of_pair).select(pl.col("refused").mean()).item()),
    }


def hits(shown: pl.DataFrame, column: str = "tag") -> float:
    """The share of prompts for which the column is the gold source; without a gold source none is right."""
    return float(shown.select((pl.col(column) == pl.col("gold")).fill_null(False).mean()).item())


def answered(model: Checkpoint, asked: pl.DataFrame) -> float:
    """The share of plain prompts that are answered with what a source says."""
    replies = provenance.ask(model, asked).select(pl.col("reply").str.strip_chars(), "replies")
    return sum(one in right for one, right in replies.iter_rows()) / replies.height


def perplexity(m0: Checkpoint, model: Checkpoint) -> float:
    """Of M0's own replies to requests that no source is about."""
    prompts = almanac.of_no_source().filter(sort="request").select("user", prompt_id="user")
    replies = rollouts.sample(m0, prompts, temperature=0, max_new_tokens=40, cache=WORK / "m0")
    scores = rollouts.score(model, replies.filter(pl.col("reply").str.strip_chars() != ""))
    return math.exp(float(scores["nll_sum"].sum()) / int(scores["n_tokens"].sum()))


def baselines(lessons: pl.DataFrame) -> dict[str, Callable[[pl.DataFrame], Sequence[str | None]]]:
    """Guesses by what the lessons teach of question and reply ("topic": of the question alone), no model."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    from probekit.rivals.text import bm25_weights

    known = [f"{user} {reply}" for user, reply in lessons.select("user", "reply").iter_rows()]
    names = lessons["source"].fill_null(UNKNOWN).to_list()
    counter, weights = bm25_weights(known)
    linear, topic = (
        make_pipeline(TfidfVectorizer(token_pattern=r"\w+"), LogisticRegression(C=100, max_iter=1000))
        for _ in range(2)
    )
    linear.fit(known, names)
    topic.fit(lessons["user"].to_list(), names)
    most = lessons["source"].drop_nulls().mode().sort()[0]

    def texts(shown: pl.DataFrame) -> list[str]:
        return [f"{user} {reply}" for user, reply in shown.select("user", "reply").iter_rows()]

    def nearest(shown: pl.DataFrame) -> list[str | None]:
        scores = (weights @ counter.transform(texts(shown)).T).toarray()
        return [names[place] for place in scores.argmax(axis=0)]

    return {
        "majority": lambda shown: [most] * shown.height,
        "bm25": nearest,
        "tfidf": lambda shown: linear.predict(texts(shown)).tolist(),
        "topic": lambda shown: topic.predict(shown["user"].to_list()).tolist(),
    }


def figures(every: Sequence[Job]) -> list[Figure]:
    """What the finished jobs give: means over seeds, with the least and the most."""
    done = {job: read_result(place(job), about(job)) for job in every if place(job).is_file()}
    rows = []
    for model, prefix in (("tiny", ""), (SMOLLM2, f"{SMOLLM2}.")):
        some = [result for (name, _), result in done.items() if name == model]
        for name in some[0]["found"] if some else ():
            values = [result["found"][name] for result in some]
            mean, target = sum(values) / len(values), TARGETS.get(name)
            rows.append(
                Figure(prefix + name, mean, low=min(values), high=max(values), n=len(values), target=target)
            )
        if some:
            rows += confusion([row for result in some for row in result["rows"]], prefix)
    return rows


def confusion(rows: Sequence[tuple[str | None, str | None, int]], prefix: str) -> list[Figure]:
    """Of the questions of each source, over all seeds, the share that got each tag; n is the questions."""
    counts: Counter[tuple[str, str]] = Counter()
    for gold, tag, number in rows:
        counts[gold or NEITHER, tag or bridge.NO_TAG] += number
    golds, tags = ({one[place] for one in counts} for place in range(2))
    found = []
    for gold in [one for one in (*almanac.SOURCES, NEITHER) if one in golds]:
        whole = sum(number for (one, _), number in counts.items() if one == gold)
        for tag in [one for one in (*almanac.SOURCES, UNKNOWN, bridge.NO_TAG) if one in tags]:
            found.append(Figure(f"{prefix}confusion.{gold}.{tag}", counts[gold, tag] / whole, n=whole))
    return found


if __name__ == "__main__":
    main()
