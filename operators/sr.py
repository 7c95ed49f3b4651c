"""Super-resolution: the image made smaller by a whole factor, ``Y = R X Cᵀ`` for every channel.

R (H/f × H) and C (W/f × W) resample the rows and the columns:

    bicubic  antialiased cubic, a = −1/2: equals ``torch.nn.functional.interpolate(mode="bicubic",
             antialias=True)`` and Pillow
    box      the mean of f×f pixels
    nearest  the top left of f×f pixels

Symbols: X image (H, W) in pixels, Y measurement (H/f, W/f), f the factor. SVD, pseudo-inverse and
proximal map are exact, from those of R and C (see :mod:`invdiff.problem.separable`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from invdiff.problem import SeparableOperator
from invdiff.problem.operator import Shape
from invdiff.problem.separable import check_image_shape

KERNELS = ("bicubic", "box", "nearest")


@dataclass(frozen=True, eq=False)
class SuperResolution(SeparableOperator):
    """Downsampling by a whole factor.

    Args:
        factor: f, usually 2, 3, 4 or 8; it must divide the image's height and width.
        kernel: ``"bicubic"``, ``"box"`` or ``"nearest"``.
    """

    factor: int = 4
    kernel: str = "bicubic"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.factor, bool) or not isinstance(self.factor, int) or self.factor < 2:
            raise ValueError(
                "factor must be a whole number of at least 2 (usually 2, 3, 4 or 8), got "
                f"{self.factor!r}"
            )
        if self.kernel not in KERNELS:
            raise ValueError(f"kernel must be one of {', '.join(KERNELS)}, got {self.kernel!r}")

    def matrices(self, shape: Shape) -> tuple[Tensor, Tensor]:
        check_image_shape(shape, "SuperResolution")
        f, (_, height, width) = self.factor, shape
        if height % f or width % f:
            fits = [(height // f * f, width // f * f), (-(-height // f) * f, -(-width // f) * f)]
            crop = f"crop the image to {fits[0][0]}x{fits[0][1]} or " if min(fits[0]) > 0 else ""
            pad = f"pad it to {fits[1][0]}x{fits[1][1]}"
            raise ValueError(
                f"an image of {height}x{width} is not divisible by the factor {f}: {crop}{pad}"
            )
        return self._resampling(height), self._resampling(width)

    def _resampling(self, size: int) -> Tensor:
        """The matrix of the 1-D resampling, read off from what it does to the unit vectors, the
        columns of one image.

        One image, not a batch of images one pixel wide: torch (2.14) antialiases those wrongly.
        """
        units = torch.eye(size, dtype=torch.float64)[None, None]
        to = (size // self.factor, size)
        if self.kernel == "bicubic":
            small = F.interpolate(
                units, size=to, mode="bicubic", antialias=True, align_corners=False
            )
        else:
            small = F.interpolate(
                units, size=to, mode="area" if self.kernel == "box" else "nearest"
            )
        return small[0, 0]

    def image_shape(self, measurement_shape: Shape) -> Shape:
        check_image_shape(measurement_shape, "SuperResolution")
        c, h, w = measurement_shape
        return (c, h * self.factor, w * self.factor)

    def fit(self, shape: Shape) -> Shape:
        c, h, w = shape
        if min(h, w) < self.factor:
            raise ValueError(
                f"an image of {h}x{w} is smaller than the factor {self.factor}; give a larger image"
            )
        return (c, h // self.factor * self.factor, w // self.factor * self.factor)
