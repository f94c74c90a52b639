"""Two replies cut into pieces, those marked that differ: what the pair browser shows side by side.

A piece is [text, kind]; kind is "" for what both replies have, "differs" for what only this one has, and
"control" for the number of a character that would not be seen. The texts of a reply's pieces, save controls,
are the reply, character by character.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias

from probekit._report_text import is_unseen

Piece: TypeAlias = list[str]

COMPARED = 2000  # words and signs of each reply; a comparison takes up to the product of the two
_CJK = r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]"  # written without spaces between words
_WORDS = re.compile(rf"\s*(?:{_CJK}|(?:(?!{_CJK})\w)+(?:['’]\w+)*|[^\w\s]|\Z)")


class Marked(NamedTuple):
    """Both replies in pieces, how many of how many words are marked in each, and what to tell the reader."""

    chosen: list[Piece]
    rejected: list[Piece]
    counts: tuple[tuple[int, int], tuple[int, int]]
    note: str


def marked_replies(chosen: str, rejected: str) -> Marked:
    """The words that only one of the replies has, marked.

    >>> marked_replies("The sky is blue.", "The sky is green.").rejected
    [['The sky is ', ''], ['green', 'differs'], ['.', '']]
    """
    first, second = _words(chosen), _words(rejected)
    runs, note = _runs(_keys(first), _keys(second))
    sides: tuple[list[Piece], list[Piece]] = ([], [])
    counts = [0, 0]
    for differs, spans in runs:
        for side, (words, (start, stop)) in enumerate(zip((first, second), spans, strict=True)):
            if differs:
                counts[side] += sum(_is_word(word) for word in words[start:stop])
            _add(sides[side], "".join(words[start:stop]), differs=differs)
    if not any(differs for differs, _ in runs):
        note = "The replies differ in white space only."
    of_chosen, of_rejected = (sum(map(_is_word, words)) for words in (first, second))
    return Marked(
        plain_pieces(sides[0]),
        plain_pieces(sides[1]),
        ((counts[0], of_chosen), (counts[1], of_rejected)),
        note,
    )


def plain_pieces(pieces: Iterable[Piece]) -> list[Piece]:
    """The pieces with characters that would vanish or reorder a line as pieces of their own.

    >>> plain_pieces([["a\u202eb", ""]])
    [['a', ''], ['U+202E', 'control'], ['b', '']]
    """
    found: list[Piece] = []
    for text, *facts in pieces:
        text = text.replace("\r\n", "\n")
        if all(line.isprintable() for line in re.split(r"[\n\t]", text)):
            found.append([text, *facts])
        else:
            found += _without_controls(text, facts)
    return [piece for piece in found if piece[0]]


def _without_controls(text: str, facts: list[str]) -> list[Piece]:
    found: list[Piece] = []
    start = 0
    for place, character in enumerate(text):
        if is_unseen(character):
            found += [[text[start:place], *facts], [f"U+{ord(character):04X}", "control"]]
            start = place + 1
    return [*found, [text[start:], *facts]]


def _words(text: str) -> list[str]:
    """Words and signs, each with the white space before it; together they are the text."""
    return [word for word in _WORDS.findall(text) if word]


def _keys(words: Sequence[str]) -> list[str]:
    return [word.strip() for word in words]


def _is_word(key: str) -> bool:
    return any(character.isalnum() for character in key)


Span: TypeAlias = tuple[int, int]
Run: TypeAlias = tuple[bool, tuple[Span, Span]]


def _runs(first: Sequence[str], second: Sequence[str]) -> tuple[list[Run], str]:
    """(do they differ?, span in first, span in second) of all runs, and a note if some was not compared."""
    start = _common(first, second)
    end = _common(first[start:][::-1], second[start:][::-1])
    middle = [list(side[start : len(side) - end]) for side in (first, second)]
    compared = [side[:COMPARED] for side in middle]
    note, left = "", [len(side) - len(cut) for side, cut in zip(middle, compared, strict=True)]
    if any(left):
        note = (
            f"The replies are long: {COMPARED:,} words and signs of each were compared, the rest is unmarked."
        )
    # the quick comparison passes over words that are everywhere; in short replies every word counts
    matcher = difflib.SequenceMatcher(a=compared[0], b=compared[1], autojunk=len(compared[1]) > 400)
    blocks = [(tag != "equal", (i, j), (k, m)) for tag, i, j, k, m in matcher.get_opcodes()]
    joined = _joined([(differs, (one, other)) for differs, one, other in blocks], compared[0])
    runs = [(False, ((0, start), (0, start)))]
    runs += [(differs, (_moved(one, start), _moved(other, start))) for differs, (one, other) in joined]
    tail = tuple(
        (len(side) - end - more, len(side)) for side, more in zip((first, second), left, strict=True)
    )
    return [*runs, (False, (tail[0], tail[1]))], note


def _joined(runs: Sequence[Run], words: Sequence[str]) -> list[Run]:
    """Runs that differ, joined where less than two words stand between: scattered marks are unreadable."""
    joined: list[Run] = []
    for place, (differs, spans) in enumerate(runs):
        inside = 0 < place < len(runs) - 1
        alone = inside and sum(map(_is_word, words[slice(*spans[0])])) < 2
        differs = differs or alone
        if joined and joined[-1][0] and differs:
            before = joined[-1][1]
            spans = ((before[0][0], spans[0][1]), (before[1][0], spans[1][1]))
            joined.pop()
        joined.append((differs, spans))
    return joined


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    """How many words both begin with."""
    pairs = zip(first, second, strict=False)
    return next((n for n, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)))


def _moved(span: Span, by: int) -> Span:
    return span[0] + by, span[1] + by


def _add(pieces: list[Piece], text: str, *, differs: bool) -> None:
    if differs:  # a line under the white space before a word would join it to the word before
        word = text.lstrip()
        _add(pieces, text[: len(text) - len(word)], differs=False)
        pieces.append([word, "differs"])
    elif pieces and not pieces[-1][1]:
        pieces[-1][0] += text
    else:
        pieces.append([text, ""])
