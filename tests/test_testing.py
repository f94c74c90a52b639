from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probekit.checkpoints import open_checkpoint
from probekit.pairs import load_pairs
from probekit.testing import (
    ARCHS,
    CONTEXT,
    SLIDING_WINDOW,
    Arch,
    TestingError,
    planted_contrasts,
    planted_pairs,
    ranked,
    tiny_checkpoint,
    tiny_checkpoint_folder,
    tiny_config,
    tiny_tokenizer,
)

TURNS = [{"role": "user", "content": "Hi?"}]


@pytest.mark.parametrize("arch", ARCHS)
def test_a_folder_opens_as_the_architecture_it_was_asked_for(arch: Arch) -> None:
    checkpoint = tiny_checkpoint(arch)
    assert checkpoint.hf.config.model_type.startswith(arch)
    assert (checkpoint.n_blocks, checkpoint.width, checkpoint.max_length) == (4, 32, CONTEXT)


@pytest.mark.parametrize("arch", ARCHS)
def test_the_saved_tokenizer_is_the_one_that_was_built(arch: Arch) -> None:
    text = "<|im_start|>user\nA naïve 🦊, 12 times\n\n  over?<|im_end|>\n"
    saved, built = tiny_checkpoint(arch).tokenizer, tiny_tokenizer()
    assert saved.decode(saved(text).input_ids) == text
    assert saved.chat_template == built.chat_template
    # transformers reads every qwen2 tokenizer as Qwen's, which splits and normalises text in its own way
    assert saved(text).input_ids == built(text).input_ids or arch == "qwen2"


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_the_tokenizer(text: str) -> None:
    tokenizer = tiny_tokenizer_once
    assert tokenizer.decode(tokenizer(text).input_ids) == text


tiny_tokenizer_once = tiny_tokenizer()


def test_weights_depend_on_the_seed_and_nothing_else(tmp_path: Path) -> None:
    first = tiny_checkpoint_folder("llama", tmp_path / "first", seed=1)
    torch.rand(3)
    again = tiny_checkpoint_folder("llama", tmp_path / "again", seed=1)
    other = tiny_checkpoint_folder("llama", tmp_path / "other", seed=2)
    weights = [(folder / "model.safetensors").read_bytes() for folder in (first, again, other)]
    assert weights[0] == weights[1] != weights[2]


def test_building_a_model_leaves_the_random_state_alone(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    tiny_checkpoint_folder("gpt2", tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_pad_is_the_end_token() -> None:
    tokenizer = tiny_tokenizer()
    assert tokenizer.pad_token == tokenizer.eos_token == "<|im_end|>"
    assert tokenizer("<|im_end|>").input_ids == [tokenizer.pad_token_id]


def test_the_default_system_template_adds_a_system_turn_only_where_there_is_none() -> None:
    tokenizer = tiny_tokenizer(template="default_system")
    system = {"role": "system", "content": "Be brief."}
    assert tokenizer.apply_chat_template(TURNS, tokenize=False).startswith("<|im_start|>system\nYou are")
    assert tokenizer.apply_chat_template([system, *TURNS], tokenize=False).count("system") == 1
    assert "system" not in tiny_tokenizer().apply_chat_template(TURNS, tokenize=False)


def test_a_tokenizer_can_have_no_chat_template(tmp_path: Path) -> None:
    folder = tiny_checkpoint_folder("llama", tmp_path, template="none")
    assert open_checkpoint(folder).tokenizer.chat_template is None


def test_gemma3_has_a_sliding_window_that_the_texts_outgrow() -> None:
    model = tiny_checkpoint("gemma3").hf
    ids = torch.arange(3, 3 + 3 * SLIDING_WINDOW).unsqueeze(0)
    changed = ids.clone()
    changed[0, 0] = 200
    with torch.no_grad():
        hidden = [model(one, output_hidden_states=True).hidden_states for one in (ids, changed)]
    assert torch.equal(
        hidden[0][1][0, -1], hidden[1][1][0, -1]
    )  # block 0 slides: the first token is out of sight
    assert not torch.equal(hidden[0][2][0, -1], hidden[1][2][0, -1])  # block 1 sees it


def test_blocks_are_far_from_the_identity() -> None:
    for arch in ARCHS:
        with torch.no_grad():
            hidden = (
                tiny_checkpoint(arch)
                .hf(torch.arange(3, 40).unsqueeze(0), output_hidden_states=True)
                .hidden_states
            )
        for before, after in pairwise(hidden[:-1]):
            assert (after - before).norm() > 0.2 * before.norm(), arch


def test_planted_pairs_are_pairs_with_a_quarter_planted() -> None:
    for n in (4, 32, 256):
        pairs = load_pairs(planted_pairs(n))
        assert len(pairs) == n
        assert (pairs.frame["source"] == "planted").sum() == n // 4


def test_planted_pairs_are_shuffled_by_the_seed() -> None:
    one, same, other = (load_pairs(planted_pairs(32, seed=seed)) for seed in (1, 1, 2))
    assert one.ids == same.ids != other.ids
    assert set(one.ids) == set(other.ids)


def test_planted_texts_fit_the_tiny_context() -> None:
    checkpoint = tiny_checkpoint()
    rows = load_pairs(planted_pairs(256)).frame.iter_rows(named=True)
    lengths = [
        checkpoint.render(row["prompt"], row[side]).stop for row in rows for side in ("chosen", "rejected")
    ]
    assert max(lengths) < CONTEXT


def test_twins_share_prompt_ids_and_nothing_else_with_the_behaviour() -> None:
    behaviour, twins = planted_contrasts(16), planted_contrasts(16, kind="twin")
    assert behaviour["prompt_id"].to_list() == twins["prompt_id"].to_list()
    for column in ("contrast_id", "user", "bad", "good"):
        assert not set(behaviour[column]) & set(twins[column])


def test_contrasts_hold_no_prompt_of_the_pairs() -> None:
    prompts = {
        row["prompt"][-1]["content"] for row in load_pairs(planted_pairs(256)).frame.iter_rows(named=True)
    }
    assert not prompts & {*planted_contrasts(16)["user"], *planted_contrasts(16, kind="twin")["user"]}


def test_ranked_keeps_the_order_given() -> None:
    assert ranked(["b", "a"]).ids == ["b", "a"]


def test_what_does_not_exist_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(TestingError, match=r"no tiny 'bert' model; choose one of llama, gpt2"):
        tiny_config("bert", vocab_size=10)  # type: ignore[arg-type]
    with pytest.raises(TestingError, match=r"no chat template 'jinja'; choose one of chatml"):
        tiny_checkpoint_folder("llama", tmp_path / "new", template="jinja")  # type: ignore[arg-type]
    assert not (tmp_path / "new").exists()
    for n in (0, 6, 260):
        with pytest.raises(TestingError, match=rf"n = {n}; give a positive multiple of 4, at most 256"):
            planted_pairs(n)
    with pytest.raises(TestingError, match="n = 17; give a number from 1 to 16"):
        planted_contrasts(17)
    with pytest.raises(TestingError, match="kind 'other'; choose one of behaviour, twin"):
        planted_contrasts(1, kind="other")  # type: ignore[arg-type]
