"""Phase retrieval: the magnitude of an oversampled Fourier transform, ``y = |F P (a + (b − a) x)|``
for every channel.

P pads with p zeros on each side, p = int(oversample / 8 · side), so ``oversample=2`` makes a side
half as long again; F is the orthonormal transform with frequency zero in the centre. (The
literature also shifts the padded image before F, which changes the phase alone.) [a, b] is the
range that images have when they are padded and transformed, where the public codes differ:

    DAPS, Zhang et al., CVPR 2025, arXiv:2407.01521          [0, 1]: padded with black
    DPS, Chung et al., ICLR 2023, arXiv:2209.14687           [−1, 1]: padded with middle grey; p =
                                                             int(oversample / 8 · 256) for every
                                                             size
    InverseBench, Zheng et al., ICLR 2025, arXiv:2503.11043  [−1, 1]

All of them add noise of standard deviation 0.05 to y as it is. So, unlike elsewhere, sigma is 0.05
here as well, and it weighs twice as much with [0, 1], where magnitudes are half as large. The
gradient is zero where y is.

Symbols: x image in [0, 1], (C, H, W); y (C, H + 2p, W + 2p').
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from invdiff.problem import Operator
from invdiff.problem.operator import Shape
from invdiff.problem.separable import check_image_shape


@dataclass(frozen=True, eq=False)
class PhaseRetrieval(Operator):
    """Fourier magnitudes of the zero-padded image.

    Args:
        oversample: how much is padded: oversample / 8 of the side on each side of it. 0 is none.
        data_range: (a, b), what [0, 1] becomes before: (0, 1) as in DAPS, (-1, 1) as in DPS.
    """

    oversample: float = 2.0
    data_range: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.oversample < float("inf"):
            raise ValueError(
                f"oversample must be a finite number of at least 0, got {self.oversample}"
            )
        object.__setattr__(self, "data_range", tuple(self.data_range))  # JSON knows lists only
        if len(self.data_range) != 2 or not self.data_range[0] < self.data_range[1]:
            raise ValueError(
                f"data_range must be (low, high) with low < high, got {self.data_range}"
            )

    def make_state(self, shape: Shape) -> dict[str, Tensor]:
        check_image_shape(shape, "PhaseRetrieval")
        return {}

    def image_shape(self, measurement_shape: Shape) -> Shape:
        check_image_shape(measurement_shape, "PhaseRetrieval")
        channels, *sides = measurement_shape
        return (channels, *map(self._unpadded, sides))

    def _padding(self, side: int) -> int:
        return int(self.oversample / 8 * side)

    def _unpadded(self, padded: int) -> int:
        for side in range(1, padded + 1):
            if side + 2 * self._padding(side) == padded:
                return side
        raise ValueError(
            f"no image side gives measurements of {padded} pixels with oversample = "
            f"{self.oversample}"
        )

    def _forward(self, x: Tensor) -> Tensor:
        low, high = self.data_range
        rows, columns = (self._padding(side) for side in x.shape[-2:])
        padded = F.pad(low + (high - low) * x, (columns, columns, rows, rows))
        return torch.fft.fftshift(torch.fft.fft2(padded, norm="ortho").abs(), dim=(-2, -1))
