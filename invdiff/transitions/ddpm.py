"""Ancestral sampling."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from invdiff.network import Prediction
from invdiff.problem import Measurement
from invdiff.sampling import Denoise, Step
from invdiff.schedules import Level
from invdiff.transitions.kernel import Ancestral, forward_variance, mean, posterior_variance


@dataclass(frozen=True)
class DDPM(Ancestral):
    """Ancestral sampling (Ho et al. 2020, algorithm 2; learned variance: Nichol & Dhariwal 2021,
    eq. 15).

        x_s = alpha_s x0 + sqrt(sigma_s² − beta~) eps + std z

    Args:
        variance: ``"small"`` (std² = beta~), ``"large"`` (std² = beta), ``"learned"`` (std² = exp(f
            log beta + (1 − f) log beta~)), or ``"auto"``: learned where the network has it, small
            elsewhere.
    """

    variance: str = "auto"

    def __post_init__(self) -> None:
        if self.variance not in ("auto", "small", "large", "learned"):
            raise ValueError(
                f"variance must be 'auto', 'small', 'large' or 'learned', got {self.variance!r}"
            )

    def down(
        self, predict: Denoise, x_t: Tensor, step: Step, measurement: Measurement | None
    ) -> Tensor:
        x_s, std = self.kernel(predict(x_t, step.t), step.t, step.s)
        if float(step.s.sigma) == 0:
            return x_s
        noise = step.randn_like(x_t)
        return x_s + std * noise if isinstance(std, Tensor) else torch.add(x_s, noise, alpha=std)

    def kernel(self, p: Prediction, t: Level, s: Level) -> tuple[Tensor, Tensor | float]:
        """Mean and standard deviation of p(x_s | x_t); at the clean level no noise of it is
        drawn."""
        return mean(p, s, posterior_variance(t, s)), self.noise_std(p, t, s)

    def noise_std(self, p: Prediction, t: Level, s: Level) -> Tensor | float:
        """Standard deviation of the noise that a step from t to s draws."""
        small, large = posterior_variance(t, s), forward_variance(t, s)
        if self.variance == "large":
            return math.sqrt(large)
        if self.variance == "small" or (self.variance == "auto" and p.variance_fraction is None):
            return math.sqrt(small)
        if p.variance_fraction is None:
            raise ValueError(
                "variance='learned' needs a network with learned variance "
                "(learned_variance=True); use 'small' or 'large'"
            )
        if small == 0:  # from a level to itself
            return 0.0
        f = p.variance_fraction
        return torch.exp(0.5 * (f * math.log(large) + (1 - f) * math.log(small)))
