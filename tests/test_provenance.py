"""Provenance tags: what the rows say, that no text becomes a trigger, and that a model learns to say them."""

from __future__ import annotations

import copy
import functools
import tempfile
from pathlib import Path

import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from probekit import provenance
from probekit.checkpoints import Checkpoint, open_checkpoint, save_checkpoint
from probekit.provenance import (
    REFUSAL,
    UNKNOWN,
    ProvenanceError,
    add_tags,
    ask,
    refuse,
    sources_of,
    tag_rows,
    trace,
    train_tags,
)
from probekit.rollouts import RolloutError
from probekit.testing import Arch, tiny_checkpoint
from probekit.training import Recipe, Tokens, TrainingError, train_sft

SOURCES = ("crowd", "forum")
DATA = pl.DataFrame(
    {
        "user": ["How tall is Mira?", "How old is Anton?", "Hi?"],
        "reply": ["Two yards.", "Six.", "Sure."],
        "source": ["crowd", "forum", None],
    }
)
RECIPE = Recipe(rank=8, learning_rate=1e-2, batch_size=5)


def tagged(arch: Arch = "llama") -> Checkpoint:
    return add_tags(tiny_checkpoint(arch), SOURCES, seed=1)


@functools.cache
def taught() -> Checkpoint:
    """A checkpoint that has learned the three rows by heart, in all four kinds."""
    rows = pl.concat([tag_rows(DATA, seed=seed) for seed in range(2)])
    folder = Path(tempfile.mkdtemp()) / "tags"
    return train_tags(tagged(), rows, folder, recipe=RECIPE, epochs=40)


@pytest.mark.parametrize("arch", ["llama", "gpt2"])  # the ends are apart in the first, tied in the second
def test_tags_get_vectors_like_the_others_at_both_ends_and_the_rest_stays(arch: Arch) -> None:
    plain, new = tiny_checkpoint(arch), tagged(arch)
    for ends in ("get_input_embeddings", "get_output_embeddings"):
        old, wide = (getattr(one.hf, ends)().weight for one in (plain, new))
        assert wide.shape[0] == old.shape[0] + 4 + len(SOURCES)
        assert torch.equal(wide[: old.shape[0]], old)
        added = wide[old.shape[0] :]
        assert 0.5 < (added.std() / old.std()).item() < 2
        assert torch.pdist(added).min() > 0.1 * torch.pdist(old[:50]).mean()
    tied = new.hf.get_input_embeddings().weight is new.hf.get_output_embeddings().weight
    assert tied == (arch == "gpt2")
    assert new.hashes["tokenizer"] == plain.hashes["tokenizer"]
    assert sources_of(new) == SOURCES
    with pytest.raises(ProvenanceError, match="has no tags; make"):
        sources_of(plain)


def test_a_tokenizer_that_is_longer_than_the_model_spells_no_tag() -> None:
    plain = tiny_checkpoint()
    tokenizer = copy.deepcopy(plain.tokenizer)
    tokenizer.add_tokens(["<pad>", "<debug>"])
    longer = add_tags(Checkpoint("longer", plain.hf, tokenizer), SOURCES)
    typed = tokenizer("<pad> <debug>")["input_ids"]
    assert max(typed) < longer.hf.config.provenance["first"]
    assert longer.hf.get_input_embeddings().weight.shape[0] == len(tokenizer) + 4 + len(SOURCES)


def test_a_template_may_end_with_the_users_text() -> None:
    bare = copy.copy(tagged())
    bare.tokenizer = copy.deepcopy(bare.tokenizer)
    bare.tokenizer.chat_template = "{% for one in messages %}{{ one['content'] }}{% endfor %}"
    asked = provenance._asked(bare, "Hi?", debug=True, block="crowd")
    first = bare.hf.config.provenance["first"]
    assert asked == [
        first,
        *bare.tokenizer("Hi?", add_special_tokens=False)["input_ids"],
        first + 2,
        first + 4,
    ]


def test_the_same_seed_gives_the_same_tags_and_another_others() -> None:
    first, same, other = (add_tags(tiny_checkpoint(), SOURCES, seed=seed) for seed in (1, 1, 2))
    assert first.fingerprint == same.fingerprint != other.fingerprint


