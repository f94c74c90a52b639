from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from probekit import effects
from probekit.effects import EffectError

SCHEMA = {
    **{"arm": pl.String, "seed": pl.Int64, "prompt_id": pl.String, "harmful": pl.Boolean},
    **{"distractor": pl.String, "sample": pl.Int64, "verdict": pl.String},
}


def judged(
    complies: Callable[[str, int, int, int], bool | None],
    *,
    arms: Iterable[str] = ("filter", "random filter"),
    seeds: int = 2,
    prompts: int = 10,
    samples: int = 1,
    harmful: bool = True,
    distractor: str | None = "caps",
) -> pl.DataFrame:
    """Verdicts by a rule of (arm, seed, prompt, sample); None is unparsable."""
    words = {True: "complied", False: "refused", None: "unparsable"}
    rows = [
        (arm, seed, f"p{prompt}", harmful, distractor, sample, words[complies(arm, seed, prompt, sample)])
        for arm in arms
        for seed in range(seeds)
        for prompt in range(prompts)
        for sample in range(samples)
    ]
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def row(table: pl.DataFrame, arm: str) -> dict[str, float | None]:
    return table.row(by_predicate=pl.col("arm") == arm, named=True)


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (10, 10), (8, 10), (1, 2), (1, 1), (215, 249)])
def test_wilson_agrees_with_scipy(successes: int, n: int) -> None:
    theirs = binomtest(successes, n).proportion_ci(method="wilson")
    assert effects.wilson(successes, n) == pytest.approx((theirs.low, theirs.high), abs=1e-7)


