"""What stands in a notebook where no kernel runs: a table beside the widget, for exports and for GitHub."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any
from uuid import uuid4

import ipywidgets

from probekit._report_text import format_number, plain
from probekit.widgets._pair_table import finite

ROWS = 20
_STYLE = "text-align: left; vertical-align: top"
_NO_MATH = "tex2jax_ignore mathjax_ignore"  # or a text with two dollar signs becomes a formula


class StaticTwin(ipywidgets.DOMWidget):
    """A widget with a table, `_static_html()`, in its place where no kernel runs.

    The table has the CSS class `_static_class`, by which a widget that is alive hides it.
    """

    @cached_property
    def _static_class(self) -> str:
        return f"probekit-static-{uuid4().hex}"

    def _static_html(self) -> str:
        raise NotImplementedError

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        data, metadata = self._alive()
        return {**data, "text/html": self._static_html()}, metadata

    def _ipython_display_(self) -> None:
        # In two outputs, as one is not always shown: where a widget's state was saved (nbconvert --execute,
        # papermill) or its kernel is gone (JupyterLab), the widget hides the table of its own output and
        # then stays blank without a network. A widget that is alive hides the second output.
        from IPython.display import display

        data, metadata = self._alive()
        display(data, metadata=metadata, raw=True)
        display({"text/html": self._static_html(), "text/plain": repr(self)}, raw=True)

    def _alive(self) -> tuple[dict[str, Any], dict[str, Any]]:
        shown = super()._repr_mimebundle_()  # anywidget gives data and metadata, ipywidgets data alone
        return shown if isinstance(shown, tuple) else (shown, {})


def hiding(static_class: str) -> str:
    """The rule by which a widget that is alive hides its table, for a <style>."""
    return f".{static_class}, .jp-OutputArea-child:has(.{static_class}) {{ display: none; }}"


def static_table(
    names: Sequence[str], rows: Iterable[Sequence[str]], caption: str, name: str, *, total: int
) -> str:
    """Texts as an HTML table, everything escaped: a row's first is its head.

    name: the CSS class of it all. total: how many rows there are; the caption says if these are fewer.
    """
    head = "".join(f'<th scope="col" style="text-align: left">{html.escape(one)}</th>' for one in names)
    body = []
    for first, *others in rows:
        cells = "".join(f'<td dir="auto" style="{_STYLE}">{html.escape(text)}</td>' for text in others)
        body.append(f'<tr><th scope="row" style="{_STYLE}">{html.escape(first)}</th>{cells}</tr>')
    words = plain(caption)
    if total > len(body):
        words += f" The first {len(body)} of {total:,}."
    return (
        f'<div class="{name} {_NO_MATH}"><table><caption style="text-align: left">{words}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def number(value: float | None) -> str:
    """A number for a table; a dash for what is none."""
    found = finite(value)
    return "–" if found is None else format_number(float(found), decimals=3)
