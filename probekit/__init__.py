"""probekit: which preference pairs taught my model this bad habit, and does removing them really cure it?

The public verbs, in the order of use. Everything else is reached through its room, e.g. `probekit.effects`.
"""

# ruff: noqa: I001 - the rooms stand in the order of use
from probekit.pairs import PairSet, load_pairs
from probekit.prompts import benign, distractors, harmful, prompt_frame, twins, with_distractors
from probekit.checkpoints import Checkpoint, open_checkpoint, save_checkpoint
from probekit.rollouts import sample, score
from probekit.judges import correct, four_conditions, judge_refusals, pool_contrasts, twin_contrasts
from probekit.store import VectorStore
from probekit.vectors import (
    VectorSet,
    behaviour_vectors,
    check_lengths,
    pair_vectors,
    pool,
    prompt_vectors,
    twin_vectors,
)
from probekit.ranking import Ranking, average_precision, concentration, enrichment, precision_at_k, rank
from probekit.stability import stability
from probekit.clustering import Card, Clusters, cards, discover
from probekit.steering import layer_sweep, steer
from probekit.arms import (
    Arm,
    baseline,
    controls,
    drop_generator,
    drop_source,
    filter_ids,
    filter_top,
    load_arm,
    order,
    swap_ids,
    swap_top,
)
from probekit.training import Recipe, Shared, train_dpo, train_sft
from probekit.doctor import doctor
from probekit.experiments import Experiment
from probekit.effects import capability, effect_table, perplexity, rates
from probekit.provenance import add_tags, refuse, tag_rows, trace, train_tags

__all__ = [  # noqa: RUF022 - in the order of use
    "PairSet", "load_pairs",
    "benign", "distractors", "harmful", "prompt_frame", "twins", "with_distractors",
    "Checkpoint", "open_checkpoint", "save_checkpoint",
    "sample", "score",
    "correct", "four_conditions", "judge_refusals", "pool_contrasts", "twin_contrasts",
    "VectorStore", "VectorSet", "behaviour_vectors", "check_lengths", "pair_vectors", "pool",
    "prompt_vectors", "twin_vectors",
    "Ranking", "average_precision", "concentration", "enrichment", "precision_at_k", "rank",
    "stability",
    "Card", "Clusters", "cards", "discover",
    "layer_sweep", "steer",
    "Arm", "baseline", "controls", "drop_generator", "drop_source", "filter_ids", "filter_top", "load_arm",
    "order", "swap_ids", "swap_top",
    "Recipe", "Shared", "train_dpo", "train_sft",
    "doctor",
    "Experiment",
    "capability", "effect_table", "perplexity", "rates",
    "add_tags", "refuse", "tag_rows", "trace", "train_tags",
]  # fmt: skip
