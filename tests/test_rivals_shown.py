"""A ranking without cosines and without a layer, as rivals give, works wherever rankings go."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from probekit import arms, report
from probekit.charts import ChartError, ranking_chart, to_svg
from probekit.pairs import load_pairs
from probekit.ranking import SCHEMA, Cost, concentration, enrichment, ranking_of
from probekit.testing import planted_pairs
from probekit.widgets import PairBrowser

PAIRS = load_pairs(planted_pairs(32))
TRUTH = set(PAIRS.frame.filter(source="planted")["pair_id"])
RANKING = ranking_of(
    PAIRS.ids,
    [float(place) for place in range(len(PAIRS))],
    method="rival",
    sign="higher = <later>; from 0",
    zero_norm=[place == 3 for place in range(len(PAIRS))],
    cost=Cost(10, 0, 4),
)


def test_it_is_shown_in_a_notebook_without_a_layer_and_escaped() -> None:
    assert repr(RANKING).startswith("Ranking(32 pairs, 1 without a score of their own, rival; higher")
    assert "&lt;later&gt;" in RANKING._repr_html_()
    assert "layer" not in RANKING._repr_html_()
    assert RANKING.frame.schema == SCHEMA


def test_the_browser_shows_it_with_a_dash_for_each_cosine() -> None:
    browser = PairBrowser(RANKING, PAIRS)
    assert repr(browser) == "PairBrowser(32 pairs by rival; 0 marked)"
    assert browser._setup["name"] == "32 pairs by rival"
    assert {row["cosine"] for row in browser._view["rows"]} == {None}
    assert browser._pair["cosine"] is None
    json.dumps([browser._setup, browser._view, browser._pair], allow_nan=False)  # what crosses
    assert browser.frame["cosine"].null_count() == len(PAIRS)
    still = browser._static_html()
    assert "32 pairs by rival; higher = &lt;later&gt;; from 0." in still
    assert still.count(">–</td>") == 20  # one a row


def test_the_browser_filters_and_marks_by_its_scores() -> None:
    browser = PairBrowser(RANKING, PAIRS)
    browser.filter(low=30.0)
    browser.marked = browser.frame["pair_id"].to_list()
    assert browser.marked == RANKING.ids[:2]
    assert arms.filter_ids(browser.marked, "by hand", "marked").ids == browser.marked


def test_a_chart_draws_its_scores_and_says_that_there_are_no_cosines() -> None:
    chart = ranking_chart(RANKING, TRUTH, k=4)
    assert chart.title.text == "Where the pairs rank (rival score)"
    assert "rival score: higher = <later>; from 0" in chart.title.subtitle
    assert to_svg(chart).startswith("<svg")
    with pytest.raises(ChartError, match="no pair with a finite cosine"):
        ranking_chart(RANKING, score="cosine")


def test_a_report_shows_its_table_and_chart(tmp_path: Path) -> None:
    top = report.Table(RANKING.top(5), f"Score: {RANKING.sign}.")
    figure = report.Figure(ranking_chart(RANKING), "By the rival.")
    sections = [report.Section("Top", [top, figure])]
    page = report.write_report(tmp_path / "report.html", title="Rivals", sections=sections).read_text()
    assert page.count('<span class="unseen">none</span>') >= 5
    assert "&lt;later&gt;" in page


def test_arms_and_their_controls_are_made_from_it() -> None:
    top = arms.filter_top(RANKING, 4)
    assert "rank 1 of 32 by rival, score 31.0000" in top.ledger["reason"].to_list()
    assert [one.name for one in arms.controls(top, RANKING, PAIRS, seed=0)] == [
        "random filter",
        "bottom filter",
        "stratified filter",
    ]
    assert len(arms.swap_top(RANKING, 4)) == 4


def test_it_is_measured_as_any_ranking() -> None:
    assert concentration(RANKING, 1) == pytest.approx(31 / sum(range(32)))
    assert enrichment(RANKING, PAIRS, k=8)["in_top"].sum() == 8
