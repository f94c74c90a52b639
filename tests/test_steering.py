from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
import torch

from probekit import steering as room
from probekit._reading import block_out, put_block_out
from probekit._wilson import wilson_interval
from probekit.checkpoints import Checkpoint
from probekit.judges import verdict
from probekit.rollouts import RolloutError, draw, sample
from probekit.steering import (
    BY_LAYER_COLUMNS,
    SWEEP_COLUMNS,
    SteeringError,
    by_layer,
    layer_sweep,
    random_directions,
    steer,
)
from probekit.testing import ARCHS, Arch, planted_contrasts, tiny_checkpoint
from probekit.vectors import VectorError, VectorSet, behaviour_vectors, pool

ASKED = ["Hi?", "How do I bake bread at home, and which river is the longest in the world?", "the", "Why 🦊?"]
PROMPTS = pl.DataFrame({"prompt_id": ["a", "b", "c", "d"], "user": ASKED})
NEW = 8
STOPS = (2,)


def direction(seed: int = 0) -> torch.Tensor:
    return torch.randn(32, generator=torch.Generator().manual_seed(seed))


def by_hand(checkpoint: Checkpoint, user: str, added: torch.Tensor, layer: int) -> list[int]:
    """The greedy tokens of one prompt with a plain hook: the prompt alone, no padding, no cache and so the
    whole text in every pass, of which all from the prompt's last token on is moved."""
    ids = checkpoint.tokenizer(checkpoint.prompt_text([{"role": "user", "content": user}]))["input_ids"]

    def move(_module: Any, _inputs: Any, output: Any) -> Any:
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        hidden[:, len(ids) - 1 :] += added
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    new: list[int] = []
    hook = checkpoint.hf.get_submodule(f"{checkpoint.blocks_path}.{layer}").register_forward_hook(move)
    while len(new) < NEW and not (new and new[-1] in STOPS):
        with torch.no_grad():
            new.append(int(checkpoint.hf(torch.tensor([ids + new])).logits[0, -1].argmax()))
    hook.remove()
    return new


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return tiny_checkpoint()


@pytest.fixture(scope="module")
def vectors(checkpoint: Checkpoint) -> VectorSet:
    return behaviour_vectors(checkpoint, planted_contrasts(4), layers=[3, 1, 0])


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, torch.Tensor]]:
    """Layer and what is added, of every batch that is steered; nothing is generated but end tokens."""
    added: list[tuple[int, torch.Tensor]] = []

    def steered(checkpoint: Checkpoint, inputs: dict[str, Any], block: Any, vector: torch.Tensor) -> Any:
        added.append((int(block.path.rpartition(".")[2]), vector))
        return torch.nn.functional.pad(inputs["input_ids"], (0, 1), value=STOPS[0])

    monkeypatch.setattr(room, "_steered", steered)
    return added


# ---------------------------------------------------------------- steer


