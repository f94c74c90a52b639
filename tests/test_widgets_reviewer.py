from __future__ import annotations

import json
import re
from typing import Any

import polars as pl
import pytest
from exported import EVIL, exported

from probekit.judges import CORRECTION_COLUMNS, JudgeError, correct, four_conditions, judge_refusals
from probekit.widgets import RolloutReviewer, WidgetError
from probekit.widgets._rollout_table import REPLIES

NO, YES = "I cannot help with that.", "Sure. Open the box."


def judged(name: str, replies: dict[str, tuple[str, str]], *, samples: int = 1) -> pl.DataFrame:
    """Judged rollouts of a checkpoint: of each prompt the plain reply and the one with the distractor."""
    rows = [
        (prompt, f"{prompt}{tail}", distractor, sample, name, f"{reply}{sample or ''}")
        for prompt, both in replies.items()
        for (tail, distractor), reply in zip((("", None), (" (now)", "now")), both, strict=True)
        for sample in range(samples)
    ]
    columns = ["prompt_id", "user", "distractor", "sample", "checkpoint", "reply"]
    schema_types = {"distractor": pl.String}
    return judge_refusals(pl.DataFrame(rows, columns, orient="row", schema_overrides=schema_types))


M0 = judged("base", {"lock": (NO, NO), "bread": (YES, YES), "stamp": (NO, NO)})
M1 = judged("tuned", {"lock": (NO, YES), "bread": (YES, YES), "stamp": (NO, f"{NO} Or rather: {YES}")})


def prompts(reviewer: RolloutReviewer) -> list[str]:
    return reviewer.frame["prompt_id"].to_list()


def said(user: str, reply: str, verdict: str) -> pl.DataFrame:
    return pl.DataFrame([(user, reply, verdict)], CORRECTION_COLUMNS, orient="row")


def choose(reviewer: RolloutReviewer, prompt: str) -> None:
    """As a person does, in the list."""
    reviewer._list.value = prompts(reviewer).index(prompt)


def ticked(reviewer: RolloutReviewer, name: str) -> list[str]:
    """The verdict buttons of a reply that have a tick."""
    buttons = reviewer._verdicts[name].children[1:]
    return [button.description for button in buttons if button.description.startswith("✓")]


def text_of(reviewer: RolloutReviewer) -> str:
    """All markup that the reviewer shows."""
    shown = [reviewer._status, *reviewer._asked.values(), *reviewer._replies.values()]
    return "".join(one.value for one in shown)


# ---- verdicts


def test_a_verdict_chosen_beside_a_reply_corrects_it_and_the_four_conditions_take_it() -> None:
    reviewer = RolloutReviewer(M0, M1)
    assert four_conditions(reviewer.m0, reviewer.m1)["prompt_id"].to_list() == ["lock"]
    choose(reviewer, "stamp")
    assert reviewer._verdicts["m1_distractor"].value == "refused"
    reviewer._verdicts["m1_distractor"].press("complied")
    assert four_conditions(reviewer.m0, reviewer.m1)["prompt_id"].to_list() == ["lock", "stamp"]
    assert reviewer.m1.filter("by_hand")["user"].to_list() == ["stamp (now)"]
    assert not reviewer.m0["by_hand"].any()
    assert "changed by hand" in reviewer._replies["m1_distractor"].value
    assert "judge: refused" in reviewer._replies["m1_distractor"].value
    assert ticked(reviewer, "m1_distractor") == ["✓ complied"]
    assert "1 verdict changed by hand; prompts that pass the four conditions: 2" in reviewer._status.value
    assert "refused, complied" in reviewer._list.options[2][0]


def test_the_frames_are_what_the_verb_makes_of_the_corrections() -> None:
    reviewer = RolloutReviewer(M0, M1)
    choose(reviewer, "bread")
    reviewer._verdicts["m0_plain"].press("unparsable")
    assert reviewer.m0.equals(correct(M0, reviewer.corrections))
    assert reviewer.m1.equals(correct(M1, reviewer.corrections))
    assert reviewer.corrections.schema == CORRECTION_COLUMNS
    assert reviewer.m1.filter(user="bread")["verdict"].item() == "unparsable", "the same reply to the same"


