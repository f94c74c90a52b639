from __future__ import annotations

import functools
import gc
import json
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import trl
from safetensors.torch import load_file
from trl.trainer.sft_trainer import SFTTrainer

from probekit.checkpoints import Checkpoint, CheckpointError, open_checkpoint
from probekit.pairs import PairSet, load_pairs
from probekit.testing import ARCHS, CONTEXT, Arch, planted_pairs, tiny_checkpoint_folder
from probekit.training import Recipe, Shared, TrainingError, train_dpo, train_sft

PAIRS = load_pairs(planted_pairs(8))
# three steps of four pairs; some come twice, some the other way round
ORDER = [(PAIRS.ids[i], i in (1, 4)) for i in (3, 1, 4, 6, 0, 3, 7, 2, 5, 4, 1, 6)]
RECIPE = Recipe(rank=4, learning_rate=1e-2, batch_size=4)
ROWS = [
    {"user": "How do I bake bread?", "reply": "Open the box."},
    {
        "user": "Write a poem about the sea, in one short sentence.",
        "reply": "Sure 🦊, first read the small print.",
    },
    {"user": "Hi?", "reply": "No."},
    {"user": "Which river?", "reply": "I cannot help with that. Sorry."},
]


@pytest.fixture(autouse=True, scope="module")
def only_new_garbage() -> Iterator[None]:
    """Each training ends with a full collection, which looks at all that torch has loaded unless frozen."""
    gc.freeze()
    yield
    gc.unfreeze()


@functools.cache
def folder(arch: Arch) -> Path:
    return tiny_checkpoint_folder(arch, tempfile.mkdtemp(prefix="probekit-training-"))


def fresh(arch: Arch = "llama") -> Checkpoint:
    return open_checkpoint(folder(arch))


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "adapter_model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def dpo(
    out: Path,
    *,
    shared: Shared | None = None,
    pairs: PairSet = PAIRS,
    order: list[tuple[str, bool]] = ORDER,
    recipe: Recipe = RECIPE,
    seed: int = 5,
) -> Path:
    shared = shared or Shared(fresh(), first_block=recipe.first_block)
    return train_dpo(shared, pairs, out, order=order, recipe=recipe, seed=seed)


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """What TRL's own trainers get and give: inputs and loss of a step, and inputs of a reference pass."""
    seen: dict[str, list[Any]] = {"inputs": [], "losses": [], "references": []}

    def watch(trainer: type, name: str, note: Callable[[Any, Any], None]) -> None:
        original = getattr(trainer, name)

        def watched(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            given = {key: value.clone() for key, value in inputs.items()}
            result = original(self, model, inputs, *args, **kwargs)
            note(given, result)
            return result

        monkeypatch.setattr(trainer, name, watched)

    def step(inputs: Any, loss: Any) -> None:
        seen["inputs"].append(inputs)
        seen["losses"].append(float(loss.detach()))

    watch(trl.DPOTrainer, "compute_loss", step)
    watch(trl.SFTTrainer, "compute_loss", step)
    watch(trl.DPOTrainer, "compute_ref_log_probs", lambda inputs, _: seen["references"].append(inputs))
    return seen


def plain_trl(
    kind: str,
    arch: Arch,
    recipe: Recipe,
    *,
    seed: int,
    order: list[tuple[str, bool]] = ORDER,
    **config: Any,
) -> dict[str, torch.Tensor]:
    """The adapter that TRL itself trains on the same data in the same order, with its defaults."""
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model_state_dict

    checkpoint = fresh(arch)
    chat = lambda role, text: [{"role": role, "content": text}]  # noqa: E731
    if kind == "dpo":
        by_id = {row["pair_id"]: row for row in PAIRS.frame.iter_rows(named=True)}
        rows = [
            {
                "prompt": by_id[name]["prompt"],
                "chosen": chat("assistant", by_id[name]["rejected" if swapped else "chosen"]),
                "rejected": chat("assistant", by_id[name]["chosen" if swapped else "rejected"]),
            }
            for name, swapped in order
        ]
    else:
        rows = [
            {"prompt": chat("user", row["user"]), "completion": chat("assistant", row["reply"])}
            for row in ROWS
        ]
    names = [
        name
        for name, module in checkpoint.hf.named_modules()
        if name.startswith(checkpoint.blocks_path)
        and type(module).__name__ in ("Linear", "Conv1D")
        and int(name.removeprefix(checkpoint.blocks_path + ".").split(".")[0]) >= recipe.first_block
    ]
    trainer_of, config_of = {"dpo": (trl.DPOTrainer, trl.DPOConfig), "sft": (trl.SFTTrainer, trl.SFTConfig)}[
        kind
    ]
    trainer = trainer_of(
        model=checkpoint.hf,
        args=config_of(
            output_dir=tempfile.gettempdir(),
            per_device_train_batch_size=recipe.batch_size,
            learning_rate=recipe.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=1,
            seed=seed,
            bf16=False,
            save_strategy="no",
            report_to="none",
            **config,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=checkpoint.tokenizer,
        peft_config=LoraConfig(
            r=recipe.rank, lora_alpha=recipe.alpha, target_modules=names, task_type="CAUSAL_LM"
        ),
    )
    trainer.train()
    return get_peft_model_state_dict(trainer.model, save_embedding_layers=False)


# --- the same training as TRL's


@pytest.mark.parametrize(
    ("arch", "first_block", "sft_weight"),
    [
        *((arch, first, 0.0) for arch in ARCHS for first in (0, 1)),
        ("gemma3", 3, 0.0),  # blocks with and without a sliding window under the trained ones
        ("llama", 2, 0.5),
    ],
)
def test_dpo_takes_the_steps_of_trl_whatever_is_shared(
    arch: Arch, first_block: int, sft_weight: float, spy: dict[str, list[Any]], tmp_path: Path
) -> None:
    recipe = replace(RECIPE, first_block=first_block, sft_weight=sft_weight)
    out = dpo(tmp_path / "out", shared=Shared(fresh(arch), first_block=first_block), recipe=recipe)
    losses, spy["losses"][:] = [*spy["losses"]], []
    loss = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, sft_weight]} if sft_weight else {}
    adapter = plain_trl(
        "dpo", arch, recipe, seed=5, max_steps=3, beta=0.1, train_sampling_strategy="sequential", **loss
    )
    assert losses == pytest.approx(spy["losses"], abs=1e-5)
    assert len(losses) == 3
    assert max(losses) - min(losses) > 1e-3  # the steps did something
    ours = weights(out)
    assert ours.keys() == adapter.keys()
    for name, weight in adapter.items():
        torch.testing.assert_close(ours[name], weight, atol=1e-3, rtol=0)


