from __future__ import annotations

import importlib.metadata
import json
import math
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from exported import EVIL, exported
from hypothesis import given
from hypothesis import strategies as st

from probekit import pairs as pairs_room
from probekit import tokens as token_scores
from probekit.arms import filter_ids
from probekit.pairs import PairSet, load_pairs
from probekit.ranking import SCHEMA, Ranking
from probekit.testing import planted_pairs, ranked
from probekit.widgets import PairBrowser, WidgetError
from probekit.widgets import _pair_table as tables
from probekit.widgets import _word_marks as word_marks
from probekit.widgets._pair_view import SHOWN
from probekit.widgets._pair_view import pair_view as view_of

ROOT = Path(__file__).parent.parent
WIDGETS = ROOT / "probekit" / "widgets"
PAIRS = load_pairs(planted_pairs(64))


def browse(pairs: PairSet = PAIRS, **options: Any) -> PairBrowser:
    return PairBrowser(ranked(pairs.ids), pairs, **options)


def ask(browser: PairBrowser, request: int, do: str, **content: Any) -> dict[str, Any]:
    """The view after a message as the browser sends it."""
    browser._handle_custom_msg({"do": do, "request": request, **content}, [])
    return browser._view


def with_scores(pairs: PairSet, scores: Iterable[float]) -> Ranking:
    rows = zip(pairs.ids, scores, strict=True)
    frame = pl.DataFrame([(n, one, x, x, False) for n, (one, x) in enumerate(rows, 1)], SCHEMA, orient="row")
    return Ranking(frame, 7, "cosine", "higher = more")


def made_up(n: int) -> PairSet:
    """n pairs with texts of some length, made without hashing."""
    number = pl.int_range(n).cast(pl.String)
    text = pl.format("Reply {} says: {}", number, pl.lit("word é " * 60))
    turn = pl.struct(role=pl.lit("user"), content=pl.format("Question {} {}", number, pl.lit("ö" * 300)))
    frame = pl.select(
        pair_id=pl.format("id{}", number),
        prompt=pl.concat_list(turn),
        chosen=text,
        rejected=pl.format("{} not", text),
        source=pl.format("source {}", pl.int_range(n) % 1000),
        chosen_model=pl.lit("m"),
        rejected_model=pl.format("generator {}", number),
    )
    return PairSet(frame.select(pairs_room.SCHEMA.names()))


# ---- filters


def test_each_filter_leaves_the_pairs_it_names_in_rank_order() -> None:
    browser = browse()
    rows = browser.frame.to_dicts()
    wanted = {
        "source": ({"source": "planted"}, lambda r: r["source"] == "planted"),
        "generator of chosen": ({"generator": "guard"}, lambda r: r["chosen_model"] == "guard"),
        "generator of rejected": ({"generator": "base"}, lambda r: r["rejected_model"] == "base"),
        "bounds": ({"low": 0.25, "high": 0.5}, lambda r: 0.25 <= r["score"] <= 0.5),
        "prompt": ({"text": "FORGE A"}, lambda r: "forge a" in r["prompt"][0]["content"]),
        "reply": ({"text": "hush: to"}, lambda r: "hush: to" in r["chosen"] + r["rejected"]),
        "both": (
            {"source": "safety", "text": "stamp"},
            lambda r: r["source"] == "safety" and "stamp" in str(r),
        ),
    }
    for name, (conditions, passes) in wanted.items():
        browser.filter(**conditions)
        expected = [row["pair_id"] for row in rows if passes(row)]
        assert browser.frame["pair_id"].to_list() == expected, name
        assert expected, name
    browser.filter()
    assert browser.frame.height == 64


def test_text_is_looked_for_as_it_stands_whatever_its_signs_and_case() -> None:
    texts = ["a.*b", "axxb", "ÄRGER (1)", "tab\there", r"back\slash", "1 < 2", "x#y z"]
    pairs = load_pairs([{"prompt": text, "chosen": "yes", "rejected": "no"} for text in texts])
    browser = browse(pairs)
    for text in ["A.*B", "ärger (", "b\th", r"\s", "<", "#y "]:
        browser.filter(text=text)
        assert browser.frame.height == 1, text


