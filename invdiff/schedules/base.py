"""Noise schedules: what ``x_t = alpha * x0 + sigma * eps`` means at each time t, and which times to
visit.

A schedule is called with times and gives ``Level(t, alpha, sigma)`` in float64 on the CPU. Discrete
schedules have the times 0..T-1 and are clean at t = -1; times between are interpolated in log(sigma
/ alpha). Continuous schedules say their own ``clean`` time. ``ratio`` is always the noise-to-signal
ratio sigma / alpha; the log-SNR is -2 log(ratio).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

SPACINGS = ("uniform", "leading", "trailing", "quadratic", "karras")


class Level(NamedTuple):
    """One noise level: ``x_t = alpha * x0 + sigma * eps``. In an itinerary all three are 0-d
    float64 CPU tensors, so they broadcast against any state on any device and may be branched on
    for free.

    Examples:
        >>> import torch, invdiff
        >>> level = invdiff.schedules.flow()(torch.tensor(0.25, dtype=torch.float64))
        >>> float(level.alpha), float(level.sigma)
        (0.75, 0.25)
    """

    t: Tensor
    alpha: Tensor
    sigma: Tensor

    @property
    def ratio(self) -> Tensor:
        """sigma / alpha, the noise level in the variance-exploding frame; inf where alpha = 0."""
        return self.sigma / self.alpha


class Schedule(ABC):
    """Base of all schedules.

    Attributes:
        clean: the time at which (alpha, sigma) = (1, 0).
        t_max: the noisiest time; t_min: the least noisy time a sampler visits before ``clean``.
        spacing: the spacing used when none is asked for.
        from_noise: whether its noisiest level drowns the image, so that a run may start from noise
            alone.

    Examples:
        >>> import torch, invdiff
        >>> schedule = invdiff.schedules.cosine(1000)
        >>> level = schedule(torch.tensor(999))
        >>> bool(level.sigma > 0.99)
        True
    """

    from_noise: bool = True
    clean: float = 0.0
    t_max: float = 1.0
    t_min: float = 0.0
    spacing: str = "uniform"

    @abstractmethod
    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at float64 times t, any shape."""

    @abstractmethod
    def time(self, ratio: Tensor) -> Tensor:
        """The time at which sigma / alpha equals ``ratio``: the inverse of the schedule."""

    def __call__(self, t: Tensor | float) -> Level:
        t = torch.as_tensor(t, dtype=torch.float64, device="cpu")
        return Level(t, *self.coefficients(t))

    def at(self, ratio: Tensor | float) -> Level:
        """The level whose noise-to-signal ratio is ``ratio``."""
        return self(self.time(torch.as_tensor(ratio, dtype=torch.float64)))

    def frame(self, alpha: float, sigma: float) -> tuple[Level, float]:
        """Where a network trained on this schedule finds a state of any other: the level with the
        same log-SNR, and the factor that brings x_t there. Pure noise (alpha = 0) is its noisiest
        level."""
        if sigma <= 0:
            raise ValueError("a network for noisy states was given a level with sigma = 0")
        own = (
            self.at(torch.tensor(sigma, dtype=torch.float64) / alpha)
            if alpha > 0
            else self(self.t_max)
        )
        if float(own.alpha) == alpha and float(own.sigma) == sigma:
            return own, 1.0
        scale = float(torch.hypot(own.alpha, own.sigma)) / math.hypot(alpha, sigma)
        return own, 1.0 if abs(scale - 1) < 1e-12 else scale

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(d alpha / dt, d sigma / dt), which a velocity ``v = dx_t/dt`` is made of."""
        t = t.detach().clone()
        return torch.func.jvp(self.coefficients, (t,), (torch.ones_like(t),))[1]

    def sized(self, shape: Sequence[int]) -> Schedule:
        """The schedule for states of shape (B, C, H, W): itself, unless its grid depends on their
        size."""
        return self

    def times(self, steps: int, spacing: str | Sequence[float] | None = None) -> Tensor:
        """The times a sampler visits, noisiest first, the clean end not included.

        Args:
            steps: how many; of a discrete schedule at most T, except for ``"karras"``. Not used
                with a list of times.
            spacing: ``"uniform"`` from t_max to t_min, both included; ``"leading"`` and
                ``"trailing"`` (Lin et al. 2024, table 2); ``"quadratic"`` (Song et al. 2021, DDIM,
                appendix D.2); ``"karras"`` (Karras et al. 2022, eq. 5, rho = 7); or the list of
                times itself, noisiest first.
        """
        spacing = self.spacing if spacing is None else spacing
        if not isinstance(spacing, str):
            times = torch.as_tensor(spacing, dtype=torch.float64)
            if times.ndim != 1 or len(times) == 0:
                raise ValueError(
                    f"a custom spacing is a non-empty list of times, got shape {tuple(times.shape)}"
                )
            ratio = self(times).ratio
            if bool((ratio <= 0).any()) or bool((ratio[1:] >= ratio[:-1]).any()):
                raise ValueError(
                    "a custom spacing goes from noisy to clean, each time once and none of "
                    f"them clean; got {times.tolist()}"
                )
            return times
        if spacing not in SPACINGS:
            raise ValueError(
                f"unknown spacing {spacing!r}; known: {', '.join(SPACINGS)}, or a list of times"
            )
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        if spacing == "karras":
            return self._karras(steps)
        return self._spaced(steps, spacing)

    def _spaced(self, n: int, spacing: str) -> Tensor:
        k = torch.arange(n, dtype=torch.float64)
        low, high = self.t_min, self.t_max
        if spacing == "uniform":
            return torch.linspace(high, low, n, dtype=torch.float64)
        if spacing == "trailing":
            return high + (self.clean_side - high) * k / n
        if spacing == "leading":
            return low + (high - low) * (n - 1 - k) / n
        sign = -1.0 if high < low else 1.0
        root = torch.linspace(
            math.sqrt(abs(high - self.clean_side)),
            math.sqrt(abs(low - self.clean_side)),
            n,
            dtype=torch.float64,
        )
        return self.clean_side + sign * root**2

    @property
    def clean_side(self) -> float:
        """The finite time nearest to clean."""
        return self.clean if math.isfinite(self.clean) else self.t_min

    def _karras(self, n: int, rho: float = 7.0) -> Tensor:
        high, low = (self(t).ratio for t in (self.t_max, self.t_min))
        if not torch.isfinite(high) or low <= 0:
            raise ValueError(
                "karras spacing needs a finite, positive sigma / alpha at both ends of the "
                "schedule; use another spacing"
            )
        return self.time(karras(float(high), float(low), n, rho))


def karras(high: float, low: float, n: int, rho: float = 7.0) -> Tensor:
    """n noise-to-signal ratios from ``high`` down to ``low`` (Karras et al. 2022, eq. 5)."""
    ramp = torch.linspace(0, 1, n, dtype=torch.float64)
    return (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho
