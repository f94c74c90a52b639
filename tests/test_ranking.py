from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from probekit._scoring import gated
from probekit.pairs import load_pairs
from probekit.ranking import (
    SCHEMA,
    SIGNS,
    Cost,
    Method,
    Ranking,
    RankingError,
    average_precision,
    concentration,
    enrichment,
    mean_rank,
    precision_at_k,
    rank,
    ranking_of,
    recall_at_k,
)
from probekit.testing import ranked
from probekit.vectors import Kind, MappedRows, VectorError, VectorSet

METHODS: tuple[Method, ...] = ("project", "subtract", "probe", "pu")
AXES = torch.eye(4)


def make(rows: torch.Tensor, *, kind: Kind = "pair", layer: int = 5, **fields: object) -> VectorSet:
    ids = [f"{kind}-{row:03}" for row in range(len(rows))]
    fields = {"prompt_ids": [f"p{row}" for row in range(len(rows))], **fields} if kind != "pair" else fields
    return VectorSet(ids, (layer,), rows.float().unsqueeze(1), "0123", kind=kind, **fields)  # type: ignore[arg-type]


def cloud(n: int, direction: torch.Tensor, *, noise: float = 0.3, seed: int = 0) -> torch.Tensor:
    return direction + noise * torch.randn(n, 4, generator=torch.manual_seed(seed))


def world(seed: int = 0) -> tuple[VectorSet, VectorSet, VectorSet, set[str]]:
    """Behaviour = answering + harm, twins = answering. Of the pairs, 0-9 show both, but are about other
    things as well; 10-29, the look-alikes, only answer; 30-59 do neither."""
    answer, harm, about = 3 * AXES[0], AXES[1], 2 * AXES[2]

    def both(n: int, centre: torch.Tensor, part: int) -> torch.Tensor:
        return torch.cat([cloud(n, centre + side * about, seed=seed + part) for side in (1, -1)])

    behaviour, twins = (
        make(both(15, answer + harm, 0), kind="behaviour"),
        make(both(15, answer, 1), kind="twin"),
    )
    pairs = [both(5, answer + harm, 2), cloud(20, answer, seed=seed + 3), both(15, 0 * answer, 4)]
    return behaviour, twins, make(torch.cat(pairs)), {f"pair-{row:03}" for row in range(10)}


def by_id(ranking: Ranking, column: str = "score") -> list[float]:
    return ranking.frame.sort("pair_id")[column].to_list()


# ---------------------------------------------------------------- the paper's score


@settings(deadline=None)
@given(st.lists(st.floats(-10, 10, width=32), min_size=12, max_size=12), st.floats(0.01, 100))
def test_the_score_is_the_cosine_and_knows_no_length(flat: list[float], scale: float) -> None:
    rows = torch.tensor(flat).reshape(3, 4)
    ranking = rank(make(AXES[:1] + AXES[1:2], kind="behaviour"), make(rows * scale), layer=5)
    for row, score in zip(rows.double().tolist(), by_id(ranking), strict=True):
        norm = math.sqrt(sum(value * value for value in row))
        assert score == pytest.approx((row[0] + row[1]) / norm / math.sqrt(2) if norm else 0, abs=1e-5)
        assert -1 <= score <= 1
    assert by_id(ranking) == by_id(ranking, "cosine")


def test_a_vector_that_points_the_other_way_has_the_score_with_the_other_sign() -> None:
    rows = cloud(20, AXES[0])
    behaviour = make(AXES[:1], kind="behaviour")
    one, other = (rank(behaviour, make(sign * rows), layer=5) for sign in (1, -1))
    assert by_id(one) == [-score for score in by_id(other)]


def test_the_frame_has_the_documented_columns_ranks_and_order() -> None:
    ranking = rank(make(AXES[:1], kind="behaviour"), make(cloud(20, AXES[0], noise=2.0)), layer=5)
    assert ranking.frame.schema == SCHEMA
    assert ranking.frame["rank"].to_list() == list(range(1, 21))
    assert ranking.frame["score"].is_sorted(descending=True)
    assert ranking.ids == ranking.frame["pair_id"].to_list()


