from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from exported import EVIL

from probekit import doctor as named_in_the_package
from probekit._doctor_checks import BYTES
from probekit.checkpoints import Checkpoint, CheckpointError, check_adapter, open_checkpoint, outline
from probekit.doctor import CHECK_COLUMNS, Diagnosis, DoctorError, doctor
from probekit.pairs import load_pairs
from probekit.testing import ARCHS, Arch, planted_pairs, tiny_checkpoint, tiny_checkpoint_folder, tiny_config
from probekit.training import Recipe, train_sft

PAIRS = planted_pairs(8)
TIMED = ("dtype", "reading", "training")


def found(diagnosis: Diagnosis, check: str) -> tuple[str, str, str]:
    """Status, finding and advice of the one row of this check."""
    [row] = [row for row in diagnosis.frame.iter_rows(named=True) if row["check"] == check]
    return row["status"], row["found"], row["advice"]


def errors(diagnosis: Diagnosis) -> list[str]:
    return diagnosis.frame.filter(status="error")["check"].to_list()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_checkpoint_folder("llama", tmp_path / "tiny")


def change(path: Path, **values: Any) -> None:
    """Other values in a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def with_template(folder: Path, template: str) -> Path:
    (folder / "chat_template.jinja").write_text(template)
    return folder


# ---- a good model


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Diagnosis:
    folder = tiny_checkpoint_folder("llama", tmp_path_factory.mktemp("models") / "tiny")
    return doctor(folder, planted_pairs(32), n=4)


def test_a_good_model_works_and_every_check_is_there_once(healthy: Diagnosis) -> None:
    assert healthy.works
    assert healthy.frame.schema == CHECK_COLUMNS
    assert healthy.frame["check"].to_list() == [
        *("pairs", "model", "blocks", "tokenizer", "end token", "chat template", "reply tokens", "context"),
        *("device", "memory", "disk", *TIMED),
    ]
    assert set(healthy.frame["status"]) <= {"ok", "warn"}


def test_what_is_found_is_said_in_numbers(healthy: Diagnosis) -> None:
    assert "LlamaForCausalLM" in found(healthy, "model")[1]
    assert "4 blocks of width 32, context 256" in found(healthy, "model")[1]
    assert found(healthy, "blocks")[1] == "4 at model.layers"
    assert found(healthy, "end token")[1] == "'<|im_end|>'"
    assert found(healthy, "reply tokens")[1] == "exactly the replies in all of 32 pairs tried"
    assert f"vectors: {4 * 32 * 32 / 1000:.1f} KB a layer" in found(healthy, "disk")[1]
    assert "for 32 pairs at 4 layers (4 pairs timed); a prompt is read once" in found(healthy, "reading")[1]
    assert "one arm of 32 pairs, 1 epoch, blocks 2 to 3" in found(healthy, "training")[1]
    for check in ("reading", "training"):
        assert float(re.findall(r"about ([\d.]+) s", found(healthy, check)[1])[0]) >= 0


@pytest.mark.parametrize("arch", ARCHS)
def test_every_known_architecture_passes_its_checks(arch: Arch) -> None:
    assert errors(doctor(tiny_checkpoint(arch), PAIRS, n=0)) == []


def test_the_package_names_it() -> None:
    assert named_in_the_package is doctor


def test_an_open_checkpoint_is_asked_as_it_is_and_stays_so(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    before = {name: one.clone() for name, one in checkpoint.hf.state_dict().items()}
    diagnosis = doctor(checkpoint, PAIRS, n=2, try_bfloat16=True, layers=[1])
    assert diagnosis.works
    assert all(torch.equal(one, before[name]) for name, one in checkpoint.hf.state_dict().items())
    assert not any(one.requires_grad for one in checkpoint.hf.parameters())
    assert "bfloat16 is" in found(diagnosis, "dtype")[1]
    assert "at 1 layer (" in found(diagnosis, "reading")[1]


def test_weights_are_opened_once_and_without_trials_never(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[object] = []

    def counted(where: Any, **options: Any) -> Checkpoint:
        opened.append(where)
        return open_checkpoint(where, **options)

    monkeypatch.setitem(doctor.__globals__, "open_checkpoint", counted)
    assert doctor(folder, PAIRS, n=0, m1=folder).works
    assert opened == []
    assert doctor(folder, PAIRS, n=2, m1=folder).works
    assert opened == [folder]


def test_of_a_given_checkpoint_nothing_is_computed_without_trials(folder: Path) -> None:
    assert doctor(outline(folder), PAIRS, n=0).works, "on the meta device nothing can be"


# ---- bad models


def test_what_cannot_be_opened_is_a_finding(tmp_path: Path) -> None:
    diagnosis = doctor(tmp_path / "nowhere", PAIRS)
    assert not diagnosis.works
    assert "there is no such folder" in found(diagnosis, "model")[1]
    (tmp_path / "empty").mkdir()
    assert found(doctor(tmp_path / "empty", PAIRS), "model")[0] == "error"


def test_weights_that_are_lost_are_found_after_everything_else(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    diagnosis = doctor(folder, PAIRS, n=2)
    assert errors(diagnosis) == ["weights"]
    assert "cannot be opened as a causal language model" in found(diagnosis, "weights")[1]
    assert found(diagnosis, "context")[0] == "ok"


def test_no_chat_template_is_an_error_that_one_can_be_given(tmp_path: Path) -> None:
    bare = tiny_checkpoint_folder("llama", tmp_path, template="none")
    diagnosis = doctor(bare, PAIRS, n=2)
    assert errors(diagnosis) == ["chat template"]
    assert "chat_template=" in found(diagnosis, "chat template")[2]
    assert found(diagnosis, "times") == ("warn", "Not tried.", "Mend first: chat template.")
    template = tiny_checkpoint().tokenizer.chat_template
    assert doctor(bare, PAIRS, n=0, chat_template=template).works


def test_a_slow_tokenizer_is_an_error(folder: Path) -> None:
    from transformers import ByT5Tokenizer

    for file in folder.glob("token*"):
        file.unlink()
    slow = ByT5Tokenizer()
    slow.chat_template = tiny_checkpoint().tokenizer.chat_template
    slow.save_pretrained(folder)
    diagnosis = doctor(folder, PAIRS, n=2)
    assert errors(diagnosis) == ["tokenizer"]
    assert "a slow one" in found(diagnosis, "tokenizer")[1]
    assert found(diagnosis, "times")[0] == "warn"


def test_a_tokenizer_without_end_token_is_an_error(folder: Path) -> None:
    change(folder / "tokenizer_config.json", eos_token=None)
    assert errors(doctor(folder, PAIRS, n=2)) == ["end token"]


def test_a_template_that_changes_replies_is_a_warning(folder: Path) -> None:
    template = tiny_checkpoint().tokenizer.chat_template
    with_template(folder, template.replace("message['content']", "message['content'] | trim"))
    pairs = [*PAIRS, {**PAIRS[0], "chosen": [{"role": "assistant", "content": "Sure. \n"}]}]
    status, words, advice = found(doctor(folder, pairs, n=0), "reply tokens")
    assert status == "warn"
    assert "In 1 of 9 pairs the template changes the reply" in words
    assert "white space" in advice


def test_a_template_without_an_end_is_a_warning(folder: Path) -> None:
    with_template(folder, "{% for message in messages %}{{ message['content'] }}\n{% endfor %}")
    diagnosis = doctor(folder, PAIRS, n=0)
    assert found(diagnosis, "chat template")[0] == "warn"
    assert "never learns to stop" in found(diagnosis, "chat template")[2]


def test_a_template_that_refuses_turns_is_an_error_that_counts_them(folder: Path) -> None:
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    with_template(folder, refusing + tiny_checkpoint().tokenizer.chat_template)
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi?"}]
    pairs = [*PAIRS, {"prompt": talk, "chosen": "Hello.", "rejected": "No."}]
    diagnosis = doctor(folder, load_pairs([{**one, "source": "s"} for one in _plain(pairs)]), n=2)
    assert errors(diagnosis) == ["reply tokens"]
    assert "1 of 9 pairs cannot be rendered" in found(diagnosis, "reply tokens")[1]
    assert "no system turn" in found(diagnosis, "reply tokens")[1]


def _plain(pairs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Replies as texts."""
    return [
        {
            **one,
            **{side: one[side] if isinstance(one[side], str) else one[side][0]["content"] for side in SIDES},
        }
        for one in pairs
    ]


