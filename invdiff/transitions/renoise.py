"""Fresh noise at every level."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from invdiff.problem import Measurement
from invdiff.sampling import Denoise, Step, Transition


@dataclass(frozen=True)
class Renoise(Transition):
    """Fresh noise on the estimate: x_s = alpha_s x0 + sigma_s z. Multistep sampling of consistency
    networks (Song et al. 2023, algorithm 1)."""

    def down(
        self, predict: Denoise, x_t: Tensor, step: Step, measurement: Measurement | None
    ) -> Tensor:
        x_s = step.s.alpha * predict(x_t, step.t).x0
        return x_s + step.s.sigma * step.randn_like(x_t) if step.s.sigma > 0 else x_s
