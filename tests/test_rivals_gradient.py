"""Gradient tracing: exact gradients, the projection, LESS, TracIn, and scores from bergson."""

from __future__ import annotations

import copy
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from probekit._texts import contrast_texts, pair_texts
from probekit.checkpoints import Checkpoint
from probekit.pairs import PairSet, load_pairs
from probekit.ranking import average_precision
from probekit.rivals import RivalError, _pair_gradients, _projection, gradient
from probekit.rivals._adapters import Adapters, untrained, warmed_up
from probekit.rivals._pair_gradients import Loss, example, log_probs, metered, pair_gradients
from probekit.testing import Arch, planted_contrasts, planted_pairs, tiny_checkpoint
from probekit.training import Recipe, Shared, adapted_maps, train_dpo

RECIPE = Recipe(first_block=2, rank=4, alpha=8, batch_size=8, learning_rate=1e-2, sft_weight=0.5)
SMALL = {"recipe": RECIPE, "projection": 256}


@pytest.fixture(scope="module")
def pairs() -> PairSet:
    return load_pairs(planted_pairs(32))


@pytest.fixture(scope="module")
def queries() -> pl.DataFrame:
    return planted_contrasts(4)


@pytest.fixture(scope="module")
def truth(pairs: PairSet) -> set[str]:
    return set(pairs.frame.filter(pl.col("source") == "planted")["pair_id"])


