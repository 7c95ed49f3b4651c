"""Schedules in continuous time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from invdiff.schedules.base import Schedule


@dataclass(frozen=True)
class VP(Schedule):
    """dx = -beta(t)/2 x dt + sqrt(beta(t)) dw, beta linear in t in [0, 1] (Song et al. 2021, eq.
    32)."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min = 1e-3

    def _log_alpha(self, t: Tensor) -> Tensor:
        return -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_alpha = self._log_alpha(t)
        return log_alpha.exp(), torch.sqrt(-torch.expm1(2 * log_alpha))

    def _time_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        slope = self.beta_max - self.beta_min
        root = torch.sqrt(self.beta_min**2 - 4 * slope * log_alpha)
        return -4 * log_alpha / (self.beta_min + root)

    def time(self, ratio: Tensor) -> Tensor:
        return self._time_of_log_alpha(-0.5 * torch.log1p(ratio**2))


@dataclass(frozen=True)
class SubVP(VP):
    """The sub-VP SDE: alpha as in VP, sigma = 1 - alpha^2 (Song et al. 2021, eq. 29)."""

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_alpha = self._log_alpha(t)
        return log_alpha.exp(), -torch.expm1(2 * log_alpha)

    def time(self, ratio: Tensor) -> Tensor:
        alpha = 2 / (
            ratio + torch.sqrt(ratio**2 + 4)
        )  # the positive root of alpha^2 + ratio alpha - 1
        return self._time_of_log_alpha(alpha.log())


@dataclass(frozen=True)
class VE(Schedule):
    """sigma(t) = sigma_min (sigma_max / sigma_min)^t, alpha = 1 (Song et al. 2021, eq. 30); clean
    at t = -inf."""

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    clean = -math.inf

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), self.sigma_min * (self.sigma_max / self.sigma_min) ** t

    def time(self, ratio: Tensor) -> Tensor:
        return (ratio / self.sigma_min).log() / math.log(self.sigma_max / self.sigma_min)


@dataclass(frozen=True)
class Brownian(Schedule):
    """sigma(t) = sqrt(t), alpha = 1, t in [0, t_max]: dx = dw."""

    t_max: float = 2500.0
    t_min: float = 1e-4
    spacing = "karras"

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), t.sqrt()

    def time(self, ratio: Tensor) -> Tensor:
        return ratio**2


@dataclass(frozen=True)
class EDM(Schedule):
    """sigma(t) = t, alpha = 1, on Karras' rho grid (Karras et al. 2022, eq. 5)."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    spacing = "karras"

    def __post_init__(self) -> None:
        object.__setattr__(self, "t_max", self.sigma_max)
        object.__setattr__(self, "t_min", self.sigma_min)

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), t

    def time(self, ratio: Tensor) -> Tensor:
        return ratio

    def _karras(self, n: int, rho: float = 7.0) -> Tensor:
        return super()._karras(n, self.rho)


@dataclass(frozen=True)
class Flow(Schedule):
    """Linear interpolation: alpha = 1 - t, sigma = t (Lipman et al. 2023; Liu et al. 2023),
    velocity dx_t/dt.

    Args:
        shift: timestep shift of the sampling grid, t' = shift t / (1 + (shift - 1) t) (Esser et al.
            2024, eq. 23).
        noise_first: the opposite direction of time, alpha = t, sigma = 1 - t.
        spacing: the default spacing.
        sigma_min: of the least noisy time that a ``"uniform"`` grid visits, before the shift.
    """

    shift: float = 1.0
    noise_first: bool = False
    spacing: str = "trailing"
    sigma_min: float = 1e-3

    def __post_init__(self) -> None:
        if self.noise_first:
            t = {"clean": 1.0, "t_max": 0.0, "t_min": 1 - self.sigma_min}
        else:
            t = {"clean": 0.0, "t_max": 1.0, "t_min": self.sigma_min}
        for name, value in t.items():
            object.__setattr__(self, name, value)

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return (t, 1 - t) if self.noise_first else (1 - t, t)

    def time(self, ratio: Tensor) -> Tensor:
        sigma = torch.where(torch.isinf(ratio), torch.ones_like(ratio), ratio / (1 + ratio))
        return 1 - sigma if self.noise_first else sigma

    def _spaced(self, n: int, spacing: str) -> Tensor:
        t = super()._spaced(n, spacing)
        sigma = 1 - t if self.noise_first else t
        sigma = self.shift * sigma / (1 + (self.shift - 1) * sigma)
        return 1 - sigma if self.noise_first else sigma


@dataclass(frozen=True)
class SizedFlow(Flow):
    """A flow whose grid is shifted the more, the larger the image (Esser et al. 2024, section
    5.3.2): log(shift), or the shift itself with ``linear``, is linear in the number of patches.
    Until :meth:`sized` says how many there are, the shift is that of ``patches[0]``.

    Args:
        shifts, patches: the value at two numbers of patches.
        linear: the value is the shift and not its logarithm.
        side: of a patch.
    """

    shifts: tuple[float, float] = (0.5, 1.15)
    patches: tuple[int, int] = (256, 4096)
    linear: bool = False
    side: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "shift", self._at(self.patches[0]))

    def _at(self, patches: int) -> float:
        (low, high), (few, many) = self.shifts, self.patches
        value = low + (high - low) * (patches - few) / (many - few)
        return value if self.linear else math.exp(value)

    def sized(self, shape: Sequence[int]) -> Flow:
        rows, columns = (n // self.side for n in shape[2:])
        return Flow(self._at(rows * columns), self.noise_first, self.spacing, self.sigma_min)


def vp(beta_min: float = 0.1, beta_max: float = 20.0) -> VP:
    """Continuous variance-preserving SDE, see :class:`VP`.

    Args:
        beta_min, beta_max: beta at t = 0 and t = 1.
    """
    return VP(beta_min, beta_max)


def subvp(beta_min: float = 0.1, beta_max: float = 20.0) -> SubVP:
    """Continuous sub-VP SDE, see :class:`SubVP`.

    Args:
        beta_min, beta_max: beta at t = 0 and t = 1.
    """
    return SubVP(beta_min, beta_max)


def ve(sigma_min: float = 0.01, sigma_max: float = 50.0) -> VE:
    """Geometric variance-exploding SDE, see :class:`VE`.

    Args:
        sigma_min, sigma_max: sigma at t = 0 and t = 1.
    """
    return VE(sigma_min, sigma_max)


def brownian(t_max: float = 2500.0, t_min: float = 1e-4) -> Brownian:
    """Variance exploding with sigma = sqrt(t), see :class:`Brownian`.

    Args:
        t_max, t_min: the noisiest and the least noisy time that a run visits.
    """
    return Brownian(t_max, t_min)


def edm(sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> EDM:
    """sigma(t) = t on Karras' grid, see :class:`EDM`.

    Args:
        sigma_min, sigma_max: the least and the most noise that a run visits.
        rho: curvature of the grid; larger values take shorter steps near the data.
    """
    return EDM(sigma_min, sigma_max, rho)


def flow(shift: float = 1.0, noise_first: bool = False) -> Flow:
    """Flow matching, see :class:`Flow`.

    Args:
        shift: timestep shift of the sampling grid (Esser et al. 2024, eq. 23).
        noise_first: time runs the other way, alpha = t and sigma = 1 - t.
    """
    return Flow(shift, noise_first)
