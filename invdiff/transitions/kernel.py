"""The Gaussian kernel p(x_s | x_t) that ancestral transitions share."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor

from invdiff.network import Prediction
from invdiff.sampling import Transition
from invdiff.schedules import Level


def forward_variance(t: Level, s: Level) -> float:
    """beta = sigma_t² − (alpha_t/alpha_s)² sigma_s²: the variance of q(x_t | x_s); DDPM's beta_t
    between neighbours."""
    return max(float(t.sigma) ** 2 - (float(t.alpha) / float(s.alpha) * float(s.sigma)) ** 2, 0.0)


def posterior_variance(t: Level, s: Level) -> float:
    """beta tilde = sigma_s²/sigma_t² beta: the variance of q(x_s | x_t, x0) (Ho et al. 2020, eq.
    7)."""
    return (float(s.sigma) / float(t.sigma)) ** 2 * forward_variance(t, s)


def mean(p: Prediction, s: Level, variance: float) -> Tensor:
    """alpha_s x0 + sqrt(sigma_s² − variance) eps: the next state less the noise of that
    variance."""
    return torch.add(
        float(s.alpha) * p.x0, p.eps, alpha=math.sqrt(max(float(s.sigma) ** 2 - variance, 0.0))
    )


class Ancestral(Transition):
    """A transition whose p(x_s | x_t) is Gaussian, so that it has a density."""

    @abstractmethod
    def kernel(self, p: Prediction, t: Level, s: Level) -> tuple[Tensor, Tensor | float]:
        """Mean and standard deviation of p(x_s | x_t)."""

    @abstractmethod
    def noise_std(self, p: Prediction, t: Level, s: Level) -> Tensor | float:
        """Standard deviation of the noise that a step from t to s draws."""


def check_density(inner: Transition, who: str) -> None:
    """Refuses transitions without the density p(x_s | x_t) that weights are made of."""
    if not isinstance(inner, Ancestral) or inner.deterministic:
        raise ValueError(
            f"{who} weighs particles by the transition's density: use DDPM, or DDIM(eta) with "
            f"eta > 0, got {inner}"
        )
