"""Fresh noise at every level."""

from __future__ import annotations

from dataclasses import dataclass

import torch
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
        x_s, sigma = float(step.s.alpha) * predict(x_t, step.t).x0, float(step.s.sigma)
        return torch.add(x_s, step.randn_like(x_t), alpha=sigma) if sigma > 0 else x_s
