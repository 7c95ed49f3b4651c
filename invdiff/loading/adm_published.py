"""The published networks of guided-diffusion, and the facts that are not in their files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from invdiff import schedules
from invdiff.loading.adm_architecture import Architecture
from invdiff.schedules import Schedule


@dataclass(frozen=True)
class Published:
    """The facts about a published network that are not in its file.

    Attributes:
        size: of its images.
        heads: of its attention; None: 64 channels a head.
        new_order: layout of its attention.
        schedule: makes the schedule that it was trained on.
        factor: of an upsampler, how many times larger its images are than those it is given.
    """

    size: int | None = None
    heads: int | None = None
    new_order: bool = False
    schedule: Callable[[], Schedule] = schedules.linear
    factor: int | None = None


# (in_channels, model_channels, channels / model_channels, blocks, attention): the networks of
# guided-diffusion's README, and FFHQ 256 of ILVR and DPS. In the order of the README; the
# classifiers below have 128 channels.
DENOISERS: dict[tuple[Any, ...], Published] = {
    (3, 192, (1, 2, 3, 4), 3, (1, 2, 3)): Published(64, new_order=True, schedule=schedules.cosine),
    (3, 256, (1, 1, 2, 3, 4), 2, (2, 3, 4)): Published(128, heads=4),
    (3, 256, (1, 1, 2, 2, 4, 4), 2, (3, 4, 5)): Published(256),
    (3, 256, (0.5, 1, 1, 2, 2, 4, 4), 2, (4, 5, 6)): Published(512),
    (6, 192, (1, 1, 2, 2, 4, 4), 2, (3, 4, 5)): Published(256, heads=4, factor=4),
    (6, 192, (1, 1, 2, 2, 4, 4), 2, (4, 5)): Published(512, factor=4),
    (3, 128, (1, 1, 2, 2, 4, 4), 1, (4,)): Published(256),
}
CLASSIFIERS: dict[tuple[Any, ...], Published] = {
    (3, 128, (1, 2, 3, 4), 4, (1, 2, 3)): Published(64, schedule=schedules.cosine),
    (3, 128, (1, 1, 2, 3, 4), 2, (2, 3, 4)): Published(128),
    (3, 128, (1, 1, 2, 2, 4, 4), 2, (3, 4, 5)): Published(256),
    (3, 128, (0.5, 1, 1, 2, 2, 4, 4), 2, (4, 5, 6)): Published(512),
}


def published(a: Architecture) -> Published | None:
    """The facts about the published network of that architecture; None for any other."""
    if a.resample != "block" or not a.scale_shift:
        return None
    widths = tuple(c / a.model_channels for c in a.channels)
    key = (a.in_channels, a.model_channels, widths, a.blocks, a.attention)
    return (DENOISERS if a.pool is None else CLASSIFIERS).get(key)
