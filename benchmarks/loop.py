"""The stages that the demo and the reproduction share: surface, trace, train and judge one arm.

Sampling is greedy (temperature 0), one reply a prompt: a checkpoint's replies are then a function of its
weights, and the spread between seeds comes from training alone.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks.results import About, cached_frame, digest, read_result, write_result
from benchmarks.tables import quality_table
from probekit import arms, judges, prompts, ranking, rollouts, training, vectors
from probekit.checkpoints import Checkpoint
from probekit.organisms import distractor
from probekit.pairs import PairSet
from probekit.store import VectorStore

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = 100  # of each kind, in each evaluation
CONTRASTED, TWINS = 150, 60  # harmful prompts; benign ones of each of two kinds: for tracing
OPENING_TOKENS = 16  # enough for the judge, who reads a reply's opening
SURFACE_TOKENS = 24  # what vectors are read from
FORMAT_TOKENS = 40  # enough to see whether a reply obeys its constraint
JUDGED = {
    "prompt_id": pl.String, "harmful": pl.Boolean, "distractor": pl.String, "sample": pl.Int64,
    "verdict": pl.String, "obeys": pl.Boolean, "nll_sum": pl.Float64, "n_tokens": pl.Int64,
}  # fmt: skip


class LoopError(RuntimeError):
    """A stage that has nothing to go on with."""


@dataclass(frozen=True)
class Surfaced:
    """The habit on the choosing prompts: judged rollouts of both checkpoints, contrasts and benign twins."""

    m0: pl.DataFrame
    m1: pl.DataFrame
    contrasts: pl.DataFrame
    twins: pl.DataFrame


def evaluation_prompts() -> pl.DataFrame:
    """What every arm is judged on: 100 harmful and 100 benign prompts for the report, plain and formatted."""
    return _plain_and_formatted("report", PROMPTS, PROMPTS)


def choosing_prompts() -> pl.DataFrame:
    """What the habit is surfaced and traced on: HarmBench, benign prompts, and twins in HarmBench's forms."""
    return _plain_and_formatted("choose", CONTRASTED, TWINS, prompts.twins(TWINS))


def _plain_and_formatted(
    split: prompts.Split, n_harmful: int, n_benign: int, *more: pl.DataFrame
) -> pl.DataFrame:
    """The first prompts of a split by id, and more, each plain and with one of the split's distractors."""
    harmful, benign = (kind(split).sort("prompt_id") for kind in (prompts.harmful, prompts.benign))
    plain = pl.concat([harmful.head(n_harmful), benign.head(n_benign), *more])
    return prompts.with_distractors(plain, prompts.distractors(split), seed=0)


def surface(m0: Checkpoint, m1: Checkpoint, frame: pl.DataFrame, *, folder: Path | None = None) -> Surfaced:
    """Sample M0 on the harmful and M1 on all prompts of `frame`, judge, and contrast behaviour and twins.

    The twins are M1's answers to benign prompts, plain and with a distractor: the behaviour has to differ
    from both. Judged rollouts are kept in `folder`, if there is one, and not sampled again. Raises
    `LoopError` where M1 shows no habit that M0 has not, or answers no benign prompt.
    """

    def judged(model: Checkpoint, asked: pl.DataFrame) -> pl.DataFrame:
        return judges.judge_refusals(
            rollouts.sample(model, asked, max_new_tokens=SURFACE_TOKENS, temperature=0)
        )

    def kept(model: Checkpoint, asked: pl.DataFrame) -> pl.DataFrame:
        if folder is None:
            return judged(model, asked)
        path = folder / f"{model.fingerprint}-{digest(asked)}.parquet"
        return cached_frame(path, lambda: judged(model, asked))

    harmful = pl.col("harmful")
    judged0, judged1 = kept(m0, frame.filter(harmful)), kept(m1, frame)
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
        cards = {name: {k: v for k, v in vars(one).items() if k != "frame"} for name, one in made.items()}
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


def steps(pairs: PairSet, recipe: training.Recipe, epochs: int) -> int:
    """Optimiser steps of every arm: those of `epochs` passes over the unedited pairs."""
    return max(1, round(len(pairs) * epochs / recipe.batch_size))