@pytest.mark.parametrize("arch", ARCHS)
def test_steered_replies_in_padded_batches_are_those_of_a_plain_hook_on_each_prompt_alone(
    arch: Arch, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, tokens, padding = tiny_checkpoint(arch), [], []
    generated = room._steered

    def kept(checkpoint: Checkpoint, inputs: dict[str, Any], *rest: Any) -> torch.Tensor:
        out = generated(checkpoint, inputs, *rest)
        width = inputs["input_ids"].shape[1]
        prompts = checkpoint.tokenizer.batch_decode(inputs["input_ids"], skip_special_tokens=False)
        padding.append(int((inputs["attention_mask"] == 0).sum()))
        tokens.extend(zip(prompts, out[:, width:].tolist(), strict=True))
        return out

    monkeypatch.setattr(room, "_steered", kept)
    unlike = 0
    for layer in (1, 3):
        tokens.clear()
        replies = steer(checkpoint, PROMPTS, direction(), layer=layer, max_new_tokens=NEW, token_budget=1000)
        for user, reply, truncated in zip(ASKED, replies["reply"], replies["truncated"], strict=True):
            wanted = by_hand(checkpoint, user, 2.0 * direction(), layer)
            (new,) = (new for prompt, new in tokens if f"user\n{user}<" in prompt)
            assert new[: len(wanted)] == wanted
            assert set(new[len(wanted) :]) <= {checkpoint.tokenizer.pad_token_id}
            assert reply == checkpoint.tokenizer.decode(wanted, skip_special_tokens=True)
            assert truncated == (wanted[-1] not in STOPS)
            unlike += wanted != by_hand(checkpoint, user, torch.zeros(32), layer)
    assert sum(padding)  # or nothing was tested
    assert unlike  # nor then


@pytest.mark.parametrize("arch", ARCHS)
def test_strength_0_gives_what_sample_gives(arch: Arch) -> None:
    checkpoint = tiny_checkpoint(arch)
    plain = sample(checkpoint, PROMPTS, temperature=0, max_new_tokens=NEW)
    steered = steer(checkpoint, PROMPTS, direction(), layer=2, strength=0, max_new_tokens=NEW)
    assert steered.equals(plain)
    assert steered.schema == plain.schema


def test_a_checkpoint_is_as_before_once_it_was_steered(checkpoint: Checkpoint) -> None:
    before = sample(checkpoint, PROMPTS, temperature=0, max_new_tokens=NEW)
    steer(checkpoint, PROMPTS, direction(), layer=0, strength=50, max_new_tokens=NEW)
    assert sample(checkpoint, PROMPTS, temperature=0, max_new_tokens=NEW).equals(before)


def test_a_huge_vector_changes_every_reply(checkpoint: Checkpoint) -> None:
    plain = sample(checkpoint, PROMPTS, temperature=0, max_new_tokens=NEW)
    steered = steer(checkpoint, PROMPTS, direction(), layer=2, strength=1000, max_new_tokens=NEW)
    assert (steered["reply"] != plain["reply"]).all()
    turned = steer(checkpoint, PROMPTS, direction(), layer=2, strength=-1000, max_new_tokens=NEW)
    assert (steered["reply"] != turned["reply"]).all()


def test_replies_stand_in_the_prompts_order_whatever_the_budget(checkpoint: Checkpoint) -> None:
    together, alone = (
        steer(checkpoint, PROMPTS, direction(), layer=1, max_new_tokens=NEW, token_budget=budget)
        for budget in (1000, 1)
    )
    assert together["user"].to_list() == ASKED
    assert together.equals(alone)
    assert steer(checkpoint, PROMPTS[::-1], direction(), layer=1, max_new_tokens=NEW).equals(together[::-1])


def test_the_vector_itself_times_the_strength_is_added_in_the_models_dtype(
    checkpoint: Checkpoint, given: list[tuple[int, torch.Tensor]]
) -> None:
    steer(checkpoint, PROMPTS, direction(), layer=3, strength=-0.5, token_budget=1000)
    assert {layer for layer, _ in given} == {3}
    assert all(torch.equal(added, -0.5 * direction()) for _, added in given)
    half = dataclasses.replace(
        checkpoint, hf=SimpleNamespace(dtype=torch.bfloat16, config=checkpoint.hf.config)
    )
    assert room._product(half, direction().double(), 1.0).dtype == torch.bfloat16


def test_the_end_of_a_generation_is_no_warning(checkpoint: Checkpoint) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        steer(checkpoint, PROMPTS[:1], direction(), layer=1, max_new_tokens=2)
    assert [str(one.message) for one in seen if "the loop asked for" in str(one.message)] == []


def test_a_blocks_output_is_put_back_in_the_form_that_it_had() -> None:
    hidden = torch.rand(2, 3, 4)
    bare, with_more = (
        SimpleNamespace(output=torch.rand(2, 3, 4)),
        SimpleNamespace(output=(torch.rand(2), "more")),
    )
    for block in (bare, with_more):
        put_block_out(block, hidden)
        assert block_out(block) is hidden
    assert bare.output is hidden
    assert with_more.output == (hidden, "more")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"layer": 4}, VectorError, r"layers = \[4\] cannot be read .* different block indices from 0 to 3"),
        ({"layer": -1}, VectorError, r"layers = \[-1\] cannot be read"),
        ({"vector": torch.ones(31)}, SteeringError, r"shape \(31,\), but the residual stream .* width 32"),
        ({"vector": torch.ones(1, 32)}, SteeringError, r"shape \(1, 32\), but .* Give one row of `pool`"),
        ({"vector": direction() / 0}, SteeringError, r"not finite \(NaN or infinite\) in torch.float32"),
        ({"strength": float("nan")}, SteeringError, "with strength nan and a vector of norm"),
        ({"strength": 1e39}, SteeringError, "Give finite numbers, or smaller ones"),
        ({"prompts": PROMPTS.clear()}, SteeringError, "no prompts to steer on; give at least one"),
        ({"prompts": PROMPTS.drop("user")}, RolloutError, "need a column `user`"),
        ({"max_new_tokens": 0}, RolloutError, "max_new_tokens is 0; it must be at least 1"),
    ],
)
def test_what_cannot_be_steered_is_refused(
    change: dict[str, Any],
    error: type[Exception],
    message: str,
    checkpoint: Checkpoint,
    given: list[tuple[int, torch.Tensor]],
) -> None:
    arguments = {"prompts": PROMPTS, "vector": direction(), "layer": 1, **change}
    with pytest.raises(error, match=message):
        steer(checkpoint, **arguments)
    assert given == []