@settings(deadline=None, max_examples=30)
@given(st.permutations(range(60)), st.sampled_from([None, *METHODS]))
def test_the_order_of_the_pairs_given_changes_nothing(order: list[int], method: Method | None) -> None:
    behaviour, twins, pairs, _ = world()
    shuffled = pairs.select([pairs.ids[place] for place in order])
    control = None if method is None else twins
    one, other = (
        rank(behaviour, some, layer=5, control=control, method=method) for some in (pairs, shuffled)
    )
    assert one.ids == other.ids
    assert one.frame["score"].to_list() == pytest.approx(other.frame["score"].to_list(), abs=1e-6)


@pytest.mark.parametrize("method", [None, *METHODS])
def test_equal_vectors_tie_and_stand_in_the_order_of_their_ids(method: Method | None) -> None:
    behaviour, twins, pairs, _ = world()
    values = pairs.values[[7] * 40]
    ids = [f"id{row:02}" for row in reversed(range(40))]
    equal = dataclasses.replace(pairs, ids=ids, values=values)
    control = None if method is None else twins
    ranking = rank(behaviour, equal, layer=5, control=control, method=method)
    assert ranking.ids == sorted(ids)
    assert ranking.frame["score"].n_unique() == 1


def test_only_the_layer_asked_for_counts() -> None:
    first, second = cloud(20, AXES[0]), cloud(20, AXES[1], seed=1)
    both = VectorSet(
        [f"pair-{row:03}" for row in range(20)], (5, 8), torch.stack([first, second], dim=1), "0123"
    )
    for layer, rows in ((5, first), (8, second)):
        behaviour = make(AXES[:1], kind="behaviour", layer=layer)
        assert (
            rank(behaviour, both, layer=layer).ids
            == rank(behaviour, make(rows, layer=layer), layer=layer).ids
        )


def test_scores_in_many_chunks_are_the_scores_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    behaviour, _, pairs, _ = world()
    whole = rank(behaviour, pairs, layer=5)
    monkeypatch.setattr("probekit._vector_set.CHUNK", 7 * pairs.values.shape[2])
    assert rank(behaviour, pairs, layer=5).frame.equals(whole.frame)


# ---------------------------------------------------------------- pooling


def test_pooled_and_mean_differ_where_a_prompt_has_more_contrasts() -> None:
    rows = torch.stack([AXES[0], AXES[0], AXES[0], AXES[1]])
    behaviour = make(rows, kind="behaviour", prompt_ids=["p", "p", "p", "q"])
    pairs = make(AXES[:2])
    pooled, mean = (rank(behaviour, pairs, layer=5, pooling=how) for how in ("pooled", "mean"))
    assert by_id(pooled) == pytest.approx([3 / math.sqrt(10), 1 / math.sqrt(10)])
    assert by_id(mean) == pytest.approx([1 / math.sqrt(2)] * 2)
    assert by_id(mean, "cosine") == by_id(pooled)  # the paper's score stands beside any other


def test_the_bank_scores_by_the_nearest_prompt_and_keeps_order_below_zero() -> None:
    rows = torch.stack([2 * AXES[0] + AXES[3], 2 * AXES[0] - AXES[3], AXES[1]])
    behaviour = make(rows, kind="behaviour", prompt_ids=["p", "p", "q"])
    pairs = make(torch.stack([AXES[0], AXES[1], -AXES[0], -AXES[0] - AXES[1], AXES[2]]))
    ranking = rank(behaviour, pairs, layer=5, pooling="bank")
    assert by_id(ranking) == pytest.approx([1, 1, 0, -1 / math.sqrt(2), 0])
    assert ranking.ids[-1] == "pair-003"
    assert ranking.pooling == "bank"


# ---------------------------------------------------------------- control by twins


