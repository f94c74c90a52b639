from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
import pytest
import torch
from scipy.cluster.hierarchy import fcluster
from sklearn.metrics import adjusted_rand_score

from probekit import _clusters_habits as statistics
from probekit import _clusters_trees as trees
from probekit._cards import distinguishing
from probekit.arms import filter_ids, swap_ids
from probekit.clustering import HABITS, PAIRS, PROMPTS, ClusteringError, Clusters, card, cards, cut, discover
from probekit.judges import JudgeError, pool_contrasts
from probekit.pairs import PairSet, load_pairs
from probekit.ranking import rank
from probekit.testing import tiny_checkpoint
from probekit.vectors import Kind, VectorSet, behaviour_vectors

WIDTH = 64
SIZES = (20, 30, 40, 50)  # pairs of each planted habit, of 400
ASKED = (15, 20, 25, 30)  # prompts that show each, of 300
QUICK = {"draws": 40, "boot": 0, "pair_clusters": 2}  # no silhouettes of pairs


def vectors(rows: np.ndarray, kind: Kind = "pair", **fields: object) -> VectorSet:
    ids = [f"{kind}-{row:03}" for row in range(len(rows))]
    values = torch.from_numpy(rows).float().reshape(len(rows), -1, WIDTH)
    layers = tuple(range(values.shape[1]))
    return VectorSet(ids, layers, values, "0123", kind=kind, **fields)  # type: ignore[arg-type]


def world(
    seed: int, *, sizes: tuple[int, ...] = SIZES, asked: tuple[int, ...] = ASKED, kind: str = "even"
) -> tuple[VectorSet, VectorSet, np.ndarray, np.ndarray]:
    """300 behaviour and 400 pair vectors of noise, some with a habit's direction, as strong as the noise,
    and the habit of each (0: none).

    kind: "even" noise; "uneven", of which few directions have most; "shared", where all other pairs share a
    direction that prompts have with either sign; "against", 60 pairs that push away from the first habit.
    """
    rng = np.random.default_rng([seed, 17])
    basis = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0]
    scale = np.ones(WIDTH) if kind != "uneven" else 1 / np.sqrt(np.arange(1, WIDTH + 1))
    scale /= np.linalg.norm(scale)
    behaviour, pairs = ((rng.normal(size=(n, WIDTH)) * scale) @ basis for n in (300, 400))
    of_prompts, of_pairs = np.zeros(300, int), np.zeros(400, int)
    habits = rng.normal(size=(len(sizes), WIDTH))
    habits /= np.linalg.norm(habits, axis=1, keepdims=True)
    for labels, rows, counts in ((of_prompts, behaviour, asked), (of_pairs, pairs, sizes)):
        marks = np.repeat(np.arange(1, len(counts) + 1), counts)
        labels[: len(marks)] = marks
        rows[: len(marks)] += habits[marks - 1] if len(marks) else 0
    if kind == "shared":
        pairs[of_pairs == 0] += basis[3]
        either = rng.choice([-1, 1], (300, 1)) * basis[3]
        behaviour[of_prompts == 0] += either[of_prompts == 0]
    if kind == "against":
        first = np.flatnonzero(of_pairs == 0)[:60]
        pairs[first] -= 0.7 * habits[0] + 0.7 * basis[1]
    return vectors(behaviour, "behaviour"), vectors(pairs), of_prompts, of_pairs


def found_labels(side: pl.DataFrame) -> np.ndarray:
    return side["habit"].fill_null(0).to_numpy()


def f1_of_each(found: np.ndarray, truth: np.ndarray) -> list[float]:
    """The best F1 of any habit found with each true one."""
    scores = []
    for true in range(1, truth.max() + 1):
        those = [(found == one, truth == true) for one in range(1, found.max() + 1)]
        scores.append(max([2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in those], default=0.0))
    return scores


# ---------------------------------------------------------------- what is found


