"""Edits of a preference dataset, and the controls that belong beside them.

An arm is a ledger of edits on a `PairSet` that itself is never touched: which pairs are dropped, in which the
two replies change places, and why. Arms come from a ranking (`filter_top`, `swap_top`), from provenance
(`drop_source`, `drop_generator`) or from any list of ids (`filter_ids`, `swap_ids`: the oracle arms).
`controls` draws the matched arms without which an effect says nothing (paper, section 5.2: swapping *random*
pairs removed a third of the behaviour). `order` fixes what the trainer sees: the same data order and the same
number of steps in every arm.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from probekit._arm_files import LEDGER_SCHEMA, ArmError, Form, read_arm, write_arm
from probekit.pairs import PairSet, pair_id

if TYPE_CHECKING:
    from probekit.ranking import Ranking

__all__ = [
    *(
        "LEDGER_SCHEMA",
        "Arm",
        "ArmError",
        "arms_table",
        "baseline",
        "controls",
        "drop_generator",
        "drop_source",
    ),
    *("edited_ids", "filter_ids", "filter_top", "load_arm", "order", "swap_ids", "swap_top"),
]

EDITS = ("drop", "swap")
KINDS = ("baseline", "filter", "swap", "drop_source", "drop_generator", "random", "bottom", "stratified")
_MIRROR = {
    **{"chosen": "rejected", "rejected": "chosen"},
    **{"chosen_model": "rejected_model", "rejected_model": "chosen_model"},
}
_SHOWN = 5  # names in an error message


@dataclass(frozen=True, eq=False, repr=False)
class Arm:
    """A named ledger of edits: `name` is what tables and `effects` call it, `kind` one of `KINDS`.

    `ledger` has one row per edited pair and the columns of `LEDGER_SCHEMA`: pair_id (in the original set),
    edit ("drop" or "swap"), reason (in words: the rule, the rank or the draw). Raises ArmError for an unknown
    kind or edit, other columns, empty cells, or a pair that is edited twice.

    >>> ledger = pl.DataFrame({"pair_id": ["a"], "edit": ["drop"], "reason": ["planted"]})
    >>> Arm("oracle filter", "filter", ledger)
    Arm('oracle filter', kind='filter', drop 1, swap 0)
    """

    name: str
    kind: str
    ledger: pl.DataFrame

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ArmError("An arm needs a name: tables and effects are keyed by it.")
        if self.kind not in KINDS:
            raise ArmError(f"Arm {self.name!r} has kind {self.kind!r}; use one of {', '.join(KINDS)}.")
        if self.ledger.schema != LEDGER_SCHEMA:
            raise ArmError(
                f"The ledger of arm {self.name!r} has the columns {dict(self.ledger.schema)}; "
                f"it needs exactly {dict(LEDGER_SCHEMA)}."
            )
        if nulls := sum(self.ledger.null_count().row(0)):
            raise ArmError(f"The ledger of arm {self.name!r} has {nulls} empty cells; fill them in.")
        if unknown := sorted(set(self.ledger["edit"]) - set(EDITS)):
            raise ArmError(f"Arm {self.name!r} has the edit {unknown[0]!r}; use 'drop' or 'swap'.")
        if twice := [one for one, times in Counter(self.ledger["pair_id"]).items() if times > 1]:
            raise ArmError(f"Arm {self.name!r} edits {_few(twice)} more than once; name each pair once.")

    def __len__(self) -> int:
        return self.ledger.height

    def __repr__(self) -> str:
        counts = f"drop {len(self.dropped)}, swap {len(self.swapped)}"
        return f"Arm({self.name!r}, kind={self.kind!r}, {counts})"

    @property
    def ids(self) -> list[str]:
        """Ids, in the original set, of all edited pairs, in ledger order."""
        return self.ledger["pair_id"].to_list()

    @property
    def dropped(self) -> frozenset[str]:
        """Ids, in the original set, of the dropped pairs."""
        return frozenset(self.ledger["pair_id"].filter(self.ledger["edit"] == "drop"))

    @property
    def swapped(self) -> frozenset[str]:
        """Ids, in the original set, of the pairs whose replies change places."""
        return frozenset(self.ledger["pair_id"].filter(self.ledger["edit"] == "swap"))

    def apply(self, pairs: PairSet) -> PairSet:
        """The edited set, in the original row order; `pairs` itself stays as it is.

        In swapped rows chosen and rejected, and their models, have changed places. That makes them other
        pairs with other ids; `edited_ids` maps one to the other. Raises ArmError if the ledger names pairs
        that are not in `pairs`, if nothing would be left, or if a swapped pair would double another one.
        """
        new_ids = edited_ids(self, pairs)
        if not len(self):
            return pairs
        kept = pairs.frame.filter(pl.col("pair_id").is_in(new_ids.keys()))
        turned = pl.col("pair_id").is_in(list(self.swapped))
        edited = kept.with_columns(
            pl.col("pair_id").replace_strict(new_ids),
            *(pl.when(turned).then(new).otherwise(old).alias(old) for old, new in _MIRROR.items()),
        )
        counts = [
            ("found", len(pairs), ""),
            ("kept", edited.height, f"after the arm {self.name!r}"),
            ("dropped", len(self.dropped), "by the arm's ledger"),
            ("swapped", len(self.swapped), "by the arm's ledger: chosen and rejected have changed places"),
        ]
        return PairSet(edited, pl.DataFrame(counts, schema=pairs.report.schema, orient="row"))

    def save(self, pairs: PairSet, folder: str | Path, *, form: Form = "jsonl") -> Path:
        """Write what a user takes home, the edited dataset with its ledger beside it; returns the folder.

        train.<form> is the edited set in TRL's form; ledger.<form> has one more column, edited_id (the pair's
        id in train.<form>, null if dropped); arm.json has name, kind, counts, fingerprints and the files'
        hashes. It is completed last, so a save that was cut short is never taken for an arm, and saving again
        mends it. Raises ArmError if files of those names are there that no arm wrote, SourceError if the
        folder cannot be written.
        """
        folder, edited, new_ids = Path(folder).expanduser(), self.apply(pairs), edited_ids(self, pairs)
        card = {
            "name": self.name,
            "kind": self.kind,
            "dropped": len(self.dropped),
            "swapped": len(self.swapped),
            "original": {"pairs": len(pairs), "fingerprint": pairs.fingerprint},
            "edited": {"pairs": len(edited), "fingerprint": edited.fingerprint},
        }
        edited_id = pl.Series("edited_id", [new_ids.get(one) for one in self.ids], dtype=pl.String)
        write_arm(folder, card, self.ledger.with_columns(edited_id), edited, form)
        return folder


def load_arm(folder: str | Path) -> Arm:
    """The arm that `Arm.save` wrote to `folder`; its edited dataset is read with `load_pairs`.

    Raises ArmError if the folder holds no arm, or one of which a file is missing, unfinished or changed.

    >>> import tempfile
    >>> from probekit.pairs import load_pairs
    >>> pairs = load_pairs([{"prompt": "2 + 2?", "chosen": "4", "rejected": reply} for reply in "35"])
    >>> load_arm(filter_ids(pairs.ids[:1], "oracle filter", "planted").save(pairs, tempfile.mkdtemp()))
    Arm('oracle filter', kind='filter', drop 1, swap 0)
    """
    return Arm(*read_arm(Path(folder).expanduser()))


def baseline(*, name: str = "baseline") -> Arm:
    """The arm that edits nothing.

    >>> baseline()
    Arm('baseline', kind='baseline', drop 0, swap 0)
    """
    return Arm(name, "baseline", LEDGER_SCHEMA.to_frame())


def filter_top(ranking: Ranking, k: int, *, name: str = "filter") -> Arm:
    """Drop the k highest-ranked pairs (paper, section 5). Raises RankingError if there are not as many.

    >>> from probekit.testing import ranked
    >>> filter_top(ranked("abcd"), 2).ids
    ['a', 'b']
    """
    return _arm(name, "filter", "drop", _top(ranking, k))


def swap_top(ranking: Ranking, k: int, *, name: str = "swap") -> Arm:
    """Let the replies of the k highest-ranked pairs change places (paper, section 5).

    Raises RankingError if there are not as many.

    >>> from probekit.testing import ranked
    >>> swap_top(ranked("abcd"), 1)
    Arm('swap', kind='swap', drop 0, swap 1)
    """
    return _arm(name, "swap", "swap", _top(ranking, k))


def filter_ids(ids: Iterable[str], name: str, reason: str) -> Arm:
    """Drop exactly these pairs, for instance those known to be the cause (the oracle arm).

    >>> filter_ids(["a", "b"], "oracle filter", "picked by the checker alone")
    Arm('oracle filter', kind='filter', drop 2, swap 0)
    """
    return _arm(name, "filter", "drop", [(one, reason) for one in ids])


def swap_ids(ids: Iterable[str], name: str, reason: str) -> Arm:
    """Let the replies of exactly these pairs change places.

    >>> swap_ids(["a", "b"], "oracle swap", "picked by the checker alone")
    Arm('oracle swap', kind='swap', drop 0, swap 2)
    """
    return _arm(name, "swap", "swap", [(one, reason) for one in ids])


def drop_source(pairs: PairSet, source: str, *, name: str | None = None) -> Arm:
    """Drop every pair of one source. Raises ArmError, naming the sources there are, if it has no pair.

    >>> from probekit.pairs import load_pairs
    >>> from probekit.testing import planted_pairs
    >>> drop_source(load_pairs(planted_pairs(8)), "safety")
    Arm('drop safety', kind='drop_source', drop 2, swap 0)
    """
    ids = _written_by(pairs, source, "source", ["source"])
    return _arm(name or f"drop {source}", "drop_source", "drop", [(one, f"source {source}") for one in ids])


def drop_generator(pairs: PairSet, generator: str, *, name: str | None = None) -> Arm:
    """Drop every pair of which either reply is by one model (paper, section 5.4).

    Raises ArmError, naming the generators there are, if it wrote none.

    >>> from probekit.pairs import load_pairs
    >>> from probekit.testing import planted_pairs
    >>> drop_generator(load_pairs(planted_pairs(8)), "guard")
    Arm('drop guard', kind='drop_generator', drop 2, swap 0)
    """
    ids = _written_by(pairs, generator, "generator", ["chosen_model", "rejected_model"])
    reason = f"a reply is by {generator}"
    return _arm(name or f"drop {generator}", "drop_generator", "drop", [(one, reason) for one in ids])


def edited_ids(arm: Arm, pairs: PairSet) -> dict[str, str]:
    """Original id -> id in `arm.apply(pairs)`, for every kept pair, in row order; swapping gives a new one.

    Raises ArmError as `Arm.apply` does.

    >>> from probekit.pairs import load_pairs
    >>> pairs = load_pairs([{"prompt": "2 + 2?", "chosen": "4", "rejected": reply} for reply in "35"])
    >>> arm = swap_ids(pairs.ids[:1], "one", "to see it")
    >>> [old == new for old, new in edited_ids(arm, pairs).items()]
    [False, True]
    """
    there = set(pairs.ids)
    if strangers := [one for one in arm.ids if one not in there]:
        raise ArmError(
            f"{len(strangers)} of the {len(arm)} pairs that arm {arm.name!r} edits are not in this set of "
            f"{len(pairs)}: {_few(strangers)}. The arm was made for another set, or the set has changed."
        )
    if len(arm.dropped) == len(pairs):
        raise ArmError(f"Arm {arm.name!r} drops all {len(pairs)} pairs, so nothing is left to train on.")
    mirrored = _mirrored(pairs, arm.swapped)
    new_ids = {one: mirrored.get(one, one) for one in pairs.ids if one not in arm.dropped}
    times = Counter(new_ids.values())
    if doubled := [old for old in mirrored if times[new_ids[old]] > 1]:
        raise ArmError(
            f"Arm {arm.name!r} swaps {_few(doubled)}, but the same pair the other way round is in the set "
            "too, so the result would hold it twice. Drop one of the two instead."
        )
    return new_ids


def controls(arm: Arm, ranking: Ranking, pairs: PairSet, *, seed: int) -> list[Arm]:
    """Three matched controls: as many pairs as `arm` edits, edited in the same way, chosen without its rule.

    "random <name>": drawn from all pairs. "bottom <name>": the lowest-ranked pairs. "stratified <name>":
    drawn so that each source and tercile of reply length gives as many pairs as to the arm (only the length
    for an arm that drops a whole source, where the draw would be the arm itself). A fair draw may hit pairs
    of the arm; the reasons say how many it hit. The same seed draws the same pairs, whatever the order of
    rows.

    Raises ArmError for an arm with no edit or two kinds of edit, or if ranking and pairs hold different
    pairs.

    >>> from probekit.pairs import load_pairs
    >>> from probekit.testing import planted_pairs, ranked
    >>> pairs = load_pairs(planted_pairs(16))
    >>> ranking = ranked(pairs.ids)
    >>> [one.name for one in controls(filter_top(ranking, 4), ranking, pairs, seed=0)]
    ['random filter', 'bottom filter', 'stratified filter']
    """
    edits = sorted(set(arm.ledger["edit"]))
    if len(edits) != 1:
        what = "both drops and swaps" if edits else "edits nothing"
        raise ArmError(f"Arm {arm.name!r} {what}; only an arm with one kind of edit has matched controls.")
    if set(ranking.ids) != set(pairs.ids):
        raise ArmError(
            f"The ranking holds {len(ranking.ids)} pairs and the set {len(pairs)}, not the same ones. "
            "Rank the pairs of this set."
        )
    edited_ids(arm, pairs)  # the arm has to fit the pairs before its controls can
    # a pair that is there the other way round too cannot be swapped, see `edited_ids`
    barred = set(_mirrored(pairs, pairs.ids).values()) if edits == ["swap"] else set()
    pool = [one for one in ranking.ids if one not in barred]
    if len(arm) > len(pool):
        raise ArmError(
            f"Arm {arm.name!r} edits {len(arm)} pairs, but only {len(pool)} can be drawn as controls."
        )
    by_source = arm.kind != "drop_source"
    matched = f"drawn to match {'source and ' if by_source else ''}reply length, seed {seed}"
    drawn = {
        "random": (_draw(pool, len(arm), f"random {seed}"), f"drawn from all pairs, seed {seed}"),
        "bottom": (pool[: -len(arm) - 1 : -1], "lowest-ranked"),
        "stratified": (_stratified(arm, pairs, pool, seed, by_source=by_source), matched),
    }
    result = []
    for kind, (ids, rule) in drawn.items():
        reason = f"{rule}; {len(set(ids) & set(arm.ids))} of {len(ids)} are edited by {arm.name!r} too"
        result.append(_arm(f"{kind} {arm.name}", kind, edits[0], [(one, reason) for one in ids]))
    return result


def order(pairs: PairSet, arm: Arm, *, seed: int, steps: int, batch_size: int) -> list[tuple[str, bool]]:
    """What the trainer sees: steps * batch_size entries of (id in the original set, are replies swapped?).

    Epoch after epoch all original pairs are permuted, by `seed`, and those the arm drops are skipped, until
    the list is full. So the kept pairs come in the same order, for the same number of optimiser steps, in
    every arm; where pairs are dropped, the others come round more often. The order of rows in `pairs` does
    not matter. Raises ArmError unless steps and batch_size are at least 1, and as `Arm.apply` does.

    >>> from probekit.pairs import load_pairs
    >>> pairs = load_pairs([{"prompt": "2 + 2?", "chosen": "4", "rejected": reply} for reply in "35"])
    >>> len(order(pairs, baseline(), seed=0, steps=3, batch_size=2))
    6
    """
    if steps < 1 or batch_size < 1:
        raise ArmError(f"steps is {steps} and batch_size is {batch_size}; both must be at least 1.")
    kept = list(edited_ids(arm, pairs))
    seen: list[str] = []
    for epoch in range(math.ceil(steps * batch_size / len(kept))):
        # each id is placed by its own hash, so that no pair's place depends on which others are there
        seen += sorted(kept, key=lambda one: hashlib.sha256(f"{seed} {epoch} {one}".encode()).digest())
    return [(one, one in arm.swapped) for one in seen[: steps * batch_size]]


def arms_table(arms: Iterable[Arm], pairs: PairSet) -> pl.DataFrame:
    """One row per arm: arm str, kind str, dropped i64, swapped i64, left i64 (pairs to train on).

    >>> from probekit.pairs import load_pairs
    >>> pairs = load_pairs([{"prompt": "2 + 2?", "chosen": "4", "rejected": reply} for reply in "35"])
    >>> arms_table([baseline(), filter_ids(pairs.ids[:1], "one", "to see it")], pairs)["left"].to_list()
    [2, 1]
    """
    rows = [(a.name, a.kind, len(a.dropped), len(a.swapped), len(edited_ids(a, pairs))) for a in arms]
    names = {"arm": pl.String, "kind": pl.String, "dropped": pl.Int64, "swapped": pl.Int64, "left": pl.Int64}
    return pl.DataFrame(rows, schema=names, orient="row")


def _arm(name: str, kind: str, edit: str, chosen: Sequence[tuple[str, str]]) -> Arm:
    if not chosen:
        raise ArmError(f"Arm {name!r} has no pairs to {edit}; baseline() is the arm that edits nothing.")
    rows = [(one, edit, reason) for one, reason in chosen]
    return Arm(name, kind, pl.DataFrame(rows, schema=LEDGER_SCHEMA, orient="row"))


def _top(ranking: Ranking, k: int) -> list[tuple[str, str]]:
    how = f"of {len(ranking)} by {ranking.name}"
    rows = ranking.top(k).select("pair_id", "rank", "score").iter_rows()
    return [(one, f"rank {rank} {how}, score {score:.4f}") for one, rank, score in rows]


def _written_by(pairs: PairSet, name: str, what: str, columns: Sequence[str]) -> list[str]:
    ids = pairs.frame.filter(pl.any_horizontal(pl.col(columns) == name))["pair_id"].to_list()
    if not ids:
        there = sorted({one for column in columns for one in pairs.frame[column]})
        raise ArmError(f"No pair has the {what} {name!r}; the {what}s here are {_few(there)}.")
    return ids


def _mirrored(pairs: PairSet, ids: Iterable[str]) -> dict[str, str]:
    """Id -> the id of the pair once chosen and rejected have changed places."""
    frame = pairs.frame.filter(pl.col("pair_id").is_in(list(ids)))
    rows = frame.select("pair_id", "prompt", "chosen", "rejected").iter_rows()
    return {one: pair_id(prompt, rejected, chosen) for one, prompt, chosen, rejected in rows}


def _draw(pool: Iterable[str], size: int, seed: str) -> list[str]:
    return random.Random(seed).sample(sorted(pool), size)


def _stratified(arm: Arm, pairs: PairSet, pool: Sequence[str], seed: int, *, by_source: bool) -> list[str]:
    strata = _strata(pairs, by_source=by_source)
    members: dict[tuple[str, int], list[str]] = {}
    for one in pool:
        members.setdefault(strata[one], []).append(one)
    ids = []
    for (source, tercile), wanted in sorted(Counter(strata[one] for one in arm.ids).items()):
        there = members.get((source, tercile), [])
        if wanted > len(there):
            raise ArmError(
                f"Arm {arm.name!r} edits {wanted} pairs of source {source!r}, length third {tercile + 1}, "
                f"but only {len(there)} there can be swapped; the others are there the other way round too."
            )
        ids += _draw(there, wanted, f"stratified {seed} {source} {tercile}")
    return ids


def _strata(pairs: PairSet, *, by_source: bool) -> dict[str, tuple[str, int]]:
    """Id -> (source, tercile 0-2 of the characters in both replies); ties by id, so terciles are full."""
    length = pl.col("chosen").str.len_chars() + pl.col("rejected").str.len_chars()
    sources = pl.col("source") if by_source else pl.lit("any")
    rows = pairs.frame.sort(length, "pair_id").select("pair_id", sources).iter_rows()
    return {one: (source, place * 3 // len(pairs)) for place, (one, source) in enumerate(rows)}


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(repr(one) for one in names[:_SHOWN]) + more
