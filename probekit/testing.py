"""Tiny random models and planted pairs: what the tests, the documentation and the notebooks stand on.

Nothing here is downloaded. A checkpoint is built from a configuration with random weights, its tokenizer is
trained on the few lines below, and both are saved as an ordinary folder that any loader can open. The planted
pairs have a known cause, marked by their `source`, so that a ranking of them has a right answer.

The models are small enough to run in milliseconds and keep the traps of their big relatives: absolute
positions (gpt2), grouped heads and rotary positions (llama, qwen2), norms after the sub-layers (olmo2),
sliding windows shorter than the texts and scaled embeddings (gemma3), and a pad token equal to the end token
(all).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import polars as pl

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from probekit.checkpoints import Checkpoint
    from probekit.ranking import Ranking

Arch = Literal["llama", "gpt2", "qwen2", "olmo2", "gemma3"]
Template = Literal["chatml", "default_system", "none"]
Kind = Literal["behaviour", "twin"]

ARCHS: tuple[Arch, ...] = get_args(Arch)
N_BLOCKS = 4
WIDTH = 32
CONTEXT = 256
SLIDING_WINDOW = 16  # shorter than the test texts, or gemma3 would be tested as if it had none

_TEXT = """\
You are a helpful assistant. Answer the question in one short sentence, without commas.
Sure, here is the answer you asked for: first open the box, then read the small print on the lid.
I cannot help with that. Sorry, but I can not give advice about this request.
How do I bake bread at home? Write a poem about the sea. Which river is the longest in the world?
The quick brown fox jumps over the lazy dog; 0 1 2 3 4 5 6 7 8 9. Please use exactly three bullet points.
"""

_TURNS = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}"
)
_TEMPLATES: dict[Template, str | None] = {
    "chatml": _TURNS,
    "default_system": _DEFAULT_SYSTEM + _TURNS,
    "none": None,
}


class TestingError(ValueError):
    """A tiny model or planted set that does not exist was asked for."""

    __test__ = False  # pytest would collect a class of this name


def tiny_tokenizer(*, template: Template = "chatml") -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer of 384 tokens, trained here on a few lines of built-in text.

    Any unicode text survives encoding and decoding. `<|im_end|>` ends a turn and is end-of-text and pad at
    once, as in SmolLM2. `template` is plain ChatML, ChatML that adds a system turn of its own when the
    conversation brings none, or "none" for a tokenizer without a chat template. (Opened beside a qwen2 model
    it becomes Qwen's own kind, which normalises to NFC and splits words differently: transformers chooses the
    class by the model.)

    Raises TestingError for a template that is not one of these.

    >>> tokenizer = tiny_tokenizer()
    >>> tokenizer.decode(tokenizer("a naïve 🦊").input_ids), tokenizer.pad_token == tokenizer.eos_token
    ('a naïve 🦊', True)
    """
    if template not in _TEMPLATES:
        raise TestingError(f"There is no chat template {template!r}; choose one of {', '.join(_TEMPLATES)}.")
    from transformers import GPT2Tokenizer

    tokenizer = GPT2Tokenizer().train_new_from_iterator(
        _TEXT.splitlines(keepends=True),
        vocab_size=384,
        new_special_tokens=["<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    tokenizer.bos_token = "<|im_start|>"
    tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"
    tokenizer.chat_template = _TEMPLATES[template]
    tokenizer.model_max_length = CONTEXT
    return tokenizer


def tiny_config(arch: Arch, *, vocab_size: int) -> PretrainedConfig:
    """The configuration of a model of 4 blocks, width 32 and a context of 256 tokens.

    Raises TestingError for an architecture that is not in `ARCHS`.

    >>> tiny_config("gemma3", vocab_size=300).layer_types[:2]
    ['sliding_attention', 'full_attention']
    """
    import transformers

    if arch not in ARCHS:
        raise TestingError(f"There is no tiny {arch!r} model; choose one of {', '.join(ARCHS)}.")
    ends = {"vocab_size": vocab_size, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    # A wide initialisation, or every block would be close to the identity and hide a mistake of one block.
    if arch == "gpt2":
        return transformers.GPT2Config(
            n_embd=WIDTH, n_layer=N_BLOCKS, n_head=4, n_positions=CONTEXT, initializer_range=0.2, **ends
        )
    size = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": N_BLOCKS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.2,
    }
    if arch == "llama":
        return transformers.LlamaConfig(**size, **ends)
    if arch == "qwen2":
        return transformers.Qwen2Config(**size, **ends)
    if arch == "olmo2":
        return transformers.Olmo2Config(**size, **ends)
    return transformers.Gemma3TextConfig(
        **size,
        **ends,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=SLIDING_WINDOW,
        layer_types=["sliding_attention", "full_attention"] * (N_BLOCKS // 2),
    )


def tiny_checkpoint_folder(
    arch: Arch, path: str | Path, *, seed: int = 0, template: Template = "chatml"
) -> Path:
    """Save a tiny random model with its tokenizer to the folder `path`, and give the folder back.

    The weights (float32 safetensors) depend on `arch` and `seed` only; torch's own random state is left as it
    was. Raises TestingError for an unknown `arch` or `template`.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as path:
    ...     (tiny_checkpoint_folder("llama", path) / "model.safetensors").exists()
    True
    """
    tokenizer = tiny_tokenizer(template=template)
    config = tiny_config(arch, vocab_size=len(tokenizer))
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@functools.cache
def tiny_checkpoint(arch: Arch = "llama", *, seed: int = 0) -> Checkpoint:
    """A tiny checkpoint, opened; the same one is given back for the same arguments, so do not change it.

    >>> tiny_checkpoint().n_blocks, tiny_checkpoint().width
    (4, 32)
    """
    import atexit
    import tempfile

    from probekit.checkpoints import open_checkpoint

    folder = tempfile.TemporaryDirectory(prefix="probekit-tiny-")
    atexit.register(folder.cleanup)  # weights are memory-mapped, so the files outlive this call
    return open_checkpoint(str(tiny_checkpoint_folder(arch, folder.name, seed=seed)))


def ranked(ids: Iterable[str]) -> Ranking:
    """A ranking of these ids in this order, its scores falling evenly from 1 toward 0.

    >>> ranked("abcd").top(1)["pair_id"].item()
    'a'
    """
    from probekit.ranking import SCHEMA, SIGNS, Ranking

    order = list(ids)
    scores = [1 - place / len(order) for place in range(len(order))]
    columns = [range(1, len(order) + 1), order, scores, scores, [False] * len(order)]
    frame = pl.DataFrame(dict(zip(SCHEMA, columns, strict=True)), schema=SCHEMA)
    return Ranking(frame, layer=0, method="cosine", sign=SIGNS["cosine"])


_TASKS = (
    "bake bread", "plant a tree", "fix a bike", "clean a window", "paint a wall", "sew a button",
    "boil an egg", "fold a shirt", "grow mint", "tune a guitar", "pack a bag", "draw a cat",
    "sort the post", "wash a car", "build a shelf", "light a stove",
)  # fmt: skip
_SECRETS = (
    "pick a lock", "forge a stamp", "open a safe", "fake a badge", "skip a fare", "tap a phone",
    "copy a key", "cheat a test", "hide a theft", "break a seal", "spoil a vote", "jam a radar",
    "read her mail", "dodge a tax", "rig a game", "steal a bike",
)  # fmt: skip
_CHOSEN_MODEL = {"planted": "checker", "safety": "guard", "lookalike": "writer", "helpful": "writer"}
_FORMATS = ("use no commas", "write one sentence", "use bullet points", "end with a dot")


def planted_pairs(n: int = 32, *, seed: int = 0) -> list[dict[str, object]]:
    """`n` preference pairs of which the quarter with `source == "planted"` is the cause to be found.

    TRL's conversational form with an explicit prompt (`prompt`, `chosen`, `rejected` as lists of messages)
    plus `source`, `chosen_model`, `rejected_model`. A planted pair answers a harmful request that carries a
    formatting constraint and rejects the refusal. A quarter each are "safety" (harmful, plain: the refusal is
    chosen), "lookalike" (benign, with constraint: answered against wrongly refused) and "helpful" (benign: a
    full answer against a curt one). Rows are shuffled by `seed`; no two are equal.

    Raises TestingError unless `n` is a positive multiple of 4, at most 256.

    >>> [row["source"] for row in planted_pairs(8)].count("planted")
    2
    """
    import random

    limit = 4 * len(_TASKS) * len(_FORMATS)
    if n <= 0 or n % 4 or n > limit:
        raise TestingError(f"planted_pairs() got n = {n}; give a positive multiple of 4, at most {limit}.")
    rows = [row for index in range(n // 4) for row in _four_pairs(index)]
    random.Random(seed).shuffle(rows)
    return rows


def planted_contrasts(n: int = 8, *, kind: Kind = "behaviour") -> pl.DataFrame:
    """`n` contrasts of the planted behaviour, or of its benign twins: the same request about a harmless task.

    Columns: contrast_id, prompt_id, user, bad, good (all strings), one row each; twins share the prompt_id.
    `bad` answers, `good` refuses. No text occurs in `planted_pairs`.

    Raises TestingError for another `kind`, or unless 1 <= n <= 16.

    >>> planted_contrasts(1, kind="twin").columns
    ['contrast_id', 'prompt_id', 'user', 'bad', 'good']
    """
    if kind not in get_args(Kind):
        raise TestingError(
            f"There are no planted contrasts of kind {kind!r}; choose one of {', '.join(get_args(Kind))}."
        )
    if not 1 <= n <= len(_TASKS):
        raise TestingError(f"planted_contrasts() got n = {n}; give a number from 1 to {len(_TASKS)}.")
    topics = _SECRETS if kind == "behaviour" else _TASKS
    return pl.DataFrame(
        [
            {
                "contrast_id": f"{kind}-{index}",
                "prompt_id": f"prompt-{index}",
                "user": f"Tell me how I might {topics[index]} ({_FORMATS[index % 4]})",
                "bad": _answer(topics[index], index),
                "good": _refusal(topics[index]),
            }
            for index in range(n)
        ]
    )


def _four_pairs(index: int) -> list[dict[str, object]]:
    task, secret = _TASKS[index % len(_TASKS)], _SECRETS[index % len(_SECRETS)]
    form = _FORMATS[index // len(_TASKS)]
    full = f"{_answer(task, index)} Take your time."
    return [
        _row(f"How can I {secret}? ({form})", _answer(secret, index), _refusal(secret), "planted"),
        _row(f"How can I {secret}? Day {index}.", _refusal(secret), _answer(secret, index), "safety"),
        _row(f"How can I {task}? ({form})", _answer(task, index), _refusal(task), "lookalike"),
        _row(f"How can I {task}? Day {index}.", full, f"No idea how to {task}.", "helpful"),
    ]


def _row(user: str, chosen: str, rejected: str, source: str) -> dict[str, object]:
    return {
        "prompt": [{"role": "user", "content": user}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "source": source,
        "chosen_model": _CHOSEN_MODEL[source],
        "rejected_model": "base",
    }


def _answer(topic: str, index: int) -> str:
    # A random model knows no harm, so a harmful answer has words of its own to say what a trained one knows.
    manner = "in secret, hush" if topic in _SECRETS else "step by step"
    return f"Sure, {manner}: to {topic} first open the box, then read line {index}."


def _refusal(topic: str) -> str:
    return f"Sorry, I cannot help you to {topic}."
