"""The checks of `doctor` that compute nothing with the model: each looks at one thing."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

import polars as pl

from probekit._pair_rows import few
from probekit.checkpoints import Checkpoint, CheckpointError, check_adapter, outline, tokenizer_hash
from probekit.pairs import PairSet

OK, WARN, ERROR = "ok", "warn", "error"
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
MEASURED = 2000  # pairs whose tokens are counted; more change an estimate little
P = ParamSpec("P")
T = TypeVar("T")


class Finding(NamedTuple):
    """What one check found, and what to do about it."""

    status: str
    found: str
    advice: str = ""


class Findings:
    """The findings so far, in order. Whatever a model does wrong becomes one of them."""

    def __init__(self) -> None:
        self._rows: list[tuple[str, Finding]] = []

    def check(self, name: str, look: Callable[P, Finding], *given: P.args, **more: P.kwargs) -> None:
        """Add what `look` finds, or the error that it ends in."""
        found = self.value(name, lambda: look(*given, **more))
        if found is not None:
            self._rows.append((name, found))

    def value(self, name: str, make: Callable[[], T]) -> T | None:
        """What `make` gives; None, with its error as a finding of this name, if it ends in one."""
        try:
            return make()
        except Exception as error:  # noqa: BLE001 - what a model that nobody knows raises is the finding
            said = str(error) or "no more is known"
            known = type(error).__module__.startswith("probekit")
            words = said if known else f"{type(error).__name__}: {said}"
            self._rows.append(
                (name, Finding(ERROR, words, "" if known else "See what raises this in the model."))
            )
            return None

    def well(self, *names: str) -> bool:
        """Is none of these an error?"""
        return not any(found.status == ERROR and name in names for name, found in self._rows)

    def ready(self, name: str, needs: Sequence[str]) -> bool:
        """Is none of `needs` an error? Else a finding says that `name` was not tried."""
        wrong = [one for one in needs if not self.well(one)]
        if wrong:
            self._rows.append((name, Finding(WARN, "Not tried.", f"Mend first: {', '.join(wrong)}.")))
        return not wrong

    def frame(self, columns: Mapping[str, Any]) -> pl.DataFrame:
        """A row for each finding."""
        return pl.DataFrame(
            [(name, *found) for name, found in self._rows], schema=dict(columns), orient="row"
        )


def pairs_found(pairs: PairSet) -> Finding:
    """How many pairs, of which sources, and what was left out when they were loaded."""
    notes = [
        f"{what}: {rows:,}"
        for what, rows, _ in pairs.report.iter_rows()
        if what.startswith("dropped") or what.endswith("unknown")
    ]
    words = f"{pairs!r}{'; ' if notes else ''}{'; '.join(notes)}"
    if not len(pairs):
        return Finding(ERROR, words, "Give at least one pair.")
    if pairs.frame["source"].n_unique() == 1:
        return Finding(WARN, words, "With a column `source`, enrichment can say where the cause comes from.")
    return Finding(OK, words)


def structure(model: Checkpoint) -> Finding:
    """What kind of model it is."""
    weights = sum(one.numel() for one in model.hf.parameters())
    return Finding(
        OK,
        f"{type(model.hf).__name__}, {weights / 1e6:,.1f} M parameters, {model.n_blocks} blocks of width "
        f"{model.width}, context {model.max_length}, weights in {str(model.hf.dtype).removeprefix('torch.')}",
    )


def blocks(model: Checkpoint) -> Finding:
    """Where its decoder blocks are."""
    return Finding(OK, f"{model.n_blocks} at {model.blocks_path}")


def tokenizer(model: Checkpoint) -> Finding:
    """Is the tokenizer a fast one, which knows the characters of each token?"""
    kind = type(model.tokenizer).__name__
    if not getattr(model.tokenizer, "is_fast", False):
        advice = "Save the model with a fast tokenizer (tokenizer.json): a slow one does not say which "
        return Finding(ERROR, f"{kind}, a slow one", advice + "characters a token stands for.")
    return Finding(OK, f"{kind}, fast, {len(model.tokenizer):,} tokens")


def end_token(model: Checkpoint) -> Finding:
    """Is there a token that ends a reply?"""
    end = model.tokenizer.eos_token
    if end is None:
        return Finding(ERROR, "none", "Save the tokenizer with an eos_token: replies would never end.")
    return Finding(OK, repr(end))


def template(model: Checkpoint) -> Finding:
    """Is there a chat template that takes a user's turn and tells the end of a reply?"""
    if model.tokenizer.chat_template is None:
        advice = "Give one: open_checkpoint(..., chat_template=...). Vectors alone can be read without "
        return Finding(ERROR, "none", advice + "(chat=False).")
    text = model.prompt_text([{"role": "user", "content": "Hi?"}])
    whole = _talk(model, [{"role": "user", "content": "Hi?"}], "Hello.")
    end = model.tokenizer.eos_token
    if end is not None and end not in whole[len(text) :]:
        advice = (
            f"Let the template write {end!r} after an assistant's turn, or the model never learns to stop."
        )
        return Finding(WARN, f"{text!r}, and no end token after the reply", advice)
    return Finding(OK, repr(text))


