"""Which tokens of a pair's replies carry its score.

A reply's vector is a mean over its tokens, so a pair's cosine with the behaviour's direction splits into its
tokens' parts exactly, without another model or an approximation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import polars as pl

from probekit._scoring import directions, without
from probekit._texts import lengths_that_fit, pair_texts
from probekit._vector_set import listed
from probekit.pairs import Message, PairSet
from probekit.vectors import VectorSet, reply_states

if TYPE_CHECKING:
    import torch

    from probekit.checkpoints import Checkpoint

SCHEMA = pl.Schema(
    {
        "pair_id": pl.String(),
        "reply": pl.String(),  # "chosen" or "rejected"
        "start": pl.Int64(),  # the token is reply[start:end]; several tokens may share one character
        "end": pl.Int64(),
        "score": pl.Float64(),  # above 0: pushes toward the behaviour
    }
)
"""The columns of scores of tokens, one row a token, in the order of the text."""

SPANS = ("pair_id", "start", "end")  # of a chosen reply: chosen[start:end]


class TokenError(ValueError):
    """Scores of tokens that cannot be made, or do not fit the spans that they are compared with."""


class HitRate(NamedTuple):
    """Share of pairs whose strongest token lies in their span, the share that chance gives, and the pairs."""

    hits: float
    chance: float
    n: int


def token_scores(
    checkpoint: Checkpoint,
    pairs: PairSet,
    behaviour: VectorSet,
    *,
    layer: int,
    pair_ids: Iterable[str] | None = None,
    control: VectorSet | None = None,
    token_budget: int | None = None,
) -> pl.DataFrame:
    """What each token of both replies adds to the pair's score; a frame with the columns of `SCHEMA`.

    With b the pooled behaviour vector made a unit vector, v_d the pair's vector and h_t the residual stream
    after block `layer` at token t of the chosen reply (n_c tokens) or the rejected one (n_r tokens),

        part(t) = (b . h_t - m) / (n_c |v_d|)    where t is chosen
        part(t) = (m - b . h_t) / (n_r |v_d|)    where t is rejected

    which add up to cos(b, v_d), the paper's score (section 1.4), whatever m is. Here m is halfway between the
    two replies' means of b . h, so that each reply carries half of the score, and what all tokens of the pair
    share counts for none of them. control: vectors of benign twins; their pooled direction is
    projected out of b, and the parts add up to the score of `rank(..., control=, method="project")`.

    checkpoint: M0, through which `behaviour` (and `control`) were read. pair_ids: of the pairs to score, in
    this order; None for all. A pair whose vector is zero has scores 0. Only M0 reads, forward.

    Raises TokenError for vectors of another checkpoint; VectorError for a layer that was not read and texts
    that do not fit; RankingError where the vectors cancel out; PairError for unknown ids.

    >>> from probekit.pairs import load_pairs
    >>> from probekit.testing import planted_contrasts, planted_pairs, tiny_checkpoint
    >>> from probekit.vectors import behaviour_vectors
    >>> m0, pairs = tiny_checkpoint(), load_pairs(planted_pairs(4))
    >>> behaviour = behaviour_vectors(m0, planted_contrasts(4), layers=[1])
    >>> token_scores(m0, pairs, behaviour, layer=1)["reply"].unique().sort().to_list()
    ['chosen', 'rejected']
    """
    chat = behaviour.chat
    for vectors in (behaviour, *([] if control is None else [control])):
        if (vectors.fingerprint, vectors.chat) != (checkpoint.fingerprint, chat):
            raise TokenError(
                f"The {vectors.kind} vectors are of checkpoint {vectors.fingerprint} (chat={vectors.chat}), "
                f"and the tokens are read through {checkpoint.fingerprint} (chat={chat}). Read all of them "
                "through one checkpoint in one way."
            )
    direction = directions(behaviour, layer, "pooled")
    if control is not None:
        direction = without(direction, directions(control, layer, "pooled"), "project")
    texts = pair_texts(pairs if pair_ids is None else pairs.select(pair_ids))
    lengths_that_fit((checkpoint, checkpoint), texts, chat=chat)
    sides = [(text, reply) for text in texts for reply in text.replies]
    rendered = [checkpoint.render(text.prompt, reply, chat=chat) for text, reply in sides]
    read: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # a reply's mean state, its tokens' products
    for place, states in reply_states(checkpoint, rendered, layers=[layer], token_budget=token_budget):
        one = states[:, 0].double()
        read[place] = one.mean(dim=0), one @ direction[0]
    rows = []
    for place, text in enumerate(texts):
        parts = _parts(*read[2 * place], *read[2 * place + 1])
        for name, reply, scores in zip(text.sides, text.replies, parts, strict=True):
            spans = reply_spans(checkpoint, text.prompt, reply, chat=chat)
            rows += [
                (text.id, name, *span, score) for span, score in zip(spans, scores.tolist(), strict=True)
            ]
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def _parts(
    chosen: torch.Tensor, along: torch.Tensor, rejected: torch.Tensor, other: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The parts of a pair's cosine: of the mean states of its replies, and their tokens' products with b."""
    norm = float((chosen - rejected).norm())
    middle = (along.mean() + other.mean()) / 2
    scale = 1 / norm if norm else 0.0
    return (along - middle) * scale / len(along), (middle - other) * scale / len(other)


