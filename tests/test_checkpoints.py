from __future__ import annotations

import functools
import json
import shutil
import tempfile
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from probekit.checkpoints import Checkpoint, CheckpointError, merged, open_checkpoint, save_checkpoint
from probekit.testing import ARCHS, Arch, Template, tiny_checkpoint, tiny_checkpoint_folder

USER = [{"role": "user", "content": "How do I bake bread?"}]
TALK = [
    {"role": "system", "content": "Be brief."},
    *({"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}),
    *USER,
]
REPLIES = ("Sure, open the box.", "déjà vu 🦊🦊, 日本", "x", "- one\n- two\n\nthree  ", "0 1 2", "🏴‍☠️")


@functools.cache
def tiny(arch: Arch, template: Template) -> Checkpoint:
    with tempfile.TemporaryDirectory() as folder:
        return open_checkpoint(tiny_checkpoint_folder(arch, folder, template=template))


def as_read(arch: Arch, text: str) -> str:
    """What a tokenizer makes of a text: Qwen's composes its characters (NFC)."""
    return unicodedata.normalize("NFC", text) if arch == "qwen2" else text


@pytest.mark.parametrize("reply", REPLIES)
@pytest.mark.parametrize("prompt", [USER, TALK], ids=["one turn", "system and turns"])
@pytest.mark.parametrize("template", ["chatml", "default_system"])
@pytest.mark.parametrize("arch", ARCHS)
def test_the_span_is_the_reply_to_the_token(
    arch: Arch, template: Template, prompt: list[dict[str, str]], reply: str
) -> None:
    checkpoint = tiny(arch, template)
    tokenizer = checkpoint.tokenizer
    text = checkpoint.render(prompt, reply)
    assert tokenizer.decode(text.ids[text.start : text.stop]) == as_read(arch, reply)
    assert tokenizer.decode(text.ids[: text.start]) == checkpoint.prompt_text(prompt)
    # the same tokens as where the template renders the whole talk, with the end of the turn right after them
    talk = [*prompt, {"role": "assistant", "content": reply}]
    whole = tokenizer.apply_chat_template(talk, tokenize=True, return_dict=False)
    assert tuple(whole[: text.stop]) == text.ids
    assert whole[text.stop] == tokenizer.eos_token_id == tokenizer.pad_token_id


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
@settings(max_examples=40, deadline=None)
@example("é")
@example("\u200d")
@given(reply=st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_the_span_is_exact_for_any_unicode_reply(arch: Arch, reply: str) -> None:
    assume(not reply[0].isspace())  # may be one token with the header's end, see the next test
    checkpoint = tiny(arch, "default_system")
    text = checkpoint.render(USER, reply)
    assert checkpoint.tokenizer.decode(text.ids[text.start : text.stop]) == as_read(arch, reply)


def test_a_token_over_the_boundary_counts_as_the_replys(tmp_path: Path) -> None:
    folder = tiny_checkpoint_folder("llama", tmp_path)
    checkpoint = open_checkpoint(folder, chat_template="{{ messages[0]['content'] }} A: ")
    text = checkpoint.render(USER, "the box")
    assert checkpoint.tokenizer.decode(text.ids[text.start :]) == " the box"  # the space is in " the"
    assert checkpoint.tokenizer.decode(text.ids[: text.start]) == "How do I bake bread? A:"


def test_the_default_system_turn_gives_way_to_one_of_the_prompt() -> None:
    checkpoint = tiny("llama", "default_system")
    assert checkpoint.prompt_text(USER).startswith(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    )
    assert checkpoint.prompt_text(TALK).startswith("<|im_start|>system\nBe brief.<|im_end|>\n")
    assert checkpoint.prompt_text(TALK).count("<|im_start|>system") == 1


@pytest.mark.parametrize("arch", ARCHS)
def test_without_the_template_prompt_and_reply_are_tokenised_apart_and_joined(arch: Arch) -> None:
    checkpoint = tiny(arch, "none")
    text = checkpoint.render([*TALK, {"role": "user", "content": "I bake b"}], "read the box", chat=False)
    before = checkpoint.tokenizer("Be brief.\nHi?\nHello.\nHow do I bake bread?\nI bake b")["input_ids"]
    reply = checkpoint.tokenizer("read the box")["input_ids"]
    assert text.ids == (*before, *reply)  # though " bread" is one token
    assert (text.start, text.stop) == (len(before), len(before) + len(reply))


def test_a_tokenizer_without_a_template_says_what_to_do() -> None:
    with pytest.raises(CheckpointError, match=r"has no chat template; give one with open_checkpoint"):
        tiny("llama", "none").render(USER, "Sure.")


@pytest.mark.parametrize("chat", [True, False])
def test_a_reply_without_tokens_is_an_error(chat: bool) -> None:
    with pytest.raises(CheckpointError, match=r"the reply '' has no token of its own"):
        tiny("llama", "chatml").render(USER, "", chat=chat)


@pytest.mark.parametrize("arch", ARCHS)
def test_the_blocks_are_the_models_own_in_order(arch: Arch) -> None:
    checkpoint = tiny(arch, "chatml")
    assert checkpoint.blocks_path == ("transformer.h" if arch == "gpt2" else "model.layers")
    own = checkpoint.hf.get_submodule(checkpoint.blocks_path)
    assert [envoy._module for envoy in checkpoint.blocks] == list(own)
    assert len(own) == checkpoint.n_blocks


def test_a_model_without_a_list_of_blocks_is_refused() -> None:
    checkpoint = Checkpoint(name="odd", hf=torch.nn.Linear(2, 2), tokenizer=None)
    checkpoint.hf.config = tiny("llama", "chatml").hf.config
    with pytest.raises(CheckpointError, match="odd: no list of 4 decoder blocks was found in Linear"):
        _ = checkpoint.blocks_path


# --- adapters


def adapter(checkpoint: Checkpoint, folder: Path, *, seed: int = 0) -> tuple[Path, torch.Tensor]:
    """A random LoRA on blocks 1 and up, saved, and the logits of its unmerged model. Uses the model up."""
    from peft import LoraConfig, get_peft_model

    names = [
        name
        for name, module in checkpoint.hf.named_modules()
        if f"{checkpoint.blocks_path}.0." not in name
        and name.startswith(checkpoint.blocks_path)
        and type(module).__name__ in ("Linear", "Conv1D")
    ]
    conv = checkpoint.blocks_path == "transformer.h"
    model = get_peft_model(
        checkpoint.hf, LoraConfig(r=4, target_modules=names, fan_in_fan_out=conv, init_lora_weights=False)
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) / 4)
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder, logits(model.eval())


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(3, 40).unsqueeze(0)).logits


@pytest.mark.parametrize("arch", ARCHS)
def test_a_merged_adapter_is_the_forward_of_peft(arch: Arch, tmp_path: Path) -> None:
    folder = tiny_checkpoint_folder(arch, tmp_path / "base")
    saved, wanted = adapter(open_checkpoint(folder), tmp_path / "one")
    merged = open_checkpoint(folder, adapter=saved)
    assert merged.name == "base+one"
    assert not any("lora" in name for name, _ in merged.hf.named_modules())
    torch.testing.assert_close(logits(merged.hf), wanted, atol=2e-4, rtol=1e-4)
    assert (logits(tiny_checkpoint(arch).hf) - wanted).abs().max() > 0.1


def test_several_adapters_are_merged_in_order(tmp_path: Path) -> None:
    folder = tiny_checkpoint_folder("llama", tmp_path / "base")
    one, _ = adapter(open_checkpoint(folder), tmp_path / "one")
    two, wanted = adapter(open_checkpoint(folder, adapter=one), tmp_path / "two", seed=1)
    both = open_checkpoint(folder, adapter=[one, str(two)])
    assert both.name == "base+one+two"
    torch.testing.assert_close(logits(both.hf), wanted, atol=2e-4, rtol=1e-4)


def test_the_last_template_given_wins(tmp_path: Path) -> None:
    folder = tiny_checkpoint_folder("llama", tmp_path / "base")
    saved, _ = adapter(open_checkpoint(folder), tmp_path / "one")
    (saved / "chat_template.jinja").write_text("adapter's: {{ messages[0]['content'] }} é", encoding="utf-8")
    opened = open_checkpoint(folder, adapter=saved)
    assert opened.prompt_text(USER) == "adapter's: How do I bake bread? é"
    given = open_checkpoint(folder, adapter=saved, chat_template="mine")
    assert given.prompt_text(USER) == "mine"


@pytest.mark.parametrize("arch", ARCHS)
def test_an_adapter_merged_into_a_copy_is_that_of_the_model_opened_anew(arch: Arch, tmp_path: Path) -> None:
    folder = tiny_checkpoint_folder(arch, tmp_path / "model")
    saved, _ = adapter(open_checkpoint(folder), tmp_path / "one")
    checkpoint = open_checkpoint(folder)
    _ = checkpoint.blocks  # as nnsight sees it
    before = checkpoint.fingerprint
    copied = merged(checkpoint, saved)
    opened = open_checkpoint(folder, adapter=saved)
    assert copied.name == opened.name
    assert copied.fingerprint == opened.fingerprint != before
    checkpoint.__dict__.pop("hashes")
    checkpoint.__dict__.pop("fingerprint")
    assert checkpoint.fingerprint == before
    text = torch.arange(3, 30).unsqueeze(0)
    assert torch.equal(copied.hf(text).logits, opened.hf(text).logits)
    assert len(copied.blocks) == copied.n_blocks


def test_an_adapter_of_a_deeper_model_is_refused(tmp_path: Path) -> None:
    deep = tmp_path / "deep"
    folder = tiny_checkpoint_folder("llama", tmp_path / "base")
    shutil.copytree(folder, deep)
    config = json.loads((deep / "config.json").read_text())
    (deep / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    saved, _ = adapter(open_checkpoint(folder), tmp_path / "one")
    with pytest.raises(
        CheckpointError, match=r"weights of this adapter have no place in deep, first .*layers\.3"
    ):
        open_checkpoint(deep, adapter=saved)


def test_an_adapter_of_another_architecture_is_refused(tmp_path: Path) -> None:
    gpt2 = tiny_checkpoint_folder("gpt2", tmp_path / "gpt2")
    saved, _ = adapter(tiny("qwen2", "none"), tmp_path / "one")
    tiny.cache_clear()  # the adapter was put into the model in the cache
    with pytest.raises(CheckpointError, match=r"one: this adapter does not fit gpt2: Target modules"):
        open_checkpoint(gpt2, adapter=saved)


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_folder_that_lacks_a_file_names_it(file: str, tmp_path: Path) -> None:
    folder = tiny_checkpoint_folder("llama", tmp_path / "base")
    saved, _ = adapter(open_checkpoint(folder), tmp_path / "one")
    (saved / file).rename(tmp_path / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=f"one: no {file} there; pass a folder saved by PEFT in safe"):
        open_checkpoint(folder, adapter=saved)


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(
        CheckpointError, match=r"holds an adapter, not a model; open its model, with adapter="
    ):
        open_checkpoint(tmp_path)


# --- identity, saving and opening


@pytest.mark.parametrize("arch", ARCHS)
def test_a_saved_checkpoint_opens_as_it_was(arch: Arch, tmp_path: Path) -> None:
    checkpoint = tiny(arch, "default_system")
    again = open_checkpoint(save_checkpoint(checkpoint, tmp_path / "above" / "it"))
    assert again.name == "it"
    assert again.fingerprint == checkpoint.fingerprint
    assert again.render(TALK, "Sure 🦊") == checkpoint.render(TALK, "Sure 🦊")
    assert torch.equal(logits(again.hf), logits(checkpoint.hf))
    assert again.tokenizer.padding_side == "right"
    assert not any(weight.requires_grad for weight in again.hf.parameters())


def test_a_merged_checkpoint_opens_as_it_was(tmp_path: Path) -> None:
    folder = tiny_checkpoint_folder("gpt2", tmp_path / "base")
    saved, _ = adapter(open_checkpoint(folder), tmp_path / "one")
    merged = open_checkpoint(folder, adapter=saved)
    assert open_checkpoint(save_checkpoint(merged, tmp_path / "two")).fingerprint == merged.fingerprint


def test_the_fingerprint_does_not_depend_on_the_place(tmp_path: Path) -> None:
    one, two = (open_checkpoint(tiny_checkpoint_folder("llama", tmp_path / name)) for name in ("one", "two"))
    assert one.fingerprint == two.fingerprint
    assert len(one.fingerprint) == 16
    assert int(one.fingerprint, 16) >= 0


def test_the_fingerprint_changes_with_weights_dtype_template_and_vocabulary(tmp_path: Path) -> None:
    folder = tiny_checkpoint_folder("llama", tmp_path / "base")
    nudged = open_checkpoint(folder)
    weight = nudged.hf.model.layers[2].mlp.up_proj.weight
    with torch.no_grad():
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))  # one bit
    other = open_checkpoint(folder)
    other.tokenizer.add_tokens(["<more>"])
    prints = [
        open_checkpoint(folder).fingerprint,
        nudged.fingerprint,
        other.fingerprint,
        open_checkpoint(folder, dtype="bfloat16").fingerprint,
        open_checkpoint(folder, chat_template="{{ messages[0]['content'] }}").fingerprint,
        open_checkpoint(tiny_checkpoint_folder("llama", tmp_path / "seed", seed=1)).fingerprint,
    ]
    assert len(set(prints)) == len(prints)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_are_in_the_dtype_asked_for(dtype: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint_folder("llama", tmp_path), dtype=dtype, device="cpu")
    assert {weight.dtype for weight in checkpoint.hf.parameters()} == {getattr(torch, dtype)}


