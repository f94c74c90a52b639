"""Which groups of prompts are habits, and which pairs push toward them: the statistics of `clustering`.

Everywhere S is float32 (prompts, pairs), `groups` are flags (groups, prompts), `behind` (groups, pairs).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from probekit._clusters_trees import Array, Flags, Labels, distances

Grouping: TypeAlias = Callable[[Array], Flags]
"""Groups (groups, prompts) of prompts this far apart (prompts, prompts)."""

LEVEL = 0.95  # quantile of the largest statistic under shuffles that a habit has to pass
DIFFUSE = 0.5  # share of the net push below which the pairs behind a habit are the smaller part of it
FEW = 0.25  # of all pairs: more than these are not a cause that could be removed
SAME = 0.5  # share of pairs in common, of all in either, above which two groups of prompts are one habit


class Nulls(NamedTuple):
    """What 95 % of the shuffles do not exceed with any group: for `push` and `turn`."""

    push: float
    turn: float


def padded(of_all: Array, kept: Flags) -> Array:
    """S of the kept pairs, then zeros for the pruned ones, at most as many again: else, where pruning has
    left a habit's own pairs alone, there is nothing that they stand out from, and a cut would part them."""
    some = of_all[:, kept]
    return np.pad(some, ((0, 0), (0, min(of_all.shape[1], 2 * some.shape[1]) - some.shape[1])))


def means(similarity: Array, groups: Flags) -> Array:
    """m: the mean similarity of each group's prompts to each pair, (groups, pairs)."""
    weights = groups / np.maximum(groups.sum(axis=1, keepdims=True), 1)
    return weights.astype(np.float32) @ similarity


def pairs_behind(mean: Array) -> Flags:
    """The pairs that stand out: above the cut of max(m, 0) with the most variance between (Otsu 1979).

    What pushes away counts as what does nothing, so that many pairs against a habit do not hide those for it.
    """
    toward = np.maximum(mean, 0)
    falling = -np.sort(-toward, axis=1)
    count, total = falling.shape[1], np.cumsum(falling, axis=1, dtype=np.float64)
    if count < 2:
        return toward > 0
    first = np.arange(1, count)
    apart = total[:, :-1] / first - (total[:, -1:] - total[:, :-1]) / (count - first)
    at = (first * (count - first) * apart**2).argmax(axis=1)
    least = np.take_along_axis(falling, at[:, None], axis=1)
    return (toward >= least) & (toward > 0)


def push(mean: Array) -> Array:
    """Do the strongest pairs point one way? max over k of sum(m) / root(sum(m^2)) over the k largest |m|.

    A number for each group; about 1 to 3 for labels tossed like coins, root(k) if the k strongest agree.
    """
    order = np.argsort(-np.abs(mean), axis=1)
    return _walk(np.take_along_axis(mean, order, axis=1)).max(axis=1)


def turn(similarity: Array, groups: Flags, behind: Flags) -> Array:
    """Do the prompts that react most to a group's pairs belong to the group, with the same sign?

    With p the mean similarity of each prompt to the group's pairs and k the prompts in the group:
    sum(p) / root(sum(p^2)) over the k largest |p|, where the sum leaves out p > 0 outside the group, and the
    root does not. root(k) for a group that is all of a habit; less for half of one, for one that has others
    in it, and where as many prompts turn the other way.

    The pairs that a member is compared with are those behind the other half of the group: those behind all
    of it were chosen with the member's own noise, which large groups of noise would pass by.
    """
    first = groups & (groups.cumsum(axis=1) % 2 == 1)
    halves = [first, groups & ~first]
    reaction: Array = _reaction(similarity, behind)
    for half, other in (halves, halves[::-1]):
        crossed = _reaction(similarity, pairs_behind(means(similarity, other)))
        reaction = np.where(half, crossed, reaction)
    order = np.argsort(-np.abs(reaction), axis=1)
    falling: Array = np.take_along_axis(reaction, order, axis=1)
    inside = np.take_along_axis(groups, order, axis=1)
    counted = np.where((falling < 0) | inside, falling, 0)
    at = np.maximum(groups.sum(axis=1) - 1, 0)
    return _walk(counted, falling)[np.arange(len(groups)), at]


