"""Length: how much longer the chosen reply is than the rejected one, in the direction of the behaviour."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from probekit._texts import Text, contrast_texts, pair_texts
from probekit.checkpoints import Checkpoint
from probekit.pairs import PairSet
from probekit.ranking import Cost, Ranking, ranking_of


def rank(checkpoint: Checkpoint, pairs: PairSet, queries: pl.DataFrame) -> Ranking:
    """Tokens of the chosen reply minus those of the rejected one, read through the checkpoint's tokenizer.

    The queries give the direction: where bad replies are on average shorter than good ones, the difference is
    taken the other way round, so that higher is always toward the behaviour (where both are as long, higher
    is longer). The ranking's sign says which. Raises VectorError for no pairs, and for queries that are no
    contrasts.

    >>> from probekit.pairs import load_pairs
    >>> from probekit.testing import planted_contrasts, planted_pairs, tiny_checkpoint
    >>> rank(tiny_checkpoint(), load_pairs(planted_pairs(8)), planted_contrasts(2)).sign[:38]
    'higher = longer, as the behaviour is; '
    """
    asked = _differences(checkpoint, contrast_texts(queries))
    shorter = sum(asked) < 0
    longer = _differences(checkpoint, pair_texts(pairs))
    how, words = ("shorter", "rejected minus chosen") if shorter else ("longer", "chosen minus rejected")
    sign = f"higher = {how}, as the behaviour is; tokens of {words}, unbounded"
    scores = [float(-one if shorter else one) for one in longer]
    # a number for each pair is all that further queries need
    return ranking_of(pairs.ids, scores, method="length", sign=sign, cost=Cost(stored_bytes=8 * len(scores)))


def _differences(checkpoint: Checkpoint, texts: Sequence[Text]) -> list[int]:
    """Tokens of the first reply minus those of the second."""
    replies = [reply for text in texts for reply in text.replies]
    ids = checkpoint.tokenizer(replies, add_special_tokens=False)["input_ids"]
    return [len(first) - len(second) for first, second in zip(ids[::2], ids[1::2], strict=True)]