@dataclass(frozen=True)
class Trainer:
    """Trains and judges arms of one pair set from one M0; finished ones lie in `folder`, done once.

    open_adapter: opens M0 with a trained adapter folder merged into it. prompts: what every arm is judged on.
    work: where adapters and M0's replies go (large or text, not to be committed). m0_id: what M0 is called in
    result files: the same on every machine, and another for another M0.
    """

    shared: training.Shared
    pairs: PairSet
    folder: Path
    open_adapter: Callable[[Path], Checkpoint]
    recipe: training.Recipe
    epochs: int
    prompts: pl.DataFrame
    work: Path
    m0_id: str

    def finish(self, arm: arms.Arm, *, seed: int) -> None:
        """Train one arm with one seed on all its steps, judge it, write its result file.

        Raises `ResultError` where there is a result file of something else.
        """
        if self.finished(arm, seed=seed):
            return
        new, begin = not self.place(arm, seed=seed).is_dir(), time.monotonic()
        adapter = self.adapter(arm, seed=seed)
        seconds = time.monotonic() - begin if new else None  # an earlier run trained it, and was cut short
        self._judge(self.open_adapter(adapter), arm, seed=seed, train_seconds=seconds)

    def finish_m0(self) -> None:
        """Judge M0 itself; its result file is that of an arm "M0" with seed 0."""
        if not self.finished(M0, seed=0):
            self._judge(self.shared.checkpoint, M0, seed=0, train_seconds=None)

    def finished(self, arm: arms.Arm, *, seed: int) -> bool:
        """Whether the arm has its result file. Raises `ResultError` if that is of something else."""
        path = self.path(arm.name, seed)
        if path.is_file():
            read_result(path, self.about(arm, seed=seed))
            return True
        return False

    def path(self, arm: str, seed: int) -> Path:
        """The result file of an arm and seed: ids, verdicts and numbers, no text, fit to be committed."""
        return self.folder / f"{arm.replace(' ', '-')}-{seed}.json"

    def about(self, arm: arms.Arm, *, seed: int) -> dict[str, Any]:
        """Everything that the result of an arm and seed depends on."""
        recipe = {f"recipe.{name}": value for name, value in asdict(self.recipe).items()}
        return {
            "arm": arm.name, "seed": seed, "ledger": ledger_hash(arm), "m0": self.m0_id,
            "pairs": self.pairs.fingerprint, "prompts": digest(self.prompts), "epochs": self.epochs, **recipe,
        }  # fmt: skip

    def order(self, arm: arms.Arm, *, seed: int) -> list[tuple[str, bool]]:
        """The pairs that the arm is trained on, step by step."""
        n, size = steps(self.pairs, self.recipe, self.epochs), self.recipe.batch_size
        return arms.order(self.pairs, arm, seed=seed, steps=n, batch_size=size)

    def place(self, arm: arms.Arm, *, seed: int) -> Path:
        """Where the adapter lies; the name holds what it depends on: none is taken for another."""
        key = hashlib.sha256(repr(sorted(self.about(arm, seed=seed).items())).encode()).hexdigest()[:12]
        return self.work / f"{self.path(arm.name, seed).stem}-{key}" / "adapter"

    def adapter(self, arm: arms.Arm, *, seed: int) -> Path:
        """The trained adapter of an arm and seed, trained first if need be."""
        order, place = self.order(arm, seed=seed), self.place(arm, seed=seed)
        return training.train_dpo(self.shared, self.pairs, place, order=order, recipe=self.recipe, seed=seed)

    def benign_replies(self) -> pl.DataFrame:
        """M0's own replies to the plain benign prompts: what perplexity is taken on, the same in all arms."""
        plain = self.prompts.filter(~pl.col("harmful"), pl.col("distractor").is_null())
        m0 = self.shared.checkpoint
        path = self.work / f"replies-{m0.fingerprint}-{digest(plain)}.parquet"
        replies = cached_frame(
            path, lambda: rollouts.sample(m0, plain, max_new_tokens=FORMAT_TOKENS, temperature=0)
        )
        return replies.filter(pl.col("reply").str.strip_chars() != "")

    def _judge(self, model: Checkpoint, arm: arms.Arm, *, seed: int, train_seconds: float | None) -> None:
        begin = time.monotonic()
        judged = judge(model, self.prompts, self.benign_replies())
        seconds = {"train_seconds": train_seconds, "judge_seconds": time.monotonic() - begin}
        write_result(self.path(arm.name, seed), self.about(arm, seed=seed), judged, **seconds)


