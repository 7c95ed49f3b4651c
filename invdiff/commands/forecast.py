"""How long a run will take, said after its first steps, with what would take less."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field

from invdiff.sampling import Progress

LONG = 120.0
"""Seconds from which on a run is said to be long."""


@dataclass
class Forecast:
    """A callback that says, once, how long all images will take.

    Args:
        chains: of all images, which batches share.
        show: whether anything is said.
        cheaper: what would take less, or empty.
    """

    chains: int
    show: bool
    cheaper: str = ""
    begun: float | None = field(default=None, init=False)
    first: int = field(default=0, init=False)
    done: bool = field(default=False, init=False)

    def __call__(self, p: Progress) -> None:
        if self.done or not self.show:
            return
        if self.begun is None:  # the first step warms up
            self.begun, self.first = time.perf_counter(), p.index
            return
        seconds = (time.perf_counter() - self.begun) / max(1, p.index - self.first)
        total, self.done = seconds * p.count * self.chains / len(p.x), True
        if total > LONG:
            cheaper = self.cheaper and f"; {self.cheaper}"
            print(f"about {duration(total)} in all{cheaper}", file=sys.stderr)


def duration(seconds: float) -> str:
    """``90 s``, ``12 min``, ``3.4 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
