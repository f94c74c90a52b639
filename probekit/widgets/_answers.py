"""What a widget does with the custom messages of its page: the latest request is done, a problem is told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from probekit.ranking import RankingError
from probekit.widgets._errors import WidgetError


class Answers:
    """Of a widget whose page numbers its requests; it says what to `_do`, and shows it in `_update`."""

    _request = 0
    _problem = ""

    def _answer(self, _: object, content: object, __: object) -> None:
        """Do what the browser asks, unless it has asked for something else since."""
        if not isinstance(content, dict) or not isinstance(content.get("request"), int):
            return
        if content["request"] < self._request:
            return
        self._request, self._problem = content["request"], ""
        try:
            self._do(content)
        except (WidgetError, RankingError) as error:
            self._problem = str(error)
        self._update()

    def _do(self, content: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def _update(self) -> None:
        raise NotImplementedError