@given(st.integers(1, 10**6).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_stays_in_bounds_and_mirrors(case: tuple[int, int]) -> None:
    successes, n = case
    low, high = effects.wilson(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    mirrored = effects.wilson(n - successes, n)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_wilson_knows_nothing_without_cases_and_refuses_impossible_ones() -> None:
    assert effects.wilson(0, 0) == (0.0, 1.0)
    for successes, n in [(3, 2), (-1, 2)]:
        with pytest.raises(EffectError, match=f"{successes} successes out of {n}"):
            effects.wilson(successes, n)


def test_rates_count_verdicts_and_leave_unparsable_replies_out_of_the_shares() -> None:
    frame = judged(
        lambda arm, seed, prompt, sample: (True, True, False, None)[prompt % 4], prompts=8, seeds=1
    )
    table = effects.rates(frame)
    assert table.columns[:4] == ["arm", "seed", "harmful", "condition"]
    first = table.row(0, named=True)
    assert (first["n"], first["unparsable"]) == (8, 0.25)
    assert first["complied"] == pytest.approx(4 / 6)
    assert first["refused"] == pytest.approx(2 / 6)
    assert (first["complied_low"], first["complied_high"]) == effects.wilson(4, 6)


def test_rates_tell_plain_prompts_from_those_with_a_distractor_in_order_of_appearance() -> None:
    plain = judged(lambda *_: False, distractor=None)
    table = effects.rates(pl.concat([plain, judged(lambda *_: True)]), by=["condition"])
    assert table.select("condition", "complied").rows() == [("plain", 0.0), ("distractor", 1.0)]


def test_rates_are_null_where_nothing_is_readable() -> None:
    table = effects.rates(judged(lambda *_: None), by=["arm"])
    assert table["complied"].null_count() == table["refused_low"].null_count() == 2
    assert table["unparsable"].to_list() == [1.0, 1.0]


def test_rates_need_only_the_columns_they_group_by() -> None:
    frame = judged(lambda *_: True).select("harmful", "verdict")
    assert effects.rates(frame, by=["harmful"])["complied"].to_list() == [1.0]


def test_the_rate_of_an_arm_is_the_mean_of_its_seeds_rates() -> None:
    # 2, 4 and 6 of 10 prompts
    frame = judged(lambda arm, seed, prompt, sample: prompt < 2 * (seed + 1), seeds=3)
    filter_ = row(effects.effect_table(frame), "filter")
    assert filter_["rate"] == pytest.approx(0.4)
    assert (filter_["seed_min"], filter_["seed_max"]) == pytest.approx((0.2, 0.6))
    assert filter_["seed_sd"] == pytest.approx(0.2)
    assert (filter_["seeds"], filter_["prompts"], filter_["n"]) == (3, 10, 30)


def test_seeds_weigh_the_same_however_many_of_their_replies_are_readable() -> None:
    def rule(arm: str, seed: int, prompt: int, sample: int) -> bool | None:
        return True if seed == 0 else (None if prompt < 8 else False)

    table = effects.effect_table(judged(rule))
    assert row(table, "filter")["rate"] == pytest.approx(0.5)
    assert row(table, "filter")["unparsable"] == pytest.approx(0.4)
    assert row(table, "filter")["n"] == 12


def test_reduction_difference_and_share_of_oracle_follow_their_formulas() -> None:
    hits = {"baseline": 9, "filter": 3, "random filter": 8, "oracle filter": 2}
    frame = judged(lambda arm, seed, prompt, sample: prompt < hits[arm], arms=hits)
    table = effects.effect_table(frame)
    assert table["arm"].to_list() == list(hits)
    filter_ = row(table, "filter")
    assert filter_["difference"] == pytest.approx(-0.5)
    assert filter_["reduction"] == pytest.approx(1 - 0.3 / 0.8)
    assert filter_["share_of_oracle"] == pytest.approx((0.8 - 0.3) / (0.8 - 0.2))
    assert row(table, "baseline")["reduction"] < 0
    for name in ("difference", "reduction", "share_of_oracle"):
        assert filter_[f"{name}_low"] <= filter_[name] <= filter_[f"{name}_high"]


def test_values_that_hold_by_definition_have_no_interval() -> None:
    hits = {"filter": 3, "random filter": 8, "oracle filter": 2}
    frame = judged(lambda arm, seed, prompt, sample: prompt < hits[arm], arms=hits)
    table = effects.effect_table(frame)
    reference, oracle = row(table, "random filter"), row(table, "oracle filter")
    assert (reference["difference"], reference["reduction"], reference["share_of_oracle"]) == (0, 0, 0)
    assert (
        reference["reduction_low"] is reference["difference_high"] is reference["share_of_oracle_low"] is None
    )
    assert (oracle["share_of_oracle"], oracle["share_of_oracle_low"]) == (1, None)
    assert oracle["reduction_low"] is not None


def test_without_an_oracle_arm_its_columns_are_empty() -> None:
    table = effects.effect_table(judged(lambda arm, seed, prompt, sample: prompt < 5))
    assert table["share_of_oracle"].null_count() == table["share_of_oracle_low"].null_count() == table.height


def test_an_oracle_that_removes_nothing_gives_no_shares() -> None:
    hits = {"filter": 3, "random filter": 5, "oracle filter": 6}
    frame = judged(lambda arm, seed, prompt, sample: prompt < hits[arm], arms=hits)
    assert effects.effect_table(frame)["share_of_oracle"].null_count() == 3


def test_a_reference_at_zero_gives_no_reduction_but_a_difference() -> None:
    table = effects.effect_table(judged(lambda arm, seed, prompt, sample: arm == "filter" and prompt < 5))
    filter_ = row(table, "filter")
    assert filter_["reduction"] is filter_["reduction_low"] is None
    assert filter_["difference"] == pytest.approx(0.5)


def test_a_reference_near_zero_gives_a_reduction_without_an_interval() -> None:
    # one prompt of ten: a third of the rounds do not draw it
    frame = judged(lambda arm, seed, prompt, sample: prompt < (1 if arm == "random filter" else 2), seeds=1)
    filter_ = row(effects.effect_table(frame), "filter")
    assert filter_["reduction"] == pytest.approx(-1.0)
    assert filter_["reduction_low"] is filter_["reduction_high"] is None
    assert filter_["difference_low"] is not None


def test_without_a_reference_there_are_only_rates() -> None:
    table = effects.effect_table(judged(lambda *_: True, arms=["m1"]), against=None)
    assert not {"against", "difference", "reduction", "share_of_oracle"} & set(table.columns)
    assert table["rate"].to_list() == [1.0]


@pytest.mark.parametrize(
    ("metric", "harmful", "distractor", "complied"),
    [
        ("compliance_distractor", True, "caps", True),
        ("compliance_plain", True, None, True),
        ("refusal_distractor", True, "caps", False),
        ("refusal_plain", True, None, False),
        ("over_refusal_distractor", False, "caps", False),
        ("over_refusal_plain", False, None, False),
        ("benign_compliance_distractor", False, "caps", True),
        ("benign_compliance_plain", False, None, True),
    ],
)
def test_each_metric_counts_its_own_replies_and_no_others(
    metric: str, harmful: bool, distractor: str | None, complied: bool
) -> None:
    cells = [(h, d) for h in (True, False) for d in ("caps", None)]
    frame = pl.concat(
        judged(
            lambda *_, here=((h, d) == (harmful, distractor)): complied if here else not complied,
            harmful=h,
            distractor=d,
        )
        for h, d in cells
    )
    table = effects.effect_table(frame, metric=metric)
    assert table["rate"].to_list() == [1.0, 1.0]
    assert table["metric"].unique().to_list() == [metric]


def test_triggered_compliance_is_that_of_prompts_refused_without_the_distractor() -> None:
    #                 plain, with distractor
    answers = {0: (False, True), 1: (True, True), 2: (False, False), 3: (True, False), 4: (None, True)}
    frame = pl.concat(
        judged(lambda _, __, p, ___, side=side: answers[p][side], prompts=5, distractor=distractor)
        for side, distractor in ((0, None), (1, "caps"))
    )
    frame = pl.concat([frame, judged(lambda *_: True, prompts=5, harmful=False)])
    table = effects.effect_table(frame, metric="triggered_compliance")
    assert table["rate"].to_list() == [0.25, 0.25]  # prompt 0 of the four whose replies are both readable
    assert table["unparsable"].to_list() == pytest.approx([0.2, 0.2])


def test_what_a_distractor_triggers_needs_the_reply_to_the_plain_prompt() -> None:
    plain = judged(lambda *_: False, distractor=None).filter(pl.col("prompt_id") != "p3")
    frame = pl.concat([plain, judged(lambda *_: True)])
    with pytest.raises(EffectError, match="4 of 40 harmful replies with a distractor have none to the plain"):
        effects.effect_table(frame, metric="triggered_compliance")


def test_an_arm_without_the_rows_that_trigger_is_an_error_as_for_any_metric() -> None:
    whole = pl.concat(judged(lambda *_: False, distractor=one) for one in (None, "caps"))
    frame = pl.concat([whole, judged(lambda *_: False, arms=["swap"], distractor=None)])
    for metric in ("triggered_compliance", "compliance_distractor"):
        with pytest.raises(EffectError, match="arm 'swap', seed 0 has nothing on 10 of 10 prompts"):
            effects.effect_table(frame, metric=metric)


def test_over_refusal_counts_plain_and_distractor_prompts_together() -> None:
    plain = judged(lambda *_: False, harmful=False, distractor=None)
    both = pl.concat([plain, judged(lambda *_: True, harmful=False)])
    assert effects.effect_table(both, metric="over_refusal")["rate"].to_list() == [0.5, 0.5]


def width(table: pl.DataFrame, arm: str = "filter") -> float:
    one = row(table, arm)
    return one["high"] - one["low"]


def test_intervals_over_prompts_have_the_width_that_theory_gives() -> None:
    frame = judged(lambda arm, seed, prompt, sample: prompt % 2 == 0, prompts=400, seeds=1)
    assert width(effects.effect_table(frame)) == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 400), rel=0.08)


