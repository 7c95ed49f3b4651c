"""Adaptive projected guidance (Sadat, Hilliges & Weber, ICLR 2025, arXiv:2410.02416, algorithm 1).

    d    = x0(x_t, c) − x0(x_t, ∅) + beta d_last               momentum, beta < 0
    d    = d min(1, r/‖d‖)                                     rescaled, where r > 0
    d    = d_orthogonal + eta d_parallel                       with respect to x0(x_t, c)
    x0   = x0(x_t, c) + (w − 1) d

Strong classifier-free guidance over-saturates; what does it is the part of d along the conditional
estimate, which is turned down here. With beta = 0, r = 0 and eta = 1 this is ``cfg``. Norms and
products are over each image. eps is re-derived from x0; the network's clipping acts on the result.

Symbols: c, the condition; ∅, none; w, the scale; r, the radius; beta, the momentum; eta, the share
of the parallel part. r belongs to the number of pixels and to the network's range: the paper has
2.5 to 15 for latents of 32 and 64 pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from invdiff.guidance.branches import Label, both, bound, compared
from invdiff.network import Prediction
from invdiff.problem import Measurement, Operator
from invdiff.sampling import Between, Denoise, Setting, StatefulGuidance, Step


@dataclass(frozen=True)
class APG(StatefulGuidance[Tensor]):
    """See the module's docstring.

    Args:
        label: the class c for all images, or one for each; by default what the run itself gives the
            network.
        w: the scale; 1 is plain conditional sampling.
        eta: the share of the parallel part that is kept; 1 as in ``cfg``.
        r: the norm of d, over an image, above which it is shortened; 0 leaves it.
        beta: the momentum, in (−1, 1); negative values damp what repeats from step to step.
        negative: the class in the place of the null class, or conditions, as in ``cfg``.
        batched: both branches in one call of the network; where memory does not allow it, in two.
    """

    label: Label | Mapping[str, Tensor] | None = None
    w: Annotated[float, Between(0, 20)] = 4.0
    eta: Annotated[float, Between(0, 1)] = 0.0
    r: Annotated[float, Between(0.5, 50, log=True)] = 0.0
    beta: Annotated[float, Between(-0.9, 0)] = -0.5
    negative: Label | Mapping[str, Tensor] | None = None
    batched: bool = True

    requires: ClassVar[type[Operator] | None] = None
    per_image: ClassVar[tuple[str, ...]] = ("label", "negative")

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1 or self.r < 0 or not -1 < self.beta < 1:
            raise ValueError(
                "eta must be in [0, 1], r at least 0 and beta in (-1, 1), got "
                f"{self.eta}, {self.r}, {self.beta}"
            )

    @property
    def sets(self) -> tuple[str, ...]:
        return tuple(self.negative) if isinstance(self.negative, Mapping) else ("label",)

    def bind(self, setting: Setting) -> APG:
        label, negative = compared(setting, self.label, self.negative)
        return replace(self, label=label, negative=negative)

    def init(self, x_T: Tensor, measurement: Measurement | None) -> Tensor:
        return torch.zeros_like(x_T)

    def advance(
        self,
        denoise: Denoise,
        x_t: Tensor,
        step: Step,
        measurement: Measurement | None,
        state: Tensor,
    ) -> tuple[Prediction, Tensor]:
        c, null = bound(self.label, "APG"), bound(self.negative, "APG")
        cond, uncond = both(denoise, x_t, step, c, null, self.batched)
        average = (cond.x0 - uncond.x0).detach() + self.beta * state
        d = cond.x0 - uncond.x0 + self.beta * state
        if self.r > 0:
            d = d * (self.r / norm(d).clamp(min=1e-12)).clamp(max=1)
        direction = cond.x0 / norm(cond.x0).clamp(min=1e-12)
        parallel = (d * direction).flatten(1).sum(1).view(-1, *(1,) * (d.ndim - 1)) * direction
        return cond.move((self.w - 1) * (d - (1 - self.eta) * parallel)).clip(), average


def norm(x: Tensor) -> Tensor:
    """The Euclidean norm of each image, (B, 1, ...)."""
    return x.flatten(1).norm(dim=1).view(-1, *(1,) * (x.ndim - 1))
