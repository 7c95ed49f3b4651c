"""Conditions of a network: labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    pass


def check_labels(
    label: Any, images: int, classes: int, name: str, null: int | None = None
) -> Tensor:
    """Labels as a (images,) tensor of whole numbers; refuses what is not a class of ``name`` (nor
    its null label)."""
    if label is None:
        raise ValueError(
            f"{name} has no null class, so it cannot run without a label; give one of "
            f"0..{classes - 1}"
        )
    try:
        labels = torch.as_tensor(label)
    except (TypeError, ValueError, RuntimeError):
        labels = torch.empty(0)
    if labels.is_floating_point() or labels.dtype == torch.bool or labels.is_complex():
        raise TypeError(f"label must be a whole number, one for each image, or None, got {label!r}")
    if labels.ndim > 1 or (labels.ndim == 1 and len(labels) != images):
        raise ValueError(
            f"label must be one number or one for each of the {images} images, got shape "
            f"{tuple(labels.shape)}"
        )
    if labels.device.type != "meta":
        for value in labels.unique().tolist():
            if not 0 <= value < classes and value != null:
                raise ValueError(
                    f"label {value} is unknown to {name}: its classes are 0..{classes - 1}"
                )
    return labels.long().expand(images)
