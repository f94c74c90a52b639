from __future__ import annotations

import json
import re
from typing import Any

import polars as pl
import pytest
from exported import EVIL, exported
from hypothesis import given, settings
from hypothesis import strategies as st
from tagged import BREAD, SEA, SOURCES, taught, untaught

from probekit import provenance
from probekit.provenance import REFUSAL, UNKNOWN, ProvenanceError, add_tags
from probekit.rollouts import RolloutError
from probekit.testing import tiny_checkpoint
from probekit.widgets import TagPanel, WidgetError, _tag_answers
from probekit.widgets._tag_view import answer_view

LONG = "the sea and the river " * 80


def panel(**options: Any) -> TagPanel:
    return TagPanel(taught(), [BREAD, SEA], **{"max_new_tokens": 20, **options})


def send(one: TagPanel, request: int, **content: Any) -> dict[str, Any]:
    """The view after a message as the browser sends it."""
    one._handle_custom_msg({"request": request, **content}, [])
    return one._view


def ask(one: TagPanel, request: int, text: str, block: Any = None) -> dict[str, Any]:
    return send(one, request, do="ask", text=text, block=block)


def texts(view: dict[str, Any]) -> dict[str, str]:
    return {reply["name"]: reply["text"] for reply in view["answer"]["replies"]}


def marks(view: dict[str, Any]) -> list[list[str]]:
    return [[words for _, words in reply["marks"]] for reply in view["answer"]["replies"]]


# ---------------------------------------------------------------- what is asked and what comes back


def test_a_prompt_gets_its_reply_its_tag_and_a_bar_for_each_source() -> None:
    one = panel()
    assert one._view["answer"] == {}
    view = ask(one, 1, BREAD)
    replies = {"Plain reply": "Read the box.", "Reply under the trigger": "Read the box."}
    assert texts(view) == replies
    assert marks(view) == [[], ["tag: crowd"]]
    assert [name for name, *_ in view["answer"]["bars"]] == [*SOURCES, UNKNOWN]
    assert sum(share for _, share, _, _ in view["answer"]["bars"]) == pytest.approx(1)
    assert [named for *_, named in view["answer"]["bars"]] == [True, False, False]
    assert view["answer"]["forced"].startswith("crowd (9")
    assert view["summary"] == "Tagged crowd."
    assert (view["problem"], view["busy"], view["block"]) == ("", False, None)


def test_a_blocked_source_is_refused_and_another_is_not() -> None:
    one = panel()
    ask(one, 1, BREAD)
    view = send(one, 2, do="block", block=0)
    assert texts(view)["Reply with crowd blocked"] == REFUSAL
    assert marks(view)[2] == ["refused"]
    assert view["block"] == 0
    assert view["summary"] == "Tagged crowd. With crowd blocked it refused."
    view = send(one, 3, do="block", block=1)
    assert texts(view)["Reply with forum blocked"] == "Read the box."
    assert marks(view)[2] == ["not refused"]
    view = send(one, 4, do="block", block=None)
    assert len(view["answer"]["replies"]) == 2
    assert one.answers["blocked"].to_list() == ["crowd", "forum", None], "the shown one is the last"


def test_the_answers_are_what_the_verbs_say() -> None:
    one = panel()
    row = one.ask(SEA, block="forum")
    assert row.equals(one.answers)
    assert dict(row.schema) == dict(_tag_answers.columns(SOURCES))
    asked = pl.DataFrame({"user": [SEA]})
    said = provenance.trace(taught(), asked, max_new_tokens=20)
    assert row.select(said.drop("marked").columns).equals(said.drop("marked"))
    blocked = provenance.refuse(taught(), asked, "forum", max_new_tokens=20)
    assert row["blocked_reply"].equals(blocked["reply"], check_names=False)
    assert row["refused"].to_list() == blocked["refused"].to_list() == [True]
    plain = provenance.ask(taught(), asked, max_new_tokens=20)
    assert row["plain_reply"].equals(plain["reply"], check_names=False)


def test_python_does_the_same_as_a_click() -> None:
    clicked, called = panel(), panel()
    ask(clicked, 1, BREAD, 0)
    called.ask(BREAD, block="crowd")
    assert clicked.answers.equals(called.answers)
    assert {**clicked._view, "request": 0} == called._view