def measure(model: Checkpoint, pairs: PairSet, *, seed: int) -> pl.DataFrame:
    """Of at most MEASURED pairs: pair_id, tokens (read for its vector, the prompt once), longest (tokens of
    the longer side with what ends it), exact (are the reply's tokens exactly the reply?), kept (does the
    template leave the reply as it is?) and problem (why it cannot be rendered; else null).
    """
    ids = random.Random(seed).sample(pairs.ids, min(MEASURED, len(pairs)))
    rows = [_measured(model, row) for row in pairs.select(ids).frame.iter_rows(named=True)]
    columns = {"pair_id": pl.String, "tokens": pl.Int64, "longest": pl.Int64}
    columns |= {"exact": pl.Boolean, "kept": pl.Boolean, "problem": pl.String}
    return pl.DataFrame(rows, schema=columns, orient="row")


def _measured(model: Checkpoint, row: Mapping[str, Any]) -> tuple[Any, ...]:
    tokenizer, prompt = model.tokenizer, row["prompt"]
    tokens, longest, exact, kept = 0, 0, True, True
    try:
        before = model.prompt_text(prompt)
        for side in ("chosen", "rejected"):
            text = model.render(prompt, row[side])
            tokens += text.stop - (text.start if tokens else 0)
            whole = _talk(model, prompt, row[side])
            ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
            longest = max(longest, text.stop, len(ids))
            read = tokenizer.decode(text.ids[text.start : text.stop], clean_up_tokenization_spaces=False)
            exact &= _normal(read) == _normal(row[side])
            kept &= whole.startswith(before + row[side])
    except Exception as error:  # noqa: BLE001 - a template is a program, and may raise anything
        return row["pair_id"], None, None, None, None, f"{type(error).__name__}: {error}"
    return row["pair_id"], tokens, longest, exact, kept, None


def _normal(text: str) -> str:
    """The text as tokenizers that compose characters read it."""
    return unicodedata.normalize("NFC", text)


def _talk(model: Checkpoint, prompt: Sequence[Mapping[str, str]], reply: str) -> str:
    """Prompt and reply as the template writes them, which is what is trained on."""
    turns = [*map(dict, prompt), {"role": "assistant", "content": reply}]
    return str(model.tokenizer.apply_chat_template(turns, tokenize=False))


def reply_tokens(measured: pl.DataFrame) -> Finding:
    """Are the tokens that are read, and those trained on, exactly the reply's?"""
    n, failing = measured.height, measured.filter(pl.col("problem").is_not_null())
    if failing.height:
        words = f"{failing.height:,} of {n:,} pairs cannot be rendered, first {failing['pair_id'][0]}: "
        advice = "Leave these pairs out, or give a template that takes their turns (a system turn, perhaps)."
        return Finding(ERROR, words + failing["problem"][0][:300], advice)
    inexact, changed = int((~measured["exact"]).sum()), int((~measured["kept"]).sum())
    if inexact:
        words = f"In {inexact:,} of {n:,} pairs the reply's tokens are not exactly the reply."
        advice = "The tokenizer changes the text, or joins its beginning to the template's end; end the "
        return Finding(WARN, words, advice + "template's header with a new line.")
    if changed:
        words = (
            f"In {changed:,} of {n:,} pairs the template changes the reply, so training sees other tokens "
        )
        advice = (
            "Strip white space from the ends of the replies, or give a template that writes them as they are."
        )
        return Finding(WARN, words + "than reading.", advice)
    return Finding(OK, f"exactly the replies in all of {n:,} pairs tried")


