"""Pseudoinverse-guided diffusion models, PiGDM (Song et al., ICLR 2023, eq. 7 and algorithm 1).

With p(x0 | x_t) taken as N(x0, r_t² I) the likelihood of y = A x + sigma_y n is Gaussian, and its
gradient a vector-Jacobian product:

    g    = grad_{x_t} log p(y | x_t) = J^T A^T (r_t² A A^T + sigma_y² I)^-1 (y − A x0)
    J    = d x0 / d x_t
    r_t² = sigma_t² / (alpha_t² + sigma_t²)

with r_t² that of data from N(0, I), the paper's sigma_t² / (sigma_t² + 1) in any frame. Then

    adaptive weights    x_s = DDIM(eta) step + alpha_s alpha_t r_t² g
    plain score         x0 + sigma_t² / alpha_t g in place of E[x0 | x_t], eps re-derived

Without noise r_t² g = J^T A†(y − A x0), so A† stands for the inverse throughout. The adaptive
weights are what the authors use; in the frame of x0 + sigma eps they add r_t² g itself. The plain
score samples the exact posterior of N(0, I) data as steps grow.

Symbols: eta, the noise of DDIM. Published: eta 1, 100 steps. The authors' code (NVlabs/RED-diff) is
for measurements without noise, and starts from a noised A† y; here the start is pure noise. It does
not clip x0, as ``clip`` of the network does here where images have a range.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from invdiff.network import Prediction
from invdiff.problem import LinearOperator, Measurement, Operator
from invdiff.sampling import Between, Denoise, Guidance, Method, Step, traced
from invdiff.transitions import DDIM


@dataclass(frozen=True)
class PiGDM(Guidance):
    """See the module's docstring.

    Args:
        adaptive: the authors' weights, which move x0 and keep eps, instead of the plain score.
    """

    adaptive: bool = True
    requires: ClassVar[type[Operator] | None] = LinearOperator
    one_sigma: ClassVar[bool] = True

    def __call__(
        self, denoise: Denoise, x_t: Tensor, step: Step, measurement: Measurement
    ) -> Prediction:
        operator, (_, alpha, sigma) = measurement.linear, step.t
        if alpha == 0:  # pure noise: x0 does not depend on it
            return denoise(x_t, step.t)
        r2 = sigma**2 / (alpha**2 + sigma**2)
        with torch.enable_grad():
            x_t, p = traced(denoise, x_t, step.t, "PiGDM")
        v = operator.pinv(
            measurement.residual(p.x0.detach()), ridge=measurement.image_sigma("PiGDM") ** 2 / r2
        )
        (g,) = torch.autograd.grad(p.x0, x_t, v)  # r_t² times the score of the likelihood
        p = p.detach()
        return p.move_x0(alpha * g) if self.adaptive else p.move(sigma**2 / (alpha * r2) * g)


def pigdm(eta: Annotated[float, Between(0, 1)] = 1.0, adaptive: bool = PiGDM.adaptive) -> Method:
    """PiGDM with its DDIM.

    Args:
        eta: the share of ancestral noise that DDIM draws, in [0, 1].
        adaptive: the authors' weights, which move x0 and keep eps, instead of the plain score.
    """
    return Method(PiGDM(adaptive), DDIM(eta))