def shaken(checkpoint: Checkpoint, *, seed: int = 0) -> Adapters:
    """Adapters as a training might leave them: no factor is zero."""
    new = untrained(checkpoint, RECIPE, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    factors = {
        name: (a, 0.1 * torch.randn(b.shape, generator=generator)) for name, (a, b) in new.factors.items()
    }
    return Adapters(factors, new.scale, new.rate, torch.rand(new.size, generator=generator) + 0.1)


def gradients(
    checkpoint: Checkpoint, adapters: Adapters, frame: PairSet | pl.DataFrame, loss: Loss = "recipe"
) -> torch.Tensor:
    texts = pair_texts(frame) if isinstance(frame, PairSet) else contrast_texts(frame)
    examples = [example(checkpoint, text) for text in texts]
    shared = Shared(checkpoint, first_block=RECIPE.first_block)
    found = torch.full((len(examples), adapters.size), torch.nan)
    for places, rows in pair_gradients(shared, adapters, examples, recipe=RECIPE, loss=loss, label=""):
        found[places] = rows
    return found


def by_autograd(checkpoint: Checkpoint, adapters: Adapters, pairs: PairSet, loss: Loss) -> list[torch.Tensor]:
    """Each pair's gradient as torch gives it, on PEFT's adapter, one text at a time and nothing padded."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=RECIPE.rank,
        lora_alpha=RECIPE.alpha,
        target_modules=adapted_maps(RECIPE, checkpoint),
        fan_in_fan_out="gpt2" in checkpoint.hf.config.model_type,
    )
    model = get_peft_model(copy.deepcopy(checkpoint.hf), config)
    parameters = []
    for name, (a, b) in adapters.factors.items():
        module = model.base_model.model.get_submodule(name)
        for one, value in ((module.lora_A.default, a), (module.lora_B.default, b)):
            one.weight.data.copy_(value)
            parameters.append(one.weight)

    def log_prob(prompt: tuple[int, ...], reply: tuple[int, ...]) -> torch.Tensor:
        ids = torch.tensor([prompt + reply])
        of_tokens = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])
        return of_tokens[len(prompt) - 1 :].sum()

    found = []
    for text in pair_texts(pairs):
        one = example(checkpoint, text)
        replies = (one.chosen, one.rejected)
        policy = [log_prob(one.prompt, reply) for reply in replies]
        with model.disable_adapter(), torch.no_grad():
            reference = [log_prob(one.prompt, reply) for reply in replies]
        ratios = [ours - theirs for ours, theirs in zip(policy, reference, strict=True)]
        beta = RECIPE.beta
        if loss == "dpo-norm":
            ratios, beta = [ratios[0] / len(one.chosen), ratios[1] / len(one.rejected)], 5.0
        value = -torch.nn.functional.logsigmoid(beta * (ratios[0] - ratios[1]))
        if loss == "recipe":
            value = value - RECIPE.sft_weight * policy[0] / len(one.chosen)
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)]))
    return found


@pytest.mark.parametrize(
    ("arch", "loss"), [("llama", "recipe"), ("llama", "dpo-norm"), ("gpt2", "dpo"), ("gemma3", "dpo")]
)
def test_a_pairs_gradient_in_a_batch_is_autograds_of_that_pair_alone(
    arch: Arch, loss: Loss, pairs: PairSet
) -> None:
    checkpoint, some = tiny_checkpoint(arch), pairs.select(pairs.ids[:6])
    found = gradients(checkpoint, shaken(checkpoint), some, loss)
    for row, alone in zip(found, by_autograd(checkpoint, shaken(checkpoint), some, loss), strict=True):
        assert (row - alone).norm() <= 1e-5 * alone.norm()


def test_at_the_untrained_model_only_b_has_a_gradient_and_it_is_autograds(pairs: PairSet) -> None:
    checkpoint, some = tiny_checkpoint(), pairs.select(pairs.ids[:3])
    adapters = untrained(checkpoint, RECIPE, seed=0)
    found = gradients(checkpoint, adapters, some)
    for row, alone in zip(found, by_autograd(checkpoint, adapters, some, "recipe"), strict=True):
        assert (row - alone).norm() <= 1e-5 * alone.norm()
    at = 0
    for a, b in adapters.factors.values():
        assert not found[:, at : at + a.numel()].any()
        assert found[:, at + a.numel() : at + a.numel() + b.numel()].any()
        at += a.numel() + b.numel()


def test_the_model_is_afterwards_what_it_was(pairs: PairSet, queries: pl.DataFrame) -> None:
    checkpoint = tiny_checkpoint()
    before = {name: value.clone() for name, value in checkpoint.hf.state_dict().items()}
    gradient.tracin(checkpoint, pairs.select(pairs.ids[:8]), queries, epochs=1, **SMALL)
    assert checkpoint.hf.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in checkpoint.hf.state_dict().items())
    modules = list(checkpoint.hf.modules())
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in modules)
    assert not any(parameter.requires_grad for parameter in checkpoint.hf.parameters())
    assert checkpoint.hf.config._attn_implementation == "sdpa"


@pytest.fixture(scope="module")
def warm(pairs: PairSet) -> tuple[Shared, list[Adapters]]:
    shared = Shared(tiny_checkpoint(), first_block=RECIPE.first_block)
    return shared, warmed_up(shared, pairs, RECIPE, epochs=2, share=1.0, seed=0)


def test_the_warm_ups_last_moment_is_what_train_dpo_writes(
    warm: tuple[Shared, list[Adapters]], pairs: PairSet, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    from probekit import arms

    order = arms.order(pairs, arms.baseline(), seed=0, steps=8, batch_size=8)
    shared, moments = warm
    folder = train_dpo(shared, pairs, tmp_path / "dpo", order=order, recipe=RECIPE, seed=0)
    written = load_file(folder / "adapter_model.safetensors")
    assert len(moments) == 2
    assert len(written) == 2 * len(moments[1].factors)
    for name, (a, b) in moments[1].factors.items():
        assert torch.equal(written[f"base_model.model.{name}.lora_A.weight"], a)
        assert torch.equal(written[f"base_model.model.{name}.lora_B.weight"], b)
        assert not torch.equal(moments[0].factors[name][1], b)
    log = json.loads((folder / "training_log.json").read_text())
    rates = [entry["learning_rate"] for entry in log]
    assert [one.rate for one in moments] == pytest.approx([sum(rates[:4]) / 4, sum(rates[4:]) / 4])


def test_the_warm_ups_texts_and_reference_are_the_trainings_own(
    warm: tuple[Shared, list[Adapters]], pairs: PairSet
) -> None:
    shared, _ = warm
    examples = [example(shared.checkpoint, text) for text in pair_texts(pairs)]
    keys = {(one.prompt, reply) for one in examples for reply in (one.chosen, one.rejected)}
    assert keys == shared.logps.keys()
    with torch.no_grad():
        found = log_probs(shared.checkpoint.hf, examples)
    known = [[shared.logps[one.prompt, r] for r in (one.chosen, one.rejected)] for one in examples]
    assert torch.allclose(found, torch.tensor(known), rtol=1e-5)


def test_after_one_step_adams_second_moment_is_the_square_of_that_steps_gradient(pairs: PairSet) -> None:
    some, recipe = pairs.select(pairs.ids[:8]), Recipe(first_block=2, rank=4, alpha=8, batch_size=8)
    checkpoint = tiny_checkpoint()
    (moment,) = warmed_up(Shared(checkpoint, first_block=2), some, recipe, epochs=1, share=1.0, seed=0)
    # at B = 0 the first step leaves A as it was drawn
    began = {name: (a, torch.zeros_like(b)) for name, (a, b) in moment.factors.items()}
    mean = gradients(checkpoint, Adapters(began, moment.scale, 0.0), some, "dpo").mean(dim=0)
    assert moment.second_moment is not None
    found = moment.second_moment.sqrt()
    clipped = mean.abs() * min(1.0, float(1 / mean.norm()))  # as the trainer clips gradients
    assert (found - clipped).norm() <= 1e-4 * clipped.norm()


def test_a_share_of_the_pairs_is_a_shorter_warm_up(pairs: PairSet) -> None:
    shared = Shared(tiny_checkpoint(), first_block=RECIPE.first_block)
    with metered(shared.checkpoint.hf) as meter:
        warmed_up(shared, pairs, RECIPE, epochs=1, share=0.25, seed=0)
    assert len(shared.logps) == 2 * 8
    assert 0 < meter.backward <= 2 * 8 * max(len(prompt) + len(reply) for prompt, reply in shared.logps)


def test_less_is_the_mean_cosine_of_preconditioned_gradients_with_the_queries_plain_ones(
    warm: tuple[Shared, list[Adapters]],
    pairs: PairSet,
    queries: pl.DataFrame,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared, moments = warm
    monkeypatch.setattr(gradient, "warmed_up", lambda *args, **kwargs: moments)
    ranking = gradient.less(shared.checkpoint, pairs, queries, recipe=RECIPE, projection=None)
    wanted = torch.zeros(len(pairs))
    for one in moments:
        assert one.second_moment is not None
        trained = gradients(shared.checkpoint, one, pairs) / (one.second_moment.sqrt() + 1e-8)
        asked = gradients(shared.checkpoint, one, queries)
        cosines = torch.nn.functional.cosine_similarity(trained[:, None], asked[None], dim=-1)
        wanted += cosines.mean(dim=1) / 2
    scores = dict(ranking.frame.select("pair_id", "score").iter_rows())
    assert [scores[one] for one in pairs.ids] == pytest.approx(wanted.tolist(), abs=1e-6)
    last = gradient.less(shared.checkpoint, pairs, queries, recipe=RECIPE, projection=None, taken="last")
    scores = dict(last.frame.select("pair_id", "score").iter_rows())
    assert [scores[one] for one in pairs.ids] == pytest.approx(cosines.mean(dim=1).tolist(), abs=1e-6)


def test_a_tracin_score_says_how_far_a_step_on_the_pair_lowers_the_queries_loss(
    pairs: PairSet, queries: pl.DataFrame
) -> None:
    checkpoint, some = tiny_checkpoint(), pairs.select(pairs.ids[:4])
    ranking = gradient.tracin(checkpoint, some, queries, recipe=RECIPE, epochs=0, projection=None)
    scores = dict(ranking.frame.select("pair_id", "score").iter_rows())
    adapters = untrained(checkpoint, RECIPE, seed=0)
    asked = [example(checkpoint, text) for text in contrast_texts(queries)]
    tokens = torch.tensor([[len(one.chosen), len(one.rejected)] for one in asked])
    with torch.no_grad():
        reference = log_probs(checkpoint.hf, asked)

    def loss_after(step: torch.Tensor) -> float:
        factors, at = {}, 0
        for name, (a, b) in adapters.factors.items():
            at += a.numel()
            factors[name] = (a, b - step[at : at + b.numel()].view_as(b))
            at += b.numel()
        moved = Adapters(factors, adapters.scale, adapters.rate)
        with torch.no_grad(), _pair_gradients._adapted(checkpoint.hf, moved, len(asked)):
            policy = log_probs(checkpoint.hf, asked)
        losses = _pair_gradients.pair_losses(policy, reference, tokens, recipe=RECIPE, loss="recipe")
        return float(losses.double().mean())

    for one, row in zip(some.ids, gradients(checkpoint, adapters, some), strict=True):
        size = 0.02 / float(row.norm())
        lowered = (loss_after(-size * row) - loss_after(size * row)) / (2 * size)
        assert scores[one] == pytest.approx(RECIPE.learning_rate * lowered, rel=0.02, abs=1e-6)


def test_queries_turned_round_turn_the_ranking_round(pairs: PairSet, queries: pl.DataFrame) -> None:
    turned = queries.rename({"bad": "good", "good": "bad"})
    options = {**SMALL, "epochs": 0, "loss": "dpo"}
    there, back = (gradient.tracin(tiny_checkpoint(), pairs, one, **options) for one in (queries, turned))
    negated = {one: -score for one, score in back.frame.select("pair_id", "score").iter_rows()}
    assert dict(there.frame.select("pair_id", "score").iter_rows()) == pytest.approx(negated)


def test_gradients_find_the_planted_cause(pairs: PairSet, queries: pl.DataFrame, truth: set[str]) -> None:
    less = gradient.less(tiny_checkpoint(), pairs, queries, epochs=1, **SMALL)
    tracin = gradient.tracin(tiny_checkpoint(), pairs, queries, epochs=1, **SMALL)
    assert average_precision(less, truth) > 0.75  # at random, 0.25
    assert average_precision(tracin, truth) > 0.75
    assert (less.method, tracin.method) == ("less", "tracin")
    assert less.frame["score"].abs().max() <= 1


def test_the_same_seed_gives_the_same_ranking(pairs: PairSet, queries: pl.DataFrame) -> None:
    some = pairs.select(pairs.ids[:8])
    first, again = (gradient.less(tiny_checkpoint(), some, queries, epochs=1, **SMALL) for _ in range(2))
    assert first.frame.equals(again.frame)


def test_cost_is_all_tokens_run_and_the_bytes_of_the_projections(
    pairs: PairSet, queries: pl.DataFrame
) -> None:
    checkpoint = tiny_checkpoint()
    ranking = gradient.tracin(checkpoint, pairs, queries, epochs=0, **SMALL)
    tokens = 0
    for texts in (pair_texts(pairs), contrast_texts(queries)):
        longest = sorted((example(checkpoint, text).longest for text in texts), reverse=True)
        tokens += sum(2 * len(longest[at : at + 8]) * longest[at] for at in range(0, len(longest), 8))
    assert ranking.cost is not None
    assert tuple(ranking.cost) == (tokens, tokens, 256 * 4 * len(pairs))
    warmed = gradient.tracin(checkpoint, pairs, queries, epochs=2, **SMALL)
    assert warmed.cost is not None
    # two checkpoints, two epochs of training and, forward only, a reference of every text
    assert warmed.cost.backward_tokens > 3.5 * tokens
    assert warmed.cost.forward_tokens > warmed.cost.backward_tokens + 0.8 * tokens
    assert warmed.cost.stored_bytes == 2 * ranking.cost.stored_bytes


def test_a_row_without_direction_scores_zero_and_is_marked(
    pairs: PairSet, queries: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poisoned(shared: Shared, adapters: Adapters, examples: list[object], **options: object):  # type: ignore[no-untyped-def]
        for places, rows in pair_gradients(shared, adapters, examples, **options):  # type: ignore[arg-type]
            for bad, value in ((0, torch.nan), (1, 0.0)):
                if len(examples) == len(pairs) and bad in places:
                    rows[places.index(bad)] = value
            yield places, rows

    monkeypatch.setattr(gradient, "pair_gradients", poisoned)
    ranking = gradient.less(tiny_checkpoint(), pairs, queries, epochs=0, **SMALL)
    marked = ranking.frame.filter("zero_norm")
    assert set(marked["pair_id"]) == set(pairs.ids[:2])
    assert marked["score"].to_list() == [0.0, 0.0]


def test_queries_without_any_gradient_are_an_error(pairs: PairSet, queries: pl.DataFrame) -> None:
    checkpoint = copy.deepcopy(tiny_checkpoint())
    checkpoint.hf.get_submodule("lm_head").weight.data.fill_(torch.nan)
    with pytest.raises(RivalError, match="None of the 4 queries has a gradient"):
        gradient.tracin(checkpoint, pairs, queries, epochs=0, **SMALL)


def test_the_projection_keeps_cosines_and_lengths() -> None:
    rows = torch.randn(12, 3000, generator=torch.Generator().manual_seed(0))
    rows[6:] += 2 * rows[:6]
    ((places, short),) = _projection.projected(iter([(list(range(12)), rows)]), 4096, seed=0)
    assert places == list(range(12))
    before, after = (
        torch.nn.functional.cosine_similarity(one[:, None], one[None], dim=-1) for one in (rows, short)
    )
    assert (before - after).abs().max() < 5 / 4096**0.5
    assert torch.allclose(short.norm(dim=1), rows.norm(dim=1), rtol=0.1)


def test_the_projection_depends_on_the_seed_and_not_on_lots_or_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = torch.randn(5, 700, generator=torch.Generator().manual_seed(0))
    parts = [([0, 1], rows[:2]), ([2, 3], rows[2:4]), ([4], rows[4:])]

    def found(seed: int) -> torch.Tensor:
        lots = list(_projection.projected(iter(parts), 64, seed=seed))
        assert [place for places, _ in lots for place in places] == [0, 1, 2, 3, 4]
        return torch.cat([some for _, some in lots])

    whole = found(3)
    monkeypatch.setattr(_projection, "GATHERED", 1)
    assert torch.allclose(found(3), whole, atol=1e-5)
    assert not torch.allclose(found(4), whole, atol=0.1)
    monkeypatch.setattr(_projection, "BLOCK", 64 * 100)  # seven blocks, of other signs each
    signs = [_projection._signs(100, 64, 3, block) for block in range(7)]
    assert torch.allclose(found(3), rows @ torch.cat(signs) / 8, atol=1e-4)
    assert all(one.abs().eq(1).all() and one.mean().abs() < 0.05 for one in signs)
    assert not any(torch.equal(one, other) for one, other in pairwise(signs))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "ipo"}, "no loss 'ipo'"),
        ({"projection": 0}, "projection = 0"),
        ({"epochs": -1}, "epochs = -1"),
        ({"share": 0.0}, "share = 0.0"),
        ({"taken": "first"}, "taken = 'first'"),
        ({"similarity": "euclid"}, "no similarity 'euclid'"),
    ],
)
def test_a_setting_out_of_range_is_an_error(
    pairs: PairSet, queries: pl.DataFrame, options: dict[str, object], message: str
) -> None:
    with pytest.raises(RivalError, match=message):
        gradient.less(tiny_checkpoint(), pairs, queries, **{**SMALL, **options})  # type: ignore[arg-type]


def test_queries_that_are_no_contrasts_and_texts_that_do_not_fit_are_errors(
    pairs: PairSet, queries: pl.DataFrame
) -> None:
    with pytest.raises(RivalError, match="no column good"):
        gradient.less(tiny_checkpoint(), pairs, queries.drop("good"), **SMALL)
    with pytest.raises(RivalError, match="There are no pairs"):
        gradient.less(tiny_checkpoint(), pairs.select([]), queries, **SMALL)
    long = queries.with_columns(bad=pl.lit("word " * 300))
    with pytest.raises(
        RivalError, match=r"contrast behaviour-0 has \d+ tokens, more than the context of 256"
    ):
        gradient.less(tiny_checkpoint(), pairs, long, **SMALL)


def write_bergson(
    folder: Path, scores: np.ndarray, *, kind: str = "float32", ends: list[int] | None = None
) -> Path:
    """A score folder laid out as bergson 2.5.1's `score_writer` does: (score_i, written_i) records."""
    width = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}[kind]
    pair = 1 << width.bit_length()  # the next power of two above width
    queries = scores.shape[1]
    size = -(-queries * pair // 8) * 8
    names = [name for i in range(queries) for name in (f"score_{i}", f"written_{i}")]
    offsets = [place for i in range(queries) for place in (i * pair, i * pair + width)]
    records = np.zeros((len(scores), size), dtype=np.uint8)
    for i in range(queries):
        column = np.ascontiguousarray(scores[:, i])
        raw = (
            (column.astype("<f4").view("<u4") >> 16).astype("<u2")
            if kind == "bfloat16"
            else column.astype(kind)
        )
        records[:, i * pair : i * pair + width] = raw.view(np.uint8).reshape(len(scores), width)
        records[:, i * pair + width] = 1
    folder.mkdir()
    records.tofile(folder / "scores.bin")
    layout = {"names": names, "formats": [kind, "bool"] * queries, "offsets": offsets, "itemsize": size}
    info = {
        "attribute_tokens": ends is not None,
        "num_items": len(scores) if ends is None else len(ends) - 1,
        "num_rows": len(scores),
        "num_scores": queries,
        "dtype": layout,
    }
    (folder / "info.json").write_text(json.dumps(info))
    if ends is not None:
        np.save(folder / "offsets.npy", np.array(ends))
    return folder


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32", "float64"])
def test_bergsons_scores_are_a_ranking_by_their_mean_over_queries(
    kind: str, pairs: PairSet, tmp_path: Path
) -> None:
    some = pairs.select(pairs.ids[:3])
    folder = write_bergson(tmp_path / "scores", np.array([[1.0, 2.0], [4.0, 0.5], [-1.0, 0.0]]), kind=kind)
    ranking = gradient.of_bergson(folder, some)
    assert ranking.ids == [some.ids[1], some.ids[0], some.ids[2]]
    assert ranking.frame["score"].to_list() == [2.25, 1.5, -0.5]
    turned = gradient.of_bergson(folder, some, higher_is_better=False)
    assert turned.ids == ranking.ids[::-1]


def test_bergsons_folder_is_what_numpy_reads_of_its_layout(tmp_path: Path) -> None:
    scores = np.array([[1.5, 2.0, 0.25], [4.0, 0.5, -8.0]])
    folder = write_bergson(tmp_path / "scores", scores)
    info = json.loads((folder / "info.json").read_text())
    table = np.memmap(folder / "scores.bin", dtype=info["dtype"], mode="r", shape=(info["num_rows"],))
    assert np.array_equal(np.stack([table[f"score_{i}"] for i in range(3)], axis=1), scores)
    assert all(table[f"written_{i}"].all() for i in range(3))


def test_bergsons_scores_of_both_replies_are_subtracted_and_tokens_summed(
    pairs: PairSet, tmp_path: Path
) -> None:
    some = pairs.select(pairs.ids[:2])
    chosen = write_bergson(tmp_path / "c", np.array([[1.0], [2.0], [3.0], [np.nan]]), ends=[0, 3, 4])
    rejected = write_bergson(tmp_path / "r", np.array([[10.0], [0.0]]))
    ranking = gradient.of_bergson(chosen, some, rejected=rejected)
    assert ranking.frame.select("pair_id", "score", "zero_norm").rows() == [
        (some.ids[1], 0.0, True),
        (some.ids[0], -4.0, False),
    ]
    two = write_bergson(tmp_path / "two", np.ones((2, 2)))
    with pytest.raises(RivalError, match=r"has 1 queries, .* has 2"):
        gradient.of_bergson(chosen, some, rejected=two)


def test_bergson_folders_that_cannot_be_used_are_errors(pairs: PairSet, tmp_path: Path) -> None:
    some = pairs.select(pairs.ids[:2])
    with pytest.raises(RivalError, match=r"no info\.json and scores\.bin"):
        gradient.of_bergson(tmp_path, some)
    folder = write_bergson(tmp_path / "scores", np.ones((2, 1)))
    with pytest.raises(RivalError, match="has 2 rows and 1 queries, for 3 pairs"):
        gradient.of_bergson(folder, pairs.select(pairs.ids[:3]))
    content = (folder / "scores.bin").read_bytes()
    (folder / "scores.bin").write_bytes(content[:4] + b"\0" + content[5:])
    with pytest.raises(RivalError, match=r"1 scores in .* were not written"):
        gradient.of_bergson(folder, some)
    (folder / "scores.bin").write_bytes(content[:-1])
    with pytest.raises(RivalError, match="has 15 bytes; 2 records of 8 bytes"):
        gradient.of_bergson(folder, some)
    (folder / "scores.bin").write_bytes(content)
    info = json.loads((folder / "info.json").read_text())
    for formats, offsets in ((["object", "bool"], [0, 4]), (["float32", "bool"], [6, 4])):
        changed = info["dtype"] | {"formats": formats, "offsets": offsets}
        (folder / "info.json").write_text(json.dumps(info | {"dtype": changed}))
        with pytest.raises(RivalError, match="has a score of type"):
            gradient.of_bergson(folder, some)
    (folder / "info.json").write_text(json.dumps({"num_items": 2}))
    with pytest.raises(RivalError, match="not as bergson 2 writes it"):
        gradient.of_bergson(folder, some)
    np.save(folder / "candidates.npy", np.arange(2))
    with pytest.raises(RivalError, match="candidates only"):
        gradient.of_bergson(folder, some)


def test_the_warm_up_leaves_no_hook_on_optimisers(warm: tuple[Shared, list[Adapters]]) -> None:
    from torch.optim import optimizer

    assert not optimizer._global_optimizer_post_hooks
