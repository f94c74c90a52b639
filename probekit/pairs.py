"""Preference pairs with content-hash ids: any data set in, a `PairSet` (a frame with a known schema) out.

A pair is a prompt (every turn before the reply) and two replies, of which people or a judge chose one. Its
id is a hash of exactly that, so the same pair has the same id wherever it comes from. Nothing is repaired or
left out in silence: rows that cannot be used are reported together in one `PairError`, and `PairSet.report`
counts what was found, kept, dropped and not used.

>>> pairs = load_pairs([{"prompt": "2 + 2?", "chosen": "4", "rejected": "5", "source": "sums"}])
>>> pairs.frame.columns
['pair_id', 'prompt', 'chosen', 'rejected', 'source', 'chosen_model', 'rejected_model']
"""

from __future__ import annotations

import hashlib
import html
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Literal

import polars as pl

from probekit._pair_forms import UNKNOWN, Flaw, Message, RowReader
from probekit._pair_rows import PairData, PairError, Unreadable, few, kind, rows_of, writable
from probekit.sources import replacing

__all__ = ["SCHEMA", "Message", "PairData", "PairError", "PairSet", "load_pairs", "pair_id"]

SCHEMA = pl.Schema(
    {
        "pair_id": pl.String(),  # the first 16 hex digits of the sha256 of prompt, chosen and rejected
        "prompt": pl.List(
            pl.Struct({"role": pl.String(), "content": pl.String()})
        ),  # all turns before the reply
        "chosen": pl.String(),  # the assistant's reply that was preferred
        "rejected": pl.String(),  # the one that was not
        "source": pl.String(),  # where the pair comes from, or "unknown"
        "chosen_model": pl.String(),  # who wrote the chosen reply, or "unknown"
        "rejected_model": pl.String(),  # who wrote the rejected reply, or "unknown"
    }
)
"""The columns of `PairSet.frame`, in order. No value is null or empty."""

_PROVENANCE = ("source", "chosen_model", "rejected_model")
_REPORT_SCHEMA = pl.Schema({"what": pl.String(), "rows": pl.Int64(), "note": pl.String()})
_SHOWN = 20


