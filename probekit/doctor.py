"""What of a model, its tokenizer, its chat template and a preference data set will work, and what it costs.

Every room says by itself what it cannot take, but at the step where it matters, which may be hours in. Here
all of it is asked at once, on a few pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from probekit import _doctor_checks as checks
from probekit import _doctor_costs as costs
from probekit._doctor_checks import ERROR, OK, WARN, Findings
from probekit._report_text import text_html
from probekit.checkpoints import Checkpoint, open_checkpoint, outline
from probekit.pairs import PairData, PairSet, load_pairs
from probekit.training import Recipe

if TYPE_CHECKING:
    from os import PathLike

CHECK_COLUMNS = {
    "check": pl.String,  # its name
    "status": pl.String,  # "ok", "warn" (works, but look at it) or "error" (will not work)
    "found": pl.String,
    "advice": pl.String,  # what to do; "" where nothing is to be done
}
_SIGNS = {OK: "✓ ok", WARN: "! warn", ERROR: "✗ error"}


class DoctorError(ValueError):
    """The doctor was asked for something that cannot be."""


@dataclass(frozen=True, eq=False, repr=False)
class Diagnosis:
    """What `doctor` found: `frame` has the columns of `CHECK_COLUMNS`, a row for each check."""

    frame: pl.DataFrame

    @property
    def works(self) -> bool:
        """Is no check an error?"""
        return ERROR not in self.frame["status"]

    def __repr__(self) -> str:
        statuses = self.frame["status"].to_list()
        counts = ", ".join(f"{statuses.count(one)} {one}" for one in (OK, WARN, ERROR))
        return f"Diagnosis({len(statuses)} checks: {counts})"

    def _repr_html_(self) -> str:
        head = "".join(f'<th scope="col" style="text-align: left">{name}</th>' for name in CHECK_COLUMNS)
        rows = ""
        for check, status, *texts in self.frame.select(CHECK_COLUMNS.keys()).iter_rows():
            cells = "".join(f'<td style="text-align: left">{text_html(one)}</td>' for one in texts)
            sign = f'<td style="text-align: left; white-space: nowrap">{_SIGNS[status]}</td>'
            rows += f'<tr><th scope="row" style="text-align: left">{text_html(check)}</th>{sign}{cells}</tr>'
        caption = f'<caption style="text-align: left">{text_html(repr(self))}</caption>'
        table = f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        return f'<div class="tex2jax_ignore mathjax_ignore">{table}</div>'


def doctor(
    m0: str | Path | Checkpoint | None,
    pairs: PairData | PairSet,
    *,
    m1: str | Path | Checkpoint | None = None,
    layers: Sequence[int] | None = None,
    recipe: Recipe | None = None,
    epochs: int = 1,
    n: int = 8,
    try_bfloat16: bool = False,
    folder: str | PathLike[str] = ".",
    dtype: str = "float32",
    device: str | None = None,
    chat_template: str | None = None,
    seed: int = 0,
) -> Diagnosis:
    """Check a model and a data set for the whole way: sample, read vectors, rank, retrain.

    m0: a hub id, a folder, a checkpoint, or None for the packaged model. pairs: what `load_pairs` takes. m1:
    the model after training, or its adapter's folder; only its structure and tokenizer are opened. layers:
    those whose vectors will be read; None for all. recipe, epochs: of a DPO arm; None trains the upper half
    of the blocks. n: pairs, drawn with `seed`, on which reading and training are timed; 0 computes nothing.
    try_bfloat16: also measure whether it is worth it (`vectors.probe_dtype`). folder: where vectors will be
    stored. dtype, device, chat_template: as in `open_checkpoint`.

    A bad model, template or data set is no exception but a row with the status "error". Weights are opened
    once, and only if they fit the memory. Times are estimates for this machine from a few pairs: of the right
    order, and rather too long, as a full run makes better batches. Raises DoctorError for `n`, `epochs` or
    `dtype` out of range.

    >>> from probekit.testing import planted_pairs, tiny_checkpoint
    >>> doctor(tiny_checkpoint(), planted_pairs(8), n=0).works
    True
    """
    if n < 0 or epochs < 1 or dtype not in checks.BYTES:
        raise DoctorError(
            f"n is {n}, epochs {epochs} and dtype {dtype!r}; n is at least 0, epochs at least 1, dtype "
            f"one of {', '.join(checks.BYTES)}."
        )
    found = Findings()
    given, where = (m0, None) if isinstance(m0, Checkpoint) else (None, m0)
    some = found.value("pairs", lambda: pairs if isinstance(pairs, PairSet) else load_pairs(pairs))
    if some is not None:
        found.check("pairs", checks.pairs_found, some)
    model = given or found.value("model", lambda: outline(where))
    if model is None:
        return Diagnosis(found.frame(CHECK_COLUMNS))
    if chat_template is not None and given is None:
        model.tokenizer.chat_template = chat_template
    found.check("model", checks.structure, model)
    found.check("blocks", checks.blocks, model)
    found.check("tokenizer", checks.tokenizer, model)
    found.check("end token", checks.end_token, model)
    found.check("chat template", checks.template, model)
    measured = None
    if some is not None and found.well("tokenizer", "chat template"):
        measured = found.value("reply tokens", lambda: checks.measure(model, some, seed=seed))
    if some is not None and measured is not None:
        found.check("reply tokens", checks.reply_tokens, measured)
        found.check("context", checks.context, model, some, measured)
    if m1 is not None:
        found.check("M1", checks.fits, model, m1)
    found.check("device", checks.device, model, device)
    found.check("memory", checks.memory, model, dtype, device, opened=given is not None)
    if some is not None:
        found.check("disk", costs.disk, model, len(some), layers, Path(folder))
    wanted = ("pairs", "model", "blocks", "tokenizer", "end token", "chat template", "reply tokens", "memory")
    if n and found.ready("times", wanted) and some is not None and measured is not None:
        opened = partial(open_checkpoint, where, dtype=dtype, device=device, chat_template=chat_template)
        checkpoint = given or found.value("weights", opened)
        trial = None
        if checkpoint is not None:
            make = partial(costs.Trial, checkpoint, some, measured, layers, n=n, seed=seed)
            trial = found.value("times", make)
        if trial is not None:
            found.check("dtype", costs.precision, trial, try_bfloat16)
            found.check("reading", costs.reading, trial)
            found.check("training", costs.training, trial, recipe, epochs)
    return Diagnosis(found.frame(CHECK_COLUMNS))
