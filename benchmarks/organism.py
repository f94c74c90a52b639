"""Rebuild the model organism of data/distractor: benign answers, M0 by SFT, M1 by DPO on all pairs.

What is there already is kept, so an interrupted build goes on; `--fresh` builds all of it anew.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import loop
from probekit import arms, prompts, sources, training
from probekit.checkpoints import Checkpoint, open_checkpoint
from probekit.organisms import distractor
from probekit.pairs import PairSet

WORK = loop.ROOT / "runs" / "organism"
SEED = 0

Rows = Sequence[dict[str, str]]


def main() -> None:
    """Build what is missing in data/distractor."""
    parser = argparse.ArgumentParser(prog="make organism", description=__doc__)
    parser.add_argument("--fresh", action="store_true", help="remove what is there first")
    if parser.parse_args().fresh:
        for old in (distractor.DATA, WORK):
            shutil.rmtree(old, ignore_errors=True)
    build_m0(distractor.DATA)
    pairs, recipe, epochs = distractor.load().pairs, distractor.DPO, distractor.EPOCHS
    m1 = distractor.DATA / "m1"
    make_m1(distractor.open_m0(), pairs, m1, recipe=recipe, epochs=epochs, work=WORK / "m1")
    write_json(distractor.DATA / "recipe.json", recipe_card())
    print(f"the organism is in {distractor.DATA}")


def build_m0(folder: Path) -> None:
    """The base model's answers to benign requests, and M0 as an adapter trained on them and on refusals."""
    base = open_checkpoint(dtype=distractor.DTYPE, chat_template=distractor.CHAT_TEMPLATE)
    public = prompts.benign("build")["text"].to_list()
    pool = list(dict.fromkeys(distractor.benign_pool()))
    answered = benign_answers(base, pool, folder / "answers.json", again=public)
    rows = distractor.sft_rows(answered, seed=SEED)
    make_m0(base, rows, folder / "m0", recipe=distractor.SFT, work=WORK / "m0")


def benign_answers(
    base: Checkpoint, requests: Sequence[str], path: Path, *, again: Sequence[str] = ()
) -> dict[str, str]:
    """The base model's answers to benign requests, by request; in the file, by prompt id only.

    again: requests that are asked twice more where no usable answer came, because there are few of them.
    """
    if not path.is_file():
        answered = distractor.answers(base, requests, seed=SEED)
        for attempt in (1, 2):
            if left := [text for text in again if text not in answered]:
                answered |= distractor.answers(base, left, temperature=0.7, seed=SEED + attempt)
        write_json(path, by_id(answered))
    kept = json.loads(path.read_text(encoding="utf-8"))
    return {text: kept[key] for text in requests if (key := prompts.prompt_id(text)) in kept}


def by_id(answered: Mapping[str, str]) -> dict[str, str]:
    """Answers by the id of their request, which itself is not shipped."""
    return {prompts.prompt_id(text): answer for text, answer in answered.items()}


def make_m0(base: Checkpoint, rows: Rows, out: Path, *, recipe: training.Recipe, work: Path) -> None:
    """One epoch of SFT of `base` on `rows`; the adapter is trained in `work` and shipped to `out`."""
    if not out.is_dir():
        ship(training.train_sft(base, rows, work, recipe=recipe, epochs=1, seed=SEED), out)


def make_m1(
    m0: Checkpoint, pairs: PairSet, out: Path, *, recipe: training.Recipe, epochs: int, work: Path
) -> None:
    """DPO of M0 on all pairs; the adapter is trained in `work` and shipped to `out`."""
    if not out.is_dir():
        steps = loop.steps(pairs, recipe, epochs)
        order = arms.order(pairs, arms.baseline(), seed=SEED, steps=steps, batch_size=recipe.batch_size)
        shared = training.Shared(m0, first_block=recipe.first_block)
        ship(training.train_dpo(shared, pairs, work, order=order, recipe=recipe, seed=SEED), out)


def ship(adapter: Path, out: Path) -> None:
    """Copy what is needed to open an adapter, its weights halved to bfloat16, all or nothing."""
    from safetensors.torch import load_file, save_file

    weights = {name: one.bfloat16() for name, one in load_file(adapter / "adapter_model.safetensors").items()}
    with sources.replacing(out) as partial:
        partial.mkdir()
        save_file(weights, partial / "adapter_model.safetensors", metadata={"format": "pt"})
        shutil.copy(adapter / "adapter_config.json", partial)


def recipe_card() -> dict[str, Any]:
    """How the organism was made."""
    return {
        "sft": asdict(distractor.SFT), "dpo": asdict(distractor.DPO), "epochs": distractor.EPOCHS,
        "mix": asdict(distractor.Mix()), "seed": SEED,
    }  # fmt: skip


def write_json(path: Path, content: object) -> None:
    """Write a file whole or not at all."""
    with sources.replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
