"""Rows of tokens that share work: equal texts once, batches of similar length within a token budget.

A text is a `Rendered`: the token ids of a prompt and its reply, with the reply at `ids[start:stop]`. What
follows the reply (an end-of-turn token) is cut off: under causal attention it cannot change what comes before
it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from probekit.checkpoints import Rendered

TOKEN_BUDGET = 4096  # tokens of a forward pass, padding included


class PackingError(ValueError):
    """Texts that cannot be put into batches."""


@dataclass(frozen=True, eq=False, repr=False)
class Batch:
    """Texts padded on the right to one width: what one forward pass takes.

    rows: the place of each row in the list of texts. ids, mask, positions: int64 of shape (rows, width);
    positions count from 0 at each row's first token. shares: float32 of the same shape, how much each token
    counts in the mean over its row's reply: 1 / (reply tokens) there, 0 elsewhere.
    """

    rows: list[int]
    ids: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor
    shares: torch.Tensor

    def __repr__(self) -> str:
        return f"Batch({len(self.rows)} rows of {self.ids.shape[1]} tokens)"


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


def batches(texts: Sequence[Rendered], *, token_budget: int) -> Iterator[Batch]:
    """All texts in batches of similar length, as `groups` has them.

    Each text is in exactly one batch. The longest come first so that a batch that does not fit the memory
    fails at once, not after hours.

    Raises PackingError for a budget below 1, or a text without reply tokens.

    >>> from probekit.checkpoints import Rendered
    >>> list(batches([Rendered((5, 6), 1, 2), Rendered((7, 8, 9), 1, 3)], token_budget=8))
    [Batch(2 rows of 3 tokens)]
    """
    if empty := [row for row, text in enumerate(texts) if not 0 <= text.start < text.stop <= len(text.ids)]:
        text = texts[empty[0]]
        raise PackingError(
            f"{len(empty)} texts have no reply tokens; the first is text {empty[0]}, whose reply is tokens "
            f"{text.start} to {text.stop} of {len(text.ids)}. Leave out replies that make no token."
        )
    for rows in groups([text.stop for text in texts], token_budget=token_budget):
        yield _pad([texts[row] for row in rows], rows)


def _pad(texts: Sequence[Rendered], rows: list[int]) -> Batch:
    import torch

    width = max(text.stop for text in texts)
    ids = torch.zeros(
        len(texts), width, dtype=torch.long
    )  # padding is masked, so any token does: 0 always exists
    mask = torch.zeros_like(ids)
    shares = torch.zeros(ids.shape, dtype=torch.float32)
    for row, text in enumerate(texts):
        ids[row, : text.stop] = torch.tensor(text.ids[: text.stop])
        mask[row, : text.stop] = 1
        shares[row, text.start : text.stop] = 1 / (text.stop - text.start)
    return Batch(rows, ids, mask, torch.arange(width).expand_as(ids).contiguous(), shares)
