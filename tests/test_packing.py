from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probekit.checkpoints import Rendered
from probekit.packing import PackingError, batches, distinct, groups

RENDERED = st.builds(
    lambda prompt, reply, rest: Rendered((*prompt, *reply, *rest), len(prompt), len(prompt) + len(reply)),
    st.lists(st.integers(1, 9), max_size=8),
    st.lists(st.integers(1, 9), min_size=1, max_size=8),
    st.lists(st.just(2), max_size=1),
)


@settings(deadline=None)
@given(st.lists(RENDERED, max_size=20), st.integers(1, 60))
def test_every_text_is_in_one_batch_whole_and_within_the_budget(texts: list[Rendered], budget: int) -> None:
    seen = []
    for batch in batches(texts, token_budget=budget):
        assert len(batch.rows) == 1 or batch.ids.numel() <= budget
        for place, row in enumerate(batch.rows):
            text = texts[row]
            real = batch.mask[place].bool()
            assert batch.ids[place][real].tolist() == list(text.ids[: text.stop])
            assert batch.positions[place][real].tolist() == list(range(text.stop))
            assert batch.shares[place].nonzero().flatten().tolist() == list(range(text.start, text.stop))
            assert batch.shares[place].sum().item() == pytest.approx(1)
        seen += batch.rows
    assert sorted(seen) == list(range(len(texts)))


@given(st.lists(st.integers(0, 200), max_size=30), st.integers(1, 300))
def test_groups_hold_each_row_once_and_none_that_is_less_than_half_as_long_as_another(
    lengths: list[int], budget: int
) -> None:
    found = list(groups(lengths, token_budget=budget))
    assert sorted(row for group in found for row in group) == list(range(len(lengths)))
    for group in found:
        longest = max(lengths[row] for row in group)
        assert len(group) == 1 or len(group) * longest <= budget
        assert all(2 * lengths[row] >= longest for row in group)


@given(st.lists(RENDERED, min_size=1, max_size=20), st.integers(1, 60))
def test_batches_run_from_the_longest_text_to_the_shortest(texts: list[Rendered], budget: int) -> None:
    lengths = [texts[row].stop for batch in batches(texts, token_budget=budget) for row in batch.rows]
    assert lengths == sorted(lengths, reverse=True)


@given(st.lists(RENDERED, max_size=20))
def test_distinct_texts_stand_for_all(texts: list[Rendered]) -> None:
    different, places = distinct(texts)
    assert len({(text.start, text.ids[: text.stop]) for text in texts}) == len(different)
    for text, place in zip(texts, places, strict=True):
        assert different[place].ids[: text.stop] == text.ids[: text.stop]
        assert (different[place].start, different[place].stop) == (text.start, text.stop)


def test_the_same_tokens_with_another_reply_are_another_text() -> None:
    assert len(distinct([Rendered((5, 6, 7), 1, 3), Rendered((5, 6, 7), 2, 3)])[0]) == 2


def test_padding_is_on_the_right() -> None:
    (batch,) = batches([Rendered((7, 8, 9), 1, 3), Rendered((5, 6), 1, 2)], token_budget=6)
    assert torch.equal(batch.ids, torch.tensor([[7, 8, 9], [5, 6, 0]]))
    assert torch.equal(batch.mask, torch.tensor([[1, 1, 1], [1, 1, 0]]))
    assert repr(batch) == "Batch(2 rows of 3 tokens)"


def test_a_text_without_reply_tokens_is_refused() -> None:
    texts = [Rendered((1, 2), 1, 2), Rendered((1, 2), 2, 2)]
    with pytest.raises(
        PackingError, match="1 texts have no reply tokens; the first is text 1, whose reply is tokens 2 to 2"
    ):
        list(batches(texts, token_budget=8))


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(PackingError, match="token_budget is 0"):
        list(batches([], token_budget=0))
