"""One row of preference data in any of TRL's forms: a row in, a prompt and two replies out.

Private to `pairs`. What is wrong with a row is collected as `Flaw`s, so that it can be reported all at once.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

from probekit._pair_rows import kind, writable

Message: TypeAlias = dict[str, str]
"""One turn: `{"role": ..., "content": ...}`."""

UNKNOWN = "unknown"
_ROLES = ("system", "developer", "user", "assistant", "tool")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}


class Flaw(NamedTuple):
    """What is wrong with one field of a row."""

    field: str
    problem: str
    remedy: str


class RowReader:
    """Reads one row. Afterwards `flaws` says what is wrong with it and `notes` how it was read."""

    def __init__(self, row: Mapping[str, object]) -> None:
        self.row = row
        self.flaws: list[Flaw] = []
        self.notes: Counter[str] = Counter()

    def flaw(self, field: str, problem: str, remedy: str) -> None:
        """Note a flaw."""
        self.flaws.append(Flaw(field, problem, remedy))

    def provenance(self, key: str, default: str) -> str:
        """The text in the column `key`, or `default` if there is none."""
        value = self.row.get(key)
        if isinstance(value, str) and visible(value):
            self._check_characters(value, key)
            return value
        if value is not None and not isinstance(value, str):
            self.flaw(key, f"is {kind(value)}", "Make it a text")
        return default

    def pair(self) -> tuple[list[Message], str, str] | None:
        """The messages of the prompt, and the chosen and the rejected reply; None if the row has flaws."""
        chosen, rejected = self._value("chosen"), self._value("rejected")
        implicit = self.row.get("prompt") is None
        prompt = None if implicit else self._value("prompt")
        if chosen is None or rejected is None or (prompt is None and not implicit):
            return None
        if isinstance(chosen, str) and isinstance(rejected, str):
            turns = self._turns_of_texts(prompt, chosen, rejected)
        elif isinstance(chosen, list) and isinstance(rejected, list):
            self._note(prompt, "messages")
            turns = (_as_prompt(prompt), chosen, rejected)
        else:
            self.flaw(
                "rejected", f"is {kind(rejected)} and chosen {kind(chosen)}", "Give both in the same form"
            )
            return None
        found = self._part(*turns)
        return None if self.flaws else found

    def _value(self, field: str) -> str | list[Message] | None:
        """The text or the messages in one field; None after noting a flaw."""
        value = self.row.get(field)
        if "numpy" in sys.modules and isinstance(value, sys.modules["numpy"].ndarray):
            value = list(value)  # what pandas makes of a list that it reads from parquet
        if isinstance(value, str):
            self._check_characters(value, field)
            return value
        if value is None:
            self.flaw(field, "is missing", "Fill it in or remove the row")
        elif not isinstance(value, list | tuple):
            self.flaw(field, f"is {kind(value)}", "Make it a text or a list of messages")
        elif not value:
            self.flaw(field, "is an empty list", "Write the messages or remove the row")
        else:
            messages = [self._message(entry, f"message {n}", field) for n, entry in enumerate(value)]
            good = [message for message in messages if message is not None]
            return good if len(good) == len(messages) else None
        return None

    def _message(self, entry: object, place: str, field: str) -> Message | None:
        remedy = 'Write a message as {"role": ..., "content": text}; the roles are ' + ", ".join(_ROLES)
        if not isinstance(entry, Mapping):
            self.flaw(field, f"has {place} {kind(entry)}", remedy)
        elif entry.get("role") not in _ROLES:
            self.flaw(field, f"has {place} with the role {entry.get('role')!r:.60}", remedy)
        elif not isinstance(entry.get("content"), str):
            self.flaw(field, f"has {place} with content {kind(entry.get('content'))}", remedy)
        else:
            self._check_characters(entry["content"], field)
            unused = [
                key for key, value in entry.items() if key not in ("role", "content") and value is not None
            ]
            self.notes.update(f"message key not used: {writable(key)}" for key in unused)
            return {"role": entry["role"], "content": entry["content"]}
        return None

    def _turns_of_texts(
        self, prompt: str | list[Message] | None, chosen: str, rejected: str
    ) -> tuple[list[Message], list[Message], list[Message]]:
        """Texts as turns: replies to the prompt, or transcripts or texts that begin with it."""
        turns, others = transcript(chosen), transcript(rejected)
        if turns and others and not isinstance(prompt, list):
            self._note(prompt, "Human/Assistant transcripts")
            return _as_prompt(prompt), turns, others
        self._note(prompt, "texts")
        if prompt is None:
            start, chosen, rejected = common_text(chosen, rejected)
            prompt = start if visible(start) else None
        reply, other = {"role": "assistant", "content": chosen}, {"role": "assistant", "content": rejected}
        return _as_prompt(prompt), [reply], [other]

    def _note(self, prompt: object, form: str) -> None:
        self.notes[f"read as {'implicit' if prompt is None else 'explicit'} prompt, {form}"] += 1

    def _part(
        self, prompt: list[Message], chosen: list[Message], rejected: list[Message]
    ) -> tuple[list[Message], str, str]:
        """The prompt with the turns that chosen and rejected share, and the last turn of each."""
        *before, reply = chosen
        *others, other = rejected
        if before and before[0]["role"] != "assistant":  # the conversations bring their prompt along
            if any(message not in before for message in prompt):
                remedy = "Remove the prompt column, or the prompts in the conversations"
                self.flaw("prompt", "is not in the conversations of chosen and rejected", remedy)
            prompt = before
        else:
            prompt = prompt + before
        if before != others:
            remedy = "Make the two differ in the last turn only, or split the row"
            self.flaw("rejected", "parts from chosen before the last turn", remedy)
        else:
            self._check_prompt(prompt)
        self._check_reply("chosen", reply)
        self._check_reply("rejected", other)
        if reply["content"] == other["content"] and visible(other["content"]):
            self.flaw(
                "rejected", "is the same text as chosen", "Write two different replies or remove the row"
            )
        return prompt, reply["content"], other["content"]

    def _check_prompt(self, prompt: list[Message]) -> None:
        if not prompt:
            what = "is missing, and chosen and rejected have no beginning in common that could be one"
            self.flaw("prompt", what, "Add a prompt column")
        elif prompt[-1]["role"] not in ("user", "tool"):
            what = f"ends with a turn of the {prompt[-1]['role']}"
            self.flaw("prompt", what, "End it with the user's, which the reply answers")
        for message in prompt:
            # An empty system turn is how some data say that there is none.
            if message["role"] != "system" and not visible(message["content"]):
                self.flaw(
                    "prompt", f"has no visible text for the {message['role']}", "Write it or remove the row"
                )

    def _check_reply(self, field: str, reply: Message) -> None:
        if reply["role"] != "assistant":
            self.flaw(field, f"ends with a turn of the {reply['role']}", "End it with the assistant's reply")
        elif not visible(reply["content"]):
            self.flaw(field, "is empty: there is no visible text", "Write a reply or remove the row")

    def _check_characters(self, text: str, field: str) -> None:
        """Flag what cannot be written as UTF-8, and NUL, which tokenizers and files drop or stop at."""
        if "\0" in text:
            what = f"holds a NUL character at position {text.index(chr(0))}"
            self.flaw(field, what, "Remove it, and see how it came into the data")
        if half := re.search("[\ud800-\udfff]", text):
            what = f"holds the lone surrogate \\u{ord(half[0]):04x} at position {half.start()}"
            self.flaw(field, what, "The text was cut inside a character: decode it again, or remove that")


def visible(text: str) -> bool:
    """Whether `text` has more than white space, control and format characters (such as U+200B)."""
    return any(character.isprintable() and not character.isspace() for character in text)


def transcript(text: str) -> list[Message]:
    """The turns of a text in Anthropic's form, without the white space around each; none if it has none.

    >>> transcript("\\n\\nHuman: 2 + 2?\\n\\nAssistant: 4")
    [{'role': 'user', 'content': '2 + 2?'}, {'role': 'assistant', 'content': '4'}]
    """
    start, *parts = re.split(r"\n\n(Human|Assistant):", text)
    if start.strip() or len(parts) < 4 or parts[0] != "Human":
        return []
    spoken = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": _SPEAKERS[who], "content": said.strip()} for who, said in spoken]


def common_text(chosen: str, rejected: str) -> tuple[str, str, str]:
    """What two texts begin with, and the rest of each, cut where `trl.extract_prompt` cuts: before the first
    character that differs and one space before it."""
    if chosen == rejected:
        return (
            chosen,
            chosen,
            rejected,
        )  # no pair, and the reader says so: do not call the replies empty as well
    shorter = min(len(chosen), len(rejected))
    cut = next((i for i in range(shorter) if chosen[i] != rejected[i]), shorter)
    if cut and chosen[cut - 1] == " ":
        cut -= 1
    return chosen[:cut], chosen[cut:], rejected[cut:]


def _as_prompt(prompt: str | list[Message] | None) -> list[Message]:
    if isinstance(prompt, str):
        turns = transcript(prompt)
        if turns and turns[-1] == {"role": "assistant", "content": ""}:
            return turns[:-1]  # "...\n\nAssistant:" asks for the reply
        return [{"role": "user", "content": prompt}]
    return prompt or []
