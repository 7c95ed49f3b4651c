"""Euler-Maruyama on the reverse SDE."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from invdiff.problem import Measurement
from invdiff.sampling import Denoise, Step, Transition
from invdiff.transitions.kernel import forward_variance


@dataclass(frozen=True)
class EulerMaruyama(Transition):
    """The reverse SDE (Song et al. 2021, eq. 6) as probability-flow Euler plus Langevin noise of
    the forward kernel's variance d = sigma_t² − (alpha_t/alpha_s)² sigma_s², which is g² dt on
    every schedule:

        x_s = alpha_s x0 + (sigma_s − d / (2 sigma_t)) eps + sqrt(d) z

    The last step returns x0. From alpha_t = 0 (flow at t = 1) the SDE forgets its state at once:
    x_s = alpha_s x0 + sigma_s z.
    """

    def down(
        self, predict: Denoise, x_t: Tensor, step: Step, measurement: Measurement | None
    ) -> Tensor:
        p, t, s = predict(x_t, step.t), step.t, step.s
        if s.sigma == 0:
            return s.alpha * p.x0
        if t.alpha == 0:
            return s.alpha * p.x0 + s.sigma * step.randn_like(x_t)
        d = forward_variance(t, s)
        return (
            s.alpha * p.x0
            + (s.sigma - d / (2 * t.sigma)) * p.eps
            + math.sqrt(d) * step.randn_like(x_t)
        )
