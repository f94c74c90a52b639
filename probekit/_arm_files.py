"""An arm on disk: the edited dataset, its ledger and a card that vouches for both. Private to `arms`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeAlias

import polars as pl

from probekit.pairs import PairSet
from probekit.sources import replacing

Form: TypeAlias = Literal["jsonl", "parquet"]
FORMAT = 1
LEDGER_SCHEMA = pl.Schema({"pair_id": pl.String(), "edit": pl.String(), "reason": pl.String()})
_SAVED_SCHEMA = {**LEDGER_SCHEMA, "edited_id": pl.String()}


class ArmError(ValueError):
    """An edit that cannot be made as asked: unknown pairs, an empty result, an unreadable folder."""


def write_arm(
    folder: Path, card: Mapping[str, object], ledger: pl.DataFrame, edited: PairSet, form: Form
) -> None:
    """Write arm.json (the card), train.<form> and ledger.<form>; see `Arm.save`."""
    if form not in ("jsonl", "parquet"):
        raise ArmError(f"An arm is saved as 'jsonl' or 'parquet', not {form!r}.")
    card_file, data, rows = (folder / name for name in ("arm.json", f"train.{form}", f"ledger.{form}"))
    if not card_file.exists() and (taken := [one.name for one in (data, rows) if one.exists()]):
        raise ArmError(f"{folder} already has a {taken[0]} that no arm wrote; name another folder.")
    card = {"format": FORMAT, **card}
    # without the files' hashes the card says: unfinished, but ours to write over
    _write_card(card_file, card)
    edited.save(data)
    with replacing(rows) as partial:
        ledger.write_ndjson(partial) if form == "jsonl" else ledger.write_parquet(partial)
    other = "parquet" if form == "jsonl" else "jsonl"
    for stale in (data, rows):
        stale.with_suffix(f".{other}").unlink(missing_ok=True)
    _write_card(card_file, {**card, "files": {one.name: _sha256(one) for one in (data, rows)}})


def read_arm(folder: Path) -> tuple[str, str, pl.DataFrame]:
    """Name, kind and ledger of the arm in the folder; see `load_arm`."""
    card_file = folder / "arm.json"
    try:
        card = json.loads(card_file.read_text(encoding="utf-8"))
        if card["format"] != FORMAT:
            raise ArmError(f"{card_file} has format {card['format']}; this version reads format {FORMAT}.")
        if "files" not in card:
            raise ArmError(f"Saving the arm in {folder} was cut short; save it again.")
        for name, digest in card["files"].items():
            if _sha256(folder / name) != digest:
                raise ArmError(f"{name} in {folder} is not what Arm.save wrote there; save the arm again.")
        file = next(folder / name for name in card["files"] if name.startswith("ledger."))
        parquet = file.suffix == ".parquet"
        ledger = pl.read_parquet(file) if parquet else pl.read_ndjson(file, schema=_SAVED_SCHEMA)
        return card["name"], card["kind"], ledger.select(LEDGER_SCHEMA.names())
    except ArmError:
        raise
    except FileNotFoundError as error:
        raise ArmError(f"{error.filename} is missing; name a folder that Arm.save wrote.") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError, StopIteration) as error:
        raise ArmError(f"{card_file} cannot be read as an arm ({error!r}); save the arm again.") from error


def _write_card(file: Path, card: Mapping[str, object]) -> None:
    with replacing(file) as partial:
        partial.write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _sha256(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
