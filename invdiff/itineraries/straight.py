"""Straight down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from invdiff.sampling import Itinerary
from invdiff.schedules import Level, Schedule


@dataclass(frozen=True)
class Straight(Itinerary):
    """Straight down, from the noisiest level to the clean image.

    Args:
        spacing: see :meth:`Schedule.times`; by default the schedule's own.
    """

    spacing: str | Sequence[float] | None = None

    def __call__(self, schedule: Schedule, steps: int) -> list[Level]:
        times = schedule.times(steps, self.spacing)
        levels = schedule(torch.cat([times, torch.tensor([schedule.clean], dtype=torch.float64)]))
        return [Level(*values) for values in zip(*levels, strict=True)]