@dataclass(frozen=True, eq=False, repr=False)
class PairSet:
    """Preference pairs: `frame` with the columns of `SCHEMA`, one row a pair, and `report`, a frame with the
    columns what, rows, note that says what was found, kept, dropped and not used when they were loaded.

    Raises `PairError` if the frame has other columns or an id twice.
    """

    frame: pl.DataFrame
    report: pl.DataFrame = field(default_factory=_REPORT_SCHEMA.to_frame)

    def __post_init__(self) -> None:
        if self.frame.schema != SCHEMA:
            wrong = {*self.frame.schema.items()} ^ {*SCHEMA.items()}
            raise PairError(
                f"The frame of a PairSet has the columns {', '.join(SCHEMA)}, in this order; this one "
                f"differs in {', '.join(sorted({name for name, _ in wrong})) or 'their order'}. "
                "Make PairSets with load_pairs, which also computes the ids."
            )
        again = (
            self.frame["pair_id"].filter(self.frame["pair_id"].is_duplicated()).unique(maintain_order=True)
        )
        if len(again):
            raise PairError(
                f"{len(again)} pair ids are there more than once: {few(again)}. Keep one row of each."
            )

    def __len__(self) -> int:
        return self.frame.height

    def __repr__(self) -> str:
        return f"PairSet({len(self)} pairs; sources: {_sources(self.frame)})"

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(name)}</th>" for name in ("prompt", "chosen", "rejected", "source"))
        rows = ""
        for row in self.frame.head(3).iter_rows(named=True):
            cells = (row["prompt"][-1]["content"], row["chosen"], row["rejected"], row["source"])
            rows += "<tr>" + "".join(f"<td>{html.escape(_short(cell))}</td>" for cell in cells) + "</tr>"
        return f"<p>{html.escape(repr(self))}</p><table><tr>{head}</tr>{rows}</table>"

    @property
    def ids(self) -> list[str]:
        """The pair ids, in the order of the frame."""
        return self.frame["pair_id"].to_list()

    @property
    def fingerprint(self) -> str:
        """16 hex digits that say which pairs these are, whatever their order."""
        return _hash(sorted(self.ids))

    def select(self, ids: Iterable[str]) -> PairSet:
        """The pairs with these `ids`, in the given order. Raises `PairError` for unknown or repeated ids.

        >>> pairs = load_pairs([{"prompt": "2 + 2?", "chosen": "4", "rejected": reply} for reply in "35"])
        >>> pairs.select(pairs.ids[1:]).frame["rejected"].item()
        '5'
        """
        wanted = list(ids)
        place = {pair: row for row, pair in enumerate(self.ids)}
        if unknown := [pair for pair in wanted if pair not in place]:
            raise PairError(
                f"{len(unknown)} of {len(wanted)} ids are not in this PairSet of {len(self)} pairs: "
                f"{few(unknown)}. Select from the set that the ids come from."
            )
        if repeated := [pair for pair, n in Counter(wanted).items() if n > 1]:
            raise PairError(
                f"{len(repeated)} ids are asked for more than once: {few(repeated)}. Name each once."
            )
        frame = self.frame[[place[pair] for pair in wanted]] if wanted else self.frame.clear()
        return PairSet(frame, _report([("found", len(self), ""), ("kept", len(wanted), "selected by id")]))

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the pairs to `path`, `.jsonl` or `.parquet`, and return it: in TRL's conversational
        explicit-prompt form (prompt, chosen and rejected are lists of messages) with all other columns.

        `load_pairs` reads it back with the same ids. The file appears whole or not at all. Raises `PairError`
        for another suffix, `SourceError` if the file cannot be written.

        >>> import tempfile
        >>> pairs = load_pairs([{"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}])
        >>> load_pairs(pairs.save(tempfile.mkdtemp() + "/sums.jsonl")).ids == pairs.ids
        True
        """
        path = Path(path).expanduser()
        if path.suffix not in (".jsonl", ".parquet"):
            raise PairError(
                f"Pairs are saved as .jsonl or .parquet, not as {path.suffix!r}. Rename {path.name}."
            )
        reply = pl.struct(role=pl.lit("assistant"), content=pl.col("chosen"))
        other = pl.struct(role=pl.lit("assistant"), content=pl.col("rejected"))
        frame = self.frame.with_columns(chosen=pl.concat_list(reply), rejected=pl.concat_list(other))
        with replacing(path) as partial:
            if path.suffix == ".parquet":
                frame.write_parquet(partial)
            else:
                lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in frame.iter_rows(named=True))
                with open(partial, "w", encoding="utf-8", newline="\n") as file:
                    file.writelines(lines)
        return path


def load_pairs(
    data: PairData,
    *,
    split: str = "train",
    source: str | None = None,
    on_duplicate: Literal["error", "drop"] = "error",
) -> PairSet:
    """The preference pairs in `data`.

    `data` is a polars or pandas frame, a list of dicts, a `datasets.Dataset`, the path of a .jsonl, .json,
    .parquet or .csv file or of a folder that holds one, or the id of a data set on the Hugging Face hub
    (`"owner/name"`). Of a folder, a `DatasetDict` or a hub data set it takes the split `split`.

    It understands TRL's preference forms. Replies are texts or lists of messages. With a `prompt` column (a
    text or a list of messages) the replies follow it; without one, or where it is null, the prompt is what
    chosen and rejected have in common: whole turns of messages or of transcripts in Anthropic's form
    ("\\n\\nHuman: ...\\n\\nAssistant: ..."), or the first characters of texts, cut as TRL cuts them.

    The columns source, chosen_model and rejected_model are kept; what is missing there becomes "unknown", or,
    for source, the argument `source`. Texts are kept to the character (a transcript loses the white space
    around its turns). A pair that is there twice is an error; with `on_duplicate="drop"` its first row is
    kept, and `report` says which rows went.

    Raises `PairError` with every bad row at once, `SourceError` if the hub cannot be reached.

    >>> pairs = load_pairs([{"chosen": "The sky is blue.", "rejected": "The sky is green."}])
    >>> pairs.frame["prompt"].item().to_list()
    [{'role': 'user', 'content': 'The sky is'}]
    """
    if on_duplicate not in ("error", "drop"):
        raise PairError(f'on_duplicate is {on_duplicate!r}; it can be "error" or "drop".')
    name, rows = rows_of(data, split)
    columns = list(dict.fromkeys(writable(key) for row in rows if isinstance(row, Mapping) for key in row))
    _check_columns(name, rows, columns)
    loading = _Loading(source or UNKNOWN, drop=on_duplicate == "drop")
    for number, row in enumerate(rows):
        loading.add(number, row)
    if loading.problems:
        raise _all_problems(name, len(rows), loading.problems)
    frame = pl.DataFrame(loading.records, schema=SCHEMA)
    report = [("found", len(rows), name), ("kept", frame.height, ""), *loading.entries()]
    report += [(f"{key} unknown", frame.filter(pl.col(key) == UNKNOWN).height, "") for key in _PROVENANCE]
    unused = [column for column in columns if column not in SCHEMA]
    report += [(f"column not used: {column}", len(rows), "") for column in unused]
    return PairSet(frame, _report(report))


def pair_id(prompt_messages: Sequence[Mapping[str, str]], chosen: str, rejected: str) -> str:
    """The id of a pair: the first 16 hex digits of the sha256 over the canonical JSON of
    `[prompt messages, chosen, rejected]`; of the messages only role and content count.

    >>> pair_id([{"role": "user", "content": "2 + 2?"}], "4", "5")
    '908c45db8cbc0469'
    """
    return _hash([[{"role": m["role"], "content": m["content"]} for m in prompt_messages], chosen, rejected])


class _Loading:
    """Rows on their way into a frame: `add` them in order, then read `records`, `problems` and `entries`."""

    def __init__(self, source: str, *, drop: bool) -> None:
        self.records: list[dict[str, object]] = []
        self.problems: list[tuple[int, str, str, str]] = []
        self._source, self._drop = source, drop
        self._dropped: list[int] = []
        self._notes: Counter[str] = Counter()
        self._first_row: dict[str, int] = {}

    def add(self, number: int, row: object) -> None:
        """Take one row in, or note its problems."""
        if isinstance(row, Mapping):
            flaws = self._add_mapping(number, row)
        elif isinstance(row, Unreadable):
            flaws = [Flaw("row", row.problem, "Write one JSON object on each line, or an array of them")]
        else:
            flaws = [Flaw("row", f"is {kind(row)}", "Make it a mapping of column names to values")]
        self.problems += [(number, *flaw) for flaw in flaws]

    def _add_mapping(self, number: int, row: Mapping[str, object]) -> list[Flaw]:
        reader = RowReader(row)
        pair = reader.pair()
        provenance = {
            key: reader.provenance(key, self._source if key == "source" else UNKNOWN) for key in _PROVENANCE
        }
        if pair is None or reader.flaws:
            return reader.flaws
        self._notes += reader.notes
        key = pair_id(*pair)
        first = self._first_row.setdefault(key, number)
        if first == number:
            texts = dict(zip(("prompt", "chosen", "rejected"), pair, strict=True))
            self.records.append({"pair_id": key, **texts, **provenance})
            self._notes["pair_id in the data differs: computed anew"] += row.get("pair_id") not in (None, key)
        elif self._drop:
            self._dropped.append(number)
        else:
            what = f"has the prompt, chosen and rejected of row {first}"
            return [Flaw("row", what, 'Remove one of them, or pass on_duplicate="drop"')]
        return []

    def entries(self) -> list[tuple[str, int, str]]:
        """Lines for the report."""
        dropped = ("dropped: same pair as an earlier row", len(self._dropped), f"rows {few(self._dropped)}")
        return [dropped, *((what, n, "") for what, n in self._notes.items())]


def _check_columns(name: str, rows: list[object], columns: list[str]) -> None:
    if not rows:
        raise PairError(f"{name} has no rows. Pass data with at least one preference pair.")
    missing = [key for key in ("chosen", "rejected") if columns and key not in columns]
    if missing:
        raise PairError(
            f"{name} has no column {' and no column '.join(missing)}; its columns are: {', '.join(columns)}. "
            "Rename them to TRL's preference form: prompt (optional), chosen, rejected."
        )


def _all_problems(name: str, total: int, problems: list[tuple[int, str, str, str]]) -> PairError:
    bad = len({row for row, *_ in problems})
    lines = [f"{name}: {bad} of {total} rows cannot be used (rows are counted from 0)."]
    lines += [f"  row {row}, {field}: {what}. {remedy}." for row, field, what, remedy in problems[:_SHOWN]]
    if len(problems) > _SHOWN:
        lines.append(
            f"  And {len(problems) - _SHOWN} more of {len(problems)}: all are in this error's `problems`."
        )
    return PairError("\n".join(lines), problems=problems)


def _report(entries: Iterable[tuple[str, int, str]]) -> pl.DataFrame:
    lines = [(what, n, writable(note)) for what, n, note in entries if n]
    return pl.DataFrame(lines, schema=_REPORT_SCHEMA, orient="row")


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, separators=(",", ":")).encode("ascii")).hexdigest()[:16]


def _sources(frame: pl.DataFrame) -> str:
    counts = frame.group_by("source").len().sort("len", "source", descending=[True, False])
    return few(f"{name} {n}" for name, n in counts.iter_rows()) or "none"


def _short(text: str) -> str:
    return text if len(text) <= 120 else text[:119] + "…"
