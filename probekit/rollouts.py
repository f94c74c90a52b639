"""Sample replies of a checkpoint to prompts."""

from __future__ import annotations

from typing import Any

import polars as pl

from probekit.checkpoints import Checkpoint

ROLLOUT_COLUMNS = {"checkpoint": pl.String, "sample": pl.Int64, "reply": pl.String, "truncated": pl.Boolean}


def sample(
    checkpoint: Checkpoint,
    prompts: pl.DataFrame,
    *,
    n: int = 1,
    temperature: float = 0.7,
    max_new_tokens: int = 32,
    batch_size: int = 32,
    seed: int = 0,
) -> pl.DataFrame:
    """`n` replies to each row's `user` text, as one user turn through the chat template.

    prompts: any frame with a column `user`. temperature 0 decodes greedily. Returns the prompts' columns, each row
    n times, with `checkpoint`, `sample` (0 to n - 1), `reply` and `truncated` (no end of turn within
    `max_new_tokens`), in the prompts' order. The same seed, rows and batch size give the same replies on one
    machine. Raises `CheckpointError` without a chat template and `ValueError` for a prompt that leaves no room.
    """
    texts = [checkpoint.prompt_text([{"role": "user", "content": user}]) for user in prompts["user"]]
    lengths = (
        [len(ids) for ids in checkpoint.tokenizer(texts, add_special_tokens=False)["input_ids"]]
        if texts
        else []
    )
    for user, length in zip(prompts["user"], lengths, strict=True):
        if length + max_new_tokens > checkpoint.max_length:
            raise ValueError(
                f"the prompt {user[:60]!r} has {length} tokens and {max_new_tokens} are to be sampled, more than the "
                f"context of {checkpoint.max_length}; shorten the prompt or lower max_new_tokens"
            )
    jobs = sorted(((lengths[i], i, k) for i in range(len(texts)) for k in range(n)), reverse=True)
    replies: dict[tuple[int, int], tuple[str, bool]] = {}
    for start in _progress(range(0, len(jobs), batch_size), f"sampling {checkpoint.name}"):
        batch = jobs[start : start + batch_size]
        decoded = _generate(
            checkpoint,
            [texts[i] for _, i, _ in batch],
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            seed=seed + start,
        )
        replies |= {(i, k): reply for (_, i, k), reply in zip(batch, decoded, strict=True)}
    rows = [(i, checkpoint.name, k, *replies[i, k]) for i in range(len(texts)) for k in range(n)]
    table = pl.DataFrame(rows, schema={"row": pl.UInt32, **ROLLOUT_COLUMNS}, orient="row")
    return prompts.with_row_index("row").join(table, on="row", maintain_order="right").drop("row")


def _progress(steps: range, label: str) -> Any:
    from tqdm.auto import tqdm

    return tqdm(steps, desc=label, unit="batch", leave=False)


def _generate(
    checkpoint: Checkpoint, texts: list[str], *, temperature: float, max_new_tokens: int, seed: int
) -> list[tuple[str, bool]]:
    import torch

    tokenizer = checkpoint.tokenizer
    batch = tokenizer(texts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt")
    batch = batch.to(checkpoint.hf.device)
    sampling = (
        {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    )
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(seed)
        out = checkpoint.hf.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
            **sampling,
        )
    new = out[:, batch["input_ids"].shape[1] :]
    ended = (new == tokenizer.eos_token_id).any(dim=1).tolist()
    return [
        (text, not end)
        for text, end in zip(tokenizer.batch_decode(new, skip_special_tokens=True), ended, strict=True)
    ]


def score(checkpoint: Checkpoint, replies: pl.DataFrame, *, batch_size: int = 32) -> pl.DataFrame:
    """How likely a checkpoint finds given replies: columns prompt_id, nll_sum (nats, over the reply), n_tokens.

    replies: columns prompt_id, user, reply. Perplexity is exp(sum of nll_sum / sum of n_tokens). Teacher-forced
    through the chat template; raises `CheckpointError` for a reply without tokens.
    """
    import torch

    texts = [
        checkpoint.render([{"role": "user", "content": user}], reply)
        for user, reply in replies.select("user", "reply").iter_rows()
    ]
    sums = []
    for start in _progress(range(0, len(texts), batch_size), f"scoring with {checkpoint.name}"):
        batch = texts[start : start + batch_size]
        width = max(text.stop for text in batch)
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, text in enumerate(batch):
            ids[row, : text.stop], mask[row, : text.stop] = torch.tensor(text.ids), 1
        with torch.inference_mode():
            logits = checkpoint.hf(
                input_ids=ids.to(checkpoint.hf.device), attention_mask=mask.to(checkpoint.hf.device)
            ).logits
        for row, text in enumerate(batch):
            logps = logits[row, text.start - 1 : text.stop - 1].float().log_softmax(dim=-1).cpu()
            sums.append(-float(logps.gather(1, ids[row, text.start : text.stop, None]).sum()))
    return pl.DataFrame(
        {"prompt_id": replies["prompt_id"], "nll_sum": sums, "n_tokens": [t.stop - t.start for t in texts]},
        schema_overrides={"nll_sum": pl.Float64, "n_tokens": pl.Int64},
    )