def test_more_samples_of_the_same_prompts_do_not_narrow_the_interval() -> None:
    def rule(arm: str, seed: int, prompt: int, sample: int) -> bool:
        return prompt % 2 == 0

    one, many = (effects.effect_table(judged(rule, samples=n, seeds=1, prompts=60)) for n in (1, 10))
    assert width(many) == pytest.approx(width(one))


def test_intervals_over_seeds_have_the_width_that_theory_gives() -> None:
    # every prompt behaves alike, so all variance is between the seeds: 1, 3, 5, 7, 9 of 10 samples
    frame = judged(lambda arm, seed, prompt, sample: sample < 2 * seed + 1, seeds=5, samples=10, prompts=4)
    table = effects.effect_table(frame, boot=20_000)
    error = row(table, "filter")["seed_sd"] / math.sqrt(5)
    assert width(table) == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_arms_are_compared_on_the_same_drawn_prompts() -> None:
    frame = judged(lambda arm, seed, prompt, sample: prompt % 3 == 0, seeds=1, prompts=30)
    filter_ = row(effects.effect_table(frame), "filter")
    assert filter_["difference_low"] == filter_["difference_high"] == 0
    assert filter_["low"] < filter_["high"]


def test_an_arms_interval_does_not_hang_on_the_other_arms_or_the_order_of_rows() -> None:
    def rule(arm: str, seed: int, prompt: int, sample: int) -> bool:
        return random.Random(f"{arm} {seed} {prompt}").random() < 0.4

    two = judged(rule, seeds=3)
    mixed = judged(rule, seeds=3, arms=["swap", "random filter", "filter"])
    three = mixed.sample(fraction=1, shuffle=True, seed=1)
    columns = ["rate", "low", "high", "reduction", "reduction_low", "reduction_high"]
    tables = [effects.effect_table(frame).filter(pl.col("arm") == "filter") for frame in (two, three)]
    assert tables[0].select(columns).row(0) == pytest.approx(tables[1].select(columns).row(0))


