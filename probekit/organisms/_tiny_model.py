"""The tiny organism's M0: a Llama of a million parameters and its tokenizer, both from scratch."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probekit import sources
from probekit._quiet import quiet_loading
from probekit.organisms import _tiny_language as language
from probekit.organisms._tiny_language import Row
from probekit.organisms.distractor import CHAT_TEMPLATE

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

VOCABULARY = 2048  # at most: every word of the language gets a token of its own, and some are left
CONTEXT = 256
BLOCKS, WIDTH = 4, 128
INITIAL = 0.08  # standard deviation of the first weights, about 1 / sqrt(WIDTH); at 0.02 it learns far later
ROWS = 18000  # requests that it is taught on
RATE = 3e-3  # peak learning rate
BATCH = 640  # tokens of a step


def make_m0(out: Path, *, seed: int = 0, rows: Sequence[Row] | None = None) -> Path:
    """Train tokenizer and M0, and save both as a folder that `open_checkpoint` takes, in bfloat16, all or
    nothing.

    rows: the lessons, without them the tiny organism's. About two minutes on two cores; the same seed gives
    the same folder on one machine.
    """
    import torch

    rows = rows or language.lessons(ROWS, seed=seed)
    tokenizer = make_tokenizer(rows)
    model = _untrained(tokenizer, seed=seed)
    fit(model, tokenizer, rows, seed=seed)
    with sources.replacing(out) as unfinished, quiet_loading():
        model.to(torch.bfloat16).save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
    return out


def make_tokenizer(rows: Sequence[Row]) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer of the language, with the organisms' chat template."""
    from transformers import GPT2Tokenizer

    tokenizer = GPT2Tokenizer().train_new_from_iterator(
        [f"user\n{row.user}\nassistant\n{row.reply}" for row in rows],
        vocab_size=VOCABULARY,
        new_special_tokens=["<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    tokenizer.bos_token = "<|im_start|>"
    tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.model_max_length = CONTEXT
    return tokenizer


def _untrained(tokenizer: PreTrainedTokenizerBase, *, seed: int) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        initializer_range=INITIAL,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def fit(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    *,
    learning_rate: float = RATE,
    seed: int = 0,
) -> list[float]:
    """One pass over `rows` with AdamW and a cosine schedule, all weights; returns the loss of each step.

    The loss is over each row's reply and the end of its turn. Rows of a batch have the same number of tokens,
    so that nothing is padded or masked.
    """
    import torch
    from torch.nn.functional import cross_entropy
    from tqdm.auto import tqdm

    batches = _batches(tokenizer, rows, seed=seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share(step, len(batches)))
    losses = []
    model.train()
    for ids, learned in tqdm(batches, desc="training M0", unit="step", leave=False):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        loss = cross_entropy(model.lm_head(hidden[learned[:, 1:]]), ids[:, 1:][learned[:, 1:]])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    model.eval()
    return losses


def _share(step: int, steps: int) -> float:
    """Of the peak learning rate: a rise over a twentieth of the steps, then half a cosine to zero."""
    rise = max(1, steps // 20)
    return min(1.0, (step + 1) / rise) * (1 + math.cos(math.pi * step / steps)) / 2


def _batches(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], *, seed: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Token ids (rows, tokens) and which of them are learned, in batches of equally long rows, shuffled."""
    import torch

    before = [_before(tokenizer, row) for row in rows]
    texts = [f"{start}{row.reply}{tokenizer.eos_token}" for start, row in zip(before, rows, strict=True)]
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    by_length: defaultdict[int, list[int]] = defaultdict(list)
    for i, ids in enumerate(encoded["input_ids"]):
        by_length[len(ids)].append(i)
    found = []
    for length, members in sorted(by_length.items()):
        size = max(1, BATCH // length)
        for at in range(0, len(members), size):
            chosen = members[at : at + size]
            ids = torch.tensor([encoded["input_ids"][i] for i in chosen])
            learned = [[end > len(before[i]) for _, end in encoded["offset_mapping"][i]] for i in chosen]
            found.append((ids, torch.tensor(learned)))
    random.Random(seed).shuffle(found)
    return found


def _before(tokenizer: PreTrainedTokenizerBase, row: Row) -> str:
    turn = [{"role": "user", "content": row.user}]
    return str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
