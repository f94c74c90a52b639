from __future__ import annotations

import dataclasses
import json
import os
import re
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probekit.pairs import load_pairs
from probekit.store import StoreError, StoreKey, VectorStore
from probekit.testing import planted_pairs

KEY = StoreKey("0123", tokenizer="4567", chat_template="89ab", chat=True, dtype="float32")


def rows(n: int, *, layers: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, layers, 3, generator=torch.manual_seed(seed))


def filled(folder: Path) -> tuple[VectorStore, torch.Tensor]:
    store, values = VectorStore(folder), rows(3, layers=2)
    store.write(KEY, ["a", "b", "c"], values, layers=(4, 9))
    return store, values


def block(folder: Path) -> Path:
    (only,) = (folder / "blocks").glob("*.safetensors")
    return only


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let the operating system refuse longer files, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def small_disk(folder: Path) -> Iterator[Callable[[str], None]]:
    """A disk of 128 KiB at `folder`; gives a function that mounts it anew, "ro" or "rw"."""

    def mount(*options: str) -> None:
        subprocess.run(
            ["mount", "-t", "tmpfs", *options, "tmpfs", str(folder)], check=True, capture_output=True
        )

    try:
        mount("-o", "size=128k")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a small disk takes root; file_size_limit stands in for it in another test")
    try:
        yield lambda mode: mount("-o", f"remount,{mode}")
    finally:
        subprocess.run(["umount", str(folder)], check=True)


# ---------------------------------------------------------------- what goes in comes out


def test_rows_come_back_bit_for_bit_in_the_order_asked_for(tmp_path: Path) -> None:
    _, values = filled(tmp_path)
    read = VectorStore(tmp_path).read(KEY, ["c", "a", "c"], layers=(9, 4))
    assert torch.equal(read, values[[2, 0, 2]][:, [1, 0]])


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_whatever_blocks_rows_were_written_in_each_is_found_again(data: st.DataObject) -> None:
    ids = data.draw(
        st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, unique=True)
    )
    values = rows(len(ids), layers=2)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(ids)))) | {0, len(ids)})
    with tempfile.TemporaryDirectory() as folder:
        for start, stop in pairwise(cuts):
            VectorStore(folder).write(KEY, ids[start:stop], values[start:stop], layers=(0, 1))
        asked = data.draw(st.permutations(range(len(ids))))
        read = VectorStore(folder).read(KEY, [ids[place] for place in asked], layers=(0, 1))
        assert torch.equal(read, values[asked])
        assert VectorStore(folder).missing(KEY, ids, layers=(1, 0)) == {}


def test_missing_rows_are_grouped_by_the_layers_they_lack(tmp_path: Path) -> None:
    store, _ = filled(tmp_path)
    store.write(KEY, ["d"], rows(1), layers=(4,))
    gaps = store.missing(KEY, ["new", "a", "d", "new", "e"], layers=(9, 4, 0))
    assert gaps == {(9, 4, 0): ["new", "e"], (0,): ["a"], (9, 0): ["d"]}
    assert store.missing(KEY, ["a", "d"], layers=(4,)) == {}


def test_layers_added_later_stand_beside_the_first(tmp_path: Path) -> None:
    store, values = filled(tmp_path)
    later = rows(3, seed=1)
    store.write(KEY, ["c", "b", "a"], later, layers=(7,))
    read = VectorStore(tmp_path).read(KEY, ["a", "b", "c"], layers=(4, 7, 9))
    assert torch.equal(read[:, [0, 2]], values)
    assert torch.equal(read[:, 1], later.flip(0)[:, 0])


def test_a_row_there_already_is_not_replaced(tmp_path: Path) -> None:
    store, values = filled(tmp_path)
    store.write(KEY, ["a"], rows(1, seed=1), layers=(4,))
    assert torch.equal(store.read(KEY, ["a"], layers=(4,))[0, 0], values[0, 0])


def test_the_same_rows_give_the_same_bytes_whenever_they_are_written(tmp_path: Path) -> None:
    for folder in ("one", "other"):
        filled(tmp_path / folder)
    assert files(tmp_path / "one") == files(tmp_path / "other")
    filled(tmp_path / "one")
    assert files(tmp_path / "one") == files(tmp_path / "other")


def test_reading_writes_nothing(tmp_path: Path) -> None:
    assert VectorStore(tmp_path / "new").missing(KEY, ["a"], layers=(1,)) == {(1,): ["a"]}
    assert not (tmp_path / "new").exists()
    VectorStore(tmp_path / "new").write(KEY, [], rows(0), layers=(1,))
    assert not (tmp_path / "new").exists()