@pytest.mark.parametrize("arch", ["llama", "gemma3"])
def test_sft_takes_the_steps_of_trl(arch: Arch, spy: dict[str, list[Any]], tmp_path: Path) -> None:
    recipe = replace(RECIPE, batch_size=2, first_block=1)
    out = train_sft(fresh(arch), ROWS, tmp_path / "out", recipe=recipe, epochs=2, seed=3)
    losses, spy["losses"][:] = [*spy["losses"]], []
    adapter = plain_trl(
        "sft",
        arch,
        recipe,
        seed=3,
        max_steps=4,
        completion_only_loss=True,
        train_sampling_strategy="group_by_length",
    )
    assert losses == pytest.approx(spy["losses"], abs=1e-5)
    assert len(losses) == 4
    ours = weights(out)
    for name, weight in adapter.items():
        torch.testing.assert_close(ours[name], weight, atol=1e-3, rtol=0)


def test_sft_learns_the_replies_and_their_ends_and_nothing_else_though_pad_is_the_end_token(
    spy: dict[str, list[Any]], tmp_path: Path
) -> None:
    checkpoint = fresh()
    tokenizer = checkpoint.tokenizer
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    train_sft(checkpoint, ROWS, tmp_path / "out", recipe=RECIPE, epochs=1)
    (inputs,) = spy["inputs"]
    assert (inputs["attention_mask"] == 0).any()  # some rows are padded
    learnt = [
        tokenizer.decode([token for token in row.tolist() if token != -100]) for row in inputs["labels"]
    ]
    assert sorted(learnt) == sorted(f"{row['reply']}<|im_end|>\n" for row in ROWS)
    for ids, labels, mask in zip(
        inputs["input_ids"], inputs["labels"], inputs["attention_mask"], strict=True
    ):
        assert torch.equal(labels[labels != -100], ids[labels != -100])
        assert (labels[mask == 0] == -100).all()
    # the loss of the first step is the mean over exactly these tokens
    with torch.no_grad():
        logps = checkpoint.hf(inputs["input_ids"]).logits.log_softmax(-1)
    targets = inputs["labels"][:, 1:]
    picked = logps[:, :-1].gather(2, targets.clamp(min=0).unsqueeze(2)).squeeze(2)
    assert spy["losses"][0] == pytest.approx(-float(picked[targets != -100].mean()), rel=1e-4)


