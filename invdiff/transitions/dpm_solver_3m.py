"""DPM-Solver++ of third order, as an ODE or an SDE solver."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from invdiff.problem import Measurement
from invdiff.sampling import Denoise, StatefulTransition, Step
from invdiff.transitions.dpm_solver import check_eta, decay, first_order
from invdiff.transitions.multistep import Node, Past, behind, implied_x0, log_step


@dataclass(frozen=True)
class DPMSolver3M(StatefulTransition[Past]):
    """DPM-Solver++(3M), ODE (eta = 0) or SDE (eta = 1), in the form of k-diffusion's
    ``sample_dpmpp_3m_sde`` (Crowson 2023, after Lu et al. 2022), with k = (1 + eta) h:

        x_s = alpha_s x0 + sigma_s e^(−eta h) eps + sigma_s sqrt(1 − e^(−2 eta h)) z
              + alpha_s (phi_2 d_1 − 2 phi_3 d_2)
        phi_2 = 1 − (1 − e^−k)/k,   phi_3 = phi_2/k − 1/2

    d_1 and d_2 are the first two coefficients, in units of h, of the quadratic in lambda through
    the last three estimates D. The factor 2 is where this differs: the published code, and
    diffusers', have −phi_3 d_2, which leaves out half of the curvature and is of second order.
    ``exact_curvature=False`` is that code. The first step and the one to the clean image are of
    first order, the second of second order.

    Args:
        eta: share of the SDE's noise, in [0, 1].
        exact_curvature: the whole d_2 (third order), or half of it (as published).
    """

    eta: float = 0.0
    exact_curvature: bool = True

    def __post_init__(self) -> None:
        check_eta(self.eta)

    @property
    def deterministic(self) -> bool:
        return self.eta == 0

    def init(self, x_T: Tensor, measurement: Measurement | None) -> Past:
        return ()

    def advance(
        self,
        predict: Denoise,
        x_t: Tensor,
        step: Step,
        measurement: Measurement | None,
        state: Past,
    ) -> tuple[Tensor, Past]:
        p, t, s = predict(x_t, step.t), step.t, step.s
        x_s = first_order(p, step, self.eta)
        if t.alpha == 0:
            return x_s, ()
        nodes = (Node(t, implied_x0(p).detach()), *behind(state, t))[:3]
        if len(nodes) == 1 or s.sigma == 0:
            return x_s, nodes
        h = log_step(t, s)
        k = (1 + self.eta) * h
        phi_2 = 1 - (1 - decay(t, s, 1 + self.eta)) / k
        slopes = [
            (a.value - b.value) * (h / log_step(b.level, a.level))
            for a, b in zip(nodes, nodes[1:], strict=False)
        ]
        if len(slopes) == 1:
            return x_s + float(s.alpha) * phi_2 * slopes[0], nodes
        r = [log_step(b.level, a.level) / h for a, b in zip(nodes, nodes[1:], strict=False)]
        d_2 = (slopes[0] - slopes[1]) / (r[0] + r[1])
        d_1 = slopes[0] + r[0] * d_2
        phi_3 = (2 if self.exact_curvature else 1) * (phi_2 / k - 0.5)
        return x_s + float(s.alpha) * (phi_2 * d_1 - phi_3 * d_2), nodes