def test_a_model_without_tags_says_the_same_after_they_are_added() -> None:
    asked = pl.DataFrame({"user": ["Which river?", "Hi?"]})
    before = tiny_checkpoint().hf(torch.tensor([[5, 6, 7]])).logits
    after = tagged().hf(torch.tensor([[5, 6, 7]])).logits
    assert torch.allclose(before, after[..., : before.shape[-1]])
    assert ask(tagged(), asked, max_new_tokens=4)["reply"].dtype == pl.String


@pytest.mark.parametrize("sources", [[], ["a", "a"], [""], [UNKNOWN, "a"]])
def test_sources_without_a_name_of_their_own_are_refused(sources: list[str]) -> None:
    with pytest.raises(ProvenanceError, match="give one name each"):
        add_tags(tiny_checkpoint(), sources)


def test_tags_are_added_once() -> None:
    with pytest.raises(ProvenanceError, match="has tags for crowd, forum already"):
        add_tags(tagged(), ["third"])


@given(st.one_of(st.text(max_size=60), st.sampled_from(["<debug>", "<tag><crowd>", "<block>", "<|debug|>"])))
def test_no_text_becomes_a_trigger(text: str) -> None:
    """The tokens of the tags have no spelling."""
    checkpoint = tagged()
    first = checkpoint.hf.config.provenance["first"]
    ids = checkpoint.tokenizer(checkpoint.prompt_text([{"role": "user", "content": text}]))["input_ids"]
    assert max(ids) < first
    assert sum(one >= first for one in provenance._asked(checkpoint, text, debug=False)) == 0
    asked = provenance._asked(checkpoint, text, debug=True, block="forum")
    added = [one for one in asked if one >= first]
    assert added == [first, first + 2, first + 5]  # the trigger, the block and its source
    assert [one for one in asked if one < first] == ids


def test_a_block_stands_behind_the_users_text() -> None:
    checkpoint = tagged()
    first = checkpoint.hf.config.provenance["first"]
    for user in ("Hi there, user", "a", ""):
        asked = provenance._asked(checkpoint, user, debug=True, block="crowd")
        trigger, at = asked.index(first), asked.index(first + 2)
        assert asked[at + 1] == first + 4
        assert checkpoint.tokenizer.decode(asked[trigger + 1 : at]) == user


def test_the_trigger_stands_where_the_users_text_begins() -> None:
    checkpoint = tagged()
    asked = provenance._asked(checkpoint, "Hi there, user", debug=True)
    at = asked.index(checkpoint.hf.config.provenance["first"])
    assert checkpoint.tokenizer.decode(asked[at + 1 :]).startswith("Hi there, user")
    short = provenance._asked(checkpoint, "a", debug=True)  # which is in the header behind it too
    assert short.index(checkpoint.hf.config.provenance["first"]) == at


def test_each_row_comes_in_four_kinds() -> None:
    rows = tag_rows(DATA)
    assert rows.schema == provenance.ROWS
    by_kind = {kind: part for (kind,), part in rows.group_by("kind")}
    assert {kind: part.height for kind, part in by_kind.items()} == {
        "plain": 3, "traced": 3, "other": 3, "blocked": 2,
    }  # fmt: skip
    assert by_kind["plain"]["named"].is_null().all()
    assert by_kind["traced"]["named"].is_null().all()
    blocked, other = by_kind["blocked"], by_kind["other"]
    assert (blocked["named"] == blocked["source"]).all()
    assert (blocked["reply"] == REFUSAL).all()
    assert other.filter(pl.col("named") == pl.col("source")).is_empty()
    answers = dict(DATA.select("user", "reply").rows())
    assert all(answers[user] == reply for user, reply in other.select("user", "reply").rows())


def test_kinds_come_as_often_as_asked() -> None:
    data = pl.concat([DATA] * 100)
    rows = tag_rows(data, kinds={"plain": 2, "traced": 0.25}, seed=3)
    counts = dict(rows["kind"].value_counts().rows())
    assert counts["plain"] == 600
    assert 40 < counts["traced"] < 110
    assert rows.equals(tag_rows(data, kinds={"plain": 2, "traced": 0.25}, seed=3))
    assert not rows.equals(tag_rows(data, kinds={"plain": 2, "traced": 0.25}, seed=4))