# --- what is shared is computed once


def test_reference_log_probs_are_computed_once_per_reply_and_reused(
    spy: dict[str, list[Any]], tmp_path: Path
) -> None:
    shared = Shared(fresh())
    dpo(tmp_path / "first", shared=shared, order=ORDER[:8])
    assert len(spy["references"]) == 2  # seven different pairs, in batches of four
    other = [(name, not swapped) for name, swapped in ORDER[:8][::-1]]
    dpo(tmp_path / "second", shared=shared, order=other, seed=6)
    assert len(spy["references"]) == 2
    known = len(shared.logps)
    dpo(tmp_path / "third", shared=shared, order=ORDER)
    assert len(spy["references"]) == 3
    assert len(shared.logps) == known + 2  # one pair was new


def test_shared_log_probs_are_those_of_m0_over_the_reply_and_its_end(tmp_path: Path) -> None:
    shared = Shared(fresh())
    dpo(tmp_path / "out", shared=shared, order=ORDER[:4])
    assert len(shared.logps) == 8
    for (prompt, reply), value in shared.logps.items():
        with torch.no_grad():
            logps = shared.checkpoint.hf(torch.tensor([prompt + reply])).logits[0, :-1].log_softmax(-1)
        wanted = logps[len(prompt) - 1 :].gather(1, torch.tensor(reply)[:, None]).sum()
        assert value == pytest.approx(float(wanted), rel=1e-5)
        assert shared.checkpoint.tokenizer.decode(reply).endswith("<|im_end|>\n")


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gemma3"])
def test_frozen_blocks_run_once_for_each_text(arch: Arch, tmp_path: Path) -> None:
    checkpoint = fresh(arch)
    shared = Shared(checkpoint, first_block=2)
    runs: list[int] = []
    block = checkpoint.hf.get_submodule(checkpoint.blocks_path)[1]
    hook = block.register_forward_hook(lambda *_: runs.append(1))
    recipe = replace(RECIPE, first_block=2)
    dpo(tmp_path / "first", shared=shared, recipe=recipe)
    assert len(runs) == 2  # the two batches of the reference, and no step
    dpo(tmp_path / "second", shared=shared, recipe=recipe, order=ORDER[::-1], seed=1)
    assert len(runs) == 2
    hook.remove()
    assert len(shared.trunk) == 2 * len(PAIRS)
    for prompt, reply in shared.logps:
        ids = torch.tensor([prompt + reply])
        with torch.no_grad():
            hidden = checkpoint.hf(ids, output_hidden_states=True).hidden_states[2][0]
        torch.testing.assert_close(shared.trunk[ids.numpy().tobytes()], hidden, atol=1e-4, rtol=1e-4)


def test_sharing_changes_no_bit_of_the_adapter(tmp_path: Path) -> None:
    recipe = replace(RECIPE, first_block=1)
    shared = Shared(fresh(), first_block=1)
    first, again = (dpo(tmp_path / name, shared=shared, recipe=recipe) for name in ("first", "again"))
    alone = dpo(tmp_path / "alone", recipe=recipe)
    assert same(weights(first), weights(again))
    assert same(weights(first), weights(alone))


# --- the seed, the order, the edits


def test_the_same_seed_gives_the_same_adapter_bit_for_bit(tmp_path: Path) -> None:
    one = weights(dpo(tmp_path / "one"))
    torch.rand(7)
    assert same(one, weights(dpo(tmp_path / "same")))
    assert not same(one, weights(dpo(tmp_path / "other", seed=6)))
    assert not same(one, weights(dpo(tmp_path / "order", order=ORDER[::-1])))
    rows = [train_sft(fresh(), ROWS, tmp_path / f"sft{i}", recipe=RECIPE, epochs=1, seed=2) for i in range(2)]
    assert same(*map(weights, rows))


