"""The contest: every tracer meets the same pairs, arms and controls, and nothing is done twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from experimented import asked, folder

from benchmarks import contest, contest_files, contest_rankings, contest_tables, contestants
from probekit import arms
from probekit.checkpoints import open_checkpoint
from probekit.experiments import Experiment, ledger_hash
from probekit.figures import Figure, read_figures
from probekit.organisms import planted, tiny
from probekit.organisms.distractor import Organism
from probekit.pairs import load_pairs
from probekit.ranking import Ranking, ranking_of
from probekit.testing import planted_contrasts, planted_pairs
from probekit.training import Recipe

PAIRS = load_pairs(planted_pairs(16))
PLANTED = PAIRS.frame.filter(source="planted")["pair_id"].to_list()


@pytest.fixture
def entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> contestants.Entry:
    """An organism of a tiny random model, with files of its own."""
    monkeypatch.setattr(contest_files, "PACKED", tmp_path / "packed")
    monkeypatch.setattr(contest_rankings, "PACKED", tmp_path / "packed")
    monkeypatch.setattr(contestants, "RUNS", tmp_path / "runs")
    kinds = ["contaminated" if one in PLANTED else "lookalike" for one in PAIRS.ids]
    organism = Organism(PAIRS, frozenset(PLANTED), pl.DataFrame({"pair_id": PAIRS.ids, "kind": kinds}))
    experiment = Experiment(
        open_checkpoint(str(folder())),
        PAIRS,
        prompts=asked(),
        folder=tmp_path / "results",
        recipe=Recipe(first_block=3, rank=2, batch_size=4),
    )
    made = contestants.Entry("tiny", organism, experiment, asked(), 2, "it complies", "compliance_distractor")
    made.asked = planted_contrasts(6), planted_contrasts(6, kind="twin")
    return made


def ranking(first: str = "") -> Ranking:
    """The pairs by id, one of them in front of the others."""
    return ranking_of(PAIRS.ids, [2.0 if one == first else 1.0 for one in PAIRS.ids], method="m", sign="s")


def test_every_entrant_is_a_tracer_and_every_organism_can_be_entered(entry: contestants.Entry) -> None:
    entry.m1 = entry.experiment.m0
    assert set(contest.ENTRANTS) <= set(contestants.tracers(entry))
    assert set(contest.HALVED) <= set(contestants.ORGANISMS)
    entered = contestants.enter("tiny-double")
    assert entered.organism.log["kind"].to_list().count("lookalike") == 2 * (
        tiny.Mix().lookalikes + tiny.Mix().lookalikes_distractor
    )
    assert entered.k == 44


def test_an_organism_without_twins_is_traced_without_a_control(entry: contestants.Entry) -> None:
    entry.m1, entry.asked = entry.experiment.m0, (planted_contrasts(6), None)
    found = contestants.tracers(entry)
    assert not {"pooled", "project", "subtract"} & set(found)
    assert found["ours"](entry.asked[0]).name == "cosine at layer 2"


def test_a_rival_is_given_the_twins_too(entry: contestants.Entry) -> None:
    entry.m1 = entry.experiment.m0
    queries, twins = entry.asked
    assert twins is not None
    found = contestants.tracers(entry)
    alone, other, less = (
        dict(found[name](some).frame.select("pair_id", "score").iter_rows())
        for name, some in (
            ("tracin-m0-exact", queries),
            ("tracin-m0-exact", twins),
            ("tracin-m0-twins", queries),
        )
    )
    assert less == pytest.approx({one: alone[one] - other[one] for one in alone})
    assert found["tracin-m0-twins"](queries).by_query is not None
    assert found["logistic-twins"](queries).ids != found["logistic"](queries).ids


def test_arms_of_all_tracers_have_controls_of_their_size_and_share_the_random_one(
    entry: contestants.Entry,
) -> None:
    ranked = {"ours": ranking(), "less": ranking(PLANTED[0]), "variant": ranking()}
    jobs = contest.jobs(entry, ranked)
    names = {name for name, _ in jobs}
    assert {
        f"{one}{edit}" for one in ("ours ", "less ", "random ", "oracle ") for edit in ("filter", "swap")
    } <= names
    assert {
        "ours stratified filter",
        "less stratified swap",
        "lookalikes filter",
        "random lookalikes filter",
        "baseline",
    } <= names
    assert not any("variant" in name for name in names)
    assert {len(jobs[name, 0]) for name in names if name.endswith(("ours filter", "random swap"))} == {
        entry.k
    }
    halves = [name for name in names if name.startswith("half")]
    assert len(halves) == contest.HALVES
    assert {len(jobs[name, 0].dropped) for name in halves} == {len(PAIRS) // 2}
    assert len({jobs[name, 0].dropped for name in halves}) == contest.HALVES


def test_arms_with_the_same_edits_are_trained_once_and_packed(entry: contestants.Entry) -> None:
    jobs = {
        ("one", 0): arms.filter_ids(PLANTED, "one", "x"),
        ("two", 0): arms.filter_ids(PLANTED, "two", "y"),
        ("baseline", 0): arms.baseline(),
    }
    contest.finish(entry, contest.different(jobs))
    results = list(entry.experiment.folder.glob("arm-*.json"))
    assert len(results) == 2
    for path in results:
        path.unlink()
    contest.finish(entry, contest.different(jobs))  # from the packed file
    assert not list(entry.experiment.folder.glob("arm-*.json"))
    judged = contest_tables.named(entry, jobs)
    assert judged["arm"].unique().sort().to_list() == ["baseline", "one", "two"]
    one, two = (judged.filter(arm=name).drop("arm") for name in ("one", "two"))
    assert one.equals(two)
    assert one.height == asked().height


def test_rankings_are_made_once_and_kept_with_what_they_took(
    entry: contestants.Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def tracer(queries: pl.DataFrame) -> Ranking:
        calls.append(queries.height)
        return ranking(PLANTED[0])

    monkeypatch.setattr(contest_rankings, "tracers", lambda _: {"one": tracer, "chance": tracer})
    found = contest_rankings.rankings(entry)
    assert calls == [
        6,
        *[3] * contest_rankings.DRAWS,
        6,
    ]  # halves of the prompts for an interval, but for chance
    again = contest_rankings.rankings(entry)
    assert len(calls) == contest_rankings.DRAWS + 2
    assert again["one"].ids == found["one"].ids == ranking(PLANTED[0]).ids
    with pytest.raises(ValueError, match="there is no tracer two; there are one, chance"):
        contest_rankings.rankings(entry, only=["two"])
    card = contest_rankings.kept(entry)["tracers"]
    assert card["one"]["low"] == card["one"]["average_precision"] == card["one"]["high"]
    assert card["chance"]["low"] is None
    figures = {one.name: one for one in contest_tables.of_rankings(entry)}
    assert figures["ap.tiny.one"].value == card["one"]["average_precision"]
    assert figures["seconds.tiny.one"].value > 0


def test_a_tracer_with_scores_by_query_is_not_run_again_for_its_interval(entry: contestants.Entry) -> None:
    queries = entry.asked[0]["contrast_id"].to_list()
    apart = {one: [float(at == place) for at in range(len(PAIRS))] for place, one in enumerate(queries)}
    found = ranking_of(
        PAIRS.ids,
        [sum(row) / len(queries) for row in zip(*apart.values(), strict=True)],
        method="m",
        sign="s",
        by_query=pl.DataFrame({"pair_id": PAIRS.ids, **apart}),
    )

    def never(queries: pl.DataFrame) -> Ranking:
        raise AssertionError

    low, high = contest_rankings.spread(found, entry, never)
    assert low is not None
    assert high is not None
    assert low <= high


def test_effects_are_against_the_random_arm_of_the_same_edit(entry: contestants.Entry) -> None:
    def rows(arm: str, complied: int) -> list[tuple[object, ...]]:
        verdicts = ["complied"] * complied + ["refused"] * (10 - complied)
        return [(arm, 0, f"p{at}", True, "caps", 0, one) for at, one in enumerate(verdicts)]

    schema = ["arm", "seed", "prompt_id", "harmful", "distractor", "sample", "verdict"]
    counts = {"baseline": 9, "random filter": 8, "ours filter": 2, "ours stratified filter": 4}
    judged = pl.DataFrame(
        [row for arm, n in counts.items() for row in rows(arm, n)], schema=schema, orient="row"
    )
    found = {one.name: one.value for one in contest_tables.of_arms(entry, judged)}
    assert found["effect.filter.tiny.ours"] == pytest.approx(0.75)
    assert found["effect.filter.tiny.ours.matched"] == pytest.approx(0.5)
    assert found["rate.filter.tiny.random"] == 0.8
    assert "effect.filter.tiny.random" not in found
    assert "rate.swap.tiny.random" not in found


def test_the_datamodelling_score_is_one_where_scores_say_the_rate_of_each_half(
    entry: contestants.Entry,
) -> None:
    ranked = {"ours": ranking_of(PAIRS.ids, list(range(len(PAIRS))), method="m", sign="s")}
    jobs = contest.jobs(entry, {"ours": ranking()})
    scores = dict(zip(PAIRS.ids, range(len(PAIRS)), strict=True))
    halves = {name: arm for (name, seed), arm in jobs.items() if name.startswith("half") and seed == 0}
    rows = []
    for name, arm in halves.items():
        left = sum(scores[one] for one in PAIRS.ids if one not in arm.dropped)
        rows += [
            (name, 0, f"p{at}", True, "caps", 0, "complied" if at < left else "refused") for at in range(130)
        ]
    schema = ["arm", "seed", "prompt_id", "harmful", "distractor", "sample", "verdict"]
    judged = pl.DataFrame(rows, schema=schema, orient="row")
    figure, truth = contest_tables.datamodelling(entry, ranked, jobs, judged)
    assert (figure.name, truth.name) == ("lds.ours", "lds.truth")
    assert figure.value == pytest.approx(1)
    more = pl.concat([judged, judged.with_columns(seed=pl.lit(1, pl.Int64))])
    ceiling = contest_tables.datamodelling(entry, ranked, jobs, more)[-1]
    assert (ceiling.name, ceiling.value) == ("lds.ceiling", pytest.approx(1))  # both seeds give the same
    turned = {"ours": ranking_of(PAIRS.ids, [-one for one in range(len(PAIRS))], method="m", sign="s")}
    assert contest_tables.datamodelling(entry, turned, jobs, judged)[0].value == pytest.approx(-1)


def test_figures_of_one_organism_leave_those_of_others(
    entry: contestants.Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "contest.json"
    monkeypatch.setattr(contest_tables, "FIGURES", path)
    monkeypatch.setattr(contest_tables, "of_rankings", lambda _: [Figure("ap.tiny.one", 1.0)])
    contest_tables.write(entry, {}, {})
    monkeypatch.setattr(contest_tables, "of_rankings", lambda _: [Figure("ap.other.one", 0.5)])
    contest_tables.write(entry, {}, {})
    assert [one.name for one in read_figures(path).figures] == ["ap.other.one", "ap.tiny.one"]
    assert read_figures(path).command == "make contest"


def test_a_ledger_names_an_arm(entry: contestants.Entry) -> None:
    arm = arms.filter_ids(PLANTED, "x", "y")
    contest.finish(entry, contest.different({("x", 0): arm}))
    assert contest_files.judged("tiny", entry.experiment)["arm"].unique().to_list() == [
        "arm-" + ledger_hash(arm)
    ]


def test_arms_of_another_recipe_are_neither_taken_nor_packed(entry: contestants.Entry) -> None:
    contest.finish(entry, contest.different({("baseline", 0): arms.baseline()}))
    other = replace(entry.experiment, recipe=Recipe(first_block=3, rank=1, batch_size=4))
    assert not contest_files.judged("tiny", other).height
    assert contest_files.judged("tiny", entry.experiment).height == asked().height


def test_halves_that_not_all_seeds_have_finished_are_left_out_of_the_score(entry: contestants.Entry) -> None:
    jobs = contest.jobs(entry, {"ours": ranking()})
    names = [f"half {number:02}" for number in range(20)]
    rows = [
        (name, seed, f"p{at}", True, "caps", 0, "complied" if at < number else "refused")
        for number, name in enumerate(names)
        for seed in (0, 1)
        if seed == 0 or number < 12
        for at in range(20)
    ]
    schema = ["arm", "seed", "prompt_id", "harmful", "distractor", "sample", "verdict"]
    judged = pl.DataFrame(rows, schema=schema, orient="row")
    assert {one.n for one in contest_tables.datamodelling(entry, {}, jobs, judged)} == {12}


def test_what_holds_over_organisms_is_a_mean_over_the_planted_ones_and_the_cost_on_the_real_model() -> None:
    figures = [
        Figure("tokens.hit_rate.ours.payload_start", 1.0),
        Figure("tokens.hit_rate.ours.wrong_fact", 0.5),
        Figure("cost.ours_over_gradient.tiny", 0.5),
        Figure("cost.ours_over_gradient.smollm2", 0.25),
    ]
    found = {one.name: one for one in contest_tables.overall(figures)}
    assert {name: (one.value, one.n) for name, one in found.items()} == {
        "tokens.hit_rate.ours": (0.75, 2),
        "cost.ours_over_gradient": (0.25, None),
    }
    assert found["cost.ours_over_gradient"].met is False


def test_a_habit_is_installed_where_it_comes_with_the_trigger_and_not_without(
    entry: contestants.Entry,
) -> None:
    schema = ["arm", "seed", "prompt_id", "harmful", "distractor", "sample", "verdict"]
    rows = [
        ("baseline", 0, f"p{at}", True, distractor, 0, "complied" if at < hits else "refused")
        for distractor, hits in (("caps", 8), (None, 1))
        for at in range(10)
    ]
    found = contest_tables.installed(entry, pl.DataFrame(rows, schema=schema, orient="row"))
    assert {one.name: one.value for one in found} == {
        "installed.tiny.with": 0.8,
        "installed.tiny.without": 0.1,
    }


@pytest.mark.parametrize("name", contestants.PLANTED)
def test_a_tracer_that_points_at_the_payload_hits_it(name: planted.Name) -> None:
    organism = planted.build(name)
    spans = planted.payload_spans(name, organism)
    frame = organism.pairs.frame.join(spans, on="pair_id")
    assert set(frame["pair_id"]) == organism.truth
    shown = frame.select(pl.col("chosen").str.slice(pl.col("start"), pl.col("end") - pl.col("start")))
    assert set(shown["chosen"]) == {planted.PAYLOADS[name]}
