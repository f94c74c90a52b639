from __future__ import annotations

import copy
import dataclasses
import gc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nnsight
import polars as pl
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from probekit import _reading, _texts, _vector_set
from probekit import vectors as room
from probekit._texts import Lengths, Text
from probekit.checkpoints import Checkpoint, CheckpointError, Rendered, open_checkpoint
from probekit.packing import Batch, batches, rows
from probekit.pairs import PairSet, load_pairs
from probekit.ranking import average_precision, rank
from probekit.store import StoreError, StoreKey, VectorStore
from probekit.testing import (
    ARCHS,
    CONTEXT,
    Arch,
    planted_contrasts,
    planted_pairs,
    tiny_checkpoint,
    tiny_checkpoint_folder,
    tiny_tokenizer,
)
from probekit.vectors import (
    VectorError,
    VectorSet,
    agreement,
    behaviour_vectors,
    block_out,
    by_prompt,
    check_lengths,
    pair_vectors,
    pool,
    probe_dtype,
    response_means,
    twin_vectors,
)

LAYERS = (0, 1, 2)


@contextmanager
def counted(checkpoint: Checkpoint, block: int = 0) -> Iterator[list[tuple[int, ...]]]:
    """The shapes that enter a block, by a plain hook (nnsight stops a model before later hooks on an
    output)."""
    shapes: list[tuple[int, ...]] = []
    module = checkpoint.hf.get_submodule(f"{checkpoint.blocks_path}.{block}")
    hook = module.register_forward_pre_hook(lambda _module, inputs: shapes.append(tuple(inputs[0].shape)))
    yield shapes
    hook.remove()


def oracle(checkpoint: Checkpoint, text: Rendered, layers: tuple[int, ...] = LAYERS) -> torch.Tensor:
    """The reply means of one text, alone and unpadded, from transformers' own hidden states: (layers,
    width)."""
    with torch.no_grad():
        hidden = checkpoint.hf(torch.tensor([text.ids]), output_hidden_states=True).hidden_states
    return torch.stack([hidden[layer + 1][0, text.start : text.stop].float().mean(dim=0) for layer in layers])


def texts(checkpoint: Checkpoint, n: int = 12) -> list[Rendered]:
    rows = load_pairs(planted_pairs(n)).frame.iter_rows(named=True)
    return [checkpoint.render(row["prompt"], row[side]) for row in rows for side in ("chosen", "rejected")]


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return tiny_checkpoint()


@pytest.fixture(scope="module")
def pairs() -> PairSet:
    return load_pairs(planted_pairs(16))


# ---------------------------------------------------------------- what nnsight reads


