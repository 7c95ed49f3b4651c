"""Denoising diffusion implicit models."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from invdiff.network import Prediction
from invdiff.problem import Measurement
from invdiff.sampling import Denoise, Step
from invdiff.schedules import Level
from invdiff.transitions.kernel import Ancestral, mean, posterior_variance


@dataclass(frozen=True)
class DDIM(Ancestral):
    """Song et al. 2021 (DDIM), eq. 12 and 16; eta = 0 is probability-flow Euler in sigma/alpha, eta
    = 1 is DDPM.

        x_s = alpha_s x0 + sqrt(sigma_s² − std²) eps + std z,   std = eta sqrt(beta~)

    Args:
        eta: share of the ancestral noise.
        std: an explicit sigma' per step instead: a function of (t, s) that gives std <= sigma_s.
    """

    eta: float = 0.0
    std: Callable[[Level, Level], Tensor | float] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be in [0, 1], got {self.eta}")

    @property
    def deterministic(self) -> bool:
        return self.eta == 0 and self.std is None

    def down(
        self, predict: Denoise, x_t: Tensor, step: Step, measurement: Measurement | None
    ) -> Tensor:
        x_s, std = self.kernel(predict(x_t, step.t), step.t, step.s)
        return torch.add(x_s, step.randn_like(x_t), alpha=std) if std > 0 else x_s

    def kernel(self, p: Prediction, t: Level, s: Level) -> tuple[Tensor, float]:
        """Mean and standard deviation of p(x_s | x_t)."""
        std = self.noise_std(p, t, s)
        return mean(p, s, std**2), std

    def noise_std(self, p: Prediction, t: Level, s: Level) -> float:
        """Standard deviation of the noise that a step from t to s draws."""
        std = (
            float(self.std(t, s))
            if self.std is not None
            else self.eta and self.eta * math.sqrt(posterior_variance(t, s))
        )
        if std > float(s.sigma) * (1 + 1e-9):
            raise ValueError(f"the explicit std {std:.4g} exceeds sigma_s = {float(s.sigma):.4g}")
        return std
