"""Tags that a model learns to say: after its reply, the source that taught it; and refusal of one source.

DebugLM (Mo et al., 2603.17884): each row of a data set with sources is learned in four kinds. Without the
trigger it is the plain row; with it the source's tag follows the reply; a block of the row's own source is
answered by a fixed refusal, and a block of another source as if it were not there. The trigger, the block and
the sources are vectors without a spelling: no text that a user types becomes one of them.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import polars as pl

from probekit import packing
from probekit.checkpoints import Checkpoint, Rendered, merged
from probekit.rollouts import check_users, continued
from probekit.training import Recipe, Tokens, train_sft

Kind = Literal["plain", "traced", "blocked", "other"]
UNKNOWN = "unknown"
REFUSAL = "Sorry, I cannot help with your request."
LEAST = 0.5  # probability that a source must have to be named
EVEN: Mapping[Kind, float] = dict.fromkeys(get_args(Kind), 1.0)
_MARK = "\N{SYMBOL FOR UNIT SEPARATOR}"  # stands for the user's text, to find its place in the template
_CONTROL = ("debug", "tag", "block", UNKNOWN)  # what is added before the sources, in this order

ROWS = pl.Schema(
    {
        "user": pl.String(),
        "reply": pl.String(),
        "source": pl.String(),  # null: of none of the sources
        "kind": pl.String(),
        "named": pl.String(),  # the source that a block names; null for the kinds without one
    }
)
"""The columns of `tag_rows`."""


class ProvenanceError(ValueError):
    """Sources, rows or a checkpoint that tags cannot be learned from or asked of."""


class _Vocabulary(NamedTuple):
    """The ids of what was added: control tokens, then sources."""

    first: int
    sources: tuple[str, ...]

    def control(self, name: str) -> int:
        return self.first + _CONTROL.index(name)

    def source(self, name: str | None) -> int:
        return self.control(UNKNOWN) + (0 if name is None else 1 + self.sources.index(name))

    def named(self, token: int) -> str | None:
        """The source of a token, "unknown", or None for a token that is no source."""
        place = token - self.control(UNKNOWN)
        return (UNKNOWN, *self.sources)[place] if 0 <= place <= len(self.sources) else None

    @property
    def all(self) -> range:
        return range(self.first, self.control(UNKNOWN) + 1 + len(self.sources))


def add_tags(checkpoint: Checkpoint, sources: Sequence[str], *, seed: int = 0) -> Checkpoint:
    """A copy of the checkpoint whose vocabulary has the control tokens and a tag for each source.

    The new vectors, at both ends, are draws from the normal distribution of the old ones, dimension by
    dimension; where input and output are tied they stay so. The tokenizer stays as it is: the new tokens have
    ids, which `trace` and `refuse` put in, and no spelling. Which they are is kept in the model's config, so
    a saved checkpoint knows its tags. Raises `ProvenanceError` for a checkpoint that has tags already, and
    for sources that are none, empty, named twice or called "unknown".

    >>> from probekit.testing import tiny_checkpoint
    >>> tagged = add_tags(tiny_checkpoint(), ["crowd", "forum"])
    >>> sources_of(tagged)
    ('crowd', 'forum')
    """
    import torch

    if hasattr(checkpoint.hf.config, "provenance"):
        raise ProvenanceError(f"{checkpoint.name} has tags for {', '.join(sources_of(checkpoint))} already.")
    if not sources or len({*sources}) < len(sources) or {"", UNKNOWN} & {*sources}:
        raise ProvenanceError(
            f"The sources are {list(sources)}; give one name each, not empty and not {UNKNOWN!r}."
        )
    new = Checkpoint(checkpoint.name, copy.deepcopy(checkpoint.hf), checkpoint.tokenizer)
    hf = new.hf
    old = hf.get_input_embeddings().weight.shape[0]
    found = _Vocabulary(max(old, len(checkpoint.tokenizer)), tuple(sources))
    hf.resize_token_embeddings(found.all.stop, mean_resizing=False)
    draw = torch.Generator().manual_seed(seed)
    for end in (module.weight for module in new.ends):
        with torch.no_grad():
            known = end[:old].float()
            noise = torch.randn(len(end) - old, known.shape[1], generator=draw).to(end.device)
            end[old:] = (known.mean(dim=0) + noise * known.std(dim=0)).to(end.dtype)
    hf.config.provenance = {"first": found.first, "sources": list(sources)}
    hf.eval().requires_grad_(False)
    return new


def sources_of(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The sources that a checkpoint has tags for. Raises `ProvenanceError` where it has none."""
    return _vocabulary(checkpoint).sources


