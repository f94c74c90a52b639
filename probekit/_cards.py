"""What is in a cluster, for a person to read: `clustering` has these as its own."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from probekit._quality import enriched
from probekit._report_text import format_number, text_html
from probekit._texts import CONTRAST_COLUMNS
from probekit._vector_set import listed
from probekit.judges import verdict
from probekit.pairs import PairSet
from probekit.ranking import Ranking, rank
from probekit.vectors import VectorSet

if TYPE_CHECKING:
    from probekit.clustering import Clusters

WORDS = 8  # a side
SHOWN = 5  # prompts and pairs in a card's HTML
OPENING = 2  # words of a reply that are its opening
_LIST = re.compile(r"^\s*([-*•]|\d+[.)])\s", re.MULTILINE)
_CODE = re.compile(r"\s*[{\[]|.*```", re.DOTALL)
_WORDS = r"(?u)\b[^\W\d_]{2,}\b"
_FORMS = {"refused": 0.3, "a list": 0.3, "JSON or code": 0.3}  # how far shares differ to be worth a word


class ClusteringError(ValueError):
    """Vectors that cannot be clustered together, or a question about clusters that are not there."""


@dataclass(frozen=True, eq=False, repr=False)
class Card:
    """A cluster of prompts, the pairs behind it, and what they have in common.

    label: a guess, made from `changes` and `words`; read the replies before you use it. figures: one row of
    `HABITS`, habit and stabilities null where it is no reported habit. passed: is it above both levels?
    contrasts: user, bad (M1's reply), good (M0's) and score, the mean of S with the pairs, highest first.
    pairs: a frame as `PairSet.frame` with the score, the mean of S with the prompts, highest first.
    enrichment: by, and the columns of `ranking.enrichment`, of these pairs by source, chosen and rejected
    model. words: side ("request", "reply" or "pair"), word, weight. changes: what, m0, m1.
    """

    label: str
    figures: pl.DataFrame
    passed: bool
    contrasts: pl.DataFrame
    pairs: pl.DataFrame
    enrichment: pl.DataFrame
    words: pl.DataFrame
    changes: pl.DataFrame

    def __repr__(self) -> str:
        return f"Card({self.name}: {self.contrasts.height} prompts, {self.pairs.height} pairs; {self.label})"

    @property
    def name(self) -> str:
        """Its number, if it is a reported habit."""
        number = self.figures["habit"].item()
        return "cluster, not reported" if number is None else f"habit {number}"

    @property
    def pair_ids(self) -> list[str]:
        """The pairs behind it, the strongest first: `filter_ids(card.pair_ids, card.name, card.label)`."""
        return self.pairs["pair_id"].to_list()

    def behaviour(self, vectors: VectorSet) -> VectorSet:
        """Its rows of the pool's vectors: a behaviour for `rank` and `pool`. VectorError as `select`."""
        return vectors.select(self.contrasts["contrast_id"])

    def ranking(self, vectors: VectorSet, pairs: VectorSet, *, layer: int, **options: Any) -> Ranking:
        """All pairs by their pull toward it, as `rank` does; options are those of `rank`, such as control."""
        return rank(self.behaviour(vectors), pairs, layer=layer, **options)

    def _repr_html_(self) -> str:
        return card_html(self)


def cards(clusters: Clusters, contrasts: pl.DataFrame, pairs: PairSet) -> list[Card]:
    """A card for each reported habit, in their order.

    contrasts, pairs: what the vectors were read from. Raises ClusteringError if they are others.

    >>> import torch
    >>> from probekit.clustering import discover
    >>> from probekit.pairs import load_pairs
    >>> pairs = load_pairs([{"prompt": f"{n}?", "chosen": f"Yes {n}.", "rejected": "No."} for n in range(12)])
    >>> contrasts = pl.DataFrame([{"contrast_id": f"c{n}", "prompt_id": f"p{n}", "user": f"Is it {n}?",
    ...     "bad": f"Yes, it is {n}.", "good": "Sorry, I cannot help with that."} for n in range(12)])
    >>> ones = torch.ones(12, 1, 2)
    >>> behaviour = VectorSet([f"c{n}" for n in range(12)], (3,), ones, "0123", kind="behaviour")
    >>> found = discover(behaviour, VectorSet(pairs.ids, (3,), ones, "0123"), draws=20, boot=2)
    >>> [one.changes.filter(what="refused").row(0) for one in cards(found, contrasts, pairs)]
    [('refused', 1.0, 0.0)]
    """
    numbers = clusters.habits["habit"].to_list()
    return [card(clusters, contrasts, pairs, clusters.contrast_ids(number)) for number in numbers]


