"""RepT: gradients are autograd's, signatures are what their formulas say, and similar pairs stand first."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any, get_args

import polars as pl
import pytest
import torch
from torch.nn.functional import cosine_similarity, cross_entropy, logsigmoid, normalize

from probekit import testing
from probekit._texts import Text, pair_texts
from probekit.checkpoints import Checkpoint, Rendered, open_checkpoint
from probekit.pairs import PairSet, load_pairs
from probekit.rivals import RivalError, rept
from probekit.rivals._rept_gradients import traced
from probekit.testing import ARCHS, Arch, planted_contrasts, planted_pairs, tiny_checkpoint
from probekit.tokens import SCHEMA
from probekit.vectors import VectorError

LAYER = 1
PAIRS = load_pairs(planted_pairs(8))
QUERIES = planted_contrasts(3)


def block(checkpoint: Checkpoint, layer: int) -> Any:
    return checkpoint.hf.get_submodule(f"{checkpoint.blocks_path}.{layer}")


def log_p(checkpoint: Checkpoint, text: Rendered) -> torch.Tensor:
    """The reply's log-probability by transformers alone, in the graph."""
    logits = checkpoint.hf(torch.tensor([text.ids])).logits[0, text.start - 1 : text.stop - 1]
    return -cross_entropy(logits.float(), torch.tensor(text.ids[text.start : text.stop]), reduction="sum")


