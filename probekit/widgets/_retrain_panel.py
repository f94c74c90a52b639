"""RetrainPanel: choose edits, controls and seeds, start the retrains, watch them, stop and resume."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import ipywidgets
import polars as pl

from probekit import charts
from probekit._report_text import plain, plain_text
from probekit.arms import Arm
from probekit.experiments import Estimate, Experiment, Job, Progress, ResultError
from probekit.ranking import Ranking
from probekit.widgets._chart_view import chart_style, live_chart, still_chart
from probekit.widgets._choice import Choice
from probekit.widgets._errors import WidgetError
from probekit.widgets._pair_browser import PairBrowser
from probekit.widgets._retrain_plan import (
    BESIDE,
    CONTROLS,
    EDITS,
    Plan,
    Seconds,
    job_table,
    measured,
    metrics,
    planned,
    took,
)
from probekit.widgets._retrain_view import (
    CLASS,
    STYLE,
    effect_rows,
    estimate_words,
    job_rows,
    progress_html,
)
from probekit.widgets._static import ROWS, StaticTwin, hiding, static_table

MOST_SEEDS = 20
PAUSE = 0.2  # seconds at least between two pictures of the steps
_ROW = ipywidgets.Layout(flex_flow="row wrap", align_items="center", grid_gap="0 1em")
_TIGHT = ipywidgets.Layout(width="auto")


class RetrainPanel(StaticTwin, ipywidgets.VBox):
    """The retrains that an effect needs: chosen, their time estimated, run with a bar each, tables filled in.

    experiment: where arms are trained and judged; what it has finished is not done again. ranking: of its
    pairs. k: pairs an edit takes to begin with. browser: its marked pairs can be an edit too. others: more
    arms to offer, such as the oracle, without controls of their own.

    In the browser every control has a name and works with the keyboard. In Python:

    - `choose(...)`: what the controls do. `estimate()`, `start()`, `stop()`, `wait()`: what the buttons do.
    - `jobs`: what is chosen, as `Experiment.run` takes it, which does the same without a browser.
    - `frame`: one row a job, with its state. `judged`: the judged rows of what is finished, as `effects`
      takes them. `effects`: the table that is shown, None before there is one.

    The work runs in a thread beside the notebook, and stops between two optimiser steps; the arm that was cut
    short begins anew when the panel is started again. M0 is trained on meanwhile and must not be used in
    other cells. Where no kernel runs (nbconvert, GitHub) the jobs and effects stand there as tables.

    Raises WidgetError for a choice that is not offered; `choose` and `start` also while a run goes on.

    >>> import tempfile, pathlib
    >>> from probekit.pairs import load_pairs
    >>> from probekit.prompts import prompt_frame
    >>> from probekit.testing import planted_pairs, ranked, tiny_checkpoint
    >>> asked = prompt_frame(["How do I bake bread?"], harmful=False, source="mine")
    >>> pairs, folder = load_pairs(planted_pairs(8)), pathlib.Path(tempfile.mkdtemp())
    >>> experiment = Experiment(tiny_checkpoint(), pairs, prompts=asked, folder=folder)
    >>> RetrainPanel(experiment, ranked(pairs.ids), k=2)
    RetrainPanel(3 arms: baseline, filter 2, random filter 2; 0 of 9 jobs finished)
    """

    def __init__(
        self,
        experiment: Experiment,
        ranking: Ranking,
        *,
        k: int,
        browser: PairBrowser | None = None,
        others: Sequence[Arm] = (),
    ) -> None:
        self._experiment, self._ranking = experiment, ranking
        self._browser, self._others = browser, tuple(others)
        edits = {name: words for name, words in EDITS.items() if browser or "marked" not in name}
        self._offered = {
            "edits": edits,
            "controls": CONTROLS,
            "beside": {**BESIDE, **{arm.name: arm.name for arm in others}},
        }
        self._lock = threading.RLock()  # the work has a thread of its own; clicks, in some kernels, too
        self._halt = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._now: Progress | None = None
        self._jobs: list[Job] = []
        self._finished: dict[tuple[str, int], Seconds] = {}
        self._doing, self._problem, self._shown = "", "", 0.0
        self._controls(k)
        super().__init__(self._arranged())
        self.add_class(CLASS)
        self.choose(k=k)

    def __repr__(self) -> str:
        frame = self.frame
        names = frame["arm"].unique(maintain_order=True).to_list()
        done = frame.filter(state="finished").height
        return f"RetrainPanel({len(names)} arms: {', '.join(names)}; {done} of {frame.height} jobs finished)"

    @property
    def jobs(self) -> list[Job]:
        """The arms and seeds that are chosen, in the order in which they are done."""
        return list(self._jobs)

    @property
    def frame(self) -> pl.DataFrame:
        """One row a job: arm, kind, seed, edited, state, done, steps, train_seconds, judge_seconds."""
        with self._lock:
            return job_table(self._jobs, self._finished, self._now)

    @property
    def judged(self) -> pl.DataFrame:
        """The judged rows of the finished jobs: what `effects` takes."""
        return self._experiment.judged(self._jobs)

    @property
    def effects(self) -> pl.DataFrame | None:
        """The effect table that is shown; None where the finished arms give none yet."""
        return self._table

    def choose(
        self,
        *,
        k: int | None = None,
        edits: Collection[str] = ("filter",),
        controls: Collection[str] = ("random",),
        beside: Collection[str] = ("baseline",),
        seeds: int = 3,
    ) -> None:
        """What the controls do.

        k: pairs that an edit of the ranking's top takes; default as it is. edits: of "filter", "swap",
        "filter marked", "swap marked". controls: of "random", "bottom", "stratified", which `arms.controls`
        draws for each edit. beside: of "baseline", "M0" and the names of `others`. seeds: how many, from 0.
        """
        with self._lock:
            self._refuse_while_running()
            plan = Plan(
                self._k.value if k is None else k, tuple(edits), tuple(controls), tuple(beside), seeds
            )
            plan.check(self._offered, pairs=len(self._ranking), seeds=MOST_SEEDS)
            self._plan(plan)
            self._fill(plan)

    def estimate(self) -> None:
        """Begin to estimate the time, with a few timed steps if no arm of the experiment is finished."""
        self._begin("timing a few steps", self._time)

    def start(self) -> None:
        """Begin to train and judge what is not finished; returns at once, see `wait`."""
        self._begin("starting", self._run)

    def stop(self) -> None:
        """Have the work end at the next step. What is finished stays; `start` goes on."""
        with self._lock:
            self._halt.set()
            self._show_status()

    def wait(self) -> None:
        """Wait until the work has ended, by itself or by `stop`; raises what ended it early."""
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error

    # ---- the work, in a thread of its own

    def _begin(self, doing: str, task: Callable[[], None]) -> None:
        with self._lock:
            self._refuse_while_running()
            self._halt.clear()
            self._doing, self._problem, self._error = doing, "", None
            # in this context, so that the kernel knows which cell or click its messages belong to
            run = contextvars.copy_context().run
            self._thread = threading.Thread(target=run, args=(self._work, task), daemon=True)
            self._show_status()
            self._thread.start()

    def _work(self, task: Callable[[], None]) -> None:
        try:
            task()
        except Exception as error:  # noqa: BLE001 - a thread's error would be lost; `wait` raises it
            self._error, self._problem = error, str(error) or repr(error)
        with self._lock:
            self._doing, self._now = "", None
            self._show_all()

    def _time(self) -> None:
        found = self._experiment.estimate(self._jobs)
        with self._lock:
            self._estimate = found

    def _run(self) -> None:
        if self._estimate.seconds is None:
            self._time()
        with self._lock:
            self._doing = "running"
            self._show_status()
        self._experiment.run(self._jobs, stop=self._halt, progress=self._step)

    def _step(self, now: Progress) -> None:
        with self._lock:
            new = self._now is None or self._now[:3] != now[:3]  # arm, seed, stage
            self._now = now
            if now.finished:
                self._finished[now.arm, now.seed] = took(self._experiment, now.arm, now.seed)
                self._estimate = self._experiment.estimate(self._jobs, measure=False)
                self._show_all()
            elif new or time.monotonic() - self._shown > PAUSE:
                self._show_progress()

    def _refuse_while_running(self) -> None:
        if self._doing:
            raise WidgetError("The panel is at work; stop it or wait until it is done.")

    # ---- controls: each has a name

    def _controls(self, k: int) -> None:
        check = {"indent": False, "layout": _TIGHT}
        self._boxes = {
            what: {
                name: ipywidgets.Checkbox(description=plain_text(words), **check)
                for name, words in names.items()
            }
            for what, names in self._offered.items()
        }
        number = {"continuous_update": False, "layout": ipywidgets.Layout(width="11em")}
        self._k = ipywidgets.BoundedIntText(description="K", min=1, max=len(self._ranking), **number)
        self._seeds = ipywidgets.BoundedIntText(description="Seeds", min=1, max=MOST_SEEDS, **number)
        names = metrics(self._experiment.prompts)
        offered = [(name, name.replace("_", " ")) for name in names]
        self._metric = Choice("Measure", offered, value=names[0])
        self._buttons = {
            name: ipywidgets.Button(description=words, layout=_TIGHT)
            for name, words in {"estimate": "Estimate time", "start": "Start", "stop": "Stop"}.items()
        }
        self._status, self._bars, self._effects = (ipywidgets.HTML() for _ in range(3))
        self._chart: Any = None
        self._picture = ipywidgets.VBox()
        self._quiet = True
        chosen = [box for boxes in self._boxes.values() for box in boxes.values()]
        for control in (*chosen, self._k, self._seeds):
            control.observe(self._changed, "value")
        self._metric.observe(lambda _: self._show_effects(), "value")
        if self._browser is not None:
            self._browser.observe(self._changed, "marked")
        for name, do in {"estimate": self.estimate, "start": self.start, "stop": self.stop}.items():
            self._buttons[name].on_click(lambda _, do=do: self._clicked(do))

    def _arranged(self) -> list[Any]:
        heads = {"edits": "Edits", "controls": "Controls", "beside": "Beside"}
        groups = [
            ipywidgets.HBox(
                [ipywidgets.HTML(f'<span class="group">{heads[what]}</span>'), *boxes.values()], layout=_ROW
            )
            for what, boxes in self._boxes.items()
        ]
        style = f"<style>{hiding(self._static_class)}{chart_style(CLASS)}{STYLE}</style>"
        numbers = ipywidgets.HBox([self._k, self._seeds], layout=_ROW)
        buttons = ipywidgets.HBox(list(self._buttons.values()), layout=_ROW)
        shown = [self._status, self._bars, self._metric, self._picture, self._effects]
        return [ipywidgets.HTML(style), *groups, numbers, buttons, *shown]

    def _clicked(self, do: Callable[[], None]) -> None:
        try:
            do()
        except WidgetError as error:
            self._say(str(error))

    def _changed(self, _: object) -> None:
        """Plan what the controls say, or say why that cannot be."""
        with self._lock:
            if self._quiet or self._doing:
                return
            chosen = {
                what: tuple(name for name, box in boxes.items() if box.value)
                for what, boxes in self._boxes.items()
            }
            try:
                self._plan(Plan(self._k.value, **chosen, seeds=self._seeds.value))
            except (ValueError, ResultError) as error:
                self._jobs, self._finished = [], {}
                self._estimate, self._problem = Estimate(None, 0), str(error)
                self._show_all()

    def _plan(self, plan: Plan) -> None:
        marked = () if self._browser is None else self._browser.selection
        jobs = planned(plan, self._experiment, self._ranking, marked=marked, others=self._others)
        left = {(arm.name, seed) for arm, seed in self._experiment.remaining(jobs)}
        done = [(arm.name, seed) for arm, seed in jobs if (arm.name, seed) not in left]
        self._jobs = jobs
        self._finished = {job: took(self._experiment, *job) for job in done}
        self._estimate = self._experiment.estimate(jobs, measure=False)
        self._problem = ""
        self._show_all()

    def _fill(self, plan: Plan) -> None:
        """Have the controls show the plan."""
        self._quiet = True
        for what, boxes in self._boxes.items():
            for name, box in boxes.items():
                box.value = name in getattr(plan, what)
        self._k.value, self._seeds.value = plan.k, plan.seeds
        self._quiet = False

    # ---- what is shown

    def _say(self, problem: str) -> None:
        with self._lock:
            self._problem = problem
            self._show_status()

    def _show_all(self) -> None:
        self._show_status()
        self._show_progress()
        self._show_effects()

    def _show_status(self) -> None:
        frame = self.frame
        words = estimate_words(frame, self._estimate)
        if self._doing:
            now = "stopping" if self._halt.is_set() else self._doing
            words = f"Now {now}. {words} M0 is in use: let no other cell use it until this has ended."
        problem = f'<div class="problem" role="alert">{plain(self._problem)}</div>' if self._problem else ""
        self._status.value = f'<div role="status">{plain(words)}</div>{problem}'
        done = frame.filter(state="finished").height
        working = bool(self._doing)
        self._buttons["start"].description = "Resume" if done else "Start"
        self._buttons["start"].disabled = working or done == frame.height
        self._buttons["estimate"].disabled = working or done == frame.height
        self._buttons["stop"].disabled = not working or self._halt.is_set()
        for control in (
            *(box for boxes in self._boxes.values() for box in boxes.values()),
            self._k,
            self._seeds,
        ):
            control.disabled = working

    def _show_progress(self) -> None:
        self._shown = time.monotonic()
        self._bars.value = progress_html(self.frame)

    def _show_effects(self) -> None:
        with self._lock:
            self._table, why = self._measured()
            if self._table is None:
                self._effects.value, self._picture.children = f"<div>{plain(why)}</div>", ()
                return
            chart = charts.arms_chart(self._table)
            if self._chart is None:
                self._chart = live_chart(chart)
            else:
                self._chart.chart = chart
            self._picture.children = (self._chart,)
            self._effects.value = self._effect_table("probekit-effects")

    def _measured(self) -> tuple[pl.DataFrame | None, str]:
        if not self._finished:
            return None, "Effects appear here when the first arm is finished."
        try:
            return measured(self.judged, self._measure()), ""
        except ValueError as error:
            return None, f"There is no table of effects yet: {error}"

    def _measure(self) -> str:
        return str(self._metric.value)

    def _effect_table(self, name: str) -> str:
        if self._table is None:
            return ""
        heads, rows = effect_rows(self._table)
        against = f" compared with {self._table['against'][0]}," if "against" in self._table.columns else ""
        measure = self._measure().replace("_", " ").capitalize()
        caption = f"{measure} by arm,{against} with 95 % intervals."
        return static_table(heads, rows, caption, name, total=len(rows))

    def _static_html(self) -> str:
        with self._lock:
            jobs = self.frame
            heads = ("arm", "pairs edited", "seed", "state", "time")
            words = estimate_words(jobs, self._estimate)
            shown = job_rows(jobs.head(ROWS))
            parts = [static_table(heads, shown, words, self._static_class, total=jobs.height)]
            if self._table is not None:
                parts.insert(0, still_chart(charts.arms_chart(self._table)))
                parts.insert(1, self._effect_table(self._static_class))
        return f'<div class="{self._static_class}">{"".join(parts)}</div>'
