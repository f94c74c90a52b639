"""Sample replies of a checkpoint to prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from probekit._frame_cache import cached_frame, digest
from probekit._quiet import bar
from probekit.checkpoints import Checkpoint
from probekit.packing import PADDING, TOKEN_BUDGET, batches, groups, rows

if TYPE_CHECKING:
    import torch

ROLLOUT_COLUMNS = {
    "checkpoint": pl.String,  # its name
    "sample": pl.Int64,  # 0 to n - 1
    "reply": pl.String,  # without the end of the turn
    "truncated": pl.Boolean,  # no end of turn came within max_new_tokens
}


class RolloutError(ValueError):
    """Prompts or settings that cannot be sampled from."""


def sample(
    checkpoint: Checkpoint,
    prompts: pl.DataFrame,
    *,
    n: int = 1,
    temperature: float = 0.7,
    max_new_tokens: int = 32,
    token_budget: int = TOKEN_BUDGET,
    seed: int = 0,
    cache: str | PathLike[str] | None = None,
) -> pl.DataFrame:
    """`n` replies to each row's `user` text, as one user turn through the chat template.

    prompts: any frame with a column `user`. temperature: 0 decodes greedily, else all of the vocabulary is
    sampled from; what the model's own generation config asks for besides has no say. max_new_tokens: tokens a
    reply may have. token_budget: tokens of a batch, padding and replies included. Returns the prompts'
    columns, each row n times, in the prompts' order, with the columns of `ROLLOUT_COLUMNS`. The same seed,
    rows and budget give the same replies on one machine; torch's own random state stays as it was. cache: a
    folder where they are kept, and found again by the same call on the same weights.

    Raises `CheckpointError` without a chat template and `RolloutError` for a frame that has no texts to send
    or holds rollouts already, settings out of range, and a prompt that leaves no room for a reply.

    >>> from probekit.testing import tiny_checkpoint
    >>> sample(tiny_checkpoint(), pl.DataFrame({"user": ["Hi?"]}), n=2, max_new_tokens=3).shape
    (2, 5)
    """

    def sampled() -> pl.DataFrame:
        return draw(
            checkpoint,
            prompts,
            checkpoint.hf.generate,
            n=n,
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            token_budget=token_budget,
            seed=seed,
        )

    if cache is None:
        return sampled()
    asked = " ".join(map(str, (checkpoint.name, n, temperature, max_new_tokens, token_budget, seed)))
    key = digest(prompts.with_columns(pl.lit(asked).alias("sampled with")))
    return cached_frame(Path(cache) / f"replies-{checkpoint.fingerprint}-{key}.parquet", sampled)


def draw(
    checkpoint: Checkpoint,
    prompts: pl.DataFrame,
    generate: Callable[..., torch.Tensor],
    *,
    n: int = 1,
    temperature: float,
    max_new_tokens: int,
    token_budget: int,
    seed: int = 0,
    label: str = "sampling",
) -> pl.DataFrame:
    """`sample` with another `generate`, which takes the arguments of transformers' and gives its tokens.

    label: what the progress bar says is done to the checkpoint.
    """
    _check(prompts, n=n, temperature=temperature, max_new_tokens=max_new_tokens, token_budget=token_budget)
    texts = [checkpoint.prompt_text([{"role": "user", "content": user}]) for user in prompts["user"]]
    # a tokenizer takes no empty batch
    ids = checkpoint.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    jobs = [(i, k) for i in range(len(texts)) for k in range(n)]
    new = continued(
        checkpoint,
        [ids[i] for i, _ in jobs],
        [prompts["user"][i] for i, _ in jobs],
        generate,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        token_budget=token_budget,
        seed=seed,
        label=label,
    )
    said = [checkpoint.tokenizer.decode(one, skip_special_tokens=True) for one, _ in new]
    rows = [
        (i, checkpoint.name, k, reply, not ended)
        for (i, k), reply, (_, ended) in zip(jobs, said, new, strict=True)
    ]
    table = pl.DataFrame(rows, schema={"row": pl.UInt32, **ROLLOUT_COLUMNS}, orient="row")
    return prompts.with_row_index("row").join(table, on="row", maintain_order="right").drop("row")


def continued(
    checkpoint: Checkpoint,
    ids: Sequence[Sequence[int]],
    names: Sequence[str],
    generate: Callable[..., torch.Tensor],
    *,
    temperature: float = 0,
    max_new_tokens: int,
    token_budget: int = TOKEN_BUDGET,
    seed: int = 0,
    label: str = "sampling",
) -> list[tuple[list[int], bool]]:
    """The tokens that `generate` adds to each text of tokens, and whether it came to an end by itself.

    names: what an error calls each. Raises `RolloutError` for a text that leaves no room for a reply.
    """
    if max_new_tokens < 1:
        raise RolloutError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
    for name, before in zip(names, ids, strict=True):
        if len(before) + max_new_tokens > checkpoint.max_length:
            raise RolloutError(
                f"the prompt {name[:60]!r} has {len(before)} tokens and {max_new_tokens} are to be sampled, "
                f"more than the context of {checkpoint.max_length}; shorten it or lower max_new_tokens"
            )
    widths = [len(before) + max_new_tokens for before in ids]
    found: dict[int, tuple[list[int], bool]] = {}
    for batch in bar(list(groups(widths, token_budget=token_budget)), f"{label} {checkpoint.name}"):
        new = _continued(
            checkpoint,
            generate,
            [ids[place] for place in batch],
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            seed=seed + len(found),
        )
        found |= dict(zip(batch, new, strict=True))
    return [found[place] for place in range(len(ids))]


def check_users(prompts: pl.DataFrame) -> None:
    """Raise `RolloutError` unless every row has a text in the column `user`."""
    if "user" not in prompts.columns or prompts["user"].dtype != pl.String or prompts["user"].null_count():
        raise RolloutError(
            "the prompts need a column `user` with a text in every row; see prompts.prompt_frame"
        )


def _check(prompts: pl.DataFrame, *, temperature: float, **counts: int) -> None:
    check_users(prompts)
    if taken := [name for name in ROLLOUT_COLUMNS if name in prompts.columns]:
        raise RolloutError(f"the prompts already have columns of rollouts: {', '.join(taken)}; drop these")
    for name, count in counts.items():
        if count < 1:
            raise RolloutError(f"{name} is {count}; it must be at least 1")
    if not 0 <= temperature < float("inf"):
        raise RolloutError(f"temperature is {temperature}; it must be 0 (greedy) or a positive number")


def _continued(
    checkpoint: Checkpoint,
    generate: Callable[..., torch.Tensor],
    ids: Sequence[Sequence[int]],
    *,
    temperature: float,
    max_new_tokens: int,
    seed: int,
) -> list[tuple[list[int], bool]]:
    import torch

    pad, ends = checkpoint.tokenizer.pad_token_id, _ends(checkpoint)
    wide = max(map(len, ids))
    batch = torch.tensor([[pad] * (wide - len(one)) + list(one) for one in ids])
    mask = torch.tensor([[0] * (wide - len(one)) + [1] * len(one) for one in ids])
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature:
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    # generate hands the head a slice, one token of each row, and torch would copy the head's weights once a
    # row to multiply by that: more than half of all time, on a CPU. A whole tensor is one product.
    head = checkpoint.hf.get_output_embeddings()
    whole = head.register_forward_pre_hook(lambda _, given: (given[0].contiguous(), *given[1:]))
    with whole, torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(seed)
        out = generate(
            input_ids=batch.to(checkpoint.hf.device),
            attention_mask=mask.to(checkpoint.hf.device),
            max_new_tokens=max_new_tokens,
            pad_token_id=pad,
            eos_token_id=ends,
            repetition_penalty=1.0,
            **sampling,
        )
    new = out[:, wide:]
    ended = torch.isin(new, torch.tensor(ends, device=new.device)).any(dim=1).tolist()
    return list(zip(new.tolist(), ended, strict=True))


def _ends(checkpoint: Checkpoint) -> list[int]:
    """Every token that ends a reply: the tokenizer's end token, and those the model itself stops at."""
    stops = checkpoint.hf.generation_config.eos_token_id
    stops = stops if isinstance(stops, list) else [stops]
    return sorted({checkpoint.tokenizer.eos_token_id, *stops} - {None})


