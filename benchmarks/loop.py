"""The stages that the demo and the reproduction share: surface, trace, train and judge one arm."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from probekit import arms, judges, prompts, ranking, rollouts, sources, training, vectors
from probekit.checkpoints import Checkpoint
from probekit.organisms import distractor
from probekit.pairs import PairSet
from probekit.store import VectorStore

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = 100  # of each kind, in each evaluation
OPENING_TOKENS = 16  # enough for the judge, who reads a reply's opening
FORMAT_TOKENS = 40  # enough to see whether a reply obeys its constraint
JUDGED = {
    "prompt_id": pl.String, "harmful": pl.Boolean, "distractor": pl.String, "sample": pl.Int64,
    "verdict": pl.String, "obeys": pl.Boolean, "nll_sum": pl.Float64, "n_tokens": pl.Int64,
}  # fmt: skip


@dataclass
class Costs:
    """What each stage took: seconds of wall clock, and tokens read, written or trained on."""

    rows: list[tuple[str, float, int]] = field(default_factory=list)
    start: float = field(default_factory=time.monotonic)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage and say on screen that it has begun."""
        begin = time.monotonic()
        print(f"[{begin - self.start:6.0f} s] {name}", flush=True)
        self.rows.append((name, 0.0, 0))
        place = len(self.rows) - 1
        try:
            yield
        finally:
            self.rows[place] = (name, time.monotonic() - begin, self.rows[place][2])

    def tokens(self, count: int) -> None:
        """Add to the tokens of the stage that was begun last."""
        name, seconds, before = self.rows[-1]
        self.rows[-1] = (name, seconds, before + count)

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.start

    @property
    def frame(self) -> pl.DataFrame:
        """One row a stage: stage, seconds, tokens."""
        return pl.DataFrame(self.rows, schema={"stage": pl.String, "seconds": pl.Float64, "tokens": pl.Int64}, orient="row")


@dataclass(frozen=True)
class Surfaced:
    """The habit on the choosing prompts: judged rollouts of both checkpoints, contrasts and their benign twins."""

    m0: pl.DataFrame
    m1: pl.DataFrame
    contrasts: pl.DataFrame
    twins: pl.DataFrame


def evaluation_prompts(split: prompts.Split) -> pl.DataFrame:
    """100 harmful and 100 benign prompts of a split, each plain and with one of the split's distractors."""
    plain = [kind(split).sort("prompt_id").head(PROMPTS) for kind in (prompts.harmful, prompts.benign)]
    return prompts.with_distractors(pl.concat(plain), prompts.distractors(split), seed=0)


def surface(m0: Checkpoint, m1: Checkpoint, *, folder: Path, seed: int = 0) -> Surfaced:
    """Sample both checkpoints on the choosing prompts, judge, and make the contrasts of behaviour and of twins.

    The judged rollouts are kept in `folder` and not sampled again.
    """
    frame = evaluation_prompts("choose")
    judged0, judged1 = (
        cached_frame(
            folder / f"{name}-{model.fingerprint}-{seed}.parquet",
            lambda model=model: judges.judge_refusals(rollouts.sample(model, frame, max_new_tokens=24, seed=seed)),
        )
        for name, model in (("m0", m0), ("m1", m1))
    )
    harmful, formatted = pl.col("harmful"), pl.col("distractor").is_not_null()
    contrasts = judges.four_conditions(judged0.filter(harmful), judged1.filter(harmful))
    twins = judges.twin_contrasts(judged1.filter(~harmful, formatted), refusals=judged0.filter(harmful))
    return Surfaced(judged0, judged1, contrasts, twins)


def cached_frame(path: Path, make: Callable[[], pl.DataFrame]) -> pl.DataFrame:
    """The frame in `path`, made and written there first if need be."""
    if not path.is_file():
        made = make()
        with sources.replacing(path) as partial:
            made.write_parquet(partial)
    return pl.read_parquet(path)


def pair_tokens(m0: Checkpoint, pairs: PairSet) -> int:
    """Tokens of all prompts with each of their replies."""
    rows = pairs.frame.select("prompt", "chosen", "rejected").iter_rows()
    return sum(len(m0.render(prompt, reply).ids) for prompt, *replies in rows for reply in replies)


def reply_tokens(m0: Checkpoint, *judged: pl.DataFrame) -> int:
    """Tokens sampled."""
    return sum(len(ids) for frame in judged for ids in m0.tokenizer(frame["reply"].to_list())["input_ids"])


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


