from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from probekit import arms
from probekit.arms import Arm, ArmError
from probekit.pairs import PairSet, load_pairs
from probekit.ranking import Ranking, RankingError
from probekit.sources import SourceError
from probekit.testing import planted_pairs, ranked

PAIRS = load_pairs(planted_pairs(48))
RANKING = ranked(PAIRS.ids)
SOURCE = dict(PAIRS.frame.select("pair_id", "source").iter_rows())
SEEDS = st.integers(0, 2**32)

some_ids = st.sets(st.sampled_from(PAIRS.ids), min_size=1, max_size=len(PAIRS) - 1).map(sorted)
any_arm = st.one_of(
    st.just(arms.baseline()),
    some_ids.map(lambda ids: arms.filter_ids(ids, "filter", "drawn")),
    some_ids.map(lambda ids: arms.swap_ids(ids, "swap", "drawn")),
)


def rows(pairs: PairSet) -> dict[str, tuple[object, ...]]:
    return {row[0]: row for row in pairs.frame.iter_rows()}


@given(any_arm)
def test_no_edit_changes_the_original_set(arm: Arm) -> None:
    before = PAIRS.frame.clone()
    arm.apply(PAIRS)
    assert PAIRS.frame.equals(before)


def test_the_baseline_is_the_original_set() -> None:
    assert arms.baseline().apply(PAIRS).frame.equals(PAIRS.frame)


@given(some_ids)
def test_filter_removes_exactly_its_pairs_and_keeps_the_others_as_they_are_and_in_order(
    ids: list[str],
) -> None:
    edited = arms.filter_ids(ids, "filter", "drawn").apply(PAIRS)
    assert edited.frame.equals(PAIRS.frame.filter(~pl.col("pair_id").is_in(ids)))


@given(some_ids)
def test_swap_exchanges_replies_and_models_of_its_pairs_and_nothing_else(ids: list[str]) -> None:
    edited = arms.swap_ids(ids, "swap", "drawn").apply(PAIRS)
    before, after = PAIRS.frame.to_dicts(), edited.frame.to_dicts()
    for old, new in zip(before, after, strict=True):
        if old["pair_id"] not in ids:
            assert new == old
            continue
        assert new.pop("pair_id") != old.pop("pair_id")
        mirror = {"chosen": "rejected", "rejected": "chosen"}
        mirror |= {f"{one}_model": f"{other}_model" for one, other in mirror.items()}
        assert new == {mirror.get(name, name): value for name, value in old.items()}


@given(some_ids)
def test_ids_of_swapped_pairs_are_those_of_their_new_content(ids: list[str]) -> None:
    edited = arms.swap_ids(ids, "swap", "drawn").apply(PAIRS)
    assert load_pairs(edited.frame).ids == edited.ids


@given(some_ids)
def test_swapping_twice_gives_back_the_original(ids: list[str]) -> None:
    once = arms.swap_ids(ids, "swap", "drawn")
    back = [arms.edited_ids(once, PAIRS)[one] for one in ids]
    twice = arms.swap_ids(back, "back", "drawn").apply(once.apply(PAIRS))
    assert twice.frame.equals(PAIRS.frame)


@given(any_arm)
def test_edited_ids_name_the_rows_of_the_edited_set_in_order(arm: Arm) -> None:
    new_ids = arms.edited_ids(arm, PAIRS)
    assert list(new_ids.values()) == arm.apply(PAIRS).ids
    assert {old for old, new in new_ids.items() if old != new} == arm.swapped
    assert new_ids.keys() == set(PAIRS.ids) - arm.dropped


def test_the_report_of_an_edited_set_counts_what_was_done() -> None:
    report = arms.filter_ids(PAIRS.ids[:3], "filter", "drawn").apply(PAIRS).report
    counts = dict(report.select("what", "rows").iter_rows())
    assert counts == {"found": 48, "kept": 45, "dropped": 3, "swapped": 0}


@given(st.integers(1, len(PAIRS)))
def test_top_arms_edit_the_k_highest_ranked_pairs_and_say_why(k: int) -> None:
    dropped, swapped = arms.filter_top(RANKING, k), arms.swap_top(RANKING, k)
    assert dropped.ids == swapped.ids == RANKING.ids[:k]
    assert len(dropped.dropped) == len(swapped.swapped) == k
    assert not dropped.swapped
    assert not swapped.dropped
    assert dropped.ledger["reason"][0] == "rank 1 of 48 by cosine at layer 0, score 1.0000"


