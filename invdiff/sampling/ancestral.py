"""The Gaussian p(x_s | x_t) of ancestral sampling (Ho et al. 2020, eq. 7), from level t to s."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from invdiff.network import Prediction
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