def test_the_manifest_says_how_the_vectors_were_read_and_what_is_there(tmp_path: Path) -> None:
    store, _ = filled(tmp_path)
    store.write(KEY, ["d"], rows(1), layers=(1,))
    store.finish(KEY)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    libraries = {name: version(name) for name in ("probekit-attribution", "torch", "transformers", "nnsight")}
    assert manifest == {
        "format": 2,
        "key": {
            "weights": "0123",
            "tokenizer": "4567",
            "chat_template": "89ab",
            "chat": True,
            "dtype": "float32",
            "other": "",
            "pooling": "reply mean",
        },
        "versions": [libraries],
        "layers": [1, 4, 9],
        "rows": 4,
        "dataset": manifest["dataset"],
    }


def test_the_dataset_of_a_store_is_the_fingerprint_of_its_pairs(tmp_path: Path) -> None:
    pairs = load_pairs(planted_pairs(4))
    store = VectorStore(tmp_path)
    for some in (pairs.ids[:3], pairs.ids[3:]):
        store.write(KEY, some, rows(len(some)), layers=(0,))
    store.finish(KEY)
    assert json.loads((tmp_path / "manifest.json").read_text())["dataset"] == pairs.fingerprint


def test_versions_of_the_libraries_that_wrote_are_all_kept(tmp_path: Path) -> None:
    store, _ = filled(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["versions"] = [{"torch": "1.0"}]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    store.finish(KEY)  # reads only, so its libraries wrote nothing
    assert json.loads((tmp_path / "manifest.json").read_text())["versions"] == [{"torch": "1.0"}]
    for name in "de":
        store.write(KEY, [name], rows(1), layers=(4,))
    versions = json.loads((tmp_path / "manifest.json").read_text())["versions"]
    assert [one["torch"] for one in versions] == ["1.0", version("torch")]


def test_rows_say_what_is_known_of_each_vector(tmp_path: Path) -> None:
    store, values = VectorStore(tmp_path), rows(3, layers=2)
    facts = {"source": ["s", None, "t"], "prompt_tokens": [5, 6, 7]}
    store.write(KEY, ["c", "a", "b"], values, layers=(9, 4), facts=facts)
    store.write(KEY, ["d"], rows(1, seed=2), layers=(4,), facts={"source": ["u"], "prompt_tokens": [8]})
    store.write(KEY, ["a"], rows(1, seed=3), layers=(7,), facts={"source": [None], "prompt_tokens": [6]})
    table = store.finish(KEY)
    assert table.equals(pl.read_parquet(tmp_path / "rows.parquet"))
    assert table.columns == ["pair_id", "source", "prompt_tokens", "norm.4", "norm.7", "norm.9"]
    assert table["pair_id"].to_list() == ["a", "b", "c", "d"]
    assert table["source"].to_list() == [None, "t", "s", "u"]
    assert table["prompt_tokens"].to_list() == [6, 7, 5, 8]
    assert table["norm.9"].to_list() == pytest.approx([*values[[1, 2, 0], 0].norm(dim=1).tolist(), None])
    assert table["norm.7"].null_count() == 3


def test_finishing_an_empty_store_writes_nothing(tmp_path: Path) -> None:
    assert VectorStore(tmp_path / "new").finish(KEY).is_empty()
    assert not (tmp_path / "new").exists()


def test_finishing_finds_what_another_process_has_written(tmp_path: Path) -> None:
    store, _ = filled(tmp_path)
    assert store.missing(KEY, ["d"], layers=(4,)) == {(4,): ["d"]}
    VectorStore(tmp_path).write(KEY, ["d"], rows(1), layers=(4,))
    assert len(store.finish(KEY)) == 4
    assert store.missing(KEY, ["d"], layers=(4,)) == {}


# ---------------------------------------------------------------- what is refused


def test_rows_that_are_not_there_are_named(tmp_path: Path) -> None:
    store, _ = filled(tmp_path)
    with pytest.raises(
        StoreError, match=r"2 of 3 rows are not in the store .* for layers \(4,\): x, y\. Compute them"
    ):
        store.read(KEY, ["x", "a", "y"], layers=(4,))


@pytest.mark.parametrize("action", ["read", "missing", "write"])
def test_another_key_is_refused_naming_the_fields_that_differ(tmp_path: Path, action: str) -> None:
    store, values = filled(tmp_path)
    before = files(tmp_path)
    other = dataclasses.replace(KEY, weights="4567", chat=False)
    rest = (values,) if action == "write" else ()
    with pytest.raises(StoreError) as caught:
        getattr(store, action)(other, ["d", "e", "f"], *rest, layers=(4, 9))
    message = str(caught.value)
    assert "weights is '0123' there, '4567' now; chat is True there, False now" in message
    assert "dtype" not in message
    assert "Use another folder" in message
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (torch.ones(2, 1, 3), r"\(2, 1, 3\)"),
        (torch.ones(1, 2, 3), r"\(1, 2, 3\)"),
        (torch.ones(1, 3), r"\(1, 3\)"),
        (torch.ones(1, 1, 3).half(), "float16"),
    ],
)
def test_values_that_do_not_fit_their_ids_and_layers_are_refused(
    tmp_path: Path, values: torch.Tensor, found: str
) -> None:
    with pytest.raises(
        StoreError, match=rf"1 ids and 1 layers need float32 values of shape \(1, 1, width\).*{found}"
    ):
        VectorStore(tmp_path).write(KEY, ["a"], values, layers=(1,))


