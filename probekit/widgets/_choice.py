"""One of a few, as buttons: what ipywidgets' radio buttons and lists are for where the arrow keys are taken.

In a notebook JupyterLab keeps arrows and letters to itself unless a text is being edited: in a list or among
radio buttons they would move to another cell, or delete one. Tab and the space bar it leaves alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets
import traitlets


class Choice(ipywidgets.HBox):
    """A button for each option, the one that holds with a tick. `value`: that option; None while none holds.

    options: (value, what its button says). name: what is chosen; said before the buttons and in their hints.

    >>> choice = Choice("Verdict", [("refused", "refused"), ("complied", "complied")])
    >>> choice.press("complied")
    >>> choice.value
    'complied'
    """

    value = traitlets.Unicode(None, allow_none=True)
    disabled = traitlets.Bool(False)

    def __init__(self, name: str, options: Sequence[tuple[str, str]], *, value: str | None = None) -> None:
        self._words = dict(options)
        self._buttons = {
            one: ipywidgets.Button(tooltip=f"{name}: {words}", layout=ipywidgets.Layout(width="auto"))
            for one, words in options
        }
        for one, button in self._buttons.items():
            button.on_click(lambda _, one=one: self.set_trait("value", one))
        row = ipywidgets.Layout(flex_flow="row wrap", align_items="center")
        super().__init__([ipywidgets.Label(f"{name}:"), *self._buttons.values()], layout=row, value=value)
        self._show({})

    def press(self, one: str) -> None:
        """As a person does."""
        self._buttons[one].click()

    @traitlets.observe("value", "disabled")
    def _show(self, _: Mapping[str, Any]) -> None:
        for one, button in self._buttons.items():
            button.description = f"✓ {self._words[one]}" if one == self.value else self._words[one]
            button.disabled = self.disabled