def test_project_leaves_nothing_of_the_twins_in_the_score() -> None:
    behaviour, twins = make(AXES[:1] + AXES[1:2], kind="behaviour"), make(AXES[:1], kind="twin")
    pairs = make(torch.stack([AXES[0], AXES[1], AXES[0] + AXES[1]]))
    ranking = rank(behaviour, pairs, layer=5, control=twins, method="project")
    assert by_id(ranking) == pytest.approx([0, 1, 1 / math.sqrt(2)])


def test_subtract_takes_unit_vectors_so_that_length_does_not_count() -> None:
    behaviour, twins = make(5 * AXES[1:2], kind="behaviour"), make(AXES[:1], kind="twin")
    ranking = rank(behaviour, make(AXES[:2]), layer=5, control=twins, method="subtract")
    assert by_id(ranking) == pytest.approx([-1 / math.sqrt(2), 1 / math.sqrt(2)])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", [0, 10, 20])
def test_every_control_puts_the_cause_above_look_alikes_better_than_the_plain_cosine(
    method: Method, seed: int
) -> None:
    behaviour, twins, pairs, truth = world(seed)
    plain = average_precision(rank(behaviour, pairs, layer=5), truth)
    assert average_precision(rank(behaviour, pairs, layer=5, control=twins, method=method), truth) > plain


@pytest.mark.parametrize("method", [None, *METHODS])
def test_the_plain_cosine_stands_beside_every_score(method: Method | None) -> None:
    behaviour, twins, pairs, _ = world()
    plain = rank(behaviour, pairs, layer=5)
    ranking = rank(behaviour, pairs, layer=5, control=twins, method=method)
    assert by_id(ranking, "cosine") == by_id(plain)
    assert ranking.method == method or (method is None and ranking.method == "probe")
    assert ranking.sign == SIGNS[ranking.method]
    assert "higher = training on this pair pushes toward the behaviour" in ranking.sign


def test_the_probe_is_scikit_learns_on_unit_vectors_with_balanced_classes() -> None:
    behaviour, twins, pairs, _ = world()
    ranking = rank(behaviour, pairs, layer=5, control=twins, method="probe", gate=-1)
    ones, zeros, rows = (
        (vectors.layer(5) / vectors.layer(5).norm(dim=1, keepdim=True)).double().numpy()
        for vectors in (behaviour, twins, pairs)
    )
    both = torch.cat([torch.from_numpy(ones), torch.from_numpy(zeros)]).numpy()
    probe = LogisticRegression(max_iter=1000, class_weight="balanced")
    probe.fit(both, [1] * len(ones) + [0] * len(zeros))
    assert by_id(ranking) == pytest.approx(probe.predict_proba(rows)[:, 1].tolist(), abs=1e-4)


def test_pairs_past_the_gate_stand_above_the_rest_and_the_rest_stand_by_cosine() -> None:
    behaviour, twins, pairs, _ = world()
    frame = rank(behaviour, pairs, layer=5, control=twins, method="probe", gate=0.3).frame
    passed = frame["cosine"] > 0.3
    assert 0 < passed.sum() < len(frame)
    assert passed.to_list() == sorted(passed, reverse=True)
    above, below = frame.filter(passed), frame.filter(~passed)
    assert above["score"].is_between(0, 1).all()
    assert below["score"].to_list() == pytest.approx((below["cosine"] - 0.3).to_list())
    assert below["cosine"].is_sorted(descending=True)
    assert frame["score"].is_sorted(descending=True)


def test_sure_pairs_keep_their_order_where_probabilities_round_to_one() -> None:
    log_odds = torch.arange(40.0, 60.0, dtype=torch.float64)
    order, score = gated(log_odds, torch.full((20,), 0.9, dtype=torch.float64), 0.3)
    assert score.tolist() == [1.0] * 20
    assert order.argsort().tolist() == list(range(20))


def test_pu_gives_probabilities() -> None:
    behaviour, twins, pairs, _ = world()
    assert rank(behaviour, pairs, layer=5, control=twins, method="pu").frame["score"].is_between(0, 1).all()


