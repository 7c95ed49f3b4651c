"""Itineraries: which noise levels a run visits, in which order."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from invdiff.measurement import Measurement
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


@dataclass(frozen=True)
class Jumps(Itinerary):
    """RePaint's resampling (Lugmayr et al. 2022, section 4.2 and appendix): after every ``length`` steps down the run
    jumps ``length`` levels back up, until each stretch was walked ``resamplings`` times.

    As in the official schedule the first stretch to be repeated ends at index 0, and the topmost is walked once: 250 steps,
    length 10 and 10 resamplings make 2410 evaluations.

    Args:
        length: levels of a jump.
        resamplings: how often each stretch is walked; 1 is straight down.
        spacing: see :class:`Straight`.
    """

    length: int = 10
    resamplings: int = 10
    spacing: str | Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.length < 1 or self.resamplings < 1:
            raise ValueError(f"length and resamplings must be at least 1, got {self.length} and {self.resamplings}")

    def __call__(self, schedule: Schedule, steps: int) -> list[Level]:
        if steps <= self.length and self.resamplings > 1:
            warnings.warn(f"no jump of {self.length} levels fits into {steps} steps: this run goes straight down", stacklevel=2)
        ladder = Straight(self.spacing)(schedule, steps)[::-1]  # ladder[0] is clean, ladder[i + 1] the level of index i
        left = dict.fromkeys(range(0, len(ladder) - 1 - self.length, self.length), self.resamplings - 1)
        index = len(ladder) - 2
        visited = [index]
        while index >= 0:
            if left.get(index, 0) > 0:
                left[index] -= 1
                visited += range(index + 1, index + self.length + 1)
                index += self.length
            index -= 1
            visited.append(index)
        return [ladder[i + 1] for i in visited]


@dataclass(frozen=True)
class LateStart(Itinerary):
    """Starts part of the way down from a noised image (SDEdit, Meng et al. 2022): by default from A† y, where the
    operator has a pseudo-inverse (regularised by the noise), or from y itself.

    Args:
        strength: share of the itinerary that is run, in (0, 1]; 1 starts at the noisiest level.
        spacing: see :class:`Straight`.
        repeats: how often it is run, each time from what the last one made.
    """

    strength: float = 0.5
    spacing: str | Sequence[float] | None = None
    repeats: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1:
            raise ValueError(f"strength must be in (0, 1], got {self.strength}")
        if self.repeats < 1:
            raise ValueError(f"repeats must be at least 1, got {self.repeats}")

    def __call__(self, schedule: Schedule, steps: int) -> list[Level]:
        levels = Straight(self.spacing)(schedule, steps)
        run = max(1, round(self.strength * (len(levels) - 1)))
        return levels[-run - 1 :] * self.repeats  # from clean to the first level is a climb

    def start(self, measurement: Measurement | None) -> Tensor | None:
        if measurement is None:
            raise ValueError("a late start needs an image to start from, and without a measurement there is none; pass start=image")
        image = measurement.estimate()
        if image is not None:
            return image
        raise ValueError(
            f"a late start needs an image to start from, and {measurement.operator.kind} gives none; pass start=image to solve"
        )


BY_NAME: dict[str, type[Itinerary]] = {"straight": Straight, "jumps": Jumps, "late_start": LateStart}
"""Itineraries that the command line knows by name."""
