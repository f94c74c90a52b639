from __future__ import annotations

import json
import shutil
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from experimented import asked, folder
from safetensors.torch import load_file

from probekit import arms, effects, experiments, judges, rollouts, training
from probekit.checkpoints import open_checkpoint
from probekit.experiments import (
    JUDGED,
    M0,
    Experiment,
    ExperimentError,
    Job,
    Progress,
    ResultError,
    read_result,
    write_result,
)
from probekit.pairs import load_pairs
from probekit.testing import planted_pairs, ranked

ROOT = Path(__file__).parent.parent
PAIRS = load_pairs(planted_pairs(8))
RECIPE = training.Recipe(first_block=2, rank=2, learning_rate=1e-2, batch_size=4)
EDIT = arms.filter_top(ranked(PAIRS.ids), 2)
JOBS: list[Job] = [(M0, 0), (arms.baseline(), 0), (EDIT, 0)]
STEPS = 4  # two passes over 8 pairs in fours


def experiment(out: Path, **changed: Any) -> Experiment:
    settings = {"prompts": asked(), "folder": out, "recipe": RECIPE, "epochs": 2} | changed
    return Experiment(open_checkpoint(folder()), PAIRS, **settings)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("done")
    experiment(out).run(JOBS)
    return out


@pytest.fixture
def copied(done: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(done, tmp_path / "copied"))


def refuse_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(*arguments: object, **named: object) -> None:
        raise AssertionError("something was trained or sampled again")

    monkeypatch.setattr(training, "train_dpo", work)
    monkeypatch.setattr(rollouts, "sample", work)


def files(out: Path) -> set[str]:
    return {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}


# --- what a run gives


def test_a_run_gives_one_row_a_reply_that_effects_takes(done: Path) -> None:
    one = experiment(done)
    judged = one.judged(JOBS)
    assert judged.schema == {"arm": pl.String, "seed": pl.Int64, **JUDGED}
    assert judged.group_by("arm", maintain_order=True).len().rows() == [
        *(("M0", 8), ("baseline", 8), ("filter", 8))
    ]
    assert effects.rates(judged)["n"].sum() == 24
    table = effects.effect_table(judged, metric="over_refusal", against="baseline")
    assert table["arm"].to_list() == ["M0", "baseline", "filter"]
    assert effects.capability(judged, against=None).height == 3
    scored = judged.filter(pl.col("nll_sum").is_not_null())
    assert effects.perplexity(scored, against=None).height == 3
    assert scored.filter("harmful").is_empty()


