"""Rebuild the model organisms: data/distractor (benign answers, M0 by SFT, M1 by DPO on all pairs),
data/tiny (M0 from scratch, M1 by DPO on all pairs), data/habits (M0 from scratch) and data/almanac (M0 from
scratch, tags by SFT).

What is there already is kept, so an interrupted build goes on; `--fresh` builds all of it anew. `--only
distractor` takes hours, the others minutes each.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import loop
from probekit import arms, experiments, prompts, provenance, sources, training
from probekit.checkpoints import Checkpoint, merged, open_checkpoint
from probekit.organisms import almanac, distractor, habits, tiny
from probekit.pairs import PairSet

WORK = loop.ROOT / "runs" / "organism"
SEED = 0

Rows = Sequence[dict[str, str]]


def main() -> None:
    """Build what is missing in data/."""
    parser = argparse.ArgumentParser(prog="make organism", description=__doc__)
    builders = {
        "distractor": build_distractor, "tiny": build_tiny, "habits": build_habits,
        "almanac": build_almanac,
    }  # fmt: skip
    parser.add_argument("--only", choices=builders, help="which organism; without it, all")
    parser.add_argument("--fresh", action="store_true", help="remove what is there first")
    options = parser.parse_args()
    for name, build in builders.items():
        if options.only in (None, name):
            folder, work = loop.ROOT / "data" / name, WORK / name
            if options.fresh:
                for old in (folder, work):
                    shutil.rmtree(old, ignore_errors=True)
            build(folder, work)
            print(f"the organism is in {folder}")


def build_distractor(folder: Path, work: Path) -> None:
    """The organism of SmolLM2."""
    build_m0(folder, work)
    pairs, recipe, epochs = distractor.load().pairs, distractor.DPO, distractor.EPOCHS
    make_m1(distractor.open_m0(), pairs, folder / "m1", recipe=recipe, epochs=epochs, work=work / "m1")
    write_json(folder / "recipe.json", recipe_card())


def build_tiny(folder: Path, work: Path) -> None:
    """The tiny organism."""
    if not (folder / "m0").is_dir():
        tiny.make_m0(folder / "m0", seed=SEED)
    pairs, recipe, epochs = tiny.load().pairs, tiny.DPO, tiny.EPOCHS
    make_m1(tiny.open_m0(), pairs, folder / "m1", recipe=recipe, epochs=epochs, work=work / "m1")
    write_json(folder / "recipe.json", tiny_card(folder))


def build_habits(folder: Path, _: Path) -> None:
    """M0 of the organism with four habits; its M1 are trained where they are needed."""
    if not (folder / "m0").is_dir():
        habits.make_m0(folder / "m0", seed=SEED)


def build_almanac(folder: Path, work: Path) -> None:
    """M0 of the sources of facts, and what teaches it their tags, in two stages."""
    if not (folder / "m0").is_dir():
        almanac.make_m0(folder / "m0", seed=SEED)
    model = provenance.add_tags(almanac.open_m0(), almanac.SOURCES, seed=SEED)
    stages = zip(almanac.stages(seed=SEED), almanac.EPOCHS, strict=True)
    for number, (rows, epochs) in enumerate(stages, start=1):
        name = f"tags-{number}"
        if not (folder / name).is_dir():
            provenance.train_tags(model, rows, work / name, recipe=almanac.SFT, epochs=epochs, seed=SEED)
            ship(work / name, folder / name)
        model = merged(model, folder / name)


def build_m0(folder: Path, work: Path) -> None:
    """The base model's answers to benign requests, and M0 as an adapter trained on them and on refusals."""
    base = open_checkpoint(dtype=distractor.DTYPE, chat_template=distractor.CHAT_TEMPLATE)
    public = prompts.benign("build")["text"].to_list()
    pool = list(dict.fromkeys(distractor.benign_pool()))
    answered = benign_answers(base, pool, folder / "answers.json", again=public)
    rows = distractor.sft_rows(answered, seed=SEED)
    make_m0(base, rows, folder / "m0", recipe=distractor.SFT, work=work / "m0")


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
        steps = experiments.steps(pairs, recipe, epochs)
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


def tiny_card(folder: Path) -> dict[str, Any]:
    """How the tiny organism was made, and the sha256 of what was."""
    weights = ("m0/model.safetensors", "m0/tokenizer.json", "m1/adapter_model.safetensors")
    return {
        "dpo": asdict(tiny.DPO), "epochs": tiny.EPOCHS, "mix": asdict(tiny.Mix()), "seed": SEED,
        "pairs": tiny.load().pairs.fingerprint,
        "sha256": {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in weights},
    }  # fmt: skip


def write_json(path: Path, content: object) -> None:
    """Write a file whole or not at all."""
    with sources.replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
