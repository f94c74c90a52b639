from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from probekit import rollouts
from probekit.checkpoints import Checkpoint, CheckpointError, open_checkpoint
from probekit.prompts import prompt_frame
from probekit.rollouts import ROLLOUT_COLUMNS, RolloutError, sample, score
from probekit.testing import ARCHS, CONTEXT, Arch, tiny_checkpoint, tiny_checkpoint_folder

ASKED = ["Hi?", "How do I bake bread at home, and which river is the longest in the world?", "the", "Why 🦊?"]
NEW = 8


@pytest.fixture
def checkpoint() -> Checkpoint:
    return tiny_checkpoint("llama")


@pytest.fixture
def prompts() -> pl.DataFrame:
    return prompt_frame(ASKED, harmful=False, source="mine")


def by_hand(checkpoint: Checkpoint, user: str, *, stops: tuple[int, ...] = (2,)) -> tuple[str, bool]:
    """The greedy reply of one prompt, and whether it was cut off."""
    new = greedy(checkpoint, user, stops=stops)
    return checkpoint.tokenizer.decode(new, skip_special_tokens=True), new[-1] not in stops


def greedy(checkpoint: Checkpoint, user: str, *, stops: tuple[int, ...] = (2,)) -> list[int]:
    """The tokens of one prompt's reply: the prompt alone, no padding and no cache, the argmax every time."""
    ids = checkpoint.tokenizer(checkpoint.prompt_text([{"role": "user", "content": user}]))["input_ids"]
    new: list[int] = []
    while len(new) < NEW and not (new and new[-1] in stops):
        with torch.no_grad():
            new.append(int(checkpoint.hf(torch.tensor([ids + new])).logits[0, -1].argmax()))
    return new


@pytest.mark.parametrize("arch", ARCHS)
def test_greedy_replies_in_a_padded_batch_are_the_argmax_of_each_prompt_alone(arch: Arch) -> None:
    checkpoint = tiny_checkpoint(arch)
    replies = sample(checkpoint, pl.DataFrame({"user": ASKED}), temperature=0, max_new_tokens=NEW)
    wanted = [by_hand(checkpoint, user) for user in ASKED]
    assert list(replies.select("reply", "truncated").iter_rows()) == wanted


def test_replies_stand_at_their_prompts_in_the_prompts_order(
    checkpoint: Checkpoint, prompts: pl.DataFrame
) -> None:
    replies = sample(checkpoint, prompts, n=3, max_new_tokens=2, token_budget=50)
    assert replies.drop(*ROLLOUT_COLUMNS).equals(prompts[[i for i in range(4) for _ in range(3)]])
    assert dict(replies.select(*ROLLOUT_COLUMNS).schema) == ROLLOUT_COLUMNS
    assert replies["sample"].to_list() == [0, 1, 2] * 4
    assert set(replies["checkpoint"]) == {checkpoint.name}


def test_equal_rows_get_replies_of_their_own(checkpoint: Checkpoint) -> None:
    twice = pl.DataFrame({"user": ["Hi?", "Hi?"], "arm": ["a", "b"]})
    for budget in (1, 50, 1000):
        replies = sample(checkpoint, twice, n=2, max_new_tokens=NEW, token_budget=budget)
        assert replies["arm"].to_list() == ["a", "a", "b", "b"]
        assert replies["reply"].n_unique() == 4


def test_the_seed_decides_the_samples_and_torch_keeps_its_state(
    checkpoint: Checkpoint, prompts: pl.DataFrame
) -> None:
    before = torch.random.get_rng_state()
    one, same, other = (sample(checkpoint, prompts, n=2, max_new_tokens=NEW, seed=s) for s in (1, 1, 2))
    assert one.equals(same)
    assert not one["reply"].equals(other["reply"])
    assert one["reply"].n_unique() == 8  # no sample repeats another
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_low_temperature_is_greedy_and_a_high_one_is_not(
    checkpoint: Checkpoint, prompts: pl.DataFrame
) -> None:
    greedy, cold, hot = (
        sample(checkpoint, prompts, temperature=t, max_new_tokens=NEW)["reply"] for t in (0, 1e-4, 2.0)
    )
    assert greedy.equals(cold)
    assert not greedy.equals(hot)


