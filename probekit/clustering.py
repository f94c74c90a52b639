"""Discovery: habits that nobody named, from what training changed in replies and what the pairs teach.

S = B D^T is the cosine of each behaviour vector, M1's reply minus M0's own on one prompt of a pool, with each
pair vector (paper, section 3). Prompts with equal rows react alike, pairs with equal columns teach alike. A
habit is a group of prompts and the pairs whose training pushes toward what these have in common; it is
reported only if shuffles of the data do not give the like (see `discover`). The groups and their order are
for a person to look at: `cards` says what is in them, and a name for one is a guess until somebody read it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import polars as pl

from probekit._cards import Card, ClusteringError, card, cards
from probekit.vectors import VectorSet

if TYPE_CHECKING:
    import numpy as np
    import torch

    from probekit._clusters_habits import Grouping, Nulls
    from probekit._clusters_trees import Array, Flags, Labels, Tree

__all__ = [
    "HABITS",
    "PAIRS",
    "PROMPTS",
    "Card",
    "ClusteringError",
    "Clusters",
    "Linkage",
    "card",
    "cards",
    "cut",
    "discover",
]

Linkage = Literal["ward", "hdbscan"]
MOST_PAIRS = 10_000  # left after pruning; their distances take 1 GB

_SIDE = {
    "largest": pl.Float64(),  # the largest |S| in its row or column of S
    "kept": pl.Boolean(),  # not pruned
    "place": pl.Int64(),  # from 0, in the tree's drawing; null where pruned
    "cluster": pl.Int64(),  # from 0, of the flat cut; null where pruned, or in none
    "habit": pl.Int64(),  # from 1; null for none
}
PROMPTS = pl.Schema({"contrast_id": pl.String(), "prompt_id": pl.String(), **_SIDE})
"""The columns of `Clusters.prompts`."""
PAIRS = pl.Schema({"pair_id": pl.String(), **_SIDE})
"""The columns of `Clusters.pairs`."""
HABITS = pl.Schema(
    {
        "habit": pl.Int64(),  # from 1, by prompts x pairs x tightness^3
        "prompts": pl.Int64(),  # behaviour vectors in it
        "pairs": pl.Int64(),  # pairs behind it
        "tightness": pl.Float64(),  # mean of S over these prompts with these pairs
        "push": pl.Float64(),  # do the strongest pairs point one way? Above `Clusters.push_null`
        "turn": pl.Float64(),  # do the prompts that react most turn one way? Above `Clusters.turn_null`
        "stability": pl.Float64(),  # mean Jaccard index of its prompts over bootstrap samples, 0 to 1
        "pair_stability": pl.Float64(),  # and of its pairs
        "concentration": pl.Float64(),  # share of the net push of all pairs that few behind it hold
        "concentration_null": pl.Float64(),  # and the least that chance among the other pairs would leave it
        "diffuse": pl.Boolean(),  # below both that and a half: removing these pairs will not cure it
    }
)
"""The columns of `Clusters.habits`."""

_FIRM = ("stability", "pair_stability")
_GIVEN = ("prompt_clusters", "pair_clusters")


@dataclass(frozen=True, eq=False, repr=False)
class Clusters:
    """What `discover` found: `habits`, a row each (`HABITS`); `prompts` (`PROMPTS`) and `pairs` (`PAIRS`).

    similarity: S, float32 (prompts, pairs), in [-1, 1], with everything that was pruned. prompt_tree,
    pair_tree: Ward trees of what was kept, scipy's linkage matrices. push_null, turn_null: levels that a
    habit has to pass. adjusted_rand: of which habit, or none, the prompts and the pairs belong to, mean over
    bootstrap samples; None without habits. layers: what S was made of. seed: of all draws.
    """

    similarity: torch.Tensor
    prompts: pl.DataFrame
    pairs: pl.DataFrame
    habits: pl.DataFrame
    prompt_tree: np.ndarray[Any, Any]
    pair_tree: np.ndarray[Any, Any]
    push_null: float
    turn_null: float
    adjusted_rand: tuple[float, float] | None
    layers: tuple[int, ...]
    threshold: float
    method: Linkage
    seed: int

    def __post_init__(self) -> None:
        shape = (self.prompts.height, self.pairs.height)
        if tuple(self.similarity.shape) != shape:
            raise ClusteringError(f"S has the shape {tuple(self.similarity.shape)}, but the frames {shape}.")

    def __len__(self) -> int:
        return self.habits.height

    def __repr__(self) -> str:
        rows, columns = (int(side["kept"].sum()) for side in (self.prompts, self.pairs))
        layers = f"layer {self.layers[0]}" if len(self.layers) == 1 else f"layers {self.layers}"
        return (
            f"Clusters({len(self)} habits; {rows} of {self.prompts.height} prompts, {columns} of "
            f"{self.pairs.height} pairs at {self.threshold} or above, {self.method}, {layers})"
        )

    @property
    def report(self) -> pl.DataFrame:
        """What became of every prompt and pair: columns what, prompts, pairs."""
        sides = (self.prompts, self.pairs)
        lines = [
            ("found", pl.lit(True)),
            ("zero vector", pl.col("largest") == 0),
            (f"all |S| below {self.threshold}", ~pl.col("kept") & (pl.col("largest") > 0)),
            ("kept", pl.col("kept")),
            ("in a habit", pl.col("habit").is_not_null()),
        ]
        rows = [(what, *(side.filter(which).height for side in sides)) for what, which in lines]
        return pl.DataFrame(
            rows, {"what": pl.String(), "prompts": pl.Int64(), "pairs": pl.Int64()}, orient="row"
        )

    def contrast_ids(self, habit: int) -> list[str]:
        """The contrasts of a habit. Raises ClusteringError if there is none of this number."""
        return self._of(self.prompts, habit)["contrast_id"].to_list()

    def pair_ids(self, habit: int) -> list[str]:
        """The pairs behind a habit. Raises ClusteringError if there is none of this number."""
        return self._of(self.pairs, habit)["pair_id"].to_list()

    def _of(self, side: pl.DataFrame, habit: int) -> pl.DataFrame:
        if habit not in self.habits["habit"]:
            raise ClusteringError(f"There is no habit {habit}; {len(self)} were found, numbered from 1.")
        return side.filter(habit=habit)


def discover(
    behaviour: VectorSet,
    pairs: VectorSet,
    *,
    asked: tuple[VectorSet, VectorSet] | None = None,
    layer: int | None = None,
    threshold: float = 0.4,
    method: Linkage = "ward",
    prompt_clusters: int | None = None,
    pair_clusters: int | None = None,
    smallest: int = 5,
    draws: int = 100,
    boot: int = 20,
    seed: int = 0,
) -> Clusters:
    """Habits that the training installed, and the pairs behind each, with no labels given.

    behaviour: a row for each prompt of a pool, from `judges.pool_contrasts`. asked: the `prompt_vectors` of
    the contrasts and of the pairs. With them every entry of S is multiplied by how alike the two prompts are,
    max(0, cosine) from the pairs' mean prompt: what a pair teaches holds where the like is asked. (The
    gradient of a linear layer is the outer product of its input and of the gradient at its output, and the
    cosine of two outer products is the product of the cosines.) Without them, pairs that teach to answer
    harmless requests stand behind an answer to a harmful one. layer: None joins all layers, side by side, and
    then makes every row a unit vector. threshold: prompts and pairs whose every |S| is below it are left out,
    and counted in `Clusters.report`; products are smaller than cosines, so take 0.1 or so if much is.

    method: how prompts are grouped. "ward": every node of the Ward tree of the rows of S is a group, since no
    one height fits a habit of few prompts and one of many; with prompt_clusters, only the clusters of that
    cut. "hdbscan": scikit-learn's clusters of the rows. The flat clusters of the frames are HDBSCAN's, or
    cuts of the trees into as many as asked for; with None, into as many as have the largest silhouette.

    The pairs behind a group are those whose mean in S with its prompts stands out (Otsu's cut of the
    positive means). A group of `smallest` prompts or more is a habit if it passes two levels, each the 95 %
    quantile of the largest value over all groups in `draws` shuffles:
    - push, shuffling which reply of a pair is chosen: the pairs that matter most to the group point one way;
    - turn, shuffling which reply to a prompt is M1's: the prompts that react most to these pairs are in the
      group, and turn one way.
    Both, because each alone is passed by accident: pairs that share a direction point one way from any group
    of prompts, and M1 may have habits that these pairs do not teach. The mean itself is no test: if
    half of a habit's labels are swapped, the other half is as tight. `habits` says how it is chosen between
    groups that lie in each other, and that no prompt or pair is in two habits.

    boot: bootstrap samples for the stability. Same seed, same result. The levels are about 2.5 and 3.5, so
    that a habit that fewer than six prompts show, or fewer than a dozen pairs teach, is not reported however
    clear it is. Pairs that only look like the cause, being as close to the behaviour, stand among those
    behind it: rank with a control (`Card.ranking`) to part them.

    Raises ClusteringError if the sets come from different checkpoints, layers or chat settings, are empty, or
    an argument is out of range.

    >>> import torch
    >>> toward = torch.eye(2).repeat_interleave(12, dim=0).unsqueeze(1)
    >>> behaviour = VectorSet([f"b{row}" for row in range(24)], (3,), toward, "0123", kind="behaviour")
    >>> pairs = VectorSet([f"d{row}" for row in range(24)], (3,), toward, "0123")
    >>> discover(behaviour, pairs, draws=20, boot=2).habits.select("prompts", "pairs").rows()
    [(12, 12), (12, 12)]
    """
    import torch

    from probekit import _clusters_trees as trees

    layers = _checked(behaviour, pairs, layer)
    if asked is not None:
        _check_asked(behaviour, pairs, asked, layers)
    counts = dict(zip(_GIVEN, ((prompt_clusters, 1), (pair_clusters, 1)), strict=True))
    others = {"smallest": (smallest, 2), "draws": (draws, 20), "boot": (boot, 0)}
    _check_numbers(threshold, method, {**counts, **others})
    whole = trees.cosines(behaviour, pairs, layers)
    if asked is not None:
        whole *= trees.alike(*asked, layers)
    largest = [abs(whole).max(axis=axis) for axis in (1, 0)]
    kept = [(one >= threshold) & (one > 0) for one in largest]
    rows, columns = kept
    if columns.sum() > MOST_PAIRS:
        raise ClusteringError(
            f"{columns.sum():,} pairs have a |S| of {threshold} or more, and at most {MOST_PAIRS:,} can "
            "be clustered. Raise the threshold, or take a sample of the pairs."
        )
    some = whole[rows][:, columns]
    apart = [trees.distances(one @ one.T) for one in (some, some.T)]
    drawn = [trees.ward(one) for one in apart]
    labels = [
        trees.density_clusters(one, smallest) if method == "hdbscan" else _flat(tree, count, one, seed)
        for one, tree, count in zip(apart, drawn, (prompt_clusters, pair_clusters), strict=True)
    ]
    prompt_ids = behaviour.prompt_ids or behaviour.ids
    units = trees.numbered([one for one, there in zip(prompt_ids, rows.tolist(), strict=True) if there])
    grouping = _grouping(method, prompt_clusters, smallest, units)
    found = _find(whole[rows], columns, units, grouping, draws=draws, boot=boot, seed=seed)
    facts = [
        _facts(*of, [one[side] for one in found.members])
        for side, of in enumerate(zip(largest, kept, drawn, labels, strict=True))
    ]
    return Clusters(
        similarity=torch.from_numpy(whole),
        prompts=pl.DataFrame(
            {"contrast_id": behaviour.ids, "prompt_id": prompt_ids, **facts[0]}, schema=PROMPTS
        ),
        pairs=pl.DataFrame({"pair_id": pairs.ids, **facts[1]}, schema=PAIRS),
        habits=found.table,
        prompt_tree=drawn[0],
        pair_tree=drawn[1],
        push_null=found.null.push,
        turn_null=found.null.turn,
        adjusted_rand=found.adjusted_rand,
        layers=layers,
        threshold=threshold,
        method=method,
        seed=seed,
    )


def cut(clusters: Clusters, *, prompts: int | None = None, pairs: int | None = None) -> Clusters:
    """The same, with flat clusters of another cut of its Ward trees; habits stay as they are.

    prompts, pairs: how many clusters; None leaves a side as it is. Raises ClusteringError unless they are
    from 1 to the number kept.

    >>> import torch
    >>> toward = torch.eye(3).repeat_interleave(4, dim=0).unsqueeze(1)
    >>> behaviour = VectorSet([f"b{row}" for row in range(12)], (3,), toward, "0123", kind="behaviour")
    >>> found = discover(behaviour, VectorSet([f"d{row}" for row in range(12)], (3,), toward, "0123"))
    >>> cut(found, prompts=2).prompts["cluster"].n_unique()
    2
    """
    from probekit import _clusters_trees as trees

    def again(name: str, side: pl.DataFrame, tree: Tree, count: int | None) -> pl.DataFrame:
        if count is None:
            return side
        there = side["kept"].to_list()
        if not 1 <= count <= sum(there):
            raise ClusteringError(f"{count} clusters of {name} were asked for; {sum(there)} {name} are kept.")
        found = iter(trees.cut(tree, count).tolist())
        labels = [next(found) if one else None for one in there]
        return side.with_columns(pl.Series("cluster", labels, pl.Int64))

    return replace(
        clusters,
        prompts=again("prompts", clusters.prompts, clusters.prompt_tree, prompts),
        pairs=again("pairs", clusters.pairs, clusters.pair_tree, pairs),
    )


class _Found(NamedTuple):
    """What of the kept prompts and pairs is in each habit, the table of them, and what they had to pass."""

    members: list[tuple[Flags, Flags]]
    table: pl.DataFrame
    null: Nulls
    adjusted_rand: tuple[float, float] | None


def _find(
    of_all: Array, columns: Flags, units: Labels, grouping: Grouping, *, draws: int, boot: int, seed: int
) -> _Found:
    """Habits in S of the kept prompts and all pairs, of which those in `columns` are kept."""
    import numpy as np

    from probekit import _clusters_habits as statistics
    from probekit._clusters_trees import distances

    if min(len(of_all), columns.sum()) < 2:
        return _Found([], HABITS.to_frame(), statistics.Nulls(0.0, 0.0), None)
    some = statistics.padded(of_all, columns)
    null = statistics.nulls(some, units, grouping, draws, seed)
    members = statistics.habits(some, grouping(distances(some @ some.T)), null)
    firm = statistics.stability(some, units, members, _every_node, boot=boot, seed=seed)
    rows = []
    for number, (its_prompts, its_pairs) in enumerate(members, start=1):
        behind = np.zeros(of_all.shape[1], bool)
        behind[columns] = its_pairs[: columns.sum()]
        figures = statistics.measured(of_all, its_prompts, behind, columns, draws=draws, seed=seed)
        rows.append({"habit": number, **dict(zip(_FIRM, firm.habits[number - 1], strict=True)), **figures})
    table = pl.DataFrame(rows, schema=HABITS)
    return _Found(members, table, null, (firm.prompts, firm.pairs) if members and boot else None)


def _grouping(method: Linkage, count: int | None, smallest: int, units: Labels) -> Grouping:
    """How kept prompts are grouped, whatever their distances: into groups of `smallest` prompts or more."""
    from probekit import _clusters_trees as trees

    def grouped(apart: Array) -> Flags:
        if method == "hdbscan":
            found = trees.groups(trees.density_clusters(apart, smallest))
        elif count is not None:
            found = trees.groups(trees.cut(trees.ward(apart), min(count, len(apart))))
        else:
            found = trees.nodes(trees.ward(apart))
        return found[trees.different(found, units) >= smallest]

    return grouped


def _every_node(apart: Array) -> Flags:
    from probekit import _clusters_trees as trees

    return trees.nodes(trees.ward(apart))


def _flat(tree: Tree, count: int | None, apart: Array, seed: int) -> Labels:
    from probekit import _clusters_trees as trees

    return trees.best_cut(tree, apart, seed) if count is None else trees.cut(tree, min(count, len(apart)))


def _facts(
    largest: Array, kept: Flags, tree: Tree, labels: Labels, members: Sequence[Flags]
) -> dict[str, Any]:
    """The columns of `_SIDE`, from what is known of the kept rows."""
    import numpy as np

    from probekit._clusters_trees import leaves

    where = np.flatnonzero(kept).tolist()
    columns: list[list[int | None]] = [[None] * len(kept) for _ in range(3)]
    place, cluster, habit = columns
    for order, row in enumerate(leaves(tree) if where else []):
        place[where[row]] = order
    for row, label in zip(where, labels.tolist(), strict=bool(where)):
        cluster[row] = None if label < 0 else label
    for number, one in enumerate(members, start=1):
        for row in np.flatnonzero(one).tolist():
            habit[where[row]] = number
    return {
        "largest": largest.astype(float), "kept": kept, "place": place, "cluster": cluster, "habit": habit,
    }  # fmt: skip


def _checked(behaviour: VectorSet, pairs: VectorSet, layer: int | None) -> tuple[int, ...]:
    """The layers to compare at."""
    for name, vectors in (("behaviour", behaviour), ("pair", pairs)):
        if not len(vectors):
            raise ClusteringError(f"There are no {name} vectors to cluster.")
        if layer is not None and layer not in vectors.layers:
            raise ClusteringError(f"Layer {layer} was not read for {vectors!r}.")
    alike = ("fingerprint", "chat") if layer is not None else ("fingerprint", "chat", "layers")
    if other := [name for name in alike if getattr(behaviour, name) != getattr(pairs, name)]:
        raise ClusteringError(
            f"The behaviour vectors and the pair vectors differ in {' and '.join(other)}: {behaviour!r}, "
            f"{pairs!r}. Read both through one checkpoint, in the same way."
        )
    return behaviour.layers if layer is None else (layer,)


def _check_asked(
    behaviour: VectorSet, pairs: VectorSet, asked: tuple[VectorSet, VectorSet], layers: tuple[int, ...]
) -> None:
    for name, vectors, prompts in zip(("behaviour", "pair"), (behaviour, pairs), asked, strict=True):
        alike = {
            "ids": vectors.ids == prompts.ids,
            "fingerprint": vectors.fingerprint == prompts.fingerprint,
            "chat": vectors.chat == prompts.chat,
            "layers": not set(layers) - set(prompts.layers),
        }
        if other := [what for what, same in alike.items() if not same]:
            raise ClusteringError(
                f"The {name} vectors and their prompts' differ in {' and '.join(other)}: {vectors!r}, "
                f"{prompts!r}. Give asked=(prompt_vectors of the contrasts, prompt_vectors of the pairs)."
            )


def _check_numbers(threshold: float, method: str, counts: dict[str, tuple[int | None, int]]) -> None:
    if method not in get_args(Linkage):
        raise ClusteringError(f"There is no method {method!r}; choose one of {', '.join(get_args(Linkage))}.")
    if not 0 <= threshold < 1:
        raise ClusteringError(f"threshold = {threshold}; it is a |S|, from 0 to below 1.")
    for name, (count, least) in counts.items():
        if count is not None and count < least:
            raise ClusteringError(f"{name} = {count}; it is a number from {least} on.")
    if method == "hdbscan" and any(counts[name][0] is not None for name in _GIVEN):
        raise ClusteringError(f"HDBSCAN finds the number of clusters; leave out {' and '.join(_GIVEN)}.")