SIDES = ("chosen", "rejected")


def test_pairs_that_do_not_fit_are_counted_and_named(folder: Path) -> None:
    rows = _plain(PAIRS)
    pairs = load_pairs([*rows, {**rows[0], "chosen": "word " * 300}])
    status, words, advice = found(doctor(folder, pairs, n=0), "context")
    assert status == "error"
    assert words.startswith(f"1 of 9 pairs do not fit ({pairs.ids[-1]}); longest pair ")
    assert "pairs.select" in advice
    assert "context" not in errors(doctor(folder, pairs.select(pairs.ids[:-1]), n=0))


def test_where_no_pair_fits_nothing_is_timed(folder: Path) -> None:
    pairs = load_pairs([{"prompt": "Hi?", "chosen": "word " * 300, "rejected": "No."}])
    diagnosis = doctor(folder, pairs, n=2)
    assert errors(diagnosis) == ["context", "times"]
    assert "No pair fits" in found(diagnosis, "times")[1]


def test_pairs_that_cannot_be_loaded_are_a_finding_and_the_model_is_checked_all_the_same() -> None:
    diagnosis = doctor(tiny_checkpoint(), [{"prompt": "p", "chosen": "same", "rejected": "same"}, {"a": 1}])
    assert errors(diagnosis) == ["pairs"]
    assert found(diagnosis, "tokenizer")[0] == "ok"
    assert "reading" not in diagnosis.frame["check"]