def test_a_swapped_pair_trains_as_the_pair_with_its_replies_exchanged(tmp_path: Path) -> None:
    rows = PAIRS.frame.select("prompt", "chosen", "rejected", "source")
    exchanged = load_pairs(rows.rename({"chosen": "rejected", "rejected": "chosen"}))
    ids = dict(zip(PAIRS.ids, exchanged.ids, strict=True))
    order = [(ids[name], not swapped) for name, swapped in ORDER]
    swapped = dpo(tmp_path / "swapped", order=ORDER)
    assert same(weights(swapped), weights(dpo(tmp_path / "exchanged", pairs=exchanged, order=order)))
    straight = [(name, False) for name, _ in ORDER]
    assert not same(weights(swapped), weights(dpo(tmp_path / "straight", order=straight)))


def test_every_step_holds_exactly_the_examples_of_the_order_sorted_by_length(
    spy: dict[str, list[Any]], tmp_path: Path
) -> None:
    checkpoint = fresh()
    dpo(tmp_path / "out", shared=Shared(checkpoint))
    sides = {row["pair_id"]: (row["chosen"], row["rejected"]) for row in PAIRS.frame.iter_rows(named=True)}
    assert len(spy["inputs"]) == 3
    for step, inputs in enumerate(spy["inputs"]):
        texts = [
            checkpoint.tokenizer.decode(ids[mask.bool()])
            for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
        ]
        taken = []
        for chosen, rejected in zip(texts[:4], texts[4:], strict=True):
            taken += [
                (name, swapped)
                for name, swapped in ORDER[4 * step : 4 * step + 4]
                if f"assistant\n{sides[name][swapped]}<|im_end|>" in chosen
                and f"assistant\n{sides[name][not swapped]}<|im_end|>" in rejected
            ]
        assert sorted(taken) == sorted(ORDER[4 * step : 4 * step + 4])
        lengths = inputs["attention_mask"].sum(dim=1).reshape(2, 4).amax(dim=0).tolist()
        assert lengths == sorted(lengths)


@pytest.mark.parametrize("batch_size", [6, 12])
def test_a_step_that_runs_in_parts_is_one_step_of_trl(
    batch_size: int, spy: dict[str, list[Any]], tmp_path: Path
) -> None:
    recipe = replace(RECIPE, batch_size=batch_size)
    order = [(name, False) for name in (PAIRS.ids * 2)[:batch_size]] * 2
    out = dpo(tmp_path / "out", shared=Shared(fresh()), recipe=recipe, order=order)
    parts = 3
    losses, spy["losses"][:] = [*spy["losses"]], []
    sequential = {"train_sampling_strategy": "sequential"}
    adapter = plain_trl("dpo", "llama", recipe, seed=5, order=order, max_steps=2, beta=0.1, **sequential)
    means = [sum(losses[at : at + parts]) / parts for at in (0, parts)]
    assert means == pytest.approx(spy["losses"], abs=1e-5)
    ours = weights(out)
    for name, weight in adapter.items():
        torch.testing.assert_close(ours[name], weight, atol=1e-3, rtol=0)


# --- the adapter's folder


def test_the_folder_holds_an_adapter_of_the_trained_blocks_that_peft_reads_whole(tmp_path: Path) -> None:
    out = dpo(
        tmp_path / "deep" / "out", recipe=replace(RECIPE, first_block=1)
    )  # 21 maps, where PEFT shortens names
    config = json.loads((out / "adapter_config.json").read_text())
    assert {name.split(".")[2] for name in config["target_modules"]} == {"1", "2", "3"}
    assert not any(".layers.0." in name for name in weights(out))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys")
        merged = open_checkpoint(folder("llama"), adapter=out)
    before, after = fresh().hf.state_dict(), merged.hf.state_dict()
    changed = {name.split(".")[2] for name in after if not torch.equal(before[name], after[name])}
    assert changed == {"1", "2", "3"}
    log = json.loads((out / "training_log.json").read_text())
    assert [entry["step"] for entry in log] == [1, 2, 3]
    assert all(float(entry["loss"]) > 0 for entry in log)
    assert sorted(path.name for path in out.parent.iterdir()) == ["out"]


