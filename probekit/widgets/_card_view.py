"""A card as the cluster map shows it: short texts and numbers, no markup."""

from __future__ import annotations

from typing import Any

import polars as pl

from probekit._cards import Card
from probekit._report_text import format_number
from probekit.widgets._pair_table import NAME, opening, short
from probekit.widgets._static import number

TEXT = 240  # characters of a request or a reply
EXAMPLES = 3  # prompts, and pairs
GROUPS = 3  # rows of the enrichment


def card_view(card: Card, level: tuple[float, float], name: str) -> dict[str, Any]:
    """The card as JSON. level: of push and turn, that a habit has to pass. name: what it is a card of."""
    figures = card.figures.row(0, named=True)
    held = format_number(figures["concentration"], percent=True)
    chance = format_number(figures["concentration_null"], percent=True)
    notes = [card.label, f"These pairs hold {held} of the net push of all pairs; chance leaves {chance}."]
    if figures["diffuse"]:
        notes.append("Diffuse: removing these pairs will not cure it.")
    if not card.passed:
        notes.append("It does not pass both levels: shuffled data give the like.")
    changes = [[short(what, NAME), number(m0), number(m1)] for what, m0, m1 in card.changes.iter_rows()]
    words = [
        [str(side[0]), short(", ".join(some["word"]), TEXT)]
        for side, some in card.words.group_by("side", maintain_order=True)
    ]
    firm = [
        ["tightness", number(figures["tightness"])],
        ["push", f"{number(figures['push'])} (level {number(level[0])})"],
        ["turn", f"{number(figures['turn'])} (level {number(level[1])})"],
        ["stability of prompts", number(figures["stability"])],
        ["stability of pairs", number(figures["pair_stability"])],
    ]
    tables = (
        ("What changed", ["share or mean", "M0", "M1"], changes),
        ("Words that set it apart", ["of each", "words"], words),
        ("Where the pairs are from", ["source", "pairs", "lift"], _groups(card.enrichment)),
        ("How firm it is", ["measure", "value"], firm),
    )
    return {
        "title": name if card.name in (name, "cluster, not reported") else f"{name}: {card.name}",
        "counts": f"{card.contrasts.height:,} prompts · {card.pairs.height:,} pairs behind them",
        "notes": notes,
        "tables": [{"caption": one, "heads": heads, "rows": rows} for one, heads, rows in tables if rows],
        "examples": [
            ["Prompts that react most", [_prompt(row) for row in _first(card.contrasts)]],
            ["Pairs that push most", [_pair(row) for row in _first(card.pairs)]],
        ],
    }


def _first(frame: pl.DataFrame) -> list[dict[str, Any]]:
    return frame.head(EXAMPLES).to_dicts()


def _prompt(row: dict[str, Any]) -> dict[str, Any]:
    return _texts(row["score"], {"asked": row["user"], "M0": row["good"], "M1": row["bad"]})


def _pair(row: dict[str, Any]) -> dict[str, Any]:
    texts = {"prompt": opening(row["prompt"]), "chosen": row["chosen"], "rejected": row["rejected"]}
    return _texts(row["score"], texts)


def _texts(score: float, texts: dict[str, str]) -> dict[str, Any]:
    return {"score": number(score), "texts": [[name, short(text, TEXT)] for name, text in texts.items()]}


def _groups(enrichment: pl.DataFrame) -> list[list[str]]:
    """The sources that most of these pairs are of: name, how many of how many, and lift."""
    if not enrichment.width:
        return []
    some = enrichment.filter((pl.col("by") == "source") & (pl.col("in_top") > 0)).head(GROUPS)
    return [
        [short(group, NAME), f"{hits:,} of {n:,}", f"{number(lift)} ×"]
        for group, hits, n, lift in some.select("group", "in_top", "n", "lift").iter_rows()
    ]