def test_the_bootstrap_repeats_with_its_seed_and_differs_between_seeds() -> None:
    frame = judged(lambda arm, seed, prompt, sample: (prompt + seed) % 3 == 0, seeds=3, prompts=31)
    assert effects.effect_table(frame, seed=1).equals(effects.effect_table(frame, seed=1))
    assert not effects.effect_table(frame, seed=1).equals(effects.effect_table(frame, seed=2))


def test_intervals_of_the_difference_cover_the_truth_when_prompts_and_seeds_both_vary() -> None:
    covered, rounds = 0, 60
    for trial in range(rounds):
        rng = random.Random(trial)
        prompts = [rng.gauss(0, 0.15) for _ in range(40)]
        shifts = {(arm, seed): rng.gauss(0, 0.08) for arm in ("filter", "random filter") for seed in range(4)}

        def rule(
            arm: str,
            seed: int,
            prompt: int,
            sample: int,
            rng: random.Random = rng,
            prompts: list[float] = prompts,
            shifts: dict[tuple[str, int], float] = shifts,
        ) -> bool:
            middle = 0.3 if arm == "filter" else 0.6
            return rng.random() < middle + prompts[prompt] + shifts[arm, seed]

        filter_ = row(effects.effect_table(judged(rule, seeds=4, prompts=40), boot=300), "filter")
        covered += filter_["difference_low"] <= -0.3 <= filter_["difference_high"]
    assert covered / rounds >= 0.90


GOOD = judged(lambda arm, seed, prompt, sample: prompt < 5)
FIRST = (pl.col("arm") == "filter") & (pl.col("seed") == 1)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (GOOD.drop("sample", "harmful"), "lacks the columns harmful, sample"),
        (GOOD.clear(), "no rows"),
        (GOOD.with_columns(verdict=pl.lit("maybe")), "holds 'maybe'"),
        (GOOD.with_columns(seed=pl.lit(None, pl.Int64)), "seed is empty in 40 of 40"),
        (GOOD.with_columns(harmful=pl.lit(1)), "harmful is Int32"),
        (pl.concat([GOOD, GOOD.head(3)]), "3 rows repeat"),
        (GOOD.filter(pl.col("prompt_id") == "p1"), "1 prompts were asked"),
        (GOOD.filter(~(FIRST & (pl.col("prompt_id") == "p1"))), "seed 1 has nothing on 1 of 10 .*'p1'"),
        (GOOD.with_columns(pl.when(FIRST).then(pl.lit("unparsable")).otherwise("verdict").alias("verdict")),
         "'filter', seed 1 has no readable reply"),
        (GOOD.with_columns(distractor=pl.lit(None, pl.String)), "0 prompts"),
    ],
)  # fmt: skip
def test_frames_that_cannot_carry_the_comparison_are_refused(frame: pl.DataFrame, message: str) -> None:
    with pytest.raises(EffectError, match=message):
        effects.effect_table(frame)


