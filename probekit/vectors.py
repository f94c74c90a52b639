"""Behaviour and pair vectors: differences of mean activations over reply tokens, read through nnsight.

abar_l(p, r; M) is the mean, over the tokens of the reply r only, of the residual stream after block l of the
model M, which is given the prompt p and the reply r (paper, section 1.1; see reference/probe_attribution.md).
Layers are named by block: layer i is `block_out[i]`, the output of decoder block i, which is Hugging Face's
`hidden_states[i + 1]` (but for the last block, whose hidden state is taken after the final norm). The paper's
"layer 20" is layer 19 here.

What the paper and its code leave open is an argument: the layers; one model for both sides of a behaviour, or
each side through its own (`other=`); the chat template on or off (`chat=`, the authors' code has it off); the
pooling of many behaviour vectors into one (`pool`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import polars as pl

from probekit._reading import block_out, check_layers, means, progress
from probekit._texts import Text, contrast_texts, lengths_that_fit, pair_texts, refuse
from probekit._vector_set import (
    Kind,
    VectorError,
    VectorSet,
    agreement,
    by_prompt,
    check_finite,
    pool,
)
from probekit.packing import TOKEN_BUDGET
from probekit.pairs import PairSet
from probekit.store import StoreKey, VectorStore

if TYPE_CHECKING:
    import torch
    from tqdm import tqdm

    from probekit.checkpoints import Checkpoint, Rendered

__all__ = [
    "Kind",
    "VectorError",
    "VectorSet",
    "agreement",
    "behaviour_vectors",
    "block_out",
    "by_prompt",
    "check_lengths",
    "pair_vectors",
    "pool",
    "response_means",
    "twin_vectors",
]

BLOCK_ROWS = 256  # rows computed and stored at a time: what an interruption can cost


def pair_vectors(
    checkpoint: Checkpoint,
    pairs: PairSet,
    *,
    layers: Sequence[int],
    chat: bool = True,
    store: VectorStore | None = None,
    token_budget: int = TOKEN_BUDGET,
) -> VectorSet:
    """One vector per preference pair (section 1.3):

        v_d = abar_l(p, chosen; M0) - abar_l(p, rejected; M0)

    checkpoint: M0. layers: block indices. chat: render with M0's chat template, or join prompt and reply
    bare, as the authors' code does. store: rows already there are read, the others are computed and added,
    block by block. token_budget: padded tokens per forward pass. Gives rows in the order of `pairs`, ids =
    pair ids.

    Raises VectorError for a layer that does not exist, texts that do not fit the context, activations that
    are not finite; StoreError if the store holds vectors of another model or setting.

    >>> from probekit.pairs import load_pairs
    >>> from probekit.testing import planted_pairs, tiny_checkpoint
    >>> pair_vectors(tiny_checkpoint(), load_pairs(planted_pairs(8)), layers=[1]).values.shape
    torch.Size([8, 1, 32])
    """
    values = _differences(
        checkpoint, pair_texts(pairs), layers=layers, chat=chat, store=store, token_budget=token_budget
    )
    return VectorSet(pairs.ids, tuple(layers), values, checkpoint.fingerprint, chat=chat)


def behaviour_vectors(
    checkpoint: Checkpoint,
    contrasts: pl.DataFrame,
    *,
    layers: Sequence[int],
    chat: bool = True,
    other: Checkpoint | None = None,
    store: VectorStore | None = None,
    token_budget: int = TOKEN_BUDGET,
) -> VectorSet:
    """One vector per contrast: two replies to one prompt, the bad one showing the behaviour (section 1.2):

        v_beh(p) = abar_l(p, bad; M0) - abar_l(p, good; M0)

    contrasts: frame with the string columns contrast_id, prompt_id, user, bad, good. other: the checkpoint
    that reads the bad side, as M1 does in the authors' harness ("cross"); None, the paper's text, reads both
    sides through M0. The rest as in `pair_vectors`. Gives rows in the order of `contrasts`, ids = contrast
    ids.

    Raises VectorError as `pair_vectors`, and for missing columns, empty texts, repeated contrast ids, or an
    `other` of another width or depth.

    >>> from probekit.testing import planted_contrasts, tiny_checkpoint
    >>> behaviour_vectors(tiny_checkpoint(), planted_contrasts(4), layers=[1, 2]).values.shape
    torch.Size([4, 2, 32])
    """
    values = _differences(
        checkpoint,
        contrast_texts(contrasts),
        layers=layers,
        chat=chat,
        other=other,
        store=store,
        token_budget=token_budget,
    )
    return VectorSet(
        contrasts["contrast_id"].to_list(),
        tuple(layers),
        values,
        checkpoint.fingerprint,
        kind="behaviour",
        prompt_ids=contrasts["prompt_id"].to_list(),
        chat=chat,
        other=None if other is None else other.fingerprint,
    )


def twin_vectors(
    checkpoint: Checkpoint,
    contrasts: pl.DataFrame,
    *,
    layers: Sequence[int],
    chat: bool = True,
    other: Checkpoint | None = None,
    store: VectorStore | None = None,
    token_budget: int = TOKEN_BUDGET,
) -> VectorSet:
    """As `behaviour_vectors`, of contrasts on benign twins: answered against refused, both harmless.

    They say what a behaviour vector is made of besides the behaviour, and are the `control=` of `rank`.

    >>> from probekit.testing import planted_contrasts, tiny_checkpoint
    >>> twin_vectors(tiny_checkpoint(), planted_contrasts(4, kind="twin"), layers=[1]).kind
    'twin'
    """
    vectors = behaviour_vectors(
        checkpoint,
        contrasts,
        layers=layers,
        chat=chat,
        other=other,
        store=store,
        token_budget=token_budget,
    )
    return dataclasses.replace(vectors, kind="twin")


def response_means(
    checkpoint: Checkpoint,
    texts: Sequence[Rendered],
    *,
    layers: Sequence[int],
    token_budget: int = TOKEN_BUDGET,
) -> torch.Tensor:
    """abar_l of each text, its residual stream's mean over the reply: float32, (texts, layers, width).

    One padded batch per trace, texts of similar length together, equal texts once; the model stops after the
    last layer read, and means are taken in float32 inside the trace, so that nothing larger is kept. In the
    order given.

    Raises VectorError for a layer that does not exist, a text longer than the context, or values that are not
    finite; PackingError for a text without reply tokens.

    >>> from probekit.testing import tiny_checkpoint
    >>> text = tiny_checkpoint().render([{"role": "user", "content": "Hi?"}], "Hello.")
    >>> response_means(tiny_checkpoint(), [text], layers=[0, 2]).shape
    torch.Size([1, 2, 32])
    """
    check_layers(checkpoint, layers)
    names = [f"text {place}" for place in range(len(texts))]
    refuse(
        [
            f"{name} has {text.stop} tokens"
            for name, text in zip(names, texts, strict=True)
            if text.stop > checkpoint.max_length
        ],
        checkpoint.max_length,
    )
    with progress(len(texts)) as bar:
        values = means(checkpoint, texts, layers=layers, token_budget=token_budget, bar=bar)
    check_finite(values, names)
    return values


def check_lengths(checkpoint: Checkpoint, pairs: PairSet, *, chat: bool = True) -> None:
    """Raise VectorError, listing every pair whose prompt, or prompt and reply, does not fit the context.

    Nothing is ever truncated, so `pair_vectors` asks this before any long work.

    >>> from probekit.pairs import load_pairs
    >>> from probekit.testing import planted_pairs, tiny_checkpoint
    >>> check_lengths(tiny_checkpoint(), load_pairs(planted_pairs(8)))
    """
    lengths_that_fit((checkpoint, checkpoint), pair_texts(pairs), chat=chat)


def _differences(
    checkpoint: Checkpoint,
    texts: Sequence[Text],
    *,
    layers: Sequence[int],
    chat: bool,
    token_budget: int,
    other: Checkpoint | None = None,
    store: VectorStore | None = None,
) -> torch.Tensor:
    """abar(first reply; other) - abar(second reply; checkpoint), shape (texts, layers, width)."""
    import torch

    readers = (other or checkpoint, checkpoint)
    for reader in readers:
        check_layers(reader, layers)
    if readers[0].width != checkpoint.width or readers[0].n_blocks != checkpoint.n_blocks:
        raise VectorError(
            f"{readers[0].name} has {readers[0].n_blocks} blocks of width {readers[0].width}, "
            f"{checkpoint.name} {checkpoint.n_blocks} of width {checkpoint.width}; only models of one shape "
            "can be read against each other."
        )
    key = StoreKey(
        checkpoint.fingerprint,
        chat=chat,
        dtype=str(checkpoint.hf.dtype).removeprefix("torch."),
        other="" if other is None else other.fingerprint,
    )
    by_id = {text.id: text for text in texts}
    gaps = {tuple(layers): list(by_id)} if store is None else store.missing(key, by_id, layers=layers)
    lengths = lengths_that_fit(readers, [by_id[one] for ids in gaps.values() for one in ids], chat=chat)
    rows: dict[str, torch.Tensor] = {}
    with progress(2 * len(lengths)) as bar:
        for gap, ids in gaps.items():
            # Sorted by length and id, so that a run that was interrupted goes on with the same blocks.
            ids = sorted(ids, key=lambda one: (-lengths[one], one))
            for block in (ids[start : start + BLOCK_ROWS] for start in range(0, len(ids), BLOCK_ROWS)):
                some = [by_id[one] for one in block]
                values = _read(readers, some, layers=gap, chat=chat, token_budget=token_budget, bar=bar)
                check_finite(values, [text.name for text in some])
                if store is None:
                    rows.update(zip(block, values, strict=True))
                else:
                    store.write(key, block, values, layers=gap)
    if store is not None:
        return store.read(key, [text.id for text in texts], layers=layers)
    return torch.stack([rows[text.id] for text in texts])


def _read(
    readers: tuple[Checkpoint, Checkpoint],
    texts: Sequence[Text],
    *,
    layers: Sequence[int],
    chat: bool,
    token_budget: int,
    bar: tqdm[None],
) -> torch.Tensor:
    first, second = (
        [reader.render(text.prompt, text.replies[side], chat=chat) for text in texts]
        for side, reader in enumerate(readers)
    )
    if readers[0] is readers[1]:  # both sides in the same batches
        both = means(readers[0], first + second, layers=layers, token_budget=token_budget, bar=bar)
        return both[: len(texts)] - both[len(texts) :]
    return means(readers[0], first, layers=layers, token_budget=token_budget, bar=bar) - means(
        readers[1], second, layers=layers, token_budget=token_budget, bar=bar
    )
