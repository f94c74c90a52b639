"""The rows of a data set, wherever it lies: frames, lists, `datasets`, files, folders, the hub.

Private to `pairs`, which knows what the rows mean.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, TypeGuard

import polars as pl

from probekit.sources import hub_dataset

if TYPE_CHECKING:
    import datasets
    import pandas

PairData: TypeAlias = (
    "pl.DataFrame | pandas.DataFrame | Sequence[Mapping[str, object]]"
    " | datasets.Dataset | datasets.DatasetDict | str | PathLike[str]"
)

_SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".csv")
_MESSAGES_IN_JSON = re.compile(r'\s*\[\s*\{\s*"')


class PairError(ValueError):
    """Pairs that cannot be used as they are.

    `problems` is a frame with the columns row (counted from 0), field, problem and remedy: every problem of
    every row, while the message shows the first 20. It has no rows when the mistake is not in a row.
    """

    def __init__(self, message: str, *, problems: Iterable[tuple[int, str, str, str]] = ()) -> None:
        super().__init__(message)
        schema = {"row": pl.Int64(), "field": pl.String(), "problem": pl.String(), "remedy": pl.String()}
        self.problems = pl.DataFrame(list(problems), schema=schema, orient="row")


class Unreadable(NamedTuple):
    """What stands in a file where a row was expected."""

    problem: str


def rows_of(data: PairData, split: str) -> tuple[str, list[object]]:
    """What to call `data` in a message, and its rows: mappings, if all is well."""
    if isinstance(data, pl.DataFrame):
        return "The frame", list(data.to_dicts())
    if isinstance(data, str | PathLike):
        return _rows_at(data, split)
    if isinstance(data, list | tuple):
        return "The list", list(data)
    if _is_pandas(data):
        return "The frame", list(data.astype(object).where(data.notna(), None).to_dict("records"))
    if _is_dataset(data):
        return "The data set", data.to_list()
    if _is_dataset_dict(data):
        if split not in data:
            raise PairError(
                f"The DatasetDict has no split {split!r}; it has: {', '.join(data)}. Pass split=."
            )
        return f"The split {split}", data[split].to_list()
    raise PairError(
        f"load_pairs was given {kind(data)}. Pass a polars or pandas frame, a list of dicts, a "
        "datasets.Dataset, the path of a file or folder, or the name of a data set on the hub."
    )


def _rows_at(where: str | PathLike[str], split: str) -> tuple[str, list[object]]:
    path = Path(where).expanduser()
    if path.is_dir():
        return _rows_in(path, split)
    if path.is_file():
        return str(path), _rows_from(path)
    if isinstance(where, str) and re.fullmatch(r"\w[\w.-]*/[\w.-]+", where) and path.suffix not in _SUFFIXES:
        return f"The data set {where}", hub_dataset(where, split=split).to_list()
    raise PairError(f"There is no file or folder {path}. Check the path; a hub data set is named owner/name.")


def _rows_in(folder: Path, split: str) -> tuple[str, list[object]]:
    """The rows of a folder that `datasets` saved, or that has a file (or shards) named after the split."""
    if any((folder / mark).is_file() for mark in ("dataset_dict.json", "state.json")):
        import datasets

        return rows_of(datasets.load_from_disk(folder), split)
    found = sorted(file for file in folder.glob("**/*") if file.suffix in _SUFFIXES)
    files = [
        file for file in found if not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]
    named = [file for file in files if re.match(re.escape(split) + r"(-\d+-of-\d+)?\.", file.name)]
    if len({(file.parent, file.suffix) for file in named}) != 1:
        listed = few(file.relative_to(folder) for file in files) or "none"
        raise PairError(
            f"{folder} has no single data file for the split {split!r}, such as {split}.jsonl; the data "
            f"files in it are: {listed}. Pass the path of the one you mean, or split=."
        )
    return str(folder), [row for file in named for row in _rows_from(file)]


def _rows_from(path: Path) -> list[object]:
    """The rows of one file. Raises `PairError` if it is not what its suffix says."""
    try:
        if path.suffix == ".parquet":
            return list(pl.read_parquet(path, glob=False).to_dicts())
        if path.suffix == ".csv":
            return _csv_rows(pl.read_csv(path, infer_schema=False, glob=False))
        if path.suffix in _SUFFIXES:
            return _json_rows(path.read_text(encoding="utf-8-sig"))
    except (pl.exceptions.PolarsError, UnicodeDecodeError, json.JSONDecodeError) as error:
        reason = str(error).partition("\n")[0]
        raise PairError(
            f"{path} cannot be read as {path.suffix}: {reason}. "
            "Check that it is the right file, whole and in UTF-8."
        ) from error
    raise PairError(f"{path} ends in {path.suffix!r}; pairs are read from {', '.join(_SUFFIXES)} files.")


def _json_rows(text: str) -> list[object]:
    """The objects of a JSON array, or of JSON lines. A line that is not JSON becomes an `Unreadable`."""
    if text.lstrip().startswith("["):
        return list(json.loads(text))
    rows: list[object] = []
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines would also split inside texts
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                rows.append(Unreadable(f"is not JSON (line {number} of the file: {error})"))
    return rows


def _csv_rows(frame: pl.DataFrame) -> list[object]:
    """The rows of a CSV file. Its cells have no types, so columns of messages written as JSON are decoded."""
    rows = frame.to_dicts()
    for column in ("prompt", "chosen", "rejected"):
        cells = [row.get(column) for row in rows]
        if all(isinstance(cell, str) and _MESSAGES_IN_JSON.match(cell) for cell in cells):
            for row, cell in zip(rows, cells, strict=True):
                row[column] = json.loads(str(cell))
    return list(rows)


# A library that was never imported cannot have made the data, so none is imported to find out.


def _is_pandas(data: object) -> TypeGuard[pandas.DataFrame]:
    return "pandas" in sys.modules and isinstance(data, sys.modules["pandas"].DataFrame)


def _is_dataset(data: object) -> TypeGuard[datasets.Dataset]:
    return "datasets" in sys.modules and isinstance(data, sys.modules["datasets"].Dataset)


def _is_dataset_dict(data: object) -> TypeGuard[datasets.DatasetDict]:
    return "datasets" in sys.modules and isinstance(data, sys.modules["datasets"].DatasetDict)


def kind(value: object) -> str:
    """How a message calls a value of the wrong type."""
    return "null" if value is None else f"of type {type(value).__name__}"


def writable(name: object) -> str:
    """A name from the data as a text that any file and terminal takes."""
    return str(name).encode("utf-8", "backslashreplace").decode("utf-8")


def few(values: Iterable[object]) -> str:
    """The first five values and how many more there are."""
    listed = [str(value) for value in values]
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