def leaf(checkpoint: Checkpoint, text: Rendered, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The states after a block, as a leaf that a hook puts in its place, and the reply's log-probability."""
    kept: list[torch.Tensor] = []

    def hook(_: object, __: object, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        kept.append(hidden.detach().requires_grad_())
        return (kept[0], *output[1:]) if isinstance(output, tuple) else kept[0]

    handle = block(checkpoint, layer).register_forward_hook(hook)
    try:
        value = log_p(checkpoint, text)
    finally:
        handle.remove()
    return kept[0], value


def oracle(checkpoint: Checkpoint, text: Rendered, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """States, and autograd's gradients of the mean cross-entropy, at the positions that predict the reply."""
    hidden, value = leaf(checkpoint, text, layer)
    (found,) = torch.autograd.grad(-value / (text.stop - text.start), hidden)
    at = slice(text.start - 1, text.stop - 1)
    return hidden.detach()[0, at], found[0, at]


def rendered(checkpoint: Checkpoint, texts: list[Text], side: int = 0) -> list[Rendered]:
    return [checkpoint.render(text.prompt, text.replies[side]) for text in texts]


def reader(checkpoint: Checkpoint, **options: Any) -> rept._Reader:
    fields = {"join": "normalised", "loss": "sft", "reference": None, "beta": 0.1, "chat": True}
    return rept._Reader(checkpoint, LAYER, **(fields | options), token_budget=rept.TOKENS)


def of(ranking: Any) -> torch.Tensor:
    """Scores in the order of PAIRS."""
    frame = ranking.frame
    scores = dict(zip(frame["pair_id"], frame["score"], strict=True))
    return torch.tensor([scores[one] for one in PAIRS.ids]).double()


# ---- gradients


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("layer", [0, 3])
def test_states_and_gradients_of_padded_batches_are_those_of_each_text_by_autograd(
    arch: Arch, layer: int
) -> None:
    checkpoint = tiny_checkpoint(arch)
    texts = rendered(checkpoint, pair_texts(PAIRS)[:4]) + rendered(checkpoint, pair_texts(PAIRS)[:2], 1)
    found = list(traced(checkpoint, texts, layer=layer, token_budget=4 * max(text.stop for text in texts)))
    assert sorted(one.place for one in found) == list(range(6))
    for one in found:
        text = texts[one.place]
        states, gradients = oracle(checkpoint, text, layer)
        torch.testing.assert_close(one.states, states, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(-one.gradients / (text.stop - text.start), gradients, rtol=1e-3, atol=2e-6)
        assert one.log_p == pytest.approx(float(log_p(checkpoint, text)), rel=1e-4)


def test_weights_that_require_gradients_are_given_none() -> None:
    checkpoint = tiny_checkpoint()
    trained = Checkpoint("trained", copy.deepcopy(checkpoint.hf).requires_grad_(True), checkpoint.tokenizer)
    torch.testing.assert_close(
        of(rept.rank(trained, PAIRS, QUERIES, layer=LAYER)),
        of(rept.rank(checkpoint, PAIRS, QUERIES, layer=LAYER)),
    )
    assert all(weight.grad is None for weight in trained.hf.parameters())


def test_the_gradient_of_dpo_is_autograds_with_the_prompts_state_shared_by_both_replies(
    tmp_path: Path,
) -> None:
    m1, m0 = tiny_checkpoint(), tiny_checkpoint(seed=1)
    (text,) = pair_texts(PAIRS.select(PAIRS.ids[:1]))
    sides = [m1.render(text.prompt, reply) for reply in text.replies]
    shared = oracle(m1, sides[0], LAYER)[0][0].clone().requires_grad_()

    def hook(_: object, __: object, output: torch.Tensor) -> torch.Tensor:
        hidden = output.clone()
        hidden[0, sides[0].start - 1] = shared
        return hidden

    for reference in (None, m0):
        handle = block(m1, LAYER).register_forward_hook(hook)
        chosen, rejected = (log_p(m1, side) for side in sides)
        handle.remove()
        theirs = [log_p(reference or m1, side).detach() for side in sides]
        loss = -logsigmoid(0.3 * ((chosen - theirs[0]) - (rejected - theirs[1])))
        (expected,) = torch.autograd.grad(loss, shared)
        options = {"join": "raw", "loss": "dpo", "beta": 0.3, "reference": reference}
        _, found, _ = reader(m1, **options).parts([text])
        torch.testing.assert_close(found[0].float(), expected, rtol=1e-3, atol=1e-6)


# ---- signatures and scores


def test_each_join_is_the_cosine_of_what_its_name_says() -> None:
    checkpoint = tiny_checkpoint()
    ours = [oracle(checkpoint, text, LAYER) for text in rendered(checkpoint, pair_texts(PAIRS))]
    asked = [
        oracle(checkpoint, checkpoint.render([{"role": "user", "content": user}], bad), LAYER)
        for user, bad in QUERIES.select("user", "bad").iter_rows()
    ]
    parts = [
        tuple(torch.stack([one[part][0] for one in some]).double() for part in (0, 1))
        for some in (ours, asked)
    ]

    def expected(*joined: torch.Tensor) -> torch.Tensor:
        return cosine_similarity(joined[0][:, None], joined[1][None], dim=2).mean(dim=1)

    by_join = {
        "hidden": expected(*(states for states, _ in parts)),
        "gradient": expected(*(gradients for _, gradients in parts)),
        "raw": expected(*(torch.cat(both, dim=1) for both in parts)),
    }
    by_join["normalised"] = (by_join["hidden"] + by_join["gradient"]) / 2
    assert set(by_join) == set(get_args(rept.Join))
    for join, scores in by_join.items():
        found = rept.rank(checkpoint, PAIRS, QUERIES, layer=LAYER, join=join)  # type: ignore[arg-type]
        torch.testing.assert_close(of(found), scores, rtol=0, atol=1e-4)
        assert found.method == ("rept" if join == "normalised" else f"rept-{join}")
        assert found.layer == LAYER


@pytest.mark.parametrize("loss", get_args(rept.Loss))
def test_a_pair_that_is_the_query_stands_first_with_score_1(loss: Any) -> None:
    query = QUERIES.head(1)
    user, bad, good = query.select("user", "bad", "good").row(0)
    rows = [{"prompt": [{"role": "user", "content": user}], "chosen": bad, "rejected": good}]
    twin = load_pairs(rows)
    both = PairSet(pl.concat([PAIRS.frame, twin.frame]))
    found = rept.rank(tiny_checkpoint(), both, query, layer=LAYER, loss=loss)
    assert found.ids[0] == twin.ids[0]
    assert found.frame["score"][0] == pytest.approx(1, abs=1e-5)


def test_swapping_the_replies_turns_the_gradient_of_dpo_round_and_leaves_the_hidden_state() -> None:
    turned = load_pairs(
        [
            {"prompt": prompt, "chosen": rejected, "rejected": chosen}
            for prompt, chosen, rejected in PAIRS.frame.select("prompt", "chosen", "rejected").iter_rows()
        ]
    )
    for join, loss, sign in (("gradient", "dpo", -1), ("hidden", "sft", 1)):
        options: dict[str, Any] = {"layer": LAYER, "join": join, "loss": loss}
        before, after = (rept.rank(tiny_checkpoint(), some, QUERIES, **options) for some in (PAIRS, turned))
        score = dict(zip(after.frame["pair_id"], after.frame["score"], strict=True))
        torch.testing.assert_close(
            of(before), sign * torch.tensor([score[one] for one in turned.ids]).double(), rtol=0, atol=1e-5
        )


def test_the_loss_is_part_of_the_name_where_it_plays_a_part() -> None:
    names = [
        rept.rank(tiny_checkpoint(), PAIRS, QUERIES, layer=LAYER, join=join, loss="dpo").method
        for join in get_args(rept.Join)
    ]
    assert names == ["rept-dpo", "rept-raw-dpo", "rept-hidden", "rept-gradient-dpo"]


def test_scores_do_not_depend_on_the_token_budget() -> None:
    one, other = (
        of(rept.rank(tiny_checkpoint(), PAIRS, QUERIES, layer=LAYER, token_budget=budget))
        for budget in (1, 512)
    )
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_the_cost_counts_every_token_forward_and_backward_and_hidden_states_need_no_backward() -> None:
    checkpoint = tiny_checkpoint()
    texts = rendered(checkpoint, pair_texts(PAIRS))
    options: dict[str, Any] = {"layer": LAYER, "token_budget": 1}  # one text a pass: no padding
    lone = QUERIES.head(1)
    user, bad, good = lone.select("user", "bad", "good").row(0)
    asked = [checkpoint.render([{"role": "user", "content": user}], reply).stop for reply in (bad, good)]
    sft = rept.rank(checkpoint, PAIRS, lone, **options).cost
    expected = sum(text.stop for text in texts) + asked[0]
    assert sft == (expected, expected, 8 * 2 * 32 * 4)
    expected += sum(text.stop for text in rendered(checkpoint, pair_texts(PAIRS), 1)) + asked[1]
    dpo: dict[str, Any] = options | {"loss": "dpo", "join": "raw"}
    assert rept.rank(checkpoint, PAIRS, lone, **dpo).cost == (expected, expected, 8 * 2 * 32 * 4)
    both = rept.rank(checkpoint, PAIRS, lone, **dpo, reference=checkpoint).cost
    assert both == (2 * expected, expected, 8 * 2 * 32 * 4)
    hidden = rept.rank(checkpoint, PAIRS, lone, layer=LAYER, join="hidden").cost
    assert hidden is not None
    assert hidden.forward_tokens >= sum(text.start for text in texts)
    assert hidden[1:] == (0, 8 * 32 * 4)


# ---- the layer


def similarities(checkpoint: Checkpoint, prompts: list[str]) -> list[float]:
    """Of each pair of blocks that follow each other, by transformers alone."""
    found = []
    for user in prompts:
        text = checkpoint.render([{"role": "user", "content": user}], "Yes")
        with torch.no_grad():
            output = checkpoint.hf(torch.tensor([text.ids[: text.start]]), output_hidden_states=True)
        last = torch.stack([one[0, -1] for one in output.hidden_states])
        # the authors' line: cos(h[k + 1], h[k + 2]); its last pair holds the state after the final norm
        found.append(cosine_similarity(last[1:-1], last[2:], dim=1))
    return torch.stack(found).mean(dim=0).tolist()


def deep(path: Path, monkeypatch: pytest.MonkeyPatch, blocks: int = 8) -> Checkpoint:
    monkeypatch.setattr(testing, "N_BLOCKS", blocks)
    return open_checkpoint(testing.tiny_checkpoint_folder("llama", path))


def test_the_layer_is_the_later_of_the_least_similar_inner_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = deep(tmp_path, monkeypatch)
    prompts = QUERIES["user"].to_list()
    sims = similarities(checkpoint, prompts)
    inner = range(2, len(sims) - 1)
    assert rept.layer_of(checkpoint, QUERIES) == min(inner, key=lambda k: sims[k]) + 1
    # the released rule, argmin(sim[:-1]) + 2, counts the embedding as 0: one more than the block's index
    released = min(range(len(sims) - 1), key=lambda k: sims[k]) + 2
    assert rept.layer_of(checkpoint, QUERIES, interior=False) == released - 1


def test_without_an_inner_pair_the_layer_is_the_last_and_rank_takes_what_layer_of_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rept.layer_of(tiny_checkpoint(), QUERIES) == 3
    checkpoint = deep(tmp_path, monkeypatch)
    chosen = rept.rank(checkpoint, PAIRS, QUERIES)
    given = rept.rank(checkpoint, PAIRS, QUERIES, layer=rept.layer_of(checkpoint, QUERIES))
    assert chosen.layer == given.layer
    assert chosen.ids == given.ids
    assert chosen.cost is not None
    assert given.cost is not None
    assert chosen.cost.forward_tokens > given.cost.forward_tokens


@pytest.mark.real
def test_the_released_rule_picks_the_jump_after_the_embedding_on_smollm2() -> None:
    checkpoint = open_checkpoint()
    asked = QUERIES.select("user")
    assert rept.layer_of(checkpoint, asked, interior=False) == 1  # hidden_states[2]: their layer 2
    assert 2 < rept.layer_of(checkpoint, asked) < checkpoint.n_blocks - 1


# ---- tokens


def test_a_tokens_score_is_its_unit_gradient_times_the_sum_of_the_queries() -> None:
    checkpoint = tiny_checkpoint()
    total = torch.zeros(checkpoint.width)
    for user, bad in QUERIES.select("user", "bad").iter_rows():
        text = checkpoint.render([{"role": "user", "content": user}], bad)
        total += normalize(oracle(checkpoint, text, LAYER)[1], dim=1).sum(dim=0) / QUERIES.height
    wanted = PAIRS.ids[5:2:-1]
    found = rept.tokens(checkpoint, PAIRS, QUERIES, layer=LAYER, pair_ids=wanted)
    assert found.schema == SCHEMA
    assert found["pair_id"].unique(maintain_order=True).to_list() == wanted
    assert found["reply"].unique().to_list() == ["chosen"]
    for text, one in zip(rendered(checkpoint, pair_texts(PAIRS.select(wanted))), wanted, strict=True):
        expected = normalize(oracle(checkpoint, text, LAYER)[1], dim=1) @ total
        scores = torch.tensor(found.filter(pair_id=one)["score"].to_list())
        torch.testing.assert_close(scores, expected, rtol=0, atol=1e-3)


# ---- what cannot be done


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"join": "sum"}, "join is 'sum'; choose one of normalised, raw, hidden, gradient"),
        ({"loss": "kto"}, "loss is 'kto'; choose one of sft, dpo"),
    ],
)
def test_another_join_or_loss_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(RivalError, match=words):
        rept.rank(tiny_checkpoint(), PAIRS, QUERIES, layer=LAYER, **options)


def test_a_layer_that_does_not_exist_and_a_checkpoint_elsewhere_are_refused() -> None:
    with pytest.raises(VectorError, match="layers = \\[4\\] cannot be read"):
        rept.rank(tiny_checkpoint(), PAIRS, QUERIES, layer=4)
    elsewhere = dataclasses.replace(tiny_checkpoint(), remote=True)
    for join in ("normalised", "hidden"):
        with pytest.raises(RivalError, match="is read remotely; gradients need its weights"):
            rept.rank(elsewhere, PAIRS, QUERIES, layer=LAYER, join=join)
    with pytest.raises(RivalError, match="To choose a layer, give prompts"):
        rept.layer_of(tiny_checkpoint(), QUERIES.select("bad"))


def test_a_reply_without_a_prompt_is_refused() -> None:
    with pytest.raises(RivalError, match="1 texts have a reply but no token of a prompt, first text 1"):
        list(
            traced(
                tiny_checkpoint(), [Rendered((5, 6), 1, 2), Rendered((5, 6), 0, 2)], layer=1, token_budget=9
            )
        )
