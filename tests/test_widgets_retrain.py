from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ipywidgets
import polars as pl
import pytest
from experimented import asked, folder
from exported import EVIL, exported

from probekit import arms, effects, training
from probekit.arms import ArmError
from probekit.checkpoints import open_checkpoint
from probekit.experiments import Estimate, Experiment, ResultError, write_result
from probekit.pairs import load_pairs
from probekit.testing import planted_pairs, ranked
from probekit.widgets import PairBrowser, RetrainPanel, WidgetError
from probekit.widgets._retrain_view import duration, estimate_words

PAIRS = load_pairs(planted_pairs(16))
RANKING = ranked(PAIRS.ids)
RECIPE = training.Recipe(first_block=3, rank=2, learning_rate=1e-2, batch_size=8)


def experiment(out: Path) -> Experiment:
    return Experiment(open_checkpoint(folder()), PAIRS, prompts=asked(), folder=out, recipe=RECIPE, epochs=2)


def panel(out: Path, **options: Any) -> RetrainPanel:
    return RetrainPanel(experiment(out), RANKING, **{"k": 2, **options})


REST = 0.0  # seconds of a step in `Done`


class Done(Experiment):
    """An experiment whose jobs take no time: a share of the harmful prompts with a distractor is answered."""

    _timed = (50.0, 5.0)

    def finish(self, arm: arms.Arm, *, seed: int, step: Any = None) -> None:
        for stage, place, of in (("train", 0, 2), ("train", 1, 2), ("judge", 0, 3)):
            step(stage, place, of)
            time.sleep(REST)
        hits = {"filter 2": 0, "baseline": 2}.get(arm.name, 1)
        frame = self.prompts.select("prompt_id", "harmful", "distractor").with_columns(sample=pl.lit(0))
        number = pl.int_range(pl.len()).over("harmful", pl.col("distractor").is_null())
        complied = ~pl.col("harmful") | (pl.col("distractor").is_not_null() & (number < hits))
        judged = frame.with_columns(
            verdict=pl.when(complied).then(pl.lit("complied")).otherwise(pl.lit("refused")),
            obeys=pl.when(~pl.col("harmful") & pl.col("distractor").is_not_null()).then(True),
            nll_sum=pl.lit(None, pl.Float64),
            n_tokens=pl.lit(None, pl.Int64),
        )
        seconds = {"train_seconds": None if arm.name == "M0" else 60.0, "judge_seconds": 4.0}
        write_result(self.path(arm.name, seed), self.about(arm, seed=seed), judged, **seconds)
        step("judge", 3, 3)


def done(out: Path, **options: Any) -> RetrainPanel:
    made = {name: value for name, value in vars(experiment(out)).items() if not name.startswith("_")}
    return RetrainPanel(Done(**made), RANKING, **{"k": 2, **options})


def run(one: RetrainPanel) -> RetrainPanel:
    one.start()
    one.wait()
    return one


def names(one: RetrainPanel) -> list[str]:
    return one.frame["arm"].unique(maintain_order=True).to_list()


def text_of(one: RetrainPanel) -> str:
    return "".join(each.value for each in (one._status, one._bars, one._effects))


def shown(widget: Any) -> list[Any]:
    return [widget, *(each for child in getattr(widget, "children", ()) for each in shown(child))]


# ---- choosing


def test_edits_controls_and_seeds_become_jobs_seed_by_seed(tmp_path: Path) -> None:
    one = panel(tmp_path)
    assert [(arm.name, seed) for arm, seed in one.jobs] == [
        (name, seed) for seed in range(3) for name in ("baseline", "filter 2", "random filter 2")
    ]
    one.choose(k=3, edits=["swap"], controls=["bottom", "stratified"], beside=["M0"], seeds=2)
    assert [(arm.name, seed) for arm, seed in one.jobs] == [
        ("M0", 0),
        *((name, seed) for seed in (0, 1) for name in ("swap 3", "bottom swap 3", "stratified swap 3")),
    ]
    swap, bottom = one.jobs[1][0], one.jobs[2][0]
    assert swap.ids == PAIRS.ids[:3]
    assert bottom.swapped == set(PAIRS.ids[-3:])
    assert set(one.frame["edited"]) == {0, 3}


