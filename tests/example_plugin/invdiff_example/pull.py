"""Gradient steps on the data: ``x0 <- x0 - zeta grad |y - A(x0)|²``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from invdiff import Guidance, Measurement, Prediction, Step
from invdiff.sampling import Denoise, data_gradient


@dataclass(frozen=True)
class Pull(Guidance):
    """See the module's docstring."""

    zeta: float = 0.2

    scale: ClassVar[tuple[str, ...]] = ("zeta",)

    def __call__(
        self, denoise: Denoise, x_t: Tensor, step: Step, measurement: Measurement | None
    ) -> Prediction:
        assert measurement is not None
        p = denoise(x_t, step.t)
        return p.move_x0(-self.zeta * data_gradient(measurement, p.x0))