def nulls(similarity: Array, prompts: Labels, grouping: Grouping, draws: int, seed: int) -> Nulls:
    """The level that each statistic has to pass: the quantile of its largest over all groups, by shuffles.

    push: chosen and rejected change places in pairs at random, a change of sign of columns of S, which leaves
    distances between prompts, and so all groups, as they are. turn: the replies of M0 and M1 change places at
    random, prompt by prompt (rows with one number in `prompts` together), and everything is grouped anew.
    """
    rng = np.random.default_rng([seed, 1])
    products = similarity @ similarity.T
    mean = means(similarity, grouping(distances(products)))
    order = np.argsort(-np.abs(mean), axis=1)
    falling = np.take_along_axis(mean, order, axis=1)
    pushes, turns = [0.0], [0.0]
    for _ in range(draws if len(mean) else 0):
        signs = rng.choice(np.array([-1, 1], np.float32), similarity.shape[1])
        pushes.append(float(_walk(falling * signs[order]).max()))
        sides = rng.choice(np.array([-1, 1], np.float32), prompts.max() + 1)[prompts]
        found = grouping(distances(products * sides[:, None] * sides))
        shuffled = similarity * sides[:, None]
        if len(found):
            turns.append(float(turn(shuffled, found, pairs_behind(means(shuffled, found))).max()))
    return Nulls(float(np.quantile(pushes, LEVEL)), float(np.quantile(turns, LEVEL)))


def habits(similarity: Array, groups: Flags, null: Nulls) -> list[tuple[Flags, Flags]]:
    """The prompts and pairs of each habit, the largest first; no prompt or pair is in two.

    Of the groups that pass both levels, and that lie in each other or apart, as the nodes of a tree do, those
    are taken that together have the most prompts x pairs x tightness^3, with tightness the mean similarity of
    a habit's prompts and pairs. The power keeps two habits from being reported as one, for which prompts x
    pairs x tightness^2 would be the same. Groups with mostly the same pairs behind them are joined. Of two
    that are not, but of which one has most of its pairs in common with the other, the smaller is taken for a
    part of the larger and left out. Any other pair behind two habits goes to the one it is more similar to.
    What does not pass the levels after that is left out too.
    """
    mean = means(similarity, groups)
    behind = pairs_behind(mean)
    size = _sizes(mean, groups, behind)
    passed = (push(mean) > null.push) & (turn(similarity, groups, behind) > null.turn) & (size > 0)
    taken: list[int] = []
    for one in sorted(np.flatnonzero(passed).tolist(), key=lambda one: int(groups[one].sum())):
        inside = [other for other in taken if (groups[one] & groups[other]).any()]
        if size[one] >= sum(size[other] for other in inside):
            taken = [other for other in taken if other not in inside] + [one]
    if not taken:
        return []
    found = np.array(_joined(similarity, [groups[one] for one in taken]))
    mean = means(similarity, found)
    behind = pairs_behind(mean)
    kept: list[int] = []
    for one in np.argsort(-_sizes(mean, found, behind), kind="stable").tolist():
        shared = [(behind[one] & behind[other]).sum() for other in kept]
        least = [min(behind[one].sum(), behind[other].sum()) for other in kept]
        if all(both <= SAME * few for both, few in zip(shared, least, strict=True)):
            kept.append(one)
    found, mean, behind = found[kept], mean[kept], behind[kept]
    behind &= np.where(behind, mean, -np.inf).argmax(axis=0) == np.arange(len(kept))[:, None]
    passed = (push(mean) > null.push) & (turn(similarity, found, behind) > null.turn) & behind.any(axis=1)
    return list(zip(found[passed], behind[passed], strict=True))


def _joined(similarity: Array, members: Sequence[Flags]) -> list[Flags]:
    """The groups, those with mostly the same pairs behind them made one."""
    found = list(members)
    while len(found) > 1:
        behind = pairs_behind(means(similarity, np.array(found)))
        overlap = {(i, j): jaccard(behind[i], behind[j]) for j in range(len(found)) for i in range(j)}
        (i, j), most = max(overlap.items(), key=lambda one: one[1])
        if most <= SAME:
            break
        found = [one for place, one in enumerate(found) if place not in (i, j)] + [found[i] | found[j]]
    return found


class Stability(NamedTuple):
    """How much is found again in bootstrap samples; NaN where there is nothing, or no sample."""

    habits: list[tuple[float, float]]  # mean Jaccard index of each one's prompts, and of its pairs
    prompts: float  # mean adjusted Rand index of which habit, or none, a prompt belongs to
    pairs: float  # and a pair


