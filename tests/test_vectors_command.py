"""`python -m probekit.vectors`, alone and launched in several processes."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from probekit.checkpoints import open_checkpoint
from probekit.pairs import PairSet, load_pairs
from probekit.store import VectorStore
from probekit.testing import planted_pairs, tiny_checkpoint_folder
from probekit.vectors import pair_vectors, store_key
from probekit.vectors.__main__ import main

PAIRS = 3072  # twelve blocks: a second or two, in which a process can be killed


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("command")
    tiny_checkpoint_folder("llama", home / "m0")
    return home


def many(home: Path) -> PairSet:
    rows = [
        {"prompt": f"What is {i}?", "chosen": f"It is {i}.", "rejected": f"It is {i + 1}, is it not?"}
        for i in range(PAIRS)
    ]
    pairs = load_pairs(rows)
    pairs.frame.write_parquet(home / "pairs.parquet")
    return pairs


def arguments(home: Path, pairs: str, store: str) -> list[str]:
    return [
        *("--model", str(home / "m0"), "--pairs", str(home / pairs), "--store", str(home / store)),
        *("--layers", "0", "2"),
    ]


def blocks(store: Path) -> list[Path]:
    return sorted((store / "blocks").glob("*.safetensors"))


def test_alone_it_fills_the_store(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = load_pairs(planted_pairs(8))
    pairs.frame.write_parquet(home / "few.parquet")
    main(arguments(home, "few.parquet", "alone"))
    assert "process 0 of 1 is done" in capsys.readouterr().out
    m0, store = open_checkpoint(home / "m0"), VectorStore(home / "alone")
    read = store.read(store_key(m0, chat=True), pairs.ids, layers=(0, 2))
    assert torch.equal(read, pair_vectors(m0, pairs, layers=(0, 2)).values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--pairs": "none.parquet"}, "process 0 of 1: .*none.parquet"),
        ({"--model": "nowhere/at/all"}, "process 0 of 1: nowhere/at/all"),
        ({"--layers": "9"}, r"process 0 of 1: layers = \[9\] cannot be read"),
    ],
)
def test_what_cannot_be_read_ends_with_one_line(
    home: Path, change: dict[str, str], message: str, tmp_path: Path
) -> None:
    load_pairs(planted_pairs(8)).frame.write_parquet(home / "few.parquet")
    given = {
        "--model": str(home / "m0"), "--pairs": str(home / "few.parquet"), "--layers": "0",
        "--store": str(tmp_path), **change,
    }  # fmt: skip
    with pytest.raises(SystemExit, match=message):
        main([word for both in given.items() for word in both])


def test_two_processes_of_which_one_is_killed_leave_whole_blocks_for_a_later_run(home: Path) -> None:
    pairs, store = many(home), home / "two"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launched = subprocess.Popen(
        [*launch, "-m", "probekit.vectors", *arguments(home, "pairs.parquet", "two")],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    while launched.poll() is None and not blocks(store):
        time.sleep(0.02)
    for child in psutil.Process(launched.pid).children(recursive=True):
        if child.environ().get("RANK") == "1":
            child.kill()
    said, _ = launched.communicate(timeout=120)
    assert launched.returncode != 0, said
    left = blocks(store)
    assert 0 < len(left) < 12, said
    before = {path: path.read_bytes() for path in left}

    main(arguments(home, "pairs.parquet", "two"))
    assert len(blocks(store)) == 12
    assert {path: path.read_bytes() for path in left} == before
    m0 = open_checkpoint(home / "m0")
    undisturbed = pair_vectors(m0, pairs, layers=(0, 2), store=VectorStore(home / "undisturbed"))
    read = VectorStore(store).read(store_key(m0, chat=True), pairs.ids, layers=(0, 2))
    torch.testing.assert_close(read, undisturbed.values)
    assert [path.name for path in blocks(store)] == [path.name for path in blocks(home / "undisturbed")]


def test_a_process_begins_with_its_own_blocks_and_ends_with_those_of_the_others(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many(home)
    order: dict[str, list[str]] = {}
    write = VectorStore.write
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        names = order.setdefault(rank, [])

        def noted(*given: Any, names: list[str] = names, **options: Any) -> None:
            names.append(given[2][0])
            write(*given, **options)

        with monkeypatch.context() as patch:
            patch.setattr(VectorStore, "write", noted)
            main(arguments(home, "pairs.parquet", f"of-{rank}"))
    assert len(set(order["0"])) == 12
    assert order["0"][:6] == order["1"][6:][::-1]
    assert order["1"][:6] == order["0"][6:][::-1]


def test_a_block_that_another_process_has_written_meanwhile_is_not_read(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many(home)
    main(arguments(home, "pairs.parquet", "whole"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    missing, written = VectorStore.missing, []

    def before_the_others(self: VectorStore, *given: Any, **options: Any) -> Any:
        found = missing(VectorStore(home / "none"), *given, **options)
        shutil.copytree(home / "whole" / "blocks", self.folder / "blocks", dirs_exist_ok=True)
        shutil.copy(home / "whole" / "manifest.json", self.folder)
        return found

    monkeypatch.setattr(VectorStore, "missing", before_the_others)
    monkeypatch.setattr(VectorStore, "write", lambda *given, **options: written.append(given))
    main(arguments(home, "pairs.parquet", "meanwhile"))
    assert written == []
