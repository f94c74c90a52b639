"""How `vectors` reads activations: batches of rows through nnsight, the mean over reply tokens of each."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from probekit._vector_set import VectorError, repeated
from probekit.checkpoints import Rendered
from probekit.packing import PADDING, Batch, Row, batches, distinct, rows

if TYPE_CHECKING:
    import torch
    from nnsight.intervention.envoy import Envoy
    from tqdm import tqdm

    from probekit.checkpoints import Checkpoint

# At most, in one forward pass. More is not faster: on two cores 1024 tokens took the time of 4096, with 4 %
# of padding in the place of 13 %.
TOKENS = {"cpu": 1024, "cuda": 8192}
PROBE_TOKENS = 24  # of the replies that tell whether rows with a shared prompt can be read
TOLERANCES = {"float32": 1e-4}  # relative difference that is rounding
ROUNDED = 2e-2  # the same for shorter floats
# What a config says of windows in ways that are known: see `windows`.
WINDOWS = {"sliding_window", "use_sliding_window", "max_window_layers", "sliding_window_pattern"}


def means(
    checkpoint: Checkpoint,
    texts: Sequence[Rendered],
    *,
    layers: Sequence[int],
    token_budget: int | None,
    bar: tqdm[None],
) -> torch.Tensor:
    """`response_means` without its checks; the bar moves by one for each text."""
    import torch

    different, places = distinct(texts)
    times = Counter(places)
    values = torch.empty(len(different), len(layers), checkpoint.width)
    packed = rows(different, d=checkpoint.width)
    if any(len(row.texts) > 1 for row in packed) and not shares_prompts(checkpoint):
        packed = rows(different, share=False)
    left = sorted(packed, key=lambda row: -row.width)  # the order in which batches take them
    budget = memory_budget(checkpoint, most=token_budget)
    while left:
        done, apart = 0, list[Row]()
        for batch in batches(left, token_budget=budget):
            try:
                found = trace(checkpoint, batch, layers=layers)
            except Exception as error:
                if not out_of_memory(error):
                    raise
                if len(batch.texts) > len(batch.rows) == 1:  # its replies may fit one by one
                    apart += batch.rows[0].apart()
                    done += 1
                else:
                    budget = _halved(checkpoint, batch)
                break
            values[batch.texts] = found
            checkpoint.tokens_read += batch.ids.numel()
            done += len(batch.rows)
            # One reply that is not finite spoils others in its row: attention multiplies what is masked by 0.
            shared = [row for row in batch.rows if len(row.texts) > 1]
            spoiled = [row for row in shared if not values[list(row.texts)].isfinite().all()]
            apart += [one for row in spoiled for one in row.apart()]
            again = {text for row in spoiled for text in row.texts}
            bar.update(sum(times[text] for text in batch.texts if text not in again))
        left = sorted(left[done:] + apart, key=lambda row: -row.width)
    return values[places]


def memory_budget(checkpoint: Checkpoint, *, most: int | None = None) -> int:
    """Tokens of one forward pass: `most`, or what half of the free memory takes, at most `TOKENS` of the
    device.

    A power of two, so that a run and its continuation cut the same batches unless the free memory is quite
    another. Found once and kept with the checkpoint; once a pass did not fit, half of its tokens.
    """
    if checkpoint.token_budget is None and most is None:
        config: Any = checkpoint.hf.config.get_text_config()
        wide = getattr(config, "intermediate_size", None) or 4 * checkpoint.width
        per_token = 4 * (12 * checkpoint.width + 3 * wide)  # bytes in a block, in float32, without gradients
        devices = {weight.device for weight in checkpoint.hf.parameters()}
        fits = min(map(free_memory, devices)) // 2 // per_token
        usual = min(TOKENS.get(device.type, TOKENS["cuda"]) for device in devices)
        checkpoint.token_budget = min(usual, 2 ** max(0, fits.bit_length() - 1))
    return min(one for one in (most, checkpoint.token_budget) if one is not None)


def free_memory(device: torch.device) -> int:
    """Bytes; on a GPU with those that torch holds for later."""
    import psutil
    import torch

    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + held
    return int(psutil.virtual_memory().available)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says so, on any device; nnsight raises the model's errors as its own."""
    import torch

    said = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        sign in said for sign in ("out of memory", "not enough memory", "can't allocate memory")
    )


def _halved(checkpoint: Checkpoint, batch: Batch) -> int:
    """The budget after a batch that did not fit; VectorError for one that cannot be made smaller."""
    tokens = batch.ids.numel()
    if len(batch.rows) == 1:
        raise VectorError(
            f"{checkpoint.name}: a single row of {tokens} tokens does not fit the memory. Free some, read in "
            "a shorter float, or leave out the longest texts; what was stored before is kept."
        )
    warnings.warn(
        f"{checkpoint.name}: {tokens} tokens did not fit the memory; going on with {tokens // 2} at once",
        stacklevel=2,
    )
    checkpoint.token_budget = tokens // 2
    return tokens // 2


def trace(checkpoint: Checkpoint, batch: Batch, *, layers: Sequence[int]) -> torch.Tensor:
    """The means of a batch's replies, (texts, layers, width), in a forward pass up to the last layer read."""
    import nnsight
    import torch

    mask: torch.Tensor = (batch.segments != PADDING).long()
    window_masks: dict[int, torch.Tensor] = {}
    if len(batch.texts) > len(batch.rows):  # else the model's own masks are right
        dtype, looks = checkpoint.hf.dtype, windows(checkpoint)[: max(layers) + 1]
        made = {window: batch.mask(dtype, window=window) for window in {None, *looks}}
        mask = made[None]
        window_masks = {i: made[window] for i, window in enumerate(looks) if window}
    inputs = {"input_ids": batch.ids, "attention_mask": mask, "position_ids": batch.positions}
    # What the trace names is sent along where it runs remotely, so it names no checkpoint.
    blocks, weights, slots = checkpoint.blocks, batch.weights, batch.slots
    if checkpoint.remote:
        nnsight.register("probekit")  # which no server has
    with torch.no_grad(), checkpoint.model.trace(inputs, use_cache=False, remote=checkpoint.remote) as tracer:
        values = nnsight.save(_reply_means(blocks, weights, slots, layers, window_masks))
        tracer.stop()
    return values


