"""The range in which a parameter of a method is searched, as part of its annotation.

zeta: Annotated[float, Between(0.1, 30, log=True)] = 1.0
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Between:
    """Values that make sense on images in [0, 1] and most networks.

    Attributes:
        low, high: the ends, both included.
        log: whether equal ratios count as equal distances.
    """

    low: float
    high: float
    log: bool = False


def searched(factory: Callable[..., Any]) -> dict[str, tuple[Between, bool]]:
    """The parameters of a method that have a range, and whether each is a whole number."""
    try:
        hints = typing.get_type_hints(factory, include_extras=True)
    except NameError:  # of another package, imported for type checkers alone
        return {}
    found = {}
    for name, hint in hints.items():
        for extra in getattr(hint, "__metadata__", ()):
            if isinstance(extra, Between):
                found[name] = (extra, hint.__origin__ is int)
    return found
