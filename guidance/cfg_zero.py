"""CFG-Zero* (Fan et al. 2025, arXiv:2503.18886, algorithm 1), for flow networks.

    v = s v(x_t, ∅) + w (v(x_t, c) − s v(x_t, ∅)),   s = <v(x_t, c), v(x_t, ∅)>/‖v(x_t, ∅)‖²
    v = 0 in the first K steps

s brings the unconditional velocity to the size of the conditional one, which an inaccurate network
misses. The first steps, where a velocity may be worse than none, leave the state where it is.
v = dx_t/dt is the velocity of the schedule that is sampled, v = alpha' x0 + sigma' eps, so the
method runs on any; products are over each image. The network's clipping acts on the result, in the
first K steps on nothing.

Symbols: c, the condition; ∅, none; w, the scale; s, the factor of the unconditional velocity; K
(``zero_steps``), 4 % of the steps in the paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from torch import Tensor

from invdiff.guidance.branches import Label, both, bound, compared
from invdiff.network import Prediction
from invdiff.problem import Measurement, Operator
from invdiff.sampling import Between, Denoise, Guidance, Setting, Step
from invdiff.sampling.step import tiled_all


@dataclass(frozen=True)
class CFGZero(Guidance):
    """See the module's docstring.

    Args:
        label: the class c for all images, or one for each; by default what the run itself gives the
            network.
        w: the scale; 1 is plain conditional sampling.
        zero_steps: K, how many steps at the start have no velocity.
        negative: the class in the place of the null class, or conditions, as in ``cfg``.
        batched: both branches in one call of the network; where memory does not allow it, in two.
    """

    label: Label | Mapping[str, Tensor] | None = None
    w: Annotated[float, Between(0, 10)] = 4.0
    zero_steps: Annotated[int, Between(0, 5)] = 1
    negative: Label | Mapping[str, Tensor] | None = None
    batched: bool = True

    requires: ClassVar[type[Operator] | None] = None
    per_image: ClassVar[tuple[str, ...]] = ("label", "negative")

    def __post_init__(self) -> None:
        if self.zero_steps < 0:
            raise ValueError(f"zero_steps must be at least 0, got {self.zero_steps}")

    @property
    def sets(self) -> tuple[str, ...]:
        return tuple(self.negative) if isinstance(self.negative, Mapping) else ("label",)

    def bind(self, setting: Setting) -> CFGZero:
        label, negative = compared(setting, self.label, self.negative)
        return replace(self, label=label, negative=negative)

    def __call__(
        self, denoise: Denoise, x_t: Tensor, step: Step, measurement: Measurement | None
    ) -> Prediction:
        c, null = bound(self.label, "CFGZero"), bound(self.negative, "CFGZero")
        alpha, sigma = step.t.alpha, step.t.sigma
        d_alpha, d_sigma = step.schedule.rates(step.t.t)
        # alpha x0 + sigma eps = x_t and d_alpha x0 + d_sigma eps = v, solved for x0
        to_x0 = -sigma / (alpha * d_sigma - sigma * d_alpha)
        if step.index < self.zero_steps:
            p = denoise(x_t, step.t, clip_x0=False, **tiled_all(c, x_t))
            return p.move(-to_x0 * (d_alpha * p.x0 + d_sigma * p.eps))
        cond, uncond = both(denoise, x_t, step, c, null, self.batched)
        v_c, v_n = (d_alpha * p.x0 + d_sigma * p.eps for p in (cond, uncond))
        s = (inner(v_c, v_n) / inner(v_n, v_n).clamp(min=1e-12)) * v_n
        return cond.move(to_x0 * (self.w - 1) * (v_c - s)).clip()


def inner(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> of each image, (B, 1, ...)."""
    return (a * b).flatten(1).sum(1).view(-1, *(1,) * (a.ndim - 1))
