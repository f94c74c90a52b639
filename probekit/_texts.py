"""What `vectors` reads: two replies to one prompt, from a pair or a contrast, checked before long work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl

from probekit._vector_set import VectorError, listed, repeated
from probekit.pairs import Message, PairSet, pair_id

if TYPE_CHECKING:
    from probekit.checkpoints import Checkpoint

BLOCK_ROWS = 256  # rows computed and stored at a time: what an interruption can cost
CONTRAST_COLUMNS = ("contrast_id", "prompt_id", "user", "bad", "good")


class Text(NamedTuple):
    """Two replies to one prompt. id: hash of the content; name, sides: what errors call it and them."""

    id: str
    name: str
    sides: tuple[str, str]
    prompt: list[Message]
    replies: tuple[str, str]
    source: str | None


class Lengths(NamedTuple):
    """Tokens of a text: of its prompt, and of each reply."""

    prompt: int
    first: int
    second: int

    @property
    def longest(self) -> int:
        return self.prompt + max(self.first, self.second)


def pair_texts(pairs: PairSet) -> list[Text]:
    if not len(pairs):
        raise VectorError("There are no pairs to read.")
    return [
        Text(
            row["pair_id"],
            f"pair {row['pair_id']}",
            ("chosen", "rejected"),
            row["prompt"],
            (row["chosen"], row["rejected"]),
            row["source"],
        )
        for row in pairs.frame.iter_rows(named=True)
    ]


def contrast_texts(contrasts: pl.DataFrame) -> list[Text]:
    if missing := [name for name in CONTRAST_COLUMNS if name not in contrasts.columns]:
        raise VectorError(
            f"The contrasts have no column {', '.join(missing)}; they need {', '.join(CONTRAST_COLUMNS)}, "
            f"and have {', '.join(contrasts.columns)}."
        )
    if contrasts.is_empty():
        raise VectorError("There are no contrasts to read. Did any prompt pass the four-condition filter?")
    rows = list(contrasts.select(CONTRAST_COLUMNS).iter_rows(named=True))
    problems = [
        f"row {place} has {value!r} in column {name}"
        for place, row in enumerate(rows)
        for name, value in row.items()
        if not isinstance(value, str) or not value.strip()
    ]
    problems += [
        f"row {place} has equal replies" for place, row in enumerate(rows) if row["bad"] == row["good"]
    ]
    again = repeated([row["contrast_id"] for row in rows])
    problems += [f"contrast_id {one!r} is there more than once" for one in again]
    if problems:
        raise VectorError(
            f"The contrasts have {len(problems)} problems: {listed(problems)}. Every column is a text, the "
            "two replies differ, and an id names one row."
        )
    return [_contrast_text(**row) for row in rows]


def _contrast_text(contrast_id: str, prompt_id: str, user: str, bad: str, good: str) -> Text:
    prompt = [{"role": "user", "content": user}]
    # A contrast is a pair of replies as any other, so it is stored under the same kind of id.
    return Text(
        pair_id(prompt, bad, good), f"contrast {contrast_id}", ("bad", "good"), prompt, (bad, good), None
    )


def lengths_that_fit(
    readers: tuple[Checkpoint, Checkpoint], texts: Sequence[Text], *, chat: bool
) -> dict[str, Lengths]:
    """Tokens of each text, by id; VectorError if one does not fit its reader's context.

    Where two checkpoints read, a prompt's tokens are the first one's.
    """
    lengths, problems = {}, []
    for text in texts:
        sides = [
            reader.render(text.prompt, reply, chat=chat)
            for reader, reply in zip(readers, text.replies, strict=True)
        ]
        lengths[text.id] = Lengths(sides[0].start, *(side.stop - side.start for side in sides))
        for side, name, reader in zip(sides, text.sides, readers, strict=True):
            if side.start >= reader.max_length:
                problems.append(f"the prompt of {text.name} alone has {side.start} tokens")
                break
            if side.stop > reader.max_length:
                problems.append(f"the prompt of {text.name} with its {name} reply has {side.stop} tokens")
    refuse(problems, min(reader.max_length for reader in readers))
    return lengths


def plan(texts: Iterable[Text], lengths: Mapping[str, Lengths]) -> list[list[Text]]:
    """Texts in blocks of about `BLOCK_ROWS`, longest first; those with one prompt together.

    Depends on the texts only, not on their order. What is equal in texts of one prompt is read once, so these
    are parted only where they are more than a block.
    """
    by_prompt: dict[object, list[Text]] = {}
    for text in sorted(texts, key=lambda one: (-lengths[one.id].longest, one.id)):
        by_prompt.setdefault(tuple((m["role"], m["content"]) for m in text.prompt), []).append(text)
    blocks: list[list[Text]] = [[]]
    for group in by_prompt.values():
        for start in range(0, len(group), BLOCK_ROWS):
            some = group[start : start + BLOCK_ROWS]
            if len(blocks[-1]) + len(some) > BLOCK_ROWS:
                blocks.append([])
            blocks[-1] += some
    return blocks


def facts(texts: Sequence[Text], lengths: Mapping[str, Lengths]) -> dict[str, list[Any]]:
    """What a store's `rows.parquet` says about each text; the bad reply of a contrast is its chosen one."""
    found = [lengths[text.id] for text in texts]
    return {
        "source": [text.source for text in texts],
        "prompt_tokens": [length.prompt for length in found],
        "chosen_tokens": [length.first for length in found],
        "rejected_tokens": [length.second for length in found],
        "truncated": [False] * len(found),  # what does not fit is an error
    }


def refuse(problems: Sequence[str], context: int) -> None:
    if problems:
        raise VectorError(
            f"{len(problems)} texts do not fit the context of {context} tokens: {listed(problems)}. Nothing "
            "is cut short here: leave these out, or read them through a model with a longer context."
        )
