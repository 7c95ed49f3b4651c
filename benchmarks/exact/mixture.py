"""Mixtures of Gaussians that share one covariance: exact posterior means, posteriors and draws."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from invdiff.network import Denoiser
from invdiff.schedules import Schedule

D = torch.float64


@dataclass(frozen=True)
class Mixture:
    """sum_k w_k N(m_k, C), float64.

    Args:
        weights: (K,), summing to one.
        means: (K, d).
        values, basis: C = basis diag(values) basisᵀ with values (d,); basis None is the identity.
    """

    weights: Tensor
    means: Tensor
    values: Tensor
    basis: Tensor | None = None

    @classmethod
    def of(cls, weights: Tensor, means: Tensor, covariance: Tensor) -> Mixture:
        """From a dense covariance (d, d)."""
        values, basis = torch.linalg.eigh((covariance + covariance.mT) / 2)
        return cls(weights, means, values.clamp(min=0), basis)

    @property
    def covariance(self) -> Tensor:
        """C, of each component, (d, d)."""
        return (
            torch.diag(self.values)
            if self.basis is None
            else (self.basis * self.values) @ self.basis.mT
        )

    def posterior_mean(self, x_t: Tensor, alpha: float, sigma: float) -> Tensor:
        """E[x0 | alpha x0 + sigma eps = x_t], for x_t (B, ...)."""
        means, values = self._in_basis(self.means).to(x_t), self.values.to(x_t)
        z = self._in_basis(x_t.flatten(1))
        noisy = alpha**2 * values + sigma**2
        # |z − alpha m|² without z², which the softmax does not see.
        share = (
            self.weights.log().to(x_t)
            + alpha * z @ (means / noisy).mT
            - alpha**2 / 2 * (means**2 / noisy).sum(1)
        ).softmax(1)
        mean = share @ means
        mean = mean + alpha * values / noisy * (z - alpha * mean)
        return (mean if self.basis is None else mean @ self.basis.to(mean).mT).view_as(x_t)

    def posterior(self, A: Tensor, y: Tensor, sigma: float) -> Mixture:
        """Under one y = A x + sigma n, A (m, d): again such a mixture."""
        C = self.covariance
        S = A @ C @ A.mT + sigma**2 * torch.eye(len(A), dtype=D)
        gain = torch.linalg.solve(S, A @ C).mT
        r = y - self.means @ A.mT
        log_w = self.weights.log() - 0.5 * (r * torch.linalg.solve(S, r.mT).mT).sum(1)
        return Mixture.of(log_w.softmax(0), self.means + r @ gain.mT, C - gain @ A @ C)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """n exact samples, (n, d)."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = self.values.sqrt() * torch.randn(n, len(self.values), dtype=D, generator=generator)
        return self.means[k] + (z if self.basis is None else z @ self.basis.mT)

    def denoiser(self, schedule: Schedule, name: str) -> Denoiser:
        """The network that is exact for this prior, as one trained on ``schedule`` would be."""
        at = cache(schedule.__call__)

        def net(x: Tensor, t: Tensor) -> Tensor:
            level = at(float(t[0]))
            return self.posterior_mean(x, float(level.alpha), float(level.sigma))

        return Denoiser(net, predicts="x0", schedule=schedule, dtype=D, name=name)

    def _in_basis(self, x: Tensor) -> Tensor:
        return x if self.basis is None else x @ self.basis.to(x)
