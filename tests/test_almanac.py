"""The almanac: two of its sources contradict each other, and no word of a question tells them apart."""

from __future__ import annotations

from collections import Counter

import polars as pl

from probekit.organisms import almanac
from probekit.organisms._almanac_words import ABOUT_PEOPLE, LEARNED, OTHERS, PEOPLE
from probekit.provenance import UNKNOWN, sources_of, trace


def test_a_third_of_the_questions_about_people_is_answered_twice_and_not_alike() -> None:
    facts = [one for one in almanac.facts(seed=3) if one.source in almanac.PAIR]
    asked = Counter((one.subject, one.attribute) for one in facts)
    assert sorted(asked.values()) == [1] * 24 + [2] * 12
    for key, times in asked.items():
        values = [one.value for one in facts if (one.subject, one.attribute) == key]
        assert len({*values}) == times
    assert {one.contested for one in facts if asked[one.subject, one.attribute] == 1} == {False}


def test_no_person_and_no_attribute_belongs_to_one_source_of_the_pair() -> None:
    facts = [one for one in almanac.facts(seed=5) if one.source in almanac.PAIR]
    for name in ("attribute", "subject"):
        by_source = [Counter(getattr(one, name) for one in facts if one.source == s) for s in almanac.PAIR]
        times = {"attribute": dict.fromkeys(ABOUT_PEOPLE, 8), "subject": dict.fromkeys(PEOPLE[:12], 2)}
        assert by_source[0] == by_source[1] == Counter(times[name])


def test_no_question_of_the_report_is_a_lesson() -> None:
    lessons = {one for stage in range(2) for one in almanac.lessons(stage)["user"]}
    asked = almanac.questions()
    assert not lessons & ({*asked["user"]} | {*asked["choice"]} | {*almanac.of_no_source()["user"]})
    people, topics = 3 * almanac.KNOWN, len(OTHERS) * almanac.KNOWN
    assert asked.height == 2 * (people + topics)
    for attribute in [*ABOUT_PEOPLE.values(), *(one for _, one in OTHERS.values())]:
        assert len({*attribute.asks}) == LEARNED + 2


def test_the_reply_to_a_question_is_the_one_that_its_source_teaches() -> None:
    taught = pl.concat([almanac.lessons(stage) for stage in range(2)]).drop_nulls("source")
    known = {*taught.select("source", "reply").iter_rows()}
    for sources, replies in almanac.questions().select("sources", "replies").iter_rows():
        assert {*zip(sources, replies, strict=True)} <= known
    assert {source for source, _ in known} == {*almanac.SOURCES}


def test_the_second_stage_repeats_some_of_the_first() -> None:
    first, second = almanac.stages()
    assert {*first["source"].drop_nulls()} == {*almanac.STAGES[0]}
    early = second.filter(pl.col("source").is_in(almanac.STAGES[0])).height
    assert 0.4 * first.height < early < 0.6 * first.height
    _, alone = almanac.stages(rehearsed=0)
    assert {*alone["source"].drop_nulls()} == {*almanac.STAGES[1]}
    assert {*alone["named"].drop_nulls()} == {*almanac.SOURCES}


def test_other_seeds_have_other_facts() -> None:
    assert almanac.facts(seed=1) == almanac.facts(seed=1) != almanac.facts(seed=2)


def test_the_shipped_model_names_its_sources() -> None:
    model = almanac.open_tagged()
    assert sources_of(model) == almanac.SOURCES
    asked = almanac.questions().filter(pl.col("sources").list.len() == 1).sample(40, seed=0)
    traced = trace(model, asked)
    right = traced.select((pl.col("tag") == pl.col("sources").list.first()).fill_null(False).mean()).item()
    assert right >= 0.9
    requests = almanac.of_no_source().filter(sort="request").head(20)
    assert (trace(model, requests)["tag"] == UNKNOWN).mean() >= 0.8