def test_scores_that_are_not_numbers_pass_no_bound_and_fall_into_no_bin() -> None:
    pairs = load_pairs(planted_pairs(4))
    browser = PairBrowser(with_scores(pairs, [math.inf, 0.5, 0.2, math.nan]), pairs)
    assert sum(browser._setup["counts"]) == 2
    assert [row["score"] for row in browser._view["rows"]] == [None, 0.5, 0.2, None]
    json.dumps(browser.get_state(), allow_nan=False, default=str)
    browser.filter(low=0.3)
    assert browser.frame["score"].to_list() == [math.inf, 0.5]
    browser.filter(high=0.3)
    assert browser.frame["score"].to_list() == [0.2]


def test_the_histogram_counts_all_pairs_and_those_that_pass() -> None:
    browser = browse()
    assert len(browser._view["counts"]) == tables.BINS
    assert sum(browser._view["counts"]) == 64
    browser.filter(source="planted")
    assert sum(browser._view["counts"]) == 16
    assert all(
        part <= full for part, full in zip(browser._view["counts"], browser._setup["counts"], strict=True)
    )
    same = PairBrowser(with_scores(PAIRS, [0.5] * 64), PAIRS)
    assert same._setup["counts"][0] == 64


def test_only_marked_pairs_pass_if_asked_and_unmarking_takes_them_away() -> None:
    browser = browse()
    browser.marked = PAIRS.ids[2:5]
    browser.filter(marked_only=True)
    assert browser.frame["pair_id"].to_list() == PAIRS.ids[2:5]
    ask(browser, 1, "select", pair_id=PAIRS.ids[3])
    view = ask(browser, 2, "mark", pair_id=PAIRS.ids[3], marked=False)
    assert view["left"] == 2
    assert browser.selected == PAIRS.ids[4], "the one that takes its place"
    ask(browser, 3, "clear")
    assert browser.selected is None
    assert browser._pair == {}
    assert browser.frame.is_empty()


@pytest.mark.parametrize(
    ("conditions", "words"),
    [
        ({"source": "plantd"}, r"No pair has the source 'plantd'; the sources here are .*planted"),
        ({"generator": "gpt"}, r"No pair has the generator 'gpt'; the generators here are .*checker"),
        ({"low": "0.5"}, r"The filter's low is '0.5'; it is a number"),
        ({"high": math.nan}, "The filter's high is nan; it is a number"),
        ({"text": None}, "The filter's text is None; it is a text"),
        ({"text": "a" * 201}, "has 201 characters; give at most 200"),
        ({"marked_only": 1}, "marked_only is 1; it is True or False"),
    ],
)
def test_a_filter_that_cannot_be_meant_is_an_error_that_says_why(conditions: Any, words: str) -> None:
    browser = browse()
    with pytest.raises(WidgetError, match=words):
        browser.filter(**conditions)
    assert browser.frame.height == 64


def test_sources_and_generators_are_offered_with_their_numbers_the_most_frequent_first() -> None:
    setup = browse()._setup
    assert setup["sources"] == [(name, 16) for name in ("helpful", "lookalike", "planted", "safety")]
    assert setup["generators"][0] == ("base", 64)
    assert setup["other_generators"] == 0


# ---- pages, selection, marks


def test_a_page_holds_page_size_rows_and_the_last_one_the_rest() -> None:
    browser = browse(page_size=30)
    assert [len(ask(browser, n, "page", page=n)["rows"]) for n in range(3)] == [30, 30, 4]
    assert ask(browser, 4, "page", page=99)["page"] == 2
    assert ask(browser, 5, "page", page=-1)["page"] == 0
    assert browser._view["pages"] == 3


def test_turning_the_page_selects_its_first_pair_or_its_last() -> None:
    browser = browse(page_size=30)
    assert browser.selected == PAIRS.ids[0]
    ask(browser, 1, "page", page=1)
    assert browser.selected == browser._pair["pair_id"] == PAIRS.ids[30]
    ask(browser, 2, "page", page=0, row="last")
    assert browser.selected == browser._pair["pair_id"] == PAIRS.ids[29]


