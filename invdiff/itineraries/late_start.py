"""SDEdit's late start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from invdiff.itineraries.straight import Straight
from invdiff.problem import Measurement
from invdiff.sampling import Itinerary
from invdiff.schedules import Level, Schedule


@dataclass(frozen=True)
class LateStart(Itinerary):
    """Starts part of the way down from a noised image (SDEdit, Meng et al. 2022): by default from
    A† y, where the operator has a pseudo-inverse (regularised by the noise), or from y itself.

    Args:
        strength: share of the itinerary that is run, in (0, 1]; 1 starts at the noisiest level.
        spacing: of the levels, see :meth:`invdiff.schedules.Schedule.times`; by default the
            schedule's own.
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
            raise ValueError(
                "a late start needs an image to start from, and without a measurement "
                "there is none; pass start=image"
            )
        image = measurement.estimate()
        if image is not None:
            return image
        raise ValueError(
            f"a late start needs an image to start from, and {measurement.operator.kind} "
            "gives none; pass start=image to solve"
        )
