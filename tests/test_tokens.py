"""Tokens' parts add up to the pair's score, stand where the text says, and can be compared with a span."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from probekit import tokens
from probekit._texts import pair_texts
from probekit.checkpoints import Checkpoint, open_checkpoint
from probekit.pairs import PairError, load_pairs
from probekit.ranking import rank
from probekit.testing import (
    ARCHS,
    Arch,
    planted_contrasts,
    planted_pairs,
    ranked,
    tiny_checkpoint,
    tiny_checkpoint_folder,
)
from probekit.tokens import SCHEMA, TokenError, hit_rate, reply_spans, token_scores
from probekit.vectors import (
    VectorError,
    VectorSet,
    behaviour_vectors,
    pair_vectors,
    reply_states,
    response_means,
    twin_vectors,
)
from probekit.widgets import PairBrowser

LAYER = 2
PAIRS = load_pairs(planted_pairs(16))
ODD = ("naïve 🦊🦊, ok", "  two  spaces\n\nand lines ", "日本語テキスト", "e\u0301 \u202e x", "🇩🇪")


def behaviour(checkpoint: Checkpoint, *, chat: bool = True) -> VectorSet:
    return behaviour_vectors(checkpoint, planted_contrasts(6), layers=[LAYER], chat=chat)


def sums(frame: pl.DataFrame) -> dict[str, float]:
    return dict(frame.group_by("pair_id").agg(pl.col("score").sum()).iter_rows())


# ---- parts


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("arch", ARCHS)
def test_the_parts_of_both_replies_add_up_to_the_papers_cosine(arch: Arch, chat: bool) -> None:
    checkpoint = tiny_checkpoint(arch)
    direction = behaviour(checkpoint, chat=chat)
    ranking = rank(direction, pair_vectors(checkpoint, PAIRS, layers=[LAYER], chat=chat), layer=LAYER)
    found = token_scores(checkpoint, PAIRS, direction, layer=LAYER)
    assert found.schema == SCHEMA
    whole = dict(ranking.frame.select("pair_id", "cosine").iter_rows())
    assert sums(found) == pytest.approx(whole, abs=1e-5)
    for _, half in found.group_by("pair_id", "reply"):  # each reply carries half
        assert half["score"].sum() == pytest.approx(whole[half["pair_id"][0]] / 2, abs=1e-5)


def test_with_a_control_they_add_up_to_the_projected_score() -> None:
    checkpoint = tiny_checkpoint()
    direction = behaviour(checkpoint)
    control = twin_vectors(checkpoint, planted_contrasts(6, kind="twin"), layers=[LAYER])
    of_pairs = pair_vectors(checkpoint, PAIRS, layers=[LAYER])
    ranking = rank(direction, of_pairs, layer=LAYER, control=control, method="project")
    found = token_scores(checkpoint, PAIRS, direction, layer=LAYER, control=control)
    whole = dict(ranking.frame.select("pair_id", "score").iter_rows())
    assert sums(found) == pytest.approx(whole, abs=1e-5)
    assert sums(token_scores(checkpoint, PAIRS, direction, layer=LAYER)) != pytest.approx(whole, abs=1e-2)


def test_a_token_counts_by_its_own_state_against_the_middle_of_the_pair() -> None:
    checkpoint, one = tiny_checkpoint(), PAIRS.ids[3]
    direction = behaviour(checkpoint)
    text = pair_texts(PAIRS.select([one]))[0]
    chosen, rejected = (
        next(reply_states(checkpoint, [checkpoint.render(text.prompt, reply)], layers=[LAYER]))[1][:, 0]
        for reply in text.replies
    )
    unit = torch.nn.functional.normalize(direction.layer(LAYER).mean(dim=0), dim=0)
    middle = (chosen.mean(dim=0) + rejected.mean(dim=0)) / 2
    norm = (chosen.mean(dim=0) - rejected.mean(dim=0)).norm()
    expected = [
        *((chosen - middle) @ unit / norm / len(chosen)).tolist(),
        *((middle - rejected) @ unit / norm / len(rejected)).tolist(),
    ]
    found = token_scores(checkpoint, PAIRS, direction, layer=LAYER, pair_ids=[one])
    assert found["score"].to_list() == pytest.approx(expected, abs=1e-5)


def test_the_pairs_asked_for_are_scored_in_their_order() -> None:
    wanted = PAIRS.ids[7:3:-1]
    checkpoint = tiny_checkpoint()
    found = token_scores(checkpoint, PAIRS, behaviour(checkpoint), layer=LAYER, pair_ids=wanted)
    assert found["pair_id"].unique(maintain_order=True).to_list() == wanted
    with pytest.raises(PairError, match="not in this PairSet"):
        token_scores(checkpoint, PAIRS, behaviour(checkpoint), layer=LAYER, pair_ids=["nobody"])


def test_a_pair_without_a_direction_has_tokens_without_scores() -> None:
    same, along = torch.ones(4), torch.tensor([1.0, 3.0])
    parts = tokens._parts(same, along, same, along.flip(0))
    assert [part.tolist() for part in parts] == [[0, 0], [0, 0]]


def test_vectors_of_another_checkpoint_or_layer_are_refused() -> None:
    other = behaviour(tiny_checkpoint(seed=1))
    with pytest.raises(TokenError, match="behaviour vectors are of checkpoint"):
        token_scores(tiny_checkpoint(), PAIRS, other, layer=LAYER)
    mine = behaviour(tiny_checkpoint())
    with pytest.raises(TokenError, match="behaviour vectors are of checkpoint"):
        token_scores(tiny_checkpoint(), PAIRS, mine, layer=LAYER, control=other)
    with pytest.raises(VectorError, match="Layer 0 was not read"):
        token_scores(tiny_checkpoint(), PAIRS, mine, layer=0)


@pytest.mark.parametrize("arch", ARCHS)
def test_states_of_tokens_in_padded_batches_are_those_of_transformers_and_average_to_the_means(
    arch: Arch,
) -> None:
    checkpoint, layers = tiny_checkpoint(arch), [2, 0]
    texts = [checkpoint.render(text.prompt, text.replies[0]) for text in pair_texts(PAIRS)]
    found = dict(reply_states(checkpoint, texts, layers=layers))
    assert sorted(found) == list(range(len(texts)))
    means = response_means(checkpoint, texts, layers=layers)
    for place, text in enumerate(texts):
        with torch.no_grad():
            states = checkpoint.hf(torch.tensor([text.ids]), output_hidden_states=True).hidden_states
        expected = torch.stack([states[layer + 1][0, text.start : text.stop] for layer in layers], dim=1)
        torch.testing.assert_close(found[place], expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found[place].mean(dim=0), means[place], rtol=1e-4, atol=1e-4)


# ---- spans


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("reply", ODD)
def test_there_is_a_span_for_each_token_none_empty_and_none_overlapping(reply: str, chat: bool) -> None:
    for checkpoint in (tiny_checkpoint(), tiny_checkpoint("qwen2")):
        text = checkpoint.render([{"role": "user", "content": "Hi 🦊?"}], reply, chat=chat)
        spans = reply_spans(checkpoint, [{"role": "user", "content": "Hi 🦊?"}], reply, chat=chat)
        assert len(spans) == text.stop - text.start
        assert all(0 <= start < end <= len(reply) for start, end in spans)
        seen, unspelt = 0, ""
        for start, end in [*sorted(set(spans)), (len(reply), len(reply))]:
            assert start >= seen
            seen, unspelt = end, unspelt + reply[seen:start]
        # qwen2 normalises: an accent that stands alone becomes part of the letter before it
        assert not unspelt.strip(" \n\u0301"), "what is seen is part of a token"


def test_a_span_is_what_its_token_spells() -> None:
    checkpoint, reply = tiny_checkpoint(), "Sure, here is the answer."
    prompt = [{"role": "user", "content": "Hi?"}]
    text = checkpoint.render(prompt, reply)
    spelt = [checkpoint.tokenizer.decode([one]) for one in text.ids[text.start : text.stop]]
    spans = reply_spans(checkpoint, prompt, reply)
    assert [reply[start:end].strip() for start, end in spans] == [one.strip() for one in spelt]


@pytest.mark.parametrize(
    ("offsets", "spans"),
    [
        ([(0, 0), (0, 3), (3, 3)], [(0, 3), (0, 3), (0, 3)]),  # tokens that spell nothing
        ([(0, 1), (0, 1), (0, 2)], [(0, 1), (0, 1), (1, 2)]),  # half a character and the next
        ([(-2, 1), (1, 4)], [(0, 1), (1, 4)]),  # a token that begins in the prompt
    ],
)
def test_offsets_become_spans_that_are_apart(offsets: Any, spans: Any) -> None:
    assert tokens._apart(offsets) == spans


def test_the_pair_browser_takes_the_scores_as_they_are(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{place}", "chosen": odd, "rejected": "no"} for place, odd in enumerate(ODD)]
    checkpoint, pairs = tiny_checkpoint(), load_pairs(rows)
    found = token_scores(checkpoint, pairs, behaviour(checkpoint), layer=LAYER)
    browser = PairBrowser(ranked(pairs.ids), pairs, tokens=found)
    for reply, text in zip(browser._pair["replies"], (ODD[0], "no"), strict=True):
        assert "".join(piece[0] for piece in reply["tokens"]) == text
    assert browser._pair["strongest"].startswith("Strongest ")


# ---- hit rate


def scored(*scores: float, pair: str = "a", reply: str = "chosen") -> pl.DataFrame:
    rows = [(pair, reply, 2 * place, 2 * place + 2, score) for place, score in enumerate(scores)]
    return pl.DataFrame(rows, SCHEMA, orient="row")


def planted(*rows: tuple[str, int, int]) -> pl.DataFrame:
    return pl.DataFrame(rows, tokens.SPANS, orient="row")


def test_the_hit_rate_is_the_share_of_pairs_whose_strongest_token_lies_in_the_span() -> None:
    frame = pl.concat([scored(0.1, 0.9, 0.2, 0.3), scored(0.9, 0.1, 0.2, 0.3, pair="b")])
    found = hit_rate(frame, planted(("a", 3, 5), ("b", 3, 5)))
    assert found == (0.5, 0.5, 2)  # characters 3 and 4: of the second and the third token
    assert hit_rate(frame, planted(("a", 2, 4))) == (1.0, 0.25, 1)
    assert hit_rate(frame, planted(("a", 2, 4), ("a", 0, 1))) == (1.0, 0.5, 1)


def test_equal_scores_hit_as_often_as_chance() -> None:
    frame = pl.concat([scored(1, 1, 1, 1, 1), scored(0, 0, 0, pair="b")])
    hits, chance, n = hit_rate(frame, planted(("a", 0, 4), ("b", 5, 6)))
    assert hits == pytest.approx(chance)
    assert (chance, n) == (pytest.approx((2 / 5 + 1 / 3) / 2), 2)


def test_rejected_replies_and_other_pairs_do_not_count() -> None:
    more = [scored(9, 9, 9, reply="rejected"), scored(9, pair="c")]
    frame = pl.concat([scored(0.1, 0.9), *more])
    assert hit_rate(frame, planted(("a", 2, 4))) == (1.0, 0.5, 1)


@pytest.mark.parametrize(
    ("spans", "words"),
    [
        (planted(("a", 2, 4), ("b", 0, 1)), "1 of 2 pairs have no token of their chosen reply in a span: b"),
        (planted(("a", 40, 44)), "1 of 1 pairs have no token"),
        (planted().cast({"pair_id": pl.String}), "0 of 0 pairs have no token"),
        (pl.DataFrame({"pair_id": ["a"]}), "spans lack the columns start, end"),
    ],
)
def test_spans_that_no_token_reaches_are_refused(spans: pl.DataFrame, words: str) -> None:
    with pytest.raises(TokenError, match=words):
        hit_rate(scored(0.1, 0.9), spans)


def test_a_tokenizer_without_a_chat_template_can_be_scored_bare(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint_folder("llama", tmp_path, template="none"))
    direction = behaviour(checkpoint, chat=False)
    assert token_scores(checkpoint, PAIRS, direction, layer=LAYER)["pair_id"].n_unique() == len(PAIRS)
