"""Two branches of a conditional network: what a guidance compares, and how both are evaluated."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from invdiff.device import out_of_memory
from invdiff.network import Prediction
from invdiff.sampling import Denoise, Setting, Step
from invdiff.sampling.step import tiled

Conditions = Mapping[str, Tensor]
Label = int | Sequence[int] | Tensor


def both(
    denoise: Denoise, x_t: Tensor, step: Step, cond: Conditions, other: Conditions, batched: bool
) -> tuple[Prediction, Prediction]:
    """The predictions under two conditions, not clipped yet: in one call of the network, or one
    after the other where memory does not allow that."""
    cond, other = ({k: tiled(v, x_t) for k, v in branch.items()} for branch in (cond, other))
    if batched:
        try:
            stacked = {k: torch.cat([v, other[k]]) for k, v in cond.items()}
            pair = denoise(torch.cat([x_t, x_t]), step.t, clip_x0=False, **stacked)
            first, second = pair.chunk(2)
            return first, second
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            warnings.warn(
                "out of memory; going on with the two branches one after the other",
                stacklevel=2,
            )
    return (
        denoise(x_t, step.t, clip_x0=False, **cond),
        denoise(x_t, step.t, clip_x0=False, **other),
    )


def compared(
    setting: Setting,
    label: Label | Conditions | None,
    negative: Label | Conditions | None,
    compares: bool = True,
) -> tuple[Conditions, Conditions]:
    """What each image is conditioned on, and what that is compared with: labels, or the conditions
    that ``negative`` names."""
    if not isinstance(negative, Mapping):
        return labels(setting, None if isinstance(label, Mapping) else label, negative, compares)
    if label is None:
        return conditions(setting, negative)
    raise ValueError("negative={...} names conditions that the run itself gives; leave out label=")


def bound(conditions: Any, who: str) -> Conditions:
    """The conditions of a guidance that was bound to a run.

    Raises:
        TypeError: it was not.
    """
    if not isinstance(conditions, Mapping):
        raise TypeError(f"{who} is bound to a run before it is called: {who}(...).bind(setting)")
    return conditions


def labels(
    setting: Setting, label: Label | None, negative: Label | None, compares: bool
) -> tuple[Conditions, Conditions]:
    """The label of each image, and the one that it is compared with, by default the null class.

    Raises:
        ValueError: a label that is missing, or given twice; a network without classes or, where it
            is compared with, without a null class.
    """
    denoiser, images, given = setting.denoiser, setting.shape[0], setting.cond.get("label")
    if label is not None and given is not None:
        raise ValueError("the label is given twice, to CFG and to the run; leave one out")
    chosen: Any = given if label is None else label
    if denoiser.num_classes is None:
        raise ValueError(
            f"{denoiser.name} is not class-conditional, so classifier-free guidance has nothing to "
            "guide towards"
        )
    if chosen is None:
        raise ValueError(
            f"classifier-free guidance needs a label, one of 0..{denoiser.num_classes - 1}"
        )
    if compares and negative is None and denoiser.null_label is None:
        raise ValueError(
            f"{denoiser.name} has no null class, which classifier-free guidance compares with: use "
            "a network trained with label dropout (null_label= says which label it is), or "
            "negative=LABEL"
        )
    own = {"label": denoiser.labels(chosen, images).to(setting.device)}
    if not compares:
        return own, own
    return own, {"label": denoiser.labels(negative, images).to(setting.device)}


def conditions(setting: Setting, negative: Conditions) -> tuple[Conditions, Conditions]:
    """Conditions that the run gives, and the negative ones in their shape.

    Raises:
        ValueError: the run does not give one of them, or gives it in another shape.
    """
    absent = [name for name in negative if name not in setting.cond]
    if absent:
        raise ValueError(
            "negative={...} names conditions that the run itself gives as keyword arguments; not "
            f"given: {', '.join(absent)}"
        )
    own = {name: setting.cond[name] for name in negative}
    return own, {name: _like(name, value, own[name]) for name, value in negative.items()}


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


def scale_map(w: float | Tensor, setting: Setting, plus: bool) -> float | Tensor:
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
