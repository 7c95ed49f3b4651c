"""Conditions that follow from the size of the image: SDXL's time ids, PixArt's resolution."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

Sized = Callable[[Tensor], dict[str, Any]]


def of_size(
    net: torch.nn.Module, config: Mapping[str, Any], pixels: int | None
) -> tuple[tuple[str, ...], Sized]:
    """(Names of such conditions of a network, what they are for states of (B, C, H, W) whose sides
    are so many pixels long each); none where that is not known.

    As in diffusers' pipelines, an image is taken for a whole photograph of its own size: SDXL's
    original size and target size are the image's, and nothing is cropped (Podell et al. 2023,
    arXiv:2307.01952, section 2.2).
    """
    if pixels is None:
        return (), lambda x: {}
    if getattr(net, "use_additional_conditions", False):
        return ("resolution", "aspect_ratio"), partial(_resolution, pixels)
    if config.get("addition_embed_type") == "text_time":
        return ("time_ids",), partial(_time_ids, pixels)
    return (), lambda x: {}


def _time_ids(pixels: int, x: Tensor) -> dict[str, Tensor]:
    size = (x.shape[2] * pixels, x.shape[3] * pixels)
    return {"time_ids": x.new_tensor([*size, 0, 0, *size]).expand(len(x), -1)}


def _resolution(pixels: int, x: Tensor) -> dict[str, Tensor]:
    height, width = x.shape[2] * pixels, x.shape[3] * pixels
    return {
        "resolution": x.new_tensor([height, width]).expand(len(x), -1),
        "aspect_ratio": x.new_tensor([height / width]).expand(len(x), -1),
    }
