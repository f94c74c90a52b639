"""Similarities, distances, trees and flat cuts: the arithmetic of `clustering` that knows no habits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from probekit.vectors import VectorSet

Array = npt.NDArray[np.floating[Any]]
Flags = npt.NDArray[np.bool_]
Labels = npt.NDArray[np.int64]
Tree = npt.NDArray[np.float64]

MOST_CLUSTERS = 20  # tried by silhouette
SAMPLED = 2000  # rows that a silhouette is taken on, at most


def cosines(behaviour: VectorSet, pairs: VectorSet, layers: tuple[int, ...]) -> Array:
    """S = B D^T, float32 (behaviours, pairs): layers side by side, rows made unit vectors; 0 for a zero one.

    The pairs are read a piece at a time, so only S is ever whole in memory.
    """
    dots = np.zeros((len(behaviour), len(pairs)), np.float32)
    squares = np.zeros(len(pairs))
    rows = [behaviour.layer(layer).double().numpy() for layer in layers]
    for wanted, layer in zip(rows, layers, strict=True):
        at = 0
        for piece in pairs.chunks(layer):
            some = piece.numpy()
            dots[:, at : at + len(some)] += (wanted @ some.T).astype(np.float32)
            squares[at : at + len(some)] += (some**2).sum(axis=1)
            at += len(some)
    norms = np.sqrt(sum((one**2).sum(axis=1) for one in rows)), np.sqrt(squares)
    for norm, shape in zip(norms, ((-1, 1), (1, -1)), strict=True):
        dots /= np.where(norm > 0, norm, np.inf).reshape(shape).astype(np.float32)
    return np.clip(dots, -1, 1)


def alike(behaviour: VectorSet, pairs: VectorSet, layers: tuple[int, ...]) -> Array:
    """How alike what is asked is, float32 (behaviours, pairs): cosines from the pairs' mean, 0 if below."""
    middle = pairs.values[:].mean(dim=0)
    centred = [replace(one, values=one.values[:] - middle) for one in (behaviour, pairs)]
    return np.maximum(cosines(centred[0], centred[1], layers), 0)


def distances(products: Array) -> Array:
    """Euclidean distances (n, n) between rows of which these are the dot products (n, n)."""
    squares = np.diag(products)
    found = np.sqrt(np.maximum(squares[:, None] + squares - 2 * products, 0))
    found = np.maximum(found, found.T)
    np.fill_diagonal(found, 0)
    return found


def ward(apart: Array) -> Tree:
    """The Ward tree of n things this far apart: scipy's linkage matrix, n - 1 rows."""
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    if len(apart) < 2:
        return np.zeros((0, 4))
    return np.asarray(linkage(squareform(apart, checks=False), "ward"))


def leaves(tree: Tree) -> list[int]:
    """The things in the order in which the tree draws them."""
    from scipy.cluster.hierarchy import leaves_list

    return leaves_list(tree).tolist() if len(tree) else [0]


def cut(tree: Tree, count: int) -> Labels:
    """The tree's `count` clusters, numbered from 0 as the tree draws them; of equal heights, the later part.

    Unlike scipy's fcluster, which cannot part what joins at one height.
    """
    size = len(tree) + 1
    below = {one: [one] for one in range(size)}
    for row, (first, second) in enumerate(tree[: size - count, :2].astype(int)):
        below[size + row] = below.pop(first) + below.pop(second)
    place = {one: order for order, one in enumerate(leaves(tree))}
    found = np.zeros(size, np.int64)
    for number, members in enumerate(sorted(below.values(), key=lambda some: min(place[x] for x in some))):
        found[members] = number
    return found


def best_cut(tree: Tree, apart: Array, seed: int) -> Labels:
    """The cut into 2 to 20 clusters that has the largest mean silhouette (Rousseeuw 1987)."""
    from sklearn.metrics import silhouette_score

    best, largest = cut(tree, 1), -2.0
    for count in range(2, min(MOST_CLUSTERS, len(apart) - 1) + 1):
        found = cut(tree, count)
        some = np.random.default_rng([seed, 0]).permutation(len(apart))[:SAMPLED]
        if not 2 <= len(set(found[some].tolist())) < len(some):
            continue
        score = silhouette_score(apart[np.ix_(some, some)], found[some], metric="precomputed")
        if score > largest:
            best, largest = found, float(score)
    return best


def density_clusters(apart: Array, smallest: int) -> Labels:
    """HDBSCAN's clusters of things this far apart, from 0; -1 for what belongs to none."""
    from sklearn.cluster import HDBSCAN

    if len(apart) < max(2, smallest):
        return np.full(len(apart), -1)
    found = HDBSCAN(min_cluster_size=max(2, smallest), metric="precomputed", copy=True).fit(apart)
    return np.asarray(found.labels_, np.int64)


def nodes(tree: Tree) -> Flags:
    """What is below each node of a tree, (n - 1, n): every cluster of every cut."""
    count = len(tree) + 1
    below = np.zeros((len(tree), count), bool)
    for row, children in enumerate(tree[:, :2].astype(int)):
        for child in children:
            if child < count:
                below[row, child] = True
            else:
                below[row] |= below[child - count]
    return below


def groups(labels: Labels) -> Flags:
    """What is in each cluster, (clusters, n); -1 is in none."""
    return np.array([labels == one for one in sorted(set(labels.tolist()) - {-1})], bool).reshape(
        -1, len(labels)
    )


def numbered(names: Sequence[str]) -> Labels:
    """A number for each name, the same for the same."""
    known = {one: number for number, one in enumerate(dict.fromkeys(names))}
    return np.array([known[one] for one in names], np.int64)


def different(found: Flags, units: Labels) -> Labels:
    """How many different units each group has."""
    each = units[:, None] == np.arange(units.max() + 1)
    return ((found.astype(np.float32) @ each.astype(np.float32)) > 0).sum(axis=1)