def reply_spans(
    checkpoint: Checkpoint, prompt: Sequence[Message], reply: str, *, chat: bool = True
) -> list[tuple[int, int]]:
    """Where each token of `checkpoint.render(prompt, reply)`'s reply stands in the reply, in characters.

    One span a token, in order; none is empty and none overlaps another. Tokens that are parts of one
    character have the same span, and a token that spells no character has its neighbour's.

    Raises CheckpointError as `render` does.

    >>> from probekit.testing import tiny_checkpoint
    >>> reply = "Yes 🦊"
    >>> spans = reply_spans(tiny_checkpoint(), [{"role": "user", "content": "Hi?"}], reply)
    >>> [reply[start:end] for start, end in spans][-4:]  # four bytes, and a token for each
    ['🦊', '🦊', '🦊', '🦊']
    """
    before = checkpoint.prompt_text(prompt) if chat else ""
    encoded = checkpoint.tokenizer(before + reply, add_special_tokens=False, return_offsets_mapping=True)
    n = checkpoint.render(prompt, reply, chat=chat)
    found = [(start - len(before), end - len(before)) for start, end in encoded["offset_mapping"]]
    return _apart(found[len(found) - (n.stop - n.start) :])


def _apart(offsets: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans without those that are empty or begin before the last one ends."""
    spans: list[tuple[int, int] | None] = []
    done = 0
    for start, end in offsets:
        start = max(start, done)
        if start < end:
            spans.append((start, end))
            done = end
        else:
            spans.append(spans[-1] if spans else None)
    first = next(span for span in spans if span)
    return [span or first for span in spans]


def hit_rate(tokens: pl.DataFrame, spans: pl.DataFrame) -> HitRate:
    """How often the strongest token of a chosen reply is part of what was planted there.

    tokens: scores with the columns of `SCHEMA`; only those of chosen replies count. spans: the columns of
    `SPANS`, one row or more a pair, of every pair that is to count. A token lies in a span if they share a
    character; of tokens that are equally strong each counts as a part of one. chance: the mean share of
    tokens that lie in the span, which is what equal scores give.

    Raises TokenError for missing columns, pairs without tokens, or pairs none of whose tokens lie in a span.

    >>> tokens = [("a", "chosen", 0, 4, 0.9), ("a", "chosen", 5, 9, 0.1)]
    >>> hit_rate(pl.DataFrame(tokens, SCHEMA, orient="row"), pl.DataFrame([("a", 0, 3)], SPANS, orient="row"))
    HitRate(hits=1.0, chance=0.5, n=1)
    """
    for name, frame, needed in (("tokens", tokens, SCHEMA.names()), ("spans", spans, SPANS)):
        if missing := [column for column in needed if column not in frame.columns]:
            raise TokenError(
                f"The {name} lack the columns {', '.join(missing)}; they need {', '.join(needed)}."
            )
    wanted = spans["pair_id"].unique(maintain_order=True)
    chosen = tokens.filter(pl.col("reply") == "chosen", pl.col("pair_id").is_in(wanted.implode()))
    chosen = chosen.with_row_index("token")
    within = chosen.join(spans.select(SPANS), on="pair_id", suffix="_span").filter(
        pl.col("start") < pl.col("end_span"), pl.col("end") > pl.col("start_span")
    )
    strongest = pl.col("score") == pl.col("score").max()
    by_pair = (
        chosen.with_columns(hit=pl.col("token").is_in(within["token"].implode()))
        .group_by("pair_id")
        .agg(hits=pl.col("hit").filter(strongest).mean(), chance=pl.col("hit").mean())
    )
    reached = {*by_pair.filter(pl.col("chance") > 0)["pair_id"]}
    if (lost := [one for one in wanted if one not in reached]) or not reached:
        raise TokenError(
            f"{len(lost)} of {len(wanted)} pairs have no token of their chosen reply in a span: "
            f"{listed(lost)}. Score these pairs too, and count spans in characters of the chosen reply."
        )
    hits, chance = by_pair.select(pl.col("hits", "chance").mean()).row(0)
    return HitRate(hits, chance, by_pair.height)
