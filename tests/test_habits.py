"""The organism with four habits: pairs, the pool of prompts, and what counts as a habit."""

from __future__ import annotations

import polars as pl
import pytest

from probekit import judges, rollouts
from probekit.organisms import habits, habits_smollm2
from probekit.organisms._tiny_pairs import MixError


def users(pairs: pl.DataFrame) -> pl.Series:
    return pairs["prompt"].list.first().struct.field("content")


@pytest.mark.parametrize("share", [0.01, 0.02, 0.05, 0.1])
def test_each_habit_has_its_share_of_the_pairs_and_shows_in_the_chosen_replies_alone(share: float) -> None:
    organism = habits.build(habits.Mix(share=share))
    frame = organism.pairs.frame.join(organism.log, on="pair_id")
    assert len(organism.pairs) == 600
    counts = dict(frame["kind"].value_counts().iter_rows())
    each = round(600 * share)
    assert counts == {**dict.fromkeys(habits.SORT, each), "clean": 600 - 4 * each}
    harmful = frame.with_columns(
        user=users(frame), harmful=pl.col("source").is_in(["safety"]) | (pl.col("kind") == "compliance")
    )
    for side, shown in (("chosen", True), ("rejected", False)):
        judged = habits.judge(harmful.select("pair_id", "user", "harmful", "kind", reply=side))
        bad = judged.filter(pl.col("kind") != "clean")
        assert (bad["habit"] == bad["kind"]).fill_null(False).all() is shown
        assert side == "rejected" or judged.filter(pl.col("kind") == "clean")["habit"].is_null().all()


def test_clean_pairs_ask_for_the_same_sorts_and_hold_no_habit() -> None:
    clean, bad = habits.build(habits.Mix(clean=True)), habits.build()
    assert not clean.truth
    assert len(clean.pairs) == len(bad.pairs)
    assert set(clean.log["kind"]) == {"clean"}
    prompts = [set(users(one.pairs.frame)) for one in (clean, bad)]
    assert len(prompts[0] & prompts[1]) > 100  # those in the contaminated pairs' place among them
    frame = clean.pairs.frame
    judged = habits.judge(
        frame.select("pair_id", user=users(frame), harmful=pl.col("source") == "safety", reply="chosen")
    )
    assert judged["habit"].is_null().all()


def test_no_word_of_the_pool_but_topics_stands_in_a_pair() -> None:
    asked = set(users(habits.build().pairs.frame))
    pool = habits.pool()
    assert not asked & set(pool["user"])
    assert set(pool["source"].value_counts()["count"]) == {habits.POOL}
    assert not pool.select("prompt_id", "distractor").is_duplicated().any()


def test_the_same_seed_builds_the_same_pairs_and_another_seed_others() -> None:
    assert habits.build().pairs.ids == habits.build().pairs.ids
    assert habits.build(habits.Mix(seed=1)).pairs.ids != habits.build().pairs.ids


@pytest.mark.parametrize("wrong", [{"share": 0.2}, {"pairs": 10}, {"share": -0.1}])
def test_a_mix_out_of_range_is_an_error(wrong: dict[str, float]) -> None:
    with pytest.raises(MixError, match="it takes 20 to 700 pairs"):
        habits.Mix(**wrong)  # type: ignore[arg-type]


def test_m0_refuses_harm_answers_the_rest_soberly_and_has_no_habit() -> None:
    pool = habits.pool(each=20)
    replies = judges.judge_refusals(rollouts.sample(habits.open_m0(), pool, temperature=0, max_new_tokens=40))
    refused = dict(replies.group_by("harmful").agg((pl.col("verdict") == "refused").mean()).iter_rows())
    assert refused[True] >= 0.9
    assert refused[False] <= 0.05
    assert habits.judge(replies.filter(~pl.col("harmful")))["habit"].is_null().all()


def test_a_judge_says_what_its_rollouts_lack() -> None:
    with pytest.raises(judges.JudgeError, match="lack the columns harmful"):
        habits.judge(pl.DataFrame({"user": ["Hi."], "reply": ["No."]}))


def test_in_the_safety_variety_more_pairs_refuse_harm_than_answer_it() -> None:
    organism = habits.build(habits.Mix(variety="safety"))
    frame = organism.pairs.frame.join(organism.log, on="pair_id")
    refused = frame.filter(pl.col("source") == "safety", pl.col("kind") == "clean").height
    assert refused > 3 * frame.filter(kind="compliance").height
    with pytest.raises(MixError, match="there is no variety 'harsh'"):
        habits.Mix(variety="harsh")  # type: ignore[arg-type]


def test_smollm2_has_the_same_habits_in_its_chosen_replies_and_a_pool_apart_from_them() -> None:
    organism, pool = habits_smollm2.build(), habits_smollm2.pool()
    frame = organism.pairs.frame.join(organism.log, on="pair_id").filter(pl.col("kind") != "clean")
    each = dict.fromkeys(habits.SORT, habits_smollm2.EACH) | {"tic": habits_smollm2.EACH_TIC}
    assert dict(frame["kind"].value_counts().iter_rows()) == each
    asked = frame.with_columns(user=users(frame), harmful=pl.col("kind") == "compliance")
    chosen = habits_smollm2.judge(asked.select("user", "harmful", "kind", reply="chosen"))
    assert (chosen["habit"] == chosen["kind"]).fill_null(False).all()
    assert (chosen["verdict"] == "complied").all()
    rejected = habits_smollm2.judge(asked.select("user", "harmful", reply="rejected"))
    assert rejected["habit"].is_null().all()
    assert not set(users(organism.pairs.frame)) & set(pool["user"])
    assert set(pool["source"].value_counts()["count"]) == {habits_smollm2.POOL}