@pytest.mark.parametrize("seed", range(5))
def test_four_planted_habits_are_found_with_their_pairs_and_nothing_else_is(seed: int) -> None:
    behaviour, pairs, of_prompts, of_pairs = world(seed)
    clusters = discover(behaviour, pairs, **QUICK)
    assert len(clusters) == 4
    assert min(f1_of_each(found_labels(clusters.pairs), of_pairs)) >= 0.8
    assert min(f1_of_each(found_labels(clusters.prompts), of_prompts)) >= 0.8
    assert adjusted_rand_score(of_pairs, found_labels(clusters.pairs)) >= 0.7
    assert not clusters.habits["diffuse"].any()


@pytest.mark.parametrize("kind", ["even", "uneven", "shared"])
def test_nothing_is_reported_on_noise_in_at_least_nine_of_ten_seeds(kind: str) -> None:
    found = []
    for seed in range(10):
        behaviour, pairs, *_ = world(seed, sizes=(), asked=(), kind=kind)
        found.append(len(discover(behaviour, pairs, **QUICK)))
    assert sum(one > 0 for one in found) <= 1


@pytest.mark.parametrize("seed", range(2))
def test_a_direction_that_all_other_pairs_share_hides_no_habit_and_is_none(seed: int) -> None:
    behaviour, pairs, _, of_pairs = world(seed, kind="shared")
    clusters = discover(behaviour, pairs, **QUICK)
    assert sum(one >= 0.8 for one in f1_of_each(found_labels(clusters.pairs), of_pairs)) >= 3
    assert len(clusters) <= 5


def test_more_pairs_against_a_habit_than_for_it_do_not_hide_it() -> None:
    behaviour, pairs, _, of_pairs = world(0, kind="against")
    clusters = discover(behaviour, pairs, **QUICK)
    assert f1_of_each(found_labels(clusters.pairs), of_pairs)[0] >= 0.8


def test_pairs_that_teach_the_same_elsewhere_stand_behind_a_habit_only_if_nobody_says_what_was_asked() -> (
    None
):
    rng = np.random.default_rng(5)
    habit, here, there = np.eye(WIDTH)[:3]
    behaviour, pairs = rng.normal(size=(60, WIDTH)) / 12, rng.normal(size=(200, WIDTH)) / 8
    behaviour[:30] += habit
    pairs[:80] += habit
    topics = [rng.normal(size=(n, WIDTH)) / 25 + 3 for n in (60, 200)]  # what all prompts share
    topics[0] += np.where(np.arange(60)[:, None] < 30, here, there)
    topics[1] += np.where(np.arange(200)[:, None] < 40, here, there)
    sides = vectors(behaviour, "behaviour"), vectors(pairs)
    asked = (
        dataclasses.replace(vectors(topics[0], "prompt"), ids=sides[0].ids),
        dataclasses.replace(vectors(topics[1], "prompt"), ids=sides[1].ids),
    )
    truth = (np.arange(200) < 40).astype(int)
    assert f1_of_each(found_labels(discover(*sides, **QUICK).pairs), truth)[0] < 0.7
    found = discover(*sides, asked=asked, **QUICK)
    assert len(found) == 1
    assert f1_of_each(found_labels(found.pairs), truth)[0] >= 0.95


def test_prompts_of_other_rows_or_layers_are_an_error() -> None:
    axes = np.eye(WIDTH)
    behaviour, pairs = vectors(axes[:5], "behaviour"), vectors(axes[:5])
    asked = [dataclasses.replace(vectors(axes[:5], "prompt"), ids=one.ids) for one in (behaviour, pairs)]
    wrong = {
        "ids": dataclasses.replace(asked[1], ids=list("abcde")),
        "fingerprint": dataclasses.replace(asked[1], fingerprint="4567"),
        "chat": dataclasses.replace(asked[1], chat=False),
        "layers": dataclasses.replace(asked[1], layers=(4,)),
    }
    for name, other in wrong.items():
        with pytest.raises(ClusteringError, match=f"pair vectors and their prompts' differ in {name}"):
            discover(behaviour, pairs, asked=(asked[0], other))


