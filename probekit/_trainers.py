"""What TRL's trainers are dressed in: shared references, a model left as it was, one quiet bar.

A helper of `training`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from probekit._attention import plain_attention
from probekit._quiet import bar, quiet_loading


def shared_reference_trainer() -> Any:
    """TRL's DPO trainer with two more arguments.

    logps: reference log-probs to look up and to add to. on_batch: called after each batch that adds to them.
    """
    from trl import DPOTrainer

    class SharedReferenceTrainer(DPOTrainer):
        """Reference log-probs are looked up in `logps`, and computed by TRL where they are missing."""

        def __init__(self, logps: dict[Any, float], on_batch: Callable[[], None], **kwargs: Any) -> None:
            self.logps, self.on_batch = logps, on_batch
            super().__init__(**kwargs)

        def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
            logps = self.logps
            keys = [
                [(tuple(row["prompt_ids"]), tuple(row[side])) for side in ("chosen_ids", "rejected_ids")]
                for row in dataset
            ]
            missing = list(
                {tuple(k): i for i, k in enumerate(keys) if not all(x in logps for x in k)}.values()
            )
            starts = range(0, len(missing), batch_size)
            for start in bar(starts, "reference log-probs"):
                batch = missing[start : start + batch_size]
                inputs = self.data_collator([dataset[i] for i in batch])
                inputs = {k: v.to(self.accelerator.device) for k, v in inputs.items()}
                for side, values in enumerate(self.compute_ref_log_probs(self.model, inputs)):
                    logps.update(
                        {keys[i][side]: value for i, value in zip(batch, values.tolist(), strict=True)}
                    )
                self.on_batch()
            for side, column in enumerate(("ref_chosen_logps", "ref_rejected_logps")):
                dataset = dataset.add_column(column, [logps[key[side]] for key in keys])
            return dataset

    return SharedReferenceTrainer


@contextmanager
def as_it_was(hf: Any) -> Iterator[None]:
    """Whatever happens inside, the model is afterwards what it was: no adapter, no patch, no gradient.

    LoRA puts its modules in place of the model's own; TRL patches the model's forward, turns dropout off and
    writes the tokenizer's special tokens into the configs. Neither writes to the weights.
    """
    modules = [(module, dict(vars(module)), list(module.named_children())) for module in hf.modules()]
    configs = [(config, dict(vars(config))) for config in (hf.config.get_text_config(), hf.generation_config)]
    try:
        yield
    finally:
        for changed, attributes in [*configs, *(module[:2] for module in modules)]:
            vars(changed).clear()
            vars(changed).update(attributes)
        for module, _, children in modules:
            for name, child in children:
                setattr(module, name, child)
        hf.eval().requires_grad_(False)


@contextmanager
def replies_only() -> Iterator[None]:
    """Have TRL project only reply positions onto the vocabulary, as on GPUs: same values, less work."""
    with mock.patch("trl.trainer.utils._use_triton", return_value=True):
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the bars of the data set's own small steps."""
    import datasets
    from datasets.utils import are_progress_bars_disabled

    if are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()


@contextmanager
def prepared(hf: Any) -> Iterator[None]:
    """What every training happens in: little noise, little waste, and afterwards the model as it was."""
    with quiet(), quiet_loading(), as_it_was(hf), plain_attention(hf), replies_only():
        yield


def one_bar(trainer: Any, on_step: Callable[[int, int], None] | None = None) -> None:
    """One progress bar that shows the loss; the trainer's own prints a line of metrics at every step.

    on_step: called after each step, with the steps done and all steps, in the place of any bar.
    """
    from transformers.trainer import DEFAULT_PROGRESS_CALLBACK  # in a notebook another than the one below
    from transformers.trainer_callback import ProgressCallback, TrainerCallback

    class LossBar(ProgressCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if self.training_bar is not None and "loss" in logs:
                self.training_bar.set_postfix(loss=f"{float(logs['loss']):.3f}")

    class Told(TrainerCallback):
        def __init__(self, told: Callable[[int, int], None]) -> None:
            self.told = told

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.told(state.global_step, state.max_steps)

    shown = trainer.pop_callback(DEFAULT_PROGRESS_CALLBACK)
    if on_step is not None:
        trainer.add_callback(Told(on_step))
    elif shown:
        trainer.add_callback(LossBar())
