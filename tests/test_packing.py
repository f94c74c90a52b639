from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probekit.checkpoints import Rendered
from probekit.packing import (
    PADDING,
    PAIR_TOKENS,
    ROW_TOKENS,
    PackingError,
    batches,
    distinct,
    groups,
    padding_waste,
    rows,
)

RENDERED = st.builds(
    lambda prompt, reply, rest: Rendered((*prompt, *reply, *rest), len(prompt), len(prompt) + len(reply)),
    st.lists(st.integers(1, 9), max_size=8),
    st.lists(st.integers(1, 9), min_size=1, max_size=8),
    st.lists(st.just(2), max_size=1),
)


SHARED = st.builds(  # texts of which many have the same prompt
    lambda prompt, reply: Rendered((*([prompt] * prompt), *reply), prompt, prompt + len(reply)),
    st.integers(0, 3),
    st.lists(st.integers(1, 9), min_size=1, max_size=8),
)
TEXTS = st.one_of(st.lists(RENDERED, max_size=20), st.lists(SHARED, max_size=20))


@settings(deadline=None)
@given(TEXTS, st.integers(1, 60), st.booleans())
def test_every_text_is_in_one_batch_whole_and_within_the_budget(
    texts: list[Rendered], budget: int, share: bool
) -> None:
    seen = []
    for batch in batches(rows(texts, share=share), token_budget=budget):
        assert len(batch.rows) == 1 or batch.ids.numel() <= budget
        for place, row in enumerate(batch.rows):
            prompt = batch.segments[place] == 0
            for slot, number in enumerate(row.texts):
                text = texts[number]
                reply = batch.segments[place] == slot + 1
                read = prompt | reply
                assert batch.ids[place][read].tolist() == list(text.ids[: text.stop])
                assert batch.positions[place][read].tolist() == list(range(text.stop))
                assert torch.equal(batch.weights[place, slot] > 0, reply)
                assert batch.weights[place, slot].sum().item() == pytest.approx(1)
        seen += batch.texts
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


@settings(deadline=None)
@given(TEXTS, st.booleans())
def test_a_token_sees_what_it_would_see_in_its_text_alone(texts: list[Rendered], share: bool) -> None:
    for batch in batches(rows(texts, share=share), token_budget=10**6):
        for window in (None, 3):
            seen = batch.mask(torch.float32, window=window)[:, 0] == 0
            for place, segments in enumerate(batch.segments.tolist()):
                for at, (segment, position) in enumerate(zip(segments, batch.positions[place], strict=True)):
                    looks = seen[place, at].nonzero().flatten().tolist()
                    if segment == PADDING:
                        assert at in looks  # or a score would be divided by 0
                        continue
                    back = [int(position - batch.positions[place, one]) for one in looks]
                    assert sorted(back) == list(range(min(int(position) + 1, window or 10**6)))
                    assert {segments[one] for one in looks} <= {0, segment}


@settings(deadline=None)
@given(TEXTS)
def test_a_prompt_is_there_once_with_its_replies(texts: list[Rendered]) -> None:
    assert len(rows(texts)) == len({text.ids[: text.start] for text in texts})
    assert len(rows(texts, share=False)) == len(texts)


def test_a_row_takes_as_many_replies_as_there_is_room_for() -> None:
    short = [Rendered((1, i), 1, 2) for i in range(ROW_TOKENS + 5)]
    assert [len(row.texts) for row in rows(short)] == [ROW_TOKENS - 1, 6]


@pytest.mark.parametrize(
    ("prompt", "reply", "together"),
    [
        (400, 200, True),  # 800 tokens in the place of 1200
        (50, 1500, False),  # saves 50 tokens and doubles the attention
        (3000, 500, True),
        (4000, 500, False),  # a row of 5000 is too wide
    ],
)
def test_two_long_replies_share_their_prompt_where_it_saves_work(
    prompt: int, reply: int, together: bool
) -> None:
    texts = [Rendered((*[1] * prompt, *[i] * reply), prompt, prompt + reply) for i in range(4)]
    assert [row.texts for row in rows(texts, d=576)] == (
        [(0, 1), (2, 3)] if together else [(0,), (1,), (2,), (3,)]
    )
    assert max(row.width for row in rows(texts[:2], d=576)) <= max(PAIR_TOKENS, prompt + reply)


@given(TEXTS, st.integers(1, 60))
def test_batches_run_from_the_longest_row_to_the_shortest(texts: list[Rendered], budget: int) -> None:
    some = batches(rows(texts), token_budget=budget)
    lengths = [row.width for batch in some for row in batch.rows]
    assert lengths == sorted(lengths, reverse=True)


def test_little_is_padded_where_lengths_are_log_normal() -> None:
    # part 2's line: under 5 % at the default budget
    random = np.random.default_rng(0)
    prompts = np.minimum(np.exp(random.normal(4.5, 0.8, 512)).astype(int) + 1, 1500)
    replies = np.minimum(np.exp(random.normal(4.5, 0.8, (512, 2))).astype(int) + 1, 1500)
    texts = [
        Rendered((*([i + 1] * prompt), *([side] * reply)), int(prompt), int(prompt + reply))
        for i, (prompt, both) in enumerate(zip(prompts, replies, strict=True))
        for side, reply in enumerate(both)
    ]
    assert padding_waste(list(batches(rows(texts), token_budget=4096))) < 0.05


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
    (batch,) = batches(rows([Rendered((7, 8, 9), 1, 3), Rendered((5, 6), 1, 2)]), token_budget=6)
    assert torch.equal(batch.ids, torch.tensor([[7, 8, 9], [5, 6, 0]]))
    assert torch.equal(batch.segments, torch.tensor([[0, 1, 1], [0, 1, PADDING]]))
    assert repr(batch) == "Batch(2 rows of 3 tokens)"


def test_a_text_without_reply_tokens_is_refused() -> None:
    texts = [Rendered((1, 2), 1, 2), Rendered((1, 2), 2, 2)]
    with pytest.raises(
        PackingError, match="1 texts have no reply tokens; the first is text 1, whose reply is tokens 2 to 2"
    ):
        rows(texts)


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(PackingError, match="token_budget is 0"):
        list(batches([], token_budget=0))
