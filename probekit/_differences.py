"""How what is there differs from what is asked for: what every error about a kept result says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def differences(found: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """One phrase for each value in which the two differ; a value that is missing counts as None.

    >>> differences({"seed": 0, "beta": 0.1}, {"seed": 1, "beta": 0.1})
    ['seed is 0 there, 1 now']
    """
    return [
        f"{name} is {found.get(name)!r} there, {asked.get(name)!r} now"
        for name in dict.fromkeys([*asked, *found])
        if found.get(name) != asked.get(name)
    ]
