"""PnP-Flow (Martin et al., ICLR 2025, arXiv:2410.02423, algorithm 3): plug-and-play with the
denoiser of a flow.

At every level a gradient step on the data, an interpolation onto the path of the flow, and the
denoiser:

    z  = x0 − gamma_s grad f(x0),   f(x) = ‖A x − y‖² / 2
    x_s = alpha_s z + sigma_s eps
    x0 <- D(x_s, s), the mean over several draws of eps

The network is not differentiated. The first two lines move x0 here, the third is the transition
Renoise and the next step's prediction.

Symbols: z, the image between prior and data; gamma_s = lr (1 − t)^alpha in the paper's time, whose
t = 1 is data, so 1 − t = sigma / (alpha + sigma), the share of noise, on any schedule: a network of
any kind runs on the levels of its own. f carries no 1/sigma_y², which the official code divides by
and then multiplies lr with. draws: the paper's num_samples. Published: lr 1, 100 steps, 5 draws,
alpha 0.01 (deblurring, random inpainting), 0.3 (super-resolution), 0.5 (box inpainting), 0.8
(denoising).

The official code makes all draws at the first level too; here it makes one, the state itself, as no
z is known yet to draw around.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from invdiff.network import Prediction
from invdiff.problem import Measurement
from invdiff.sampling import Between, Denoise, Method, StatefulGuidance, Step, data_gradient
from invdiff.sampling.checks import nonnegative
from invdiff.transitions import Renoise


@dataclass(frozen=True)
class PnPFlow(StatefulGuidance[Tensor | None]):
    """See the module's docstring."""

    lr: float = 1.0
    alpha: float = 0.5
    draws: int = 5

    posterior: ClassVar[bool] = False

    def __post_init__(self) -> None:
        nonnegative(lr=self.lr, alpha=self.alpha)
        if self.draws < 1:
            raise ValueError(f"draws must be at least 1, got {self.draws}")

    def init(self, x_T: Tensor, measurement: Measurement) -> None:
        """No z yet: the state is noise alone."""

    def advance(
        self,
        denoise: Denoise,
        x_t: Tensor,
        step: Step,
        measurement: Measurement,
        state: Tensor | None,
    ) -> tuple[Prediction, Tensor]:
        t, s, z = step.t, step.s, state
        p = denoise(x_t, t)
        estimates = [p.x0]
        if z is not None:  # x_t is one draw around it
            for _ in range(self.draws - 1):
                estimates.append(denoise(t.alpha * z + t.sigma * step.randn_like(x_t), t).x0)
        x0 = torch.stack(estimates).mean(0)
        if s.sigma > 0:  # the run ends with the denoiser
            gamma = self.lr * float(s.sigma / (s.alpha + s.sigma)) ** self.alpha
            x0 = x0 - gamma / 2 * data_gradient(measurement, x0)
        return p.move_x0(x0 - p.x0), x0


def pnpflow(
    lr: Annotated[float, Between(0.1, 5, log=True)] = PnPFlow.lr,
    alpha: Annotated[float, Between(0.01, 1, log=True)] = PnPFlow.alpha,
    draws: int = PnPFlow.draws,
) -> Method:
    """PnP-Flow with fresh noise at every level.

    Args:
        lr: size of the gradient steps, stable below 2 / ‖A‖².
        alpha: how fast they shrink towards the data; 0 keeps them constant.
        draws: network evaluations a level, averaged.
    """
    return Method(PnPFlow(lr, alpha, draws), Renoise())
