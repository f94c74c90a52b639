from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nnsight
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probekit import vectors as room
from probekit.checkpoints import Checkpoint, CheckpointError, Rendered, open_checkpoint
from probekit.pairs import PairSet, load_pairs
from probekit.ranking import average_precision, rank
from probekit.store import StoreError, VectorStore
from probekit.testing import (
    ARCHS,
    CONTEXT,
    Arch,
    planted_contrasts,
    planted_pairs,
    tiny_checkpoint,
    tiny_checkpoint_folder,
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
    with pytest.raises(VectorError, match=r"not finite .* text 1"):
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
    assert sum(rows for rows, *_ in shapes) == 2 * 6
    with counted(checkpoint, 1) as read:
        both = pair_vectors(checkpoint, pairs, layers=(0, 1), store=store)
    assert sum(rows for rows, *_ in read) == 2 * 16
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
        StoreError, match=f"fingerprint is '{checkpoint.fingerprint}' there, '{other.fingerprint}' now"
    ) as caught:
        pair_vectors(other, pairs, layers=(0,), chat=False, store=store)
    assert "chat is True there, False now" in str(caught.value)
    with pytest.raises(StoreError, match=f"other is '' there, '{other.fingerprint}' now"):
        behaviour_vectors(checkpoint, planted_contrasts(4), layers=(0,), other=other, store=store)


def test_an_interrupted_run_keeps_its_blocks_and_ends_with_the_same_bytes(
    checkpoint: Checkpoint, pairs: PairSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def files(folder: Path) -> dict[str, bytes]:
        return {
            str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
        }

    monkeypatch.setattr(room, "BLOCK_ROWS", 4)
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
    assert sum(rows for rows, *_ in shapes) == 2 * 8
    assert files(tmp_path / "resumed") == files(tmp_path / "undisturbed")


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