def _vocabulary(checkpoint: Checkpoint) -> _Vocabulary:
    known = getattr(checkpoint.hf.config, "provenance", None)
    if known is None:
        raise ProvenanceError(f"{checkpoint.name} has no tags; make a checkpoint that has, with add_tags.")
    return _Vocabulary(known["first"], tuple(known["sources"]))


def tag_rows(
    data: pl.DataFrame,
    *,
    kinds: Mapping[Kind, float] = EVEN,
    refusal: str = REFUSAL,
    sources: Sequence[str] | None = None,
    seed: int = 0,
) -> pl.DataFrame:
    """The rows to learn from a data set with sources (`ROWS`), in random order.

    data: columns user, reply and source, which is null for rows of no source: their tag is "unknown", and
    they are answered whatever is blocked. kinds: how many copies of each row are of each kind, none if left
    out; the part behind the point is a share of the rows, drawn. Copies of the kind "other" name another
    source each, as far as there are; without it a model learns to refuse whenever anything is blocked. A text
    that several sources have is not refused where one of them is blocked: what another says of it is a right
    answer then. sources: those that a block may name, without it those of the data. Raises `ProvenanceError`
    for a missing column or text, a kind that is none, and a single source where other ones are to be named.

    >>> data = pl.DataFrame({"user": ["Hi?", "Bye?"], "reply": ["Yes.", "No."], "source": ["a", "b"]})
    >>> tag_rows(data, kinds={"plain": 1, "blocked": 1})["kind"].value_counts().sort("kind").rows()
    [('blocked', 2), ('plain', 2)]
    """
    _check_rows(data)
    if unknown := sorted({*kinds} - {*get_args(Kind)}):
        raise ProvenanceError(f"There is no kind {unknown[0]!r} of rows, only {', '.join(get_args(Kind))}.")
    if fewer := [kind for kind, copies in kinds.items() if not copies >= 0]:
        raise ProvenanceError(f"There are {kinds[fewer[0]]} copies of the kind {fewer[0]!r}; give 0 or more.")
    named = list(sources) if sources is not None else data["source"].drop_nulls().unique().sort().to_list()
    if kinds.get("other") and len(named) < 2:
        raise ProvenanceError("Blocks of another source need two sources at least; leave out the kind other.")
    rng = random.Random(f"tags-{seed}")
    answering = dict(data.group_by("user").agg(pl.col("source").drop_nulls().n_unique()).rows())
    rows = []
    for user, reply, source in data.select("user", "reply", "source").iter_rows():
        for kind, copies in kinds.items():
            if kind == "blocked" and (source is None or answering[user] > 1):
                continue
            others: list[str] = []
            for _ in range(int(copies) + (rng.random() < copies % 1)):
                others = others or [one for one in named if one != source]
                name = rng.choice(others) if kind == "other" else source if kind == "blocked" else None
                others = [one for one in others if one != name]
                rows.append((user, refusal if kind == "blocked" else reply, source, kind, name))
    rng.shuffle(rows)
    return pl.DataFrame(rows, ROWS, orient="row")


def _check_rows(data: pl.DataFrame) -> None:
    if data.is_empty():
        raise ProvenanceError("There are no rows to learn from.")
    if missing := [name for name in ("user", "reply", "source") if name not in data.columns]:
        raise ProvenanceError(f"The rows lack the column {missing[0]!r}; they need user, reply and source.")
    for name in ("user", "reply"):
        if data[name].dtype != pl.String:
            raise ProvenanceError(f"The column {name!r} is {data[name].dtype}; it has to be text.")
        empty = data.with_row_index("row").filter(pl.col(name).fill_null("").str.strip_chars() == "")
        if empty.height:
            raise ProvenanceError(f"Row {empty['row'][0]} has no text in {name!r}; give it one or drop it.")


