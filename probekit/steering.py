"""Does adding the vector cause the behaviour, and at which layer: replies of a steered model.

Layer i is `block_out[i]` for reading and for steering alike: the vector is added where it was read. (The
authors' code reads `hidden_states[20]`, the output of block 19, and adds it to the output of block 20;
reference/probe_attribution.md, section 1.6.) A ranking says which pairs point along a vector; that the vector
carries the behaviour is shown only by adding it to M0, and only against what any push of this size does.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from probekit._frame_cache import cached_frame, digest
from probekit._reading import block_out, check_layers, put_block_out
from probekit._wilson import wilson_interval
from probekit.judges import VERDICTS, judge_refusals
from probekit.packing import TOKEN_BUDGET
from probekit.rollouts import draw, sample
from probekit.vectors import VectorSet, pool

if TYPE_CHECKING:
    import torch
    from nnsight.intervention.envoy import Envoy

    from probekit.checkpoints import Checkpoint

STRENGTH = 2.0  # the paper's, reference 1.6

SWEEP_COLUMNS = {
    "layer": pl.Int64,  # block index; null without steering
    "direction": pl.String,  # "behaviour", "random" (another direction of the same norm) or "none"
    "norm": pl.Float64,  # of what was added, in activation units: |strength| * |vector|
    "n": pl.Int64,  # replies, one a prompt
    # Each verdict's share of all n replies, with its 95 % Wilson interval: the three add up to 1.
    **{f"{verdict}{end}": pl.Float64 for verdict in VERDICTS for end in ("", "_low", "_high")},
}


BY_LAYER_COLUMNS = {
    "layer": pl.Int64,
    # Compliance with the behaviour vector added, and with a random direction: shares with their intervals.
    **{f"{name}{end}": pl.Float64 for name in ("behaviour", "random") for end in ("", "_low", "_high")},
    "unparsable": pl.Float64,  # with the behaviour vector added
    "average_precision": pl.Float64,  # of the ranking by this layer; null without `quality`
}


class SteeringError(ValueError):
    """A vector, strength, checkpoint or set of prompts that cannot be steered with."""


def steer(
    checkpoint: Checkpoint,
    prompts: pl.DataFrame,
    vector: torch.Tensor,
    *,
    layer: int,
    strength: float = STRENGTH,
    max_new_tokens: int = 32,
    token_budget: int = TOKEN_BUDGET,
    cache: str | PathLike[str] | None = None,
) -> pl.DataFrame:
    """Greedy replies with a vector added to the residual stream after one block (section 1.6):

        h_t <- h_t + strength * vector    at the prompt's last token and at every token of the reply

    These are the positions that a reply's tokens are chosen from, the first one included, on which much of
    refusing or complying hangs; the rest of the prompt is read as it is. The authors' hook too leaves all of
    the prompt but its last token alone; whether it adds to that one depends on the form of a block's output.
    They sample at temperature 0.7. Here decoding is greedy, so that the vector is all that differs between
    two runs.

    vector: shape (width,), in activation units, such as a row of `pool`. layer: block index. strength: in
    units of the vector, 1 being the vector itself; negative subtracts it. The rest, `cache` too, and the
    frame that comes back, as in `sample`; strength 0 gives what `sample` gives at temperature 0.

    Raises SteeringError for no prompts, a vector of another shape, a product that is not finite in the
    checkpoint's dtype, a checkpoint that is read remotely; VectorError for a layer that does not exist;
    and what `sample` raises.

    >>> import torch
    >>> from probekit.testing import tiny_checkpoint
    >>> asked = pl.DataFrame({"user": ["Hi?"]})
    >>> steer(tiny_checkpoint(), asked, torch.ones(32), layer=1, max_new_tokens=3).shape
    (1, 5)
    """
    _check(checkpoint, prompts, [layer])
    added = _product(checkpoint, vector, strength)

    def generate(**inputs: Any) -> torch.Tensor:
        return _steered(checkpoint, inputs, checkpoint.blocks[layer], added)

    def steered() -> pl.DataFrame:
        return draw(
            checkpoint,
            prompts,
            generate,
            temperature=0,
            max_new_tokens=max_new_tokens,
            token_budget=token_budget,
            label=f"steering block {layer} of",
        )

    if cache is None:
        return steered()
    asked = (checkpoint.name, layer, added.float().tolist(), max_new_tokens, token_budget)
    key = digest(prompts.with_columns(pl.lit(json.dumps(asked)).alias("steered with")))
    return cached_frame(Path(cache) / f"steered-{checkpoint.fingerprint}-{key}.parquet", steered)


def layer_sweep(
    checkpoint: Checkpoint,
    prompts: pl.DataFrame,
    vectors: VectorSet,
    *,
    layers: Sequence[int],
    strength: float = STRENGTH,
    seed: int = 0,
    max_new_tokens: int = 32,
    token_budget: int = TOKEN_BUDGET,
    cache: str | PathLike[str] | None = None,
) -> pl.DataFrame:
    """Verdicts on the replies steered layer by layer: by the pooled vector, and by a random direction.

    checkpoint: M0. prompts: those whose replies are to change, such as harmful ones with a distractor, which
    M0 refuses. vectors: behaviour vectors read through this checkpoint at these layers; `pool`ed. strength:
    in units of the pooled vector. seed: of the random directions, one a layer, normally distributed and
    scaled to the pooled vector's norm; that of a layer is the same whatever other layers are asked for.
    cache: a folder where replies are kept, layer by layer, so that a sweep cut short goes on there.

    Returns the columns of `SWEEP_COLUMNS`: a row for direction "none", the checkpoint without steering, and
    then for each layer, in the order given, one for "behaviour" and one for "random". Unlike the rates of
    `effects`, shares are of all replies: too strong a push makes a model babble, and that is no compliance.

    Raises SteeringError also for layers that were not read and vectors of another checkpoint; else as
    `steer`.

    >>> from probekit.testing import planted_contrasts, tiny_checkpoint
    >>> from probekit.vectors import behaviour_vectors
    >>> vectors = behaviour_vectors(tiny_checkpoint(), planted_contrasts(2), layers=[1])
    >>> asked = pl.DataFrame({"user": ["Hi?"]})
    >>> layer_sweep(tiny_checkpoint(), asked, vectors, layers=[1])["direction"].to_list()
    ['none', 'behaviour', 'random']
    """
    _check(checkpoint, prompts, layers)
    if vectors.fingerprint != checkpoint.fingerprint:
        raise SteeringError(
            f"These vectors are of checkpoint {vectors.fingerprint}, and {checkpoint.name} is "
            f"{checkpoint.fingerprint}. Give the checkpoint that they were read through; `steer` adds "
            "any vector to any checkpoint."
        )
    if missing := [layer for layer in layers if layer not in vectors.layers]:
        raise SteeringError(f"The layers {missing} were not read; these vectors have {vectors.layers}.")
    pooled = pool(vectors)[[vectors.layers.index(layer) for layer in layers]]
    random = random_directions(checkpoint, seed=seed)[list(layers)]
    random *= pooled.norm(dim=1, keepdim=True) / random.norm(dim=1, keepdim=True)
    for vector in (*pooled, *random):  # before the first reply
        _product(checkpoint, vector, strength)
    plain = sample(
        checkpoint,
        prompts,
        temperature=0,
        max_new_tokens=max_new_tokens,
        token_budget=token_budget,
        cache=cache,
    )
    rows = [(None, "none", 0.0, *_shares(plain))]
    for layer, *directions in zip(layers, pooled, random, strict=True):
        for direction, vector in zip(("behaviour", "random"), directions, strict=True):
            replies = steer(
                checkpoint,
                prompts,
                vector,
                layer=layer,
                strength=strength,
                max_new_tokens=max_new_tokens,
                token_budget=token_budget,
                cache=cache,
            )
            rows.append((layer, direction, abs(strength) * float(vector.norm()), *_shares(replies)))
    return pl.DataFrame(rows, schema=SWEEP_COLUMNS, orient="row")


def by_layer(sweep: pl.DataFrame, quality: pl.DataFrame | None = None) -> pl.DataFrame:
    """A sweep with one row a layer, by rising layer: how the vector steers there, and how well it ranks.

    sweep: what `layer_sweep` gives. quality: columns layer and average_precision; layers that are in one of
    the two only have nulls in the other's columns. Returns the columns of `BY_LAYER_COLUMNS`. Raises
    SteeringError for missing columns and a layer that stands in a frame twice.

    >>> row = {"layer": 3, "direction": "behaviour", "complied": 0.6, "complied_low": 0.3}
    >>> sweep = pl.DataFrame([row | {"complied_high": 0.9, "unparsable": 0.0}])
    >>> by_layer(sweep).select("layer", "behaviour", "random").row(0)
    (3, 0.6, None)
    """
    shares = ("complied", "complied_low", "complied_high")
    if quality is None:
        quality = pl.DataFrame(schema={"layer": pl.Int64, "average_precision": pl.Float64})
    _need("sweep", sweep, ("layer", "direction", *shares, "unparsable"))
    _need("quality", quality, ("layer", "average_precision"))
    rows = {
        direction: sweep.filter(pl.col("layer").is_not_null(), pl.col("direction") == direction)
        for direction in ("behaviour", "random")
    }
    for name, frame in {**rows, "quality": quality}.items():
        if twice := frame["layer"].filter(frame["layer"].is_duplicated()).to_list():
            raise SteeringError(
                f"Layer {twice[0]} stands there {twice.count(twice[0])} times for {name}; keep one row."
            )
    layers = [one["layer"].cast(pl.Int64) for one in (*rows.values(), quality)]
    joined = pl.concat(layers).unique().sort().to_frame()
    for direction, frame in rows.items():
        names = {share: share.replace("complied", direction) for share in shares}
        more = ["unparsable"] if direction == "behaviour" else []
        joined = joined.join(frame.select("layer", *shares, *more).rename(names), on="layer", how="left")
    joined = joined.join(quality.select("layer", "average_precision"), on="layer", how="left")
    return joined.sort("layer").select(pl.col(name).cast(kind) for name, kind in BY_LAYER_COLUMNS.items())


def _need(name: str, frame: pl.DataFrame, columns: Sequence[str]) -> None:
    if missing := [column for column in columns if column not in frame.columns]:
        raise SteeringError(
            f"The {name} lacks the columns {', '.join(missing)}; it has {', '.join(frame.columns)}."
        )


def random_directions(checkpoint: Checkpoint, *, seed: int) -> torch.Tensor:
    """A direction for each block, drawn from a normal distribution: float32 of shape (blocks, width).

    >>> from probekit.testing import tiny_checkpoint
    >>> random_directions(tiny_checkpoint(), seed=0).shape
    torch.Size([4, 32])
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    return torch.randn(checkpoint.n_blocks, checkpoint.width, generator=generator)


