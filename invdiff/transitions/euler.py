"""Euler on the probability flow."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from invdiff.problem import Measurement
from invdiff.sampling import Denoise, Step, Transition, renoise
from invdiff.schedules import Level


@dataclass(frozen=True)
class Euler(Transition):
    """Probability-flow Euler with the churn of Karras et al. 2022 (algorithm 2, first order), in
    sigma~ = sigma/alpha.

    Args:
        s_churn: how much noise is put back, over the whole run (gamma = min(s_churn / steps,
            sqrt(2) − 1)).
        s_min, s_max: levels sigma~ between which it is put back.
        s_noise: standard deviation of that noise.
    """

    s_churn: float = 0.0
    s_min: float = 0.0
    s_max: float = math.inf
    s_noise: float = 1.0

    @property
    def deterministic(self) -> bool:
        return self.s_churn == 0

    def _churn(self, x_t: Tensor, step: Step) -> tuple[Tensor, Level]:
        if self.s_churn == 0 or step.t.alpha == 0 or not self.s_min <= step.t.ratio <= self.s_max:
            return x_t, step.t
        gamma = min(self.s_churn / step.count, math.sqrt(2) - 1)
        hat = step.schedule.at(step.t.ratio * (1 + gamma))
        return renoise(x_t, step.t, hat, step, self.s_noise), hat

    def down(
        self, predict: Denoise, x_t: Tensor, step: Step, measurement: Measurement | None
    ) -> Tensor:
        x_hat, hat = self._churn(x_t, step)
        p = predict(x_hat, hat)
        return step.s.alpha * p.x0 + step.s.sigma * p.eps
