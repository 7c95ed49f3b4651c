"""Inpainting: ``y = m x``, a mask m in [0, 1] that multiplies every pixel; 1 is known, 0 is
missing.

Symbols: x image (C, H, W), y measurement of the same shape. A = diag(m), so U = V = 1 and the
singular values are m.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from invdiff.images.masks import grown, read_mask
from invdiff.noise import generator_of
from invdiff.problem import DiagonalOperator
from invdiff.problem.operator import Shape
from invdiff.problem.separable import check_image_shape
from invdiff.problem.spectral import inverted

MASKS = ("random", "box", "stripes", "half", "outpaint")
SIDES = ("left", "right", "top", "bottom")
Size = int | float | tuple[int | float, int | float]


@dataclass(frozen=True, eq=False)
class Inpaint(DiagonalOperator):
    """Keeps part of the pixels.

    Args:
        mask: ``"random"``, ``"box"``, ``"stripes"``, ``"half"``, ``"outpaint"``, the path of a mask
            file (an image, .npy or .pt), or a tensor (H, W), (1 | C, H, W) or, for a mask per
            image, (B, 1 | C, H, W), in which 1 is known.
        fraction: share of the pixels that is missing, for random: exactly round(fraction H W)
            pixels.
        per_channel: draw the random mask for every channel apart.
        size: of the missing box, or of the centre that outpaint keeps: pixels (int), share of the
            side (float), or a pair (height, width) of these; None is half of each side.
        position: of the box: (top, left) in pixels, None for the centre, or ``"random"``.
        margin: what a random box stays away from the border: pixels (int) or a share of the side
            (float).
        width: of a missing stripe, in pixels.
        period: from one stripe to the next, in pixels; the first stripe ends with the first period.
        direction: in which the stripes run, ``"horizontal"`` or ``"vertical"``.
        side: the missing half: ``"left"``, ``"right"``, ``"top"`` or ``"bottom"``.
        keep: which colour of a mask file is known, ``"white"`` or ``"black"``; see
            :func:`invdiff.images.read_mask`. Pixels of a file are known or missing: what is neither
            white nor black is missing. Only a tensor can be a soft mask.
        grow: what is missing is enlarged by so many pixels, for damage that reaches beyond its
            mask.
        seed: of the random mask or position, which depend on (seed, C, H, W) alone.
    """

    mask: str | Path | Tensor = "random"
    fraction: float = 0.7
    per_channel: bool = False
    size: Size | None = None
    position: tuple[int, int] | str | None = None
    margin: int | float = 0
    width: int = 4
    period: int = 8
    direction: str = "vertical"
    side: str = "right"
    keep: str = "white"
    grow: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("size", "position"):  # JSON knows lists only
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if isinstance(self.mask, Tensor):
            if self.mask.ndim not in (2, 3, 4):
                raise ValueError(
                    "a mask tensor is (H, W), (1 or C, H, W) or (B, 1 or C, H, W), got "
                    f"shape {tuple(self.mask.shape)}"
                )
            _check_values(self.mask, "the mask tensor")
        elif str(self.mask) not in MASKS and not self.state and not self._file.is_file():
            # A loaded measurement carries its mask; the file may be gone by then.
            raise ValueError(
                f"mask must be one of {', '.join(MASKS)}, an existing mask file or a "
                f"tensor, got {str(self.mask)!r}"
            )
        if not 0 <= self.fraction < 1:
            raise ValueError(
                "fraction, the share of missing pixels, must be at least 0 and below 1, "
                f"got {self.fraction}"
            )
        if self.size is not None:
            _check_size(self.size)
        if not (
            self.position is None or self.position == "random" or _is_pair_of_pixels(self.position)
        ):
            raise ValueError(
                "position must be (top, left) in pixels, 'random' or None for the centre, "
                f"got {self.position!r}"
            )
        if not (
            _is_pixels(self.margin) or (isinstance(self.margin, float) and 0 <= self.margin < 0.5)
        ):
            raise ValueError(
                "margin must be a number of pixels, at least 0, or a share of the side "
                f"below 0.5, got {self.margin}"
            )
        if not _is_pixels(self.grow):
            raise ValueError(f"grow must be a number of pixels, at least 0, got {self.grow!r}")
        if not (
            isinstance(self.width, int)
            and isinstance(self.period, int)
            and 0 < self.width < self.period
        ):
            raise ValueError(
                "width and period must be pixels with 0 < width < period, so that "
                f"something is known; got {self.width} and {self.period}"
            )
        for name, allowed in (
            ("direction", ("horizontal", "vertical")),
            ("side", SIDES),
            ("keep", ("white", "black")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}"
                )

    def make_state(self, shape: Shape) -> dict[str, Tensor]:
        check_image_shape(shape, "Inpaint")
        mask = self._mask(shape)
        mask = mask if mask.ndim >= 3 else mask[None]
        if mask.shape[-3] not in (1, shape[0]) or mask.shape[-2:] != shape[-2:]:
            raise ValueError(
                f"the mask has shape {tuple(mask.shape)}, but images are {shape}: "
                f"give it their height and width, and 1 or {shape[0]} channels"
            )
        if self.grow and not bool((mask := grown(mask, self.grow)).any()):
            raise ValueError(f"grow={self.grow} leaves no pixel that is known; give less")
        return {"mask": mask[0] if mask.ndim == 4 and len(mask) == 1 else mask}

    @property
    def _file(self) -> Path:
        return Path(str(self.mask)).expanduser()

    @property
    def notes(self) -> tuple[str, ...]:
        """The share that is missing, and which colour of a file is known."""
        if "mask" not in self.state or self.state["mask"].is_meta:
            return ()
        mask = self.state["mask"]
        missing = (
            f"mask: {100 * float((mask == 0).double().mean()):.1f} % of the pixels are missing"
        )
        if isinstance(self.mask, Tensor) or str(self.mask) in MASKS:
            return (missing,)
        other = "black" if self.keep == "white" else "white"
        return (f"{missing}; {self.keep} is known (--mask-keep {other} for the opposite)",)

    def _mask(self, shape: Shape) -> Tensor:
        if isinstance(self.mask, Tensor):
            return self.mask.detach().to("cpu", torch.float64, copy=True)
        c, h, w = shape
        generator = generator_of("inpaint", self.seed, c, h, w)
        mask = torch.ones(h, w, dtype=torch.float64)
        match str(self.mask):
            case "random":
                channels = c if self.per_channel else 1
                order = torch.stack(
                    [torch.randperm(h * w, generator=generator) for _ in range(channels)]
                )
                return (
                    (order >= round(self.fraction * h * w)).to(torch.float64).view(channels, h, w)
                )
            case "box":
                top, left, height, width = self._box(h, w, generator)
                mask[top : top + height, left : left + width] = 0
            case "outpaint":
                height, width = self._pixels(h, w)
                mask.zero_()
                mask[(h - height) // 2 :, (w - width) // 2 :][:height, :width] = 1
            case "stripes":
                lines = (
                    torch.arange(h if self.direction == "horizontal" else w) % self.period
                    < self.period - self.width
                )
                mask = mask * (lines[:, None] if self.direction == "horizontal" else lines)
            case "half":
                rows, columns = torch.arange(h)[:, None].expand(h, w), torch.arange(w).expand(h, w)
                known = {
                    "left": columns >= w // 2,
                    "right": columns < w - w // 2,
                    "top": rows >= h // 2,
                    "bottom": rows < h - h // 2,
                }
                mask = known[self.side].to(torch.float64)
            case _:
                mask = read_mask(self._file, (h, w), self.keep)
        return mask

    def _pixels(self, h: int, w: int) -> tuple[int, int]:
        pair = (
            self.size
            if isinstance(self.size, tuple)
            else (0.5 if self.size is None else self.size,) * 2
        )
        height, width = (
            max(1, round(n * side)) if isinstance(n, float) else n
            for n, side in zip(pair, (h, w), strict=True)
        )
        if height > h or width > w:
            raise ValueError(
                f"size {self.size} is larger than the image of {h}x{w} pixels; give less, "
                "or a share such as 0.5"
            )
        return height, width

    def _box(self, h: int, w: int, generator: torch.Generator) -> tuple[int, int, int, int]:
        height, width = self._pixels(h, w)
        if self.position == "random":
            margins = [
                round(n * self.margin) if isinstance(self.margin, float) else self.margin
                for n in (h, w)
            ]
            room = h - height - 2 * margins[0], w - width - 2 * margins[1]
            if min(room) < 0:
                raise ValueError(
                    f"a box of {height}x{width} with a margin of {self.margin} does not fit "
                    f"into {h}x{w} pixels; shrink one"
                )
            top, left = (
                m + int(torch.randint(n + 1, (), generator=generator))
                for m, n in zip(margins, room, strict=True)
            )
        else:
            top, left = (
                self.position
                if isinstance(self.position, tuple)
                else ((h - height) // 2, (w - width) // 2)
            )
        if top + height > h or left + width > w:
            raise ValueError(
                f"a box of {height}x{width} at (top, left) = ({top}, {left}) leaves the "
                f"image of {h}x{w} pixels; move it"
            )
        return top, left, height, width

    @property
    def per_image(self) -> frozenset[str]:
        return frozenset({"mask"} if self.state and self.state["mask"].ndim == 4 else ())

    def select(self, images: Tensor) -> Self:
        selected = super().select(images)
        if selected is self or not isinstance(self.mask, Tensor):
            return selected
        return replace(
            selected, mask=self.mask[images.to(self.mask.device)]
        )  # so that a saved part is that part only

    def masked(self, known: Tensor) -> Self:
        return type(self)(mask=known.to("cpu", torch.float64))

    def _forward(self, x: Tensor) -> Tensor:
        mask = self.state["mask"]
        if mask.ndim == 4 and len(x) not in (1, len(mask)):
            raise ValueError(
                f"this mask is for {len(mask)} images, got a batch of {len(x)}; use "
                "measurement.select(images) for a part"
            )
        return mask * x

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._forward(y)

    def _observed(self, y: Tensor) -> Tensor:
        return torch.where(self.state["mask"] > 0, y, 0.0)

    def _pinv(self, y: Tensor, ridge: Tensor | float) -> Tensor:
        mask = self.state["mask"]
        return (
            inverted(mask, mask > self.rcond, ridge) * y
        )  # of the largest possible value: images do not depend on each other

    def _singular_values(self) -> Tensor:
        assert self.shape is not None
        mask = self.state["mask"]
        return mask.expand(*mask.shape[:-3], *self.shape)


def _is_pixels(n: object) -> bool:
    return isinstance(n, int) and not isinstance(n, bool) and n >= 0


def _is_pair_of_pixels(pair: object) -> bool:
    return isinstance(pair, tuple) and len(pair) == 2 and all(map(_is_pixels, pair))


def _check_size(size: Size) -> None:
    for n in size if isinstance(size, tuple) else (size,):
        whole = _is_pixels(n) and n > 0
        share = isinstance(n, float) and 0 < n <= 1
        if not (whole or share) or (isinstance(size, tuple) and len(size) != 2):
            raise ValueError(
                "size must be pixels (int > 0), a share of the side (float in (0, 1]) or a "
                f"pair of these, got {size!r}"
            )


def _check_values(mask: Tensor, what: str) -> None:
    if mask.device.type == "meta" or mask.dtype == torch.bool:
        return
    low, high = float(mask.min()), float(mask.max())
    if not (low >= 0 and high <= 1):  # false for nan as well
        raise ValueError(
            f"{what} must have values in [0, 1], 1 being known; it has values from {low:g} "
            f"to {high:g}"
        )