@pytest.mark.parametrize("method", ["probe", "pu"])
def test_probes_are_deterministic(method: Method) -> None:
    behaviour, twins, pairs, _ = world()
    one, other = (rank(behaviour, pairs, layer=5, control=twins, method=method) for _ in range(2))
    assert one.frame.equals(other.frame)


# ---------------------------------------------------------------- what has no answer


def test_a_zero_vector_is_marked_and_counted() -> None:
    rows = torch.cat([AXES[:2], torch.zeros(2, 4)])
    ranking = rank(make(AXES[:1], kind="behaviour"), make(rows), layer=5)
    assert by_id(ranking, "zero_norm") == [False, False, True, True]
    assert by_id(ranking) == [1, 0, 0, 0]
    assert ranking.zero_norms == 2
    assert "2 without a score of their own" in repr(ranking)


def test_a_very_small_vector_is_not_taken_for_zero() -> None:
    ranking = rank(make(AXES[:1], kind="behaviour"), make(AXES[:1] * 1e-30), layer=5)
    assert (by_id(ranking), ranking.zero_norms) == ([1.0], 0)


@pytest.mark.parametrize("method", METHODS)
def test_zero_pair_vectors_do_not_stop_a_control(method: Method) -> None:
    behaviour, twins, pairs, _ = world()
    values = pairs.values.clone()
    values[3] = 0
    ranking = rank(
        behaviour, dataclasses.replace(pairs, values=values), layer=5, control=twins, method=method
    )
    assert ranking.zero_norms == 1
    assert ranking.frame["score"].is_finite().all()


def test_vectors_of_two_models_or_settings_are_not_compared() -> None:
    behaviour, twins, pairs, _ = world()
    with pytest.raises(
        RankingError, match="behaviour vectors are of checkpoint 0123, those of pairs of 4567"
    ):
        rank(behaviour, dataclasses.replace(pairs, fingerprint="4567"), layer=5)
    with pytest.raises(RankingError, match="of checkpoint 0123, those of control of 4567"):
        rank(behaviour, pairs, layer=5, control=dataclasses.replace(twins, fingerprint="4567"))
    with pytest.raises(RankingError, match="read with chat=True, those of pairs with chat=False"):
        rank(behaviour, dataclasses.replace(pairs, chat=False), layer=5)


def test_a_layer_that_was_not_read_is_refused_with_those_that_were() -> None:
    behaviour, _, pairs, _ = world()
    with pytest.raises(
        RankingError, match=r"Layer 9 was not read for behaviour; its vectors have the layers \(5,\)"
    ):
        rank(behaviour, pairs, layer=9)


def test_a_behaviour_that_points_nowhere_is_refused() -> None:
    _, twins, pairs, _ = world()
    nowhere = make(torch.stack([AXES[0], -AXES[0]]), kind="behaviour")
    with pytest.raises(RankingError, match=r"behaviour vectors cancel out to zero at layer 5 \(pooled\)"):
        rank(nowhere, pairs, layer=5)
    zero = make(torch.stack([AXES[0], 0 * AXES[0]]), kind="behaviour")
    with pytest.raises(RankingError, match=r"cancel out to zero at layer 5 \(bank\)"):
        rank(zero, pairs, layer=5, pooling="bank")
    with pytest.raises(RankingError, match="1 behaviour vectors are zero at layer 5: behaviour-001"):
        rank(zero, pairs, layer=5, control=twins, method="probe")


@pytest.mark.parametrize("method", ["project", "subtract"])
def test_a_control_that_is_the_behaviour_again_is_refused(method: Method) -> None:
    behaviour, _, pairs, _ = world()
    with pytest.raises(RankingError, match="points where its twins do"):
        rank(behaviour, pairs, layer=5, control=dataclasses.replace(behaviour, kind="twin"), method=method)


