"""Noise schedules: what ``x_t = alpha * x0 + sigma * eps`` means at each time t, and which times to visit.

A schedule is called with times and gives ``Level(t, alpha, sigma)`` in float64 on the CPU. Discrete schedules have the
times 0..T-1 and are clean at t = -1; times between are interpolated in log(sigma / alpha). Continuous schedules say
their own ``clean`` time. ``ratio`` is always the noise-to-signal ratio sigma / alpha; the log-SNR is -2 log(ratio).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

SPACINGS = ("uniform", "leading", "trailing", "quadratic", "karras")


class Level(NamedTuple):
    """One noise level: ``x_t = alpha * x0 + sigma * eps``. In an itinerary all three are 0-d float64 CPU tensors, so
    they broadcast against any state on any device and may be branched on for free."""

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
        from_noise: whether its noisiest level drowns the image, so that a run may start from noise alone.
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
        """Where a network trained on this schedule finds a state of any other: the level with the same log-SNR, and the
        factor that brings x_t there. Pure noise (alpha = 0) is its noisiest level."""
        if sigma <= 0:
            raise ValueError("a network for noisy states was given a level with sigma = 0")
        own = self.at(torch.tensor(sigma, dtype=torch.float64) / alpha) if alpha > 0 else self(self.t_max)
        if float(own.alpha) == alpha and float(own.sigma) == sigma:
            return own, 1.0
        scale = float(torch.hypot(own.alpha, own.sigma)) / math.hypot(alpha, sigma)
        return own, 1.0 if abs(scale - 1) < 1e-12 else scale

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(d alpha / dt, d sigma / dt), which a velocity ``v = dx_t/dt`` is made of."""
        t = t.detach().clone()
        return torch.func.jvp(self.coefficients, (t,), (torch.ones_like(t),))[1]

    def times(self, steps: int, spacing: str | Sequence[float] | None = None) -> Tensor:
        """The times a sampler visits, noisiest first, the clean end not included.

        Args:
            steps: how many; of a discrete schedule at most T, except for ``"karras"``. Not used with a list of times.
            spacing: ``"uniform"`` from t_max to t_min, both included; ``"leading"`` and ``"trailing"`` (Lin et al.
                2024, table 2); ``"quadratic"`` (Song et al. 2021, DDIM, appendix D.2); ``"karras"`` (Karras et al.
                2022, eq. 5, rho = 7); or the list of times itself, noisiest first.
        """
        spacing = self.spacing if spacing is None else spacing
        if not isinstance(spacing, str):
            times = torch.as_tensor(spacing, dtype=torch.float64)
            if times.ndim != 1 or len(times) == 0:
                raise ValueError(f"a custom spacing is a non-empty list of times, got shape {tuple(times.shape)}")
            ratio = self(times).ratio
            if bool((ratio <= 0).any()) or bool((ratio[1:] >= ratio[:-1]).any()):
                raise ValueError(f"a custom spacing goes from noisy to clean, each time once and none of them clean; got {times.tolist()}")
            return times
        if spacing not in SPACINGS:
            raise ValueError(f"unknown spacing {spacing!r}; known: {', '.join(SPACINGS)}, or a list of times")
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
        root = torch.linspace(math.sqrt(abs(high - self.clean_side)), math.sqrt(abs(low - self.clean_side)), n, dtype=torch.float64)
        return self.clean_side + sign * root**2

    @property
    def clean_side(self) -> float:
        """The finite time nearest to clean."""
        return self.clean if math.isfinite(self.clean) else self.t_min

    def _karras(self, n: int, rho: float = 7.0) -> Tensor:
        high, low = (self(t).ratio for t in (self.t_max, self.t_min))
        if not torch.isfinite(high) or low <= 0:
            raise ValueError("karras spacing needs a finite, positive sigma / alpha at both ends of the schedule; use another spacing")
        return self.time(karras(float(high), float(low), n, rho))


