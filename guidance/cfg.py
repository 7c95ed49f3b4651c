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
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from invdiff.device import out_of_memory
from invdiff.network import Prediction
from invdiff.problem import Measurement, Operator
from invdiff.sampling import Denoise, Guidance, Setting, Step
from invdiff.sampling.step import tiled


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

    label: int | Sequence[int] | Tensor | Mapping[str, Tensor] | None = None
    w: float | Tensor = 2.0
    negative: int | Sequence[int] | Tensor | Mapping[str, Tensor] | None = None
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
        denoiser, images = setting.denoiser, setting.shape[0]
        if isinstance(self.negative, Mapping):
            absent = [name for name in self.negative if name not in setting.cond]
            if absent or self.label is not None:
                raise ValueError(
                    f"negative={{...}} names conditions that the run itself gives as "
                    "keyword arguments; "
                    f"{'not given: ' + ', '.join(absent) if absent else 'leave out label='}"
                )
            label = {name: setting.cond[name] for name in self.negative}
            negative = {
                name: _like(name, value, label[name]) for name, value in self.negative.items()
            }
        else:
            given = setting.cond.get("label")
            if self.label is not None and given is not None:
                raise ValueError("the label is given twice, to CFG and to the run; leave one out")
            chosen: Any = given if self.label is None else self.label
            if denoiser.num_classes is None:
                raise ValueError(
                    f"{denoiser.name} is not class-conditional, so classifier-free guidance "
                    "has nothing to guide towards"
                )
            if chosen is None:
                raise ValueError(
                    f"classifier-free guidance needs a label, one of 0..{denoiser.num_classes - 1}"
                )
            compares = isinstance(self.w, Tensor) or self.w != 1 or self.plus
            if compares and self.negative is None and denoiser.null_label is None:
                raise ValueError(
                    f"{denoiser.name} has no null class, which classifier-free guidance "
                    "compares with: use a network trained with label "
                    "dropout (null_label= says which label it is), or negative=LABEL"
                )
            label = {"label": denoiser.labels(chosen, images).to(setting.device)}
            negative = (
                {"label": denoiser.labels(self.negative, images).to(setting.device)}
                if compares
                else label
            )
        return replace(self, label=label, negative=negative, w=_map(self.w, setting, self.plus))

    def __call__(
        self, denoise: Denoise, x_t: Tensor, step: Step, measurement: Measurement | None
    ) -> Prediction:
        if not isinstance(self.label, Mapping):
            raise TypeError("CFG is bound to a run before it is called: CFG(...).bind(setting)")
        label, negative = (
            {k: tiled(v, x_t) for k, v in branch.items()}
            for branch in (self.label, self.negative)
            if isinstance(branch, Mapping)
        )
        if (
            self.interval is not None
            and not self.interval[0] < float(step.t.ratio) <= self.interval[1]
        ):
            return denoise(x_t, step.t, **label)
        w = tiled(self.w, x_t) if isinstance(self.w, Tensor) else self.w
        if isinstance(w, float | int) and (
            (w == 1 and not self.plus) or (w == 0 and not self.rescale)
        ):
            return denoise(x_t, step.t, **(label if w else negative))  # one branch is all it takes
        cond, uncond = self._both(denoise, x_t, step, label, negative)
        p = cond.move((w - 1) * (cond.x0 - uncond.x0))
        if self.rescale:
            p = _rescaled(p, cond, self.rescale)
        p = p.clip()
        return replace(p, eps=uncond.clip().eps) if self.plus else p

    def _both(
        self,
        denoise: Denoise,
        x_t: Tensor,
        step: Step,
        label: dict[str, Tensor],
        negative: dict[str, Tensor],
    ) -> tuple[Prediction, Prediction]:
        """The conditional and the unconditional prediction, not clipped yet."""
        if self.batched:
            try:
                conditions = {k: torch.cat([v, negative[k]]) for k, v in label.items()}
                cond, uncond = denoise(
                    torch.cat([x_t, x_t]), step.t, clip_x0=False, **conditions
                ).chunk(2)
                return cond, uncond
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                warnings.warn(
                    "out of memory; going on with the two branches of CFG one after the other",
                    stacklevel=2,
                )
        return denoise(x_t, step.t, clip_x0=False, **label), denoise(
            x_t, step.t, clip_x0=False, **negative
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _like(name: str, negative: Tensor, given: Any) -> Tensor:
    """A negative condition in the shape of what the run gives."""
    if not isinstance(negative, Tensor) or not isinstance(given, Tensor):
        raise TypeError(
            f"negative={{{name!r}: ...}} and the run's {name} must be tensors, got "
            f"{type(negative).__name__} and {type(given).__name__}"
        )
    try:
        return negative.to(given).expand_as(given)
    except RuntimeError as error:
        raise ValueError(
            f"negative {name} has shape {tuple(negative.shape)}, but the run gives {name} "
            f"of shape {tuple(given.shape)}"
        ) from error


def _map(w: float | Tensor, setting: Setting, plus: bool) -> float | Tensor:
    """A number as it is; a map as one per image, (B, 1, H, W)."""
    if not isinstance(w, Tensor):
        return w
    images, _, *size = setting.shape
    allowed = [
        (),
        tuple(size),
        (images, 1, *size),
        (1, 1, *size),
        (images, *(1,) * (len(size) + 1)),
    ]
    if tuple(w.shape) not in allowed:
        raise ValueError(
            f"w must be a number, a map {tuple(size)} or {(images, 1, *size)}, or one "
            f"number per image {allowed[-1]}, got shape {tuple(w.shape)}"
        )
    if not w.is_meta and not bool((((w >= 0) & (w <= 1)) if plus else w.isfinite()).all()):
        raise ValueError(
            f"a map of w must be {'in [0, 1] for CFG++' if plus else 'finite everywhere'}"
        )
    return w.to(setting.device, setting.dtype).expand(images, 1, *size)


def _rescaled(p: Prediction, cond: Prediction, phi: float) -> Prediction:
    """v times phi std(v_c)/std(v) + 1 − phi, the standard deviation over each image."""
    std: Any = [v.flatten(1).std(dim=1).view(-1, *(1,) * (v.ndim - 1)) for v in (cond.v, p.v)]
    change = phi * (std[0] / std[1] - 1) * p.v
    alpha, sigma = p.level.alpha, p.level.sigma
    return p.move(
        -sigma / (alpha**2 + sigma**2) * change
    )  # x0 = (alpha x_t − sigma v) / (alpha² + sigma²)