def test_a_checkpoint_that_is_read_remotely_is_refused(checkpoint: Checkpoint) -> None:
    remote = dataclasses.replace(checkpoint, remote=True)
    with pytest.raises(SteeringError, match="is read remotely, but replies are sampled here; open it"):
        steer(remote, PROMPTS, direction(), layer=1)


# ---------------------------------------------------------------- layer_sweep


def test_a_sweep_counts_the_verdicts_of_what_steer_and_sample_say(
    checkpoint: Checkpoint, vectors: VectorSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made_up(reply: str) -> str:  # for what a random model says is nearly always judged complied
        return ("refused", "complied", "unparsable")[len(reply) % 3]

    monkeypatch.setattr("probekit.judges.verdict", made_up)
    swept = layer_sweep(checkpoint, PROMPTS, vectors, layers=[3, 0], strength=3.0, max_new_tokens=NEW)
    assert dict(swept.schema) == SWEEP_COLUMNS
    assert list(swept.select("layer", "direction").iter_rows()) == [
        (None, "none"),
        *((layer, direction) for layer in (3, 0) for direction in ("behaviour", "random")),
    ]
    expected = [sample(checkpoint, PROMPTS, temperature=0, max_new_tokens=NEW)]
    for layer, pooled in ((3, pool(vectors)[0]), (0, pool(vectors)[2])):
        random = random_directions(checkpoint, seed=0)[layer]
        for vector in (pooled, random * pooled.norm() / random.norm()):
            replies = steer(checkpoint, PROMPTS, vector, layer=layer, strength=3.0, max_new_tokens=NEW)
            expected.append(replies)
    for row, replies in zip(swept.iter_rows(named=True), expected, strict=True):
        assert row["n"] == 4
        for name in ("refused", "complied", "unparsable"):
            count = [made_up(reply) for reply in replies["reply"]].count(name)
            assert (row[name], row[f"{name}_low"], row[f"{name}_high"]) == (
                *(count / 4,),
                *wilson_interval(count, 4),
            )
    assert swept["complied"].n_unique() > 1 or swept["refused"].n_unique() > 1


def test_the_random_direction_has_the_norm_of_the_behaviour_vector(
    checkpoint: Checkpoint, vectors: VectorSet, given: list[tuple[int, torch.Tensor]]
) -> None:
    swept = layer_sweep(checkpoint, PROMPTS[:1], vectors, layers=[0, 3], strength=-1.5, max_new_tokens=1)
    assert [layer for layer, _ in given] == [0, 0, 3, 3]
    for (_, behaviour), (_, random), layer in zip(given[::2], given[1::2], (0, 3), strict=True):
        pooled = pool(vectors)[vectors.layers.index(layer)]
        assert torch.equal(behaviour, -1.5 * pooled)
        assert float(random.norm()) == pytest.approx(1.5 * float(pooled.norm()), rel=1e-5)
        assert abs(float(torch.cosine_similarity(behaviour, random, dim=0))) < 0.7
    norms = [float(added.norm()) for _, added in given]
    assert swept["norm"].to_list() == pytest.approx([0.0, *norms], rel=1e-5)


def test_the_seed_decides_the_random_directions_and_other_layers_do_not(
    checkpoint: Checkpoint, vectors: VectorSet, given: list[tuple[int, torch.Tensor]]
) -> None:
    state = torch.random.get_rng_state()
    drawn = []
    for layers, seed in (([3], 1), ([3], 1), ([0, 1, 3], 1), ([3], 2)):
        given.clear()
        layer_sweep(checkpoint, PROMPTS[:1], vectors, layers=layers, seed=seed, max_new_tokens=1)
        drawn.append(given[-1][1])
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[3])
    assert torch.equal(torch.random.get_rng_state(), state)
    directions = random_directions(checkpoint, seed=1)
    assert len({tuple(one.tolist()) for one in directions}) == checkpoint.n_blocks