def _reply_means(
    blocks: Sequence[Envoy],
    weights: torch.Tensor,
    slots: torch.Tensor,
    layers: Sequence[int],
    window_masks: dict[int, torch.Tensor],
) -> torch.Tensor:
    """Runs inside a trace, where reading waits for the model to get there: so in the order of the blocks.

    window_masks: those of the blocks with a sliding window, which transformers would make from a mask of ours
    as if a row were one text.
    """
    import torch

    read = {}
    for i in range(max(layers) + 1):
        if i in window_masks:
            args, kwargs = blocks[i].inputs
            device = (args[0] if args else kwargs["hidden_states"]).device
            blocks[i].inputs = (args, {**kwargs, "attention_mask": window_masks[i].to(device)})
        if i in layers:
            hidden = block_out(blocks[i])
            means = torch.einsum("rst,rtd->rsd", weights.to(hidden.device), hidden.float())
            read[i] = means.cpu()[slots]
    return torch.stack([read[layer] for layer in layers], dim=1)


def block_out(block: Envoy) -> torch.Tensor:
    """The residual stream after a decoder block, (batch, sequence, width); to be called inside a trace.

    Since transformers 5 a block gives this tensor itself, where it used to give a tuple with the tensor in
    front. `output[0]` would then silently be batch row 0, so the two are told apart here and in
    `put_block_out`, and nowhere else.
    """
    output = block.output
    return output[0] if isinstance(output, tuple) else output


def put_block_out(block: Envoy, hidden: torch.Tensor) -> None:
    """Let the model go on with this residual stream after a block; inside a trace, the other way of
    `block_out`."""
    output = block.output
    block.output = (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def windows(checkpoint: Checkpoint) -> list[int | None]:
    """How far back each block looks, in tokens: None for all the way."""
    config: Any = checkpoint.hf.config.get_text_config()
    fields = config.to_dict()
    window, kinds = fields.get("sliding_window"), fields.get("layer_types")
    if kinds is None:
        return [window] * checkpoint.n_blocks
    return [window if kind == "sliding_attention" else None for kind in kinds]


def shares_prompts(checkpoint: Checkpoint) -> bool:
    """Whether replies in one row with their prompt are read as if each stood there alone; measured once.

    Where they are not (attention of another kind, states that run through the row) there is a warning, and
    every reply is read with a prompt of its own.
    """
    if checkpoint.shares_prompts is None:
        why = _cannot_share(checkpoint)
        checkpoint.shares_prompts = not why
        if why:
            warnings.warn(
                f"{checkpoint.name}: {why}; every reply is read with its own prompt, which takes longer",
                stacklevel=2,
            )
    return checkpoint.shares_prompts


def _cannot_share(checkpoint: Checkpoint) -> str:
    """Why not, or nothing."""
    import torch

    config: Any = checkpoint.hf.config.get_text_config()
    fields = config.to_dict()
    kinds = set(fields.get("layer_types") or ())
    if odd := sorted(kinds - {"full_attention", "sliding_attention"}):
        return f"it has layers of the kind {odd[0]}"
    if odd := sorted(n for n in fields if "window" in n and n.lstrip("_") not in WINDOWS and fields[n]):
        return f"it has windows of its own kind ({odd[0]} in its config)"
    ids = torch.arange(2 * PROBE_TOKENS).remainder(config.vocab_size).tolist()
    prompt, reply = tuple(ids[:PROBE_TOKENS]), ids[PROBE_TOKENS:]
    texts = [
        Rendered((*prompt, *reply, *ids[:more]), PROBE_TOKENS, 2 * PROBE_TOKENS + more)
        for more in (0, PROBE_TOKENS // 2)
    ]
    last = [checkpoint.n_blocks - 1]

    def read(share: bool) -> torch.Tensor:
        (batch,) = batches(rows(texts, share=share), token_budget=10**6)
        values = torch.empty(len(texts), 1, checkpoint.width)
        values[batch.texts] = trace(checkpoint, batch, layers=last)
        return values

    try:
        together, alone = read(True), read(False)
    except Exception as error:  # architectures refuse a mask in their own ways
        if checkpoint.remote or out_of_memory(error):
            raise
        return f"it does not take a mask of ours ({type(error).__name__})"
    difference = float((together - alone).norm() / alone.norm())
    dtype = str(checkpoint.hf.dtype).removeprefix("torch.")
    allowed = TOLERANCES.get(dtype, ROUNDED)
    return "" if difference <= allowed else f"means differ by {difference:.1e} with a shared prompt"


def progress(total: int) -> tqdm[None]:
    from tqdm.auto import tqdm

    return tqdm(total=total, desc="reading", unit="reply", disable=None if total else True)


def check_layers(checkpoint: Checkpoint, layers: Sequence[int]) -> None:
    wrong = [layer for layer in layers if not 0 <= layer < checkpoint.n_blocks]
    if wrong or not layers or repeated(layers):
        raise VectorError(
            f"layers = {list(layers)} cannot be read from {checkpoint.name}; give different block indices "
            f"from 0 to {checkpoint.n_blocks - 1}, where i is the output of block i (the paper's "
            "layer 20 is 19)."
        )
