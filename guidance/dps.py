"""Diffusion posterior sampling (Chung et al., ICLR 2023, arXiv:2209.14687, algorithm 1).

    x_s' = ancestral step from x_t
    x_s  = x_s' − zeta grad_{x_t} ‖y − A(x0(x_t))‖                          by default, or
    x_s  = x_s' + zeta grad_{x_t} log p(y | x0(x_t))                        with ``likelihood``

with the norm of each image, as in the official code. The gradient passes through the network.
Moving x0 by −zeta grad / alpha_s under the ancestral transition is the same update.

Symbols: zeta, the step size per step (the paper's zeta_i = zeta / ‖y − A(x0)‖ multiplies the
gradient of the squared norm, so its mean zeta' is half of ours). Published values belong to 256x256
images in [-1, 1] and 1000 steps. The official code adds noise at missing pixels too and leaves it
in the norm, a constant that shortens the steps of inpainting near the end; here the norm is over
what was measured.

The likelihood is −Σ_j (y_j − A(x0)_j)² / (2 sigma_j²). With one sigma that is the paper's Gaussian
form, its 1/sigma² spelled out. With the sigma_j² = sigma² + gain y_j of a Poisson measurement it is
its Poisson form ‖y − A(x0)‖²_Λ, Λ_jj = 1/(2 y_j): in units of single counts (gain 1) and without
read-out noise the two are equal. The official code has ‖y − A(x0)‖ mean_j(1/|y_j|) there instead,
which weighs all pixels alike.

Either form shifts x_s alone and leaves eps, as in the paper, so zeta holds the whole size of the
step; that of the likelihood is sigma²/‖y − A(x0)‖ times that of the norm, and with zeta = sigma²,
its default, the step is that of ½‖y − A(x0)‖². With the zeta of a step alpha_s/alpha_t (sigma_t² −
(alpha_t/alpha_s)² sigma_s²) the likelihood form is Bayes' rule in the ancestral step, the score
grad log p(y | x0(x_t)) that the paper starts from; ``lgd`` has that score for every transition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from invdiff.network import Prediction
from invdiff.problem import Measurement
from invdiff.sampling import Between, Denoise, Guidance, Setting, Step, gradient, traced


@dataclass(frozen=True)
class DPS(Guidance):
    """See the module's docstring.

    Args:
        zeta: the step size: a number, a list with one for each step of the run (climbs count), or a
            function of the :class:`~invdiff.sampling.Step`. None is 1 along the norm, and along the
            likelihood sigma², of an image its mean.
        likelihood: follow the gradient of log p(y | x0), which needs sigma > 0, instead of that of
            the norm.
    """

    zeta: Annotated[
        float | Sequence[float] | Callable[[Step], float] | None, Between(0.1, 30, log=True)
    ] = None
    likelihood: bool = False

    scale: ClassVar[tuple[str, ...]] = ("zeta",)

    def __post_init__(self) -> None:
        if self.zeta is None or callable(self.zeta):
            return
        if not isinstance(self.zeta, int | float):
            object.__setattr__(self, "zeta", tuple(self.zeta))
        numbers = self.zeta if isinstance(self.zeta, tuple) else (self.zeta,)
        if not numbers or not all(
            isinstance(zeta, int | float) and 0 <= zeta < math.inf for zeta in numbers
        ):
            raise ValueError(
                f"zeta must be a finite number, at least 0, or one for each step, got {self.zeta}"
            )

    def bind(self, setting: Setting) -> DPS:
        bound = super().bind(setting)
        if self.likelihood:
            setting.measurement.check_noisy("DPS with likelihood=true")
        return bound

    def __call__(
        self, denoise: Denoise, x_t: Tensor, step: Step, measurement: Measurement
    ) -> Prediction:
        zeta = self.step_size(step, measurement)
        with torch.enable_grad():
            x_t, p = traced(denoise, x_t, step.t, "DPS")
            misfit = (
                -measurement.log_likelihood(p.x0) if self.likelihood else measurement.norm(p.x0)
            )
            grad = gradient(misfit, x_t)
        return p.detach().move_x0(-zeta / float(step.s.alpha) * grad)

    def step_size(self, step: Step, measurement: Measurement) -> float | Tensor:
        """zeta of this step, where it follows from sigma one per image as (B, 1, ...)."""
        if self.zeta is None:
            return measurement.mean_variance if self.likelihood else 1.0
        if callable(self.zeta):
            return float(self.zeta(step))
        if isinstance(self.zeta, tuple):
            if len(self.zeta) != step.count:
                raise ValueError(
                    f"zeta has {len(self.zeta)} numbers, but this run has {step.count} "
                    "steps (climbs count); give one for each"
                )
            return self.zeta[step.index]
        assert isinstance(self.zeta, int | float)
        return self.zeta
