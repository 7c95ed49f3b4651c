"""RePaint's resampling."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from invdiff.itineraries.straight import Straight
from invdiff.sampling import Itinerary
from invdiff.schedules import Level, Schedule


@dataclass(frozen=True)
class Jumps(Itinerary):
    """RePaint's resampling (Lugmayr et al. 2022, section 4.2 and appendix): after every ``length``
    steps down the run jumps ``length`` levels back up, until each stretch was walked
    ``resamplings`` times.

    As in the official schedule the first stretch to be repeated ends at index 0, and the topmost is
    walked once: 250 steps, length 10 and 10 resamplings make 2410 evaluations.

    Args:
        length: levels of a jump.
        resamplings: how often each stretch is walked; 1 is straight down.
        spacing: of the levels, see :meth:`invdiff.schedules.Schedule.times`; by default the
            schedule's own.
    """

    length: int = 10
    resamplings: int = 10
    spacing: str | Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.length < 1 or self.resamplings < 1:
            raise ValueError(
                f"length and resamplings must be at least 1, got {self.length} and "
                f"{self.resamplings}"
            )

    def __call__(self, schedule: Schedule, steps: int) -> list[Level]:
        if steps <= self.length and self.resamplings > 1:
            warnings.warn(
                f"no jump of {self.length} levels fits into {steps} steps: this run goes "
                "straight down",
                stacklevel=2,
            )
        ladder = Straight(self.spacing)(schedule, steps)[
            ::-1
        ]  # ladder[0] is clean, ladder[i + 1] the level of index i
        left = dict.fromkeys(
            range(0, len(ladder) - 1 - self.length, self.length), self.resamplings - 1
        )
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
