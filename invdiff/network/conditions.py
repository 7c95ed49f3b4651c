"""Conditions of a network: labels, prompts and images, checked before they reach it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


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


def encoded_prompts(
    text: Callable[[list[str]], dict[str, Tensor]],
    prompt: str | Sequence[str],
    images: int | None,
) -> dict[str, Tensor]:
    """The conditions that ``text`` makes of one prompt for all images or one for each, one entry
    for each image; a prompt that occurs twice is encoded once.

    Raises:
        ValueError: a wrong number of prompts.
        TypeError: prompts that are not text.
    """
    prompts = [prompt] * (images or 1) if isinstance(prompt, str) else list(prompt)
    if not all(isinstance(p, str) for p in prompts):
        raise TypeError(f"a prompt is text, or a list with one for each image, got {prompt!r}")
    if not prompts or images not in (None, len(prompts)):
        raise ValueError(
            f"give one prompt for all images or one for each of the {images or ''} "
            f"images, got {len(prompts)}"
        )
    distinct = list(dict.fromkeys(prompts))
    each = [distinct.index(p) for p in prompts]
    return {name: value[each] for name, value in text(distinct).items()}


def encoded_images(
    encode: Callable[[Tensor], dict[str, Tensor]], image: Tensor, images: int | None
) -> dict[str, Tensor]:
    """The conditions that ``encode`` makes of one image for all or one for each, in [0, 1].

    Raises:
        ValueError: a wrong number or shape of them.
        TypeError: no tensor.
    """
    if not isinstance(image, Tensor):
        raise TypeError(f"an image is a tensor (3, H, W) in [0, 1], got {type(image).__name__}")
    given = image[None] if image.ndim == 3 else image
    if given.ndim != 4 or given.shape[1] != 3 or len(given) not in (1, images or len(given)):
        raise ValueError(
            f"give one image (3, H, W) for all or one for each of the {images or ''} images, "
            f"(B, 3, H, W); got shape {tuple(image.shape)}"
        )
    each = (images or len(given)) // len(given)
    return {name: value.repeat_interleave(each, 0) for name, value in encode(given).items()}


def with_image(
    x: Tensor, cond: Tensor | None, channels: int, name: str, last: bool = False
) -> Tensor:
    """``[cond, x]``: the input of a network that is conditioned on an image of so many channels;
    ``[x, cond]`` if it comes last.

    Raises:
        ValueError: there is no image, or it does not have the state's batch and size.
    """
    if cond is None:
        raise ValueError(
            f"{name} is conditioned on an image and cannot run without it; "
            "use the method 'sr3', or give cond="
        )
    expected = (len(x), channels, *x.shape[2:])
    if tuple(cond.shape) != expected:
        raise ValueError(
            f"{name} is conditioned on an image of shape {expected} beside the state, got "
            f"cond of shape {tuple(cond.shape)}"
        )
    return torch.cat([x, cond.to(x)] if last else [cond.to(x), x], dim=1)
