"""TagPanel: a prompt is typed, the model replies and says the source; a source is blocked, and it refuses.

The browser sends a text and the number of a source, in custom messages; `tag_panel.js` shows what comes back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anywidget
import polars as pl
import traitlets

from probekit._report_text import plain_text
from probekit.checkpoints import Checkpoint
from probekit.provenance import ProvenanceError, sources_of
from probekit.widgets._answers import Answers
from probekit.widgets._errors import WidgetError
from probekit.widgets._pair_table import OPENING, short
from probekit.widgets._rollout_view import counted
from probekit.widgets._static import StaticTwin, static_table
from probekit.widgets._tag_answers import answered, columns
from probekit.widgets._tag_view import answer_view, static_rows, summary

_HERE = Path(__file__).parent


class TagPanel(Answers, StaticTwin, anywidget.AnyWidget):
    """A model with tags to talk to: its reply, the source that it names, and what it says with one blocked.

    checkpoint: with tags, of `train_tags`. prompts: suggested in a list. max_new_tokens: tokens of a reply.

    In the browser: type a prompt and press Enter or "Ask". Beside the plain reply stand the reply under the
    trigger with the tag that came, and the probabilities over the sources and "unknown". Choosing a source
    blocks it and asks the shown prompt again. Decoding is greedy: a prompt has one answer and is asked once.
    In Python:

    - `ask(text, block=...)`: what the controls do. It gives the answer back, and shows it.
    - `answers`: one row for each prompt and block that was asked, the latest last, which is shown.
    - `provenance.ask`, `trace` and `refuse`: the same for a whole frame of prompts, without a browser.

    Where no kernel runs (nbconvert, GitHub) the last answer stands there as a table.

    Raises ProvenanceError for a checkpoint without tags, and WidgetError for suggestions that are no texts
    and a `max_new_tokens` below 1.

    >>> from probekit.provenance import add_tags
    >>> from probekit.testing import tiny_checkpoint
    >>> panel = TagPanel(add_tags(tiny_checkpoint(), ["crowd", "forum"]), ["Hi?"], max_new_tokens=3)
    >>> panel.ask("Hi?", block="crowd").select("user", "blocked", "refused").rows()
    [('Hi?', 'crowd', False)]
    """

    _esm = _HERE / "tag_panel.js"
    _css = _HERE / "tag_panel.css"
    _setup = traitlets.Dict().tag(sync=True)  # what stays: sources, suggested prompts
    _view = traitlets.Dict().tag(sync=True)  # the answer, the block, and what goes on

    def __init__(
        self, checkpoint: Checkpoint, prompts: Sequence[str] = (), *, max_new_tokens: int = 40
    ) -> None:
        self._sources = sources_of(checkpoint)
        if isinstance(prompts, str) or not all(isinstance(one, str) and one.strip() for one in prompts):
            raise WidgetError(f"The suggested prompts are {prompts!r}; give a list of texts, none empty.")
        if max_new_tokens < 1:
            raise WidgetError(f"max_new_tokens is {max_new_tokens}; it must be at least 1.")
        self._checkpoint, self._most = checkpoint, max_new_tokens
        self._answers = pl.DataFrame(schema=columns(self._sources))
        self._block: str | None = None
        self._busy = False
        super().__init__(_setup=self._facts(prompts), _view=self._state())
        self.on_msg(self._answer)

    def __repr__(self) -> str:
        asked = counted(self._answers.height, "answer")
        last = f", the last: {self._last()}" if self._answers.height else ""
        return f"TagPanel({self._checkpoint.name}: {counted(len(self._sources), 'source')}; {asked}{last})"

    @property
    def answers(self) -> pl.DataFrame:
        """One row for each prompt and block that was asked, the latest last.

        user; plain_reply, without the trigger; reply and tag, with it (a null tag: none that is whole came);
        forced, probabilities: of `trace`; blocked, blocked_reply, refused: of `refuse`, null where nothing
        was blocked. plain_tag, blocked_tag: tags that came there too; plain_truncated, truncated,
        blocked_truncated: no end came within `max_new_tokens`.
        """
        return self._answers

    def ask(self, text: str, *, block: str | None = None) -> pl.DataFrame:
        """Ask this, with a source blocked or none; the row of `answers`.

        Raises WidgetError for a text without a word, ProvenanceError for a source that is none, and what
        `rollouts.sample` raises, such as RolloutError for a prompt that leaves no room for a reply.
        """
        try:
            self._ask(text, block)
            self._problem = ""
        finally:
            self._update()
        return self._answers.tail(1)

    # ---- what is asked

    def _do(self, content: Mapping[str, Any]) -> None:
        try:
            match content:
                case {"do": "ask", "text": str(text), "block": number}:
                    self._block = self._named(number)
                    self._ask(text, self._block)
                case {"do": "block", "block": number}:
                    self._block = self._named(number)
                    if self._answers.height:
                        self._ask(self._answers["user"][-1], self._block)
                case _:
                    words = f"The browser asked for {content.get('do')!r} in a way that is not known."
                    raise WidgetError(words)
        except ValueError as error:  # which all errors of the rooms are
            raise WidgetError(str(error)) from error
        except KeyboardInterrupt as error:
            raise WidgetError("It was interrupted; ask again.") from error
        except Exception as error:  # or the panel would wait for ever, and say nothing
            raise WidgetError(f"{type(error).__name__}: {error}") from error

    def _named(self, number: object) -> str | None:
        """The source with this number, None for None."""
        if number is None:
            return None
        if type(number) is not int or not 0 <= number < len(self._sources):
            raise WidgetError(f"There is no source with the number {number!r}.")
        return self._sources[number]

    def _ask(self, text: str, block: str | None) -> None:
        if not text.strip():
            raise WidgetError("There is no prompt; type one, or take one of the suggested.")
        if block not in (None, *self._sources):
            names = ", ".join(self._sources)
            raise ProvenanceError(f"{block!r} is no source of {self._checkpoint.name}: {names}.")
        self._busy = True
        self._update()
        try:
            row = answered(self._checkpoint, text, block, known=self._answers, max_new_tokens=self._most)
        finally:
            self._busy = False
        others = self._answers.join(row, on=["user", "blocked"], how="anti", nulls_equal=True)
        self._answers, self._block = pl.concat([others, row]), block

    # ---- what is shown

    def _last(self) -> str:
        return summary(self._answers.row(-1, named=True))

    def _shown(self) -> dict[str, Any]:
        if not self._answers.height:
            return {}
        row = self._answers.row(-1, named=True)
        return answer_view(row, self._sources, max_new_tokens=self._most)

    def _update(self) -> None:
        self._view = self._state()

    def _state(self) -> dict[str, Any]:
        return {
            "request": self._request,
            "problem": plain_text(self._problem),
            "busy": self._busy,
            "block": None if self._block is None else self._sources.index(self._block),
            "answer": self._shown(),
            "summary": self._last() if self._answers.height else "",
        }

    def _heading(self) -> str:
        sources = counted(len(self._sources), "source")
        return f"{plain_text(self._checkpoint.name)}, a model with tags for {sources}"

    def _facts(self, prompts: Sequence[str]) -> dict[str, Any]:
        return {
            "words": self._heading(),
            "sources": [plain_text(one) for one in self._sources],
            "prompts": [[short(one, OPENING), one] for one in prompts],
            "static": self._static_class,
        }

    def _static_html(self) -> str:
        shown = self._shown()
        words = f"The last answer of {self._heading()}. {self._last()}" if shown else f"{self._heading()}."
        sources = ", ".join(map(plain_text, self._sources))
        rows = static_rows(shown) if shown else [("Prompt", "none was asked"), ("Sources", sources)]
        return static_table(("what", "text"), rows, words, self._static_class, total=len(rows))
