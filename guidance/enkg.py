"""EnKG: ensemble Kalman diffusion guidance (Zheng et al., TMLR 2025, arXiv:2409.20175, algorithm
1), for simulators that can be run but not differentiated. The samples of an image are its ensemble.

Each step goes down the probability-flow ODE, to x' at s, and then corrects every particle j of J:

    x0^j  = the end of the probability-flow ODE from x'^j     (``ode_steps`` Euler steps)
    c_jk  = <A(x0^k) − mean A(x0), y − A(x0^j)> / J
    x_s^j = x'^j + w Σ_k c_jk (x'^k − mean x'),    w = zeta / ‖c‖ (Frobenius)

The sum is the cross covariance of x' and A(x0) over the ensemble, times the residual. Where A and
the flow are linear it is C J* A* (y − A x0^j), with C the covariance of x' and J = dx0/dx': the
gradient of the data's loss, preconditioned, from values of A alone.

Symbols: zeta, the size of the corrections; w, the paper's step size w_i, normalised as in the
authors' benchmark (InverseBench, Zheng et al., ICLR 2025). The weight of every residual is the
same, so that the noise's sigma cancels. Corrections stay in the span of the ensemble, which must be
large (published: 1024 particles) and shrinks towards one image: its spread does not tell how
uncertain that is. The last step, to the clean level, is not corrected.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from invdiff.problem import Measurement, Operator
from invdiff.sampling import Between, Denoise, Step, Transition
from invdiff.sampling.checks import nonnegative
from invdiff.sampling.particles import check_many
from invdiff.schedules import karras

ODE_END = 0.01
"""sigma/alpha of the last evaluation of the ODE, which gives x0."""


@dataclass(frozen=True)
class EnKG(Transition):
    """See the module's docstring.

    Args:
        zeta: the size of the corrections, relative to the ensemble's spread.
        ode_steps: network evaluations of the ODE that ends in x0.
    """

    zeta: Annotated[float, Between(0.1, 10, log=True)] = 1.0
    ode_steps: int = 2
    requires: ClassVar[type[Operator] | None] = Operator
    particles: ClassVar[bool] = True
    posterior: ClassVar[bool] = False

    def __post_init__(self) -> None:
        nonnegative(zeta=self.zeta)
        if self.ode_steps < 1:
            raise ValueError(f"ode_steps must be at least 1, got {self.ode_steps}")

    @property
    def predictions(self) -> int:
        return 1 + self.ode_steps

    def down(self, predict: Denoise, x_t: Tensor, step: Step, measurement: Measurement) -> Tensor:
        check_many(step)
        p, s = predict(x_t, step.t), step.s
        x = s.alpha * p.x0 + s.sigma * p.eps
        if s.sigma == 0:
            return x
        values = measurement.operator(self.flow(predict, x, step))
        residual = (measurement.y - values).flatten(1).unflatten(0, (-1, step.particles))
        values = values.flatten(1).unflatten(0, (-1, step.particles))
        spread = x.flatten(1).unflatten(0, (-1, step.particles))
        values, spread = (v - v.mean(1, keepdim=True) for v in (values, spread))
        c = (residual @ values.mH).real / step.particles
        size = torch.linalg.matrix_norm(c)[:, None, None]
        c = self.zeta * c / torch.where(size > 0, size, 1.0)
        return x + (c @ spread).view_as(x)

    def flow(self, predict: Denoise, x: Tensor, step: Step) -> Tensor:
        """x0 at the end of the probability-flow ODE from x at s."""
        p, high = predict(x, step.s), float(step.s.ratio)
        for ratio in karras(high, min(ODE_END, high), self.ode_steps)[1:]:
            level = step.schedule.at(ratio)
            p = predict(level.alpha * p.x0 + level.sigma * p.eps, level)
        return p.x0