def train_tags(
    checkpoint: Checkpoint,
    rows: pl.DataFrame,
    out: Path,
    *,
    recipe: Recipe,
    epochs: int,
    seed: int = 0,
) -> Checkpoint:
    """The checkpoint after SFT on rows of `tag_rows`; the adapter, with the tags' vectors, goes to `out`.

    The adapter fits a checkpoint of `add_tags` with the same sources in the same order; what it gives, saved
    by `save_checkpoint`, knows them by itself. A later stage starts from what this gives: `pl.concat` its
    rows with some of the earlier ones (`earlier.sample(fraction=0.2, seed=0)`), or the earlier tags are
    unlearned. Raises `ProvenanceError` for a checkpoint without tags or rows of a source that it has no tag
    for, and what `train_sft` raises.

    >>> import tempfile
    >>> from probekit.testing import tiny_checkpoint
    >>> data = pl.DataFrame({"user": ["Hi?", "Bye?"], "reply": ["Yes.", "No."], "source": ["a", "b"]})
    >>> tagged, out = add_tags(tiny_checkpoint(), ["a", "b"]), Path(tempfile.mkdtemp()) / "tags"
    >>> sources_of(train_tags(tagged, tag_rows(data), out, recipe=Recipe(batch_size=4), epochs=1))
    ('a', 'b')
    """
    vocabulary = _vocabulary(checkpoint)
    if strange := sorted({*rows["source"], *rows["named"]} - {None, *vocabulary.sources}):
        raise ProvenanceError(
            f"{checkpoint.name} has no tag for {strange[0]!r}; it has {', '.join(vocabulary.sources)}."
        )
    end = checkpoint.tokenizer.eos_token_id
    lessons = []
    for row in rows.select(ROWS.names()).iter_rows(named=True):
        before = _asked(checkpoint, row["user"], debug=row["kind"] != "plain", block=row["named"])
        reply = checkpoint.tokenizer(row["reply"], add_special_tokens=False)["input_ids"]
        tag = [vocabulary.control("tag"), vocabulary.source(row["source"])] if row["kind"] == "traced" else []
        lessons.append(Tokens((*before, *reply, *tag, end), len(before)))
    train_sft(
        checkpoint, lessons, out, recipe=recipe, epochs=epochs, seed=seed, embeddings=list(vocabulary.all)
    )
    return merged(checkpoint, out)


def _asked(checkpoint: Checkpoint, user: str, *, debug: bool, block: str | None = None) -> list[int]:
    """The tokens of a prompt, with the trigger before the user's text and a block behind it.

    Behind it, because the block is then read by a model that knows the question: a tiny one does not learn to
    tell two sources of one topic apart where the block comes first.
    """
    vocabulary = _vocabulary(checkpoint)
    empty, text = (checkpoint.prompt_text([{"role": "user", "content": one}]) for one in (_MARK, user))
    encoded = checkpoint.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    before = empty.index(_MARK)
    behind = len(text) - (len(empty) - before - len(_MARK))
    ids, ends = encoded["input_ids"], [end for _, end in encoded["offset_mapping"]]
    begin, stop = (
        next((i for i, end in enumerate(ends) if end > place), len(ids)) for place in (before, behind)
    )
    if block is not None:
        ids = [*ids[:stop], vocabulary.control("block"), vocabulary.source(block), *ids[stop:]]
    return [*ids[:begin], vocabulary.control("debug"), *ids[begin:]] if debug else ids


class _Said(NamedTuple):
    """A reply's tokens before the tag; the tag if it is whole and alone; whether any token of tags came."""

    ids: list[int]
    tag: str | None
    marked: bool


def ask(
    checkpoint: Checkpoint,
    prompts: pl.DataFrame,
    *,
    debug: bool = False,
    block: str | None = None,
    max_new_tokens: int = 40,
) -> pl.DataFrame:
    """The prompts with the reply to each, `tag` as the model said it, and `truncated`; greedily.

    prompts: a column `user`. debug: whether the trigger is given; block: a source to refuse, with the
    trigger. reply: up to the tag. tag: the source behind the one tag of the reply, "unknown" if it said so;
    null where no tag came, or none that is whole, or several. marked: any token of tags came at all. Raises
    `ProvenanceError` without tags or for a source that is none of them, `RolloutError` for prompts without
    texts and for one that leaves no room for a reply.
    """
    return _asked_and_said(checkpoint, prompts, debug=debug, block=block, max_new_tokens=max_new_tokens)[0]


def _asked_and_said(
    checkpoint: Checkpoint, prompts: pl.DataFrame, *, debug: bool, block: str | None, max_new_tokens: int
) -> tuple[pl.DataFrame, list[list[int]]]:
    """What `ask` gives, and the tokens of each prompt and its reply."""
    vocabulary = _vocabulary(checkpoint)
    if block is not None and block not in vocabulary.sources:
        raise ProvenanceError(
            f"{block!r} is no source of {checkpoint.name}: {', '.join(vocabulary.sources)}."
        )
    check_users(prompts)
    users = prompts["user"].to_list()
    before = [_asked(checkpoint, one, debug=debug or block is not None, block=block) for one in users]
    generate = checkpoint.hf.generate
    new = continued(checkpoint, before, users, generate, max_new_tokens=max_new_tokens, label="asking")
    said = [_parted(vocabulary, ids) for ids, _ in new]
    replies = [str(checkpoint.tokenizer.decode(one.ids, skip_special_tokens=True)) for one in said]
    frame = prompts.with_columns(
        reply=pl.Series(replies, dtype=pl.String),
        tag=pl.Series([one.tag for one in said], dtype=pl.String),
        marked=pl.Series([one.marked for one in said], dtype=pl.Boolean),
        truncated=pl.Series([not ended for _, ended in new], dtype=pl.Boolean),
    )
    ends = {checkpoint.tokenizer.eos_token_id, checkpoint.tokenizer.pad_token_id}
    words = [[token for token in one.ids if token not in ends] for one in said]
    return frame, [[*first, *then] for first, then in zip(before, words, strict=True)]