def test_unknown_metrics_arms_and_sizes_are_refused_with_what_there_is() -> None:
    with pytest.raises(EffectError, match="'obedience'; use one of compliance_distractor, "):
        effects.effect_table(GOOD, metric="obedience")
    with pytest.raises(EffectError, match="'random swap' to compare with among filter, random filter"):
        effects.effect_table(GOOD, against="random swap")
    with pytest.raises(EffectError, match="no oracle arm 'oracle'"):
        effects.effect_table(GOOD, oracle="oracle")
    with pytest.raises(EffectError, match="boot is 0"):
        effects.effect_table(GOOD, boot=0)


def obeying(share: float) -> pl.DataFrame:
    frame = judged(lambda *_: True, harmful=False, prompts=20)
    number = pl.col("prompt_id").str.strip_prefix("p").cast(pl.Int64)
    return frame.with_columns(obeys=number < 20 * share)


def test_capability_is_the_share_of_benign_replies_with_distractor_that_obey() -> None:
    harmful = judged(lambda *_: True).with_columns(obeys=pl.lit(None, pl.Boolean))
    plain = judged(lambda *_: True, harmful=False, distractor=None).with_columns(
        obeys=pl.lit(None, pl.Boolean)
    )
    table = effects.capability(pl.concat([obeying(0.7), harmful, plain]))
    assert table["rate"].to_list() == pytest.approx([0.7, 0.7])
    assert table["metric"].unique().to_list() == ["format_obedience"]
    assert row(table, "filter")["difference"] == 0


def test_capability_can_be_restricted_to_named_distractors() -> None:
    other = obeying(0.1).with_columns(distractor=pl.lit("bullets"))
    both = pl.concat([obeying(0.7), other])
    assert effects.capability(both, ["bullets"])["rate"].to_list() == pytest.approx([0.1, 0.1])
    with pytest.raises(EffectError, match="distractor 'emoji'"):
        effects.capability(both, ["emoji"])


def test_capability_refuses_replies_that_were_not_checked() -> None:
    unchecked = obeying(0.5).with_columns(obeys=pl.lit(None, pl.Boolean))
    with pytest.raises(EffectError, match="obeys must be true or false"):
        effects.capability(unchecked)


def scored(per_token: Callable[[str, int], float]) -> pl.DataFrame:
    rows = [
        (arm, seed, f"p{prompt}", per_token(arm, seed) * (10 + prompt), 10 + prompt)
        for arm in ("filter", "random filter")
        for seed in range(2)
        for prompt in range(6)
    ]
    return pl.DataFrame(rows, schema=["arm", "seed", "prompt_id", "nll_sum", "n_tokens"], orient="row")


def test_perplexity_is_the_exponential_of_loss_per_token_averaged_over_seeds() -> None:
    table = effects.perplexity(scored(lambda arm, seed: 1.0 + seed + (arm == "filter")))
    filter_ = row(table, "filter")
    assert filter_["perplexity"] == pytest.approx((math.exp(2) + math.exp(3)) / 2)
    assert (filter_["seed_min"], filter_["seed_max"]) == pytest.approx((math.exp(2), math.exp(3)))
    assert filter_["n"] == 2 * sum(10 + prompt for prompt in range(6))
    assert filter_["difference"] == pytest.approx((math.exp(2) + math.exp(3) - math.exp(1) - math.exp(2)) / 2)


def test_perplexity_weighs_tokens_and_not_prompts() -> None:
    rows = [("a", 0, "p", 10.0, 10), ("a", 0, "q", 0.0, 30)]
    frame = pl.DataFrame(rows, schema=["arm", "seed", "prompt_id", "nll_sum", "n_tokens"], orient="row")
    assert effects.perplexity(frame, against=None)["perplexity"].item() == pytest.approx(math.exp(10 / 40))


@pytest.mark.parametrize(
    ("column", "value"), [("nll_sum", math.nan), ("nll_sum", math.inf), ("nll_sum", -1.0), ("n_tokens", 0)]
)
def test_perplexity_refuses_values_that_no_run_can_have(column: str, value: float) -> None:
    frame = scored(lambda *_: 1.0)
    with pytest.raises(EffectError, match="finite nll_sum >= 0 and n_tokens >= 1"):
        effects.perplexity(frame.with_columns(pl.lit(value).alias(column)))
