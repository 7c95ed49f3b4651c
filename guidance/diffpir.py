"""DiffPIR: denoising diffusion models for plug-and-play image restoration (Zhu et al., CVPRW 2023,
arXiv:2305.08995, algorithm 1).

    x0^  = argmin_x ‖y − A x‖² + rho_t ‖x − x0(x_t)‖²   (eq. 12b, half-quadratic splitting)
         = x0 + (A*A + rho_t)^-1 A*(y − A x0),    rho_t = lambda sigma_n² / sigma~_t²
    eps^ = (x_t − alpha_t x0^) / sigma_t
    x_s  = alpha_s x0^ + sigma_s (sqrt(1 − zeta) eps^ + sqrt(zeta) z)

The last line is DDIM with an explicit standard deviation of sqrt(zeta) sigma_s. Without measurement
noise rho is zero and x0^ the projection of x0 onto A x = y.

Symbols: lmbda, how far the prior outweighs the measurement; zeta, share of fresh noise in the
variance; sigma_n, of the measurement; sigma~ = sigma/alpha.

The official code keeps sigma_n in units of [0, 1] but sigma~ in those of its network's [-1, 1];
here both are in the network's, so a published lambda counts a quarter. Its scripts have, in ours,
for noise of 0.05 on [0, 1]: deblurring lmbda 1.75, zeta 0.3; super-resolution lmbda 0.5 to 3, zeta
0.25; inpainting without noise lmbda 0.25, zeta 1; 100 evaluations. Besides, it starts from the
noised measurement instead of from noise, has sigma_n = 0.001 for none, and returns the state at its
least noisy level with that noise in it; here the last step returns x0^. Its options to start late
and to leave out the last data terms are off in every script.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from invdiff.itineraries import Straight
from invdiff.network import Prediction
from invdiff.problem import LinearOperator, Measurement, Operator
from invdiff.sampling import Between, Denoise, Guidance, Itinerary, Method, Step
from invdiff.sampling.checks import nonnegative
from invdiff.schedules import Discrete, Level, Schedule
from invdiff.transitions import DDIM


@dataclass(frozen=True)
class DiffPIR(Guidance):
    """The data term; :func:`diffpir` goes on with its noise and levels."""

    lmbda: float = 1.0

    requires: ClassVar[type[Operator] | None] = LinearOperator
    one_sigma: ClassVar[bool] = True
    posterior: ClassVar[bool] = False

    def __post_init__(self) -> None:
        nonnegative(lmbda=self.lmbda)

    def __call__(
        self, denoise: Denoise, x_t: Tensor, step: Step, measurement: Measurement
    ) -> Prediction:
        p = denoise(x_t, step.t)
        rho = self.lmbda * (measurement.image_sigma("DiffPIR") / float(step.t.ratio)) ** 2
        return p.move(measurement.linear.pinv(measurement.residual(p.x0), ridge=rho))


@dataclass(frozen=True)
class Share:
    """Standard deviation of fresh noise that has a share zeta of the variance at s."""

    zeta: float

    def __post_init__(self) -> None:
        if not 0 <= self.zeta <= 1:
            raise ValueError(f"zeta must be in [0, 1], got {self.zeta}")

    def __call__(self, t: Level, s: Level) -> float:
        return math.sqrt(self.zeta) * float(s.sigma)


@dataclass(frozen=True)
class Root(Itinerary):
    """The published levels, t = T − 1 − T sqrt(k / (n − 1)): few steps at the start and twice as
    many as uniform ones at the end (the official code calls them quadratic). Schedules in
    continuous time, where nothing is published, keep their own spacing."""

    def __call__(self, schedule: Schedule, steps: int) -> list[Level]:
        if not isinstance(schedule, Discrete) or not 0 < steps <= schedule.T:
            return Straight()(schedule, steps)  # which says what is wrong with the steps
        k = torch.arange(steps, dtype=torch.float64)
        times = schedule.T - 1 - (schedule.T**2 * k / max(steps - 1, 1)).sqrt().floor()
        return Straight(torch.maximum(times, steps - 1 - k).tolist())(
            schedule, steps
        )  # each level once


def diffpir(
    lmbda: Annotated[float, Between(0.03, 30, log=True)] = DiffPIR.lmbda,
    zeta: Annotated[float, Between(0, 1)] = 0.3,
) -> Method:
    """DiffPIR by name.

    Args:
        lmbda: weight of the prior against the data, over the noise of both.
        zeta: share of fresh noise, in [0, 1].
    """
    return Method(DiffPIR(lmbda), DDIM(std=Share(zeta)), Root())
