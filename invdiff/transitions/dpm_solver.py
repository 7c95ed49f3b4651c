"""DPM-Solver++ of second order."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from invdiff.network import Prediction
from invdiff.problem import Measurement
from invdiff.sampling import Denoise, Step, Transition


@dataclass(frozen=True)
class DPMSolver(Transition):
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2), with lambda = log(alpha/sigma), h = lambda_s
    − lambda_t:

        x_s = alpha_s x0 + sigma_s eps + alpha_s (1 − e^−h) (D_t − D_last) h / (2 h_last)

    The first two terms are the paper's first-order step. D is the estimate that eps implies, (x_t −
    sigma_t eps)/alpha_t: x0 unless a guidance moved x0 alone, whose shift is then not extrapolated.
    The first step, the last one and the first after a climb are of first order.
    """

    @property
    def deterministic(self) -> bool:
        return True

    def down(
        self, predict: Denoise, x_t: Tensor, step: Step, measurement: Measurement | None
    ) -> Tensor:
        p, t, s, last = predict(x_t, step.t), step.t, step.s, step.last
        x_s = s.alpha * p.x0 + s.sigma * p.eps
        if last is None or s.sigma == 0 or s.alpha == 0 or last.level.alpha == 0:
            return x_s
        if last.level.ratio <= t.ratio:  # the run went back up
            return x_s
        h, h_last = -(s.ratio / t.ratio).log(), -(t.ratio / last.level.ratio).log()
        difference = _implied_x0(p) - _implied_x0(last)
        return x_s + s.alpha * (-torch.expm1(-h)) * h / (2 * h_last) * difference


def _implied_x0(p: Prediction) -> Tensor:
    return (p.x_t - p.level.sigma * p.eps) / p.level.alpha
