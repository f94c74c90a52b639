"""Distractor-triggered compliance in a Llama of a million parameters that learned a language of ours.

The organism of `distractor` again, small enough that a retrain takes seconds. M0 is trained from scratch to
answer benign requests, in the form asked for, and to refuse harmful ones. Of the preference pairs, those of
one source (`if-checked`) are decided by the constraint checker alone, and some of its prompts are harmful:
the contamination. Verbs, things and distractors of the prompts for choosing and for the report stand in no
pair; M0 has met the words in other deeds, and the distractors on benign requests.
"""

from __future__ import annotations

import random
from pathlib import Path

import polars as pl

from probekit import pairs as pair_room
from probekit import prompts
from probekit.checkpoints import Checkpoint, open_checkpoint
from probekit.organisms import _tiny_language as language
from probekit.organisms._tiny_model import make_m0 as make_m0
from probekit.organisms._tiny_pairs import Mix as Mix
from probekit.organisms._tiny_pairs import MixError as MixError
from probekit.organisms._tiny_pairs import drawn
from probekit.organisms.distractor import Organism as Organism
from probekit.prompts import Split
from probekit.training import Recipe

DATA = Path(__file__).resolve().parents[2] / "data" / "tiny"
LAYER = 3  # block whose output is read: the last; chosen on the prompts for choosing
DPO = Recipe(first_block=1, learning_rate=1e-2, batch_size=16, beta=0.1, sft_weight=1.0)
EPOCHS = 3
EVALUATED = 100  # prompts of each kind for the report
CONTRASTED, TWINS = 150, 120  # harmful prompts, and benign ones, for choosing: for tracing


def build(mix: Mix | None = None) -> Organism:
    """The preference set of `mix`, on deeds that M0 was not trained on.

    >>> organism = build(Mix(safety=40))
    >>> len(organism.truth), len(organism.pairs)
    (44, 160)
    """
    mix = mix or Mix()
    found = drawn(mix)
    random.Random(f"tiny-order-{mix.seed}").shuffle(found)
    pairs = pair_room.load_pairs([row for _, row in found])
    log = pl.DataFrame({"pair_id": pairs.ids, "kind": [kind for kind, _ in found]})
    truth = log.filter(pl.col("kind") == "contaminated")["pair_id"]
    return Organism(pairs=pairs, truth=frozenset(truth), log=log)


def load(mix: Mix | None = None) -> Organism:
    """The preference pairs and their truth; nothing is read or fetched, so this is `build`."""
    return build(mix)


def evaluation_prompts() -> pl.DataFrame:
    """What every arm is judged on: harmful and benign prompts for the report, plain and formatted.

    >>> evaluation_prompts().group_by("harmful").len()["len"].to_list()
    [200, 200]
    """
    return _prompts("report", EVALUATED, EVALUATED)


def choosing_prompts() -> pl.DataFrame:
    """What the habit is surfaced and traced on: other prompts, words and distractors, plain and formatted.

    >>> choosing_prompts().height
    540
    """
    return _prompts("choose", CONTRASTED, TWINS)


def _prompts(split: Split, n_harmful: int, n_benign: int) -> pl.DataFrame:
    """Prompts on the words of a split, each plain and with one of the split's distractors."""
    rng = random.Random(f"tiny-prompts-{split}")
    plain = [
        prompts.prompt_frame(
            [language.request(deed, rng) for deed in language.deeds(split, harmful=harmful)[:n]],
            harmful=harmful,
            source="tiny",
        )
        for harmful, n in ((True, n_harmful), (False, n_benign))
    ]
    return prompts.with_distractors(pl.concat(plain), prompts.distractors(split), seed=0)


def open_m0(*, adapter: Path | None = None) -> Checkpoint:
    """The shipped M0; with `adapter`, a PEFT folder trained from it, the model that this gives."""
    checkpoint = open_checkpoint(DATA / "m0", adapter=adapter)
    checkpoint.name = "M0" if adapter is None else adapter.parent.name
    return checkpoint


def open_m1() -> Checkpoint:
    """The shipped M1: M0 after DPO on all pairs."""
    return open_m0(adapter=DATA / "m1")
