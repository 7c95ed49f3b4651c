"""One step of the sampling loop, as guidance and transitions see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from invdiff.network import Prediction
from invdiff.noise import NoiseSource
from invdiff.schedules import Level, Schedule

Denoise = Callable[..., Prediction]
"""``denoise(x_t, level, **cond) -> Prediction``: a network, or a network under guidance. Among the
keywords ``clip_x0=False`` asks for predictions that are not clipped yet, see
:class:`~invdiff.network.Denoiser`."""


@dataclass(frozen=True)
class Step:
    """One step of the loop, from level t to level s.

    Attributes:
        index: 0, 1, ... ; count: how many steps the run has.
        t, s: the level of the state, and the next level; s may be noisier than t (a climb).
        schedule: the schedule that is sampled.
        noise: where all randomness comes from.
        last: the latest prediction, None at the start; after a step to more noise it was made at a
            level with less noise than t.
        particles: how many consecutive rows of the state are samples of one image: the particle
            system of pieces that say so (:attr:`Piece.particles`), 1 for all others.
        moved: of each resampling in this step, the row that each row goes on from, (B,).

    Examples:
        >>> import torch, invdiff
        >>> seen = []
        >>> class Look(invdiff.Guidance):
        ...     requires = None
        ...     def __call__(self, denoise, x_t, step, measurement):
        ...         seen.append((step.index, step.count))
        ...         return denoise(x_t, step.t)
        >>> denoiser = invdiff.Denoiser(lambda x, t: x, schedule=invdiff.schedules.linear(1000))
        >>> _ = invdiff.generate(denoiser, (1, 2), Look(), steps=3)
        >>> seen
        [(0, 3), (1, 3), (2, 3)]
    """

    index: int
    t: Level
    s: Level
    schedule: Schedule
    noise: NoiseSource
    count: int = 1
    last: Prediction | None = None
    particles: int = 1
    moved: list[Tensor] = field(default_factory=list, repr=False, compare=False)

    def randn_like(self, x: Tensor) -> Tensor:
        """Standard normal noise shaped as x; image k's comes from its own stream."""
        return self.noise.randn_like(x)

    @property
    def climbs(self) -> bool:
        """Whether s is noisier than t."""
        return float(self.s.sigma) * float(self.t.alpha) > float(self.t.sigma) * float(self.s.alpha)


def tiled(value: Tensor, x: Tensor) -> Tensor:
    """One entry per image repeated for a state that stacks several copies of the batch, as one call
    for two conditions does."""
    return (
        value
        if len(value) == len(x)
        else value.repeat(len(x) // len(value), *(1,) * (value.ndim - 1))
    )


def tiled_all(cond: Mapping[str, Any], x: Tensor) -> dict[str, Any]:
    """Conditions for a state that may stack several copies of the batch."""
    return {k: tiled(v, x) if isinstance(v, Tensor) and v.ndim else v for k, v in cond.items()}
