"""Score folders as bergson writes them, read without bergson: a helper of `gradient`."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probekit.rivals import RivalError

if TYPE_CHECKING:
    import numpy as np

_WIDTHS = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


def read_scores(folder: Path, rows: int) -> np.ndarray:
    """The scores (rows, queries), float64, that `bergson score` left in a folder.

    info.json says how scores.bin is laid out: a record per row, in it for each query i the fields score_i
    (a float) and written_i (one byte, 1 once the score is there), at the given offsets. A store per token has
    offsets.npy too; a document's score is the sum over its tokens.

    Raises `RivalError` for files that are not so, that have another number of rows, or are not finished.
    """
    import numpy as np

    if not (folder / "info.json").is_file() or not (folder / "scores.bin").is_file():
        raise RivalError(f"{folder} has no info.json and scores.bin; give a folder of bergson score")
    if (folder / "candidates.npy").is_file():
        raise RivalError(f"{folder} has scores of candidates only; score all rows, without candidates")
    try:
        info = json.loads((folder / "info.json").read_text())
        layout, records, size = info["dtype"], int(info["num_rows"]), int(info["dtype"]["itemsize"])
        items, queries = int(info["num_items"]), int(info["num_scores"])
        per_token = bool(info["attribute_tokens"])
        fields = dict(
            zip(layout["names"], zip(layout["formats"], layout["offsets"], strict=True), strict=True)
        )
        scores = [fields[f"score_{i}"] for i in range(queries)]
        written = [range(size)[fields[f"written_{i}"][1]] for i in range(queries)]
        ends = np.load(folder / "offsets.npy") if per_token else np.arange(items + 1)
    except (LookupError, TypeError, ValueError, OSError) as error:
        raise RivalError(f"{folder} is not as bergson 2 writes it: {error!r}") from error
    if items != rows or not queries:
        raise RivalError(
            f"{folder} has {items} rows and {queries} queries, for {rows} pairs; score all pairs, in the "
            "order of the set"
        )
    content = np.fromfile(folder / "scores.bin", dtype=np.uint8)
    if content.size != records * size or ends.shape != (rows + 1,) or ends[0] != 0 or ends[-1] != records:
        raise RivalError(
            f"{folder / 'scores.bin'} has {content.size} bytes; {records} records of {size} bytes for {rows} "
            "rows were expected"
        )
    table = content.reshape(records, size)
    found = np.stack([_column(table, kind, at, folder) for kind, at in scores], axis=1)
    if missing := int((table[:, written] == 0).sum()):
        raise RivalError(f"{missing} scores in {folder} were not written; let bergson score finish")
    if not per_token:
        return found
    return np.stack([found[start:stop].sum(axis=0) for start, stop in pairwise(ends)])


def _column(table: np.ndarray, kind: Any, at: Any, folder: Path) -> np.ndarray:
    """One score of every record, from the bytes of all."""
    import numpy as np

    width = _WIDTHS.get(str(kind))
    if width is None or not isinstance(at, int) or not 0 <= at <= table.shape[1] - width:
        raise RivalError(f"{folder / 'info.json'} has a score of type {kind!r} at byte {at!r}")
    raw = np.ascontiguousarray(table[:, at : at + width])
    if kind == "bfloat16":  # the upper half of a float32, which numpy has no type for
        return (raw.view("<u2")[:, 0].astype("<u4") << 16).view("<f4").astype(np.float64)
    return raw.view(np.dtype(kind).newbyteorder("<"))[:, 0].astype(np.float64)
