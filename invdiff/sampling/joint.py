"""Joint diffusion of the image and of what is unknown of its operator, for which there is a
diffusion network, too: BlindDPS (Chung, Kim, Kim and Ye, "Parallel diffusion models of operator and
image for blind inverse problems", CVPR 2023, arXiv:2211.10656, algorithm 1).

    k_s = ancestral(k_t, k0) − zeta ∇_{k_t} ‖y − A_k0(x0)‖,   k0 = k0(k_t)

x0 is the network's estimate of the image in the same step, and A_k0 the operator that the method
is given in it, so that under DPS the image takes the paper's step as well. Under other methods the
image takes theirs. The paper's sparsity of k0 is left out: the ℓ0 norm has no gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from invdiff.network import Denoiser
from invdiff.noise import NoiseSource
from invdiff.problem import Measurement
from invdiff.sampling.ancestral import forward_variance, mean, posterior_variance
from invdiff.schedules import Level

ZETA = 0.3
"""The authors' step, of the norm of images in [-1, 1]. As much in 20 steps as in their 1000, which
is 15, made LPIPS worse (docs/measurements.md)."""


@dataclass(frozen=True)
class Chain:
    """The state k_t (B, C, h, w) of what is unknown at a level, in the range of its network."""

    network: Denoiser
    k_t: Tensor
    level: Level

    @classmethod
    def start(cls, given: Measurement, level: Level, noise: NoiseSource) -> Chain | None:
        """At the first level, pure noise; None where the operator has no network as a prior."""
        prior = given.operator.unknown_prior()
        if prior is None:
            return None
        network, shape = prior
        y = given.y.real
        k = noise.randn_like(y.new_empty(len(y), *shape))
        return cls(network.to(y.device), float(level.sigma) * k, level)

    def select(self, rows: Tensor) -> Chain:
        """Some of its rows."""
        return replace(self, k_t=self.k_t[rows])

    def given(self, measurement: Measurement) -> Measurement:
        """The measurement with A_k0."""
        k0 = self.k_t if self.level.sigma == 0 else self.network(self.k_t, self.level).x0
        return self._with(measurement, k0)

    def _with(self, measurement: Measurement, k0: Tensor) -> Measurement:
        low, high = self.network.data_range or (0.0, 1.0)
        operator = measurement.operator.drawn((k0 - low) / (high - low))
        return replace(measurement, operator=operator)

    def stepped(
        self, measurement: Measurement, x0: Tensor | None, s: Level, noise: NoiseSource
    ) -> Chain:
        """At the next level; without x0 by the prior alone, and up to more noise by noise."""
        t = self.level
        if float(s.ratio) > float(t.ratio):
            kept = float(s.alpha) / float(t.alpha) * self.k_t
            std = math.sqrt(forward_variance(s, t))
            return Chain(self.network, kept + std * noise.randn_like(kept), s)
        with torch.enable_grad():
            k_t = self.k_t.detach().requires_grad_()
            p = self.network(k_t, t)
            if x0 is not None:
                norm = self._with(measurement, p.x0).norm(x0).sum()
                (grad,) = torch.autograd.grad(norm, k_t)
        variance = posterior_variance(t, s)
        k_s = mean(p.detach(), s, variance)
        if variance > 0:
            k_s = k_s + math.sqrt(variance) * noise.randn_like(k_s)
        return Chain(self.network, k_s if x0 is None else k_s - ZETA * grad, s)
