"""Iterative latent variable refinement (ILVR; Choi et al., ICCV 2021, arXiv:2108.02938, algorithm
1).

    x_s' = ancestral step from x_t
    y_s  = alpha_s y + sigma_s z
    x_s  = phi_N(y_s) + x_s' − phi_N(x_s'),     phi_N = up_N(down_N(.)), a low-pass filter

so that the sample has the low frequencies of a reference image y and is free in the others.

Symbols: N (``factor``), by which phi makes smaller and larger again; ``range_t``, the level down to
which is conditioned. y is the image A†y of the measurement, regularised by its noise: for
``denoise`` the measurement itself, as in the paper; for ``sr``, with N its factor and no noise,
phi_N(A†y) is the measurement made larger, since down_N is A. Beyond that the measurement is taken
as free of noise.

As in the official code both resizings are cubic with a = −1/2, down antialiased; near the border
torch renormalises the kernel where that code mirrors the image. It noises y to t instead of s, one
level too much, and leaves the last step unconditioned.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar

import torch.nn.functional as F
from torch import Tensor

from invdiff.operators.sr import SuperResolution
from invdiff.problem import LinearOperator, Measurement, Operator
from invdiff.sampling import Between, Denoise, Method, Setting, Step, Transition, Wrapping
from invdiff.transitions import DDPM


@dataclass(frozen=True)
class ILVR(Wrapping):
    """See the module's docstring.

    Args:
        inner: the step that is refined.
        factor: N; None is that of a super-resolution operator, and 8 for others.
        range_t: conditions while sigma_t/alpha_t is above it.
    """

    inner: Transition = field(default_factory=DDPM)
    factor: int | None = None
    range_t: float = 0.0

    requires: ClassVar[type[Operator] | None] = LinearOperator

    def __post_init__(self) -> None:
        if self.factor is not None and self.factor < 2:
            raise ValueError(f"factor must be at least 2, got {self.factor}")
        if self.range_t < 0:
            raise ValueError(f"range_t must be a level sigma/alpha, at least 0, got {self.range_t}")

    def bind(self, setting: Setting) -> ILVR:
        bound = super().bind(setting)
        operator = setting.measurement.operator
        factor = self.factor or (operator.factor if isinstance(operator, SuperResolution) else 8)
        if len(setting.shape) != 4 or min(setting.shape[2:]) < factor:
            raise ValueError(
                f"ILVR filters images of at least {factor}x{factor} pixels (its factor), "
                f"got shape {setting.shape}"
            )
        return replace(bound, factor=factor)

    def down(self, predict: Denoise, x_t: Tensor, step: Step, measurement: Measurement) -> Tensor:
        x_s = self.inner.down(predict, x_t, step, measurement)
        if step.t.ratio <= self.range_t:
            return x_s
        y_s = step.s.alpha * measurement.linear_estimate()
        if step.s.sigma > 0:
            y_s = y_s + step.s.sigma * step.randn_like(x_s)
        return x_s + self.low_pass(y_s - x_s)

    def low_pass(self, x: Tensor) -> Tensor:
        """phi_N(x)."""
        assert self.factor is not None
        size = x.shape[2:]
        small = F.interpolate(
            x, size=[n // self.factor for n in size], mode="bicubic", antialias=True
        )
        return F.interpolate(
            small, size=size, mode="bicubic", antialias=True
        )  # a = -1/2 with antialias, -3/4 without


def ilvr(
    factor: int | None = None,
    range_t: Annotated[float, Between(0, 1)] = ILVR.range_t,
    variance: str = DDPM.variance,
) -> Method:
    """ILVR by name.

    Args:
        factor: N; by default that of a super-resolution operator, and 8 for others.
        range_t: conditions while sigma_t/alpha_t is above it.
        variance: of the ancestral step: ``"small"``, ``"large"``, ``"learned"`` or ``"auto"``, see
            :class:`invdiff.transitions.DDPM`.
    """
    return Method(transition=ILVR(DDPM(variance), factor, range_t))