def test_what_is_finished_is_not_done_again(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_work(monkeypatch)
    one = experiment(done)
    assert one.remaining(JOBS) == []
    assert one.run([*JOBS, JOBS[0]]).height == 24
    assert one.remaining([*JOBS, (EDIT, 1), (EDIT, 1)]) == [(EDIT, 1)]


def test_a_finished_job_needs_its_result_file_only(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(copied / "work")
    refuse_work(monkeypatch)
    assert experiment(copied).run(JOBS).height == 24


def test_m0_is_judged_as_it_is_and_an_arm_with_its_adapter(done: Path) -> None:
    one = experiment(done)
    assert one.trained(M0, seed=0) is one.m0
    adapter = one.place(EDIT, seed=0)
    opened = open_checkpoint(folder(), adapter=adapter)
    assert one.trained(EDIT, seed=0).fingerprint == opened.fingerprint != one.m0.fingerprint
    assert read_result(one.path("M0", 0))["train_seconds"] is None
    assert read_result(one.path("filter", 0))["train_seconds"] > 0


def test_prompts_of_one_kind_only_are_judged_too(tmp_path: Path) -> None:
    for name, kept in (("harmful", pl.col("harmful")), ("plain", pl.col("distractor").is_null())):
        frame = asked().filter(kept).with_columns(reply=pl.lit("a column of the user's own"))
        assert experiment(tmp_path / name, prompts=frame).run([(M0, 0)]).height == frame.height


# --- stop and progress


def test_progress_tells_every_step_of_every_job_in_the_place_of_bars(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    seen: list[Progress] = []
    experiment(tmp_path).run([(M0, 0), (EDIT, 3)], progress=seen.append)
    assert capfd.readouterr().err == ""
    m0, edit = [[one for one in seen if one.arm == name] for name in ("M0", "filter")]
    assert seen == m0 + edit
    assert m0 == [Progress("M0", 0, "judge", part, 3) for part in range(4)]
    trained = [(one.done, one.steps) for one in edit if one.stage == "train"]
    assert trained == [(0, STEPS)] * 3 + [
        (step, STEPS) for step in range(1, STEPS + 1)
    ]  # two are of reference
    assert edit[-4:] == [Progress("filter", 3, "judge", part, 3) for part in range(4)]
    assert [one for one in seen if one.finished] == [m0[-1], edit[-1]]


@pytest.mark.parametrize("last", [("train", 0), ("train", 2), ("judge", 1)])
def test_a_stopped_run_leaves_nothing_half_written_and_goes_on_to_the_same_result(
    last: tuple[str, int], done: Path, tmp_path: Path
) -> None:
    stop, one = threading.Event(), experiment(tmp_path)

    def watch(now: Progress) -> None:
        if (now.arm, now.stage, now.done) == ("filter", *last):
            stop.set()

    judged = one.run(JOBS, stop=stop, progress=watch)
    assert judged["arm"].unique(maintain_order=True).to_list() == ["M0", "baseline"]
    assert one.remaining(JOBS) == JOBS[2:]
    assert one.place(EDIT, seed=0).is_dir() == (last[0] == "judge")
    assert not any("filter" in name for name in files(tmp_path) if last[0] == "train")
    assert one.run(JOBS).height == 24
    assert (read_result(one.path("filter", 0))["train_seconds"] is None) == (last[0] == "judge")
    assert one.judged(JOBS).equals(experiment(done).judged(JOBS))
    weights, wanted = (
        load_file(each.place(EDIT, seed=0) / "adapter_model.safetensors") for each in (one, experiment(done))
    )
    assert all(weights[name].equal(wanted[name]) for name in wanted)


def long_replies(rollouts: pl.DataFrame) -> pl.DataFrame:
    """A judge of our own: which replies are of more characters than the usual judge is given tokens."""
    long = pl.col("reply").str.len_chars() > 16
    return rollouts.with_columns(verdict=pl.when(long).then(pl.lit("complied")).otherwise(pl.lit("refused")))


def test_a_judge_of_ones_own_gives_the_verdicts_and_reads_whole_replies(tmp_path: Path) -> None:
    one = experiment(tmp_path, judge=long_replies)
    judged = one.run(JOBS[:1])
    sampled = rollouts.sample(one.m0, asked(), max_new_tokens=one.format_tokens, temperature=0)
    keys = ["prompt_id", "distractor"]
    both = judged.join(long_replies(sampled), on=keys, nulls_equal=True, suffix="_wanted")
    assert both.height == asked().height
    assert both["verdict"].to_list() == both["verdict_wanted"].to_list()
    usual = experiment(tmp_path / "usual").about(M0, seed=0)
    assert one.about(M0, seed=0) == {**usual, "judge": f"{__name__}.long_replies"}


def test_a_judge_without_a_name_of_its_own_is_not_taken(tmp_path: Path) -> None:
    for judge in (lambda rows: rows, partial(long_replies)):
        with pytest.raises(ExperimentError, match="has no name by which results could tell it from another"):
            experiment(tmp_path, judge=judge)


def test_a_stop_in_the_last_step_keeps_what_has_just_ended(tmp_path: Path) -> None:
    stop, one = threading.Event(), experiment(tmp_path)
    jobs = JOBS[1:]

    def watch(now: Progress) -> None:
        if now.finished:
            stop.set()

    assert one.run(jobs, stop=stop, progress=watch)["arm"].unique().to_list() == ["baseline"]
    assert one.remaining(jobs) == jobs[1:]
    assert one.run(jobs, stop=stop).height == 8  # nothing new is begun while it is set


def test_what_progress_raises_ends_the_run(tmp_path: Path) -> None:
    def watch(now: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        experiment(tmp_path).run(JOBS, progress=watch)
    assert files(tmp_path) == set()


# --- what a result is of


CHANGES: list[tuple[str, dict[str, Any]]] = [
    (r"recipe\.beta is 0\.1 there, 0\.5 now", {"recipe": replace(RECIPE, beta=0.5)}),
    ("epochs is 2 there, 1 now", {"epochs": 1}),
    ("m0 is '.*' there, 'another' now", {"m0_id": "another"}),
    ("prompts is '.*' there, '.*' now", {"prompts": asked().head(4)}),
    ("opening_tokens is None there, 20 now", {"opening_tokens": 20}),
    ("judge is None there, '.*judge_obedience' now", {"judge": judges.judge_obedience}),
]


@pytest.mark.parametrize(("words", "changed"), CHANGES, ids=[words.split()[0] for words, _ in CHANGES])
def test_a_result_of_something_else_is_an_error_before_anything_is_trained(
    words: str, changed: dict[str, Any], done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_work(monkeypatch)
    with pytest.raises(ResultError, match=words) as caught:
        experiment(done, **changed).run([(EDIT, 7), *JOBS])
    assert "Remove it" in str(caught.value)


def test_an_arm_with_other_edits_does_not_take_the_result_of_its_namesake(done: Path) -> None:
    other = arms.filter_ids(PAIRS.ids[-1:], "filter", "another edit")
    with pytest.raises(ResultError, match=r"ledger is '.*' there, '.*' now"):
        experiment(done).finished(other, seed=0)
    with pytest.raises(ExperimentError, match=r"Two arms would have the result file filter-0\.json"):
        experiment(done).remaining([(EDIT, 0), (other, 0)])


def test_arms_whose_names_differ_in_signs_only_are_told_apart(tmp_path: Path) -> None:
    one = experiment(tmp_path)
    slash, space = (arms.filter_ids(PAIRS.ids[:1], name, "x") for name in ("drop a/b", "drop a b"))
    assert one.path("drop a/b", 2) == tmp_path / "drop-a-b-2.json"
    with pytest.raises(ExperimentError, match=r"drop-a-b-0\.json"):
        one.remaining([(slash, 0), (space, 0)])
    assert len(one.remaining([(slash, 0), (space, 1)])) == 2


def test_the_committed_results_are_of_the_same_things(done: Path) -> None:
    paths = sorted((ROOT / "benchmarks" / "reproduce").glob("*-[0-9].json"))
    committed = [path for path in paths if not path.name.startswith("ranking")]
    assert len(committed) >= 56
    about = experiment(done).about(EDIT, seed=0)
    for path in committed:
        found = read_result(path)["about"]
        assert list(found) == list(about)
        assert path.name == experiment(done).path(found["arm"], found["seed"]).name


def test_result_files_hold_no_text_of_prompts_or_replies(done: Path) -> None:
    texts = {*asked()["text"], "How", "Rig"}
    for path in done.glob("*.json"):
        assert [text for text in texts if text in path.read_text()] == []


def test_a_result_file_reads_as_it_was_written(tmp_path: Path) -> None:
    frame = pl.DataFrame({"id": ["a", "b"], "verdict": ["refused", None], "nll": [0.5, None]})
    write_result(tmp_path / "one.json", {"seed": 1}, frame, seconds=2.5)
    content = read_result(tmp_path / "one.json", {"seed": 1})
    assert pl.DataFrame(content["rows"], schema=frame.schema, orient="row").equals(frame)
    assert (content["about"], content["seconds"], content["columns"]) == ({"seed": 1}, 2.5, frame.columns)


@pytest.mark.parametrize(
    "text", ["", "{", '{"rows": []}', '{"about": {}, "columns": ["a"], "rows": [[1, 2]]}']
)
def test_a_damaged_result_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "one.json").write_text(text)
    with pytest.raises(ResultError, match=r"one\.json .*Remove it"):
        read_result(tmp_path / "one.json")


# --- the estimate


def measured(out: Path, **seconds: tuple[float | None, float]) -> None:
    for name, (train, judge) in seconds.items():
        path = out / f"{name}-0.json"
        content = json.loads(path.read_text())
        path.write_text(json.dumps({**content, "train_seconds": train, "judge_seconds": judge}))


def test_what_is_left_takes_as_long_as_the_finished_took(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = experiment(copied)
    measured(copied, M0=(None, 1.0), baseline=(60.0, 3.0), filter=(40.0, 2.0))
    refuse_work(monkeypatch)
    assert one.estimate(JOBS) == (0.0, 2)
    assert one.estimate([*JOBS, (EDIT, 1), (EDIT, 2)]) == (2 * 50.0 + 2 * 2.0, 2)
    (copied / "filter-0.json").unlink()  # its adapter is there
    assert one.estimate(JOBS) == (2.0, 1)
    other = experiment(copied, epochs=3, prompts=asked())
    assert other.estimate([(EDIT, 1)], measure=False) == (None, 0)


def test_without_a_finished_arm_a_few_steps_are_timed_and_leave_no_result(tmp_path: Path) -> None:
    one = experiment(tmp_path)
    before = one.m0.fingerprint
    found = one.estimate(JOBS)
    assert found.measured == 0
    assert found.seconds is not None
    assert 0 < found.seconds < 600
    assert files(tmp_path) == set()
    assert one.estimate(JOBS) == found, "timed once"
    assert open_checkpoint(folder()).fingerprint == before
    one.finish(M0, seed=0)
    assert one.estimate(JOBS[:1], measure=False) == (0.0, 0)


# --- what cannot be judged


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (asked().drop("harmful", "user"), "The prompts lack user, harmful; make them with prompt_frame"),
        (asked().clear(), "There are no prompts"),
        (pl.concat([asked(), asked().head(1)]), "2 of 9 prompts share prompt_id and distractor with another"),
    ],
)
def test_prompts_that_arms_cannot_be_judged_on_are_refused_at_once(
    frame: pl.DataFrame, words: str, tmp_path: Path
) -> None:
    with pytest.raises(ExperimentError, match=words):
        experiment(tmp_path, prompts=frame)


@pytest.mark.parametrize(("n", "epochs", "wanted"), [(8, 2, 4), (8, 1, 2), (1, 1, 1), (7, 1, 2), (5, 1, 1)])
def test_an_arm_has_the_steps_of_its_epochs_over_the_unedited_pairs(
    n: int, epochs: int, wanted: int, tmp_path: Path
) -> None:
    pairs = PAIRS.select(PAIRS.ids[:n])
    assert experiments.steps(pairs, RECIPE, epochs) == wanted
    one = replace(experiment(tmp_path, epochs=epochs), pairs=pairs)
    assert len(one.order(arms.baseline(), seed=0)) == wanted * RECIPE.batch_size