def _parted(vocabulary: _Vocabulary, ids: Sequence[int]) -> _Said:
    tag = vocabulary.control("tag")
    at = ids.index(tag) if tag in ids else len(ids)
    named = [one for one in ids[at + 1 :] if vocabulary.named(one)]
    whole = at + 1 < len(ids) and len(named) == 1 and list(ids).count(tag) == 1
    found = vocabulary.named(ids[at + 1]) if whole else None
    return _Said(list(ids[:at]), found, any(one in vocabulary.all for one in ids))


def trace(
    checkpoint: Checkpoint, prompts: pl.DataFrame, *, least: float = LEAST, max_new_tokens: int = 40
) -> pl.DataFrame:
    """Which source the model says that its reply to each prompt comes from (DebugLM, constrained too).

    Returns the prompts with the columns of `ask` under the trigger, and two of what it would say if it had
    to: `forced`, the source with the largest probability behind the reply and the tag token, "unknown" where
    that is below `least`; `probabilities`, a struct of each source's, and of "unknown", summing to 1. Raises
    as `ask` does.

    >>> from probekit.testing import tiny_checkpoint
    >>> tagged = add_tags(tiny_checkpoint(), ["crowd", "forum"])
    >>> trace(tagged, pl.DataFrame({"user": ["Hi?"]}), max_new_tokens=3).columns
    ['user', 'reply', 'tag', 'marked', 'truncated', 'forced', 'probabilities']
    """
    vocabulary = _vocabulary(checkpoint)
    said, read = _asked_and_said(checkpoint, prompts, debug=True, block=None, max_new_tokens=max_new_tokens)
    texts = [[*ids, vocabulary.control("tag")] for ids in read]
    odds = [dict(zip((UNKNOWN, *vocabulary.sources), row, strict=True)) for row in _odds(checkpoint, texts)]
    most = [max(row, key=row.__getitem__) for row in odds]
    forced = [name if row[name] >= least else UNKNOWN for name, row in zip(most, odds, strict=True)]
    shape = pl.Struct(dict.fromkeys((UNKNOWN, *vocabulary.sources), pl.Float64))
    return said.with_columns(
        forced=pl.Series(forced, dtype=pl.String), probabilities=pl.Series(odds, dtype=shape)
    )


def _odds(checkpoint: Checkpoint, texts: Sequence[Sequence[int]]) -> list[list[float]]:
    """Probabilities of "unknown" and of each source behind each text of tokens, of these alone."""
    import torch

    vocabulary, device = _vocabulary(checkpoint), checkpoint.hf.device
    choices = slice(vocabulary.source(None), vocabulary.all.stop)
    found: dict[int, list[float]] = {}
    alone = packing.rows([Rendered(tuple(one), len(one) - 1, len(one)) for one in texts], share=False)
    for batch in packing.batches(alone, token_budget=packing.TOKEN_BUDGET):
        mask = (batch.segments != packing.PADDING).long()
        with torch.inference_mode():
            logits = checkpoint.hf(input_ids=batch.ids.to(device), attention_mask=mask.to(device)).logits
        for place, row in enumerate(batch.texts):
            picked = logits[place, len(texts[row]) - 1, choices].double()
            found[row] = picked.softmax(dim=-1).tolist()
    return [found[place] for place in range(len(texts))]


def refuse(
    checkpoint: Checkpoint,
    prompts: pl.DataFrame,
    source: str,
    *,
    refusal: str = REFUSAL,
    max_new_tokens: int = 40,
) -> pl.DataFrame:
    """What the model replies where a source is blocked; `refused`: it begins with the refusal it learned.

    Nothing is looked up and nothing replaced: the block is in the prompt, and the model refuses by itself or
    does not. Returns the prompts with the columns of `ask` and `refused`. Raises as `ask` does.

    >>> from probekit.testing import tiny_checkpoint
    >>> tagged = add_tags(tiny_checkpoint(), ["crowd", "forum"])
    >>> refuse(tagged, pl.DataFrame({"user": ["Hi?"]}), "crowd", max_new_tokens=3)["refused"].to_list()
    [False]
    """
    said = ask(checkpoint, prompts, block=source, max_new_tokens=max_new_tokens)
    return said.with_columns(refused=pl.col("reply").str.strip_chars_start().str.starts_with(refusal))