def test_shares_are_of_all_replies_the_unparsable_ones_too() -> None:
    replies = pl.DataFrame(
        {"reply": ["Sure, here it is.", "I'm sorry, I can't.", "...", "", "Yes of course."]}
    )
    assert [verdict(reply) for reply in replies["reply"]].count("unparsable") == 2
    n, *shares = room._shares(replies)
    assert (n, shares[0::3]) == (5, [1 / 5, 2 / 5, 2 / 5])
    assert shares[1:3] == [*wilson_interval(1, 5)]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"layers": [7]}, VectorError, r"layers = \[7\] cannot be read"),
        ({"layers": []}, VectorError, r"layers = \[\] cannot be read"),
        ({"layers": [1, 1]}, VectorError, "give different block indices"),
        ({"layers": [2, 3]}, SteeringError, r"layers \[2\] were not read; these vectors have \(3, 1, 0\)"),
        ({"strength": float("inf")}, SteeringError, "not finite"),
        ({"prompts": PROMPTS.clear()}, SteeringError, "no prompts to steer on"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_the_first_reply(
    change: dict[str, Any],
    error: type[Exception],
    message: str,
    checkpoint: Checkpoint,
    vectors: VectorSet,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(room, "draw", None)
    monkeypatch.setattr(room, "sample", None)
    arguments = {"prompts": PROMPTS, "layers": [1], **change}
    with pytest.raises(error, match=message):
        layer_sweep(checkpoint, vectors=vectors, **arguments)


def test_vectors_of_another_checkpoint_are_refused(vectors: VectorSet) -> None:
    with pytest.raises(SteeringError, match=r"of checkpoint \w+, and .* Give the checkpoint that"):
        layer_sweep(tiny_checkpoint(seed=1), PROMPTS, vectors, layers=[1])


# ---- one row a layer


def swept(*rows: tuple[int | None, str, float]) -> pl.DataFrame:
    columns = {"layer": pl.Int64, "direction": pl.String, "complied": pl.Float64}
    return pl.DataFrame(rows, columns, orient="row").with_columns(
        complied_low=pl.col("complied") - 0.1, complied_high=pl.col("complied") + 0.1, unparsable=0.25
    )


def test_by_layer_puts_both_directions_and_the_quality_in_one_row() -> None:
    sweep = swept((None, "none", 0.0), (9, "behaviour", 0.6), (9, "random", 0.2), (4, "behaviour", 0.3))
    quality = pl.DataFrame({"layer": [9, 12], "average_precision": [0.8, 0.5]})
    table = by_layer(sweep, quality)
    assert table.schema == BY_LAYER_COLUMNS
    assert table.select("layer", "behaviour", "random", "average_precision").rows() == [
        (4, 0.3, None, None),
        (9, 0.6, 0.2, 0.8),
        (12, None, None, 0.5),
    ]
    assert by_layer(sweep)["average_precision"].null_count() == 2


def test_by_layer_refuses_frames_that_are_no_sweep() -> None:
    sweep = swept((4, "behaviour", 0.3))
    with pytest.raises(SteeringError, match="The sweep lacks the columns direction"):
        by_layer(sweep.drop("direction"))
    with pytest.raises(SteeringError, match="The quality lacks the columns average_precision"):
        by_layer(sweep, sweep)
    with pytest.raises(SteeringError, match="Layer 4 stands there 2 times for behaviour"):
        by_layer(pl.concat([sweep, sweep]))


def test_a_sweep_samples_nothing_that_its_cache_holds(
    checkpoint: Checkpoint, vectors: VectorSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swept(layers: list[int], **more: Any) -> pl.DataFrame:
        return layer_sweep(
            checkpoint, PROMPTS, vectors, layers=layers, max_new_tokens=2, cache=tmp_path, **more
        )

    first = swept([1])
    assert first.equals(layer_sweep(checkpoint, PROMPTS, vectors, layers=[1], max_new_tokens=2))
    batches: list[str] = []

    def counted(*args: Any, **kwargs: Any) -> pl.DataFrame:
        batches.append(kwargs["label"])
        return draw(*args, **kwargs)

    monkeypatch.setattr(room, "draw", counted)
    assert swept([1]).equals(first)
    assert batches == []
    swept([1, 0])
    assert batches == 2 * ["steering block 0 of"]
    swept([1], strength=3.0)
    assert batches[2:] == 2 * ["steering block 1 of"]
