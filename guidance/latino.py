"""LATINO (Spagnoletti et al., ICCV 2025, arXiv:2503.12615): latent consistency networks as the
prior of a Langevin scheme, in few evaluations.

    x   = D(G(z_t, t))                                   the network's clean latent, decoded
    u   = argmin_u  gamma_t/2 ‖A u − y‖² + 1/2 ‖u − x‖²,  gamma_t = delta sigma_t² / sigma_y²
    z_s = alpha_s E(u) + sigma_s eps,                    fresh noise

An autoencoding step (noise, network, decoder) and an implicit one of the likelihood alternate;
neither network nor decoder is differentiated. The run starts from E(A† y), noised to the first
level, and x and u are clipped to the range of images.

Symbols: G, a network that jumps to the clean latent, such as LCM or DMD2 (others are run as well,
with blurrier jumps); delta, how far the measurement outweighs the jump; sigma_t, the noise in the
variance-preserving frame. Published: 8 evaluations, at the times 999, 874, ..., 124. For inpainting
delta is 1 above time 500 and 0.5 below (``late``). For blur and super-resolution the authors' code
has delta proportional to ‖A x − y‖, over the batch and by factors of the problem; here it is a
number.

u is nearest to x in the metric of images, so samples come near the posterior's where the decoder
nearly keeps distances. On a Gaussian with its exact consistency map and an orthogonal decoder the
mean is off by 0.33 of the prior's error in 8 steps and 0.18 in 32; with a decoder of condition
number 9 it was farther off than the prior.

The LCM scheduler of diffusers scales a network's output towards the state (c_skip, at most 2e-7 at
these times), which is not done here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Self

from torch import Tensor

from invdiff.itineraries import LateStart
from invdiff.network import Prediction
from invdiff.problem import LinearOperator, Measurement, Operator
from invdiff.problem.operator import of_kind
from invdiff.problem.wrapped import Decoded
from invdiff.sampling import Between, Denoise, Guidance, Method, Setting, Step
from invdiff.sampling.checks import positive
from invdiff.transitions import Renoise


@dataclass(frozen=True)
class LATINO(Guidance):
    """See the module's docstring."""

    delta: float = 1.0
    late: float = 0.5
    requires: ClassVar[type[Operator] | None] = Decoded
    one_sigma: ClassVar[bool] = True

    def __post_init__(self) -> None:
        positive(delta=self.delta, late=self.late)

    def bind(self, setting: Setting) -> Self:
        bound = super().bind(setting)
        of_kind(setting.measurement.operator, Decoded).linear("LATINO", "dps or resample")
        setting.measurement.check_noisy("LATINO")
        return bound

    def __call__(
        self, denoise: Denoise, x_t: Tensor, step: Step, measurement: Measurement
    ) -> Prediction:
        operator = of_kind(measurement.operator, Decoded)
        A, coder = of_kind(operator.inner, LinearOperator), operator.autoencoder
        p = denoise(x_t, step.t)
        noise = step.t.ratio**2 / (1 + step.t.ratio**2)  # sigma_t², variance preserving
        delta = self.delta if 2 * step.index < step.count else self.late
        gamma = delta * float(noise) / measurement.image_sigma("LATINO") ** 2
        image = A.prox(coder.decode(p.x0).clamp(*coder.data_range), measurement.y, gamma)
        return p.move(coder.encode(image.clamp(*coder.data_range)) - p.x0)


def latino(
    delta: Annotated[float, Between(0.01, 100, log=True)] = LATINO.delta,
    late: Annotated[float, Between(0.01, 100, log=True)] = LATINO.late,
) -> Method:
    """LATINO with fresh noise at every level, from what the measurement alone gives.

    Args:
        delta: how far the measurement outweighs the network's jump, in the first half of the run.
        late: the same in the second half.
    """
    return Method(LATINO(delta, late), Renoise(), LateStart(1.0))