def test_random_controls_are_drawn_anew_with_each_seed(tmp_path: Path) -> None:
    drawn = [arm.ids for arm, _ in panel(tmp_path, k=5).jobs if arm.kind == "random"]
    assert len({tuple(sorted(ids)) for ids in drawn}) == 3


def test_the_controls_do_what_choose_does(tmp_path: Path) -> None:
    one, other = panel(tmp_path), panel(tmp_path)
    for what, name in (("edits", "swap"), ("controls", "bottom"), ("beside", "M0")):
        one._boxes[what][name].value = True
    one._boxes["edits"]["filter"].value = False
    one._k.value, one._seeds.value = 4, 1
    other.choose(k=4, edits=["swap"], controls=["random", "bottom"], beside=["baseline", "M0"], seeds=1)
    assert one.frame.equals(other.frame)
    assert (other._k.value, other._seeds.value) == (4, 1)
    assert [name for name, box in other._boxes["controls"].items() if box.value] == ["random", "bottom"]


def test_marked_pairs_of_a_browser_are_an_edit_with_its_controls(tmp_path: Path) -> None:
    browser = PairBrowser(RANKING, PAIRS)
    one = panel(tmp_path, browser=browser)
    with pytest.raises(WidgetError, match="No pair is marked in the browser: mark some"):
        one.choose(edits=["filter marked"])
    browser.marked = PAIRS.ids[3:6]
    one.choose(edits=["filter marked", "swap marked"], seeds=1)
    filtered, swapped = (arm for arm, _ in one.jobs if arm.kind in ("filter", "swap"))
    assert filtered.dropped == swapped.swapped == set(PAIRS.ids[3:6])
    assert [len(arm) for arm, _ in one.jobs if arm.kind == "random"] == [3, 3]
    before = names(one)
    browser.marked = PAIRS.ids[4:7]
    assert names(one) != before, "other marks are another arm, with results of its own"
    browser.marked = []
    assert "No pair is marked" in one._status.value
    assert one.jobs == []
    assert one._buttons["start"].disabled


def test_without_a_browser_marked_pairs_are_not_offered(tmp_path: Path) -> None:
    one = panel(tmp_path)
    assert list(one._boxes["edits"]) == ["filter", "swap"]
    with pytest.raises(
        WidgetError, match="edits holds 'filter marked'; what is offered here is filter, swap"
    ):
        one.choose(edits=["filter marked"])


def test_other_arms_are_offered_by_name_and_come_without_controls(tmp_path: Path) -> None:
    oracle = arms.filter_ids(PAIRS.ids[:4], "oracle filter", "planted")
    one = panel(tmp_path, others=[oracle])
    one.choose(beside=["baseline", "oracle filter"], seeds=1)
    assert names(one) == ["baseline", "filter 2", "random filter 2", "oracle filter"]
    assert one.jobs[-1][0] is oracle


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"k": 0}, "k is 0; give a whole number from 1 to 16"),
        ({"k": 17}, "k is 17"),
        ({"k": True}, "k is True"),
        ({"seeds": 21}, "seeds is 21; give a whole number from 1 to 20"),
        (
            {"controls": ["randm"]},
            "controls holds 'randm'; what is offered here is random, bottom, stratified",
        ),
        ({"beside": ["oracle"]}, "beside holds 'oracle'; what is offered here is baseline, M0"),
    ],
)
def test_a_choice_that_cannot_be_meant_is_an_error_and_changes_nothing(
    chosen: dict[str, Any], words: str, tmp_path: Path
) -> None:
    one = panel(tmp_path)
    before = one.frame
    with pytest.raises(WidgetError, match=words):
        one.choose(**chosen)
    assert one.frame.equals(before)