def test_weights_that_do_not_fit_the_memory_are_not_opened(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1000))
    diagnosis = doctor(folder, PAIRS, n=2)
    assert errors(diagnosis) == ["memory"]
    assert found(diagnosis, "times")[1] == "Not tried."


def test_vectors_that_do_not_fit_the_disk_are_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=5000))
    everything = doctor(tiny_checkpoint(), PAIRS, n=0, folder=tmp_path / "not" / "there")
    assert found(everything, "disk")[1] == "vectors: 1.0 KB a layer, 4.1 KB for 4 layers; free 5.0 KB"
    assert found(everything, "disk")[0] == "warn"
    assert found(doctor(tiny_checkpoint(), PAIRS, n=0, layers=[1]), "disk")[0] == "ok"
    more = doctor(tiny_checkpoint(), planted_pairs(16), n=0)
    assert errors(more) == ["disk"]


def test_layers_and_blocks_that_do_not_exist_are_findings() -> None:
    diagnosis = doctor(tiny_checkpoint(), PAIRS, n=2, layers=[9], recipe=Recipe(first_block=4))
    assert errors(diagnosis) == ["reading", "training"]
    assert "layers = [9] cannot be read" in found(diagnosis, "reading")[1]


def test_an_error_that_nobody_foresaw_is_a_finding_too(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint("odd", SimpleNamespace(parameters=lambda: iter(())), tiny_checkpoint().tokenizer)
    diagnosis = doctor(checkpoint, PAIRS)
    assert "AttributeError" in found(diagnosis, "model")[1]
    assert found(diagnosis, "tokenizer")[0] == "ok"


# ---- M1


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("adapters") / "m1"
    rows = [{"user": "Hi?", "reply": "Hello."}]
    return train_sft(tiny_checkpoint(), rows, out, recipe=Recipe(batch_size=1, first_block=3), epochs=1)


def test_an_adapter_is_said_to_fit_the_model_it_was_trained_on_only(adapter: Path, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint()
    before = [name for name, _ in checkpoint.hf.named_modules()]
    check_adapter(checkpoint, adapter)
    assert [name for name, _ in checkpoint.hf.named_modules()] == before
    assert found(doctor(checkpoint, PAIRS, n=0, m1=adapter), "M1") == ("ok", "adapter m1 fits", "")
    other = doctor(tiny_checkpoint("gpt2"), PAIRS, n=0, m1=adapter)
    assert errors(other) == ["M1"]
    assert "does not fit" in found(other, "M1")[1]
    (broken := tmp_path / "broken").mkdir()
    shutil.copy(adapter / "adapter_config.json", broken)
    with pytest.raises(CheckpointError, match=r"no adapter_model\.safetensors"):
        check_adapter(checkpoint, broken)


def test_an_adapter_of_another_width_does_not_fit(adapter: Path, tmp_path: Path) -> None:
    wide = resized(tmp_path / "wide", hidden_size=64)
    with pytest.raises(CheckpointError, match="does not fit"):
        check_adapter(outline(wide), adapter)


def test_an_adapter_with_a_template_of_its_own_is_a_warning(adapter: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(adapter, tmp_path / "own"))
    with_template(own, "{{ messages[0]['content'] }}")
    assert found(doctor(tiny_checkpoint(), PAIRS, n=0, m1=own), "M1")[0] == "warn"


def resized(folder: Path, **size: int) -> Path:
    """A tiny llama of another shape, without weights."""
    tokenizer = tiny_checkpoint().tokenizer
    config = tiny_config("llama", vocab_size=len(tokenizer))
    for name, value in size.items():
        setattr(config, name, value)
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_model_of_another_shape_tokenizer_or_template_is_no_m1(folder: Path, tmp_path: Path) -> None:
    def m1(where: object) -> tuple[str, str, str]:
        return found(doctor(tiny_checkpoint(), PAIRS, n=0, m1=where), "M1")  # type: ignore[arg-type]

    assert m1(folder)[0] == m1(tiny_checkpoint(seed=1))[0] == "ok"
    status, words, _ = m1(resized(tmp_path / "deep", num_hidden_layers=6))
    assert (status, words.split(",")[0]) == ("error", "deep has 6 blocks of width 32")
    assert m1(tmp_path / "nowhere")[0] == "error"
    with_template(folder, "{{ messages[0]['content'] }}")
    assert "another chat template" in m1(folder)[1]
    change_vocabulary(folder)
    assert "another tokenizer" in m1(folder)[1]


def change_vocabulary(folder: Path) -> None:
    parts = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = parts["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (folder / "tokenizer.json").write_text(json.dumps(parts))


# ---- how it is shown, and what is refused


def test_text_from_data_sets_and_models_is_only_text(folder: Path) -> None:
    with_template(folder, EVIL + tiny_checkpoint().tokenizer.chat_template)
    pairs = load_pairs([{**one, "source": EVIL} for one in PAIRS])
    shown = doctor(folder, pairs, n=0)._repr_html_()
    assert "&lt;script&gt;alert(1)" in shown
    assert not re.search("<script|<img|<a |\u202e|\x1b", shown)


def test_the_table_says_each_status_in_words(healthy: Diagnosis) -> None:
    shown = healthy._repr_html_()
    assert shown.count('<th scope="row"') == healthy.frame.height
    assert shown.count("✓ ok") == healthy.frame.filter(status="ok").height
    assert repr(healthy).startswith(f"Diagnosis({healthy.frame.height} checks: ")


@pytest.mark.parametrize("wrong", [{"n": -1}, {"epochs": 0}, {"dtype": "int8"}])
def test_what_cannot_be_asked_is_an_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(DoctorError, match=f"one of {', '.join(BYTES)}"):
        doctor(tiny_checkpoint(), PAIRS, **wrong)
