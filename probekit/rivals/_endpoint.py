"""A model behind an OpenAI-compatible service, asked many things at once: a helper of `judge`."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from probekit import sources
from probekit._quiet import bar
from probekit.rivals import RivalError

LONGEST_WAIT = 30.0  # seconds between two tries
GIVE_UP = 50  # calls in a row without an answer: the service is gone


@dataclass(frozen=True)
class Endpoint:
    """A model behind an OpenAI-compatible service, to judge in place of a checkpoint.

    url: up to and with the version, such as "https://api.openai.com/v1". model: its name there. key_variable:
    the environment variable that holds the key; where it is not set, none is sent. timeout: seconds for one
    call. tries: of one call, while the service is busy or does not answer. pause: seconds before the second
    try, doubled with each. at_once: calls under way. settings: sent along; some models take no temperature.

    >>> Endpoint("http://localhost:8000/v1", "judge").key_variable
    'OPENAI_API_KEY'
    """

    url: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    timeout: float = 60.0
    tries: int = 4
    pause: float = 1.0
    at_once: int = 8
    settings: Mapping[str, Any] = field(default_factory=lambda: {"temperature": 0})


class Answer(NamedTuple):
    """A score from 0 to 100, None where there is none; tokens it took; gone: nothing came back at all."""

    score: float | None
    tokens: int
    gone: bool = False


def ask(endpoint: Endpoint, asked: Sequence[str], cache: Path | None = None) -> list[Answer]:
    """All answers, in order; RivalError once `GIVE_UP` calls in a row came back with nothing.

    cache: a folder; answers are kept there as they come, and found there. What is gone is asked again.
    """
    kept = _Kept(endpoint, cache)
    in_a_row = 0
    pool = ThreadPoolExecutor(endpoint.at_once)
    try:
        waiting = [(one, pool.submit(_ask, endpoint, one)) for one in asked if one not in kept]
        for one, call in bar(waiting, f"asking {endpoint.model}"):
            answer = call.result()
            kept.add(one, answer)
            in_a_row = in_a_row + 1 if answer.gone else 0
            if in_a_row == GIVE_UP:
                raise RivalError(
                    f"{endpoint.url} gave no answer to {GIVE_UP} calls in a row, each tried {endpoint.tries} "
                    "times. Is the service up, and the key right?"
                )
    finally:
        pool.shutdown(cancel_futures=True)  # or an error would wait for every other call
    return [kept[one] for one in asked]


class _Kept:
    """Answers by what was asked, of which a file has the hash; one of its lines that is cut short is none."""

    def __init__(self, endpoint: Endpoint, folder: Path | None) -> None:
        self.answers: dict[str, Answer] = {}
        self.file: Path | None = None
        if folder is not None:
            of = json.dumps([endpoint.url, endpoint.model, dict(endpoint.settings)], sort_keys=True)
            self.file = folder / f"judge-{_hashed(of)}.jsonl"
            for line in self.file.read_text(encoding="utf-8").splitlines() if self.file.is_file() else ():
                with suppress(ValueError):
                    key, score, tokens = json.loads(line)
                    self.answers[key] = Answer(score, tokens)

    def __contains__(self, asked: str) -> bool:
        return _hashed(asked) in self.answers

    def __getitem__(self, asked: str) -> Answer:
        return self.answers[_hashed(asked)]

    def add(self, asked: str, answer: Answer) -> None:
        self.answers[_hashed(asked)] = answer
        if self.file is not None and not answer.gone:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a", encoding="utf-8") as out:
                # the line's end comes first: what an interruption cut off stays alone
                out.write(f"\n{json.dumps([_hashed(asked), answer.score, answer.tokens])}")


def _hashed(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _ask(endpoint: Endpoint, one: str) -> Answer:
    """One call, tried again while the service is busy or silent."""
    content = {**endpoint.settings, "model": endpoint.model, "messages": [{"role": "user", "content": one}]}
    key = os.environ.get(endpoint.key_variable, "").strip() or None
    url = f"{endpoint.url.rstrip('/')}/chat/completions"
    for attempt in range(endpoint.tries):
        if attempt:
            time.sleep(min(endpoint.pause * 2 ** (attempt - 1), LONGEST_WAIT))
        try:
            answer = sources.post_json(url, content, key=key, timeout=endpoint.timeout)
            return Answer(*_score_and_tokens(answer))
        except sources.ServiceError as error:
            # below 300: a page for people, from something between us and the service
            if error.status is None or error.status in (408, 429) or not 300 <= error.status < 500:
                continue
            if error.status == 403:  # a wrong key, or a text that a gateway will not let through
                return Answer(None, 0, gone=True)
            if error.status < 400 or error.status in (401, 404):  # so will all others be
                raise RivalError(
                    f"{error} Check the address, the model {endpoint.model!r} and the key in the environment "
                    f"variable {endpoint.key_variable}."
                ) from error
            return Answer(None, 0)  # this text is refused: too long, or filtered
    return Answer(None, 0, gone=True)


def _score_and_tokens(answer: Any) -> tuple[float | None, int]:
    """The one number from 0 to 100 in an answer of the service, or None; tokens as it counts them, or 0."""
    score, tokens = None, 0
    match answer:
        case {"choices": [{"message": {"content": str(said)}}, *_]}:
            numbers = re.findall(r"-?\d+(?:\.\d+)?", said.replace("/100", ""))
            if len(numbers) == 1 and 0 <= float(numbers[0]) <= 100:
                score = float(numbers[0])
    match answer:
        case {"usage": {"total_tokens": int(counted)}}:
            tokens = counted
    return score, tokens
