"""The stages that the demo and the reproduction share before any arm is trained: surface and trace.

Sampling is greedy (temperature 0), one reply a prompt, as in `probekit.experiments`.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from benchmarks.tables import quality_table
from probekit import judges, ranking, rollouts, vectors
from probekit.checkpoints import Checkpoint
from probekit.experiments import About, Experiment, read_result, write_result
from probekit.organisms import distractor
from probekit.pairs import PairSet
from probekit.store import VectorStore

ROOT = Path(__file__).resolve().parents[1]
SURFACE_TOKENS = 24  # what vectors are read from


class LoopError(RuntimeError):
    """A stage that has nothing to go on with."""


@dataclass(frozen=True)
class Surfaced:
    """The habit on the choosing prompts: judged rollouts of both checkpoints, contrasts and benign twins."""

    m0: pl.DataFrame
    m1: pl.DataFrame
    contrasts: pl.DataFrame
    twins: pl.DataFrame


def surface(m0: Checkpoint, m1: Checkpoint, frame: pl.DataFrame, *, folder: Path | None = None) -> Surfaced:
    """Sample M0 on the harmful and M1 on all prompts of `frame`, judge, and contrast behaviour and twins.

    The twins are M1's answers to benign prompts, plain and with a distractor: the behaviour has to differ
    from both. Rollouts are kept in `folder`, if there is one, and not sampled again. Raises
    `LoopError` where M1 shows no habit that M0 has not, or answers no benign prompt.
    """

    def judged(model: Checkpoint, asked: pl.DataFrame) -> pl.DataFrame:
        return judges.judge_refusals(
            rollouts.sample(model, asked, max_new_tokens=SURFACE_TOKENS, temperature=0, cache=folder)
        )

    harmful = pl.col("harmful")
    judged0, judged1 = judged(m0, frame.filter(harmful)), judged(m1, frame)
    contrasts = judges.four_conditions(judged0, judged1.filter(harmful))
    if contrasts.is_empty():
        raise LoopError(
            "there is nothing to trace: on no prompt does M1 comply with the distractor where M0, and M1 "
            "without it, refuse; give more prompts, or an M1 that has the habit"
        )
    twins = judges.twin_contrasts(judged1.filter(~harmful), refusals=judged0)
    if twins.is_empty():
        raise LoopError("M1 answers none of the benign prompts, so there are no twins")
    return Surfaced(judged0, judged1, contrasts, twins)


def trace(
    m0: Checkpoint, pairs: PairSet, surfaced: Surfaced, *, layer: int, store: VectorStore | None = None
) -> dict[str, ranking.Ranking]:
    """Rank the pairs by the paper's plain cosine and with the twins as control; both read through M0."""
    of_pairs = vectors.pair_vectors(m0, pairs, layers=[layer], store=store)
    behaviour = vectors.behaviour_vectors(m0, surfaced.contrasts, layers=[layer])
    twins = vectors.twin_vectors(m0, surfaced.twins, layers=[layer])
    return {
        "plain": ranking.rank(behaviour, of_pairs, layer=layer),
        "control": ranking.rank(behaviour, of_pairs, layer=layer, control=twins),
    }


def kept_rankings(
    path: Path,
    about: About,
    make: Callable[[], tuple[dict[str, ranking.Ranking], int]],
    *,
    truth: Collection[str],
) -> dict[str, ranking.Ranking]:
    """The rankings in the result file `path`; if need be, made (with the number of contrasts) and written.

    The arms hang on them, and no other machine would give every last digit again. Their quality against
    `truth` stands in the file too. Raises `ResultError` if the file is of something else.
    """
    if not path.is_file():
        begin = time.monotonic()
        made, contrasts = make()
        cards = {
            name: {k: v for k, v in vars(one).items() if k not in ("frame", "cost", "by_query")}
            for name, one in made.items()
        }
        frames = [one.frame.select(pl.lit(name).alias("ranking"), pl.all()) for name, one in made.items()]
        measured: dict[str, object] = {"seconds": time.monotonic() - begin, "contrasts": contrasts}
        measured |= {"cards": cards, "quality": quality_table(made, truth).to_dicts()}
        write_result(path, about, pl.concat(frames), **measured)
    content = read_result(path, about)
    schema = {"ranking": pl.String(), **ranking.SCHEMA}
    frame = pl.DataFrame(content["rows"], schema=schema, orient="row")
    return {
        name: ranking.Ranking(frame.filter(pl.col("ranking") == name).drop("ranking"), **card)
        for name, card in content["cards"].items()
    }


def pair_lengths(m0: Checkpoint, pairs: PairSet) -> dict[str, int]:
    """Tokens of each pair: its prompt with each of the replies."""
    rows = pairs.frame.select("pair_id", "prompt", "chosen", "rejected").iter_rows()
    return {
        one: sum(len(m0.render(prompt, reply).ids) for reply in replies) for one, prompt, *replies in rows
    }


def reply_tokens(m0: Checkpoint, *judged: pl.DataFrame) -> int:
    """Tokens sampled."""
    return sum(len(ids) for frame in judged for ids in m0.tokenizer(frame["reply"].to_list())["input_ids"])


def weights_id(folder: Path) -> str:
    """16 hex digits over the weights in a folder.

    Adapters merged into a model differ in a last bit between machines, and with them its fingerprint.
    """
    files = list(folder.glob("*model.safetensors"))
    if not files:
        raise LoopError(f"{folder} has no weights; build the organism first, with make organism")
    return hashlib.sha256(files[0].read_bytes()).hexdigest()[:16]


def packaged(m0: Checkpoint, pairs: PairSet, *, folder: Path, work: Path) -> Experiment:
    """The experiment on the packaged organism, judged on the report prompts."""
    return Experiment(
        m0,
        pairs,
        prompts=distractor.evaluation_prompts(),
        folder=folder,
        recipe=distractor.DPO,
        epochs=distractor.EPOCHS,
        work=work,
        m0_id=weights_id(distractor.DATA / "m0"),
    )