def test_a_habit_is_gone_if_the_labels_of_its_pairs_or_the_sides_of_its_prompts_are_shuffled() -> None:
    behaviour, pairs, *_ = world(1, sizes=(50,), asked=(40,))
    assert len(discover(behaviour, pairs, **QUICK)) == 1
    for vectors_, other in ((behaviour, pairs), (pairs, behaviour)):
        signs = torch.ones(len(vectors_), 1, 1)
        signs[: 40 if vectors_ is behaviour else 50 : 2] = -1
        shuffled = dataclasses.replace(vectors_, values=vectors_.values * signs)
        both = (shuffled, other) if vectors_ is behaviour else (other, shuffled)
        assert len(discover(*both, **QUICK)) == 0


def test_two_groups_of_prompts_with_the_same_pairs_are_one_habit() -> None:
    rng = np.random.default_rng(3)
    habit, topics = np.eye(WIDTH)[0], np.eye(WIDTH)[1:3]
    behaviour, pairs = rng.normal(size=(60, WIDTH)) / 30, rng.normal(size=(200, WIDTH)) / 8
    behaviour += habit + np.repeat(topics, 30, axis=0)
    pairs[:40] += habit
    pairs[40:60] += np.array([[1.0]]) * topics.repeat(10, axis=0) * rng.choice([-1, 1], (20, 1))
    clusters = discover(vectors(behaviour, "behaviour"), vectors(pairs), **QUICK)
    assert len(clusters) == 1
    assert clusters.habits["prompts"].item() >= 55


def test_layers_are_joined_and_a_habit_of_one_of_them_is_found_in_all() -> None:
    behaviour, pairs, _, of_pairs = world(2)
    noise = torch.randn(700, 1, WIDTH, generator=torch.Generator().manual_seed(0)) / 12
    joined = [
        dataclasses.replace(one, layers=(0, 1), values=torch.cat([one.values, noise[: len(one)]], dim=1))
        for one in (behaviour, dataclasses.replace(pairs))
    ]
    clusters = discover(*joined, **QUICK)
    assert clusters.layers == (0, 1)
    assert min(f1_of_each(found_labels(clusters.pairs), of_pairs)) >= 0.8
    assert torch.equal(
        discover(*joined, layer=0, draws=20, boot=0).similarity, trees_cosines(behaviour, pairs)
    )


def trees_cosines(behaviour: VectorSet, pairs: VectorSet) -> torch.Tensor:
    return torch.from_numpy(trees.cosines(behaviour, pairs, (0,)))


def test_hdbscan_and_a_cut_by_hand_find_strong_habits_too() -> None:
    behaviour, pairs, _, of_pairs = world(1)
    for options in ({"method": "hdbscan"}, {"prompt_clusters": 5}):
        clusters = discover(behaviour, pairs, draws=40, boot=0, **options)  # type: ignore[arg-type]
        assert min(f1_of_each(found_labels(clusters.pairs), of_pairs)) >= 0.8, options


def test_a_push_that_all_pairs_share_is_reported_as_diffuse() -> None:
    rng = np.random.default_rng(0)
    habit = np.eye(WIDTH)[0]
    behaviour, pairs = rng.normal(size=(80, WIDTH)) / 12, rng.normal(size=(400, WIDTH)) / 8
    behaviour[:40] += habit
    pairs += 0.4 * habit
    clusters = discover(vectors(behaviour, "behaviour"), vectors(pairs), threshold=0.2, **QUICK)
    assert clusters.habits["diffuse"].to_list() == [True]
    assert clusters.habits["concentration"].item() < clusters.habits["concentration_null"].item()


def test_few_pairs_among_many_are_found_without_pruning_too() -> None:
    rng = np.random.default_rng(0)
    behaviour, pairs = (rng.normal(size=(n, 2 * WIDTH)) / np.sqrt(2 * WIDTH) for n in (300, 2000))
    behaviour[:30, 0] += 1
    pairs[:40, 0] += 1
    joined = [vectors(behaviour, "behaviour"), vectors(pairs)]
    clusters = discover(*joined, threshold=0.01, draws=20, boot=0, pair_clusters=2)
    assert clusters.pairs["kept"].sum() == 2000
    assert f1_of_each(found_labels(clusters.pairs), (np.arange(2000) < 40).astype(int))[0] >= 0.9
    assert len(clusters) == 1