def _check(checkpoint: Checkpoint, prompts: pl.DataFrame, layers: Sequence[int]) -> None:
    if checkpoint.remote not in (False, "local"):
        raise SteeringError(
            f"{checkpoint.name} is read remotely, but replies are sampled here; open it without remote="
        )
    if prompts.is_empty():
        raise SteeringError("There are no prompts to steer on; give at least one.")
    check_layers(checkpoint, layers)


def _product(checkpoint: Checkpoint, vector: torch.Tensor, strength: float) -> torch.Tensor:
    """strength * vector, in the dtype that it is added in."""
    if vector.shape != (checkpoint.width,):
        raise SteeringError(
            f"The vector has shape {tuple(vector.shape)}, but the residual stream of {checkpoint.name} has "
            f"width {checkpoint.width}. Give one row of `pool`, of vectors of this checkpoint."
        )
    added = (strength * vector.float()).to(checkpoint.hf.dtype)
    if not added.isfinite().all():
        raise SteeringError(
            f"strength * vector is not finite (NaN or infinite) in {added.dtype}, with strength {strength} "
            f"and a vector of norm {float(vector.float().norm())}. Give finite numbers, or smaller ones."
        )
    return added


def _steered(
    checkpoint: Checkpoint, inputs: dict[str, Any], block: Envoy, added: torch.Tensor
) -> torch.Tensor:
    """What transformers' generate gives for these inputs, with `added` at the last position of every pass.

    With padding on the left and a cache, this is the prompt's last token in the first pass, and in each pass
    after it the token that was chosen last.
    """
    import nnsight

    with warnings.catch_warnings():
        # How a loop over all passes ends, however many there are until every reply has ended.
        warnings.filterwarnings("ignore", message=".* the loop asked for a step the run did not make")
        with checkpoint.model.generate() as tracer:
            with tracer.invoke(**inputs):
                for _ in tracer.iter[:]:
                    _add_at_end(block, added)
            with tracer.invoke():  # nothing after the loop runs
                tokens: torch.Tensor = nnsight.save(tracer.result)
    return tokens


def _add_at_end(block: Envoy, added: torch.Tensor) -> None:
    """Runs inside a trace."""
    hidden = block_out(block).clone()
    hidden[:, -1] += added.to(hidden.device)
    put_block_out(block, hidden)


def _shares(replies: pl.DataFrame) -> list[float]:
    """n, and of each verdict its share and interval: what `SWEEP_COLUMNS` has from n on."""
    verdicts, n = judge_refusals(replies)["verdict"].to_list(), replies.height
    counts = [verdicts.count(verdict) for verdict in VERDICTS]
    return [n, *(number for count in counts for number in (count / n, *wilson_interval(count, n)))]