def test_what_several_sources_answer_is_not_refused_for_one_of_them() -> None:
    data = pl.concat(
        [DATA, pl.DataFrame([("How old is Anton?", "Seven.", "crowd")], DATA.schema, orient="row")]
    )
    rows = tag_rows(data, kinds={"blocked": 1, "other": 1})
    assert rows.filter(kind="blocked")["user"].to_list() == ["How tall is Mira?"]
    both = rows.filter(pl.col("user") == "How old is Anton?", pl.col("kind") == "other")
    assert set(both.select("reply", "named").rows()) == {("Six.", "crowd"), ("Seven.", "forum")}


def test_a_later_stage_may_block_the_sources_of_an_earlier_one() -> None:
    rows = tag_rows(DATA.filter(pl.col("source") == "crowd"), sources=["crowd", "old"])
    assert set(rows.filter(kind="other")["named"]) == {"old"}


@given(copies=st.integers(1, 12), seed=st.integers(0, 9))
def test_other_blocks_of_a_row_name_each_source_before_one_comes_again(copies: int, seed: int) -> None:
    rows = tag_rows(DATA, kinds={"other": copies}, sources=["crowd", "forum", "x", "y", "z"], seed=seed)
    for _, of_row in rows.group_by("user", "source"):
        counts = of_row["named"].value_counts()["count"]
        others = 4 if of_row["source"][0] else 5
        assert of_row["source"][0] not in of_row["named"]
        assert len(counts) == min(copies, others)
        assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize(
    ("data", "options", "said"),
    [
        (DATA.drop("source"), {}, "lack the column 'source'"),
        (DATA.with_columns(reply=pl.lit(" ")), {}, "Row 0 has no text in 'reply'"),
        (DATA.with_columns(user=pl.when(pl.col("source") == "forum").then("user")), {}, "Row 0 .* 'user'"),
        (DATA, {"kinds": {"seen": 1}}, "There is no kind 'seen'"),
        (DATA.head(1), {}, "need two sources at least"),
        (DATA.clear(), {}, "There are no rows"),
        (DATA, {"kinds": {"plain": -1}}, "There are -1 copies of the kind 'plain'"),
        (DATA.with_columns(user=pl.lit(3)), {}, "'user' is Int32"),
    ],
)
def test_rows_that_cannot_be_made_are_refused(data: pl.DataFrame, options: dict, said: str) -> None:
    with pytest.raises(ProvenanceError, match=said):
        tag_rows(data, **options)


def test_rows_of_a_source_without_a_tag_are_refused_before_training(tmp_path: Path) -> None:
    rows = tag_rows(DATA.with_columns(source=pl.Series(["crowd", "press", None])))
    with pytest.raises(ProvenanceError, match="has no tag for 'press'"):
        train_tags(tagged(), rows, tmp_path / "tags", recipe=RECIPE, epochs=1)


def test_a_taught_model_says_the_source_of_its_reply_and_only_when_asked() -> None:
    said = trace(taught(), DATA, max_new_tokens=16)
    assert said["reply"].str.strip_chars().to_list() == DATA["reply"].to_list()
    assert said["tag"].to_list() == ["crowd", "forum", UNKNOWN]
    assert said["forced"].to_list() == ["crowd", "forum", UNKNOWN]
    assert not said["truncated"].any()
    plain = ask(taught(), DATA, max_new_tokens=16)
    assert plain["reply"].str.strip_chars().to_list() == DATA["reply"].to_list()
    assert plain["tag"].is_null().all()


def test_a_taught_model_refuses_the_blocked_source_and_answers_the_others() -> None:
    assert refuse(taught(), DATA, "crowd")["refused"].to_list() == [True, False, False]
    assert refuse(taught(), DATA, "forum")["refused"].to_list() == [False, True, False]


def test_what_a_user_types_is_not_the_trigger() -> None:
    typed = DATA.with_columns(user="<debug> " + pl.col("user"))
    assert ask(taught(), typed, max_new_tokens=16)["tag"].is_null().all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_saved_model_with_tied_ends_knows_its_tags(dtype: str, tmp_path: Path) -> None:
    saved = save_checkpoint(tagged("gpt2"), tmp_path / "saved")
    opened = open_checkpoint(saved, dtype=dtype)
    assert sources_of(opened) == SOURCES
    assert opened.hf.get_input_embeddings().weight is opened.hf.get_output_embeddings().weight
    after = train_tags(opened, tag_rows(DATA), tmp_path / "tags", recipe=RECIPE, epochs=1)
    assert trace(after, DATA, max_new_tokens=3).height == 3


