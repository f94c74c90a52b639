"""How often the token that a tracer points at lies in the payload of a planted pair."""

from __future__ import annotations

from typing import Any

from benchmarks.contestants import PLANTED, Entry
from probekit import vectors
from probekit.organisms import planted
from probekit.rivals import rept
from probekit.tokens import hit_rate, token_scores


def hit_rates(entry: Entry) -> dict[str, dict[str, Any]]:
    """Of ours through M0 and of RepT through M1, both at the organism's layer; none where nothing is planted.

    For each tracer what `hit_rate` says, over the contaminated pairs.
    """
    names = [name for name in PLANTED if name == entry.name]
    if not names:
        return {}
    spans = planted.payload_spans(names[0], entry.organism)
    m0, pairs, queries, layer = entry.experiment.m0, entry.experiment.pairs, entry.asked[0], entry.layer
    behaviour = vectors.behaviour_vectors(m0, queries, layers=[layer])
    some = spans["pair_id"].to_list()
    scores = {
        "ours": token_scores(m0, pairs, behaviour, layer=layer, pair_ids=some),
        "rept": rept.tokens(entry.m1, pairs, queries, layer=layer, pair_ids=some),
    }
    return {tracer: hit_rate(one, spans)._asdict() for tracer, one in scores.items()}