def test_choices_that_do_not_exist_are_refused_by_name() -> None:
    behaviour, twins, pairs, _ = world()
    with pytest.raises(RankingError, match="no pooling 'median'; choose one of pooled, mean, bank"):
        rank(behaviour, pairs, layer=5, pooling="median")  # type: ignore[arg-type]
    with pytest.raises(RankingError, match="no method 'svm'; choose one of project, subtract, probe, pu"):
        rank(behaviour, pairs, layer=5, control=twins, method="svm")  # type: ignore[arg-type]
    with pytest.raises(RankingError, match='method="pu" needs control='):
        rank(behaviour, pairs, layer=5, method="pu")
    with pytest.raises(RankingError, match=r"gate = 1\.5; it is a cosine"):
        rank(behaviour, pairs, layer=5, control=twins, gate=1.5)
    with pytest.raises(RankingError, match="no pairs vectors to rank with"):
        rank(behaviour, pairs.select([]), layer=5)


def test_a_ranking_with_other_columns_is_refused() -> None:
    with pytest.raises(RankingError, match=r"Make rankings with rank\(\)"):
        Ranking(pl.DataFrame({"pair_id": ["a"]}), 5, "cosine", "")


# ---------------------------------------------------------------- reading a ranking


def test_top_and_bottom_are_the_two_ends() -> None:
    ranking = ranked("abcde")
    assert ranking.top(2)["pair_id"].to_list() == ["a", "b"]
    assert ranking.bottom(2)["pair_id"].to_list() == ["e", "d"]
    for k in (0, 6):
        with pytest.raises(RankingError, match=f"k = {k}, but the ranking holds 5 pairs"):
            ranking.top(k)


def test_a_ranking_is_shown_short_and_escaped() -> None:
    ranking = dataclasses.replace(ranked(str(row) for row in range(5000)), sign="<b>")
    assert len(repr(ranking)) < 200
    assert "<b>" not in ranking._repr_html_()


@given(st.lists(st.booleans(), min_size=1, max_size=30).filter(any))
def test_average_precision_is_scikit_learns(hits: list[bool]) -> None:
    ids = [f"{place:02}" for place in range(len(hits))]
    truth = {one for one, hit in zip(ids, hits, strict=True) if hit}
    expected = average_precision_score(hits, [-place for place in range(len(hits))])
    assert average_precision(ranked(ids), truth) == pytest.approx(expected)


@given(st.sets(st.sampled_from("abcdefgh"), min_size=1), st.integers(1, 8))
def test_precision_at_k_counts_the_first_k(truth: set[str], k: int) -> None:
    assert precision_at_k(ranked("abcdefgh"), truth, k) == len(truth & set("abcdefgh"[:k])) / k


def test_a_truth_that_is_empty_or_not_ranked_is_refused() -> None:
    with pytest.raises(RankingError, match="The truth is empty"):
        average_precision(ranked("ab"), set())
    with pytest.raises(RankingError, match="1 of 2 ids in the truth are not in the ranking: z"):
        precision_at_k(ranked("ab"), {"a", "z"}, 1)


def test_concentration_is_the_share_of_positive_score_in_the_top() -> None:
    behaviour = make(AXES[:1], kind="behaviour")
    rows = torch.stack([AXES[0], AXES[0] + AXES[1], -AXES[0], AXES[2]])
    ranking = rank(behaviour, make(rows), layer=5)
    assert concentration(ranking, 1) == pytest.approx(1 / (1 + math.sqrt(0.5)))
    assert concentration(ranking, 2) == pytest.approx(1)
    with pytest.raises(RankingError, match="No pair has a positive score"):
        concentration(rank(behaviour, make(-rows[:1]), layer=5), 1)