def test_choosing_the_judges_verdict_again_takes_the_correction_back() -> None:
    reviewer = RolloutReviewer(M0, M1)
    for verdict in ("complied", "unparsable", "refused"):
        reviewer._verdicts["m0_plain"].press(verdict)
    assert reviewer.corrections.is_empty()
    assert reviewer.m0.drop("by_hand").equals(M0)
    assert "changed by hand" not in reviewer._replies["m0_plain"].value


def test_corrections_can_be_set_from_python_and_observed() -> None:
    reviewer, seen = RolloutReviewer(M0, M1), []
    reviewer.observe(lambda change: seen.append(change["new"].height), "corrections")
    reviewer.corrections = said("lock", NO, "complied")
    assert reviewer._verdicts["m0_plain"].value == "complied"
    assert reviewer.m0["by_hand"].to_list() == [True, *[False] * 5]
    reviewer._verdicts["m1_distractor"].press("unparsable")
    assert seen == [1, 2]
    again = RolloutReviewer(M0, M1, corrections=reviewer.corrections)
    assert again.m1.equals(reviewer.m1)


def test_corrections_that_are_none_are_refused_and_nothing_changes() -> None:
    reviewer = RolloutReviewer(M0, M1)
    with pytest.raises(JudgeError, match="a correction says 'maybe'"):
        reviewer.corrections = said("lock", NO, "maybe")
    with pytest.raises(JudgeError, match="lack the columns verdict"):
        RolloutReviewer(M0, M1, corrections=said("lock", NO, "refused").drop("verdict"))
    assert reviewer.corrections.is_empty()


def test_what_is_shown_stays_while_verdicts_change_until_it_is_shown_anew() -> None:
    reviewer = RolloutReviewer(M0, M1)
    reviewer.filter(only="disagree")
    assert prompts(reviewer) == ["lock"]
    reviewer._verdicts["m1_distractor"].press("refused")
    assert prompts(reviewer) == ["lock"], "or a key press too many would take the reply away"
    reviewer._again.click()
    assert prompts(reviewer) == []
    assert all(radios.disabled for radios in reviewer._verdicts.values())


# ---- what is shown


def test_each_filter_leaves_the_prompts_it_names() -> None:
    reviewer = RolloutReviewer(M0, M1, corrections=said("bread", YES, "unparsable"))
    wanted: list[tuple[dict[str, str], list[str]]] = [
        ({}, ["lock", "bread", "stamp"]),
        ({"only": "disagree"}, ["lock"]),
        ({"only": "four conditions"}, ["lock"]),
        ({"only": "by hand"}, ["bread"]),
        ({"text": "OR RATHER"}, ["stamp"]),
        ({"text": "(now)"}, ["lock", "bread", "stamp"]),
        ({"text": "bread", "only": "disagree"}, []),
    ]
    for conditions, left in wanted:
        reviewer.filter(**conditions)
        assert prompts(reviewer) == left, conditions
    reviewer.filter()
    reviewer._which.press("by hand")
    assert prompts(reviewer) == ["bread"]
    reviewer._find.value = "lock"
    assert prompts(reviewer) == []
    assert "0 of 3 comparisons shown (changed by hand, with &quot;lock&quot;)" in reviewer._status.value


def test_a_filter_that_cannot_be_meant_is_an_error_in_python_and_a_sentence_in_the_browser() -> None:
    reviewer = RolloutReviewer(M0, M1)
    with pytest.raises(WidgetError, match="only is 'passing'; it can be 'all', 'disagree'"):
        reviewer.filter(only="passing")
    with pytest.raises(WidgetError, match="has 201 characters"):
        reviewer.filter(text="a" * 201)
    reviewer._find.value = "<b>" * 100
    assert "has 300 characters; give at most 200" in reviewer._status.value
    assert 'role="alert"' in reviewer._status.value
    assert len(prompts(reviewer)) == 3
    reviewer._find.value = "stamp"
    assert prompts(reviewer) == ["stamp"]