@pytest.mark.parametrize("arch", ARCHS)
def test_block_outputs_are_the_hidden_states_of_transformers(arch: Arch) -> None:
    # hidden_states[0] is the embeddings, so block i is hidden_states[i + 1]; the last entry is after the
    # final norm.
    checkpoint = tiny_checkpoint(arch)
    ids = torch.randint(3, 300, (3, 40), generator=torch.manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 20:] = mask[2, 33:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": torch.arange(40).expand(3, 40)}
    with torch.no_grad():
        hidden = checkpoint.hf(**inputs, output_hidden_states=True).hidden_states
        with checkpoint.model.trace(inputs, use_cache=False):
            read = nnsight.save([block_out(block) for block in checkpoint.blocks])
    assert len(read) == len(hidden) - 1 == checkpoint.n_blocks
    for block in range(checkpoint.n_blocks - 1):
        assert torch.equal(read[block], hidden[block + 1]), block
    assert not torch.equal(read[-1], hidden[-1])
    final_norm = checkpoint.hf.transformer.ln_f if arch == "gpt2" else checkpoint.hf.model.norm
    with torch.no_grad():
        assert torch.equal(final_norm(read[-1]), hidden[-1])


def test_a_blocks_output_is_told_apart_from_a_tuple_with_it() -> None:
    hidden = torch.rand(2, 3, 4)
    assert block_out(SimpleNamespace(output=hidden)) is hidden
    assert block_out(SimpleNamespace(output=(hidden, None))) is hidden


@pytest.mark.parametrize("arch", ARCHS)
def test_means_in_padded_batches_equal_each_text_alone(arch: Arch) -> None:
    checkpoint = tiny_checkpoint(arch)
    some = texts(checkpoint)
    expected = torch.stack([oracle(checkpoint, text) for text in some])
    means = response_means(checkpoint, some, layers=LAYERS)
    assert means.dtype == torch.float32
    assert len({text.stop for text in some}) > 3  # or nothing is padded
    torch.testing.assert_close(means, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("arch", ARCHS)
def test_a_shared_prompt_is_read_as_if_each_reply_stood_there_alone(arch: Arch) -> None:
    # longer than the sliding window of gemma3, whose blocks need masks of their own
    checkpoint = tiny_checkpoint(arch)
    prompts = [{"role": "user", "content": f"Write {i} words about a river. " * 3} for i in range(4)]
    replies = ["The river runs slowly. " * 4, "No.", "A river is water that goes on and on. " * 2]
    some = [checkpoint.render([prompt], reply) for prompt in prompts for reply in replies]
    window = checkpoint.hf.config.get_text_config().to_dict().get("sliding_window") or 0
    assert min(text.start for text in some) > window
    with counted(checkpoint) as shapes:
        means = response_means(checkpoint, some, layers=LAYERS)
    assert sum(rows for rows, *_ in shapes[-1:]) == len(prompts)
    expected = torch.stack([oracle(checkpoint, text) for text in some])
    assert float((means - expected).norm() / expected.norm()) <= 1e-4
    assert float(((means - expected).norm(dim=2) / expected.norm(dim=2)).max()) <= 1e-4


def test_where_a_prompt_cannot_be_shared_each_reply_has_its_own_and_it_is_said_so(tmp_path: Path) -> None:
    from transformers import BloomConfig, BloomForCausalLM

    tokenizer = tiny_tokenizer()
    config = BloomConfig(vocab_size=len(tokenizer), hidden_size=32, n_layer=3, n_head=4, seq_length=256)
    config.max_position_embeddings = 256
    torch.manual_seed(0)
    checkpoint = Checkpoint("bloom", BloomForCausalLM(config).eval().requires_grad_(False), tokenizer)
    some = texts(checkpoint, 4)
    with pytest.warns(UserWarning, match=r"bloom: .*; every reply is read with its own prompt"):
        means = response_means(checkpoint, some, layers=(0, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        assert torch.equal(response_means(checkpoint, some, layers=(0, 2)), means)
    with torch.no_grad():
        hidden = checkpoint.hf(torch.tensor([some[0].ids]), output_hidden_states=True).hidden_states[1]
    torch.testing.assert_close(
        means[0, 0], hidden[0, some[0].start : some[0].stop].mean(0), rtol=1e-4, atol=1e-5
    )


def test_a_batch_that_does_not_fit_the_memory_is_halved_and_the_rest_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoint, sizes, trace = dataclasses.replace(tiny_checkpoint()), [], _reading.trace

    def small(checkpoint: Checkpoint, batch: Batch, **kwargs: Any) -> torch.Tensor:
        sizes.append(batch.ids.numel())
        if batch.ids.numel() > 300:
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes.")
        return trace(checkpoint, batch, **kwargs)

    some = texts(checkpoint)
    expected = response_means(checkpoint, some, layers=LAYERS)
    monkeypatch.setattr(_reading, "trace", small)
    with pytest.warns(UserWarning, match="tokens did not fit the memory; going on with"):
        means = response_means(checkpoint, some, layers=LAYERS, token_budget=10**6)
    torch.testing.assert_close(means, expected, rtol=1e-4, atol=1e-5)
    assert sizes[0] > 300 >= sizes[-1]
    monkeypatch.setattr(_reading, "trace", lambda *_, **__: (_ for _ in ()).throw(MemoryError()))
    alone = some[:1]
    with pytest.raises(VectorError, match=r"a single row of \d+ tokens does not fit the memory\. Free some"):
        response_means(checkpoint, alone, layers=LAYERS)


def test_replies_that_fit_only_one_by_one_are_read_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, trace = dataclasses.replace(tiny_checkpoint()), _reading.trace

    def small(checkpoint: Checkpoint, batch: Batch, **kwargs: Any) -> torch.Tensor:
        if batch.ids.shape[1] > 50:
            raise MemoryError
        return trace(checkpoint, batch, **kwargs)

    prompt, ids = tuple(range(5, 25)), [tuple(range(5 + one, 25 + one)) for one in range(3)]
    some = [Rendered((*prompt, *reply), 20, 40) for reply in ids]
    expected = response_means(checkpoint, some, layers=LAYERS)
    monkeypatch.setattr(_reading, "trace", small)
    means = response_means(checkpoint, some, layers=LAYERS)
    torch.testing.assert_close(means, expected, rtol=1e-4, atol=1e-5)


def test_the_budget_is_taken_from_the_memory_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for free in (10**12, 10**6, 10**4, 0):
        monkeypatch.setattr(_reading, "free_memory", lambda device, free=free: free)
        found.append(_reading.memory_budget(dataclasses.replace(tiny_checkpoint())))
    assert found[0] == _reading.TOKENS["cpu"] > found[1] > found[2] >= found[3] == 1
    assert all(one.bit_count() == 1 for one in found)


def test_a_budget_once_found_stays_and_only_gets_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = dataclasses.replace(tiny_checkpoint())
    assert _reading.memory_budget(checkpoint, most=100) == 100
    first = _reading.memory_budget(checkpoint)
    monkeypatch.setattr(_reading, "free_memory", lambda device: 0)
    assert _reading.memory_budget(checkpoint) == first
    checkpoint.token_budget = 50  # as after a pass that did not fit
    assert _reading.memory_budget(checkpoint, most=100) == 50


def test_means_do_not_depend_on_the_token_budget(checkpoint: Checkpoint) -> None:
    some = texts(checkpoint)
    alone, together = (response_means(checkpoint, some, layers=LAYERS, token_budget=n) for n in (1, 10**6))
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-4)


def test_layers_come_in_the_order_asked_for(checkpoint: Checkpoint) -> None:
    some = texts(checkpoint)
    assert torch.equal(
        response_means(checkpoint, some, layers=(2, 0)),
        response_means(checkpoint, some, layers=(0, 2)).flip(1),
    )


def test_the_model_stops_after_the_last_layer_read(checkpoint: Checkpoint) -> None:
    with counted(checkpoint, 1) as read, counted(checkpoint, 2) as beyond:
        response_means(checkpoint, texts(checkpoint), layers=(0, 1))
    assert read
    assert beyond == []


def test_equal_texts_are_encoded_once(checkpoint: Checkpoint) -> None:
    some = texts(checkpoint, 4)
    response_means(checkpoint, some, layers=(0,))  # the first time, it is tried whether prompts can be shared
    with counted(checkpoint) as once:
        response_means(checkpoint, some, layers=(0,))
    with counted(checkpoint) as thrice:
        means = response_means(checkpoint, some * 3, layers=(0,))
    assert thrice == once
    assert torch.equal(means[: len(some)], means[-len(some) :])


def test_nothing_after_the_reply_is_read(checkpoint: Checkpoint) -> None:
    text = texts(checkpoint)[0]
    longer = Rendered((*text.ids, 2, 200), text.start, text.stop)
    assert torch.equal(*(response_means(checkpoint, [one], layers=LAYERS) for one in (text, longer)))


def test_a_model_in_bfloat16_is_averaged_in_float32(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint_folder("llama", tmp_path), dtype="bfloat16")
    text = texts(checkpoint)[0]
    means = response_means(checkpoint, [text], layers=LAYERS)
    assert means.dtype == torch.float32
    torch.testing.assert_close(means[0], oracle(checkpoint, text), rtol=1e-5, atol=1e-5)


def test_no_graph_is_kept(checkpoint: Checkpoint) -> None:
    checkpoint.hf.requires_grad_(True)
    means = response_means(checkpoint, texts(checkpoint)[:2], layers=(0,))
    checkpoint.hf.requires_grad_(False)
    assert not means.requires_grad


def test_no_texts_give_no_rows(checkpoint: Checkpoint) -> None:
    assert response_means(checkpoint, [], layers=LAYERS).shape == (0, 3, 32)


@pytest.mark.parametrize("layers", [(4,), (-1,), (1, 1), ()])
def test_layers_that_cannot_be_read_are_refused(checkpoint: Checkpoint, layers: tuple[int, ...]) -> None:
    with pytest.raises(
        VectorError, match="give different block indices from 0 to 3, where i is the output of block i"
    ):
        response_means(checkpoint, [], layers=layers)


# ---------------------------------------------------------------- pair vectors


@pytest.mark.parametrize("arch", ARCHS)
def test_a_pair_vector_is_chosen_minus_rejected(arch: Arch, pairs: PairSet) -> None:
    checkpoint = tiny_checkpoint(arch)
    read = pair_vectors(checkpoint, pairs, layers=LAYERS)
    assert (read.ids, read.layers, read.kind, read.fingerprint) == (
        *(pairs.ids, LAYERS, "pair"),
        checkpoint.fingerprint,
    )
    for row, values in zip(pairs.frame.iter_rows(named=True), read.values, strict=True):
        chosen, rejected = (
            oracle(checkpoint, checkpoint.render(row["prompt"], row[side])) for side in ("chosen", "rejected")
        )
        torch.testing.assert_close(values, chosen - rejected, rtol=1e-3, atol=1e-4)


def test_swapping_the_replies_turns_the_vector_round(checkpoint: Checkpoint) -> None:
    rows = planted_pairs(8)
    swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    one, other = (pair_vectors(checkpoint, load_pairs(some), layers=LAYERS) for some in (rows, swapped))
    torch.testing.assert_close(one.values, -other.values, rtol=1e-4, atol=1e-4)


def test_rows_follow_the_order_of_the_pairs(checkpoint: Checkpoint, pairs: PairSet) -> None:
    backward = pair_vectors(checkpoint, pairs.select(pairs.ids[::-1]), layers=LAYERS)
    assert backward.ids == pairs.ids[::-1]
    torch.testing.assert_close(backward.values.flip(0), pair_vectors(checkpoint, pairs, layers=LAYERS).values)


def test_without_the_chat_template_prompt_and_reply_are_read_bare(
    checkpoint: Checkpoint, pairs: PairSet
) -> None:
    bare, chat = (pair_vectors(checkpoint, pairs, layers=LAYERS, chat=chat) for chat in (False, True))
    assert (bare.chat, chat.chat) == (False, True)
    row = pairs.frame.row(0, named=True)
    prompt, replies = row["prompt"][-1]["content"], (row["chosen"], row["rejected"])
    before, *after = (tuple(checkpoint.tokenizer(text).input_ids) for text in (prompt, *replies))
    chosen, rejected = (
        oracle(checkpoint, Rendered(before + one, len(before), len(before + one))) for one in after
    )
    torch.testing.assert_close(bare.values[0], chosen - rejected, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(bare.values, chat.values, atol=1e-2)


def test_a_tokenizer_without_a_chat_template_can_still_be_read_bare(tmp_path: Path, pairs: PairSet) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint_folder("llama", tmp_path, template="none"))
    assert len(pair_vectors(checkpoint, pairs, layers=(0,), chat=False)) == len(pairs)
    with pytest.raises(CheckpointError, match="no chat template"):
        pair_vectors(checkpoint, pairs, layers=(0,))


def test_no_pairs_are_an_error(checkpoint: Checkpoint, pairs: PairSet) -> None:
    with pytest.raises(VectorError, match="no pairs to read"):
        pair_vectors(checkpoint, pairs.select([]), layers=(0,))


# ---------------------------------------------------------------- what does not fit


def long_pairs() -> PairSet:
    long = "word " * CONTEXT
    return load_pairs(
        [
            {"prompt": "Hi?", "chosen": "Yes.", "rejected": "No."},
            {"prompt": "Hi?", "chosen": long, "rejected": "No."},
            {"prompt": long, "chosen": "Yes.", "rejected": "No."},
        ]
    )


def test_every_pair_that_does_not_fit_is_listed_before_anything_is_read(checkpoint: Checkpoint) -> None:
    fits, reply, prompt = long_pairs().ids
    with counted(checkpoint) as shapes, pytest.raises(VectorError) as caught:
        pair_vectors(checkpoint, long_pairs(), layers=(0,))
    message = str(caught.value)
    assert shapes == []
    assert message.startswith(f"2 texts do not fit the context of {CONTEXT} tokens")
    assert f"the prompt of pair {reply} with its chosen reply has" in message
    assert f"the prompt of pair {prompt} alone has" in message
    assert fits not in message
    with pytest.raises(VectorError, match="2 texts do not fit"):
        check_lengths(checkpoint, long_pairs())
    check_lengths(checkpoint, long_pairs().select([fits]))


def test_a_reply_that_just_fits_is_read(checkpoint: Checkpoint) -> None:
    text = Rendered(tuple([5] * CONTEXT), 1, CONTEXT)
    assert response_means(checkpoint, [text], layers=(0,)).shape == (1, 1, 32)
    with pytest.raises(VectorError, match=f"text 0 has {CONTEXT + 1} tokens"):
        response_means(checkpoint, [Rendered(tuple([5] * (CONTEXT + 1)), 1, CONTEXT + 1)], layers=(0,))


def test_activations_that_are_not_finite_name_the_pairs_and_are_not_stored(tmp_path: Path) -> None:
    pairs = load_pairs(planted_pairs(36))
    checkpoint = open_checkpoint(tiny_checkpoint_folder("llama", tmp_path / "model"))
    rare = (
        set(checkpoint.tokenizer("line 8").input_ids) - set(checkpoint.tokenizer("line 7").input_ids)
    ).pop()
    checkpoint.hf.model.embed_tokens.weight.data[rare] = float("nan")
    expected = {
        row["pair_id"]
        for row in pairs.frame.iter_rows(named=True)
        if "8" in str(row["prompt"]) + row["chosen"]
    }
    store = VectorStore(tmp_path / "store")
    with pytest.raises(
        VectorError, match=r"of 36 vectors are not finite \(NaN or infinite\): pair"
    ) as caught:
        pair_vectors(checkpoint, pairs, layers=(1,), store=store)
    assert {one for one in pairs.ids if one in str(caught.value)} == expected != set()
    assert not (tmp_path / "store").exists()
    with pytest.raises(VectorError, match=r"1 of 2 vectors are not finite .*: text 1\. "):
        response_means(checkpoint, [Rendered((5, 6), 1, 2), Rendered((5, rare), 1, 2)], layers=(1,))


# ---------------------------------------------------------------- behaviour vectors


def test_a_behaviour_vector_is_bad_minus_good_through_m0(checkpoint: Checkpoint) -> None:
    contrasts = planted_contrasts(4)
    read = behaviour_vectors(checkpoint, contrasts, layers=LAYERS)
    assert (read.kind, read.ids, read.other) == ("behaviour", contrasts["contrast_id"].to_list(), None)
    assert read.prompt_ids == contrasts["prompt_id"].to_list()
    for row, values in zip(contrasts.iter_rows(named=True), read.values, strict=True):
        prompt = [{"role": "user", "content": row["user"]}]
        bad, good = (oracle(checkpoint, checkpoint.render(prompt, row[side])) for side in ("bad", "good"))
        torch.testing.assert_close(values, bad - good, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("chat", [True, False])
def test_a_prompt_vector_is_the_mean_over_the_prompt_without_its_first_token(
    checkpoint: Checkpoint, chat: bool
) -> None:
    asked = load_pairs(planted_pairs(8))
    found = room.prompt_vectors(checkpoint, asked, layers=[0, 2], chat=chat)
    assert (found.ids, found.kind, found.chat) == (asked.ids, "prompt", chat)
    row = asked.frame.row(2, named=True)
    text = checkpoint.render(row["prompt"], row["chosen"], chat=chat)
    with torch.no_grad():
        states = checkpoint.hf(
            torch.tensor([text.ids[: text.start]]), output_hidden_states=True
        ).hidden_states
    for place, layer in enumerate((0, 2)):
        torch.testing.assert_close(found.values[2, place], states[layer + 1][0, 1:].mean(dim=0))


def test_a_prompt_vector_does_not_depend_on_the_replies(checkpoint: Checkpoint) -> None:
    contrasts = planted_contrasts(4)
    other = contrasts.with_columns(bad=pl.lit("Another one, and longer."), good=pl.lit("No."))
    read = [room.prompt_vectors(checkpoint, one, layers=[1]) for one in (contrasts, other)]
    assert read[0].ids == contrasts["contrast_id"].to_list()
    torch.testing.assert_close(read[0].values, read[1].values)


def test_cross_reading_reads_the_bad_side_through_the_other_checkpoint(checkpoint: Checkpoint) -> None:
    other, contrasts = tiny_checkpoint("llama", seed=1), planted_contrasts(4)
    read = behaviour_vectors(checkpoint, contrasts, layers=LAYERS, other=other)
    assert (read.fingerprint, read.other) == (checkpoint.fingerprint, other.fingerprint)
    for row, values in zip(contrasts.iter_rows(named=True), read.values, strict=True):
        prompt = [{"role": "user", "content": row["user"]}]
        bad = oracle(other, other.render(prompt, row["bad"]))
        good = oracle(checkpoint, checkpoint.render(prompt, row["good"]))
        torch.testing.assert_close(values, bad - good, rtol=1e-3, atol=1e-4)


def test_cross_reading_through_the_same_checkpoint_changes_nothing(checkpoint: Checkpoint) -> None:
    contrasts = planted_contrasts(4)
    plain, cross = (
        behaviour_vectors(checkpoint, contrasts, layers=LAYERS, other=one) for one in (None, checkpoint)
    )
    torch.testing.assert_close(plain.values, cross.values)
    assert agreement(plain, cross)["cosine"].to_list() == pytest.approx([1, 1, 1])


def test_twin_vectors_are_read_as_behaviour_vectors_and_say_what_they_are(checkpoint: Checkpoint) -> None:
    contrasts = planted_contrasts(4, kind="twin")
    twins = twin_vectors(checkpoint, contrasts, layers=LAYERS)
    assert twins.kind == "twin"
    assert torch.equal(twins.values, behaviour_vectors(checkpoint, contrasts, layers=LAYERS).values)


def test_models_of_another_shape_are_not_read_against_each_other(checkpoint: Checkpoint) -> None:
    wide = SimpleNamespace(name="wide", width=64, n_blocks=4)
    with pytest.raises(VectorError, match=r"wide has 4 blocks of width 64, .* only models of one shape"):
        behaviour_vectors(checkpoint, planted_contrasts(1), layers=(0,), other=wide)  # type: ignore[arg-type]


def test_all_problems_of_the_contrasts_are_listed(checkpoint: Checkpoint) -> None:
    frame = pl.DataFrame(
        {
            "contrast_id": ["a", "a", "b"],
            "prompt_id": ["p", "p", "q"],
            "user": ["Hi?", "Hi?", None],
            "bad": ["Yes.", " ", "Same."],
            "good": ["No.", "No.", "Same."],
        }
    )
    with pytest.raises(VectorError) as caught:
        behaviour_vectors(checkpoint, frame, layers=(0,))
    for problem in (
        "4 problems",
        "row 1 has ' ' in column bad",
        "row 2 has None in column user",
        "row 2 has equal replies",
        "contrast_id 'a' is there more than once",
    ):
        assert problem in str(caught.value)
    with pytest.raises(
        VectorError, match="no column user, good; they need contrast_id, prompt_id, user, bad, good"
    ):
        behaviour_vectors(checkpoint, frame.drop("user", "good"), layers=(0,))
    with pytest.raises(VectorError, match="no contrasts to read"):
        behaviour_vectors(checkpoint, frame.clear(), layers=(0,))


@pytest.mark.parametrize("control", [False, True])
def test_the_control_finds_what_the_plain_cosine_misses_among_look_alikes(control: bool) -> None:
    checkpoint, pairs = tiny_checkpoint("qwen2"), load_pairs(planted_pairs(64))
    behaviour = behaviour_vectors(checkpoint, planted_contrasts(16), layers=(2,))
    twins = twin_vectors(checkpoint, planted_contrasts(16, kind="twin"), layers=(2,))
    ranking = rank(
        behaviour,
        pair_vectors(checkpoint, pairs, layers=(2,)),
        layer=2,
        control=twins if control else None,
    )
    precision = average_precision(ranking, set(pairs.frame.filter(pl.col("source") == "planted")["pair_id"]))
    assert precision > 0.9 if control else precision < 0.7


# ---------------------------------------------------------------- with a store


def test_vectors_in_the_store_are_not_computed_again(
    checkpoint: Checkpoint, pairs: PairSet, tmp_path: Path
) -> None:
    first = pair_vectors(checkpoint, pairs, layers=LAYERS, store=VectorStore(tmp_path))
    with counted(checkpoint) as shapes:
        again = pair_vectors(
            checkpoint, pairs.select(pairs.ids[::-1]), layers=(2, 0), store=VectorStore(tmp_path)
        )
    assert shapes == []
    assert torch.equal(again.values, first.values.flip(0)[:, [2, 0]])
    torch.testing.assert_close(first.values, pair_vectors(checkpoint, pairs, layers=LAYERS).values)


def test_new_pairs_and_new_layers_compute_only_what_is_new(
    checkpoint: Checkpoint, pairs: PairSet, tmp_path: Path
) -> None:
    store = VectorStore(tmp_path)
    pair_vectors(checkpoint, pairs.select(pairs.ids[:10]), layers=(0,), store=store)
    with counted(checkpoint) as shapes:
        pair_vectors(checkpoint, pairs, layers=(0,), store=store)
    assert sum(rows for rows, *_ in shapes) == 6  # a row holds both replies
    with counted(checkpoint, 1) as read:
        both = pair_vectors(checkpoint, pairs, layers=(0, 1), store=store)
    assert sum(rows for rows, *_ in read) == 16
    with counted(checkpoint) as shapes:
        pair_vectors(checkpoint, pairs, layers=(1,), store=store)
    assert shapes == []
    torch.testing.assert_close(both.values, pair_vectors(checkpoint, pairs, layers=(0, 1)).values)


def test_a_behaviour_and_its_twins_can_share_the_store_of_the_pairs(
    checkpoint: Checkpoint, pairs: PairSet, tmp_path: Path
) -> None:
    store, contrasts = VectorStore(tmp_path), planted_contrasts(4)
    pair_vectors(checkpoint, pairs, layers=(0,), store=store)
    first = behaviour_vectors(checkpoint, contrasts, layers=(0,), store=store)
    renamed = contrasts.with_columns(contrast_id="new-" + pl.col("contrast_id"))
    with counted(checkpoint) as shapes:
        again = behaviour_vectors(checkpoint, renamed, layers=(0,), store=store)
    assert shapes == []
    assert torch.equal(first.values, again.values)
    assert again.ids[0].startswith("new-")


def test_vectors_of_another_model_or_setting_are_refused_by_field(
    checkpoint: Checkpoint, pairs: PairSet, tmp_path: Path
) -> None:
    store, other = VectorStore(tmp_path), tiny_checkpoint("llama", seed=1)
    pair_vectors(checkpoint, pairs, layers=(0,), store=store)
    with pytest.raises(
        StoreError,
        match=f"weights is '{checkpoint.hashes['weights']}' there, '{other.hashes['weights']}' now",
    ) as caught:
        pair_vectors(other, pairs, layers=(0,), chat=False, store=store)
    assert "chat is True there, False now" in str(caught.value)
    assert "tokenizer" not in str(caught.value)
    with pytest.raises(StoreError, match=f"other is '' there, '{other.fingerprint}' now"):
        behaviour_vectors(checkpoint, planted_contrasts(4), layers=(0,), other=other, store=store)


def test_an_interrupted_run_keeps_its_blocks_and_ends_with_the_same_bytes(
    checkpoint: Checkpoint, pairs: PairSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def files(folder: Path) -> dict[str, bytes]:
        return {
            str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
        }

    monkeypatch.setattr(_texts, "BLOCK_ROWS", 4)
    pair_vectors(checkpoint, pairs, layers=LAYERS, store=VectorStore(tmp_path / "undisturbed"))
    whole, calls = room._read, []

    def interrupted(*args: object, **options: object) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(*args, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(room, "_read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pair_vectors(checkpoint, pairs, layers=LAYERS, store=VectorStore(tmp_path / "resumed"))
    assert len(files(tmp_path / "resumed")) == 1 + 2
    with counted(checkpoint) as shapes:
        pair_vectors(checkpoint, pairs, layers=LAYERS, store=VectorStore(tmp_path / "resumed"))
    assert sum(rows for rows, *_ in shapes) == 8  # a row holds both replies
    assert files(tmp_path / "resumed") == files(tmp_path / "undisturbed")


def test_rows_of_a_store_say_where_a_vector_is_from_and_how_long_its_texts_are(
    checkpoint: Checkpoint, pairs: PairSet, tmp_path: Path
) -> None:
    vectors = pair_vectors(checkpoint, pairs, layers=LAYERS, store=VectorStore(tmp_path))
    behaviour_vectors(checkpoint, planted_contrasts(4), layers=LAYERS[:1], store=VectorStore(tmp_path))
    table = pl.read_parquet(tmp_path / "rows.parquet")
    assert len(table) == len(pairs) + 4
    asked = pairs.frame.join(table, on="pair_id", how="left", validate="1:1", maintain_order="left")
    for row, values in zip(asked.iter_rows(named=True), vectors.values, strict=True):
        texts = [checkpoint.render(row["prompt"], row[side]) for side in ("chosen", "rejected")]
        assert row["source"] == row["source_right"]
        assert row["prompt_tokens"] == texts[0].start
        assert [row["chosen_tokens"], row["rejected_tokens"]] == [text.stop - text.start for text in texts]
        assert not row["truncated"]
        norms = [row[f"norm.{layer}"] for layer in LAYERS]
        assert norms == pytest.approx(values.norm(dim=1).tolist())
    assert table[f"norm.{LAYERS[1]}"].null_count() == 4


@pytest.mark.parametrize("at_once", [1, 5, 10**6])
def test_mapped_vectors_are_those_in_memory(
    checkpoint: Checkpoint, pairs: PairSet, tmp_path: Path, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_vector_set, "CHUNK", at_once * checkpoint.width * len(LAYERS))
    store = VectorStore(tmp_path)
    whole = pair_vectors(checkpoint, pairs, layers=LAYERS, store=store)
    mapped = pair_vectors(checkpoint, pairs, layers=LAYERS, store=store, mapped="float32")
    assert torch.equal(mapped.values[:], whole.values)
    assert torch.equal(mapped.layer(LAYERS[1]), whole.layer(LAYERS[1]))
    assert torch.equal(mapped.select(pairs.ids[3:1:-1]).values, whole.values[[3, 2]])
    assert repr(mapped) == repr(whole)
    short = pair_vectors(checkpoint, pairs, layers=LAYERS, store=store, mapped="float16")
    torch.testing.assert_close(short.values[:], whole.values, rtol=1e-3, atol=1e-6)
    file = min((tmp_path / "mapped").glob("*.safetensors"), key=lambda path: path.stat().st_size)
    assert torch.equal(load_file(file)["values"].float(), short.values[:])  # a file as any other
    behaviour = behaviour_vectors(checkpoint, planted_contrasts(4), layers=LAYERS)
    twins = twin_vectors(checkpoint, planted_contrasts(4, kind="twin"), layers=LAYERS)
    in_memory = dataclasses.replace(short, values=short.values[:])
    for one, other in ((whole, mapped), (in_memory, short)):
        frames = [rank(behaviour, some, layer=LAYERS[0], control=twins).frame for some in (one, other)]
        assert frames[0].equals(frames[1])


def test_only_vectors_in_a_store_are_mapped(checkpoint: Checkpoint, pairs: PairSet) -> None:
    with pytest.raises(VectorError, match="Only vectors in a store can be mapped; give store= too"):
        pair_vectors(checkpoint, pairs, layers=LAYERS, mapped="float16")


def test_what_is_too_large_for_float16_is_named(tmp_path: Path) -> None:
    key = StoreKey("0", tokenizer="0", chat_template="", chat=False, dtype="float32")
    store = VectorStore(tmp_path)
    store.write(key, ["a", "b"], torch.tensor([[[1.0]], [[1e5]]]), layers=(0,))
    assert store.mapped(key, ["b"], layers=(0,))[:].item() == 1e5
    with pytest.raises(StoreError, match="The vector of b holds numbers too large for float16"):
        store.mapped(key, ["a", "b"], layers=(0,), dtype="float16")
    assert len(list((tmp_path / "mapped").glob("*.safetensors"))) == 1


def test_equal_texts_of_many_pairs_are_read_once(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_texts, "BLOCK_ROWS", 6)
    rows = [
        {"prompt": f"What is {i}?", "chosen": "It is a number.", "rejected": f"No, {k}."}
        for k in range(3)
        for i in range(8)
    ]
    read: list[int] = []
    trace = _reading.trace

    def counting(checkpoint: Checkpoint, batch: Batch, **kwargs: Any) -> torch.Tensor:
        read.append(len(batch.texts))
        return trace(checkpoint, batch, **kwargs)

    monkeypatch.setattr(_reading, "trace", counting)
    pair_vectors(checkpoint, load_pairs(rows), layers=(0,))
    assert sum(read) == 8 * 4  # one chosen and three rejected replies to each prompt


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 9)), max_size=40, unique=True), st.data())
def test_blocks_are_the_same_in_any_order_and_hold_prompts_together(
    rows: list[tuple[int, int]], data: st.DataObject
) -> None:
    texts = [
        Text(f"{p}-{n}", "", ("", ""), [{"role": "user", "content": str(p)}], ("", ""), None) for p, n in rows
    ]
    lengths = {text.id: Lengths(p, n, 1) for text, (p, n) in zip(texts, rows, strict=True)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_texts, "BLOCK_ROWS", 9)
        blocks = _texts.plan(texts, lengths)
        assert blocks == _texts.plan(data.draw(st.permutations(texts)), lengths)
    assert sorted(text.id for block in blocks for text in block) == sorted(lengths)
    assert all(0 < len(block) <= 9 for block in blocks) or not rows
    where = {(text.prompt[0]["content"], place) for place, block in enumerate(blocks) for text in block}
    assert len(where) == len({p for p, _ in rows})


@pytest.mark.parametrize("arch", ["llama", "gemma3"])
def test_a_remote_run_gives_the_same_vectors(arch: Arch, pairs: PairSet) -> None:
    checkpoint = tiny_checkpoint(arch)
    remote = dataclasses.replace(checkpoint, remote="local")
    assert torch.equal(
        pair_vectors(remote, pairs, layers=LAYERS).values,
        pair_vectors(checkpoint, pairs, layers=LAYERS).values,
    )


def test_memory_stays_flat_over_two_thousand_batches() -> None:
    checkpoint = tiny_checkpoint("gemma3")  # whose windows take masks of their own
    some = [next(batches(rows(texts(checkpoint)[:n]), token_budget=10**6)) for n in range(1, 9)]
    process = psutil.Process()
    held = []
    for turn in range(2_200):
        _reading.trace(checkpoint, some[turn % len(some)], layers=(0,))
        if turn in (199, 2_199):
            gc.collect()
            held.append((process.memory_info().rss, len(gc.get_objects())))
    assert held[1][0] - held[0][0] < 8 * 2**20
    assert held[1][1] - held[0][1] < 1_000


@pytest.mark.parametrize("arch", ARCHS)
def test_in_bfloat16_a_shared_prompt_differs_by_rounding_and_a_wrong_mask_by_more(
    arch: Arch, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tiny_checkpoint(arch)
    checkpoint = dataclasses.replace(whole, hf=copy.deepcopy(whole.hf).bfloat16())
    assert _reading.shares_prompts(checkpoint)
    wrong = dataclasses.replace(checkpoint)
    mask = Batch.mask
    leaking = lambda batch, dtype, window=None: mask(  # noqa: E731
        dataclasses.replace(batch, segments=batch.segments.clamp(max=1)), dtype, window=window
    )
    monkeypatch.setattr(Batch, "mask", leaking)
    with pytest.warns(UserWarning, match="means differ by"):
        assert not _reading.shares_prompts(wrong)


def test_an_architecture_with_windows_of_another_kind_is_read_reply_by_reply(pairs: PairSet) -> None:
    whole = tiny_checkpoint()
    odd = dataclasses.replace(whole, hf=copy.deepcopy(whole.hf))
    odd.hf.config.window_size = 256  # as GPT-Neo's, by row index
    with pytest.warns(UserWarning, match=r"it has windows of its own kind \(window_size in its config\)"):
        values = pair_vectors(odd, pairs, layers=(0,)).values
    torch.testing.assert_close(values, pair_vectors(whole, pairs, layers=(0,)).values, rtol=1e-4, atol=1e-5)


def test_memory_that_runs_out_while_a_model_is_tried_is_no_reason_to_read_it_reply_by_reply(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoint = dataclasses.replace(tiny_checkpoint())
    monkeypatch.setattr(_reading, "trace", lambda *_, **__: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(MemoryError):
        _reading.shares_prompts(checkpoint)
    assert checkpoint.shares_prompts is None


def test_behaviours_read_together_share_their_texts(checkpoint: Checkpoint) -> None:
    one = planted_contrasts(4)
    other = one.with_columns(contrast_id="other-" + pl.col("contrast_id"), bad=pl.col("bad") + " Again.")
    with counted(checkpoint) as alone:
        behaviour_vectors(checkpoint, one, layers=(0,))
    with counted(checkpoint) as together:
        behaviour_vectors(checkpoint, pl.concat([one, other]), layers=(0,))
    assert sum(rows for rows, *_ in together) == sum(rows for rows, *_ in alone) == 4


def test_the_dtype_is_the_faster_one_only_where_it_agrees(
    checkpoint: Checkpoint, pairs: PairSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = probe_dtype(checkpoint, pairs, layers=LAYERS, n=8, tolerance=2.0)
    assert found.dtype == ("bfloat16" if found.speedup > 1 else "float32")
    assert 0.9 < found.agreement < 1
    assert probe_dtype(checkpoint, pairs, layers=LAYERS, n=8, tolerance=0).dtype == "float32"
    half = dataclasses.replace(checkpoint, hf=copy.deepcopy(checkpoint.hf).bfloat16())
    with pytest.raises(VectorError, match=r"is in torch\.bfloat16; open it in float32"):
        probe_dtype(half, pairs, layers=LAYERS)


# ---------------------------------------------------------------- vector sets and means over them


def make(values: list[list[float]], **fields: object) -> VectorSet:
    rows = torch.tensor(values).unsqueeze(1)
    return VectorSet([f"id{row}" for row in range(len(values))], (5,), rows, "0123", **fields)  # type: ignore[arg-type]


def test_a_set_says_which_length_does_not_fit_what() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"ids": ["a"]}, "There are 1 ids, but values has room for 2"),
        ({"layers": (1, 2)}, "There are 2 layers, but values has room for 1"),
        ({"prompt_ids": ["p"]}, "There are 1 prompt_ids, but values has room for 2"),
        ({"weights": [1.0] * 3}, "There are 3 weights, but values has room for 2"),
        ({"ids": ["a", "a"]}, "These ids of a VectorSet are there more than once: a"),
        ({"weights": [1.0, 0.0]}, "finite numbers above 0"),
        ({"values": torch.ones(2, 3)}, r"not torch.float32 of shape \(2, 3\)"),
        ({"values": torch.ones(2, 1, 3).double()}, "not torch.float64"),
        ({"values": torch.tensor([[[1.0]], [[torch.inf]]])}, r"1 of 2 vectors are not finite .*: b\."),
    ]
    for wrong, message in cases:
        fields = {
            "ids": ["a", "b"],
            "layers": (1,),
            "values": torch.ones(2, 1, 3),
            "fingerprint": "0",
            **wrong,
        }
        with pytest.raises(VectorError, match=message):
            VectorSet(**fields)


def test_a_set_is_shown_without_its_values() -> None:
    large = VectorSet([str(row) for row in range(5000)], (1,), torch.rand(5000, 1, 64), "0123")
    assert repr(large) == "VectorSet(5000 pair vectors, layers (1,), width 64, checkpoint 0123, chat on)"


def test_a_layer_is_asked_for_by_block_index() -> None:
    values = torch.rand(2, 2, 3)
    vectors = VectorSet(["a", "b"], (7, 3), values, "0123")
    assert torch.equal(vectors.layer(3), values[:, 1])
    with pytest.raises(VectorError, match=r"Layer 0 was not read; these vectors have the layers \(7, 3\)"):
        vectors.layer(0)


def test_selected_rows_keep_what_belongs_to_them() -> None:
    vectors = make(
        [[1.0], [2.0], [3.0]], prompt_ids=["p", "q", "r"], weights=[1.0, 2.0, 3.0], kind="behaviour"
    )
    some = vectors.select(["id2", "id0"])
    assert (some.ids, some.prompt_ids, some.weights, some.kind) == (
        ["id2", "id0"],
        ["r", "p"],
        [3.0, 1.0],
        "behaviour",
    )
    assert some.layer(5).flatten().tolist() == [3, 1]
    with pytest.raises(VectorError, match="1 ids are not in this VectorSet: new"):
        vectors.select(["id0", "new"])


VALUES = st.lists(st.floats(-100, 100, width=32), min_size=12, max_size=12)


@settings(deadline=None)
@given(VALUES)
def test_both_means_agree_where_every_prompt_has_as_many_rows(flat: list[float]) -> None:
    rows = torch.tensor(flat).reshape(6, 2).tolist()
    vectors = make(rows, prompt_ids=["p", "q", "r"] * 2)
    torch.testing.assert_close(pool(vectors), pool(vectors, how="mean"), rtol=1e-5, atol=1e-4)


@settings(deadline=None)
@given(VALUES, st.lists(st.integers(1, 4), min_size=6, max_size=6))
def test_a_weight_counts_a_row_that_many_times(flat: list[float], times: list[int]) -> None:
    rows = torch.tensor(flat).reshape(6, 2).tolist()
    repeated = [row for row, count in zip(rows, times, strict=True) for _ in range(count)]
    weighted = pool(make(rows, weights=[float(count) for count in times]))
    torch.testing.assert_close(weighted, pool(make(repeated)), rtol=1e-5, atol=1e-4)


def test_a_prompt_with_more_rows_weighs_more_only_when_pooled() -> None:
    vectors = make([[0.0], [0.0], [3.0]], prompt_ids=["p", "p", "q"])
    assert pool(vectors).tolist() == [[1.0]]
    assert pool(vectors, how="mean").tolist() == [[1.5]]
    assert by_prompt(vectors).ids == ["p", "q"]
    assert by_prompt(vectors).layer(5).tolist() == [[0.0], [3.0]]


def test_what_cannot_be_pooled_is_refused() -> None:
    with pytest.raises(VectorError, match="pair vectors have no prompt ids"):
        pool(make([[1.0]]), how="mean")
    with pytest.raises(VectorError, match="no pooling 'bank'"):
        pool(make([[1.0]]), how="bank")  # type: ignore[arg-type]
    with pytest.raises(VectorError, match="no vectors to pool"):
        pool(VectorSet([], (5,), torch.empty(0, 1, 3), "0123"))


def test_agreement_is_the_cosine_of_the_means_layer_by_layer() -> None:
    first = VectorSet(["a", "b"], (3, 4), torch.tensor([[[2.0, 0], [1, 1]], [[0, 0], [1, 1]]]), "0123")
    second = VectorSet(["c"], (3, 4), torch.tensor([[[1.0, 1], [-1, -1]]]), "4567")
    assert agreement(first, second)["layer"].to_list() == [3, 4]
    assert agreement(first, second)["cosine"].to_list() == pytest.approx([0.5**0.5, -1])
    with pytest.raises(VectorError, match="can be compared layer by layer if these agree"):
        agreement(first, make([[1.0, 2.0]]))
