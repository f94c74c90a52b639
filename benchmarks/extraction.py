"""Reading vectors, against the bare forward pass, the loops that most people write, and the floor."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from benchmarks.turns import in_turns, ratio
from probekit._reading import memory_budget, windows
from probekit._texts import lengths_that_fit, pair_texts, plan
from probekit.checkpoints import Checkpoint, Rendered
from probekit.figures import Figure
from probekit.packing import PADDING, TOKEN_BUDGET, Batch, batches, distinct, padding_waste, rows
from probekit.pairs import PairSet, load_pairs
from probekit.vectors import response_means

if TYPE_CHECKING:
    import torch

USUAL_BATCH = 8  # rows of a padded batch in the loop that most people write
PROMPT, REPLY = 200, 100  # tokens of the long texts


def compare(checkpoint: Checkpoint, pairs: PairSet, *, layer: int, repeats: int) -> list[Figure]:
    """The figures `extraction.*` and `padding.waste`, on these pairs and on long ones of their words."""
    texts = rendered(checkpoint, pairs)
    packed = pack(checkpoint, texts)
    check_same(checkpoint, texts, layer)
    alone = dataclasses.replace(checkpoint)
    alone.shares_prompts = False
    inputs = forward_inputs(checkpoint, packed)
    few = texts[: 2 * max(1, len(pairs) // 8)]
    with cut(checkpoint, layer) as short:
        ours, bare, usual, apart, ours_few, one_by_one, rate = in_turns(
            lambda: response_means(checkpoint, texts, layers=[layer]),
            lambda: bare_forward(short, inputs),
            lambda: usual_loop(checkpoint, texts, layer=layer, size=USUAL_BATCH),
            lambda: response_means(alone, texts, layers=[layer]),
            lambda: response_means(checkpoint, few, layers=[layer]),
            lambda: usual_loop(checkpoint, few, layer=layer, size=1),
            lambda: product(checkpoint),
            repeats=repeats,
        )
    tokens = sum(row.width for batch in packed for row in batch.rows)
    floor = [
        seconds * tokens * block_flops(checkpoint) * (layer + 1) / product_flops(checkpoint)
        for seconds in rate
    ]
    return [
        ratio("extraction.vs_bare_forward", bare, ours, ">= 0.95"),
        ratio("extraction.vs_naive_loop", usual, ours, ">= 4"),
        *long_prompts(checkpoint, pairs, layer=layer, repeats=repeats),
        ratio("extraction.vs_batch_of_one", one_by_one, ours_few),
        ratio("extraction.prompt_sharing", apart, ours),
        ratio("extraction.above_floor", ours, floor),
        padding(checkpoint, pairs),
    ]


def pack(checkpoint: Checkpoint, texts: Sequence[Rendered]) -> list[Batch]:
    """The batches in which these texts are read."""
    return list(batches(rows(distinct(texts)[0], d=checkpoint.width), token_budget=memory_budget(checkpoint)))


def padding(checkpoint: Checkpoint, pairs: PairSet) -> Figure:
    """The share of padding in what `pair_vectors` reads of these pairs, block by block."""
    texts = pair_texts(pairs)
    lengths = lengths_that_fit((checkpoint, checkpoint), texts, chat=True)
    packed = [
        batch
        for block in plan(texts, lengths)
        for batch in pack(
            checkpoint, [checkpoint.render(text.prompt, reply) for text in block for reply in text.replies]
        )
    ]
    return Figure("padding.waste", padding_waste(packed), n=len(packed), target="<= 0.05")


def long_prompts(checkpoint: Checkpoint, pairs: PairSet, *, layer: int, repeats: int) -> list[Figure]:
    """Prompts of 200 tokens with replies of 100, an eighth as many pairs as there are (8 at least)."""
    texts = rendered(checkpoint, long_pairs(checkpoint, pairs, n=max(8, len(pairs) // 8)))
    alone = dataclasses.replace(checkpoint)
    alone.shares_prompts = False
    ours, usual, apart = in_turns(
        lambda: response_means(checkpoint, texts, layers=[layer]),
        lambda: usual_loop(checkpoint, texts, layer=layer, size=USUAL_BATCH),
        lambda: response_means(alone, texts, layers=[layer]),
        repeats=repeats,
    )
    return [
        ratio("extraction.vs_naive_loop.long_prompts", usual, ours),
        ratio("extraction.prompt_sharing.long_prompts", apart, ours),
    ]


def rendered(checkpoint: Checkpoint, pairs: PairSet) -> list[Rendered]:
    """The two texts of each pair, in the order of the pairs."""
    each = pairs.frame.select("prompt", "chosen", "rejected").iter_rows()
    return [checkpoint.render(prompt, reply) for prompt, *replies in each for reply in replies]


def long_pairs(checkpoint: Checkpoint, pairs: PairSet, *, n: int) -> PairSet:
    """Pairs of long texts, made of the words of these."""
    words = itertools.cycle(
        " ".join(pairs.frame["chosen"].to_list() + pairs.frame["rejected"].to_list()).split()
    )

    def text(number: int, tokens: int) -> str:
        some = [str(number), *itertools.islice(words, tokens)]
        ids = checkpoint.tokenizer(" ".join(some), add_special_tokens=False)["input_ids"][:tokens]
        return str(checkpoint.tokenizer.decode(ids))

    columns = {"prompt": PROMPT, "chosen": REPLY, "rejected": REPLY - 1}  # never equal
    return load_pairs([{name: text(row, tokens) for name, tokens in columns.items()} for row in range(n)])


def check_same(checkpoint: Checkpoint, texts: Sequence[Rendered], layer: int) -> None:
    """Fail where the ways of reading that are timed do not give the same means."""
    import torch

    ours = response_means(checkpoint, texts, layers=[layer])[:, 0]
    theirs = usual_loop(checkpoint, texts, layer=layer, size=USUAL_BATCH)
    difference = float((ours - theirs).norm() / theirs.norm())
    allowed = 1e-4 if checkpoint.hf.dtype == torch.float32 else 2e-2
    assert difference <= allowed, f"the means differ by {difference:.1e}"


def usual_loop(checkpoint: Checkpoint, texts: Sequence[Rendered], *, layer: int, size: int) -> torch.Tensor:
    """What most people write: file order, padded, all layers and hidden states, chosen and rejected apart."""
    import torch

    sides = []
    for side in (texts[0::2], texts[1::2]):
        means: list[torch.Tensor] = []
        for start in range(0, len(side), size):
            some = side[start : start + size]
            width = max(text.stop for text in some)
            ids, mask = (torch.zeros(len(some), width, dtype=torch.long) for _ in range(2))
            for row, text in enumerate(some):
                ids[row, : text.stop], mask[row, : text.stop] = torch.tensor(text.ids[: text.stop]), 1
            with torch.no_grad():
                out = checkpoint.hf(input_ids=ids, attention_mask=mask, output_hidden_states=True)
            hidden = out.hidden_states[layer + 1].float()
            means += [hidden[row, text.start : text.stop].mean(0) for row, text in enumerate(some)]
        sides.append(torch.stack(means))
    return torch.stack(sides, dim=1).flatten(0, 1)


@contextmanager
def cut(checkpoint: Checkpoint, layer: int) -> Iterator[Any]:
    """The model without its head and the blocks above `layer`; the blocks below are the same modules."""
    import copy

    whole = checkpoint.hf.get_submodule(checkpoint.blocks_path.rpartition(".")[0])
    short = copy.copy(whole)
    short._modules = dict(whole._modules)
    name = checkpoint.blocks_path.rpartition(".")[2]
    setattr(short, name, getattr(whole, name)[: layer + 1])
    yield short


def forward_inputs(checkpoint: Checkpoint, packed: Sequence[Batch]) -> list[dict[str, torch.Tensor]]:
    """What the model is given for these batches."""
    assert not any(windows(checkpoint)), "a model with sliding windows needs masks of its own"
    found = []
    for batch in packed:
        shared = len(batch.texts) > len(batch.rows)
        mask = batch.mask(checkpoint.hf.dtype) if shared else (batch.segments != PADDING).long()
        found.append({"input_ids": batch.ids, "attention_mask": mask, "position_ids": batch.positions})
    return found


def bare_forward(short: Any, inputs: Sequence[dict[str, torch.Tensor]]) -> None:
    """The forward passes alone, of a model that ends at the layer read: nothing is packed, pooled or kept."""
    import torch

    for one in inputs:
        with torch.no_grad():
            short(**one, use_cache=False)


def block_flops(checkpoint: Checkpoint) -> float:
    """Floating point operations of one block for one token, attention scores left out."""
    block = checkpoint.hf.get_submodule(checkpoint.blocks_path)[0]
    return 2.0 * sum(weight.numel() for weight in block.parameters() if weight.dim() == 2)


def product_flops(checkpoint: Checkpoint) -> float:
    """Those of `product`."""
    return 2.0 * 16 * TOKEN_BUDGET * checkpoint.width * 4 * checkpoint.width


def product(checkpoint: Checkpoint) -> None:
    """A bare product of matrices of a block's shape, in the model's dtype: the rate of the machine."""
    import torch

    weight = torch.ones(4 * checkpoint.width, checkpoint.width, dtype=checkpoint.hf.dtype)
    some = torch.ones(TOKEN_BUDGET, checkpoint.width, dtype=checkpoint.hf.dtype)
    with torch.no_grad():
        for _ in range(16):
            torch.nn.functional.linear(some, weight)