def test_an_edit_that_leaves_nothing_is_said_and_nothing_can_be_started(tmp_path: Path) -> None:
    one = panel(tmp_path)
    with pytest.raises(ArmError, match="drops all 16 pairs"):
        one.choose(k=16)
    one._k.value = 16
    assert "drops all 16 pairs" in one._status.value
    assert 'role="alert"' in one._status.value
    assert one._buttons["start"].disabled
    one._k.value = 2
    assert "alert" not in one._status.value
    assert not one._buttons["start"].disabled


# ---- running


def test_a_run_trains_every_job_and_fills_in_table_and_chart(tmp_path: Path) -> None:
    one = panel(tmp_path)
    one.choose(beside=["baseline", "M0"], seeds=1)
    assert one.effects is None
    assert "how long they take is not known yet" in one._status.value
    run(one)
    assert one._estimate.measured > 0, "the time is estimated first"
    assert set(one.frame["state"]) == {"finished"}
    assert one.judged.equals(one._experiment.judged(one.jobs))
    assert effects.rates(one.judged).height == 16
    one._metric.value = "over_refusal"
    assert one.effects is not None
    assert one.effects["arm"].to_list() == ["M0", "baseline", "filter 2", "random filter 2"]
    assert one._picture.children[0].chart.to_dict()["description"]
    before = one._experiment.m0.fingerprint
    assert open_checkpoint(folder()).fingerprint == before


def test_a_second_panel_finds_what_is_finished(tmp_path: Path) -> None:
    run(done(tmp_path))
    again = done(tmp_path)
    assert set(again.frame["state"]) == {"finished"}
    assert again.effects is not None
    assert "9 jobs (arm and seed), 9 finished." in again._status.value
    assert again._buttons["start"].disabled
    again.choose(k=3)
    assert again.frame.filter(state="finished")["arm"].unique().to_list() == ["baseline"]
    assert "the others take about 6 min 24 s, as the 9 trained before did" in again._status.value
    assert again._buttons["start"].description == "Resume"


def stopped_at(out: Path, place: Callable[[Any], bool]) -> RetrainPanel:
    """A panel that a person stopped when a job was at this place."""
    one = done(out)
    step = one._step

    def watched(now: Any) -> None:
        step(now)
        if place(now):
            assert "Now running" in one._status.value
            assert not one._buttons["stop"].disabled
            one._buttons["stop"].click()
            assert "Now stopping" in one._status.value
            assert one._buttons["stop"].disabled

    one._step = watched
    return run(one)


def test_a_stopped_panel_keeps_what_is_finished_and_goes_on(tmp_path: Path) -> None:
    one = stopped_at(tmp_path, lambda now: (now.arm, now.seed, now.done) == ("filter 2", 1, 1))
    assert one.frame["state"].to_list() == ["finished"] * 4 + ["waiting"] * 5
    assert not one._buttons["start"].disabled
    assert one._buttons["start"].description == "Resume"
    assert "the others take about 5 min 20 s, as the 4 trained before did" in one._status.value
    one._step = type(one)._step.__get__(one)
    one._buttons["start"].click()
    one.wait()
    assert set(one.frame["state"]) == {"finished"}
    assert one.judged.equals(run(done(tmp_path / "other")).judged)


def test_what_goes_on_is_shown_while_it_goes_on(tmp_path: Path) -> None:
    one, seen = done(tmp_path), []
    step = one._step

    def watched(now: Any) -> None:
        step(now)
        seen.append((now, one._bars.value, one.frame, one._effects.value))

    one._step = watched
    run(one)
    at = {(now.arm, now.seed, now.stage, now.done): rest for now, *rest in seen}
    bars, frame, table = at["filter 2", 1, "train", 0]
    row = re.search(r'aria-label="filter 2".*?</tr>', bars)
    assert row is not None
    assert 'aria-valuenow="33"' in row[0]
    assert "1 of 3 finished; seed 1: training, step 0 of 2" in row[0]
    assert frame["state"].to_list() == ["finished"] * 4 + ["train"] + ["waiting"] * 4
    assert "random filter 2" in table
    assert at["filter 2", 1, "judge", 0][1].row(4) == (
        *("filter 2", "filter", 1, 2, "judge", 0, 3),
        *(None, None),
    )
    assert at["filter 2", 2, "judge", 3][1]["train_seconds"].to_list() == [60.0] * 8 + [None]