def test_a_selected_pair_is_sent_in_full_and_one_of_another_page_is_not() -> None:
    browser = browse(page_size=10)
    ask(browser, 1, "select", pair_id=PAIRS.ids[3])
    row = PAIRS.frame.row(3, named=True)
    sent = browser._pair
    assert sent["pair_id"] == row["pair_id"]
    assert "".join(text for text, _ in sent["replies"][0]["pieces"]) == row["chosen"]
    assert "".join(text for text, _ in sent["replies"][1]["pieces"]) == row["rejected"]
    assert sent["prompt"][0][1] == [[row["prompt"][0]["content"], ""]]
    ask(browser, 2, "select", pair_id=PAIRS.ids[30])
    assert browser.selected == PAIRS.ids[3]
    assert browser._view["problem"] == ""


def test_requests_older_than_the_last_are_ignored() -> None:
    browser = browse(page_size=10)
    ask(browser, 7, "page", page=3)
    ask(browser, 6, "page", page=1)
    assert browser._view["page"] == 3
    assert browser._view["request"] == 7, "which tells the browser what this is the answer to"
    assert ask(browser, 8, "page", page=2)["request"] == 8


@pytest.mark.parametrize(
    "content",
    [
        {"do": "drop table"},
        {"do": "page", "page": "1"},
        {"do": "mark", "pair_id": "unknown", "marked": True},
        {"do": "mark", "pair_id": 3, "marked": True},
        {"do": "filter", "filter": {"source": "nobody"}},
        {"do": "filter", "filter": {"text": ["a"]}},
        {},
    ],
)
def test_what_the_browser_may_not_ask_is_named_and_changes_nothing(content: dict[str, Any]) -> None:
    browser = browse()
    before = browser.frame
    browser._handle_custom_msg({**content, "request": 1}, [])
    assert browser._view["problem"].endswith(".")
    assert browser.frame.equals(before)
    browser._handle_custom_msg({"do": "page", "page": 0, "request": 2}, [])
    assert browser._view["problem"] == ""


@pytest.mark.parametrize("content", ["text", None, {"do": "clear"}, {"do": "clear", "request": "1"}])
def test_messages_of_another_form_are_left_alone(content: Any) -> None:
    browser = browse()
    browser.marked = PAIRS.ids[:1]
    browser._handle_custom_msg(content, [])
    assert browser.marked == PAIRS.ids[:1]


def test_marks_arrive_in_rank_order_and_arms_take_them() -> None:
    browser = browse()
    for number, place in enumerate([40, 3, 17]):
        ask(browser, number, "mark", pair_id=PAIRS.ids[place], marked=True)
    assert browser.marked == [PAIRS.ids[place] for place in (3, 17, 40)]
    assert browser._view["marked"] == 3
    arm = filter_ids(browser.selection, "by hand", "marked in the browser")
    assert arm.ids == browser.marked
    assert browser.frame.filter("marked")["pair_id"].to_list() == browser.marked
    ask(browser, 9, "mark", pair_id=PAIRS.ids[17], marked=False)
    assert browser.marked == [PAIRS.ids[place] for place in (3, 40)]


def test_marks_can_be_set_from_python_and_observed() -> None:
    browser, seen = browse(), []
    browser.observe(lambda change: seen.append(change["new"]), "marked")
    browser.marked = [PAIRS.ids[5], PAIRS.ids[1], PAIRS.ids[5]]
    assert browser.marked == [PAIRS.ids[1], PAIRS.ids[5]]
    assert [row["marked"] for row in browser._view["rows"][:6]] == [False, True, False, False, False, True]
    ask(browser, 1, "clear")
    assert seen == [[PAIRS.ids[1], PAIRS.ids[5]], []]


def test_marking_all_that_pass_keeps_the_other_marks() -> None:
    browser = browse()
    other = browser.frame.filter(source="helpful")["pair_id"][0]
    browser.marked = [other]
    browser.filter(source="planted")
    ask(browser, 1, "mark all")
    assert set(browser.marked) == {other, *browser.frame["pair_id"]}
    assert len(browser.marked) == 17


def test_marks_that_are_not_ranked_are_an_error_that_names_them() -> None:
    browser = browse()
    browser.marked = PAIRS.ids[:1]
    with pytest.raises(WidgetError, match="1 of the 2 marked pairs are not in this ranking of 64: nobody"):
        browser.marked = [PAIRS.ids[1], "nobody"]
    assert browser.marked == PAIRS.ids[:1]


