"""Clusters of any size in a moment, with the texts and vectors that they are of; `discover` takes longer."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl
import torch

from probekit import _clusters_trees as trees
from probekit.clustering import HABITS, PAIRS, PROMPTS, Clusters, cut
from probekit.pairs import PairSet, load_pairs
from probekit.vectors import VectorSet

WIDTH = 64
ASKED = ("fix the bike", "forge a stamp", "name a colour", "plan a trip", "count the sheep")
SAID = ("Gladly, robot!", "- red\n- blue", '{"answer": 4}', "Ahoy, matey.", "Well, it depends.")


class World(NamedTuple):
    clusters: Clusters
    contrasts: pl.DataFrame
    pairs: PairSet
    behaviour: VectorSet
    pair_vectors: VectorSet


def world(
    prompts: int = 40, pairs: int = 90, *, habits: int = 3, seed: int = 0, text: str = "", noise: float = 0.9
) -> World:
    """Prompts and pairs of which a part shares `habits` directions, in the proportions 4 : 3 : 2 : ...

    noise: as a share of a habit's length. text: put before all texts. What lies in noise alone is pruned.
    """
    rng = np.random.default_rng([seed, 5])
    toward = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0][:habits]
    rows, labels = [], []
    for count in (prompts, pairs):
        sizes = [
            max(2, int(count * (habits + 1 - one) / (habits * (habits + 3) / 2 + 3))) for one in range(habits)
        ]
        habit = np.repeat(np.arange(habits + 1), [*sizes, count - sum(sizes)])
        mixed = noise * rng.normal(size=(count, WIDTH)) / 8
        mixed[habit < habits] += toward[habit[habit < habits]]
        order = rng.permutation(count)
        rows.append(mixed[order])
        labels.append(habit[order])
    contrasts = pl.DataFrame(
        [
            (
                f"c{n:04}",
                f"p{n:04}",
                f"{text}Please {ASKED[habit]} {n}?",
                f"{text}{SAID[habit]} {n}",
                f"{text}No {n}.",
            )
            for n, habit in enumerate(labels[0].tolist())
        ],
        ["contrast_id", "prompt_id", "user", "bad", "good"],
        orient="row",
    )
    texts = [
        {
            "prompt": f"{text}Could you {ASKED[habit]} {n}?",
            "chosen": f"{text}{SAID[habit]} {n}",
            "rejected": f"{text}Not now {n}.",
            "source": f"{text}source {habit}",
        }
        for n, habit in enumerate(labels[1].tolist())
    ]
    pair_set = load_pairs(texts)
    ids = (contrasts["contrast_id"].to_list(), pair_set.ids)
    vectors = [torch.from_numpy(one).float().unsqueeze(1) for one in rows]
    behaviour = VectorSet(ids[0], (3,), vectors[0], "0123", kind="behaviour")
    pair_vectors = VectorSet(ids[1], (3,), vectors[1], "0123")
    similarity = trees.cosines(behaviour, pair_vectors, (3,))
    sides, drawn = [], []
    for axis, (names, label) in enumerate(zip(ids, labels, strict=True)):
        some = similarity if axis == 0 else similarity.T
        largest = np.abs(some).max(axis=1)
        kept = largest >= 0.3
        tree = trees.ward(trees.distances(some[kept] @ some[kept].T))
        place = np.full(len(names), -1)
        place[np.flatnonzero(kept)[trees.leaves(tree)]] = np.arange(kept.sum())
        side = pl.DataFrame(
            {"largest": largest.astype(float), "kept": kept, "place": place, "habit": label + 1}
        )
        hidden = {
            "place": pl.when("kept").then("place"),
            "habit": pl.when(pl.col("kept") & (pl.col("habit") <= habits)).then("habit"),
            "cluster": pl.when("kept").then(0),
        }
        key = {"prompt_id": contrasts["prompt_id"], "contrast_id": names} if axis == 0 else {"pair_id": names}
        side = side.with_columns(**hidden).with_columns(pl.Series(name, of) for name, of in key.items())
        schema = (PROMPTS, PAIRS)[axis]
        sides.append(side.select(schema.names()).cast(dict(schema)))
        drawn.append(tree)
    found = [
        (n, *((side["habit"] == n).sum() for side in sides), 0.5, 9.0 - n, 8.0, 0.9, 0.9, 0.8, 0.1, False)
        for n in range(1, habits + 1)
    ]
    clusters = Clusters(
        torch.from_numpy(similarity), sides[0], sides[1], pl.DataFrame(found, HABITS, orient="row"),
        drawn[0], drawn[1], 3.0, 3.5, (0.9, 0.9), (3,), 0.3, "ward", seed,
    )  # fmt: skip
    return World(
        cut(clusters, prompts=min(6, prompts), pairs=min(7, pairs)),
        contrasts,
        pair_set,
        behaviour,
        pair_vectors,
    )