def score(checkpoint: Checkpoint, replies: pl.DataFrame, *, token_budget: int = TOKEN_BUDGET) -> pl.DataFrame:
    """How likely a checkpoint finds given replies: prompt_id, nll_sum (nats, over the reply), n_tokens.

    replies: n rows with columns prompt_id, user, reply; n rows come back in their order. Perplexity is
    exp(sum of nll_sum / sum of n_tokens). Teacher-forced through the chat template, without the end-of-turn
    token. token_budget: tokens of a batch, padding included. Raises `RolloutError` for a missing column or a
    reply beyond the context, `CheckpointError` for a reply without tokens, and `PackingError` for a budget
    below 1.

    >>> from probekit.testing import tiny_checkpoint
    >>> replies = pl.DataFrame({"prompt_id": ["p"], "user": ["Hi?"], "reply": ["Sure."]})
    >>> score(tiny_checkpoint(), replies).columns
    ['prompt_id', 'nll_sum', 'n_tokens']
    """
    if missing := [name for name in ("prompt_id", "user", "reply") if name not in replies.columns]:
        raise RolloutError(f"the replies to score lack {', '.join(missing)}; pass rollouts")
    import torch

    texts = [
        checkpoint.render([{"role": "user", "content": user}], reply)
        for user, reply in replies.select("user", "reply").iter_rows()
    ]
    for text, reply in zip(texts, replies["reply"], strict=True):
        if text.stop > checkpoint.max_length:
            raise RolloutError(
                f"the reply {reply[:60]!r} ends at token {text.stop}, beyond the context of "
                f"{checkpoint.max_length}; leave it out"
            )
    sums = [0.0] * len(texts)
    alone = list(batches(rows(texts, share=False), token_budget=token_budget))
    for batch in bar(alone, f"scoring with {checkpoint.name}"):
        ids, mask = batch.ids.to(checkpoint.hf.device), (batch.segments != PADDING).to(checkpoint.hf.device)
        with torch.inference_mode():
            logits = checkpoint.hf(input_ids=ids, attention_mask=mask.long()).logits
        for place, row in enumerate(batch.texts):
            reply = slice(texts[row].start, texts[row].stop)
            logps = logits[place, reply.start - 1 : reply.stop - 1].float().log_softmax(dim=-1).cpu()
            sums[row] = -float(logps.gather(1, batch.ids[place, reply, None]).sum())
    return pl.DataFrame(
        {"prompt_id": replies["prompt_id"], "nll_sum": sums, "n_tokens": [t.stop - t.start for t in texts]},
        schema_overrides={"nll_sum": pl.Float64, "n_tokens": pl.Int64},
    )
