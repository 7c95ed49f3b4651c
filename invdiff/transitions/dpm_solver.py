"""DPM-Solver++ of second order, as an ODE or an SDE solver."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from invdiff.network import Prediction
from invdiff.problem import Measurement
from invdiff.sampling import Denoise, Step, Transition
from invdiff.schedules import Level
from invdiff.transitions.multistep import implied_x0, log_step


@dataclass(frozen=True)
class DPMSolver(Transition):
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2), with lambda = log(alpha/sigma), h = lambda_s
    − lambda_t:

        x_s = alpha_s x0 + sigma_s e^(−eta h) eps + sigma_s sqrt(1 − e^(−2 eta h)) z
              + alpha_s (1 − e^(−(1 + eta) h)) (D_t − D_last) h / (2 h_last)

    The first line is the paper's first-order step. D is the estimate that eps implies, (x_t −
    sigma_t eps)/alpha_t: x0 unless a guidance moved x0 alone, whose shift is then not extrapolated.
    The first step, the last one and the first after a climb are of first order.

    Args:
        eta: 0 solves the probability flow; 1 the reverse SDE, SDE-DPM-Solver++(2M) (the paper's
            eq. 19); what lies between is k-diffusion's.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        check_eta(self.eta)

    @property
    def deterministic(self) -> bool:
        return self.eta == 0

    def down(
        self, predict: Denoise, x_t: Tensor, step: Step, measurement: Measurement | None
    ) -> Tensor:
        p, t, s, last = predict(x_t, step.t), step.t, step.s, step.last
        x_s = first_order(p, step, self.eta)
        if last is None or s.sigma == 0 or s.alpha == 0 or last.level.alpha == 0:
            return x_s
        if last.level.ratio <= t.ratio:  # the run went back up
            return x_s
        h, h_last = log_step(t, s), log_step(last.level, t)
        difference = implied_x0(p) - implied_x0(last)
        k = 1 - decay(t, s, 1 + self.eta)
        return x_s + float(s.alpha) * k * h / (2 * h_last) * difference


def first_order(p: Prediction, step: Step, eta: float) -> Tensor:
    """alpha_s x0 + sigma_s e^(−eta h) eps + sigma_s sqrt(1 − e^(−2 eta h)) z."""
    t, s = step.t, step.s
    x_s = s.alpha * p.x0 + s.sigma * decay(t, s, eta) * p.eps
    if eta == 0 or s.sigma == 0:
        return x_s
    std = float(s.sigma) * (1 - decay(t, s, 2 * eta)) ** 0.5
    return torch.add(x_s, step.randn_like(x_s), alpha=std)


def decay(t: Level, s: Level, k: float) -> float:
    """e^(−k h)."""
    return float(s.ratio / t.ratio) ** k


def check_eta(eta: float) -> None:
    """Refuses shares of the SDE's noise that are none."""
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be in [0, 1], got {eta}")