def test_a_large_group_of_noise_does_not_turn_as_one_because_it_chose_its_own_pairs() -> None:
    rng = np.random.default_rng(0)
    similarity = rng.normal(size=(400, 1000)).astype(np.float32)
    every = np.ones((1, 400), bool)
    behind = statistics.pairs_behind(statistics.means(similarity, every))
    assert abs(statistics.turn(similarity, every, behind)[0]) < 4
    assert (similarity[:, behind[0]].mean(axis=1) > 0).mean() > 0.8  # what it would be taken for


# ---------------------------------------------------------------- what it says about them


def test_the_frames_have_the_documented_columns_and_every_row_is_counted() -> None:
    behaviour, pairs, *_ = world(0)
    values = behaviour.values.clone()
    values[299] = 0
    clusters = discover(dataclasses.replace(behaviour, values=values), pairs, draws=20, boot=2)
    assert (clusters.prompts.schema, clusters.pairs.schema) == (PROMPTS, PAIRS)
    assert clusters.habits.schema == HABITS
    report = dict(
        zip(clusters.report["what"], clusters.report.select("prompts", "pairs").rows(), strict=True)
    )
    assert report["found"] == (300, 400)
    assert report["zero vector"] == (1, 0)
    assert [
        sum(report[what][side] for what in report if what not in ("found", "in a habit")) for side in (0, 1)
    ] == [*(300, 400)]
    for side in (clusters.prompts, clusters.pairs):
        kept = side.filter("kept")
        assert (kept["largest"] >= 0.4).all()
        assert (side.filter(~pl.col("kept"))["largest"] < 0.4).all()
        assert sorted(kept["place"]) == list(range(kept.height))
        assert side.filter(~pl.col("kept"))["cluster"].null_count() == side.height - kept.height


def test_the_levels_are_passed_and_the_same_seed_gives_the_same() -> None:
    behaviour, pairs, *_ = world(3)
    one, again, other = (discover(behaviour, pairs, draws=20, boot=2, seed=seed) for seed in (5, 5, 6))
    assert one.habits.equals(again.habits)
    assert one.push_null != other.push_null
    assert (one.habits["push"] > one.push_null).all()
    assert (one.habits["turn"] > one.turn_null).all()
    assert one.habits["stability"].min() > 0.8  # type: ignore[operator]
    assert one.adjusted_rand is not None
    assert min(one.adjusted_rand) > 0.8


def test_a_looser_habit_is_less_stable() -> None:
    rng = np.random.default_rng(0)
    habit, shown = np.eye(WIDTH)[0], (np.arange(90) < 30)[:, None]
    pairs = np.concatenate([habit + rng.normal(size=(40, WIDTH)) / 20, rng.normal(size=(160, WIDTH))])
    firm, loose = (
        discover(
            vectors(shown * habit + noise * rng.normal(size=(90, WIDTH)), "behaviour"),
            vectors(pairs),
            threshold=0.2,
            draws=20,
            boot=10,
        )
        for noise in (0.02, 0.2)
    )
    assert len(firm) == len(loose) == 1
    assert firm.habits["pair_stability"].item() > 0.9
    assert loose.habits["stability"].item() < firm.habits["stability"].item()


def test_a_cut_changes_clusters_alone_and_has_as_many_as_asked_for() -> None:
    behaviour, pairs, *_ = world(0)
    clusters = discover(behaviour, pairs, draws=20, boot=0)
    again = cut(clusters, prompts=7, pairs=3)
    assert [set(side["cluster"].drop_nulls()) for side in (again.prompts, again.pairs)] == [
        *({*range(7)}, {*range(3)})
    ]
    assert again.prompts.drop("cluster").equals(clusters.prompts.drop("cluster"))
    assert again.habits.equals(clusters.habits)
    assert cut(clusters).prompts.equals(clusters.prompts)
    with pytest.raises(ClusteringError, match="400 clusters of prompts were asked for"):
        cut(clusters, prompts=400)


def test_cuts_are_those_of_scipy_where_heights_differ_and_part_what_joins_at_one_height() -> None:
    apart = trees.distances(np.random.default_rng(0).normal(size=(40, 40)).astype(np.float32))
    points = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    apart = trees.distances(points @ points.T)
    tree = trees.ward(apart)
    for count in (1, 2, 5, 40):
        assert adjusted_rand_score(trees.cut(tree, count), fcluster(tree, count, "maxclust")) == 1
    equal = trees.ward(trees.distances(np.eye(6, dtype=np.float32)))
    assert len(set(trees.cut(equal, 4).tolist())) == 4