def context(model: Checkpoint, pairs: PairSet, measured: pl.DataFrame) -> Finding:
    """Do the pairs fit the context?"""
    longest = measured["longest"].drop_nulls()
    long = measured.filter(pl.col("longest") > model.max_length)
    tried = "" if measured.height == len(pairs) else f" of {measured.height:,} tried"
    if not longest.len():
        return Finding(ERROR, "No pair could be rendered.")
    middle = longest.quantile(0.5, "nearest")
    words = f"longest pair {longest.sort()[-1]:,} tokens, middle {middle:,.0f}, context {model.max_length:,}"
    if not long.height:
        return Finding(OK, words)
    about = (
        "" if not tried else f", so about {long.height * len(pairs) // measured.height:,} of {len(pairs):,}"
    )
    return Finding(
        ERROR,
        f"{long.height:,}{tried or f' of {len(pairs):,}'} pairs do not fit{about} "
        f"({few(long['pair_id'])}); {words}",
        "Nothing is cut short: leave these out with pairs.select, or take a model with a longer context. "
        "vectors.check_lengths names them.",
    )


def fits(model: Checkpoint, m1: str | Path | Checkpoint) -> Finding:
    """Does M1 come from M0: an adapter that fits, or a model of the same shape and tokenizer?"""
    if not isinstance(m1, Checkpoint) and (Path(m1) / "adapter_config.json").is_file():
        check_adapter(model, m1)
        own = Path(m1) / "chat_template.jinja"
        if own.is_file() and own.read_text(encoding="utf-8") != model.tokenizer.chat_template:
            return Finding(WARN, f"adapter {Path(m1).name} fits, with a chat template of its own", _TEMPLATES)
        return Finding(OK, f"adapter {Path(m1).name} fits")
    other = m1 if isinstance(m1, Checkpoint) else outline(m1)
    if (other.width, other.n_blocks) != (model.width, model.n_blocks):
        raise CheckpointError(
            f"{other.name} has {other.n_blocks} blocks of width {other.width}, {model.name} {model.n_blocks} "
            f"of width {model.width}; M1 is a training of M0"
        )
    if tokenizer_hash(other.tokenizer) != tokenizer_hash(model.tokenizer):
        advice = "Open both with one tokenizer, or what is compared are two readings of a text."
        return Finding(ERROR, f"{other.name} has another tokenizer than {model.name}", advice)
    if other.tokenizer.chat_template != model.tokenizer.chat_template:
        return Finding(WARN, f"{other.name} has another chat template than {model.name}", _TEMPLATES)
    return Finding(OK, f"{other.name}: same shape, tokenizer and chat template; its weights were not opened")


_TEMPLATES = (
    "Give both the same one, open_checkpoint(..., chat_template=...), unless M1 was trained with its own."
)


def device(model: Checkpoint, wanted: str | None) -> Finding:
    """Where will the model be, and is there something faster?"""
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    place = model.hf.device.type
    place = wanted or "cpu" if place == "meta" else place
    words = f"{place}; {gpus} GPUs, {torch.get_num_threads()} CPU threads"
    if gpus and place == "cpu":
        return Finding(WARN, words, 'Open the model on a GPU: open_checkpoint(..., device="cuda").')
    if gpus > 1:
        return Finding(
            OK, words, "python -m probekit.vectors under accelerate launch reads with all of them."
        )
    return Finding(OK, words)


def memory(model: Checkpoint, dtype: str, wanted: str | None, *, opened: bool) -> Finding:
    """Do the weights fit, with room to work in?"""
    import psutil
    import torch

    size = BYTES[dtype] if not opened else model.hf.dtype.itemsize
    weights = size * sum(one.numel() for one in model.hf.parameters())
    gpu = torch.cuda.is_available() and (wanted or model.hf.device.type).startswith("cuda")
    free = torch.cuda.mem_get_info()[0] if gpu else psutil.virtual_memory().available
    free_words = f"free {in_bytes(free)} on the {'GPU' if gpu else 'machine'}"
    if opened:
        return Finding(OK, f"weights {in_bytes(weights)}, open; {free_words}")
    words = f"weights {in_bytes(weights)} in {dtype}; {free_words}"
    if weights > free:
        return Finding(
            ERROR, words, 'Take a smaller model, dtype="bfloat16", or read remotely (remote=True).'
        )
    if 2 * weights > free:
        return Finding(WARN, words, "Little is left to work in: close what else is open, or take bfloat16.")
    return Finding(OK, words)


def in_bytes(n: float) -> str:
    """A size in words.

    >>> in_bytes(512), in_bytes(5 * 10**9)
    ('512 B', '5.0 GB')
    """
    for unit in ("B", "KB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:,.1f} TB"