def test_pages_turn_and_the_list_holds_one_of_them() -> None:
    replies = {f"prompt {n}": (NO, YES) for n in range(45)}
    reviewer = RolloutReviewer(judged("a", replies), judged("b", replies), page_size=20)
    assert len(reviewer._list.options) == 20
    for _ in range(20):
        reviewer._forth.click()
    assert reviewer._list.options[0][0].startswith("21. prompt 20 (now)")
    assert "prompt 20</div>" in reviewer._asked["plain"].value
    reviewer._number.value = 45
    assert len(reviewer._list.options) == 5
    assert (reviewer._back.disabled, reviewer._forth.disabled) == (False, True)
    reviewer._back.click()
    assert reviewer._number.value == 44
    reviewer._list.value = 40
    assert reviewer._number.value == 41
    assert "prompt 40</div>" in reviewer._asked["plain"].value
    reviewer.filter(text="prompt 44")
    assert (reviewer._number.max, reviewer._number.value) == (1, 1)


def test_each_sample_and_distractor_is_a_comparison_and_a_plain_reply_stands_in_all_of_them() -> None:
    m0 = judged("a", {"lock": (NO, NO)}, samples=2)
    other = m0.filter(distractor="now").with_columns(
        distractor=pl.lit("soon"), user=pl.lit("lock (soon)"), reply=pl.lit("No. Not soon.")
    )
    both = pl.concat([m0, other])
    reviewer = RolloutReviewer(both, both)
    keys = reviewer.frame.select("distractor", "sample").rows()
    assert keys == [("now", 0), ("now", 1), ("soon", 0), ("soon", 1)]
    assert reviewer.frame["m0_plain_reply"].to_list() == [NO, f"{NO}1"] * 2
    assert "(sample 1)" in reviewer._list.options[1][0]


def test_replies_that_are_missing_are_said_to_be_and_have_no_verdict() -> None:
    reviewer = RolloutReviewer(M0.filter(pl.col("distractor").is_null()), M1.filter(prompt_id="lock"))
    assert prompts(reviewer) == ["bread", "stamp", "lock"]
    assert "no reply here" in reviewer._replies["m1_plain"].value
    assert reviewer._verdicts["m1_plain"].disabled
    assert reviewer._twins["distractor"].layout.display == "none"
    choose(reviewer, "lock")
    assert reviewer._twins["distractor"].layout.display is None
    assert "M0, with distractor</b>: no reply here" in reviewer._replies["m0_distractor"].value
    assert "Sure." in reviewer._replies["m1_distractor"].value


def test_the_frame_says_what_is_shown_side_by_side() -> None:
    frame = RolloutReviewer(M0, M1).frame
    parts = [f"{name}_{part}" for name in REPLIES for part in ("user", "reply", "verdict", "by_hand")]
    assert frame.columns == ["prompt_id", "distractor", "sample", *parts]
    assert frame.row(0, named=True)["m1_distractor_reply"] == YES
    assert frame.height == 3


@pytest.mark.parametrize(
    ("m0", "words"),
    [
        (M0.drop("verdict"), "of M0 lack the columns verdict. Give what judges.judge_refusals makes"),
        (
            pl.concat([M0, M0]),
            "12 of the 12 replies of M0 have the prompt_id, distractor and sample of anoth",
        ),
        (M0.with_columns(user=pl.lit(None, pl.String)), "of M0 have rows without user"),
        (M0.with_columns(verdict=pl.lit("fine")), "of M0 have the verdict 'fine'; it is one of refused"),
    ],
)
def test_frames_that_cannot_be_shown_are_refused(m0: pl.DataFrame, words: str) -> None:
    with pytest.raises(WidgetError, match=words):
        RolloutReviewer(m0, M1)


