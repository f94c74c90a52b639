"""What the retrain panel says, as text and as HTML in which every name is escaped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from probekit._report_text import format_number, plain, plain_text
from probekit.experiments import Estimate

CLASS = "probekit-retrain"
STYLE = f"""
.{CLASS} {{ color: var(--jp-ui-font-color1, inherit); }}
.{CLASS} table {{ border-collapse: collapse; margin: 0.4em 0; font-variant-numeric: tabular-nums; }}
.{CLASS} caption {{ text-align: left; }}
.{CLASS} th, .{CLASS} td {{
  padding: 0.15em 1em 0.15em 0; text-align: left; border-bottom: 1px solid var(--jp-border-color2, #8886);
}}
.{CLASS} tbody th {{ white-space: nowrap; }}
.{CLASS} .bar {{ width: 12em; height: 0.8em; border: 1px solid currentcolor; border-radius: 2px; }}
.{CLASS} .bar span {{ display: block; height: 100%; background: currentcolor; opacity: 0.65; }}
.{CLASS} .problem {{ font-weight: bold; }}
.{CLASS} .group {{ font-weight: 600; min-width: 6em; }}
"""
STATES = {"train": "training", "judge": "judging", "waiting": "waiting", "finished": "finished"}
_SHARES = ("rate", "seed_min", "seed_max", "reduction", "difference", "unparsable")
_HEADS = {
    "rate": "rate", "seed_min": "lowest seed", "seed_max": "highest seed", "difference": "difference",
    "reduction": "reduction", "unparsable": "unparsable",
}  # fmt: skip


def duration(seconds: float) -> str:
    """A length of time in words.

    >>> duration(3.2), duration(95), duration(5000)
    ('3 s', '1 min 35 s', '1 h 23 min')
    """
    whole = max(1, round(seconds))
    for large, small, size in (("h", "min", 3600), ("min", "s", 60)):
        if whole >= size:
            rest = whole % size // (size // 60)
            return f"{whole // size} {large}" + (f" {rest} {small}" if rest else "")
    return f"{whole} s"


def estimate_words(jobs: pl.DataFrame, estimate: Estimate | None) -> str:
    """How much there is to do, and how long it takes as far as that is known."""
    left = jobs.filter(pl.col("state") != "finished").height
    words = f"{jobs.height} jobs (arm and seed), {jobs.height - left} finished"
    if not left:
        return f"{words}."
    if estimate is None or estimate.seconds is None:
        return f"{words}; how long they take is not known yet: estimate the time, or start."
    source = f"as the {estimate.measured} trained before did" if estimate.measured else "by a few timed steps"
    return f"{words}; the others take about {duration(estimate.seconds)}, {source}."


def progress_html(jobs: pl.DataFrame) -> str:
    """A row an arm: how many of its seeds are finished, and what the one being done is at, with a bar."""
    rows = []
    for (arm,), its in jobs.group_by("arm", maintain_order=True):
        share, words = _progress(its)
        name = plain(str(arm))
        rows.append(
            f'<tr><th scope="row">{name}</th><td>{its["edited"][0]:,}</td>'
            f'<td><div class="bar" role="progressbar" aria-label="{name}" aria-valuemin="0" '
            f'aria-valuemax="100" aria-valuenow="{share:.0f}" aria-valuetext="{words}">'
            f'<span style="width: {share:.0f}%"></span></div></td><td>{words}</td></tr>'
        )
    heads = "".join(f'<th scope="col">{one}</th>' for one in ("arm", "pairs edited", "progress", "state"))
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _progress(its: pl.DataFrame) -> tuple[float, str]:
    """Percent that is done of an arm's seeds, half of a job being its training; and where it is, in words."""
    finished = its.filter(state="finished").height
    words = f"{finished} of {its.height} finished"
    part = 0.0
    for row in its.filter(pl.col("state").is_in(["train", "judge"])).iter_rows(named=True):
        part = 0.5 * (row["done"] / row["steps"] + (row["state"] == "judge"))
        at = f", step {row['done']} of {row['steps']}" if row["state"] == "train" else ""
        words += f"; seed {row['seed']}: {STATES[row['state']]}{at}"
    return 100 * (finished + part) / its.height, words


def job_rows(jobs: pl.DataFrame) -> list[list[str]]:
    """The jobs as texts: arm, pairs edited, seed, state, seconds."""
    return [
        [plain_text(row["arm"]), f"{row['edited']:,}", str(row["seed"]), STATES[row["state"]], _seconds(row)]
        for row in jobs.iter_rows(named=True)
    ]


def _seconds(row: Mapping[str, Any]) -> str:
    both = [row[name] for name in ("train_seconds", "judge_seconds") if row[name] is not None]
    return duration(sum(both)) if both else "–"


def effect_rows(table: pl.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Headings and texts of an effect table: shares with their intervals."""
    shown = [name for name in _SHARES if name in table.columns]
    rows = []
    for row in table.iter_rows(named=True):
        cells = [_share(row, name) for name in shown]
        rows.append([plain_text(row["arm"]), str(row["seeds"]), *cells])
    return ["arm", "seeds", *(_HEADS[name] for name in shown)], rows


def _share(row: Mapping[str, Any], name: str) -> str:
    if row[name] is None:
        return "–"
    low, high = ("low", "high") if name == "rate" else (f"{name}_low", f"{name}_high")
    text = format_number(row[name], percent=True)
    if row.get(low) is None:
        return text
    return f"{text} ({format_number(row[low], percent=True)} to {format_number(row[high], percent=True)})"