@pytest.mark.parametrize("k", [0, -1, 49])
def test_top_arms_refuse_a_k_that_the_ranking_does_not_hold(k: int) -> None:
    with pytest.raises(RankingError, match=str(k)):
        arms.filter_top(RANKING, k)


def test_drop_source_drops_exactly_the_pairs_of_that_source() -> None:
    arm = arms.drop_source(PAIRS, "safety")
    assert arm.dropped == {one for one, source in SOURCE.items() if source == "safety"}
    assert arm.name == "drop safety"


def test_drop_generator_drops_pairs_with_the_generator_on_either_side() -> None:
    frame = PAIRS.frame.select("pair_id", "chosen_model", "rejected_model")
    other = frame.with_columns(  # the guard writes the rejected reply of planted pairs too
        rejected_model=pl.when(pl.col("chosen_model") == "checker")
        .then(pl.lit("guard"))
        .otherwise("rejected_model")
    )
    pairs = PairSet(PAIRS.frame.update(other, on="pair_id"))
    arm = arms.drop_generator(pairs, "guard")
    assert arm.dropped == {one for one, source in SOURCE.items() if source in ("safety", "planted")}


def test_unknown_sources_and_generators_are_refused_with_those_there_are() -> None:
    with pytest.raises(ArmError, match="'helpful', 'lookalike', 'planted', 'safety'"):
        arms.drop_source(PAIRS, "flan")
    with pytest.raises(ArmError, match="'base', 'checker', 'guard', 'writer'"):
        arms.drop_generator(PAIRS, "gpt")


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(some_ids, st.booleans(), SEEDS)
def test_controls_match_in_size_and_kind_of_edit_and_leave_the_set_alone(
    ids: list[str], swap: bool, seed: int
) -> None:
    before = PAIRS.frame.clone()
    arm = arms.swap_ids(ids, "edit", "drawn") if swap else arms.filter_ids(ids, "edit", "drawn")
    made = arms.controls(arm, RANKING, PAIRS, seed=seed)
    assert [(one.name, one.kind) for one in made] == [
        (f"{kind} edit", kind) for kind in ("random", "bottom", "stratified")
    ]
    for control in made:
        assert len(control.ids) == len(arm)
        assert set(control.ids) <= set(PAIRS.ids)
        assert set(control.ledger["edit"]) == set(arm.ledger["edit"])
        assert len(control.apply(PAIRS)) == len(arm.apply(PAIRS))
    assert PAIRS.frame.equals(before)


@given(some_ids, SEEDS)
def test_the_bottom_control_takes_the_lowest_ranked_pairs(ids: list[str], seed: int) -> None:
    bottom = arms.controls(arms.filter_ids(ids, "edit", "drawn"), RANKING, PAIRS, seed=seed)[1]
    assert set(bottom.ids) == set(RANKING.ids[-len(ids) :])