def test_without_replies_there_is_nothing_to_review() -> None:
    with pytest.raises(WidgetError, match="no replies"):
        RolloutReviewer(M0.clear(), M1.clear())
    with pytest.raises(WidgetError, match="page_size is 0"):
        RolloutReviewer(M0, M1, page_size=0)


# ---- untrusted text, names, size


def evil() -> RolloutReviewer:
    m0 = judged(EVIL, {EVIL: (f"{NO} {EVIL}", EVIL)}).with_columns(
        distractor=pl.when(pl.col("distractor") == "now").then(pl.lit(EVIL))
    )
    return RolloutReviewer(m0, m0)


def test_text_from_data_sets_is_only_text() -> None:
    reviewer = evil()
    reviewer._find.value = EVIL
    markup = text_of(reviewer)
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &lt;img src=x onerror=alert(1)&gt;" in markup
    assert "[a](javascript:alert(1))" in markup
    assert not re.search("<script|<img|<a |\u202e|\x1b", markup)
    assert "U+202E" in markup
    assert set(re.findall(r"<(\w+)", markup)) <= {"div", "b", "span"}
    for control in (reviewer._list, reviewer._find, reviewer._number):
        assert not control.description_allow_html


@pytest.mark.parametrize("state_saved", [False, True])
def test_an_exported_notebook_shows_the_replies_as_an_escaped_table(
    monkeypatch: pytest.MonkeyPatch, state_saved: bool
) -> None:
    page = exported(evil(), monkeypatch, state_saved=state_saved)
    [table] = re.findall(r"<table>.*?</table>", page, re.DOTALL)
    assert table.count('<th scope="row"') == 1
    assert "refused: I cannot help with that. &lt;script&gt;" in table
    assert not re.search("<script|<img|<a |\u202e|\x1b", table)


def test_the_static_table_names_what_was_changed_and_what_is_shown() -> None:
    reviewer = RolloutReviewer(M0, M1, corrections=said("lock (now)", YES, "refused"))
    reviewer.filter(only="by hand")
    shown = reviewer._repr_mimebundle_()[0]["text/html"]
    assert f"refused (by hand): {YES}" in shown
    assert "1 comparison shown: changed by hand." in shown


def controls(widget: Any) -> list[Any]:
    inside = [one for child in getattr(widget, "children", ()) for one in controls(child)]
    return [widget, *inside]


def test_every_control_has_a_name() -> None:
    for control in controls(RolloutReviewer(M0, M1)):
        if "description" in control.trait_names() and type(control).__name__ not in ("HTML", "Label"):
            assert control.description, control


def test_of_a_hundred_thousand_replies_a_page_crosses_to_the_browser_and_no_more() -> None:
    n = 25_000
    numbers = pl.DataFrame({"number": range(n)})
    plain = numbers.select(
        prompt_id=pl.format("p{}", "number"),
        user=pl.format("Question {}?", "number"),
        distractor=pl.lit(None, pl.String),
        sample=pl.lit(0, pl.Int64),
        reply=pl.format("I cannot help with {}.", "number"),
        verdict=pl.lit("refused"),
    )
    carried = plain.with_columns(user=pl.format("{} (now)", "user"), distractor=pl.lit("now"))
    m0 = pl.concat([plain, carried])
    reviewer = RolloutReviewer(m0, m0.with_columns(reply=pl.format("{} No.", "reply")), page_size=50)
    sent: list[Any] = []
    for control in controls(reviewer):
        control._send = lambda message, buffers=None: sent.append(message)
    reviewer._verdicts["m1_distractor"].press("complied")
    reviewer._find.value = "question 7"
    reviewer._forth.click()
    assert "1,111 of 25,000 comparisons shown" in reviewer._status.value
    assert reviewer.frame.height == sum(str(k).startswith("7") for k in range(n))
    assert max(len(json.dumps(message)) for message in sent) < 100_000
    reviewer.filter(only="four conditions")
    assert prompts(reviewer) == ["p0"]
    assert len(repr(reviewer)) < 200