def test_a_ranking_of_other_pairs_is_refused() -> None:
    with pytest.raises(WidgetError, match=r"holds 63 pairs and the pair set 64, and 1 are in one only"):
        PairBrowser(ranked(PAIRS.ids[1:]), PAIRS)
    with pytest.raises(WidgetError, match="holds no pairs"):
        PairBrowser(ranked([]), PAIRS.select([]))


@pytest.mark.parametrize("size", [0, 201, True, "50", 2.5])
def test_a_page_size_out_of_range_is_refused(size: Any) -> None:
    with pytest.raises(WidgetError, match=r"page_size is .*; give a whole number from 1 to 200"):
        browse(page_size=size)


# ---- what crosses to the browser


def test_of_a_hundred_thousand_pairs_a_page_crosses_to_the_browser_and_no_more() -> None:
    pairs = made_up(100_000)
    browser = browse(pairs, page_size=50)
    sent: list[Any] = []
    browser._send = lambda message, buffers=None: sent.append(message)  # what ipywidgets gives to the comm
    assert len(json.dumps(browser.get_state(["_setup", "_view", "_pair"]))) < 200_000
    ask(browser, 1, "filter", filter={"text": "REPLY 7"})
    assert browser._view["left"] == 11_111
    ask(browser, 2, "page", page=5)
    assert len(browser._view["rows"]) == 50
    ask(browser, 3, "mark all")
    assert len(browser.marked) == 11_111
    ask(browser, 4, "filter", filter={"source": "source 7", "low": 0.5})
    assert browser._view["left"] == 50
    assert len(sent) >= 4
    assert max(len(json.dumps(message)) for message in sent) < 200_000
    assert len(repr(browser)) < 200


def test_long_names_and_texts_are_short_in_a_row() -> None:
    row = {"chosen": "a", "rejected": "b", "source": "s" * 9000, "chosen_model": "m" * 9000}
    browser = browse(load_pairs([{"prompt": "p" * 9000, **row}, {"prompt": EVIL, **row}]))
    for sent in browser._view["rows"]:
        assert len(json.dumps(sent)) < 1500
    assert len(json.dumps(browser._setup)) < 2000
    assert browser._setup["other_sources"] == 1, "which the browser says, and `filter` can name"


def test_the_same_pair_is_not_compared_again_for_a_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    browser, compared = browse(), []

    def counted(*arguments: Any) -> dict[str, Any]:
        compared.append(arguments)
        return view_of(*arguments)

    monkeypatch.setattr("probekit.widgets._pair_browser.pair_view", counted)
    ask(browser, 1, "mark", pair_id=PAIRS.ids[0], marked=True)
    assert compared == []
    ask(browser, 2, "select", pair_id=PAIRS.ids[1])
    assert len(compared) == 1


# ---- the pair side by side


def joined(pieces: Iterable[list[str]]) -> str:
    return "".join(chr(int(text[2:], 16)) if kind == "control" else text for text, kind in pieces)


@given(st.text(max_size=60), st.text(max_size=60))
def test_the_pieces_are_the_reply_character_by_character(chosen: str, rejected: str) -> None:
    marked = word_marks.marked_replies(chosen, rejected)
    assert joined(marked.chosen) == chosen.replace("\r\n", "\n")
    assert joined(marked.rejected) == rejected.replace("\r\n", "\n")


@given(st.lists(st.sampled_from(["one", "two", "three,", "four."])), st.integers(0, 9), st.integers(0, 9))
def test_what_is_not_marked_is_the_same_in_both_replies(words: list[str], cut: int, add: int) -> None:
    other = [*words[cut:], *["five"] * add]
    marked = word_marks.marked_replies(" ".join(words), " ".join(other))
    same = ["".join(t for t, kind in side if not kind).split() for side in (marked.chosen, marked.rejected)]
    assert "".join(same[0]) == "".join(same[1])


def test_words_that_only_one_reply_has_are_marked_and_counted() -> None:
    marked = word_marks.marked_replies(
        "I can not help with that, sorry.", "I can gladly help with that, sorry."
    )
    assert [text for text, kind in marked.chosen if kind] == ["not"]
    assert [text for text, kind in marked.rejected if kind] == ["gladly"]
    assert marked.counts == ((1, 7), (1, 7))