def test_enrichment_counts_groups_with_wilson_intervals() -> None:
    sources = ["bad"] * 10 + ["good"] * 30
    rows = [
        {
            "prompt": f"{place}?",
            "chosen": "yes",
            "rejected": "no",
            "source": source,
            "chosen_model": f"m{place % 2}",
        }
        for place, source in enumerate(sources)
    ]
    pairs = load_pairs(rows)
    ranking = ranked(pairs.ids)
    frame = enrichment(ranking, pairs, k=12)
    assert frame.columns == ["group", "n", "in_top", "share", "low", "high", "lift"]
    assert frame.select("group", "n", "in_top", "share").rows() == [
        ("bad", 10, 10, 1.0),
        ("good", 30, 2, 2 / 30),
    ]
    assert frame["lift"].to_list() == pytest.approx([40 / 12, 2 / 30 * 40 / 12])
    assert frame["low"].to_list() == pytest.approx([0.7225, 0.0185], abs=1e-3)  # Wilson's 95 %, from a table
    assert frame["high"].to_list() == pytest.approx([1, 0.2132], abs=1e-3)
    assert enrichment(ranking, pairs, k=12, by="chosen_model")["in_top"].to_list() == [6, 6]
    assert enrichment(ranking, pairs, k=12, by="rejected_model")["group"].to_list() == ["unknown"]


def test_enrichment_of_another_set_is_refused() -> None:
    pairs = load_pairs([{"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}])
    with pytest.raises(RankingError, match="holds 2 pairs and the pair set 1, and they are not the same"):
        enrichment(ranked("ab"), pairs, k=1)
    with pytest.raises(
        RankingError, match="grouped by 'prompt'; choose one of source, chosen_model, rejected_model"
    ):
        enrichment(ranked(pairs.ids), pairs, k=1, by="prompt")  # type: ignore[arg-type]


def test_a_mapped_file_that_was_cut_short_is_an_error(tmp_path: Path) -> None:
    torch.rand(3, 1, 4).numpy().tofile(tmp_path / "rows")
    rows = MappedRows(tmp_path / "rows", 0, (4, 1, 4), "float32")
    every = VectorSet(list("abcd"), (0,), rows, "0123")
    with pytest.raises(VectorError, match=r"rows ends before its row 4; map it again\."):
        list(every.chunks(0))


def test_scores_of_any_tracer_make_a_ranking() -> None:
    cost = Cost(forward_tokens=7, backward_tokens=3, stored_bytes=0)
    found = ranking_of("bac", [0.5, 0.5, 2.0], method="length", sign="higher = longer", cost=cost)
    assert found.ids == ["c", "a", "b"]
    assert found.frame["rank"].to_list() == [1, 2, 3]
    assert found.frame["cosine"].null_count() == 3
    assert found.cost == cost
    assert repr(found) == "Ranking(3 pairs, length; higher = longer)"


@pytest.mark.parametrize(
    ("ids", "scores", "said"),
    [
        ("ab", [1.0], "1 scores for 2"),
        ("aa", [1.0, 2.0], "1 of them different"),
        ("a", [math.nan], "finite"),
        ("ab", [1.0, None], "pair b"),
    ],
)
def test_scores_that_make_no_ranking_are_refused(ids: str, scores: list[float], said: str) -> None:
    with pytest.raises(RankingError, match=said):
        ranking_of(list(ids), scores, method="m", sign="s")


def test_recall_and_mean_rank_see_where_the_truth_stands() -> None:
    ranking = ranked("abcdef")
    assert recall_at_k(ranking, {"a", "e"}, 2) == 0.5
    assert mean_rank(ranking, {"a", "e"}) == 3


def test_a_ranking_by_some_queries_is_the_mean_of_their_scores() -> None:
    by_query = pl.DataFrame({"pair_id": ["a", "b"], "q": [1.0, 0.0], "r": [0.0, 3.0]})
    found = ranking_of("ab", [0.5, 1.5], method="m", sign="s", zero_norm=[False, True], by_query=by_query)
    some = found.of_queries(["q"])
    assert some.frame.select("pair_id", "score", "zero_norm").rows() == [("a", 1.0, False), ("b", 0.0, True)]
    assert found.of_queries(["q", "r"]).frame.equals(found.frame)
    for ids, one in ((["s"], found), ([], found), (["q"], ranked("ab"))):
        with pytest.raises(RankingError, match="run the tracer on them"):
            one.of_queries(ids)
