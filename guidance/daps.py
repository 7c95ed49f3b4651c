"""DAPS: decoupled annealing posterior sampling (Zhang et al., CVPR 2025, arXiv:2407.01521,
algorithm 1).

At each level, with r_t = sigma_t / alpha_t:

    x0^ = the end of the probability-flow ODE from x_t       (``ode_steps`` Euler steps)
    x0  ~ exp(−‖x − x0^‖² / (2 r_t²) − ‖y − A(x)‖² / (2 tau²))   (``langevin_steps`` from x0^)
          x <- x + eta_t grad log + sqrt(2 eta_t) z,
          eta_t = lr (1 + i/N (lr_min_ratio − 1)) in step i of N
    x_s = alpha_s x0 + sigma_s z                             (the transition ``Renoise``)

so that x_s depends on x_t through x0 alone and may lie far from it. For a linear operator the
second line is a Gaussian; ``exact`` draws from it (perturb and solve: x0^ + r_t z, y + tau z', then
the minimiser of both squares) instead of by Langevin steps.

Symbols: tau, what the data term has for sigma (the paper's beta_y), in the network's units; r_t,
spread of x0 given x_t, which the paper approximates by sigma_t; lr, lr_min_ratio, the paper's eta_0
and delta. Published for FFHQ in [-1, 1] with noise of 0.05 and tau 0.01: 200 steps from 100 to 0.1
on Karras' grid, 5 evaluations in each; 100 Langevin steps with lr 1e-4 (super-resolution, gaussian
blur, random inpainting), 5e-5 (box inpainting, motion blur, phase retrieval), 2e-5 (HDR), or 200
with 1e-5 (nonlinear blur).

With ``momentum`` m > 0 the steps are those of damped Hamiltonian Monte Carlo, which the official
code has for latent networks (LatentDAPS), with v the velocity; m = 0 is Langevin's step:

    v <- m v + sqrt(eta_t) grad log + sqrt(2 (1 − m)) z,    v ~ N(0, I) at first
    x <- x + sqrt(eta_t) v

There the gradient of ‖y − A(D(z))‖² is clipped to [−1, 1] in every entry: ``limit`` 1. On a
Gaussian behind a linear decoder (50 levels, 24 steps with momentum 0.86) the mean is off by 0.04 of
the prior's error, and the covariance too wide, by 0.66 of itself.

What differs from the official code: its ODE stops at sigma 0.01 (in its first version the last
evaluation makes a step of length zero); here the last evaluation, at 0.01, gives x0^. It does not
clip x0, as ``clip`` of the network does here where images have a range, and it turns a whole batch
to zeros when one value is not a number. Levels, step sizes and tau are those of the paper and of
the code from July 2024 until it was rewritten in March 2025. Since then it visits the first N of N
+ 1 points of Karras' grid, divides i by N + 1 in eta_t, and has ‖y − A(x)‖² / tau² in the exponent,
twice the paper's: here that is ``sigma_min`` of the last point visited, 1 − (1 − lr_min_ratio) N /
(N + 1) for ``lr_min_ratio``, and tau / sqrt(2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Self

import torch
from torch import Tensor

from invdiff.network import Prediction
from invdiff.problem import LinearOperator, Measurement
from invdiff.sampling import Between, Denoise, Guidance, Itinerary, Method, Setting, Step, gradient
from invdiff.sampling.checks import nonnegative, positive
from invdiff.schedules import Level, Schedule, karras
from invdiff.transitions import Renoise

ODE_END = 0.01
"""Ratio of the last level at which the ODE evaluates the network."""


@dataclass(frozen=True)
class DAPS(Guidance):
    """The estimate; :func:`daps` goes on with new noise and its own levels.

    Args:
        ode_steps: network evaluations per level.
        langevin_steps: evaluations of the operator and its gradient per level.
        lr, lr_min_ratio: step size of the first level, and its share at the last.
        tau: standard deviation of the data term; 0 takes the measurement's sigma.
        exact: draw x0 from its Gaussian itself; needs a linear operator.
        momentum: share of the velocity that each step keeps, in [0, 1); 0 is Langevin's step.
        limit: largest magnitude of an entry of the gradient of ‖y − A(x)‖²; None is no limit.
    """

    ode_steps: int = 5
    langevin_steps: int = 100
    lr: float = 1e-4
    lr_min_ratio: float = 0.01
    tau: float = 0.01
    exact: bool = False
    momentum: float = 0.0
    limit: float | None = None

    def __post_init__(self) -> None:
        for name in ("ode_steps", "langevin_steps"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        positive(lr=self.lr)
        nonnegative(tau=self.tau)
        if not 0 < self.lr_min_ratio <= 1:
            raise ValueError(f"lr_min_ratio must be in (0, 1], got {self.lr_min_ratio}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {self.momentum}")
        if self.limit is not None and not (self.limit > 0 and self.tau > 0):
            raise ValueError(
                "limit must be positive, and needs a tau above 0, got "
                f"limit {self.limit} and tau {self.tau}"
            )
        if self.exact and (self.momentum or self.limit is not None):
            raise ValueError("exact=True takes no steps that momentum or limit could change")

    def bind(self, setting: Setting) -> Self:
        bound = super().bind(setting)
        target = self.target(setting.measurement)
        target.check_noisy("DAPS with tau=0")
        if self.exact:
            target.whitened("DAPS with exact=True")  # refuses a sigma that is zero somewhere
            if not isinstance(target.operator, LinearOperator) or target.y.is_complex():
                raise ValueError(
                    "DAPS with exact=True needs a linear operator and real y, but got "
                    f"{target.operator.kind}; use exact=False"
                )
        return bound

    def __call__(
        self, denoise: Denoise, x_t: Tensor, step: Step, measurement: Measurement
    ) -> Prediction:
        p, x0 = self.flow(denoise, x_t, step)
        draw = self.solved if self.exact else self.langevin
        return p.move(draw(x0, step, self.target(measurement)) - p.x0)

    def target(self, measurement: Measurement) -> Measurement:
        """The measurement as it is weighed: with tau for its sigma."""
        return measurement if self.tau == 0 else replace(measurement, sigma=self.tau)

    def flow(self, denoise: Denoise, x_t: Tensor, step: Step) -> tuple[Prediction, Tensor]:
        """The prediction at t, and the end of the probability-flow ODE."""
        high = float(step.t.ratio)
        if high == math.inf:
            raise ValueError(
                "the ODE of DAPS needs signal in the state: start just below alpha = 0, as "
                "its own itinerary does"
            )
        p = first = denoise(x_t, step.t)
        for ratio in karras(high, min(ODE_END, high), self.ode_steps)[1:]:
            s = step.schedule.at(ratio)
            p = denoise(s.alpha * p.x0 + s.sigma * p.eps, s)
        return first, p.x0

    def langevin(self, x0: Tensor, step: Step, measurement: Measurement) -> Tensor:
        """x0 after the Langevin or Hamiltonian steps of this level."""
        eta = self.lr * (1 + step.index / step.count * (self.lr_min_ratio - 1))
        m = self.momentum
        x, v = x0, step.randn_like(x0) if m else torch.zeros_like(x0)
        for _ in range(self.langevin_steps):
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                score = gradient(measurement.log_likelihood(x), x)
            if self.limit is not None:
                most = self.limit / (2 * self.tau**2)
                score = score.clamp(-most, most)
            drift = score + (x0 - x.detach()) / float(step.t.ratio) ** 2
            v = m * v + math.sqrt(eta) * drift + math.sqrt(2 * (1 - m)) * step.randn_like(x)
            x = x.detach() + math.sqrt(eta) * v
        return x

    def solved(self, x0: Tensor, step: Step, measurement: Measurement) -> Tensor:
        """An exact draw of what the Langevin steps aim at."""
        measurement = measurement.once("daps", lambda m: m.whitened("DAPS with exact=True"))
        operator = measurement.linear
        r, tau = float(step.t.ratio), measurement.image_sigma("DAPS")
        x = x0 + r * step.randn_like(x0)
        y = measurement.y + tau * step.randn_like(measurement.y)
        return x + operator.pinv(y - operator(x), ridge=(tau / r) ** 2)


@dataclass(frozen=True)
class Annealing(Itinerary):
    """Karras' grid from ``sigma_max``, or from where the schedule is noisiest, to ``sigma_min``
    (sigma/alpha both), then clean."""

    sigma_max: float = 100.0
    sigma_min: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(
                "sigma_max must exceed sigma_min, both finite and positive; got "
                f"{self.sigma_max} and {self.sigma_min}"
            )

    def __call__(self, schedule: Schedule, steps: int) -> list[Level]:
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        high = min(self.sigma_max, float(schedule(schedule.t_max).ratio))
        return [
            *(schedule.at(ratio) for ratio in karras(high, min(self.sigma_min, high), steps)),
            schedule(schedule.clean),
        ]


def daps(
    ode_steps: int = DAPS.ode_steps,
    langevin_steps: int = DAPS.langevin_steps,
    lr: Annotated[float, Between(1e-6, 1e-3, log=True)] = DAPS.lr,
    lr_min_ratio: float = DAPS.lr_min_ratio,
    tau: Annotated[float, Between(1e-3, 0.1, log=True)] = DAPS.tau,
    exact: bool = DAPS.exact,
    sigma_max: Annotated[float, Between(3, 100, log=True)] = Annealing.sigma_max,
    sigma_min: float = Annealing.sigma_min,
    momentum: float = DAPS.momentum,
    limit: float | None = DAPS.limit,
) -> Method:
    """DAPS by name.

    Args:
        ode_steps: network evaluations per level.
        langevin_steps: evaluations of the operator and its gradient per level.
        lr: size of the Langevin steps at the first level; stable below 2 tau² for an operator of
            norm 1.
        lr_min_ratio: the share of lr that is left at the last level.
        tau: standard deviation of the data term, in the network's range (in y's where the operator
            is nonlinear); 0 takes the measurement's sigma.
        exact: draw x0 from its Gaussian itself; needs a linear operator.
        sigma_max, sigma_min: first and last noise level, sigma/alpha.
        momentum: share of the velocity that each step keeps, in [0, 1); 0 is Langevin's step, above
            it is damped Hamiltonian Monte Carlo.
        limit: largest magnitude of an entry of the gradient of ‖y − A(x)‖²; None is no limit.
    """
    return Method(
        DAPS(ode_steps, langevin_steps, lr, lr_min_ratio, tau, exact, momentum, limit),
        Renoise(),
        Annealing(sigma_max, sigma_min),
    )