@pytest.mark.parametrize("bit", [0, 2, 6])
def test_no_flipped_bit_gives_another_vector(tmp_path: Path, bit: int) -> None:
    _, values = filled(tmp_path)
    path = block(tmp_path)
    whole = path.read_bytes()
    unharmed, said = 0, set()
    for place in range(len(whole)):
        content = bytearray(whole)
        content[place] ^= 1 << bit
        path.write_bytes(content)
        try:
            read = VectorStore(tmp_path).read(KEY, ["b"], layers=(4,))
        except StoreError as error:
            said.add(re.sub(r".* is damaged \(.*\)", "is damaged", str(error), flags=re.DOTALL))
        else:
            assert torch.equal(read, values[[1]][:, [0]])
            unharmed += 1
    assert said == {"is damaged. Delete this file; only its rows are computed again."}
    assert unharmed < 5  # the last digit of a norm may be another and stand for the same number


@pytest.mark.parametrize("size", [0, 4, 40, 200, -1])
def test_a_truncated_block_is_found(tmp_path: Path, size: int) -> None:
    filled(tmp_path)
    block(tmp_path).write_bytes(block(tmp_path).read_bytes()[:size])
    with pytest.raises(StoreError, match=r"is damaged .* Delete this file; only its rows are computed again"):
        VectorStore(tmp_path).read(KEY, ["a"], layers=(4,))


def test_a_block_truncated_after_it_was_opened_is_found(tmp_path: Path) -> None:
    store, _ = filled(tmp_path)
    block(tmp_path).write_bytes(block(tmp_path).read_bytes()[:-1])
    with pytest.raises(StoreError, match="is damaged"):
        store.read(KEY, ["a"], layers=(4,))


def test_a_block_under_another_blocks_name_is_found(tmp_path: Path) -> None:
    filled(tmp_path)
    block(tmp_path).rename(tmp_path / "blocks" / "0123456789abcdef.safetensors")
    with pytest.raises(StoreError, match="its name does not fit the rows it holds"):
        VectorStore(tmp_path).missing(KEY, ["a"], layers=(4,))


def test_a_block_of_other_settings_in_the_folder_is_named(tmp_path: Path) -> None:
    store, _ = filled(tmp_path)
    other = dataclasses.replace(KEY, weights="4567")
    VectorStore(tmp_path / "other").write(other, ["d"], rows(1), layers=(4,))
    shutil.copy(block(tmp_path / "other"), tmp_path / "blocks")
    with pytest.raises(
        StoreError, match=r"weights is '4567' there, '0123' now\. Two runs with other settings"
    ):
        VectorStore(tmp_path).read(KEY, ["d"], layers=(4,))
    with pytest.raises(StoreError, match="Two runs"):
        store.finish(KEY)


def test_mapped_rows_are_made_anew_where_a_byte_or_the_vectors_behind_them_changed(tmp_path: Path) -> None:
    store, values = filled(tmp_path)
    mapped = store.mapped(KEY, ["b", "a"], layers=(9,))
    assert torch.equal(mapped[:], values[[1, 0]][:, [1]])
    content = bytearray(mapped.path.read_bytes())
    content[-1] ^= 1
    mapped.path.write_bytes(content)
    assert torch.equal(VectorStore(tmp_path).mapped(KEY, ["b", "a"], layers=(9,))[:], values[[1, 0]][:, [1]])
    shutil.rmtree(tmp_path / "blocks")
    other = VectorStore(tmp_path)
    other.write(KEY, ["a", "b"], rows(2, seed=5), layers=(9,))
    assert torch.equal(other.mapped(KEY, ["b", "a"], layers=(9,))[:], rows(2, seed=5)[[1, 0]])