def test_a_tokenizer_without_a_pad_token_pads_with_its_end_token(tmp_path: Path) -> None:
    folder = tiny_checkpoint_folder("llama", tmp_path)
    lacking(folder, "pad_token")
    tokenizer = open_checkpoint(folder).tokenizer
    assert tokenizer.pad_token == tokenizer.eos_token == "<|im_end|>"


def test_a_tokenizer_without_any_end_token_is_refused(tmp_path: Path) -> None:
    folder = tiny_checkpoint_folder("llama", tmp_path)
    lacking(folder, "pad_token", "eos_token")
    with pytest.raises(CheckpointError, match="its tokenizer has no end token"):
        open_checkpoint(folder)


def lacking(folder: Path, *names: str) -> None:
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, **dict.fromkeys(names)}))


# --- what cannot be opened


@pytest.mark.parametrize("where", ["no/such/folder", "./mine", "/mine", Path("mine"), "a b"])
def test_a_wrong_path_is_not_looked_for_on_the_hub(where: str | Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no such folder; give a folder .* hub id like"):
        open_checkpoint(where)


def test_a_hub_id_that_cannot_be_had_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"^no-such-owner/model: cannot be opened as a causal language"):
        open_checkpoint("no-such-owner/model")


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut_off(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def incomplete(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if "layers.2.mlp" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def of_another_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def without_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_weights, "cannot be opened as a causal language model: .*no file named model.safetensors"),
        (cut_off, "cannot be opened as a causal language model: .*incomplete"),
        (
            incomplete,
            "lack 3 of the model's weights, first model.layers.2.mlp.down_proj.weight; fetch or save",
        ),
        (of_another_shape, "cannot be opened as a causal language model: .*size"),
        (without_config, "cannot be opened as a causal language model: .*config.json"),
        (without_tokenizer, "its tokenizer cannot be opened"),
    ],
)
def test_a_damaged_folder_says_what_is_wrong(
    damage: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    folder = tiny_checkpoint_folder("llama", tmp_path / "damaged")
    damage(folder)
    with pytest.raises(CheckpointError, match=rf"(?s)damaged: .*{message}"):
        open_checkpoint(folder)


def test_an_unknown_dtype_or_device_is_refused(tmp_path: Path) -> None:
    folder = tiny_checkpoint_folder("llama", tmp_path)
    with pytest.raises(CheckpointError, match="dtype is 'int8'; expected one of float32, bfloat16, float16"):
        open_checkpoint(folder, dtype="int8")
    with pytest.raises(CheckpointError, match="found quantum"):
        open_checkpoint(folder, device="quantum")


@pytest.mark.parametrize("given", [{"dtype": "bfloat16"}, {"device": "cpu"}])
def test_dtype_and_device_of_a_remote_model_are_not_ours_to_choose(given: dict[str, str]) -> None:
    with pytest.raises(CheckpointError, match="NDIF chooses dtype and device itself; leave both out"):
        open_checkpoint("owner/model", remote=True, **given)  # type: ignore[arg-type]