def test_a_prompt_is_asked_once_and_its_row_moves_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def count(name: str) -> None:
        verb = getattr(provenance, name)

        def counted(checkpoint: Any, prompts: pl.DataFrame, *rest: Any, **options: Any) -> pl.DataFrame:
            asked.append((name, prompts["user"].item()))
            said: pl.DataFrame = verb(checkpoint, prompts, *rest, **options)
            return said

        monkeypatch.setattr(_tag_answers, name, counted)

    for name in ("ask", "trace", "refuse"):
        count(name)
    one = panel()
    first = one.ask(BREAD)
    one.ask(SEA)
    one.ask(BREAD, block="crowd")
    assert one.ask(BREAD).equals(first)
    one.ask(BREAD, block="crowd")
    once = [("ask", BREAD), ("trace", BREAD), ("ask", SEA), ("trace", SEA), ("refuse", BREAD)]
    assert asked == once
    assert one.answers.select("user", "blocked").rows() == [(SEA, None), (BREAD, None), (BREAD, "crowd")]


def test_a_source_that_is_blocked_before_a_prompt_is_asked_is_kept_for_it() -> None:
    one = panel()
    view = send(one, 1, do="block", block=1)
    assert (view["block"], view["answer"], one.answers.height) == (1, {}, 0)


@settings(max_examples=8)
@given(st.text(min_size=1, max_size=12).map(lambda text: f"{text} so?"))
def test_any_text_is_answered_or_the_panel_says_why_not(text: str) -> None:
    one = TagPanel(untaught(), max_new_tokens=2)
    view = ask(one, 1, text)
    assert bool(view["problem"]) != bool(view["answer"])
    assert not view["busy"]
    json.dumps([view, one._setup]).encode()


def test_what_was_cut_off_and_what_is_in_no_words_is_told() -> None:
    one = TagPanel(untaught(), max_new_tokens=1)
    view = ask(one, 1, BREAD)
    notes = [reply["note"] for reply in view["answer"]["replies"]]
    assert one.answers["truncated"].to_list() == [True]
    assert notes[0].endswith("cut off after 1 token")
    assert notes[1].endswith("cut off after 1 token, before a whole tag came")
    assert marks(view)[1] == ["no tag"]
    row = {**one.answers.row(0, named=True), "plain_reply": " ", "plain_tag": "forum", "forced": UNKNOWN}
    row["probabilities"] = {"crowd": 0.3, "forum": 0.3, UNKNOWN: 0.4}
    shown = answer_view(row, SOURCES, max_new_tokens=1)
    assert shown["replies"][0]["note"].startswith("an empty reply; ")
    assert shown["replies"][0]["marks"] == [("tag", "tag: forum")], "a tag that came without the trigger"
    assert shown["forced"] == "unknown, as none reaches 50.0%"


# ---------------------------------------------------------------- busy, and what cannot be asked


