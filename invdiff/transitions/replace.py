"""Replacement of what was measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from invdiff.problem import LinearOperator, Measurement, Operator
from invdiff.sampling import Denoise, Step, Transition, Wrapping
from invdiff.transitions.ddpm import DDPM


@dataclass(frozen=True)
class Replace(Wrapping):
    """Replaces what was measured by the measurement, noised to level s, after a step of ``inner``
    (Lugmayr et al. 2022, algorithm 1, lines 4 to 8; Song et al. 2021, appendix I.2):

        x_s <- (I − A†A) x_s + A†(alpha_s y + sigma_s A z)

    For a mask this is ``m (alpha_s y + sigma_s z) + (1 − m) x_s``. At the clean level the known
    part is y exactly. The measurement is taken as free of noise.
    """

    inner: Transition = field(default_factory=DDPM)
    requires: ClassVar[type[Operator] | None] = LinearOperator

    def down(self, predict: Denoise, x_t: Tensor, step: Step, measurement: Measurement) -> Tensor:
        s, operator, y = step.s, measurement.linear, measurement.y
        x_s = self.inner.down(predict, x_t, step, measurement)
        known = s.alpha * y
        if s.sigma > 0:
            known = known + s.sigma * operator(step.randn_like(x_s))
        return x_s - operator.pinv(operator(x_s)) + operator.pinv(known)