def stability(
    similarity: Array,
    prompts: Labels,
    found: Sequence[tuple[Flags, Flags]],
    grouping: Grouping,
    *,
    boot: int,
    seed: int,
) -> Stability:
    """Group again in samples of prompts (rows of one number in `prompts` together) and of pairs.

    A habit's match in a sample is the group that has the largest Jaccard index with what is there of its
    prompts; its pairs are compared with those behind that match.
    """
    from sklearn.metrics import adjusted_rand_score

    rng = np.random.default_rng([seed, 2])
    scores: list[list[tuple[float, float]]] = [[] for _ in found]
    rand: list[tuple[float, float]] = []
    for _ in range(boot if found else 0):
        rows, columns = drawn(prompts, rng), drawn(np.arange(similarity.shape[1]), rng)
        some = similarity[np.ix_(rows, columns)]
        there = grouping(distances(some @ some.T))
        behind = pairs_behind(means(some, there))
        labels = [np.zeros((2, len(one)), np.int64) for one in (rows, columns)]  # before, and found again
        for number, (members, its_pairs) in enumerate(found, start=1):
            before = members[rows], its_pairs[columns]
            match = [jaccard(before[0], one) for one in there] or [0.0]
            best = int(np.argmax(match))
            again = (there[best], behind[best]) if len(there) else tuple(np.zeros_like(one) for one in before)
            scores[number - 1].append((match[best], jaccard(before[1], again[1])))
            for label, one, other in zip(labels, before, again, strict=True):
                label[0, one], label[1, other] = number, number
        rand.append((adjusted_rand_score(*labels[0]), adjusted_rand_score(*labels[1])))
    mean = [(_mean([p for p, _ in kept]), _mean([d for _, d in kept])) for kept in scores]
    return Stability(mean, _mean([one for one, _ in rand]), _mean([one for _, one in rand]))


def drawn(units: Labels, rng: np.random.Generator) -> Labels:
    """The rows whose unit is in a bootstrap sample of the units, each once."""
    names = np.unique(units)
    return np.flatnonzero(np.isin(units, rng.choice(names, len(names))))


def concentration(mean: Array, behind: Flags, *, draws: int, seed: int) -> tuple[float, float]:
    """Share of the net push of all pairs that few behind a habit hold, and the least that chance allows.

    With h the sum of m over the pairs behind, at most the strongest quarter of all pairs, and r that over all
    others: h / (h + max(r, 0)), in [0, 1]. The second number has for r what 95 % of the shuffles of the
    others' labels do not exceed. Net, because shuffled labels leave every |m|: half of a habit's pairs would
    hold as much of the positive mass.
    """
    rng = np.random.default_rng([seed, 3])
    few = max(1, int(FEW * len(mean)))
    if behind.sum() > few:
        behind = behind & (mean >= np.sort(mean[behind])[-few])
    held, others = float(mean[behind].sum()), mean[~behind].astype(np.float64)
    rest = [float(others @ rng.choice([-1.0, 1.0], len(others))) for _ in range(max(draws, 1))]
    chance = float(np.quantile(rest, LEVEL))
    share, least = (held / max(held + max(left, 0), 1e-30) for left in (float(others.sum()), chance))
    return share, least


def measured(
    of_all: Array, members: Flags, behind: Flags, kept: Flags, *, draws: int, seed: int
) -> dict[str, float | bool]:
    """The figures of one group, with the pairs behind it among all, in the names of `clustering.HABITS`."""
    some = padded(of_all, kept)
    its_pairs = np.pad(behind[kept], (0, some.shape[1] - kept.sum()))[None]
    mean = means(of_all, members[None])[0]
    share, least = concentration(mean, behind, draws=draws, seed=seed)
    return {
        "prompts": int(members.sum()),
        "pairs": int(behind.sum()),
        "tightness": float(mean[behind].mean()) if behind.any() else 0.0,
        "push": float(push(mean[None, kept])[0]),
        "turn": float(turn(some, members[None], its_pairs)[0]),
        "concentration": share,
        "concentration_null": least,
        "diffuse": share < min(least, DIFFUSE),
    }


def jaccard(one: Flags, other: Flags) -> float:
    """What two sets have in common, of all that is in either; 0 for two empty ones."""
    return float((one & other).sum() / max((one | other).sum(), 1))


def _reaction(similarity: Array, behind: Flags) -> Array:
    """The mean similarity of every prompt to each group's pairs, (groups, prompts)."""
    weights = behind / np.maximum(behind.sum(axis=1, keepdims=True), 1)
    return weights.astype(np.float32) @ similarity.T


def _walk(steps: Array, lengths: Array | None = None) -> Array:
    squares = np.cumsum((steps if lengths is None else lengths) ** 2, axis=1, dtype=np.float64)
    return np.cumsum(steps, axis=1, dtype=np.float64) / np.sqrt(np.maximum(squares, 1e-30))


def _sizes(mean: Array, groups: Flags, behind: Flags) -> Array:
    pairs = behind.sum(axis=1)
    tightness = (mean * behind).sum(axis=1) / np.maximum(pairs, 1)
    return groups.sum(axis=1) * pairs * np.maximum(tightness, 0) ** 3


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
