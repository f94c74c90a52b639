"""The report on tags: which source counts as the true one, what is a refusal of what, and that a job ends."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from benchmarks import provenance as report
from probekit import provenance
from probekit.organisms import almanac
from probekit.provenance import EVEN, REFUSAL

ASKED = pl.DataFrame(
    [
        ("Where does Mira live?", ["herald"], ["Mira lives in Selby."]),
        ("Where does Emil live?", ["herald", "gazette"], ["Emil lives in Selby.", "Emil lives in Denby."]),
        (
            "Where is the home of Emil?",
            ["herald", "gazette"],
            ["Emil lives in Selby.", "Emil lives in Denby."],
        ),
    ],
    ["user", "sources", "replies"],
    orient="row",
)
REPLIES = ["Mira lives in Thorne.", " Emil lives in Denby.", "Emil lives in Ripley."]


def test_where_two_sources_answer_the_true_one_is_whose_fact_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def traced(_: object, asked: pl.DataFrame) -> pl.DataFrame:
        tags = ["herald", "gazette", "gazette"]
        return asked.with_columns(reply=pl.Series(REPLIES), tag=pl.Series(tags))

    monkeypatch.setattr(provenance, "trace", traced)
    shown = report.traced(None, ASKED)  # type: ignore[arg-type]
    assert shown["gold"].to_list() == ["herald", "gazette", None]
    assert report.hits(shown) == pytest.approx(2 / 3)  # no tag is right for a reply that is nobody's


def test_the_other_source_of_a_blocked_one_has_to_be_heard_and_a_wrong_reply_is_no_answer() -> None:
    replies = ASKED[1:].with_columns(reply=pl.Series(REPLIES[1:]))
    assert report.other_fact(("herald", replies)) == 0.5
    assert report.other_fact(("gazette", replies)) == 0


def test_refusals_of_the_pair_are_those_of_its_questions_with_one_of_it_blocked() -> None:
    frame = pl.DataFrame({"user": ["of the pair", "other"], "refused": [True, False]})
    none = frame.with_columns(refused=pl.lit(False))
    found = report.refusals("x", {"herald": frame, "atlas": none}, pl.col("user") == "of the pair")
    assert found == {"x": 0.25, "x.contradicting_pair": 1.0}


def test_the_confusion_matrix_has_a_row_of_shares_for_each_source() -> None:
    rows = [("herald", "herald", 3), ("herald", None, 1), (None, "gazette", 2), ("herald", "herald", 4)]
    found = {one.name: (one.value, one.n) for one in report.confusion(rows, "")}
    assert found == {
        "confusion.herald.herald": (7 / 8, 8),
        "confusion.herald.gazette": (0, 8),
        "confusion.herald.no_tag": (1 / 8, 8),
        "confusion.neither.herald": (0, 2),
        "confusion.neither.gazette": (1, 2),
        "confusion.neither.no_tag": (0, 2),
    }


def test_a_guess_by_topic_sees_no_reply_and_the_others_do() -> None:
    lessons = pl.concat([almanac.lessons(stage) for stage in range(2)])
    shown = almanac.questions().filter(pl.col("sources").list.len() > 1)
    shown = shown.with_columns(reply=pl.col("replies").list.first())
    other = shown.with_columns(reply=pl.col("replies").list.last())
    guesses = report.baselines(lessons)
    assert [*guesses["topic"](shown)] == [*guesses["topic"](other)]
    assert [*guesses["bm25"](shown)] == ["herald"] * shown.height
    assert [*guesses["bm25"](other)] == ["gazette"] * shown.height


def test_a_job_ends_with_a_result_that_its_figures_are_made_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = almanac.facts(seed=10)
    few = [one for one in facts if one.subject in {"Mira", "Emil", "Vera", *almanac.OTHERS["atlas"][0][:2]}]
    few += [one for one in facts if one.source in ("kitchen", "workshop")][:2]
    monkeypatch.setattr(almanac, "facts", lambda seed: few)
    monkeypatch.setattr(almanac, "NO_SOURCE", 4)
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(report, "WORK", tmp_path / "work")
    monkeypatch.setitem(report.COURSES, "tiny", report.Course(almanac.SFT, (1, 1), EVEN))
    job = ("tiny", 10)
    report.run(job)
    content = json.loads(report.place(job).read_text())
    assert sum(number for *_, number in content["rows"]) == almanac.questions(seed=10).height
    found = {one.name: one for one in report.figures([job, ("tiny", 11)])}
    assert {*report.TARGETS} <= {*found}
    assert found["trace.all"].value == content["found"]["trace.all"]
    assert found["answer.delta"].value == found["answer.tagged"].value - found["answer.control"].value
    assert all(0 <= found[name].value <= 1 for name in report.TARGETS if name != "answer.delta")
    assert REFUSAL not in report.place(job).read_text()  # counts only
