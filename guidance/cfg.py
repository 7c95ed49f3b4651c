"""Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598, eq. 6), with the field's later
refinements.

    eps_hat = eps(x_t, ∅) + w (eps(x_t, c) − eps(x_t, ∅))

w = 1 is plain conditional sampling, w = 0 ignores the condition (the paper's own scale is w − 1).
x0 moves with eps; the network's clipping acts on the combination.

    negative  another condition in the place of ∅
    interval  guidance for sigma_t/alpha_t in (low, high] only, plain conditional elsewhere
              (Kynkäänniemi et al. 2024, eq. 5)
    rescale   phi: v_hat is brought towards the standard deviation of v(x_t, c), per image (Lin et
              al. 2024, eq. 15 and 16)
    plus      CFG++ (Chung et al. 2024, algorithm 2): x0 from eps_hat, but noise added back along
              eps(x_t, ∅); w in [0, 1]

Symbols: c, the condition; ∅, none; w, the scale.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

from torch import Tensor

from invdiff.guidance.branches import Label, both, bound, compared, scale_map
from invdiff.network import Prediction
from invdiff.problem import Measurement, Operator
from invdiff.sampling import Between, Denoise, Guidance, Setting, Step
from invdiff.sampling.step import tiled, tiled_all


@dataclass(frozen=True)
class CFG(Guidance):
    """See the module's docstring.

    Args:
        label: the class c for all images, or one for each; by default what the run itself gives the
            network.
        w: the scale, or a map of it, (H, W) or (B, 1, H, W), or one per image, (B, 1, 1, 1).
        negative: the class in the place of the null class, for all images or one for each; or a
            mapping of conditions, whose counterparts the run gives.
        interval: (low, high] of sigma_t/alpha_t in which to guide, in the network's range.
        rescale: phi in [0, 1]; the paper's 0.7 keeps strong scales from over-exposing.
        plus: CFG++.
        batched: both branches in one call of the network; where memory does not allow it, in two.
    """

    label: Label | Mapping[str, Tensor] | None = None
    w: Annotated[float | Tensor, Between(0, 10)] = 2.0
    negative: Label | Mapping[str, Tensor] | None = None
    interval: tuple[float, float] | None = None
    rescale: float = 0.0
    plus: bool = False
    batched: bool = True

    requires: ClassVar[type[Operator] | None] = None
    per_image: ClassVar[tuple[str, ...]] = ("label", "w", "negative")
    scale: ClassVar[tuple[str, ...]] = ("w",)

    def __post_init__(self) -> None:
        if not isinstance(self.w, Tensor) and not (_is_number(self.w) and math.isfinite(self.w)):
            raise ValueError(f"w must be a finite number or a map, got {self.w!r}")
        if not (
            _is_number(self.rescale)
            and isinstance(self.plus, bool)
            and isinstance(self.batched, bool)
        ):
            raise ValueError(
                "rescale is a number, plus and batched are true or false; got "
                f"{self.rescale!r}, {self.plus!r}, {self.batched!r}"
            )
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"rescale must be in [0, 1], got {self.rescale}")
        if self.plus and not isinstance(self.w, Tensor) and not 0 <= self.w <= 1:
            raise ValueError(
                f"CFG++ interpolates: w must be in [0, 1] with plus=True, got {self.w}"
            )
        way = self.interval
        if way is not None and not (
            isinstance(way, Sequence)
            and len(way) == 2
            and all(map(_is_number, way))
            and 0 <= way[0] < way[1]
        ):
            raise ValueError(
                "interval must be (low, high) of sigma/alpha with 0 <= low < high, got "
                f"{self.interval}"
            )

    @property
    def sets(self) -> tuple[str, ...]:
        return tuple(self.negative) if isinstance(self.negative, Mapping) else ("label",)

    def bind(self, setting: Setting) -> CFG:
        compares = isinstance(self.w, Tensor) or self.w != 1 or self.plus
        label, negative = compared(setting, self.label, self.negative, compares)
        w = scale_map(self.w, setting, self.plus)
        return replace(self, label=label, negative=negative, w=w)

    def __call__(
        self, denoise: Denoise, x_t: Tensor, step: Step, measurement: Measurement | None
    ) -> Prediction:
        c, null = bound(self.label, "CFG"), bound(self.negative, "CFG")
        w = tiled(self.w, x_t) if isinstance(self.w, Tensor) else self.w
        if self._outside(step) or (_equals(w, 1) and not self.plus):
            return denoise(x_t, step.t, **tiled_all(c, x_t))  # one branch is all it takes
        if _equals(w, 0) and not self.rescale:
            return denoise(x_t, step.t, **tiled_all(null, x_t))
        cond, uncond = both(denoise, x_t, step, c, null, self.batched)
        p = cond.move((w - 1) * (cond.x0 - uncond.x0))
        if self.rescale:
            p = _rescaled(p, cond, self.rescale)
        p = p.clip()
        return replace(p, eps=uncond.clip().eps) if self.plus else p

    def _outside(self, step: Step) -> bool:
        if self.interval is None:
            return False
        low, high = self.interval
        return not low < float(step.t.ratio) <= high


def _equals(w: float | Tensor, value: float) -> bool:
    return not isinstance(w, Tensor) and w == value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _rescaled(p: Prediction, cond: Prediction, phi: float) -> Prediction:
    """v times phi std(v_c)/std(v) + 1 − phi, the standard deviation over each image."""
    std: Any = [v.flatten(1).std(dim=1).view(-1, *(1,) * (v.ndim - 1)) for v in (cond.v, p.v)]
    change = phi * (std[0] / std[1] - 1) * p.v
    alpha, sigma = p.level.alpha, p.level.sigma
    return p.move(
        -sigma / (alpha**2 + sigma**2) * change
    )  # x0 = (alpha x_t − sigma v) / (alpha² + sigma²)