def length_terciles() -> dict[str, int]:
    sizes = sorted((len(row[2]) + len(row[3]), one) for one, row in rows(PAIRS).items())
    return {one: place // 16 for place, (_, one) in enumerate(sizes)}


@given(some_ids, SEEDS)
def test_the_stratified_control_has_the_arms_sources_and_lengths(ids: list[str], seed: int) -> None:
    arm, tercile = arms.filter_ids(ids, "edit", "drawn"), length_terciles()
    control = arms.controls(arm, RANKING, PAIRS, seed=seed)[2]
    strata = [Counter((SOURCE[one], tercile[one]) for one in chosen) for chosen in (arm.ids, control.ids)]
    assert strata[0] == strata[1]


def test_the_stratified_control_of_a_dropped_source_matches_only_length() -> None:
    arm, tercile = arms.drop_source(PAIRS, "safety"), length_terciles()
    control = arms.controls(arm, RANKING, PAIRS, seed=0)[2]
    assert Counter(tercile[one] for one in arm.ids) == Counter(tercile[one] for one in control.ids)
    assert {SOURCE[one] for one in control.ids} > {"safety"}


def test_random_controls_depend_on_the_seed_and_not_on_the_order_of_rows() -> None:
    arm = arms.filter_top(RANKING, 12)
    turned = PAIRS.select(PAIRS.ids[::-1])
    again = [arms.controls(arm, RANKING, pairs, seed=1) for pairs in (PAIRS, turned)]
    other = arms.controls(arm, RANKING, PAIRS, seed=2)
    for place in (0, 2):
        assert again[0][place].ids == again[1][place].ids
        assert again[0][place].ids != other[place].ids


def test_random_draws_are_fair_over_seeds() -> None:
    arm = arms.filter_top(RANKING, 12)
    times = Counter(
        one for seed in range(300) for one in arms.controls(arm, RANKING, PAIRS, seed=seed)[0].ids
    )
    # each pair is drawn with chance 1/4: 75 of 300, standard deviation 7.5
    assert times.keys() == set(PAIRS.ids)
    assert all(75 - 40 < drawn < 75 + 40 for drawn in times.values())


def test_reasons_of_controls_say_how_many_pairs_the_arm_edits_too() -> None:
    arm = arms.filter_top(RANKING, 40)
    bottom = arms.controls(arm, RANKING, PAIRS, seed=0)[1]
    assert bottom.ledger["reason"][0] == "lowest-ranked; 32 of 40 are edited by 'filter' too"


def test_an_arm_without_edits_or_with_both_kinds_has_no_controls() -> None:
    with pytest.raises(ArmError, match="edits nothing"):
        arms.controls(arms.baseline(), RANKING, PAIRS, seed=0)
    mixed = pl.concat([arms.filter_top(RANKING, 1).ledger, arms.swap_top(RANKING, 2).ledger.tail(1)])
    with pytest.raises(ArmError, match="both drops and swaps"):
        arms.controls(Arm("mixed", "filter", mixed), RANKING, PAIRS, seed=0)


def test_controls_refuse_a_ranking_of_other_pairs() -> None:
    arm = arms.filter_top(RANKING, 3)
    with pytest.raises(ArmError, match="47 pairs and the set 48"):
        arms.controls(arm, ranked(PAIRS.ids[1:]), PAIRS, seed=0)


def contradiction() -> PairSet:
    """Four pairs of which the first two are one pair both ways round."""
    sums = [("4", "5"), ("5", "4"), ("4", "6"), ("4", "7")]
    return load_pairs([{"prompt": "2 + 2?", "chosen": yes, "rejected": no} for yes, no in sums])


def test_a_swap_that_would_double_a_pair_is_refused_unless_both_are_swapped() -> None:
    pairs = contradiction()
    one = arms.swap_ids(pairs.ids[:1], "one", "drawn")
    with pytest.raises(ArmError, match=f"'{pairs.ids[0]}'.*other way round.*Drop one of the two"):
        one.apply(pairs)
    both = arms.swap_ids(pairs.ids[:2], "both", "drawn").apply(pairs)
    assert both.fingerprint == pairs.fingerprint


@given(SEEDS)
def test_swap_controls_never_draw_a_pair_that_is_there_the_other_way_round(seed: int) -> None:
    pairs = contradiction()
    arm = arms.swap_ids(pairs.ids[2:], "swap", "drawn")
    for control in arms.controls(arm, ranked(pairs.ids), pairs, seed=seed):
        assert set(control.ids) <= set(pairs.ids[2:])


def test_controls_of_a_swap_say_when_too_few_pairs_can_be_drawn() -> None:
    pairs = contradiction()
    arm = arms.swap_ids(pairs.ids[:3], "swap", "drawn")
    with pytest.raises(ArmError, match="edits 3 pairs, but only 2"):
        arms.controls(arm, ranked(pairs.ids), pairs, seed=0)


@given(any_arm, SEEDS, st.integers(1, 40), st.integers(1, 8))
def test_order_has_the_same_length_in_every_arm(arm: Arm, seed: int, steps: int, batch_size: int) -> None:
    assert len(arms.order(PAIRS, arm, seed=seed, steps=steps, batch_size=batch_size)) == steps * batch_size


@given(any_arm, SEEDS)
def test_order_is_the_baselines_order_with_dropped_pairs_skipped(arm: Arm, seed: int) -> None:
    mine = arms.order(PAIRS, arm, seed=seed, steps=40, batch_size=4)
    epochs = 1 + 160 // (len(PAIRS) - len(arm.dropped))
    long = arms.order(PAIRS, arms.baseline(), seed=seed, steps=epochs * len(PAIRS), batch_size=1)
    kept = [one for one, _ in long if one not in arm.dropped]
    assert [one for one, _ in mine] == kept[:160]
    assert all(turned == (one in arm.swapped) for one, turned in mine)


@given(any_arm, SEEDS)
def test_order_shows_every_kept_pair_once_an_epoch(arm: Arm, seed: int) -> None:
    kept = set(PAIRS.ids) - arm.dropped
    seen = [one for one, _ in arms.order(PAIRS, arm, seed=seed, steps=3 * len(kept), batch_size=1)]
    for epoch in range(3):
        assert set(seen[epoch * len(kept) : (epoch + 1) * len(kept)]) == kept


def test_order_depends_on_seed_and_epoch_and_not_on_the_order_of_rows() -> None:
    def ids(pairs: PairSet, seed: int) -> list[str]:
        return [one for one, _ in arms.order(pairs, arms.baseline(), seed=seed, steps=96, batch_size=1)]

    assert ids(PAIRS, 0) == ids(PAIRS.select(PAIRS.ids[::-1]), 0)
    assert ids(PAIRS, 0) != ids(PAIRS, 1)
    assert ids(PAIRS, 0)[:48] != ids(PAIRS, 0)[48:]


@pytest.mark.parametrize(("steps", "batch_size"), [(0, 4), (4, 0), (-1, 4)])
def test_order_refuses_sizes_below_one(steps: int, batch_size: int) -> None:
    with pytest.raises(ArmError, match="at least 1"):
        arms.order(PAIRS, arms.baseline(), seed=0, steps=steps, batch_size=batch_size)


def test_an_arm_that_leaves_nothing_is_refused_everywhere() -> None:
    arm = arms.filter_ids(PAIRS.ids, "all", "drawn")
    for use in (arm.apply, lambda pairs: arms.order(pairs, arm, seed=0, steps=1, batch_size=1)):
        with pytest.raises(ArmError, match="drops all 48 pairs"):
            use(PAIRS)


def test_an_arm_for_other_pairs_is_refused_with_the_pairs_that_are_missing() -> None:
    arm = arms.filter_top(RANKING, 3)
    with pytest.raises(ArmError, match=f"1 of the 3 pairs.*set of 47: '{PAIRS.ids[0]}'"):
        arm.apply(PAIRS.select(PAIRS.ids[1:]))


def test_an_edit_of_no_pairs_is_refused() -> None:
    with pytest.raises(ArmError, match="no pairs to drop"):
        arms.filter_ids([], "oracle filter", "planted")


LEDGER = arms.filter_top(RANKING, 2).ledger


@pytest.mark.parametrize(
    ("name", "kind", "ledger", "message"),
    [
        (" ", "filter", LEDGER, "needs a name"),
        ("a", "prune", LEDGER, "kind 'prune'"),
        ("a", "filter", LEDGER.drop("reason"), "exactly"),
        ("a", "filter", LEDGER.with_columns(edit=pl.lit("delete")), "edit 'delete'"),
        ("a", "filter", LEDGER.with_columns(reason=pl.lit(None, pl.String)), "2 empty cells"),
        ("a", "filter", pl.concat([LEDGER, LEDGER]), "more than once"),
    ],
)
def test_malformed_ledgers_are_refused(name: str, kind: str, ledger: pl.DataFrame, message: str) -> None:
    with pytest.raises(ArmError, match=message):
        Arm(name, kind, ledger)


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_saved_arm_comes_back_with_its_dataset_and_ledger(tmp_path: Path, form: arms.Form) -> None:
    arm = arms.swap_top(RANKING, 5)
    folder = arm.save(PAIRS, tmp_path / "new" / "swap", form=form)
    loaded = arms.load_arm(folder)
    assert (loaded.name, loaded.kind) == (arm.name, arm.kind)
    assert loaded.ledger.equals(arm.ledger)
    assert load_pairs(folder / f"train.{form}").frame.equals(arm.apply(PAIRS).frame)
    assert load_pairs(folder).ids == arm.apply(PAIRS).ids, "the folder itself is a dataset"


def test_the_saved_ledger_maps_original_ids_to_those_in_the_saved_dataset(tmp_path: Path) -> None:
    mixed = pl.concat([arms.filter_top(RANKING, 1).ledger, arms.swap_top(RANKING, 2).ledger.tail(1)])
    folder = Arm("mixed", "filter", mixed).save(PAIRS, tmp_path)
    dropped, swapped = pl.read_ndjson(folder / "ledger.jsonl")["edited_id"]
    assert dropped is None
    assert swapped in load_pairs(folder / "train.jsonl").ids
    assert swapped not in PAIRS.ids


def test_the_card_of_a_saved_arm_counts_and_names_what_is_beside_it(tmp_path: Path) -> None:
    arms.filter_top(RANKING, 5).save(PAIRS, tmp_path)
    card = json.loads((tmp_path / "arm.json").read_text())
    assert (card["dropped"], card["swapped"]) == (5, 0)
    assert card["original"] == {"pairs": 48, "fingerprint": PAIRS.fingerprint}
    assert card["edited"]["pairs"] == 43
    assert card["files"].keys() == {"train.jsonl", "ledger.jsonl"}


def test_saving_again_replaces_the_arm_and_leaves_no_file_of_the_other_form(tmp_path: Path) -> None:
    arms.filter_top(RANKING, 5).save(PAIRS, tmp_path, form="jsonl")
    arms.filter_top(RANKING, 7).save(PAIRS, tmp_path, form="parquet")
    assert len(arms.load_arm(tmp_path)) == 7
    assert {one.name for one in tmp_path.iterdir()} == {"arm.json", "train.parquet", "ledger.parquet"}


def test_saving_never_writes_over_a_dataset_that_is_not_an_arms(tmp_path: Path) -> None:
    mine = tmp_path / "train.jsonl"
    mine.write_text("the user's own")
    with pytest.raises(ArmError, match="already has a train"):
        arms.filter_top(RANKING, 5).save(PAIRS, tmp_path)
    assert mine.read_text() == "the user's own"


def test_a_save_that_was_cut_short_is_not_an_arm_and_can_be_saved_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: PairSet, path: Path) -> Path:
        path.write_text("half a li")
        raise SourceError("no space is left on its disk")

    with monkeypatch.context() as patch:
        patch.setattr(PairSet, "save", full)
        with pytest.raises(SourceError, match="no space"):
            arms.filter_top(RANKING, 5).save(PAIRS, tmp_path)
    with pytest.raises(ArmError, match="cut short; save it again"):
        arms.load_arm(tmp_path)
    arms.filter_top(RANKING, 5).save(PAIRS, tmp_path)
    assert len(arms.load_arm(tmp_path)) == 5


