"""Manifold constrained gradients (Chung et al., NeurIPS 2022, arXiv:2206.00941, equations 14 and
15, algorithm 1).

    x_s' = ancestral step from x_t − alpha grad_{x_t} ‖W (y − A x0(x_t))‖
    x_s  = (I − A†A) x_s' + A†(alpha_s y + sigma_s A z)

A gradient through the network moves the whole image, then the measured part of the state is
replaced by the measurement noised to the same level, as in ``replace``.

Symbols: alpha, the step size (the paper's alpha = alpha' / ‖W (y − A x0)‖ multiplies the gradient
of the squared norm, which is this with 2 alpha'; the official code has the norm, and alpha 1 for
inpainting, 0.1 for colourisation and tomography). W = A†, which is all of the paper's choices at
once: the mask itself, the projection onto the grey axis, filtered back-projection. The gradient in
x0 is then −A†(y − A x0) / ‖A†(y − A x0)‖, so nothing is differentiated but the network.

The official code takes the norm over the batch, noises the measurement to t instead of s, one level
too much, and for tomography replaces the projection by a gradient step; here the norm is of each
image. The measurement is taken as free of noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from invdiff.network import Prediction
from invdiff.problem import LinearOperator, Measurement, Operator
from invdiff.sampling import Between, Denoise, Guidance, Method, Step, traced
from invdiff.sampling.checks import nonnegative
from invdiff.transitions import DDPM, Replace


@dataclass(frozen=True)
class MCG(Guidance):
    """The gradient; :func:`mcg` goes on with the replacement.

    Args:
        alpha: the step size.
    """

    alpha: float = 1.0

    requires: ClassVar[type[Operator] | None] = LinearOperator
    scale: ClassVar[tuple[str, ...]] = ("alpha",)

    def __post_init__(self) -> None:
        nonnegative(alpha=self.alpha)

    def __call__(
        self, denoise: Denoise, x_t: Tensor, step: Step, measurement: Measurement
    ) -> Prediction:
        with torch.enable_grad():
            x_t, p = traced(denoise, x_t, step.t, "MCG")
        gap = measurement.linear.pinv(measurement.residual(p.x0.detach()))
        direction = F.normalize(gap.flatten(1)).view_as(
            gap
        )  # zero, not nan, where nothing is missing
        (grad,) = torch.autograd.grad(p.x0, x_t, -direction)
        return p.detach().move_x0(-self.alpha / float(step.s.alpha) * grad)


def mcg(
    alpha: Annotated[float, Between(0.1, 30, log=True)] = MCG.alpha, variance: str = DDPM.variance
) -> Method:
    """MCG by name.

    Args:
        alpha: the step size along the gradient of the data term.
        variance: of the ancestral step: ``"small"``, ``"large"``, ``"learned"`` or ``"auto"``, see
            :class:`invdiff.transitions.DDPM`.
    """
    return Method(MCG(alpha), Replace(DDPM(variance)))