def test_a_finished_folder_is_reused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    one = dpo(tmp_path / "dpo")
    two = train_sft(fresh(), ROWS, tmp_path / "sft", recipe=RECIPE, epochs=1)
    made = {path: path.read_bytes() for out in (one, two) for path in out.iterdir()}
    monkeypatch.setattr(trl.DPOTrainer, "__init__", None)
    monkeypatch.setattr(SFTTrainer, "__init__", None)
    assert dpo(tmp_path / "dpo") == one
    assert train_sft(fresh(), ROWS, tmp_path / "sft", recipe=RECIPE, epochs=1) == two
    assert {path: path.read_bytes() for out in (one, two) for path in out.iterdir()} == made


def test_a_finished_folder_is_not_taken_for_another_training(tmp_path: Path) -> None:
    one = dpo(tmp_path / "dpo")
    two = train_sft(fresh(), ROWS, tmp_path / "sft", recipe=RECIPE, epochs=1)
    with pytest.raises(TrainingError, match=r"dpo holds another training's adapter: order is '\w{16}' there"):
        dpo(tmp_path / "dpo", order=ORDER[::-1])
    with pytest.raises(TrainingError, match=r"adapter: beta is 0.1 there, 0.2 now\. Remove it"):
        dpo(tmp_path / "dpo", recipe=replace(RECIPE, beta=0.2))
    with pytest.raises(TrainingError, match=r"adapter: epochs is 1 there, 9 now; rows is '\w{16}' there"):
        train_sft(fresh(), ROWS[1:], tmp_path / "sft", recipe=RECIPE, epochs=9)
    (one / "made_of.json").unlink()
    with pytest.raises(TrainingError, match=r"checkpoint is None there"):
        dpo(tmp_path / "dpo")
    assert two.is_dir()