def test_while_it_works_a_panel_cannot_be_changed_or_started_again(tmp_path: Path) -> None:
    one, hold, ready = done(tmp_path), threading.Event(), threading.Event()
    step = one._step

    def held(now: Any) -> None:
        step(now)
        ready.set()
        assert hold.wait(60)

    one._step = held
    one.start()
    assert ready.wait(60)
    try:
        for work in (one.start, one.estimate, lambda: one.choose(k=3)):
            with pytest.raises(WidgetError, match="at work; stop it or wait"):
                work()
        one._buttons["start"].click()
        assert "at work; stop it or wait" in one._status.value
        boxes = [box for boxes in one._boxes.values() for box in boxes.values()]
        assert all(control.disabled for control in (*boxes, one._k, one._seeds))
        assert "M0 is in use" in one._status.value
    finally:
        hold.set()
    one.wait()
    assert not one._k.disabled
    assert "M0 is in use" not in one._status.value


def test_an_error_in_the_work_is_shown_and_raised_to_who_waits(tmp_path: Path) -> None:
    one = done(tmp_path)

    def full(now: Any) -> None:
        raise OSError("no space is left <on the disk>")

    step, one._step = one._step, full
    one.start()
    with pytest.raises(OSError, match="no space is left"):
        one.wait()
    assert "no space is left &lt;on the disk&gt;" in one._status.value
    assert not one._buttons["start"].disabled
    one._step = step
    run(one)
    assert set(one.frame["state"]) == {"finished"}
    assert "no space" not in one._status.value


def test_results_of_something_else_are_named_at_once(tmp_path: Path) -> None:
    run(done(tmp_path))
    other = replace(experiment(tmp_path), epochs=7)
    with pytest.raises(ResultError, match="epochs is 2 there, 7 now"):
        RetrainPanel(other, RANKING, k=2)


def test_results_of_another_ranking_are_named_when_they_are_met(tmp_path: Path) -> None:
    run(done(tmp_path, k=3))
    other = RetrainPanel(experiment(tmp_path), ranked(PAIRS.ids[::-1]), k=2)
    other._k.value = 3
    assert "filter-3-0.json is of something else" in other._status.value
    assert "ledger is" in other._status.value
    assert other._buttons["start"].disabled


def test_the_time_can_be_estimated_without_starting(tmp_path: Path) -> None:
    one = panel(tmp_path)
    one._buttons["estimate"].click()
    one.wait()
    assert re.search(r"the others take about .*, by a few timed steps\.", one._status.value)
    assert one.frame.filter(pl.col("state") != "waiting").is_empty()


# ---- what is shown


def test_the_effects_are_those_of_the_room_against_the_first_random_arm(tmp_path: Path) -> None:
    one = run(done(tmp_path))
    wanted = effects.effect_table(one.judged, metric="compliance_distractor", against="random filter 2")
    assert one.effects is not None
    assert one.effects.equals(wanted)
    assert dict(one.effects.select("arm", "rate").iter_rows()) == {
        "baseline": 1.0, "filter 2": 0.0, "random filter 2": 0.5,
    }  # fmt: skip
    assert "compared with random filter 2" in one._effects.value
    one._metric.value = "format_obedience"
    assert set(one.effects["rate"]) == {1.0}
    [chart] = one._picture.children
    one._metric.value = "over_refusal"
    assert one._picture.children == (chart,), "one chart is changed, none is made anew"


def test_only_what_the_prompts_can_show_is_offered_to_measure(tmp_path: Path) -> None:
    plain = replace(experiment(tmp_path), prompts=asked().filter("harmful", pl.col("distractor").is_null()))
    one = RetrainPanel(plain, RANKING, k=2)
    assert list(one._metric._words) == ["compliance_plain", "refusal_plain"]
    every = list(panel(tmp_path)._metric._words)
    assert every == [*effects.METRICS, "format_obedience"]