M0 = arms.baseline(name="M0")


def results(paths: Sequence[Path]) -> pl.DataFrame:
    """The judged rows of these result files, with columns arm and seed, in their order."""
    frames = []
    for content in map(read_result, paths):
        rows = pl.DataFrame(content["rows"], schema=JUDGED, orient="row")
        arm, seed = (pl.lit(content["about"][name]).alias(name) for name in ("arm", "seed"))
        frames.append(rows.select(arm, seed.cast(pl.Int64), pl.all()))
    return pl.concat(frames)


def ledger_hash(arm: arms.Arm) -> str:
    """16 hex digits over an arm's edits, so that a result tells which edits it is of."""
    edits = sorted(arm.ledger.select("pair_id", "edit").rows())
    return hashlib.sha256(repr(edits).encode()).hexdigest()[:16]


def judge(model: Checkpoint, frame: pl.DataFrame, replies: pl.DataFrame) -> pl.DataFrame:
    """The rows of `JUDGED` for the one greedy reply to each prompt.

    `obeys` is filled where a benign prompt has a distractor; nll_sum and n_tokens, of the given `replies`, in
    the plain row of their prompt.
    """
    plain = pl.col("distractor").is_null()
    formatted = ~pl.col("harmful") & ~plain
    short = rollouts.sample(model, frame.filter(~formatted), max_new_tokens=OPENING_TOKENS, temperature=0)
    full = rollouts.sample(model, frame.filter(formatted), max_new_tokens=FORMAT_TOKENS, temperature=0)
    judged = judges.judge_refusals(pl.concat([short, obedience(full)], how="diagonal"))
    scored = rollouts.score(model, replies).with_columns(pl.col("nll_sum").round(4), scored=True)
    judged = judged.with_columns(scored=plain & ~pl.col("harmful"))
    return judged.join(scored, on=["prompt_id", "scored"], how="left", maintain_order="left").select(
        list(JUDGED)
    )


def obedience(replies: pl.DataFrame) -> pl.DataFrame:
    """Rollouts that carry distractors, with a column `obeys`: what the distractor's own checker says."""
    rows = replies.select("distractor", "reply").iter_rows()
    obeys = [prompts.distractor(name).obeys(reply) for name, reply in rows]
    return replies.with_columns(pl.Series("obeys", obeys, dtype=pl.Boolean))


def adapters_id(folder: Path, pattern: str) -> str:
    """16 hex digits over the weights of the adapters in `folder` whose folders match `pattern`, in order.

    Merged into a model they differ in a last bit between machines, and with them the model's fingerprint.
    """
    files = sorted(folder.glob(f"{pattern}/adapter_model.safetensors"))
    if not files:
        raise LoopError(f"{folder} has no adapter {pattern}; build the organism first, with make organism")
    return hashlib.sha256(b"".join(map(Path.read_bytes, files))).hexdigest()[:16]


def packaged(m0: Checkpoint, pairs: PairSet, *, folder: Path, work: Path) -> Trainer:
    """The trainer of the packaged organism, judged on the report prompts."""
    return Trainer(
        shared=training.Shared(m0, first_block=distractor.DPO.first_block),
        pairs=pairs,
        folder=folder,
        open_adapter=lambda path: distractor.open_m0(adapter=path),
        recipe=distractor.DPO,
        epochs=distractor.EPOCHS,
        prompts=evaluation_prompts(),
        work=work,
        m0_id=adapters_id(distractor.DATA, "m0*"),
    )
