"""Posterior sampling with latent diffusion (Rout et al., NeurIPS 2023, arXiv:2307.00619, algorithm
2).

DPS through the decoder D leaves latents free that no image encodes to; a second term glues the
latent to the encoding E of its own decoded image, in which what was measured is replaced:

    z_s' = a step of the sampler from z_t
    z_s  = z_s' − omega grad_{z_t} ‖y − A D(z0)‖ − gamma grad_{z_t} ‖z0 − E(A* y + (I − A* A)
    D(z0))‖

with the norms of each image, not squared, as in the official code. The gradient passes through
network, decoder and encoder.

Symbols: omega and gamma, the weights of measurement and gluing. A* A is the projection of the paper
where A A* = I, such as a mask; elsewhere the glued image has made a gradient step towards the
measurement instead. Published, with 1000 DDIM steps (eta = 0): omega 1 and gamma 0.1 for Stable
Diffusion 1.5, 0.1 and 0.01 for its box inpainting; gamma 0.1 for the network of FFHQ, with omega
0.9 for super-resolution and 0.1 elsewhere.

The official code upsamples in the place of A* for super-resolution, and takes A* = I for blur. It
adds noise of the measurement's standard deviation to A D(z0) in every step, so that its residual is
never smaller than noise; the paper does not, nor is it done here. Neither clips z0: latents have no
range.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Self

import torch
from torch import Tensor

from invdiff.network import Prediction
from invdiff.problem import LinearOperator, Measurement, Operator
from invdiff.problem.operator import of_kind
from invdiff.problem.wrapped import Decoded
from invdiff.sampling import Between, Denoise, Guidance, Method, Setting, Step, gradient, traced
from invdiff.sampling.checks import nonnegative
from invdiff.transitions import DDIM


@dataclass(frozen=True)
class PSLD(Guidance):
    """See the module's docstring."""

    omega: float = 1.0
    gamma: float = 0.1
    requires: ClassVar[type[Operator] | None] = Decoded
    scale: ClassVar[tuple[str, ...]] = ("omega", "gamma")

    def __post_init__(self) -> None:
        nonnegative(omega=self.omega, gamma=self.gamma)

    def bind(self, setting: Setting) -> Self:
        bound = super().bind(setting)
        of_kind(setting.measurement.operator, Decoded).linear("PSLD", "dps or resample")
        return bound

    def __call__(
        self, denoise: Denoise, x_t: Tensor, step: Step, measurement: Measurement
    ) -> Prediction:
        operator = of_kind(measurement.operator, Decoded)
        A, coder = of_kind(operator.inner, LinearOperator), operator.autoencoder
        with torch.enable_grad():
            x_t, p = traced(denoise, x_t, step.t, "PSLD")
            image = coder.decode(p.x0)
            residual = measurement.y - A(image)
            glued = coder.encode(
                image + A.adjoint(residual)
            )  # A* y + (I − A* A) D(z0), with one application of each
            errors = self.omega * _norm(residual) + self.gamma * _norm(p.x0 - glued)
            grad = gradient(errors, x_t)
        return p.detach().move_x0(-grad / step.s.alpha)


def _norm(x: Tensor) -> Tensor:
    """Of every image, (B,); its gradient is zero, not nan, where x is."""
    return torch.linalg.vector_norm(x.flatten(1), dim=1)


def psld(
    omega: Annotated[float, Between(0.03, 10, log=True)] = PSLD.omega,
    gamma: Annotated[float, Between(0.01, 3, log=True)] = PSLD.gamma,
) -> Method:
    """PSLD on deterministic DDIM steps.

    Args:
        omega: weight of the measurement, a step size on the norm of the residual.
        gamma: weight of the gluing.
    """
    return Method(PSLD(omega, gamma), DDIM())