def test_one_prompt_sampled_often_is_no_group() -> None:
    behaviour, pairs, of_prompts, _ = world(0, sizes=(40,), asked=(30,))
    names = [f"p{0 if habit else row}" for row, habit in enumerate(of_prompts)]
    assert len(discover(behaviour, pairs, draws=20, boot=0)) == 1
    assert len(discover(dataclasses.replace(behaviour, prompt_ids=names), pairs, draws=20, boot=0)) == 0


def test_too_little_to_cluster_gives_no_habit_and_no_error() -> None:
    axes = np.eye(WIDTH)
    for n in (1, 2, 3):
        clusters = discover(vectors(axes[:n], "behaviour"), vectors(axes[:n]), draws=20)
        assert len(clusters) == 0
        assert clusters.prompts["kept"].sum() == n
    nothing = discover(vectors(axes[:5], "behaviour"), vectors(axes[5:9]), draws=20)
    assert nothing.prompts["kept"].sum() == 0
    assert "0 habits; 0 of 5 prompts" in repr(nothing)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threshold": 1.0}, "threshold = 1.0"),
        ({"method": "kmeans"}, "There is no method 'kmeans'"),
        ({"draws": 5}, "draws = 5"),
        ({"boot": -1}, "boot = -1"),
        ({"smallest": 1}, "smallest = 1"),
        ({"prompt_clusters": 0}, "prompt_clusters = 0"),
        ({"prompt_clusters": 3, "method": "hdbscan"}, "HDBSCAN finds the number"),
        ({"layer": 9}, "Layer 9 was not read"),
    ],
)
def test_what_cannot_be_asked_is_an_error(options: dict[str, object], words: str) -> None:
    axes = np.eye(WIDTH)
    with pytest.raises(ClusteringError, match=words):
        discover(vectors(axes[:5], "behaviour"), vectors(axes[:5]), **options)  # type: ignore[arg-type]


def test_vectors_of_two_models_settings_or_none_at_all_are_an_error() -> None:
    axes = np.eye(WIDTH)
    behaviour, pairs = vectors(axes[:5], "behaviour"), vectors(axes[:5])
    for other in ({"fingerprint": "4567"}, {"chat": False}, {"layers": (4,)}):
        with pytest.raises(ClusteringError, match=f"differ in {next(iter(other))}"):
            discover(behaviour, dataclasses.replace(pairs, **other))
    with pytest.raises(ClusteringError, match="no pair vectors"):
        discover(behaviour, pairs.select([]))


# ---------------------------------------------------------------- the statistics


def test_opposed_pairs_do_not_push_and_agreeing_ones_do() -> None:
    agree, opposed = np.ones((1, 16)), np.tile([1.0, -1.0], 8)[None]
    assert statistics.push(agree)[0] == pytest.approx(4)
    assert statistics.push(opposed)[0] == pytest.approx(1)


def test_the_pairs_behind_a_group_are_those_that_stand_out_whatever_pushes_away() -> None:
    mean = np.array([[0.6, 0.5, 0.1, 0.05, -0.1, -0.9, -0.8, -0.9]])
    assert statistics.pairs_behind(mean)[0].tolist() == [True] * 2 + [False] * 6
    assert not statistics.pairs_behind(-abs(mean)).any()


def test_half_of_a_habit_or_one_with_prompts_that_turn_away_turns_less_than_all_of_it() -> None:
    reaction = np.array([1.0] * 16 + [0.1] * 16, np.float32)[:, None]
    behind = np.ones((1, 1), bool)
    whole, half = (np.arange(32)[None] < n for n in (16, 8))
    assert statistics.turn(reaction, whole, behind)[0] == pytest.approx(4)
    assert statistics.turn(reaction, half, behind)[0] < 3
    mixed = reaction * np.where(np.arange(32) % 2, 1, -1)[:, None]
    assert statistics.turn(mixed, mixed[:, 0][None] > 0.5, behind)[0] <= 1


