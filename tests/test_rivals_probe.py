"""The probes on vectors: ours under every variant's name, and the trained logistic one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import get_args

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from probekit import ranking, vectors
from probekit.packing import batches, distinct, rows
from probekit.pairs import load_pairs
from probekit.rivals import RivalError, probe
from probekit.store import VectorStore
from probekit.testing import planted_contrasts, planted_pairs, tiny_checkpoint

M0 = tiny_checkpoint()
PAIRS = load_pairs(planted_pairs(32))
QUERIES, TWINS = planted_contrasts(8), planted_contrasts(8, kind="twin")
LAYER = 2
TRUTH = set(PAIRS.frame.filter(source="planted")["pair_id"])


@pytest.mark.parametrize("method", [one for one in get_args(probe.Method) if one != "logistic"])
def test_our_methods_rank_as_the_ranking_room_does(method: probe.Method) -> None:
    of_pairs = vectors.pair_vectors(M0, PAIRS, layers=[LAYER])
    behaviour = vectors.behaviour_vectors(M0, QUERIES, layers=[LAYER])
    twins = vectors.twin_vectors(M0, TWINS, layers=[LAYER])
    pooled = method in get_args(ranking.Pooling)
    options = {"pooling": method} if pooled else {"method": method, "control": twins}
    expected = ranking.rank(behaviour, of_pairs, layer=LAYER, **options)  # type: ignore[arg-type]
    found = probe.rank(M0, PAIRS, QUERIES, layer=LAYER, method=method, twins=None if pooled else TWINS)
    assert found.frame.equals(expected.frame)
    assert (found.method, found.sign, found.pooling) == (expected.method, expected.sign, expected.pooling)


def test_the_logistic_probe_scores_by_the_difference_of_its_log_odds() -> None:
    """Against scikit-learn's own pipeline, asked about each reply apart."""

    def mean(user: str, reply: str) -> torch.Tensor:
        text = M0.render([{"role": "user", "content": user}], reply)
        return vectors.response_means(M0, [text], layers=[LAYER])[0, 0]

    sides = {
        side: [mean(user, reply) for user, reply in QUERIES.select("user", side).iter_rows()]
        for side in ("bad", "good")
    }
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    pipeline.fit(torch.stack(sides["bad"] + sides["good"]).double().numpy(), [1] * 8 + [0] * 8)
    found = probe.rank(M0, PAIRS, QUERIES, layer=LAYER)
    score = dict(found.frame.select("pair_id", "score").iter_rows())
    for row in PAIRS.frame.head(8).iter_rows(named=True):
        user = row["prompt"][0]["content"]
        replies = torch.stack([mean(user, row[side]) for side in ("chosen", "rejected")]).double().numpy()
        odds = pipeline.decision_function(replies)
        assert score[row["pair_id"]] == pytest.approx(odds[0] - odds[1], abs=1e-3)
    assert (found.method, found.layer) == ("logistic", LAYER)
    assert found.frame["cosine"].null_count() == len(PAIRS)


def test_the_logistic_probe_puts_pairs_that_teach_to_refuse_last() -> None:
    found = probe.rank(M0, PAIRS, QUERIES, layer=LAYER)
    assert set(PAIRS.select(found.ids[-8:]).frame["source"]) == {"safety"}
    assert found.bottom(8)["score"].max() < 0 < found.top(8)["score"].min()


def test_a_pair_whose_replies_read_alike_is_marked() -> None:
    of_pairs = vectors.pair_vectors(M0, PAIRS, layers=[LAYER])
    values = of_pairs.values[:]
    values[5] = 0
    changed = dataclasses.replace(of_pairs, values=values)
    found = probe._by_decision(changed, torch.ones(32, dtype=torch.float64), LAYER)
    assert found.frame.filter("zero_norm")["pair_id"].to_list() == [PAIRS.ids[5]]


def test_the_cost_is_the_padded_tokens_of_the_batches_and_a_vector_a_pair(tmp_path: Path) -> None:
    texts = [
        M0.render(row["prompt"], row[side])
        for side in ("chosen", "rejected")
        for row in PAIRS.frame.iter_rows(named=True)
    ]
    asked = [
        M0.render([{"role": "user", "content": row["user"]}], row[side])
        for side in ("bad", "good")
        for row in QUERIES.iter_rows(named=True)
    ]

    def padded(some: list) -> int:
        packed = rows(distinct(some)[0], d=M0.width)
        return sum(batch.ids.numel() for batch in batches(packed, token_budget=1024))

    found = probe.rank(M0, PAIRS, QUERIES, layer=LAYER, method="pooled")
    assert found.cost == ranking.Cost(padded(texts) + padded(asked), 0, len(PAIRS) * 32 * 4)
    assert padded(texts) > sum(text.stop for text in texts) / 2  # prompts are shared, so it may be less
    store = VectorStore(tmp_path)
    whole = probe.rank(M0, PAIRS, QUERIES, layer=LAYER, method="pooled", store=store)
    again = probe.rank(M0, PAIRS, QUERIES, layer=LAYER, method="pooled", store=store)
    assert whole.cost == found.cost
    assert again.cost is not None
    assert again.cost.forward_tokens == 0
    assert again.ids == whole.ids == found.ids


def test_methods_that_need_twins_say_so_and_unknown_ones_are_named() -> None:
    with pytest.raises(RivalError, match='method="project" needs twins='):
        probe.rank(M0, PAIRS, QUERIES, layer=LAYER, method="project")
    with pytest.raises(RivalError, match="no method 'mlp'; choose one of logistic, pooled"):
        probe.rank(M0, PAIRS, QUERIES, layer=LAYER, method="mlp")  # type: ignore[arg-type]