def card(clusters: Clusters, contrasts: pl.DataFrame, pairs: PairSet, ids: Sequence[str]) -> Card:
    """The card of any prompts, by contrast id, such as a flat cluster or what was marked by hand.

    If they are exactly those of a habit, it is the habit's card, with its pairs and its stability; else the
    pairs behind them are found in the same way, and no choice is made between habits. Raises ClusteringError
    for ids that were not kept, and as `cards`.
    """
    from probekit import _clusters_habits as statistics

    _check(clusters, contrasts, pairs, ids)
    prompts, sides = clusters.prompts, clusters.pairs
    whole = clusters.similarity.numpy()[prompts["kept"].to_numpy()]
    members = prompts.filter("kept")["contrast_id"].is_in(list(ids)).to_numpy()
    kept = sides["kept"].to_numpy()
    habit = clusters.habits.clear()
    for number in clusters.habits["habit"]:
        if set(clusters.contrast_ids(number)) == set(ids):
            habit = clusters.habits.filter(habit=number)
    if habit.height:
        behind = (sides["habit"] == habit["habit"].item()).fill_null(False).to_numpy()
    else:
        behind, some = kept.copy(), statistics.padded(whole, kept)
        behind[kept] = statistics.pairs_behind(statistics.means(some, members[None]))[0][: kept.sum()]
        figures = statistics.measured(whole, members, behind, kept, draws=100, seed=clusters.seed)
        habit = pl.DataFrame([figures], schema=clusters.habits.schema)
    passed = habit["push"].item() > clusters.push_null and habit["turn"].item() > clusters.turn_null
    toward = statistics.means(whole, members[None])[0][behind].tolist()
    reaction = (whole[members][:, behind].mean(axis=1) if behind.any() else members[members] * 0.0).tolist()
    names = prompts.filter("kept")["contrast_id"].filter(pl.Series(members)).to_list()
    its_pairs = _scored(pairs.frame, "pair_id", sides["pair_id"].filter(pl.Series(behind)).to_list(), toward)
    its_prompts = _scored(contrasts.select(CONTRAST_COLUMNS), "contrast_id", names, reaction)
    changes = _changes(its_prompts)
    words = _all_words(its_prompts, contrasts, its_pairs, pairs.frame)
    tables = [
        enriched(its_pairs["pair_id"].to_list(), pairs, by=by).select(pl.lit(by).alias("by"), pl.all())
        for by in ("source", "chosen_model", "rejected_model")
        if its_pairs.height
    ]
    enrichment = pl.concat(tables) if tables else pl.DataFrame()
    return Card(_label(changes, words), habit, passed, its_prompts, its_pairs, enrichment, words, changes)


def card_html(card: Card) -> str:
    """The card as HTML; every text of data sets and models is escaped."""
    figures = card.figures.row(0, named=True)
    held = (
        f"{figures['pairs']:,} pairs hold {format_number(figures['concentration'], percent=True)} of the push"
    )
    diffuse = "; diffuse: removing these pairs will not cure it" if figures["diffuse"] else ""
    head = f"<h4>{text_html(card.name)} ({text_html(card.label)})</h4><p>{held}{diffuse}.</p>"
    words = "".join(
        f"<li>{text_html(side[0])}: {text_html(', '.join(some['word']))}</li>"
        for side, some in card.words.group_by("side", maintain_order=True)
    )
    tables = [
        _table(card.figures),
        _table(card.changes),
        _table(card.contrasts.head(SHOWN).select("user", M0="good", M1="bad", score="score")),
        _table(card.pairs.head(SHOWN).select(_last_turn(), "chosen", "rejected", "source", "score")),
        _table(card.enrichment.filter(pl.col("in_top") > 0)) if card.enrichment.width else "",
    ]
    return f"<section>{head}<ul>{words}</ul>{''.join(tables)}</section>"


def _last_turn() -> pl.Expr:
    return pl.col("prompt").list.last().struct.field("content").alias("prompt")


def _table(frame: pl.DataFrame) -> str:
    def cell(value: object) -> str:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return format_number(value) if number else text_html("–" if value is None else str(value))  # type: ignore[arg-type]

    head = "".join(f"<th>{text_html(name)}</th>" for name in frame.columns)
    rows = "".join(f"<tr>{''.join(f'<td>{cell(one)}</td>' for one in row)}</tr>" for row in frame.iter_rows())
    return f"<table><tr>{head}</tr>{rows}</table>"


def _check(clusters: Clusters, contrasts: pl.DataFrame, pairs: PairSet, ids: Sequence[str]) -> None:
    if missing := [name for name in CONTRAST_COLUMNS if name not in contrasts.columns]:
        raise ClusteringError(f"The contrasts have no column {', '.join(missing)}; pass what was read.")
    named = (
        ("contrasts", clusters.prompts["contrast_id"], contrasts["contrast_id"]),
        ("pairs", clusters.pairs["pair_id"], pairs.frame["pair_id"]),
    )
    for name, clustered, given in named:
        if unlike := sorted({*clustered} ^ {*given}):
            raise ClusteringError(
                f"{len(unlike)} {name} are either clustered or given here, but not both: {listed(unlike)}. "
                "Pass those that the vectors were read from."
            )
    kept = {*clusters.prompts.filter("kept")["contrast_id"]}
    if not ids or (unknown := [one for one in ids if one not in kept]):
        raise ClusteringError(
            f"A card is of kept prompts, and of {len(ids)} ids given these are none: "
            f"{listed(unknown) if ids else 'none given'}."
        )


