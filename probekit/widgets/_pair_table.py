"""The table behind the pair browser: what a filter leaves, a page of it, and how its scores spread.

Everything that grows with the number of pairs is computed here, in polars; the browser is sent a page.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from probekit._pair_rows import few
from probekit._report_text import plain_text
from probekit.pairs import PairSet
from probekit.ranking import Ranking
from probekit.widgets._errors import WidgetError

BINS = 40
OPENING = 120  # characters of a prompt in a row
NAME = 60  # characters of a source or generator in a row
OPTIONS = 200  # sources or generators offered by name; a data set may have one for each pair
OPTION_NAME = 100  # characters of such a name
PAGE_SIZES = range(1, 201)  # what a page may hold: it crosses to the browser at once
SEARCHED = 200  # characters of a text to look for
_GENERATORS = ("chosen_model", "rejected_model")


@dataclass(frozen=True)
class Filter:
    """Which pairs to show. What is None, empty or False asks for nothing.

    source: the pair's source. generator: who wrote either reply. low, high: bounds of the score, both
    included. text: occurs in the prompt or in a reply, whatever the case of its letters. marked_only: the
    pair is marked. Raises WidgetError for values of another type, a bound that is not a number, and a text
    that is too long.
    """

    source: str | None = None
    generator: str | None = None
    low: float | None = None
    high: float | None = None
    text: str = ""
    marked_only: bool = False

    def __post_init__(self) -> None:
        for name in ("source", "generator", "text"):
            value = getattr(self, name)
            if not (isinstance(value, str) or (value is None and name != "text")):
                raise WidgetError(f"The filter's {name} is {value!r}; it is a text.")
        for name in ("low", "high"):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
            if value is not None and not number:
                raise WidgetError(f"The filter's {name} is {value!r}; it is a number, or None for no bound.")
        if len(self.text) > SEARCHED:
            raise WidgetError(
                f"The text to look for has {len(self.text)} characters; give at most {SEARCHED} of them."
            )
        if not isinstance(self.marked_only, bool):
            raise WidgetError(f"The filter's marked_only is {self.marked_only!r}; it is True or False.")

    def passes(self, marks: Collection[str]) -> pl.Expr:
        """True for the rows of `pair_table` that pass."""
        conditions = [pl.col("rank").is_not_null()]  # which all rows pass
        if self.source is not None:
            conditions.append(pl.col("source") == self.source)
        if self.generator is not None:
            conditions.append(pl.any_horizontal(pl.col(_GENERATORS) == self.generator))
        if self.low is not None or self.high is not None:
            conditions.append(pl.col("score").is_not_nan())  # to polars, NaN is above every number
        if self.low is not None:
            conditions.append(pl.col("score") >= self.low)
        if self.high is not None:
            conditions.append(pl.col("score") <= self.high)
        if self.text:
            conditions.append(_holds(self.text))
        if self.marked_only:
            conditions.append(pl.col("pair_id").is_in(list(marks)))
        return pl.all_horizontal(conditions)

    def words(self) -> str:
        """What passes, in words; "" if everything does."""
        parts = [f"{name} {getattr(self, name)}" for name in ("source", "generator") if getattr(self, name)]
        parts += [f"score at least {self.low:g}"] if self.low is not None else []
        parts += [f"score at most {self.high:g}"] if self.high is not None else []
        parts += [f'with "{self.text}"'] if self.text else []
        parts += ["marked"] if self.marked_only else []
        return ", ".join(parts)


def pair_table(ranking: Ranking, pairs: PairSet) -> pl.DataFrame:
    """One row a pair, in rank order: the columns of the ranking, of the pairs, and `bin` of the score.

    Raises WidgetError if ranking and pairs hold different pairs, or none.
    """
    ranked, there = set(ranking.ids), set(pairs.ids)
    if ranked != there:
        strangers = sorted(ranked ^ there)
        raise WidgetError(
            f"The ranking holds {len(ranking)} pairs and the pair set {len(pairs)}, and {len(strangers)} are "
            f"in one only: {few(strangers)}. Rank the pairs of this set, or select those that were ranked."
        )
    if not ranked:
        raise WidgetError("The ranking holds no pairs, so there is nothing to browse.")
    table = ranking.frame.join(pairs.frame, on="pair_id", how="left", maintain_order="left")
    low, high = score_range(table)
    place = (pl.col("score") - low) / ((high - low) or 1.0) * BINS
    finite = pl.col("score").is_finite()
    return table.with_columns(bin=pl.when(finite).then(place.floor().clip(0, BINS - 1)).cast(pl.Int64))


def score_range(table: pl.DataFrame) -> tuple[float, float]:
    """The lowest and the highest finite score; (0, 0) if none is finite."""
    scores = table["score"].filter(table["score"].is_finite())
    return (float(scores.sort()[0]), float(scores.sort()[-1])) if len(scores) else (0.0, 0.0)


def bin_counts(bins: pl.Series) -> list[int]:
    """How many scores are in each of the BINS bins."""
    counts = dict(bins.drop_nulls().value_counts().iter_rows())
    return [counts.get(number, 0) for number in range(BINS)]


def options(table: pl.DataFrame, *columns: str) -> tuple[list[tuple[str, int]], int]:
    """(name, pairs) of the values of these columns, the most frequent first, and how many are left out.

    At most OPTIONS are listed, and none whose name is longer than OPTION_NAME.
    """
    named = pl.concat([table.select("pair_id", name=pl.col(column)) for column in columns]).unique()
    counts = named.group_by("name").len().sort("len", "name", descending=[True, False])
    listed = counts.filter(pl.col("name").str.len_chars() <= OPTION_NAME).head(OPTIONS)
    return list(listed.iter_rows()), counts.height - listed.height


def check_names(wanted: Filter, table: pl.DataFrame) -> None:
    """Raise WidgetError, naming some that are there, if no pair has the filter's source or generator."""
    for what, value, columns in (
        ("source", wanted.source, ("source",)),
        ("generator", wanted.generator, _GENERATORS),
    ):
        if value is not None and not any((table[column] == value).any() for column in columns):
            there = few([name for name, _ in options(table, *columns)[0]])
            raise WidgetError(f"No pair has the {what} {value!r}; the {what}s here are {there}.")


