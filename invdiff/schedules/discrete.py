"""Schedules of T discrete levels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from invdiff.schedules.base import Schedule


class Discrete(Schedule):
    """T noise levels given by their ratio sigma / alpha, ascending; variance preserving, or
    exploding (alpha = 1).

    Attributes:
        spacing, offset: the default spacing, and what ``"leading"`` adds to its times (diffusers'
            ``steps_offset``); may be set.
    """

    clean, t_min = -1.0, 0.0
    offset: int = 0

    def __init__(self, ratio: Tensor, exploding: bool = False) -> None:
        ratio = torch.as_tensor(ratio, dtype=torch.float64)
        if (
            ratio.ndim != 1
            or len(ratio) < 1
            or bool((ratio <= 0).any())
            or bool((ratio.diff() < 0).any())
        ):
            raise ValueError(
                "a discrete schedule needs positive noise-to-signal ratios that do not fall with t"
            )
        self.ratio, self.exploding = ratio, exploding
        self.T = len(ratio)
        self.t_max = self.T - 1.0

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        if bool((t < -1).any()) or bool((t > self.T - 1).any()):
            raise ValueError(
                f"times of this schedule run from 0 to {self.T - 1} (clean: -1), got "
                f"{float(t.min()):g} to {float(t.max()):g}"
            )
        low = t.floor().clamp(-1, self.T - 1).long()
        part = t - low
        table = torch.cat(
            [torch.zeros(1, dtype=torch.float64), self.ratio]
        )  # table[t + 1]; clean first
        below, above = table[low + 1], table[(low + 2).clamp(max=self.T)]
        # Between two levels: linear in log(ratio); between clean and the first level, where the log
        # is -inf: linear.
        between = torch.where(
            low < 0, above * part, below.clamp(min=1e-300) ** (1 - part) * above**part
        )
        return self._frame(torch.where(part == 0, below, between))

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Differences over a time around t: what lies between two levels is interpolated, so that
        there is no derivative at a level."""
        t = t.detach()
        before, after = (t - 0.5).clamp(min=-1), (t + 0.5).clamp(max=self.T - 1)
        ends = zip(self.coefficients(before), self.coefficients(after), strict=True)
        alpha, sigma = ((b - a) / (after - before) for a, b in ends)
        return alpha, sigma

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
        part = torch.where(
            above > below, (ratio / below).log() / (above / below).log(), torch.ones_like(ratio)
        )
        part = torch.where(torch.isinf(ratio) & torch.isinf(above), torch.ones_like(part), part)
        t = torch.where(high == 0, ratio / self.ratio[0] - 1, low + part).clamp(-1, self.T - 1)
        nearest = t.round()
        return torch.where(
            (t - nearest).abs() < 1e-6, nearest, t
        )  # the network's own levels keep their exact time

    def times(self, steps: int, spacing: str | Sequence[float] | None = None) -> Tensor:
        if isinstance(spacing, str | None) and spacing != "karras" and steps > self.T:
            raise ValueError(
                f"this schedule has {self.T} levels, so at most {self.T} steps, got "
                f"{steps}; spacing='karras' may use more"
            )
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
        return torch.maximum(
            (root**2).floor(), n - 1 - k
        )  # the paper's list repeats the lowest levels; here every level comes once


def from_betas(betas: Tensor | Sequence[float], zero_terminal_snr: bool = False) -> Discrete:
    """DDPM with custom variances: alpha_bar = prod(1 - beta) (Ho et al. 2020, eq. 4).

    ``zero_terminal_snr`` rescales alpha so that the last level is pure noise (Lin et al. 2024,
    algorithm 1); such a schedule needs a network that predicts v or x0.
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


def linear(
    T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02, zero_terminal_snr: bool = False
) -> Discrete:
    """betas linear from ``beta_start`` to ``beta_end`` (Ho et al. 2020).

    Args:
        T: how many levels.
        beta_start, beta_end: variances of the first and the last step.
        zero_terminal_snr: rescale so that the last level is pure noise (Lin et al. 2024).
    """
    return from_betas(
        torch.linspace(beta_start, beta_end, T, dtype=torch.float64), zero_terminal_snr
    )


def scaled_linear(
    T: int = 1000,
    beta_start: float = 0.00085,
    beta_end: float = 0.012,
    zero_terminal_snr: bool = False,
) -> Discrete:
    """sqrt(beta) linear (Rombach et al. 2022, latent diffusion).

    Args:
        T: how many levels.
        beta_start, beta_end: variances of the first and the last step.
        zero_terminal_snr: rescale so that the last level is pure noise (Lin et al. 2024).
    """
    return from_betas(
        torch.linspace(beta_start**0.5, beta_end**0.5, T, dtype=torch.float64) ** 2,
        zero_terminal_snr,
    )


def cosine(
    T: int = 1000, s: float = 0.008, max_beta: float = 0.999, zero_terminal_snr: bool = False
) -> Discrete:
    """alpha_bar = cos^2((t/T + s)/(1 + s) pi/2), betas clipped at ``max_beta`` (Nichol & Dhariwal
    2021, eq. 17).

    Args:
        T: how many levels.
        s: offset that keeps the first steps from being too small.
        max_beta: largest variance of a step.
        zero_terminal_snr: rescale so that the last level is pure noise (Lin et al. 2024).
    """
    t = torch.linspace(0, 1, T + 1, dtype=torch.float64)
    alpha_bar = torch.cos((t + s) / (1 + s) * math.pi / 2) ** 2
    return from_betas((1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=max_beta), zero_terminal_snr)


def sigmoid(
    T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02, zero_terminal_snr: bool = False
) -> Discrete:
    """betas follow a sigmoid on [-6, 6] (Xu et al. 2022, GeoDiff; ``"sigmoid"`` in diffusers).

    Args:
        T: how many levels.
        beta_start, beta_end: variances of the first and the last step.
        zero_terminal_snr: rescale so that the last level is pure noise (Lin et al. 2024).
    """
    ramp = torch.sigmoid(torch.linspace(-6, 6, T, dtype=torch.float64))
    return from_betas(ramp * (beta_end - beta_start) + beta_start, zero_terminal_snr)
