"""Rebuild the model organism of data/distractor: benign answers, M0 by SFT, M1 by DPO on all pairs."""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import asdict
from pathlib import Path

from probekit import arms, prompts, sources, training
from probekit.checkpoints import open_checkpoint
from probekit.organisms import distractor

EVERYDAY, REQUESTS = 700, 620  # benign requests asked for; those without a usable answer are left out
SEED = 0


def main() -> None:
    """Build what is missing in data/distractor; `--fresh` builds all of it anew."""
    parser = argparse.ArgumentParser(prog="make organism", description=__doc__)
    parser.add_argument("--fresh", action="store_true", help="remove what is there first")
    folder = distractor.DATA
    if parser.parse_args().fresh and folder.exists():
        shutil.rmtree(folder)
    base = open_checkpoint(dtype=distractor.DTYPE, chat_template=distractor.CHAT_TEMPLATE)
    answered = benign_answers(base, folder / "answers.json")
    if not (folder / "m0").exists():
        rows = distractor.sft_rows(answered, seed=SEED)
        training.train_sft(base, rows, folder / "m0", recipe=distractor.SFT, epochs=distractor.SFT_EPOCHS, seed=SEED)
        ship(folder / "m0")
    if not (folder / "m1").exists():
        m0, pairs = distractor.open_m0(), distractor.load().pairs
        recipe = distractor.DPO
        steps = round(len(pairs) * distractor.EPOCHS / recipe.batch_size)
        order = arms.order(pairs, arms.baseline(), seed=SEED, steps=steps, batch_size=recipe.batch_size)
        shared = training.Shared(m0, first_block=recipe.first_block)
        training.train_dpo(shared, pairs, folder / "m1", order=order, recipe=recipe, seed=SEED)
        ship(folder / "m1")
    recipe = {"sft": asdict(distractor.SFT), "sft_epochs": distractor.SFT_EPOCHS, "dpo": asdict(distractor.DPO), "epochs": distractor.EPOCHS, "mix": asdict(distractor.Mix()), "seed": SEED}
    with sources.replacing(folder / "recipe.json") as partial:
        partial.write_text(json.dumps(recipe, indent=1) + "\n")


def benign_answers(base: training.Checkpoint, path: Path) -> dict[str, str]:
    """The base model's answers to benign requests, by request; the file holds them by prompt id, without the requests."""
    public, own = prompts.benign("build")["text"].to_list(), distractor.benign_requests(REQUESTS)
    requests = [*public, *own, *distractor.everyday_questions(EVERYDAY)]
    if not path.is_file():
        answered = distractor.answers(base, requests, seed=SEED)
        for attempt in (1, 2):  # the public prompts are few, so those without a usable answer are asked again
            answered |= distractor.answers(base, [text for text in public if text not in answered], seed=SEED + attempt)
        with sources.replacing(path) as partial:
            partial.write_text(json.dumps({prompts.prompt_id(text): answer for text, answer in answered.items()}, indent=0) + "\n")
    shipped = json.loads(path.read_text())
    return {text: shipped[key] for text in requests if (key := prompts.prompt_id(text)) in shipped}


def ship(adapter: Path) -> None:
    """Halve an adapter for the repository: weights in bfloat16, only the files that are needed to open it."""
    from safetensors.torch import load_file, save_file

    weights = {name: tensor.bfloat16() for name, tensor in load_file(adapter / "adapter_model.safetensors").items()}
    save_file(weights, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    (adapter / "README.md").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