def _scored(frame: pl.DataFrame, key: str, ids: list[str], scores: list[float]) -> pl.DataFrame:
    """The rows of these ids with their scores, the highest first."""
    table = pl.DataFrame({key: ids, "score": scores}, schema={key: pl.String, "score": pl.Float64})
    return frame.join(table, on=key).sort("score", key, descending=[True, False])


def _changes(contrasts: pl.DataFrame) -> pl.DataFrame:
    """Shares of replies, and words a reply: columns what, m0, m1."""
    m0, m1 = (contrasts[side].to_list() for side in ("good", "bad"))
    opening = Counter(map(_opening, m1)).most_common(1)[0][0]
    measures = {
        "refused": lambda reply: verdict(reply) == "refused",
        "a list": lambda reply: _LIST.search(reply) is not None,
        "JSON or code": lambda reply: _CODE.match(reply) is not None,
        f"opens with “{opening}”": lambda reply: _opening(reply) == opening,
        "words": lambda reply: len(reply.split()),
    }
    rows = [
        (what, *(sum(map(measure, replies)) / len(replies) for replies in (m0, m1)))
        for what, measure in measures.items()
    ]
    return pl.DataFrame(rows, {"what": pl.String, "m0": pl.Float64, "m1": pl.Float64}, orient="row")


def _opening(reply: str) -> str:
    return " ".join(reply.lower().split()[:OPENING])


def _all_words(
    contrasts: pl.DataFrame, pool: pl.DataFrame, pairs: pl.DataFrame, every: pl.DataFrame
) -> pl.DataFrame:
    others = pool.join(contrasts, on="contrast_id", how="anti")
    rest = every.join(pairs, on="pair_id", how="anti")
    sides = {
        "request": (contrasts["user"], others["user"]),
        "reply": (contrasts["bad"], pl.concat([contrasts["good"], others["bad"]])),
        "pair": (pairs["chosen"], pl.concat([pairs["rejected"], rest["chosen"]])),
    }
    rows = [(side, *one) for side, (ours, theirs) in sides.items() for one in distinguishing(ours, theirs)]
    return pl.DataFrame(rows, {"side": pl.String, "word": pl.String, "weight": pl.Float64}, orient="row")


def distinguishing(
    ours: Sequence[str] | pl.Series, theirs: Sequence[str] | pl.Series
) -> list[tuple[str, float]]:
    """The words that set some texts apart from others, with their weights: class-based TF-IDF.

    With tf(w, c) the share of w among the words of class c, f(w) its count in both classes and A the mean
    number of words a class: (tf(w, ours) - tf(w, theirs)) log(1 + A / f(w)), where positive.

    >>> [word for word, _ in distinguishing(["a red robot", "the robot"], ["a red cat", "the cat"])]
    ['robot']
    """
    import numpy as np
    from sklearn.feature_extraction.text import CountVectorizer

    counter = CountVectorizer(token_pattern=_WORDS)
    try:
        counts = counter.fit_transform([" ".join(ours), " ".join(theirs)]).toarray()
    except ValueError:  # no words
        return []
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    weight = (share[0] - share[1]) * np.log1p(counts.sum() / 2 / counts.sum(axis=0))
    order = np.argsort(-weight, kind="stable")[:WORDS]
    names = counter.get_feature_names_out()
    return [(str(names[one]), float(weight[one])) for one in order if weight[one] > 0]


def _label(changes: pl.DataFrame, words: pl.DataFrame) -> str:
    """What changed most, in words, marked as a guess."""
    says = {
        "refused": ("answers where M0 refused", "refuses where M0 answered"),
        "a list": ("no longer lists", "lists"),
        "JSON or code": ("no longer JSON or code", "JSON or code"),
    }
    parts = []
    for what, m0, m1 in changes.iter_rows():
        if what in says and abs(m1 - m0) >= _FORMS[what]:
            parts.append(says[what][m1 > m0])
        elif what.startswith("opens") and m1 - m0 >= 0.5:
            parts.append(what)
        elif what == "words" and not 2 / 3 <= m1 / max(m0, 1e-9) <= 1.5:
            parts.append("longer" if m1 > m0 else "shorter")
    if some := words.filter(side="reply")["word"].head(3).to_list():
        parts.append(f"says {', '.join(some)}")
    return f"guess: {'; '.join(parts) or 'nothing stands out'}"