def karras(high: float, low: float, n: int, rho: float = 7.0) -> Tensor:
    """n noise-to-signal ratios from ``high`` down to ``low`` (Karras et al. 2022, eq. 5)."""
    ramp = torch.linspace(0, 1, n, dtype=torch.float64)
    return (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho


class Discrete(Schedule):
    """T noise levels given by their ratio sigma / alpha, ascending; variance preserving, or exploding (alpha = 1).

    Attributes:
        spacing, offset: the default spacing, and what ``"leading"`` adds to its times (diffusers' ``steps_offset``); may be set.
    """

    clean, t_min = -1.0, 0.0
    offset: int = 0

    def __init__(self, ratio: Tensor, exploding: bool = False) -> None:
        ratio = torch.as_tensor(ratio, dtype=torch.float64)
        if ratio.ndim != 1 or len(ratio) < 1 or bool((ratio <= 0).any()) or bool((ratio.diff() < 0).any()):
            raise ValueError("a discrete schedule needs positive noise-to-signal ratios that do not fall with t")
        self.ratio, self.exploding = ratio, exploding
        self.T = len(ratio)
        self.t_max = self.T - 1.0

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        if bool((t < -1).any()) or bool((t > self.T - 1).any()):
            raise ValueError(f"times of this schedule run from 0 to {self.T - 1} (clean: -1), got {t.tolist()}")
        low = t.floor().clamp(-1, self.T - 1).long()
        part = t - low
        table = torch.cat([torch.zeros(1, dtype=torch.float64), self.ratio])  # table[t + 1]; clean first
        below, above = table[low + 1], table[(low + 2).clamp(max=self.T)]
        # Between two levels: linear in log(ratio); between clean and the first level, where the log is -inf: linear.
        between = torch.where(low < 0, above * part, below.clamp(min=1e-300) ** (1 - part) * above**part)
        return self._frame(torch.where(part == 0, below, between))

    def _frame(self, ratio: Tensor) -> tuple[Tensor, Tensor]:
        if self.exploding:
            return torch.ones_like(ratio), ratio
        alpha = (1 + ratio**2).rsqrt()
        return alpha, torch.where(torch.isinf(ratio), torch.ones_like(ratio), ratio * alpha)

    def time(self, ratio: Tensor) -> Tensor:
        ratio = ratio.to(torch.float64)
        high = torch.searchsorted(self.ratio, ratio.contiguous()).clamp(max=self.T - 1)
        low = (high - 1).clamp(min=0)
        below, above = self.ratio[low], self.ratio[high]
        part = torch.where(above > below, (ratio / below).log() / (above / below).log(), torch.ones_like(ratio))
        part = torch.where(torch.isinf(ratio) & torch.isinf(above), torch.ones_like(part), part)
        t = torch.where(high == 0, ratio / self.ratio[0] - 1, low + part).clamp(-1, self.T - 1)
        nearest = t.round()
        return torch.where((t - nearest).abs() < 1e-6, nearest, t)  # the network's own levels keep their exact time

    def times(self, steps: int, spacing: str | Sequence[float] | None = None) -> Tensor:
        if isinstance(spacing, str | None) and spacing != "karras" and steps > self.T:
            raise ValueError(f"this schedule has {self.T} levels, so at most {self.T} steps, got {steps}; spacing='karras' may use more")
        return super().times(steps, spacing)

    def _spaced(self, n: int, spacing: str) -> Tensor:
        k = torch.arange(n, dtype=torch.float64)
        if spacing == "uniform":
            return torch.linspace(self.T - 1, 0, n, dtype=torch.float64).round()
        if spacing == "leading":
            stride = self.T // n
            return (n - 1 - k) * stride + min(self.offset, self.T - 1 - (n - 1) * stride)
        if spacing == "trailing":
            return (self.T - k * self.T / n).round() - 1
        root = torch.linspace(math.sqrt(0.8 * self.T), 0, n, dtype=torch.float64)
        return torch.maximum((root**2).floor(), n - 1 - k)  # the paper's list repeats the lowest levels; here every level comes once


@dataclass(frozen=True)
class VP(Schedule):
    """dx = -beta(t)/2 x dt + sqrt(beta(t)) dw, beta linear in t in [0, 1] (Song et al. 2021, eq. 32)."""

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
        alpha = 2 / (ratio + torch.sqrt(ratio**2 + 4))  # the positive root of alpha^2 + ratio alpha - 1
        return self._time_of_log_alpha(alpha.log())


@dataclass(frozen=True)
class VE(Schedule):
    """sigma(t) = sigma_min (sigma_max / sigma_min)^t, alpha = 1 (Song et al. 2021, eq. 30); clean at t = -inf."""

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
    """Linear interpolation: alpha = 1 - t, sigma = t (Lipman et al. 2023; Liu et al. 2023), velocity dx_t/dt.

    Args:
        shift: timestep shift of the sampling grid, t' = shift t / (1 + (shift - 1) t) (Esser et al. 2024, eq. 23).
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


def from_betas(betas: Tensor | Sequence[float], zero_terminal_snr: bool = False) -> Discrete:
    """DDPM with custom variances: alpha_bar = prod(1 - beta) (Ho et al. 2020, eq. 4).

    ``zero_terminal_snr`` rescales alpha so that the last level is pure noise (Lin et al. 2024, algorithm 1); such a
    schedule needs a network that predicts v or x0.
    """
    betas = torch.as_tensor(betas, dtype=torch.float64)
    if betas.ndim != 1 or bool((betas <= 0).any()) or bool((betas > 1).any()):
        raise ValueError("betas must be a list of numbers in (0, 1]")
    alpha_bar = torch.cumprod(1 - betas, 0)
    if zero_terminal_snr:
        root = alpha_bar.sqrt()
        alpha_bar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return Discrete(torch.sqrt((1 - alpha_bar) / alpha_bar))


def from_sigmas(sigmas: Tensor | Sequence[float]) -> Discrete:
    """Variance exploding with custom levels: alpha = 1, sigmas ascending (discrete NCSN)."""
    return Discrete(torch.as_tensor(sigmas, dtype=torch.float64), exploding=True)


def linear(T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02, zero_terminal_snr: bool = False) -> Discrete:
    """betas linear from ``beta_start`` to ``beta_end`` (Ho et al. 2020)."""
    return from_betas(torch.linspace(beta_start, beta_end, T, dtype=torch.float64), zero_terminal_snr)


def scaled_linear(T: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012, zero_terminal_snr: bool = False) -> Discrete:
    """sqrt(beta) linear (Rombach et al. 2022, latent diffusion)."""
    return from_betas(torch.linspace(beta_start**0.5, beta_end**0.5, T, dtype=torch.float64) ** 2, zero_terminal_snr)


def cosine(T: int = 1000, s: float = 0.008, max_beta: float = 0.999, zero_terminal_snr: bool = False) -> Discrete:
    """alpha_bar = cos^2((t/T + s)/(1 + s) pi/2), betas clipped at ``max_beta`` (Nichol & Dhariwal 2021, eq. 17)."""
    t = torch.linspace(0, 1, T + 1, dtype=torch.float64)
    alpha_bar = torch.cos((t + s) / (1 + s) * math.pi / 2) ** 2
    return from_betas((1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=max_beta), zero_terminal_snr)


def sigmoid(T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02, zero_terminal_snr: bool = False) -> Discrete:
    """betas follow a sigmoid on [-6, 6] (Xu et al. 2022, GeoDiff; ``"sigmoid"`` in diffusers)."""
    ramp = torch.sigmoid(torch.linspace(-6, 6, T, dtype=torch.float64))
    return from_betas(ramp * (beta_end - beta_start) + beta_start, zero_terminal_snr)


def vp(beta_min: float = 0.1, beta_max: float = 20.0) -> VP:
    """Continuous variance-preserving SDE, see :class:`VP`."""
    return VP(beta_min, beta_max)


def subvp(beta_min: float = 0.1, beta_max: float = 20.0) -> SubVP:
    """Continuous sub-VP SDE, see :class:`SubVP`."""
    return SubVP(beta_min, beta_max)


def ve(sigma_min: float = 0.01, sigma_max: float = 50.0) -> VE:
    """Geometric variance-exploding SDE, see :class:`VE`."""
    return VE(sigma_min, sigma_max)


def brownian(t_max: float = 2500.0, t_min: float = 1e-4) -> Brownian:
    """Variance exploding with sigma = sqrt(t), see :class:`Brownian`."""
    return Brownian(t_max, t_min)


def edm(sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> EDM:
    """sigma(t) = t on Karras' grid, see :class:`EDM`."""
    return EDM(sigma_min, sigma_max, rho)


def flow(shift: float = 1.0, noise_first: bool = False) -> Flow:
    """Flow matching, see :class:`Flow`."""
    return Flow(shift, noise_first)


BY_NAME: dict[str, Callable[..., Schedule]] = {
    f.__name__: f for f in (linear, scaled_linear, cosine, sigmoid, vp, subvp, ve, brownian, edm, flow)
}
"""Schedules that a configuration or a text may name, with their parameters."""


def make_schedule(schedule: Schedule | str | Mapping[str, Any]) -> Schedule:
    """A schedule from its name, or its name and parameters: ``"linear"``, ``{"name": "flow", "shift": 3.0}``; a schedule is passed through.

    Raises:
        ValueError: an unknown name or parameter; says which there are.
    """
    from invdiff.registry import call

    if isinstance(schedule, Schedule):
        return schedule
    if not isinstance(schedule, str | Mapping):
        raise TypeError(
            f"schedule must be one of invdiff.schedules, e.g. schedules.linear(1000), or the name of one, got {type(schedule).__name__}"
        )
    parameters = {"name": schedule} if isinstance(schedule, str) else dict(schedule)
    name = parameters.pop("name", None)
    if name not in BY_NAME:
        raise ValueError(f"unknown schedule {name!r}; known by name: {', '.join(BY_NAME)} (schedule.name= if it has parameters)")
    return call(BY_NAME[name], f"schedule {name!r}", parameters)