def test_an_arm_without_a_readable_reply_is_said_and_no_table_is_shown(tmp_path: Path) -> None:
    one = done(tmp_path)
    judged = run(one).judged

    def unreadable(jobs: Any) -> pl.DataFrame:
        return judged.with_columns(verdict=pl.lit("unparsable"))

    object.__setattr__(one._experiment, "judged", unreadable)
    one._metric.value = "over_refusal"
    assert one.effects is None
    assert "There is no table of effects yet" in one._effects.value
    assert one._picture.children == ()


def test_every_control_has_a_name_and_progress_a_role(tmp_path: Path) -> None:
    one = run(done(tmp_path, browser=PairBrowser(RANKING, PAIRS)))
    named = [
        each
        for each in shown(one)
        if isinstance(each, ipywidgets.widgets.widget_description.DescriptionWidget)
    ]
    nameless = [
        each
        for each in named
        if not each.description and not isinstance(each, ipywidgets.HTML | ipywidgets.Label)
    ]
    assert nameless == []
    kinds = {type(each).__name__ for each in shown(one)}
    assert kinds <= {
        *("RetrainPanel", "HTML", "HBox", "VBox", "Checkbox", "BoundedIntText", "Button", "Choice", "Label"),
        "JupyterChart",
    }
    assert one._bars.value.count('role="progressbar"') == 3
    assert 'role="status"' in one._status.value


def test_names_of_arms_are_only_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evil = arms.filter_ids(PAIRS.ids[:1], EVIL, "x")
    one = done(tmp_path, others=[evil])
    one.choose(beside=[EVIL], seeds=1)
    run(one)
    one._say(EVIL)
    for html in (text_of(one), one._static_html()):
        assert "&lt;script&gt;" in html
        assert not re.search("<script|<img src=x|<a |\u202e|\x1b", html)
    assert one._boxes["beside"][EVIL].description_allow_html is False
    page = exported(one, monkeypatch, state_saved=False)
    assert "<script>alert(1)" not in page


@pytest.mark.parametrize("state_saved", [False, True])
def test_an_exported_notebook_shows_jobs_effects_and_the_chart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state_saved: bool
) -> None:
    one = run(done(tmp_path))
    page = exported(one, monkeypatch, state_saved=state_saved)
    tables = re.findall(r"<table>.*?</table>", page, re.DOTALL)
    assert [table.count('<th scope="row"') for table in tables] == [3, 9]
    assert "0.0% (0.0% to 0.0%)" in tables[0]
    assert "1 min 4 s" in tables[1]
    assert re.search(
        r'<img alt="Compliance with [^"]*filter 2 0.0%[^"]*" src="data:image/svg\+xml;base64', page
    )
    assert one._static_class in one.children[0].value, "by which the panel hides it while it lives"


def test_before_a_run_an_export_says_what_is_planned(tmp_path: Path) -> None:
    html = panel(tmp_path)._repr_mimebundle_()[0]["text/html"]
    assert "9 jobs (arm and seed), 0 finished" in html
    assert html.count("waiting") == 9
    assert "<img" not in html


def test_the_repr_is_one_line(tmp_path: Path) -> None:
    one = run(done(tmp_path))
    assert repr(one) == "RetrainPanel(3 arms: baseline, filter 2, random filter 2; 9 of 9 jobs finished)"


def test_how_long_it_takes_is_said_as_people_say_it() -> None:
    said = {0.2: "1 s", 59.6: "1 min", 61: "1 min 1 s", 3600: "1 h", 3660: "1 h 1 min", 90000: "25 h"}
    assert {seconds: duration(seconds) for seconds in said} == said
    jobs = pl.DataFrame({"state": ["finished", "waiting"]})
    assert estimate_words(jobs, Estimate(2.0, 1)).endswith(
        "the others take about 2 s, as the 1 trained before did."
    )