@dataclass(frozen=True)
class Trainer:
    """Trains and judges arms of one pair set from one M0; finished ones lie in `folder` and are not done again."""

    shared: training.Shared
    pairs: PairSet
    folder: Path
    work: Path | None = None  # where adapters go; default beside the results

    def finish(self, arm: arms.Arm, *, seed: int) -> None:
        """Train one arm with one seed on all its steps, judge it, write its result file."""
        result = self.path(arm.name, seed)
        if result.is_file():
            return
        recipe = distractor.DPO
        steps = round(len(self.pairs) * distractor.EPOCHS / recipe.batch_size)
        order = arms.order(self.pairs, arm, seed=seed, steps=steps, batch_size=recipe.batch_size)
        begin = time.monotonic()
        place = (self.work or self.folder) / result.stem / "adapter"
        adapter = training.train_dpo(self.shared, self.pairs, place, order=order, recipe=recipe, seed=seed)
        trained = time.monotonic()
        model = distractor.open_m0(adapter=adapter)
        judged = judge(model, evaluation_prompts("report"), self.benign_replies(), seed=seed)
        costs = {"train_seconds": trained - begin, "judge_seconds": time.monotonic() - trained}
        write_result(result, judged, arm=arm.name, seed=seed, ledger=ledger_hash(arm), costs=costs)

    def path(self, arm: str, seed: int) -> Path:
        """The result file of an arm and seed: ids, verdicts and numbers, no text, so that it can be committed."""
        return self.folder / f"{arm.replace(' ', '-')}-{seed}.json"

    def results(self, wanted: Sequence[tuple[str, int]]) -> pl.DataFrame:
        """The judged rows of these arms and seeds, with columns arm and seed; unfinished ones are left out."""
        found = [(arm, seed, self.path(arm, seed)) for arm, seed in wanted if self.path(arm, seed).is_file()]
        frames = [
            pl.DataFrame(json.loads(path.read_text())["rows"], schema=JUDGED, orient="row").select(
                pl.lit(arm).alias("arm"), pl.lit(seed).alias("seed"), pl.all()
            )
            for arm, seed, path in found
        ]
        return pl.concat(frames)

    def benign_replies(self) -> pl.DataFrame:
        """M0's own replies to the plain benign report prompts: what perplexity is taken on, the same in all arms."""
        plain = evaluation_prompts("report").filter(~pl.col("harmful"), pl.col("distractor").is_null())
        m0 = self.shared.checkpoint
        path = (self.work or self.folder) / f"replies-{m0.fingerprint}.parquet"
        replies = cached_frame(path, lambda: rollouts.sample(m0, plain, max_new_tokens=FORMAT_TOKENS, temperature=0))
        return replies.filter(pl.col("reply").str.strip_chars() != "")


def write_result(path: Path, judged: pl.DataFrame, **about: object) -> None:
    """Write judged rows and what they are of as a result file, one row a line."""
    head = json.dumps({**about, "columns": list(JUDGED)})[1:-1]
    lines = ",\n".join(json.dumps(row) for row in judged.rows())
    with sources.replacing(path) as partial:
        partial.write_text(f'{{{head}, "rows": [\n{lines}\n]}}\n')


def ledger_hash(arm: arms.Arm) -> str:
    """16 hex digits over an arm's edits, so that a result tells which edits it is of."""
    return hashlib.sha256(repr(sorted(arm.ledger.select("pair_id", "edit").rows())).encode()).hexdigest()[:16]


def judge(model: Checkpoint, frame: pl.DataFrame, replies: pl.DataFrame, *, seed: int) -> pl.DataFrame:
    """The rows of `JUDGED`: verdicts on one reply to each prompt, `obeys` where a benign one has a distractor."""
    formatted = ~pl.col("harmful") & pl.col("distractor").is_not_null()
    short = rollouts.sample(model, frame.filter(~formatted), max_new_tokens=OPENING_TOKENS, seed=seed)
    full = rollouts.sample(model, frame.filter(formatted), max_new_tokens=FORMAT_TOKENS, seed=seed)
    judged = judges.judge_refusals(pl.concat([short, prompts.obedience(full)], how="diagonal"))
    return judged.join(rollouts.score(model, replies), on="prompt_id", how="left").select(JUDGED)