def test_finishing_twice_writes_nothing(tmp_path: Path) -> None:
    store, _ = filled(tmp_path)
    store.finish(KEY)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    VectorStore(tmp_path).finish(KEY)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_what_a_killed_run_left_is_removed_once_it_is_old(tmp_path: Path) -> None:
    store, _ = filled(tmp_path)
    old, new = (tmp_path / "blocks" / f".partial-{name}" for name in ("old", "new"))
    for left in (old, new):
        left.mkdir()
        (left / "block").write_text("half")
    os.utime(old, (0, 0))
    store.finish(KEY)
    assert not old.exists()
    assert new.exists()


def test_vectors_that_do_not_fit_the_disk_again_are_not_mapped(tmp_path: Path) -> None:
    with small_disk(tmp_path):
        store = VectorStore(tmp_path)
        store.write(KEY, list("abcd"), torch.rand(4, 1, 4500), layers=(4,))
        before = files(tmp_path)
        with pytest.raises(StoreError, match="no space is left on its disk"):
            store.mapped(KEY, list("abcd"), layers=(4,))
        assert files(tmp_path) == before


def test_a_store_on_a_small_disk_keeps_what_it_has_and_is_read_where_nothing_can_be_written(
    tmp_path: Path,
) -> None:
    with small_disk(tmp_path) as remount:
        store, values = filled(tmp_path)
        store.finish(KEY)
        before = files(tmp_path)
        with pytest.raises(StoreError, match="no space is left on its disk"):
            store.write(KEY, [f"row {row}" for row in range(5000)], torch.rand(5000, 1, 3), layers=(4,))
        assert files(tmp_path) == before
        remount("ro")
        again = VectorStore(tmp_path)
        assert torch.equal(again.read(KEY, ["a", "b", "c"], layers=(4, 9)), values)
        assert len(again.finish(KEY)) == 3
        with pytest.raises(StoreError, match="the folder is read-only"):
            again.write(KEY, ["d"], rows(1), layers=(4,))
        remount("rw")


def test_deleting_a_damaged_block_leaves_only_its_rows_to_compute(tmp_path: Path) -> None:
    filled(tmp_path)
    damaged = block(tmp_path)
    VectorStore(tmp_path).write(KEY, ["d"], rows(1), layers=(4,))
    damaged.unlink()
    assert VectorStore(tmp_path).missing(KEY, ["a", "b", "d"], layers=(4,)) == {(4,): ["a", "b"]}


def test_vectors_without_a_manifest_are_refused(tmp_path: Path) -> None:
    filled(tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(
        StoreError, match=r"no manifest.json, so nothing says which model they are from\. Restore"
    ):
        VectorStore(tmp_path).read(KEY, ["a"], layers=(4,))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not the manifest of a vector store"),
        ("[]", "is not the manifest of a vector store"),
        ('{"name": "x"}', "is not the manifest of a vector store"),
        ('{"format": 2, "key": {"model": "x"}}', "is not the manifest of a vector store"),
        ('{"format": 1, "key": {}}', "has format 1; this version of probekit reads format 2"),
    ],
)
def test_a_folder_with_another_manifest_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(StoreError, match=message):
        VectorStore(tmp_path).missing(KEY, ["a"], layers=(4,))


def test_a_store_in_a_place_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "store", Path("/proc/probekit")):
        with pytest.raises(StoreError, match=r"[Cc]hoose another folder"):
            VectorStore(place).write(KEY, ["a"], rows(1), layers=(4,))


def test_a_disk_that_takes_no_more_leaves_what_was_stored(tmp_path: Path) -> None:
    store, values = filled(tmp_path)
    before = files(tmp_path)
    with file_size_limit(2000), pytest.raises(StoreError, match="what was stored before is kept"):
        store.write(KEY, [f"row {row}" for row in range(500)], torch.rand(500, 1, 3), layers=(4,))
    assert files(tmp_path) == before
    assert torch.equal(store.read(KEY, ["a", "b", "c"], layers=(4, 9)), values)
    assert store.missing(KEY, ["row 0"], layers=(4,)) == {(4,): ["row 0"]}