def test_a_lone_word_between_two_marks_is_marked_too() -> None:
    marked = word_marks.marked_replies("a b the c d, and so on", "x y the z w, and so on")
    assert [text for text, kind in marked.chosen if kind] == ["a b the c d"]


def test_signs_of_scripts_without_spaces_are_compared_one_by_one() -> None:
    marked = word_marks.marked_replies("我们喜欢红茶和水果", "我们喜欢绿茶和水果")
    assert [text for text, kind in marked.chosen if kind] == ["红"]


def test_replies_that_differ_in_white_space_only_are_said_to() -> None:
    assert "white space only" in word_marks.marked_replies("a b", "a\n\nb").note
    assert word_marks.marked_replies("a b", "a c").note == ""


def test_of_very_long_replies_a_part_is_compared_and_the_reader_is_told() -> None:
    first, second = ("x" + " ".join(f"{word}{n}" for n in range(5000)) + " end." for word in ("a", "b"))
    marked = word_marks.marked_replies(first, second)
    assert joined(marked.chosen) == first
    assert f"{word_marks.COMPARED:,} words and signs of each were compared" in marked.note


def test_what_is_too_long_to_show_is_counted() -> None:
    pairs = load_pairs([{"prompt": "p", "chosen": "ab" * SHOWN, "rejected": "b"}])
    reply = browse(pairs)._pair["replies"][0]
    assert len(joined(reply["pieces"])) == SHOWN
    assert reply["rest"] == f"{SHOWN:,} more characters are in browser.frame."


def test_characters_that_hide_or_reorder_text_are_pieces_of_their_own() -> None:
    pairs = load_pairs([{"prompt": EVIL, "chosen": EVIL, "rejected": "no", "source": EVIL}])
    browser = browse(pairs)
    [role, pieces, rest] = browser._pair["prompt"][0]
    assert (role, rest) == ("user", "")
    assert [text for text, kind in pieces if kind] == ["U+202E", "U+001B", "U+0007"]
    assert "\u202e" not in json.dumps([browser._view, browser._pair], ensure_ascii=False)
    assert "U+202E" in browser._view["rows"][0]["opening"]


# ---- scores of tokens


def spans(*rows: tuple[str, str, int, int, float]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=token_scores.SCHEMA, orient="row")


def test_tokens_are_shaded_by_their_score_and_the_strongest_are_named() -> None:
    pairs = load_pairs([{"prompt": "p", "chosen": "Sure, here", "rejected": "No."}])
    one = pairs.ids[0]
    browser = browse(
        pairs,
        tokens=spans((one, "chosen", 0, 4, 1.0), (one, "chosen", 5, 10, -0.25), (one, "rejected", 0, 2, 0.1)),
    )
    chosen, rejected = browser._pair["replies"]
    assert chosen["tokens"] == [["Sure", "toward-4", "+1"], [",", ""], [" here", "away-1", "-0.25"]]
    assert rejected["tokens"] == [["No", "", "+0.1"], [".", ""]]
    assert browser._pair["strongest"] == (
        'Strongest toward the behaviour "Sure" +1, "No" +0.1; away from it "here" -0.25.'
    )


