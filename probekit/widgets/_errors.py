"""The error of all widgets."""

from __future__ import annotations


class WidgetError(ValueError):
    """A widget cannot show or select what it was asked for."""
