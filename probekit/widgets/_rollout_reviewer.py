"""RolloutReviewer: what M0 and M1 replied, side by side, with verdicts that can be corrected by hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ipywidgets
import polars as pl
import traitlets

from probekit._report_text import text_html
from probekit.judges import CORRECTION_COLUMNS, VERDICTS, correct, four_conditions
from probekit.widgets._choice import Choice
from probekit.widgets._pair_table import check_page_size, short
from probekit.widgets._rollout_table import ONLY, REPLIES, case_table, checked, passing, side_by_side
from probekit.widgets._rollout_view import STYLE, asked_html, counted, label_of, reply_html, static_row
from probekit.widgets._static import ROWS, StaticTwin, hiding, static_table

_NONE = pl.DataFrame(schema=CORRECTION_COLUMNS)
_WIDE = ipywidgets.Layout(width="auto")  # 100 % and a margin is too wide


class RolloutReviewer(StaticTwin, ipywidgets.VBox):
    """Judged replies of M0 and M1 to the same prompts, up to four side by side, each with its verdict.

    m0, m1: frames of `sample` and `judge_refusals`, on prompts of `with_distractors`; any number of samples.
    corrections: verdicts given by hand before. page_size: prompts listed at a time, 1 to 200.

    In the browser: go from prompt to prompt, press another verdict under a reply, show only some prompts.
    With the keyboard, Tab moves on, space presses, and the arrows count "Number" up and down. What is shown
    stays while verdicts change, until "Show anew". In Python:

    - `corrections`: the verdicts given by hand that differ from the judge's, a trait: read it, set it,
      observe it. A frame that `judges.correct` takes, which does all of this without a browser.
    - `m0`, `m1`: the frames as they were given, with the corrections in them and a column `by_hand`:
      `pk.four_conditions(reviewer.m0, reviewer.m1)`.
    - `filter(...)`, `frame`: what the controls do, and what they leave.

    Where no kernel runs (nbconvert, GitHub) the first 20 prompts stand there as a table.

    Raises WidgetError for frames that lack columns, hold no replies, or hold one twice, and JudgeError for
    corrections that are none.

    >>> from probekit.judges import judge_refusals
    >>> rows = [("p", "Do it.", None, 0, "No."), ("p", "Do it. (now)", "now", 0, "Sorry, no.")]
    >>> columns = ["prompt_id", "user", "distractor", "sample", "reply"]
    >>> judged = judge_refusals(pl.DataFrame(rows, schema=columns, orient="row"))
    >>> RolloutReviewer(judged, judged)
    RolloutReviewer(1 prompt, 4 replies; 0 verdicts changed by hand)
    """

    corrections = traitlets.Instance(pl.DataFrame, help="Columns user, reply, verdict; one row a reply.")

    def __init__(
        self,
        m0: pl.DataFrame,
        m1: pl.DataFrame,
        *,
        corrections: pl.DataFrame | None = None,
        page_size: int = 20,
    ) -> None:
        check_page_size(page_size)
        self._judged = (checked(m0, "M0"), checked(m1, "M1"))
        self._cases = case_table(*self._judged)
        self._page_size, self._place, self._problem = page_size, 0, ""
        self._text, self._only = "", "all"
        self._quiet, self._made = False, False
        self._controls()
        super().__init__(self._arranged(), corrections=_NONE if corrections is None else corrections)
        self.add_class("probekit-review")
        self._made = True
        self._correct()
        self._show("", "all")

    def __repr__(self) -> str:
        prompts, replies = self._cases["prompt_id"].n_unique(), sum(map(len, self._judged))
        words = f"; {len(self._rows)} pass: {self._words()}" if self._words() else ""
        return (
            f"RolloutReviewer({counted(prompts, 'prompt')}, {counted(replies, 'reply', 'replies')}{words}; "
            f"{counted(self.corrections.height, 'verdict')} changed by hand)"
        )

    @property
    def m0(self) -> pl.DataFrame:
        """M0's rollouts with the corrections in them, and the column by_hand."""
        return self._fixed[0]

    @property
    def m1(self) -> pl.DataFrame:
        """M1's rollouts with the corrections in them, and the column by_hand."""
        return self._fixed[1]

    @property
    def frame(self) -> pl.DataFrame:
        """The prompts that pass: prompt_id, distractor, sample, and m0_plain_user, m0_plain_reply,
        m0_plain_verdict, m0_plain_by_hand, then the same of m0_distractor, m1_plain and m1_distractor.
        """
        return side_by_side(self._cases[self._rows], *self._fixed)

    def filter(self, *, text: str = "", only: str = "all") -> None:
        """Show the prompts that pass; without arguments, all.

        text: occurs in a prompt or reply, in any case. only: "all", "disagree" (the verdicts on M0 and M1
        differ), "four conditions" (only M1 with the distractor fails) or "by hand" (a verdict was changed).
        Raises WidgetError for another text or name.
        """
        self._show(text, only)

    @traitlets.validate("corrections")
    def _checked_corrections(self, proposal: Mapping[str, Any]) -> pl.DataFrame:
        for judged in self._judged:
            correct(judged, proposal["value"])
        given: pl.DataFrame = proposal["value"].select(CORRECTION_COLUMNS.keys()).unique(maintain_order=True)
        return given

    @traitlets.observe("corrections")
    def _corrections_changed(self, _: object) -> None:
        if self._made:
            self._correct()
            self._update()

    def _correct(self) -> None:
        self._fixed = [correct(judged, self.corrections) for judged in self._judged]
        self._kept = four_conditions(*self._fixed)["prompt_id"].n_unique()

    def _show(self, text: str, only: str) -> None:
        self._rows = passing(self._cases, *self._fixed, text=text, only=only)
        self._text, self._only = text, only
        self._go(0)

    def _go(self, place: int) -> None:
        """To this one of those that are shown, or the nearest there is."""
        self._place = min(max(place, 0), max(len(self._rows) - 1, 0))
        self._case = self._rows[self._place] if len(self._rows) else None
        self._update()

    def _words(self) -> str:
        parts = [ONLY[self._only]] if self._only != "all" else []
        return ", ".join([*parts, *([f'with "{short(self._text, 80)}"'] if self._text else [])])

    # ---- controls: each has a name, and none is made anew while it may have the keyboard's focus

    def _controls(self) -> None:
        self._style = ipywidgets.HTML(f"<style>{hiding(self._static_class)}{STYLE}</style>")
        self._find = ipywidgets.Text(description="Find text", continuous_update=False)
        self._which = Choice("Show", list(ONLY.items()))
        self._again = ipywidgets.Button(
            description="Show anew", tooltip="Apply the filter to the corrections"
        )
        self._status = ipywidgets.HTML()
        self._list = ipywidgets.Select(description="Prompts", rows=8, layout=_WIDE)
        self._back = ipywidgets.Button(description="Previous")
        self._number = ipywidgets.BoundedIntText(description="Number", min=1, max=1, value=1)
        self._forth = ipywidgets.Button(description="Next")
        self._asked = {kind: ipywidgets.HTML(layout=_WIDE) for kind in ("plain", "distractor")}
        self._replies = {name: ipywidgets.HTML(layout=_WIDE) for name in REPLIES}
        self._verdicts = {
            name: Choice(f"Verdict on {label}", [(verdict, verdict) for verdict in VERDICTS])
            for name, label in REPLIES.items()
        }
        self._again.on_click(lambda _: self._asks(self._find.value, self._only))
        self._back.on_click(lambda _: self._go(self._place - 1))
        self._forth.on_click(lambda _: self._go(self._place + 1))
        self._listen(self._find, lambda text: self._asks(text, self._only))
        self._listen(self._which, lambda only: self._asks(self._find.value, only))
        self._listen(self._number, lambda number: self._go(number - 1))
        self._listen(self._list, lambda place: None if place is None else self._go(place))
        for name, choice in self._verdicts.items():
            self._listen(choice, lambda verdict, name=name: self._give(name, verdict))

    def _arranged(self) -> tuple[Any, ...]:
        row = ipywidgets.Layout(flex_flow="row wrap", align_items="center")
        half = ipywidgets.Layout(flex="1 1 280px", min_width="0")
        self._twins = {}
        for kind, asked in self._asked.items():
            both = [
                ipywidgets.VBox([self._replies[name], self._verdicts[name]], layout=half)
                for name in (f"m0_{kind}", f"m1_{kind}")
            ]
            twins = ipywidgets.HBox(both, layout=ipywidgets.Layout(flex_flow="row wrap", grid_gap="0 1em"))
            self._twins[kind] = ipywidgets.VBox([asked, twins])
        filters = ipywidgets.HBox([self._which, self._find, self._again], layout=row)
        pager = ipywidgets.HBox([self._back, self._number, self._forth], layout=row)
        return (self._style, filters, self._status, pager, self._list, *self._twins.values())

    def _listen(self, control: Any, do: Any) -> None:
        """Call `do` with the control's new value, if it was a person who changed it."""
        control.observe(lambda change: None if self._quiet else do(change["new"]), "value")

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        before, self._quiet = self._quiet, True
        try:
            yield
        finally:
            self._quiet = before

    def _asks(self, text: str, only: str) -> None:
        try:
            self._show(text, only)
            self._problem = ""
        except ValueError as error:
            self._problem = str(error)
        self._update()

    def _give(self, name: str, verdict: str | None) -> None:
        row = self._cases[name][self._case] if self._case is not None else None
        if row is None or verdict is None:
            return
        judged = self._judged[name.startswith("m1")].row(row, named=True)
        this = (pl.col("user") == judged["user"]) & (pl.col("reply") == judged["reply"])
        others = self.corrections.filter(~this)
        if verdict == judged["verdict"]:  # the judge was right
            self.corrections = others
        else:
            row = {"user": judged["user"], "reply": judged["reply"], "verdict": verdict}
            self.corrections = others.vstack(pl.DataFrame([row], schema=CORRECTION_COLUMNS))

    # ---- what they show

    def _update(self) -> None:
        start = self._place - self._place % self._page_size
        listed = side_by_side(self._cases[self._rows.slice(start, self._page_size)], *self._fixed)
        options = [(label_of(n + 1, row), n) for n, row in enumerate(listed.iter_rows(named=True), start)]
        chosen = None if self._case is None else self._place
        with self._quietly():
            if self._list.options != tuple(options):
                with self._list.hold_sync():
                    self._list.options = options
                    self._list.value = chosen
            self._list.value = chosen
            self._find.value, self._which.value = self._text, self._only
            last = max(len(self._rows), 1)
            self._number.max = last
            self._number.value = self._place + 1
            self._back.disabled, self._forth.disabled = self._place == 0, self._place + 1 == last
            self._status.value = self._status_html()
            self._show_case()

    def _show_case(self) -> None:
        row = None
        if self._case is not None:
            row = side_by_side(self._cases[[self._case]], *self._fixed).row(0, named=True)
        for kind, asked in self._asked.items():
            html = "" if row is None else asked_html(kind, row)
            self._twins[kind].layout.display = None if html else "none"
            asked.value = html
        for name, label in REPLIES.items():
            found = None if row is None else row[f"{name}_verdict"]
            self._verdicts[name].value, self._verdicts[name].disabled = found, found is None
            place = None if self._case is None else self._cases[name][self._case]
            side = name.startswith("m1")
            rollout = None if place is None else self._fixed[side].row(place, named=True)
            judge = None if place is None else self._judged[side]["verdict"][place]
            self._replies[name].value = reply_html(label, rollout, judge)

    def _status_html(self) -> str:
        if self._problem:
            return f'<div class="problem" role="alert">Not shown: {text_html(self._problem)}</div>'
        shown = f"{len(self._rows):,} of {self._cases.height:,} comparisons shown"
        words = f" ({text_html(self._words())})" if self._words() else ""
        changed = f"{counted(self.corrections.height, 'verdict')} changed by hand"
        kept = f"prompts that pass the four conditions: {self._kept:,}"
        return f'<div role="status">{shown}{words}; {changed}; {kept}.</div>'

    def _static_html(self) -> str:
        words = self._words()
        caption = "Replies of M0 and M1 with their verdicts. Prompts that pass the four conditions: "
        caption += f"{self._kept:,}." + (
            f" {counted(len(self._rows), 'comparison')} shown: {words}." if words else ""
        )
        head = side_by_side(self._cases[self._rows.head(ROWS)], *self._fixed)
        rows = [static_row(n, row) for n, row in enumerate(head.iter_rows(named=True), 1)]
        names = ("number", "prompt", *REPLIES.values())
        return static_table(names, rows, caption, self._static_class, total=len(self._rows))