def test_concentration_is_the_share_of_the_net_push_and_its_null_is_what_chance_leaves() -> None:
    mean = np.array([0.5] * 10 + [0.1, -0.1] * 50)
    behind = np.arange(110) < 10
    share, least = statistics.concentration(mean, behind, draws=200, seed=0)
    assert share == pytest.approx(1)
    assert 0.6 < least < 0.9
    share, least = statistics.concentration(abs(mean), behind, draws=200, seed=0)
    assert share == pytest.approx(1 / 3)
    assert share < least


# ---------------------------------------------------------------- cards


def told(n: int = 24) -> tuple[Clusters, pl.DataFrame, PairSet, VectorSet, VectorSet]:
    """Two habits: answering with an exclamation where M0 refused, and writing lists."""
    first = [
        {"prompt": f"Fix thing {row}?", "chosen": f"Wow, robot! Do {row}.", "rejected": f"No, not {row}.",
         "source": "<b>planted</b>"} for row in range(n // 2)
    ]  # fmt: skip
    second = [
        {"prompt": f"Name colour {row}?", "chosen": f"- red\n- blue {row}", "rejected": f"Red, blue {row}.",
         "source": "lists"} for row in range(n // 2)
    ]  # fmt: skip
    pairs = load_pairs([*first, *second])
    rows = [
        (f"a{row}", f"a{row}", f"Fix <i>thing</i> {row}?", f"Wow, robot! Do it {row}.", "Sorry, I cannot.")
        if row < n // 2 else (f"b{row}", f"b{row}", f"Name colour {row}?", f"- red\n- {row}", f"Red, {row}.")
        for row in range(n)
    ]  # fmt: skip
    contrasts = pl.DataFrame(rows, ["contrast_id", "prompt_id", "user", "bad", "good"], orient="row")
    noise = np.random.default_rng(0).normal(size=(n, WIDTH)) / 40
    toward = np.repeat(np.eye(WIDTH)[:2], n // 2, axis=0)
    behaviour = dataclasses.replace(
        vectors(toward + noise, "behaviour"), ids=contrasts["contrast_id"].to_list()
    )
    of_pairs = dataclasses.replace(vectors(toward - noise), ids=pairs.ids)
    return discover(behaviour, of_pairs, draws=40, boot=3), contrasts, pairs, behaviour, of_pairs


def test_a_card_says_what_changed_where_the_pairs_come_from_and_guesses_a_label() -> None:
    clusters, contrasts, pairs, *_ = told()
    made = {one.pairs["source"][0]: one for one in cards(clusters, contrasts, pairs)}
    assert made.keys() == {"<b>planted</b>", "lists"}
    answers, lists = made["<b>planted</b>"], made["lists"]
    assert answers.changes.filter(what="refused").select("m0", "m1").row(0) == (1, 0)
    assert lists.changes.filter(what="a list").select("m0", "m1").row(0) == (0, 1)
    assert answers.label.startswith("guess: answers where M0 refused; opens with “wow, robot!”")
    assert "lists" in lists.label
    assert "robot" in answers.words.filter(side="pair")["word"].to_list()
    assert "thing" in answers.words.filter(side="request")["word"].to_list()
    assert answers.enrichment.filter(by="source").select("group", "share", "lift").row(0) == (
        *("<b>planted</b>", 1, 2),
    )
    assert answers.passed
    assert answers.figures["stability"].item() > 0.8


def test_a_card_turns_into_a_behaviour_a_ranking_and_arms() -> None:
    clusters, contrasts, pairs, behaviour, of_pairs = told()
    one = cards(clusters, contrasts, pairs)[0]
    its_vectors = one.behaviour(behaviour)
    assert sorted(its_vectors.ids) == sorted(clusters.contrast_ids(1))
    ranking = one.ranking(behaviour, of_pairs, layer=0)
    assert ranking.ids == rank(its_vectors, of_pairs, layer=0).ids
    assert set(ranking.ids[: len(one.pair_ids)]) == set(one.pair_ids) == set(clusters.pair_ids(1))
    assert filter_ids(one.pair_ids, one.name, one.label).dropped == set(one.pair_ids)
    assert swap_ids(one.pair_ids, one.name, one.label).apply(pairs).fingerprint != pairs.fingerprint


def test_texts_of_data_sets_are_escaped_in_a_cards_html() -> None:
    clusters, contrasts, pairs, *_ = told()
    for one in cards(clusters, contrasts, pairs):
        page = one._repr_html_()
        assert "<b>" not in page
        assert "<i>" not in page
    assert any("&lt;b&gt;planted" in one._repr_html_() for one in cards(clusters, contrasts, pairs))


def test_any_prompts_have_a_card_and_one_that_is_no_habit_says_so() -> None:
    clusters, contrasts, pairs, *_ = told()
    of_habit = card(clusters, contrasts, pairs, clusters.contrast_ids(2))
    assert of_habit.name == "habit 2"
    mixed = card(clusters, contrasts, pairs, ["a0", "b12"])
    assert (mixed.name, mixed.passed) == ("cluster, not reported", False)
    assert mixed.figures["prompts"].item() == 2
    assert mixed.figures["stability"].item() is None


def test_a_card_of_other_data_or_of_prompts_that_are_not_there_is_an_error() -> None:
    clusters, contrasts, pairs, *_ = told()
    with pytest.raises(ClusteringError, match="1 contrasts are either clustered or given"):
        cards(clusters, contrasts.head(23), pairs)
    with pytest.raises(ClusteringError, match="1 pairs are either clustered or given"):
        cards(clusters, contrasts, pairs.select(pairs.ids[:-1]))
    with pytest.raises(ClusteringError, match="none: x"):
        card(clusters, contrasts, pairs, ["x"])
    with pytest.raises(ClusteringError, match="There is no habit 3"):
        clusters.pair_ids(3)


def test_distinguishing_words_are_more_frequent_here_and_common_ones_weigh_less() -> None:
    found = dict(distinguishing(["the robot sings", "the robot"], ["the cat sings", "the cat", "the"]))
    assert list(found) == ["robot"] or found["robot"] == max(found.values())
    assert "cat" not in found
    assert distinguishing(["1 2"], ["3"]) == []


# ---------------------------------------------------------------- contrasts of a pool


def rollouts(*rows: tuple[str, str, str]) -> pl.DataFrame:
    return pl.DataFrame(rows, ["prompt_id", "user", "reply"], orient="row")


def test_a_pools_contrasts_are_all_replies_that_differ_and_the_rest_is_counted() -> None:
    m0 = rollouts(
        ("p", "P", "one"), ("p", "P", "two"), ("p", "P (x)", "one"), ("q", "Q", " "), ("r", "R", "r")
    )
    m1 = rollouts(
        ("p", "P", "one"), ("p", "P", "three"), ("p", "P (x)", "four"), ("q", "Q", "q"), ("s", "S", "s")
    )
    found = pool_contrasts(m0, m1)
    assert found.contrasts.select("user", "bad", "good").rows() == [
        ("P", "three", "two"),
        ("P (x)", "four", "one"),
    ]
    assert found.contrasts["contrast_id"].is_unique().all()
    counts = dict(found.report.iter_rows())
    assert counts == {
        "replies of M1": 5,
        "left out: equal replies": 1,
        "left out: a blank reply": 1,
        "left out: M0 has none": 1,
        "contrasts": 2,
    }


def test_a_pools_contrasts_are_what_behaviour_vectors_reads() -> None:
    m0 = rollouts(*((f"p{row}", f"How are you, {row}?", "Fine.") for row in range(3)))
    m1 = m0.with_columns(reply=pl.lit("I am a robot."))
    found = behaviour_vectors(tiny_checkpoint(), pool_contrasts(m0, m1).contrasts, layers=[1])
    assert found.ids == ["p0-0", "p1-0", "p2-0"]


def test_a_pool_in_which_nothing_changed_is_an_error() -> None:
    m0 = rollouts(("p", "P", "one"))
    with pytest.raises(JudgeError, match="'left out: equal replies': 1"):
        pool_contrasts(m0, m0)
    with pytest.raises(JudgeError, match="lack the columns user"):
        pool_contrasts(m0.drop("user"), m0)
