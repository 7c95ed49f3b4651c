"""Heun on the probability flow."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from invdiff.problem import Measurement
from invdiff.sampling import Denoise, Step
from invdiff.transitions.euler import Euler


@dataclass(frozen=True)
class Heun(Euler):
    """Karras et al. 2022, algorithm 2: Euler, then a correction with the slope at s, in sigma~ =
    sigma/alpha.

        x_s = alpha_s (x0 + sigma~_t eps + (sigma~_s − sigma~_t)(eps + eps') / 2)

    The last step, and one from or to alpha = 0, stay Euler steps.
    """

    @property
    def predictions(self) -> int:
        return 2

    def down(
        self, predict: Denoise, x_t: Tensor, step: Step, measurement: Measurement | None
    ) -> Tensor:
        x_hat, t = self._churn(x_t, step)
        s, p = step.s, predict(x_hat, t)
        x_s = s.alpha * p.x0 + s.sigma * p.eps
        if s.sigma == 0 or s.alpha == 0 or t.alpha == 0:
            return x_s
        p_s = predict(x_s, s)
        return x_s + s.alpha * (s.ratio - t.ratio) / 2 * (p_s.eps - p.eps)
