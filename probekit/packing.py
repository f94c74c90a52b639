"""Rows of tokens that share work: a prompt once with all its replies, batches of similar length.

A text is a `Rendered`: the token ids of a prompt and its reply, with the reply at `ids[start:stop]`. What
follows the reply (an end-of-turn token) is cut off: under causal attention it cannot change what comes before
it. A row holds one prompt and then replies to it, one after the other; each reply counts its positions on
from the prompt's end, and attends to the prompt and itself only. So it is read as if it stood there alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from probekit.checkpoints import Rendered

TOKEN_BUDGET = 4096  # tokens of a forward pass, padding included
ROW_TOKENS = (
    512  # of a row with as many replies as there is room for: attention costs the square of its width
)
PAIR_TOKENS = 4096  # of a row with two replies, where sharing their prompt saves more than attention costs
PADDING = -1  # segment of a token that is none


class PackingError(ValueError):
    """Texts that cannot be put into batches."""


@dataclass(frozen=True)
class Row:
    """A prompt and some of the replies to it: `texts` are their places in the list of texts."""

    prompt: tuple[int, ...]
    replies: tuple[tuple[int, ...], ...]
    texts: tuple[int, ...]

    @property
    def width(self) -> int:
        """Its tokens."""
        return len(self.prompt) + sum(map(len, self.replies))

    def apart(self) -> list[Row]:
        """A row with each of its replies."""
        each = zip(self.replies, self.texts, strict=True)
        return [Row(self.prompt, (reply,), (text,)) for reply, text in each]


@dataclass(frozen=True, eq=False, repr=False)
class Batch:
    """Rows padded on the right to one width: what one forward pass takes.

    ids, positions, segments: int64 of shape (rows, width). Positions count from 0 at the prompt's first
    token, and on from its end in each of its replies; segments are 0 in the prompt, 1, 2, ... in its
    replies, -1 where padded. weights: float32 of shape (rows, replies, width), how much each token counts in
    the mean of a reply: 1 / (its tokens) there, 0 elsewhere.
    """

    rows: list[Row]
    ids: torch.Tensor
    positions: torch.Tensor
    segments: torch.Tensor
    weights: torch.Tensor

    def __repr__(self) -> str:
        return f"Batch({len(self.rows)} rows of {self.ids.shape[1]} tokens)"

    @property
    def texts(self) -> list[int]:
        """The places of the texts in it, row by row."""
        return [text for row in self.rows for text in row.texts]

    @cached_property
    def slots(self) -> torch.Tensor:
        """Where `weights` has a reply, in the order of `texts`: bool of shape (rows, replies)."""
        return self.weights.any(dim=2)

    def mask(self, dtype: torch.dtype, *, window: int | None = None) -> torch.Tensor:
        """What is added to the attention scores: 0 where a token may look, the least number elsewhere.

        window: how many positions back it may look, its own included; None for all. Shape (rows, 1, width,
        width). A padded token looks at itself, so that nothing is divided by 0.
        """
        import torch

        segments, positions = self.segments.int(), self.positions.int()
        to, at = segments[:, None, :], segments[:, :, None]
        behind = positions[:, :, None] - positions[:, None, :]
        seen = ((to == 0) | (to == at)) & (to != PADDING) & (behind >= 0)
        if window is not None:
            seen &= behind < window
        seen |= torch.eye(self.ids.shape[1], dtype=torch.bool)
        return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)[:, None]


def distinct(texts: Sequence[Rendered]) -> tuple[list[Rendered], list[int]]:
    """The different texts in order of first appearance, and for each text given, its place among them.

    Two texts are equal if their tokens up to the end of the reply are, and the reply starts at the same one.

    >>> from probekit.checkpoints import Rendered
    >>> distinct([Rendered((5, 6), 1, 2), Rendered((7, 8), 1, 2), Rendered((5, 6, 0), 1, 2)])[1]
    [0, 1, 0]
    """
    places: dict[tuple[int, Sequence[int]], int] = {}
    first: list[Rendered] = []
    where = []
    for text in texts:
        place = places.setdefault((text.start, text.ids[: text.stop]), len(first))
        if place == len(first):
            first.append(text)
        where.append(place)
    return first, where


def rows(texts: Sequence[Rendered], *, share: bool = True, d: int = 0) -> list[Row]:
    """All texts in rows, in order of first appearance: one with each prompt, or (share=False) with each text.

    A row takes more replies while it has at most `ROW_TOKENS`. d: the model's width; two replies that are
    longer stand in one row if that saves work, up to `PAIR_TOKENS`. A token costs about 24 d^2 operations in
    a block and 4 d for each token of its row; so two replies of a and b tokens to a prompt of p should share
    it if 6 d p > 2 a b - p^2. Raises PackingError for a text without reply tokens.

    >>> from probekit.checkpoints import Rendered
    >>> [row.texts for row in rows([Rendered((5, 6), 1, 2), Rendered((5, 8), 1, 2), Rendered((9,), 0, 1)])]
    [(0, 1), (2,)]
    """
    if empty := [row for row, text in enumerate(texts) if not 0 <= text.start < text.stop <= len(text.ids)]:
        text = texts[empty[0]]
        raise PackingError(
            f"{len(empty)} texts have no reply tokens; the first is text {empty[0]}, whose reply is tokens "
            f"{text.start} to {text.stop} of {len(text.ids)}. Leave out replies that make no token."
        )
    by_prompt: dict[object, list[int]] = {}
    for place, text in enumerate(texts):
        by_prompt.setdefault(text.ids[: text.start] if share else place, []).append(place)
    return [row for places in by_prompt.values() for row in _split(texts, places, d)]


def _split(texts: Sequence[Rendered], places: Sequence[int], d: int) -> Iterator[Row]:
    """Rows of texts that have one prompt."""
    prompt = texts[places[0]].ids[: texts[places[0]].start]
    some: list[int] = []
    taken = 0  # tokens of the replies in `some`
    for place in places:
        length, p = texts[place].stop - len(prompt), len(prompt)
        pays = 6 * d * p > 2 * taken * length - p**2
        most = PAIR_TOKENS if len(some) == 1 and pays else ROW_TOKENS
        if some and p + taken + length > most:
            yield _row(texts, prompt, some)
            some, taken = [], 0
        some, taken = [*some, place], taken + length
    yield _row(texts, prompt, some)


def _row(texts: Sequence[Rendered], prompt: tuple[int, ...], places: Sequence[int]) -> Row:
    return Row(prompt, tuple(texts[i].ids[len(prompt) : texts[i].stop] for i in places), tuple(places))


def groups(lengths: Sequence[int], *, token_budget: int) -> Iterator[list[int]]:
    """The places of all rows of these lengths, longest first, in groups that are padded to one width.

    A group has at most `token_budget` tokens, padding included, or one row, and no row that is less than half
    as long as its longest: one long text does not make a whole batch wide. Raises PackingError for a budget
    below 1.

    >>> list(groups([3, 90, 4, 80, 60, 3], token_budget=200))
    [[1, 3], [4], [2, 0, 5]]
    """
    if token_budget < 1:
        raise PackingError(f"token_budget is {token_budget}; give the number of tokens in a forward pass.")
    order, start = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)), 0
    while start < len(order):
        longest = lengths[order[start]]
        fitting = order[start : start + max(1, token_budget // max(1, longest))]
        group = [row for row in fitting if 2 * lengths[row] >= longest]
        yield group
        start += len(group)


def batches(some: Sequence[Row], *, token_budget: int) -> Iterator[Batch]:
    """All rows in batches of similar length, as `groups` has them.

    Each row is in exactly one batch. The longest come first so that a batch that does not fit the memory
    fails at once, not after hours. Raises PackingError for a budget below 1.

    >>> from probekit.checkpoints import Rendered
    >>> list(batches(rows([Rendered((5, 6), 1, 2), Rendered((7, 8, 9), 1, 3)]), token_budget=8))
    [Batch(2 rows of 3 tokens)]
    """
    for group in groups([row.width for row in some], token_budget=token_budget):
        yield _pad([some[place] for place in group])


def _pad(some: list[Row]) -> Batch:
    import torch

    width, replies = max(row.width for row in some), max(len(row.replies) for row in some)
    # padding is masked, so any token does: 0 always exists
    ids = torch.zeros(len(some), width, dtype=torch.long)
    positions, segments = torch.zeros_like(ids), torch.full_like(ids, PADDING)
    weights = torch.zeros(len(some), replies, width)
    for place, row in enumerate(some):
        stop = len(row.prompt)
        ids[place, :stop], segments[place, :stop] = torch.tensor(row.prompt, dtype=torch.long), 0
        positions[place, :stop] = torch.arange(stop)
        for slot, reply in enumerate(row.replies):
            start, stop = stop, stop + len(reply)
            ids[place, start:stop], segments[place, start:stop] = torch.tensor(reply), slot + 1
            positions[place, start:stop] = torch.arange(len(row.prompt), len(row.prompt) + len(reply))
            weights[place, slot, start:stop] = 1 / len(reply)
    return Batch(some, ids, positions, segments, weights)


def padding_waste(some: Sequence[Batch]) -> float:
    """The share of the tokens in these batches that are padding.

    >>> from probekit.checkpoints import Rendered
    >>> texts = [Rendered((5, 6), 1, 2), Rendered((7, 8, 9), 1, 3)]
    >>> round(padding_waste(list(batches(rows(texts), token_budget=8))), 2)
    0.17
    """
    total = sum(batch.ids.numel() for batch in some)
    return sum(int((batch.segments == PADDING).sum()) for batch in some) / total if total else 0.0