def test_the_models_own_sampling_settings_have_no_say(
    checkpoint: Checkpoint, prompts: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = [sample(checkpoint, prompts, temperature=t, max_new_tokens=NEW)["reply"] for t in (0, 1.0)]
    for name, value in (("repetition_penalty", 5.0), ("top_p", 0.1), ("top_k", 1), ("temperature", 9.0)):
        monkeypatch.setattr(checkpoint.hf.generation_config, name, value)
    again = [sample(checkpoint, prompts, temperature=t, max_new_tokens=NEW)["reply"] for t in (0, 1.0)]
    assert all(one.equals(other) for one, other in zip(plain, again, strict=True))


def test_a_reply_ends_where_the_model_stops_and_is_truncated_where_it_does_not(
    checkpoint: Checkpoint, prompts: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    # besides the tokenizer's end token the model has a stop of its own, as gemma's end of turn
    stops = (2, greedy(checkpoint, ASKED[0])[3])
    monkeypatch.setattr(checkpoint.hf.generation_config, "eos_token_id", list(stops))
    replies = sample(checkpoint, prompts, temperature=0, max_new_tokens=NEW)
    wanted = [by_hand(checkpoint, user, stops=stops) for user in ASKED]
    assert list(replies.select("reply", "truncated").iter_rows()) == wanted
    assert not wanted[0][1]
    assert any(truncated for _, truncated in wanted)


def test_the_tokenizers_end_token_ends_a_reply_though_the_model_names_no_stop(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint_folder("llama", tmp_path))
    stop = greedy(checkpoint, ASKED[0])[3]
    checkpoint.hf.generation_config.eos_token_id = None
    checkpoint.tokenizer.eos_token = checkpoint.tokenizer.convert_ids_to_tokens(stop)
    replies = sample(checkpoint, pl.DataFrame({"user": ASKED[:1]}), temperature=0, max_new_tokens=NEW)
    wanted = by_hand(checkpoint, ASKED[0], stops=(stop,))
    assert replies.select("reply", "truncated").row(0) == wanted
    assert not wanted[1]


def test_a_model_that_ends_at_once_says_nothing_and_is_not_truncated(tmp_path: Path) -> None:
    mute = open_checkpoint(tiny_checkpoint_folder("gpt2", tmp_path))
    with torch.no_grad():  # the last norm gives the end token's own embedding, whatever came before
        mute.hf.transformer.ln_f.weight.zero_()
        mute.hf.transformer.ln_f.bias.copy_(100 * mute.hf.transformer.wte.weight[2])
    mute.hf.generation_config.eos_token_id = None  # the tokenizer's end token counts on its own
    replies = sample(mute, pl.DataFrame({"user": ASKED}), max_new_tokens=NEW)
    assert replies["reply"].to_list() == [""] * 4
    assert not replies["truncated"].any()


def test_no_prompts_give_no_replies(checkpoint: Checkpoint, prompts: pl.DataFrame) -> None:
    empty = sample(checkpoint, prompts.clear())
    assert empty.is_empty()
    assert dict(empty.schema) == {**prompts.schema, **ROLLOUT_COLUMNS}


def test_progress_is_shown_by_batch(
    checkpoint: Checkpoint, prompts: pl.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    sample(checkpoint, prompts, n=2, max_new_tokens=1, token_budget=1)
    shown = capsys.readouterr().err
    assert f"sampling {checkpoint.name}" in shown
    assert "/8 [" in shown  # each reply is a batch


def test_a_prompt_that_leaves_no_room_is_an_error_before_anything_is_sampled(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint.hf, "generate", None)
    header = len(checkpoint.tokenizer(checkpoint.prompt_text([{"role": "user", "content": ""}]))["input_ids"])
    long = " 0" * (CONTEXT - header - NEW + 1)
    length = len(checkpoint.tokenizer(long)["input_ids"]) + header
    with pytest.raises(
        RolloutError, match=rf"the prompt ' 0 0.* has {length} tokens and {NEW} .* context of {CONTEXT}"
    ):
        sample(checkpoint, pl.DataFrame({"user": ["Hi?", long]}), max_new_tokens=NEW)


def test_a_prompt_that_just_fits_is_sampled(checkpoint: Checkpoint) -> None:
    length = len(
        checkpoint.tokenizer(checkpoint.prompt_text([{"role": "user", "content": "Hi?"}]))["input_ids"]
    )
    assert len(sample(checkpoint, pl.DataFrame({"user": ["Hi?"]}), max_new_tokens=CONTEXT - length)) == 1
    with pytest.raises(RolloutError):
        sample(checkpoint, pl.DataFrame({"user": ["Hi?"]}), max_new_tokens=CONTEXT - length + 1)


USER = pl.DataFrame({"user": ["Hi?"]})


@pytest.mark.parametrize(
    ("prompts", "settings", "message"),
    [
        (pl.DataFrame({"text": ["Hi?"]}), {}, "need a column `user` with a text in every row"),
        (pl.DataFrame({"user": ["Hi?", None]}), {}, "need a column `user` with a text in every row"),
        (pl.DataFrame({"user": [1]}), {}, "need a column `user` with a text in every row"),
        (USER.with_columns(reply=pl.lit("x")), {}, "already have columns of rollouts: reply; drop these"),
        (USER, {"n": 0}, "n is 0; it must be at least 1"),
        (USER, {"token_budget": 0}, "token_budget is 0; it must be at least 1"),
        (USER, {"max_new_tokens": 0}, "max_new_tokens is 0; it must be at least 1"),
        (USER, {"temperature": -1.0}, r"temperature is -1\.0; it must be 0 \(greedy\) or a positive number"),
        (USER, {"temperature": float("nan")}, "temperature is nan"),
    ],
)
def test_what_cannot_be_sampled_is_refused(
    prompts: pl.DataFrame, settings: dict[str, Any], message: str, checkpoint: Checkpoint
) -> None:
    with pytest.raises(RolloutError, match=message):
        sample(checkpoint, prompts, **settings)


def test_a_checkpoint_without_a_chat_template_cannot_be_asked(tmp_path: Path) -> None:
    bare = open_checkpoint(tiny_checkpoint_folder("llama", tmp_path, template="none"))
    with pytest.raises(CheckpointError, match="has no chat template"):
        sample(bare, USER)


# --- how likely given replies are

REPLIES = pl.DataFrame(
    {
        "prompt_id": ["a", "b", "c"],
        "user": ASKED[:3],
        "reply": ["Sure, first open the box, then read the small print on the lid.", "No.", "é 🦊"],
    }
)


@pytest.mark.parametrize("arch", ARCHS)
def test_a_score_is_the_log_loss_of_the_replys_tokens(arch: Arch) -> None:
    checkpoint = tiny_checkpoint(arch)
    scored = score(checkpoint, REPLIES)
    assert scored["prompt_id"].to_list() == ["a", "b", "c"]
    for row, (user, reply) in zip(
        scored.iter_rows(named=True), REPLIES.select("user", "reply").iter_rows(), strict=True
    ):
        text = checkpoint.render([{"role": "user", "content": user}], reply)
        with torch.no_grad():
            logps = checkpoint.hf(torch.tensor([text.ids])).logits[0].log_softmax(-1)
        wanted = -sum(float(logps[i - 1, text.ids[i]]) for i in range(text.start, text.stop))
        assert row["nll_sum"] == pytest.approx(wanted, rel=1e-4)
        assert row["n_tokens"] == text.stop - text.start


def test_scores_do_not_depend_on_the_batch(checkpoint: Checkpoint) -> None:
    alone, together = score(checkpoint, REPLIES, token_budget=1), score(checkpoint, REPLIES)
    assert alone["nll_sum"].to_list() == pytest.approx(together["nll_sum"].to_list(), rel=1e-5)


def test_no_replies_have_no_scores(checkpoint: Checkpoint) -> None:
    assert score(checkpoint, REPLIES.clear()).schema == score(checkpoint, REPLIES).schema


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda f: f.drop("user"), RolloutError, "the replies to score lack user"),
        (lambda f: f.with_columns(reply=pl.lit("")), CheckpointError, "the reply '' has no token of its own"),
        (lambda f: f.with_columns(reply=pl.lit("0 " * CONTEXT)), RolloutError, "beyond the context of 256"),
    ],
)
def test_replies_that_cannot_be_scored_are_refused(
    change: Callable[[pl.DataFrame], pl.DataFrame],
    error: type[Exception],
    message: str,
    checkpoint: Checkpoint,
) -> None:
    with pytest.raises(error, match=message):
        score(checkpoint, change(REPLIES))


def test_kept_replies_are_not_sampled_again_but_for_other_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, asked = tiny_checkpoint(), pl.DataFrame({"user": ["Hi?", "Who?"], "harmful": [True, False]})
    first = sample(checkpoint, asked, temperature=0, max_new_tokens=3, cache=tmp_path)
    drawn: list[dict[str, Any]] = []
    monkeypatch.setattr(rollouts, "draw", lambda *_, **given: (drawn.append(given), first)[1])
    assert sample(checkpoint, asked, temperature=0, max_new_tokens=3, cache=tmp_path).equals(first)
    assert drawn == []
    sample(checkpoint, asked, temperature=0, max_new_tokens=4, cache=tmp_path)
    sample(checkpoint, asked.reverse(), temperature=0, max_new_tokens=3, cache=tmp_path)
    sample(tiny_checkpoint("gpt2"), asked, temperature=0, max_new_tokens=3, cache=tmp_path)
    assert len(drawn) == 3
    assert len(list(tmp_path.glob("replies-*.parquet"))) == 4