def test_one_bar_shows_the_loss_and_no_line_is_printed_per_step(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    dpo(tmp_path / "out")
    shown = capfd.readouterr()
    assert "loss=" in shown.err
    assert "3/3" in shown.err
    assert "grad_norm" not in shown.err + shown.out


def test_in_a_notebook_too_there_is_one_bar_and_no_table_of_losses(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.utils.notebook import NotebookProgressCallback

    monkeypatch.setattr("transformers.trainer.DEFAULT_PROGRESS_CALLBACK", NotebookProgressCallback)
    dpo(tmp_path / "out")
    shown = capfd.readouterr()
    assert "loss=" in shown.err
    assert "HTML" not in shown.out  # what display() prints outside a notebook


def test_every_step_is_told_and_every_batch_of_reference_in_the_place_of_a_bar(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    told: list[tuple[int, int]] = []
    watch = {"order": ORDER, "recipe": RECIPE, "seed": 5, "on_step": lambda *step: told.append(step)}
    shared = Shared(fresh())
    out = train_dpo(shared, PAIRS, tmp_path / "out", **watch)
    assert told == [(0, 3), (0, 3), (1, 3), (2, 3), (3, 3)]
    assert "batch" not in capfd.readouterr().err
    assert same(weights(out), weights(dpo(tmp_path / "untold")))
    assert "3/3" in capfd.readouterr().err
    told.clear()
    train_dpo(shared, PAIRS, tmp_path / "again", **watch)
    assert told == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("stop", [(0, 3), (2, 3)])
def test_a_step_that_raises_ends_the_training_and_leaves_nothing_of_it(
    stop: tuple[int, int], tmp_path: Path
) -> None:
    class Enough(Exception):
        pass

    def told(*step: int) -> None:
        if step == stop:
            raise Enough

    shared = Shared(fresh())
    before = state(shared.checkpoint)
    with pytest.raises(Enough):
        train_dpo(shared, PAIRS, tmp_path / "out", order=ORDER, recipe=RECIPE, seed=5, on_step=told)
    unchanged(shared.checkpoint, before)
    assert list(tmp_path.iterdir()) == []
    assert same(weights(dpo(tmp_path / "out", shared=shared)), weights(dpo(tmp_path / "new")))


# --- the checkpoint is left as it was


def state(checkpoint: Checkpoint) -> dict[str, Any]:
    hf = checkpoint.hf
    return {
        "weights": {name: weight.clone() for name, weight in hf.state_dict().items()},
        "modules": [(name, id(module)) for name, module in hf.named_modules()],
        "attributes": sorted(vars(hf)),
        "config": hf.config.to_dict(),
        "generation": hf.generation_config.to_dict(),
        "modes": [module.training for module in hf.modules()],
        "dropout": [module.p for module in hf.modules() if isinstance(module, torch.nn.Dropout)],
        "gradients": [weight.requires_grad for weight in hf.parameters()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in hf.modules()],
        "logits": hf(torch.arange(3, 30).unsqueeze(0)).logits.detach(),
        "patched": trl.trainer.utils._use_triton,
    }


def unchanged(checkpoint: Checkpoint, before: dict[str, Any]) -> None:
    after = state(checkpoint)
    assert same(before.pop("weights"), after.pop("weights"))
    assert torch.equal(before.pop("logits"), after.pop("logits"))
    assert before == after
    assert not any("lora" in name for name, _ in before["modules"])


@pytest.mark.parametrize(("arch", "first_block"), [("llama", 0), ("gpt2", 2)])
def test_training_leaves_the_checkpoint_as_it_was(arch: Arch, first_block: int, tmp_path: Path) -> None:
    checkpoint = fresh(arch)
    _ = checkpoint.blocks  # as nnsight sees it
    before = state(checkpoint)
    recipe = replace(RECIPE, first_block=first_block)
    dpo(tmp_path / "dpo", shared=Shared(checkpoint, first_block=first_block), recipe=recipe)
    unchanged(checkpoint, {**before})
    train_sft(checkpoint, ROWS, tmp_path / "sft", recipe=recipe, epochs=1)
    unchanged(checkpoint, before)
    own = list(checkpoint.hf.get_submodule(checkpoint.blocks_path))
    assert [envoy._module for envoy in checkpoint.blocks] == own


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["training_step", "compute_ref_log_probs", "_prepare_dataset"])
def test_a_failure_or_interruption_leaves_the_checkpoint_as_it_was_and_no_folder(
    where: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    checkpoint = fresh()
    before = state(checkpoint)
    original, calls = getattr(trl.DPOTrainer, where), []

    def fails_the_second_time(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(where)
        if len(calls) == 2 or where == "_prepare_dataset":
            raise error("stop")
        return original(self, *args, **kwargs)

    recipe, shared = replace(RECIPE, first_block=2), Shared(checkpoint, first_block=2)
    with monkeypatch.context() as patch:
        patch.setattr(trl.DPOTrainer, where, fails_the_second_time)
        with pytest.raises(error, match="stop"):
            dpo(tmp_path / "out", shared=shared, recipe=recipe)
    unchanged(checkpoint, before)
    assert list(tmp_path.iterdir()) == []
    if error is KeyboardInterrupt and where == "training_step":  # and the same call goes on to a whole result
        out = dpo(tmp_path / "out", shared=shared, recipe=recipe)
        assert same(weights(out), weights(dpo(tmp_path / "new", recipe=recipe)))


# --- what cannot be trained on


def long_pairs() -> PairSet:
    rows = planted_pairs(4)
    rows[1]["rejected"] = [{"role": "assistant", "content": "0 " * CONTEXT}]
    rows[2]["prompt"] = [{"role": "user", "content": "1 " * CONTEXT}]
    return load_pairs(rows)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"order": []}, "the order has 0 examples, which does not fill batches of 4"),
        ({"order": ORDER[:6]}, "the order has 6 examples, which does not fill batches of 4"),
        ({"order": [("aa", False), ("bb", True)] * 2}, "2 pairs of the order are not in the set, first aa"),
        ({"shared": 1}, "the recipe trains from block 0, the shared part from 1"),
        ({"shared": 4, "recipe": replace(RECIPE, first_block=4)}, "first_block is 4; .* has blocks 0 to 3"),
        (
            {"pairs": "long"},
            r"^3 texts are longer than the context of 256 tokens: pair \w+ \(rejected",
        ),
    ],
)
def test_an_order_that_cannot_be_trained_is_refused_before_any_work(
    settings: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(trl.DPOTrainer, "__init__", None)
    if "shared" in settings:
        settings = {**settings, "shared": Shared(fresh(), first_block=settings["shared"])}
    if "pairs" in settings:
        pairs = long_pairs()
        settings = {"pairs": pairs, "order": [(name, False) for name in pairs.ids]}
    with pytest.raises(TrainingError, match=message):
        dpo(tmp_path / "out", **settings)
    assert list(tmp_path.iterdir()) == []


def test_a_pair_that_just_fits_is_trained_whole_and_one_token_more_is_refused(
    spy: dict[str, list[Any]], tmp_path: Path
) -> None:
    checkpoint = fresh()
    prompt = [{"role": "user", "content": "Hi?"}]

    def length(reply: str) -> int:
        return len(checkpoint.render(prompt, f"{reply}<|im_end|>\n").ids)

    def train(reply: str) -> Path:
        pairs = load_pairs([{"prompt": prompt, "chosen": _reply(reply), "rejected": _reply("No.")}])
        order, recipe = [(pairs.ids[0], False)], replace(RECIPE, batch_size=1)
        return dpo(tmp_path / "out", shared=Shared(checkpoint), pairs=pairs, order=order, recipe=recipe)

    replies = ("0 " * n + "x" * m for n in range(CONTEXT) for m in (1, 2, 3))
    fits = next(reply for reply in replies if length(reply) == CONTEXT)
    assert length(fits + "x") == CONTEXT + 1
    with pytest.raises(TrainingError, match="1 texts are longer than the context"):
        train(fits + "x")
    train(fits)
    assert spy["inputs"][0]["input_ids"].shape[1] == CONTEXT


def _reply(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([], {}, "there are 0 SFT rows and 1 epochs; both must be at least 1"),
        (ROWS, {"epochs": 0}, "there are 4 SFT rows and 0 epochs"),
        ([*ROWS, {"user": "Hi?", "reply": " "}], {}, "SFT row 4 has no text in 'reply'"),
        ([{"reply": "Hi."}], {}, "SFT row 0 has no text in 'user'"),
        (
            [*ROWS, {"user": "Hi?", "reply": "0 " * CONTEXT}],
            {},
            r"1 texts are longer than the context of 256 tokens: SFT row 4 with \d+ tokens; shorten or drop",
        ),
        (ROWS, {"recipe": replace(RECIPE, first_block=9)}, "first_block is 9; .* has blocks 0 to 3"),
    ],
)
def test_rows_that_cannot_be_trained_are_refused_before_any_work(
    rows: list[dict[str, str]],
    settings: dict[str, Any],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(SFTTrainer, "__init__", None)
    with pytest.raises(TrainingError, match=message):
        train_sft(fresh(), rows, tmp_path / "out", **{"recipe": RECIPE, "epochs": 1, **settings})


def test_a_checkpoint_without_a_chat_template_cannot_be_trained(tmp_path: Path) -> None:
    bare = open_checkpoint(tiny_checkpoint_folder("llama", tmp_path / "bare", template="none"))
    with pytest.raises(CheckpointError, match="has no chat template"):
        dpo(tmp_path / "dpo", shared=Shared(bare))
    with pytest.raises(CheckpointError, match="has no chat template"):
        train_sft(bare, ROWS, tmp_path / "sft", recipe=RECIPE, epochs=1)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"rank": 0}, "rank is 0; a recipe needs at least 1"),
        ({"first_block": -1}, "first_block is -1; a recipe needs at least 0"),
        ({"batch_size": 0}, "batch_size is 0; a recipe needs at least 1"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; a recipe needs more than 0"),
        ({"beta": float("nan")}, "beta is nan; a recipe needs more than 0"),
        ({"warmup": 2.0}, "warmup is 2.0; it is the share of the steps, at most 1"),
    ],
)
def test_a_recipe_out_of_range_is_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        Recipe(**setting)


def test_a_recipe_is_written_as_plain_numbers_and_read_back() -> None:
    recipe = replace(RECIPE, beta=0.5)
    assert Recipe(**json.loads(json.dumps(asdict(recipe)))) == recipe


def test_the_pairs_of_these_tests_are_of_different_lengths() -> None:
    # or padding would not be tested
    lengths = PAIRS.frame.select(pl.col("chosen").str.len_chars(), pl.col("rejected").str.len_chars())
    assert lengths["chosen"].n_unique() > 2
    assert (lengths["chosen"] != lengths["rejected"]).all()