@pytest.mark.parametrize("file", ["train.jsonl", "ledger.jsonl"])
def test_an_arm_whose_files_were_changed_or_lost_is_refused(tmp_path: Path, file: str) -> None:
    arms.filter_top(RANKING, 5).save(PAIRS, tmp_path)
    changed = tmp_path / file
    changed.write_text("".join(changed.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(ArmError, match=f"{file} .* is not what Arm.save wrote"):
        arms.load_arm(tmp_path)
    changed.unlink()
    with pytest.raises(ArmError, match=f"{file} is missing"):
        arms.load_arm(tmp_path)


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ("{}", "cannot be read"),
        ('{"format": 99}', "format 99"),
        ('{"format": 1, "files": {}}', "cannot be read"),
        ('{"format": 1, "files": []}', "cannot be read"),
    ],
)
def test_a_damaged_card_is_refused(tmp_path: Path, card: str, message: str) -> None:
    (tmp_path / "arm.json").write_text(card)
    with pytest.raises(ArmError, match=message):
        arms.load_arm(tmp_path)


def test_a_folder_without_an_arm_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArmError, match=r"arm\.json is missing"):
        arms.load_arm(tmp_path)


def test_the_table_of_arms_counts_edits_and_what_is_left() -> None:
    table = arms.arms_table([arms.baseline(), arms.filter_top(RANKING, 5), arms.swap_top(RANKING, 6)], PAIRS)
    assert table.rows() == [
        ("baseline", "baseline", 0, 0, 48),
        ("filter", "filter", 5, 0, 43),
        ("swap", "swap", 0, 6, 48),
    ]


def test_an_arm_shows_itself_in_one_line() -> None:
    assert repr(arms.swap_top(RANKING, 6)) == "Arm('swap', kind='swap', drop 0, swap 6)"


def test_rankings_by_any_method_give_arms() -> None:
    ranking = Ranking(RANKING.frame, layer=7, method="probe", sign="higher = more")
    assert "by probe at layer 7" in arms.filter_top(ranking, 1).ledger["reason"][0]
