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
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import polars as pl

from probekit._precision import DtypeProbe, probe_dtype
from probekit._reading import block_out, check_layers, means, progress
from probekit._texts import Text, contrast_texts, facts, lengths_that_fit, pair_texts, plan, refuse
from probekit._token_reading import reply_states
from probekit._vector_set import (
    Kind,
    MappedRows,
    VectorError,
    VectorSet,
    agreement,
    by_prompt,
    check_finite,
    pool,
)
from probekit.pairs import PairSet
from probekit.store import StoreKey, VectorStore

if TYPE_CHECKING:
    import torch
    from tqdm import tqdm

    from probekit.checkpoints import Checkpoint, Rendered

__all__ = [
    "DtypeProbe",
    "Kind",
    "MappedRows",
    "VectorError",
    "VectorSet",
    "agreement",
    "behaviour_vectors",
    "block_out",
    "by_prompt",
    "check_lengths",
    "pair_vectors",
    "pool",
    "probe_dtype",
    "prompt_vectors",
    "reply_states",
    "response_means",
    "twin_vectors",
]


def pair_vectors(
    checkpoint: Checkpoint,
    pairs: PairSet,
    *,
    layers: Sequence[int],
    chat: bool = True,
    store: VectorStore | None = None,
    mapped: Literal["float32", "float16"] | None = None,
    token_budget: int | None = None,
) -> VectorSet:
    """One vector per preference pair (section 1.3):

        v_d = abar_l(p, chosen; M0) - abar_l(p, rejected; M0)

    checkpoint: M0. layers: block indices. chat: render with M0's chat template, or join prompt and reply
    bare, as the authors' code does. store: rows already there are read, the others are computed and added,
    block by block. mapped: leaves the values in a file of the store, in this dtype, and reads them when they
    are asked for; for sets too large for the memory. token_budget: padded tokens per forward pass; None takes
    it from the free memory, and halves it where a pass does not fit. Gives rows in the order of `pairs`, ids
    = pair ids.

    Raises VectorError for a layer that does not exist, texts that do not fit the context, activations that
    are not finite; StoreError if the store holds vectors of another model or setting.

    >>> from probekit.pairs import load_pairs
    >>> from probekit.testing import planted_pairs, tiny_checkpoint
    >>> pair_vectors(tiny_checkpoint(), load_pairs(planted_pairs(8)), layers=[1]).values.shape
    torch.Size([8, 1, 32])
    """
    values = _differences(
        checkpoint,
        pair_texts(pairs),
        layers=layers,
        chat=chat,
        store=store,
        mapped=mapped,
        token_budget=token_budget,
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
    token_budget: int | None = None,
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
    token_budget: int | None = None,
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


def prompt_vectors(
    checkpoint: Checkpoint,
    asked: PairSet | pl.DataFrame,
    *,
    layers: Sequence[int],
    chat: bool = True,
    token_budget: int | None = None,
) -> VectorSet:
    """What is asked, one vector for each pair or contrast: the mean of the residual stream over its prompt.

    asked: preference pairs, or contrasts as in `behaviour_vectors`. Over all tokens of the rendered prompt
    but the first, whose state is the same everywhere and far larger than others. Equal prompts are read once.
    Gives float32 rows in the order of `asked`, ids = pair or contrast ids. Raises VectorError as
    `response_means`, and as `pair_vectors` and `behaviour_vectors` for pairs and contrasts that are none.

    >>> from probekit.testing import planted_contrasts, tiny_checkpoint
    >>> prompt_vectors(tiny_checkpoint(), planted_contrasts(4), layers=[1, 2]).values.shape
    torch.Size([4, 2, 32])
    """
    from probekit.checkpoints import Rendered

    texts = pair_texts(asked) if isinstance(asked, PairSet) else contrast_texts(asked)
    whole = [checkpoint.render(text.prompt, text.replies[0], chat=chat) for text in texts]
    prompts = [Rendered(one.ids[: one.start], min(1, one.start - 1), one.start) for one in whole]
    values = response_means(checkpoint, prompts, layers=layers, token_budget=token_budget)
    ids = asked.ids if isinstance(asked, PairSet) else asked["contrast_id"].to_list()
    return VectorSet(ids, tuple(layers), values, checkpoint.fingerprint, kind="prompt", chat=chat)


def response_means(
    checkpoint: Checkpoint,
    texts: Sequence[Rendered],
    *,
    layers: Sequence[int],
    token_budget: int | None = None,
) -> torch.Tensor:
    """abar_l of each text, its residual stream's mean over the reply: float32, (texts, layers, width).

    One padded batch per trace, a prompt once with its replies, rows of similar length together, equal texts
    once; the model stops after the last layer read, and means are taken in float32 inside the trace, so that
    nothing larger is kept. In the order given.

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


def store_key(checkpoint: Checkpoint, *, chat: bool, other: Checkpoint | None = None) -> StoreKey:
    """What vectors read by this checkpoint depend on besides their texts and layers."""
    hashes = checkpoint.hashes
    return StoreKey(
        weights=hashes["weights"],
        tokenizer=hashes["tokenizer"],
        chat_template=hashes["chat_template"] if chat else "",
        chat=chat,
        dtype=str(checkpoint.hf.dtype).removeprefix("torch."),
        other="" if other is None else other.fingerprint,
    )


def fill(
    store: VectorStore,
    checkpoint: Checkpoint,
    texts: Sequence[Text],
    *,
    layers: Sequence[int],
    chat: bool,
    token_budget: int | None = None,
    other: Checkpoint | None = None,
    part: tuple[int, int] = (0, 1),
) -> None:
    """Compute and store what a store lacks of these texts' vectors.

    part: (i, n) is process i of n: it begins with every n-th block from the i-th on, and goes on with those
    of the others that are not there by then, the last first. Blocks are cut the same way however many
    processes there are and whatever is stored already, so that a run that was interrupted, or of which one
    process died, leaves whole blocks for any other. Raises VectorError and StoreError as `pair_vectors`.
    """
    key = store_key(checkpoint, chat=chat, other=other)
    ids = dict.fromkeys(text.id for text in texts)
    gaps = store.missing(key, ids, layers=layers)

    def there(some: list[Text], gap: tuple[int, ...]) -> bool:
        return part[1] > 1 and store.holds(key, [text.id for text in some], layers=gap)

    blocks = _blocks(
        checkpoint,
        texts,
        other=other,
        gaps=gaps,
        chat=chat,
        token_budget=token_budget,
        part=part,
        there=there,
    )
    for some, gap, values, known in blocks:
        store.write(key, [text.id for text in some], values, layers=gap, facts=known)
    store.finish(key)


def _differences(
    checkpoint: Checkpoint,
    texts: Sequence[Text],
    *,
    layers: Sequence[int],
    chat: bool,
    token_budget: int | None,
    other: Checkpoint | None = None,
    store: VectorStore | None = None,
    mapped: Literal["float32", "float16"] | None = None,
) -> torch.Tensor | MappedRows:
    """abar(first reply; other) - abar(second reply; checkpoint), shape (texts, layers, width)."""
    import torch

    check_readers(checkpoint, other, layers)
    ids = [text.id for text in texts]
    if store is not None:
        fill(store, checkpoint, texts, layers=layers, chat=chat, token_budget=token_budget, other=other)
        key = store_key(checkpoint, chat=chat, other=other)
        if mapped is not None:
            return store.mapped(key, ids, layers=layers, dtype=mapped)
        return store.read(key, ids, layers=layers)
    if mapped is not None:
        raise VectorError("Only vectors in a store can be mapped; give store= too.")
    rows: dict[str, torch.Tensor] = {}
    gaps = {tuple(layers): ids}
    for some, _, values, _ in _blocks(
        checkpoint, texts, other=other, gaps=gaps, chat=chat, token_budget=token_budget
    ):
        rows.update(zip([text.id for text in some], values, strict=True))
    return torch.stack([rows[one] for one in ids])


def check_readers(checkpoint: Checkpoint, other: Checkpoint | None, layers: Sequence[int]) -> None:
    for reader in (other or checkpoint, checkpoint):
        check_layers(reader, layers)
    if other is not None and (other.width, other.n_blocks) != (checkpoint.width, checkpoint.n_blocks):
        raise VectorError(
            f"{other.name} has {other.n_blocks} blocks of width {other.width}, "
            f"{checkpoint.name} {checkpoint.n_blocks} of width {checkpoint.width}; only models of one shape "
            "can be read against each other."
        )


def _blocks(
    checkpoint: Checkpoint,
    texts: Sequence[Text],
    *,
    other: Checkpoint | None,
    gaps: dict[tuple[int, ...], list[str]],
    chat: bool,
    token_budget: int | None,
    part: tuple[int, int] = (0, 1),
    there: Callable[[list[Text], tuple[int, ...]], bool] = lambda some, gap: False,
) -> Iterator[tuple[list[Text], tuple[int, ...], torch.Tensor, dict[str, list[Any]]]]:
    """Block by block: texts, the layers that they lack, their vectors there, and what is known of each.

    there: whether a block need no longer be read, asked before each.
    """
    readers = (other or checkpoint, checkpoint)
    by_id = {text.id: text for text in texts}
    lacks = {one: gap for gap, ids in gaps.items() for one in ids}
    if not lacks:
        return
    lengths = lengths_that_fit(readers, list(by_id.values()), chat=chat)
    cut = [[text for text in block if text.id in lacks] for block in plan(by_id.values(), lengths)]
    mine = cut[part[0] :: part[1]]
    others = [block for number, block in enumerate(cut) if number % part[1] != part[0]]
    with progress(2 * len(lacks)) as bar:
        for block in mine + others[::-1]:
            for gap in dict.fromkeys(lacks[text.id] for text in block):
                some = [text for text in block if lacks[text.id] == gap]
                if there(some, gap):
                    bar.update(2 * len(some))
                    continue
                values = _read(readers, some, layers=gap, chat=chat, token_budget=token_budget, bar=bar)
                check_finite(values, [text.name for text in some])
                yield some, gap, values, facts(some, lengths)


def _read(
    readers: tuple[Checkpoint, Checkpoint],
    texts: Sequence[Text],
    *,
    layers: Sequence[int],
    chat: bool,
    token_budget: int | None,
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
