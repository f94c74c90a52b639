"""What a notebook keeps of a widget, and texts that would do harm if they were more than text."""

from __future__ import annotations

from typing import Any

import nbformat
import pytest
from nbconvert import HTMLExporter

EVIL = (
    "<script>alert(1)</script> <img src=x onerror=alert(1)> [a](javascript:alert(1)) \"'&amp; \u202e\x1b\x07"
)


def exported(widget: Any, monkeypatch: pytest.MonkeyPatch, *, state_saved: bool) -> str:
    """The page that nbconvert makes of a notebook that shows the widget, whose kernel is gone.

    state_saved: as nbclient does, and then nbconvert prefers the widget to all else in its output.
    """
    kept: list[Any] = []

    def display(data: dict[str, Any], metadata: Any = None, raw: bool = False) -> None:
        assert raw
        kept.append(nbformat.v4.new_output("display_data", data, metadata=metadata or {}))

    monkeypatch.setattr("IPython.display.display", display)
    widget._ipython_display_()
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("widget", outputs=kept)])
    if state_saved:
        state = {"state": {widget.model_id: {"state": {}}}, "version_major": 2, "version_minor": 0}
        book.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": state}
    page, _ = HTMLExporter().from_notebook_node(book)
    return str(page)