def check_page_size(page_size: int) -> None:
    """Raise WidgetError for a page that is empty or too much to send at once."""
    if isinstance(page_size, bool) or page_size not in PAGE_SIZES:
        raise WidgetError(
            f"page_size is {page_size!r}; give a whole number from 1 to {PAGE_SIZES[-1]}: a page crosses "
            "to the browser at once."
        )


def page_rows(page: pl.DataFrame, marks: Collection[str]) -> list[dict[str, Any]]:
    """What the browser shows of each row of a page of `pair_table`: short texts, and numbers or None."""
    return [
        {
            **facts(row),
            "generator": short(generators(row), NAME),
            "opening": opening(row["prompt"]),
            "marked": row["pair_id"] in marks,
        }
        for row in page.iter_rows(named=True)
    ]


def facts(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the table and the view of one pair both say of a row of `pair_table`."""
    return {
        **{name: row[name] for name in ("pair_id", "rank", "zero_norm")},
        **{name: finite(row[name]) for name in ("score", "cosine")},
        "source": short(row["source"], NAME),
    }


def generators(row: Mapping[str, Any]) -> str:
    """Who wrote chosen and rejected, in one text; a model that wrote both is named once."""
    return " / ".join(dict.fromkeys(row[name] for name in _GENERATORS))


def opening(prompt: list[dict[str, str]]) -> str:
    """How the last turn of the user begins, on one line."""
    turns = [turn for turn in prompt if turn["role"] == "user"] or prompt
    return short(turns[-1]["content"], OPENING)


def short(text: str, limit: int) -> str:
    """At most `limit` characters on one line, those that would not be seen by their number."""
    line = plain_text(" ".join(text[: 20 * limit].split()))
    return line if len(line) <= limit and len(text) <= 20 * limit else line[: limit - 1] + "…"


def finite(value: float | None) -> float | None:
    """The number, or None for what JSON cannot hold."""
    return value if value is not None and math.isfinite(value) else None


def pattern(text: str) -> str:
    """The regular expression that finds this text, whatever the case of its letters."""
    return "(?i)" + pl.escape_regex(text)


def _holds(text: str) -> pl.Expr:
    content = pl.element().struct.field("content").str.contains(pattern(text))
    replies = pl.any_horizontal(pl.col("chosen", "rejected").str.contains(pattern(text)))
    return replies | pl.col("prompt").list.eval(content).list.any()
