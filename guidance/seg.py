"""Smoothed energy guidance (Hong, NeurIPS 2024, arXiv:2408.00760).

    x0 = x0(x_t) + s (x0(x_t) − x0~(x_t))

x0~ is the same network whose self-attention, in some layers, has queries blurred by a Gaussian over
the image plane: softmax((G Q) K'/sqrt d) V. That is blurring its weights, and flattens the energy
whose minimisation attention is; sigma alone says how far, s can stay. sigma = infinity is the mean
over all places, sigma = 0 no change. With w it is added to classifier-free guidance, as in ``pag``.

eps moves with x0; the network's clipping acts on the result. The kernel has 6 sigma entries at
most, an odd number, and no more than a side has (one more where that is even); borders are
reflected. As in the authors' code for SDXL, except that theirs takes every plane for a square.
Queries are blurred where attention reads them: layers that rotate them by position, or where text
attends as well (Flux, SD3), have no such plane, and are refused.

Symbols: sigma, in places of the layer's plane; s, the scale, 3 in the paper. Published layers: the
middle block of SDXL (``mid``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from invdiff.guidance.degraded import Attend, Degraded, attending
from invdiff.sampling import Between


@dataclass(frozen=True)
class SEG(Degraded):
    """See the module's docstring; the other arguments are those of
    :class:`~invdiff.guidance.degraded.Degraded`.

    Args:
        sigma: standard deviation of the blur, in places of the layer's plane.
    """

    sigma: Annotated[float, Between(0, 20)] = math.inf

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sigma >= 0:
            raise ValueError(f"sigma must be at least 0, got {self.sigma}")

    @contextmanager
    def degraded(
        self, layers: Mapping[str, torch.nn.Module], net: torch.nn.Module
    ) -> Iterator[None]:
        sizes: list[tuple[int, int]] = [(0, 0)]

        def see(_: Any, args: tuple[Any, ...]) -> None:
            sizes[0] = (args[0].shape[-2], args[0].shape[-1])

        def smoothed(q: Tensor, k: Tensor, v: Tensor, usual: Attend) -> Tensor:
            return usual(blurred(q, plane(q.shape[-2], *sizes[0]), self.sigma), k, v)

        handle = net.register_forward_pre_hook(see)  # of every window, if the image is cut
        try:
            with attending(layers, smoothed):
                yield
        finally:
            handle.remove()


def plane(places: int, rows: int, columns: int) -> tuple[int, int]:
    """The sides of a plane of ``places`` in a network whose state has (rows, columns), each layer
    of which halves them, rounded up, as often as needed.

    Raises:
        ValueError: there is none.
    """
    size = rows, columns
    while rows * columns > places:
        rows, columns = -(-rows // 2), -(-columns // 2)
    if rows * columns != places:
        raise ValueError(
            f"SEG blurs the {places} queries of a layer over the image, but they are no halving of "
            f"its {size[0]}x{size[1]} places (text among them?); layers= names others, or use pag"
        )
    return rows, columns


def blurred(q: Tensor, size: tuple[int, int], sigma: float) -> Tensor:
    """Queries (B, heads, rows columns, channels) under a Gaussian over the plane."""
    if sigma == math.inf:
        return q.mean(-2, keepdim=True).expand_as(q)
    if sigma == 0:
        return q
    x = q.transpose(-1, -2).reshape(-1, 1, *size)
    for axis, side in enumerate(size):
        wide = math.ceil(6 * sigma)
        length = min(wide + 1 - wide % 2, side + 1 - side % 2)
        at = torch.arange(length, device=q.device, dtype=torch.float32) - (length - 1) / 2
        kernel = torch.softmax(-0.5 * (at / sigma) ** 2, 0).to(q.dtype)
        pad = [0, 0, 0, 0]
        pad[2 - 2 * axis : 4 - 2 * axis] = [length // 2] * 2
        x = F.conv2d(
            F.pad(x, pad, "reflect"), kernel.view(1, 1, *((-1, 1) if axis == 0 else (1, -1)))
        )
    return x.reshape(*q.shape[:-2], q.shape[-1], q.shape[-2]).transpose(-1, -2)
