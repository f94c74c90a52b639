"""The table behind the rollout reviewer: a prompt's replies by M0 and M1, plain and with a distractor.

A case is a prompt, one of its distractors and a sample, with up to four replies. A plain reply stands in as
many cases as its prompt has distractors.
"""

from __future__ import annotations

import polars as pl

from probekit.judges import VERDICTS, four_conditions
from probekit.widgets._errors import WidgetError
from probekit.widgets._pair_table import Filter, pattern

KINDS = ("plain", "distractor")
KIND_WORDS = {"plain": "plain", "distractor": "with distractor"}
REPLIES = {
    f"{model}_{kind}": f"{model.upper()}, {words}"
    for model in ("m0", "m1")
    for kind, words in KIND_WORDS.items()
}
ONLY = {
    "all": "all prompts",
    "disagree": "M0 and M1 disagree",
    "four conditions": "pass the four conditions",
    "by hand": "changed by hand",
}
KEYS = ("prompt_id", "distractor", "sample")
_NEEDED = (*KEYS, "user", "reply", "verdict")


def checked(judged: pl.DataFrame, name: str) -> pl.DataFrame:
    """Judged rollouts that can be shown. Raises WidgetError."""
    if missing := [column for column in _NEEDED if column not in judged.columns]:
        raise WidgetError(
            f"The replies of {name} lack the columns {', '.join(missing)}. Give what "
            "judges.judge_refusals makes of rollouts.sample on prompts.with_distractors."
        )
    filled = judged.select(column for column in _NEEDED if column != "distractor")
    if empty := [column for column in filled.columns if filled[column].null_count()]:
        raise WidgetError(f"The replies of {name} have rows without {', '.join(empty)}; drop these rows.")
    if other := sorted(set(judged["verdict"]) - set(VERDICTS)):
        raise WidgetError(
            f"The replies of {name} have the verdict {other[0]!r}; it is one of {', '.join(VERDICTS)}."
        )
    if twice := int(judged.select(KEYS).is_duplicated().sum()):
        raise WidgetError(
            f"{twice} of the {judged.height} replies of {name} have the prompt_id, distractor and sample of "
            "another. Give the replies of one checkpoint, and name the distractors of a prompt apart."
        )
    return judged


def case_table(m0: pl.DataFrame, m1: pl.DataFrame) -> pl.DataFrame:
    """One row a case, in the order of M0's rows and then M1's: the columns of KEYS, and for each of REPLIES
    the row of m0 or m1 that has it, null where there is none. Raises WidgetError without a reply.
    """
    sides = {
        name: side.select(
            "prompt_id", pl.col("distractor").cast(pl.String), pl.col("sample").cast(pl.Int64)
        ).with_row_index("row")
        for name, side in (("m0", m0), ("m1", m1))
    }
    every = pl.concat([side.select(KEYS) for side in sides.values()]).unique(maintain_order=True)
    if every.is_empty():
        raise WidgetError("There are no replies, so there is nothing to review.")
    plain = pl.col("distractor").is_null()
    twins = every.filter(~plain).select("prompt_id", "sample", twin=True).unique()
    cases = every.join(twins, on=["prompt_id", "sample"], how="left", maintain_order="left")
    cases = cases.filter(~plain | pl.col("twin").is_null()).select(KEYS)
    for name, side in sides.items():
        for kind, rows, on in (
            ("plain", side.filter(plain), ["prompt_id", "sample"]),
            ("distractor", side.filter(~plain), [*KEYS]),
        ):
            found = rows.select(*on, pl.col("row").alias(f"{name}_{kind}"))
            cases = cases.join(found, on=on, how="left", maintain_order="left")
    return cases


def passing(cases: pl.DataFrame, m0: pl.DataFrame, m1: pl.DataFrame, *, text: str, only: str) -> pl.Series:
    """The places of the cases with this text in a prompt or reply, of those that ONLY names.

    Raises WidgetError for a text that is none or too long, and for a name that is not in ONLY.
    """
    Filter(text=text)  # which says what is wrong with a text
    if only not in ONLY:
        raise WidgetError(f"only is {only!r}; it can be {', '.join(map(repr, ONLY))}.")
    kept = pl.repeat(True, cases.height, eager=True)
    if text:
        holds = pl.any_horizontal(pl.col("user", "reply").str.contains(pattern(text)))
        kept &= _any(cases, m0.select(holds).to_series(), m1.select(holds).to_series())
    if only == "disagree":
        kept &= _disagree(cases, m0, m1)
    elif only == "four conditions":
        kept &= cases["prompt_id"].is_in(four_conditions(m0, m1)["prompt_id"].unique().to_list())
    elif only == "by hand":
        kept &= _any(cases, m0["by_hand"], m1["by_hand"])
    return kept.arg_true()


def side_by_side(cases: pl.DataFrame, m0: pl.DataFrame, m1: pl.DataFrame) -> pl.DataFrame:
    """The cases with their replies: the columns of KEYS, then for each of REPLIES its user text, reply,
    verdict and by_hand as `m0_plain_user` and so on, null where there is none.
    """
    columns = cases.select(KEYS).get_columns()
    for name in REPLIES:
        rows = cases[name]
        side = m0 if name.startswith("m0") else m1
        columns += [
            side[column].gather(rows).alias(f"{name}_{column}")
            for column in ("user", "reply", "verdict", "by_hand")
        ]
    return pl.DataFrame(columns)


def _any(cases: pl.DataFrame, m0: pl.Series, m1: pl.Series) -> pl.Series:
    """Is it true of any reply of the case?"""
    held = [
        (m0 if name.startswith("m0") else m1).gather(cases[name]).fill_null(False).alias(name)
        for name in REPLIES
    ]
    return pl.DataFrame(held).select(pl.any_horizontal(REPLIES.keys())).to_series()


def _disagree(cases: pl.DataFrame, m0: pl.DataFrame, m1: pl.DataFrame) -> pl.Series:
    """Do the verdicts on M0 and M1 differ, plain or with the distractor, where both replied?"""
    differs = [
        (m0["verdict"].gather(cases[f"m0_{kind}"]) != m1["verdict"].gather(cases[f"m1_{kind}"]))
        .fill_null(False)
        .alias(kind)
        for kind in KINDS
    ]
    return pl.DataFrame(differs).select(pl.any_horizontal(KINDS)).to_series()
