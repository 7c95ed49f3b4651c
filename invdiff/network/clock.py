"""Maps a noise level of any schedule to the network's own level (equal log-SNR) and time input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from invdiff.schedules import Level, Schedule


@dataclass(frozen=True)
class OfLevel:
    """A network's time input as a function of the noise level itself, so that it stays right
    whatever schedule the network is read with.

    Attributes:
        function: e.g. ``lambda level: level.alpha``, of a :class:`~invdiff.schedules.Level` of the
            network's own schedule.
    """

    function: Callable[[Level], Tensor]


Time = Callable[[Tensor], Tensor] | OfLevel


class Place(NamedTuple):
    """A level on a network's own schedule: its time input, alpha and sigma, and the factor that
    rescales x_t to it."""

    time: float
    alpha: float
    sigma: float
    scale: float


class Clock:
    """Maps levels of any schedule to the place on the schedule that a network was trained on.

    Args:
        schedule: the schedule that the network was trained on.
        time: maps the schedule's time, or the level, to the network's time input; None: the
            schedule's time.
        quantize: whole times only (nearest level).
    """

    def __init__(
        self, schedule: Schedule, time: Time | None = None, quantize: bool = False
    ) -> None:
        self.schedule, self.time, self.quantize = schedule, time, quantize
        self._places = lru_cache(maxsize=4096)(self._place)

    def __call__(self, level: Level) -> Place:
        """Where the network finds a level of any schedule."""
        return self._places(float(level.alpha), float(level.sigma))

    def times(self, time: float, x: Tensor) -> Tensor:
        """The time as the network takes it, one for each of the states x (B, ...): (B,), whole
        numbers if it is quantised."""
        return torch.full(
            x.shape[:1], time, dtype=torch.long if self.quantize else x.dtype, device=x.device
        )

    def _place(self, alpha: float, sigma: float) -> Place:
        own, scale = self.schedule.frame(alpha, sigma)
        # A network has seen no times outside its training.
        t = own.t.clamp(*sorted((self.schedule.t_min, self.schedule.t_max)))
        t = t.round() if self.quantize else t
        if isinstance(self.time, OfLevel):
            t = self.time.function(self.schedule(t))
        elif self.time is not None:
            t = self.time(t)
        return Place(float(t), float(own.alpha), float(own.sigma), scale)
