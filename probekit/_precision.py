"""Which dtype to read activations in: measured with the model, the texts and the machine at hand."""

from __future__ import annotations

import copy
import dataclasses
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from probekit._reading import check_layers, means, progress
from probekit._vector_set import VectorError
from probekit.pairs import PairSet

if TYPE_CHECKING:
    import torch

    from probekit.checkpoints import Checkpoint


@dataclass(frozen=True)
class DtypeProbe:
    """What `probe_dtype` found.

    dtype: the one to open the checkpoint in. speedup: how many times as fast bfloat16 is. agreement: the
    lowest cosine of a pair's vector in bfloat16 with the same in float32, over the pairs and layers tried.
    """

    dtype: str
    speedup: float
    agreement: float


def probe_dtype(
    checkpoint: Checkpoint,
    pairs: PairSet,
    *,
    layers: Sequence[int],
    n: int = 32,
    tolerance: float = 1e-3,
    repeats: int = 3,
    seed: int = 0,
) -> DtypeProbe:
    """Read some pairs in float32 and in bfloat16, in turns: bfloat16 is to be faster and to agree.

    checkpoint: M0, opened in float32. n: pairs tried, drawn with `seed`. tolerance: how far below 1 a cosine
    may be. The model is copied for the time of the test. Raises VectorError for a checkpoint in another dtype
    and for a layer that does not exist.

    >>> from probekit.pairs import load_pairs
    >>> from probekit.testing import planted_pairs, tiny_checkpoint
    >>> probe_dtype(tiny_checkpoint(), load_pairs(planted_pairs(8)), layers=[1], tolerance=0).dtype
    'float32'
    """
    import torch

    if checkpoint.hf.dtype != torch.float32:
        raise VectorError(
            f"{checkpoint.name} is in {checkpoint.hf.dtype}; open it in float32 to compare with."
        )
    check_layers(checkpoint, layers)
    short = dataclasses.replace(checkpoint, hf=copy.deepcopy(checkpoint.hf).to(torch.bfloat16))
    some = pairs.select(random.Random(seed).sample(pairs.ids, min(n, len(pairs))))
    seconds: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    values: dict[str, torch.Tensor] = {}
    each = some.frame.select("prompt", "chosen", "rejected").iter_rows()
    texts = [checkpoint.render(prompt, reply) for prompt, *replies in each for reply in replies]
    for _ in range(repeats + 1):  # the first turn warms up
        for dtype, reader in (("float32", checkpoint), ("bfloat16", short)):
            begin = time.perf_counter()
            with progress(len(texts)) as bar:
                read = means(reader, texts, layers=layers, token_budget=None, bar=bar)
            seconds[dtype].append(time.perf_counter() - begin)
            values[dtype] = read[0::2] - read[1::2]
    full, half = (statistics.median(seconds[dtype][1:]) for dtype in ("float32", "bfloat16"))
    agreement = float(torch.cosine_similarity(values["float32"], values["bfloat16"], dim=2).min())
    better = half < full and agreement >= 1 - tolerance
    return DtypeProbe("bfloat16" if better else "float32", full / half, agreement)
