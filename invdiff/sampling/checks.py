"""Checks of hyperparameters."""

from __future__ import annotations

import math


def nonnegative(**values: float) -> None:
    """Refuses what is not a finite number, at least 0."""
    for name, value in values.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be a finite number, at least 0, got {value}")


def positive(**values: float) -> None:
    """Refuses what is not a finite number above 0."""
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be a finite positive number, got {value}")