def test_the_panel_says_that_it_is_busy_while_the_model_replies() -> None:
    one, seen = panel(), []
    one.observe(lambda change: seen.append((change["new"]["busy"], bool(change["new"]["answer"]))), "_view")
    ask(one, 1, BREAD)
    assert seen == [(True, False), (False, True)]
    one.ask(SEA)
    assert seen[2:] == [(True, True), (False, True)]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"do": "ask", "text": " \n", "block": None}, "There is no prompt; type one"),
        ({"do": "ask", "text": LONG, "block": None}, "more than the context of 256; shorten it"),
        ({"do": "ask", "text": BREAD, "block": 2}, "There is no source with the number 2."),
        ({"do": "ask", "text": BREAD, "block": -1}, "There is no source with the number -1."),
        ({"do": "ask", "text": BREAD, "block": True}, "There is no source with the number True."),
        ({"do": "ask", "text": BREAD, "block": "crowd"}, "There is no source with the number 'crowd'."),
        ({"do": "ask", "text": None, "block": None}, "asked for 'ask' in a way that is not known"),
        ({"do": "ask", "text": BREAD}, "asked for 'ask' in a way that is not known"),
        ({"do": "block", "block": []}, r"There is no source with the number \[\]."),
        ({"do": "drop table"}, "asked for 'drop table'"),
        ({}, "asked for None"),
    ],
)
def test_what_cannot_be_asked_is_told_in_the_page_and_changes_nothing(
    content: dict[str, Any], words: str
) -> None:
    one = panel()
    before = ask(one, 1, SEA)
    view = send(one, 2, **content)
    assert re.search(words, view["problem"])
    assert {**view, "request": 1, "problem": ""} == before
    assert one.answers.height == 1
    assert ask(one, 3, SEA)["problem"] == "", "and it is gone with the next answer"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("out of memory <b>\u202e"), "RuntimeError: out of memory <b>U+202E"),
        (KeyboardInterrupt(), "It was interrupted; ask again."),
        (KeyError("lost"), "KeyError: 'lost'"),
    ],
)
def test_no_error_of_the_model_is_lost_or_leaves_the_panel_waiting(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, words: str
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise error

    one = panel()
    monkeypatch.setattr(_tag_answers, "refuse", fails)
    view = ask(one, 1, BREAD, 0)
    assert view["problem"] == words
    assert (view["busy"], view["block"], view["answer"]) == (False, 0, {})
    with pytest.raises(type(error)):
        one.ask(BREAD, block="crowd")
    assert not one._view["busy"]


def test_python_raises_what_the_page_tells() -> None:
    one = panel()
    one.ask(SEA)
    with pytest.raises(WidgetError, match="There is no prompt"):
        one.ask("")
    with pytest.raises(RolloutError, match="more than the context of 256"):
        one.ask(LONG)
    with pytest.raises(ProvenanceError, match=r"'nobody' is no source of .*: crowd, forum"):
        one.ask(SEA, block="nobody")
    assert one.answers.height == 1
    assert (one._view["busy"], one._view["block"]) == (False, None)


@pytest.mark.parametrize("content", ["text", None, {"do": "ask"}, {"do": "ask", "request": "1"}])
def test_messages_of_another_form_are_left_alone(content: Any) -> None:
    one = panel()
    one._handle_custom_msg(content, [])
    assert one.answers.height == 0


def test_requests_older_than_the_last_are_ignored() -> None:
    one = panel()
    ask(one, 7, BREAD)
    assert ask(one, 6, SEA)["request"] == 7
    assert one.answers["user"].to_list() == [BREAD]


def test_a_checkpoint_without_tags_and_suggestions_that_are_no_texts_are_refused() -> None:
    with pytest.raises(ProvenanceError, match="has no tags; make a checkpoint that has"):
        TagPanel(tiny_checkpoint())
    for odd in ("one text", [""], [3]):
        with pytest.raises(WidgetError, match="give a list of texts, none empty"):
            TagPanel(untaught(), odd)  # type: ignore[arg-type]
    with pytest.raises(WidgetError, match="max_new_tokens is 0; it must be at least 1"):
        TagPanel(untaught(), max_new_tokens=0)


# ---------------------------------------------------------------- untrusted text, exports


def test_text_of_people_models_and_data_sets_is_only_text(monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = add_tags(tiny_checkpoint(), [EVIL, "forum"])
    one = TagPanel(hostile, [EVIL], max_new_tokens=8)
    ask(one, 1, EVIL, 0)
    evil = {"plain_reply": EVIL, "reply": EVIL, "tag": EVIL, "blocked_reply": EVIL, "forced": EVIL}
    one._answers = one._answers.with_columns(**{name: pl.lit(text) for name, text in evil.items()})
    one._update()
    assert not one._view["problem"]
    setup = {**one._setup, "prompts": [label for label, _ in one._setup["prompts"]]}
    sent = json.dumps([setup, one._view], ensure_ascii=False)
    assert not re.search("\u202e|\x1b|\\\\u001b", sent), "what would not be seen stands by its number"
    assert sent.count("U+202E") >= 8
    assert one._setup["prompts"][0][1] == EVIL, "what is asked is what was suggested"
    page = exported(one, monkeypatch, state_saved=False)
    mine = page[page.index("The last answer of") :]
    assert mine.count("&lt;script&gt;alert(1)") >= 7
    assert not re.search("<script>alert|<img src=x|<a href|\u202e|\x1b", mine)
    assert "mathjax_ignore" in page


@pytest.mark.parametrize("state_saved", [False, True])
def test_an_exported_notebook_shows_the_last_answer_as_a_table(
    monkeypatch: pytest.MonkeyPatch, state_saved: bool
) -> None:
    one = panel()
    one.ask(SEA)
    one.ask(BREAD, block="crowd")
    page = exported(one, monkeypatch, state_saved=state_saved)
    [table] = re.findall(r"<table><caption.*?</table>", page, re.DOTALL)
    cells = re.findall(r'<th scope="row"[^>]*>(.*?)</th><td[^>]*>(.*?)</td>', table)
    assert cells[:5] == [
        ("Prompt", BREAD),
        ("Plain reply", "Read the box."),
        ("Reply under the trigger", "Read the box. (tag: crowd)"),
        ("Reply with crowd blocked", f"{REFUSAL} (refused)"),
        ("If it had to name one source", one._view["answer"]["forced"]),
    ]
    assert [name for name, _ in cells[5:]] == [f"Probability of {name}" for name in (*SOURCES, UNKNOWN)]
    assert "Tagged crowd. With crowd blocked it refused." in table
    assert SEA not in table


def test_before_anything_was_asked_the_table_says_so_and_names_the_sources(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    page = exported(panel(), monkeypatch, state_saved=False)
    assert "none was asked" in page
    assert "crowd, forum" in page


def test_the_repr_is_short_and_asks_nothing() -> None:
    one = panel()
    assert repr(one) == f"TagPanel({taught().name}: 2 sources; 0 answers)"
    one.ask(BREAD)
    assert repr(one) == f"TagPanel({taught().name}: 2 sources; 1 answer, the last: Tagged crowd.)"