def test_tokens_that_share_a_character_are_added_up() -> None:
    pairs = load_pairs([{"prompt": "p", "chosen": "🦊 yes", "rejected": "no"}])
    rows = [(pairs.ids[0], "chosen", 0, 1, 0.5), (pairs.ids[0], "chosen", 0, 1, 0.25)]
    assert browse(pairs, tokens=spans(*rows))._pair["replies"][0]["tokens"][0] == ["🦊", "toward-4", "+0.75"]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([("nobody", "chosen", 0, 1, 1.0)], "scores 1 pairs that are not ranked: nobody"),
        ([("", "prompt", 0, 1, 1.0)], "has the reply 'prompt'; it is one of chosen, rejected"),
        ([("", "chosen", 0, 99999, 1.0)], "1 tokens do not fit their replies; the first is 0 to 99999"),
        ([("", "chosen", 2, 2, 1.0)], "1 tokens do not fit"),
        ([("", "chosen", 0, 3, 1.0), ("", "chosen", 2, 4, 1.0)], "1 tokens do not fit .* do not overlap"),
        ([("", "chosen", 0, 1, math.nan)], "have finite scores"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(rows: Any, words: str) -> None:
    given = [(one or PAIRS.ids[0], *rest) for one, *rest in rows]
    with pytest.raises(WidgetError, match=words):
        browse(tokens=spans(*given))
    with pytest.raises(WidgetError, match="it needs exactly"):
        browse(tokens=pl.DataFrame({"pair_id": ["a"]}))


# ---- without a browser


def test_the_frame_says_what_the_filter_leaves_with_the_marks() -> None:
    browser = browse()
    browser.marked = PAIRS.ids[:2]
    frame = browser.frame
    assert frame.columns == [*SCHEMA, *list(pairs_room.SCHEMA)[1:], "marked"]
    assert frame["rank"].to_list() == list(range(1, 65))
    assert frame["marked"].sum() == 2


@pytest.mark.parametrize("state_saved", [False, True])
def test_an_exported_notebook_shows_the_first_twenty_as_an_escaped_table(
    monkeypatch: pytest.MonkeyPatch, state_saved: bool
) -> None:
    rows = [*planted_pairs(32), {"prompt": EVIL, "chosen": EVIL, "rejected": f"{EVIL} no", "source": EVIL}]
    pairs = load_pairs(rows)
    browser = PairBrowser(ranked(reversed(pairs.ids)), pairs)
    browser.marked = [pairs.ids[-1]]
    page = exported(browser, monkeypatch, state_saved=state_saved)
    [table] = re.findall(r"<table>.*?</table>", page, re.DOTALL)
    assert table.count('<th scope="row"') == 20
    assert "The first 20 of 33." in table
    assert "&lt;script&gt;alert(1)" in table
    assert not re.search("<script|<img|<a |\u202e|\x1b", table)
    assert ">marked</td>" in table
    assert "mathjax_ignore" in page


def test_hosts_that_take_one_bundle_get_the_widget_and_the_table() -> None:
    data, _ = browse()._repr_mimebundle_()
    assert {"text/plain", "text/html", "application/vnd.jupyter.widget-view+json"} <= data.keys()


def test_the_static_table_says_which_filter_it_is_under() -> None:
    browser = browse()
    browser.filter(source="planted", low=0.01, text="<b>")
    caption = browser._repr_mimebundle_()[0]["text/html"]
    assert "pass the filter: source planted, score at least 0.01, with &quot;&lt;b&gt;&quot;." in caption


def test_the_repr_is_one_short_line() -> None:
    browser = browse()
    browser.marked = PAIRS.ids[:3]
    assert repr(browser) == "PairBrowser(64 pairs by cosine at layer 0; 3 marked)"


# ---- the files


def test_the_view_makes_no_markup_from_text_and_loads_nothing() -> None:
    source = (WIDGETS / "pair_browser.js").read_text()
    namespace = '"http://www.w3.org/2000/svg"'
    assert source.count(namespace) == 1
    rest = source.replace(namespace, "")
    forbidden = (
        r"\w*HTML\w*|document\.write|\beval\b|\bFunction\(|https?:|//cdn|\bimport\b|fetch|DOMParser|href"
    )
    without_comments = re.sub(r"^\s*//.*$", "", rest, flags=re.MULTILINE)
    assert re.findall(forbidden, without_comments) == []
    style = (WIDGETS / "pair_browser.css").read_text()
    assert not re.search(r"url\(|@import|https?:", style)


def test_colours_of_the_accents_are_those_of_okabe_and_ito() -> None:
    style = (WIDGETS / "pair_browser.css").read_text()
    accents = re.findall(r"--(?:chosen|rejected|focus): (#\w+);", style)
    assert set(accents) == {"#0072b2", "#d55e00", "#56b4e9", "#e69f00"}


def test_script_and_style_are_part_of_the_installed_package() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    files = {path for pattern in data["probekit"] for path in (ROOT / "probekit").glob(pattern)}
    assert {WIDGETS / "pair_browser.js", WIDGETS / "pair_browser.css"} <= files
    assert importlib.metadata.version("anywidget")


def test_importing_probekit_loads_no_widget() -> None:
    code = (
        "import probekit, sys; print([m for m in ('anywidget', 'ipywidgets', 'IPython') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
