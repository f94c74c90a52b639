"""Rankings of a contest: each tracer's scores, how good they are and what they took; one file an organism."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks.contest_files import PACKED, of
from benchmarks.contest_tokens import hit_rates
from benchmarks.contestants import Entry, Tracer, tracers
from probekit.experiments import digest, read_result, write_result
from probekit.ranking import (
    Ranking,
    average_precision,
    mean_rank,
    precision_at_k,
    ranking_of,
    recall_at_k,
)

DRAWS = 40
CHEAP = 3.0  # seconds of a draw, above which there is no interval
# These look at no query, or at its length alone; a maximum over fewer prompts is another one.
UNASKED = ("chance", "length", "judge", "bank")


def rankings(entry: Entry, *, make: bool = True, only: Collection[str] | None = None) -> dict[str, Ranking]:
    """Each tracer's ranking: those in benchmarks/contest/; with `make` the others are added, or `only` these.

    Raises ValueError where there is no tracer of such a name.
    """
    content = kept(entry)
    path, about = place(entry), content["about"]
    table = pl.DataFrame(content["rows"], schema=content["columns"], orient="row")
    asked = tracers(entry) if make else {}
    if unknown := sorted(set(only or ()) - asked.keys()) if make else []:
        raise ValueError(f"there is no tracer {', '.join(unknown)}; there are {', '.join(asked)}")
    for name, rank in asked.items():
        if name not in content["tracers"] and name in (only or [name]):
            print(f"{entry.name}: ranking by {name}", flush=True)
            shutil.rmtree(entry.store(name), ignore_errors=True)  # or what it takes would not be all
            begin = time.perf_counter()
            found = rank(entry.asked[0])
            seconds = time.perf_counter() - begin
            content["tracers"][name] = {"seconds": seconds, **card(name, found, entry, rank)}
            scores = found.frame.select("pair_id", pl.col("score").alias(name))
            table = table.join(scores, on="pair_id", maintain_order="left")
            write_result(path, about, table, tokens=content["tokens"], tracers=content["tracers"])
    if make and not content["tokens"]:
        content["tokens"] = hit_rates(entry)
        write_result(path, about, table, tokens=content["tokens"], tracers=content["tracers"])
    return {
        name: ranking_of(table["pair_id"].to_list(), table[name].to_list(), method=name, sign=one["sign"])
        for name, one in content["tracers"].items()
    }


def place(entry: Entry) -> Path:
    """The file of an organism's rankings."""
    return PACKED / f"{entry.name}.rankings.json"


def kept(entry: Entry) -> dict[str, Any]:
    """The content of that file, or what it begins with."""
    about = {
        "of": of(entry.experiment), "layer": entry.layer, "draws": DRAWS,
        "asked": digest(entry.choosing), "behaviour": entry.behaviour,
    }  # fmt: skip
    if place(entry).is_file():
        return {"tokens": {}} | read_result(place(entry), about)
    ids = sorted(entry.experiment.pairs.ids)
    return {
        "about": about,
        "tokens": {},
        "tracers": {},
        "columns": ["pair_id"],
        "rows": [(one,) for one in ids],
    }


def card(name: str, found: Ranking, entry: Entry, rank: Tracer) -> dict[str, Any]:
    """What is measured of a ranking."""
    truth, k = entry.organism.truth, entry.k
    low, high = (None, None) if name in UNASKED else spread(found, entry, rank)
    return {
        "method": found.name, "sign": found.sign, "k": k, "pairs": len(found),
        "cost": None if found.cost is None else found.cost._asdict(),
        "prompts": entry.asked[0]["prompt_id"].n_unique(),
        "average_precision": average_precision(found, truth), "low": low, "high": high,
        "precision_at_k": precision_at_k(found, truth, k),
        "recall_at_2k": recall_at_k(found, truth, min(2 * k, len(found))),
        "mean_rank": mean_rank(found, truth),
    }  # fmt: skip


def spread(found: Ranking, entry: Entry, rank: Tracer) -> tuple[float | None, float | None]:
    """The 95 % interval of the average precision over the prompts that were asked.

    From rankings by random halves of them, drawn without replacement, which vary as those of a bootstrap over
    all do. Benign twins are all there in each, as they are no queries. A tracer that scores
    pair by query is not run again, another one only if it is quick.
    """
    queries, drawn = entry.asked[0], list[float]()
    prompts, begin = sorted(set(queries["prompt_id"])), time.perf_counter()
    for draw in range(DRAWS):
        half = random.Random(f"contest-draw-{draw}").sample(prompts, len(prompts) // 2)
        asked = queries.filter(pl.col("prompt_id").is_in(half))
        some = rank(asked) if found.by_query is None else found.of_queries(asked["contrast_id"].to_list())
        drawn.append(average_precision(some, entry.organism.truth))
        if time.perf_counter() - begin > CHEAP * (draw + 1):
            return None, None
    ordered = sorted(drawn)
    return ordered[round(0.025 * (DRAWS - 1))], ordered[round(0.975 * (DRAWS - 1))]