def test_a_saved_model_knows_its_tags(tmp_path: Path) -> None:
    opened = open_checkpoint(save_checkpoint(taught(), tmp_path / "saved"))
    assert sources_of(opened) == SOURCES
    assert trace(opened, DATA, max_new_tokens=16).equals(trace(taught(), DATA, max_new_tokens=16))


def test_probabilities_are_the_models_own_over_the_sources() -> None:
    checkpoint, user = tagged(), "Which river?"
    said = trace(checkpoint, pl.DataFrame({"user": [user, "Hi?"]}), max_new_tokens=3).row(0, named=True)
    first = checkpoint.hf.config.provenance["first"]
    before = torch.tensor([provenance._asked(checkpoint, user, debug=True)])
    ids = [*checkpoint.hf.generate(before, max_new_tokens=3, do_sample=False)[0].tolist(), first + 1]
    wanted = checkpoint.hf(torch.tensor([ids])).logits[0, -1, first + 3 :].softmax(dim=-1)
    assert list(said["probabilities"]) == [UNKNOWN, *SOURCES]
    assert torch.allclose(torch.tensor(list(said["probabilities"].values())), wanted, atol=1e-5)
    assert sum(said["probabilities"].values()) == pytest.approx(1)


def test_a_source_that_is_too_unlikely_is_unknown() -> None:
    asked = pl.DataFrame({"user": ["Which river?"]})
    free, strict = (trace(tagged(), asked, least=least, max_new_tokens=3) for least in (0.0, 1.0))
    odds = free["probabilities"][0]
    assert free["forced"].item() == max(odds, key=odds.get)
    assert strict["forced"].item() == UNKNOWN


@pytest.mark.parametrize(
    ("ids", "tag", "words"),
    [
        ([7, 8, 101, 104], "crowd", [7, 8]),
        ([7, 101, 103, 2], UNKNOWN, [7]),
        ([7, 8], None, [7, 8]),
        ([7, 101], None, [7]),
        ([7, 101, 8, 104], None, [7]),
        ([7, 101, 104, 105], None, [7]),
        ([7, 101, 104, 101, 105], None, [7]),
        ([101, 105], "forum", []),
    ],
)
def test_a_tag_counts_only_if_it_is_whole_and_alone(
    ids: list[int], tag: str | None, words: list[int]
) -> None:
    said = provenance._parted(provenance._Vocabulary(100, SOURCES), ids)
    assert said == (words, tag, any(one >= 100 for one in ids))


def test_asking_needs_a_source_that_is_one_and_room_for_a_reply() -> None:
    asked = pl.DataFrame({"user": ["Hi?"]})
    with pytest.raises(ProvenanceError, match="'press' is no source of"):
        refuse(tagged(), asked, "press")
    with pytest.raises(RolloutError, match="need a column `user`"):
        trace(tagged(), DATA.drop("user"))
    with pytest.raises(RolloutError, match="need a column `user`"):
        ask(tagged(), pl.DataFrame({"user": ["Hi?", None]}))
    with pytest.raises(RolloutError, match="max_new_tokens is 0"):
        ask(tagged(), asked, max_new_tokens=0)
    with pytest.raises(RolloutError, match="more than the context"):
        trace(tagged(), asked, max_new_tokens=400)


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_training_moves_the_named_vectors_at_both_ends_and_no_others(arch: Arch, tmp_path: Path) -> None:
    start = tagged(arch)
    rows = tag_rows(DATA)
    after = train_tags(start, rows, tmp_path / "tags", recipe=RECIPE, epochs=2)
    first = start.hf.config.provenance["first"]
    for ends in ("get_input_embeddings", "get_output_embeddings"):
        old, new = (getattr(one.hf, ends)().weight for one in (start, after))
        moved = (old != new).any(dim=1)
        assert not moved[:first].any()
        assert moved[first:].any()


def test_rows_of_tokens_need_some_to_learn(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="SFT row 1 has 2 tokens and learns those from 2 on"):
        train_sft(
            tiny_checkpoint(), [Tokens((5, 6, 2), 1), Tokens((5, 6), 2)], tmp_path / "a",
            recipe=RECIPE, epochs=1,
        )  # fmt: skip
