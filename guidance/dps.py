"""Diffusion posterior sampling (Chung et al., ICLR 2023, arXiv:2209.14687, algorithm 1).

    x_s' = ancestral step from x_t
    x_s  = x_s' − zeta grad_{x_t} ‖y − A(x0(x_t))‖

with the norm of each image, as in the official code. The gradient passes through the network. Moving x0 by
−zeta grad / alpha_s under the ancestral transition is the same update.

Symbols: zeta, the step size per step (the paper's zeta_i = zeta / ‖y − A(x0)‖ multiplies the gradient of the squared norm,
so its mean zeta' is half of ours). Published values belong to 256x256 images in [-1, 1] and 1000 steps. The official code adds
noise at missing pixels too and leaves it in the norm, a constant that shortens the steps of inpainting near the end; here the
norm is over what was measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from invdiff.denoiser import Prediction
from invdiff.measurement import Measurement
from invdiff.sampling import Denoise, Guidance, Step, traced


@dataclass(frozen=True)
class DPS(Guidance):
    """See the module's docstring."""

    zeta: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.zeta < math.inf:
            raise ValueError(f"zeta must be a finite number, at least 0, got {self.zeta}")

    def __call__(self, denoise: Denoise, x_t: Tensor, step: Step, measurement: Measurement | None) -> Prediction:
        assert measurement is not None
        with torch.enable_grad():
            x_t, p = traced(denoise, x_t, step.t, "DPS")
            norm = measurement.norm(p.x0).sum()  # one value per image; the sum keeps their gradients apart
        (grad,) = torch.autograd.grad(norm, x_t)
        return p.detach().move_x0(-self.zeta / float(step.s.alpha) * grad)
