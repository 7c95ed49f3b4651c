"""JPEG: the image as it comes back from a baseline JPEG file of some quality, ``y =
decode(encode(x))``.

Per 8×8 block of Y, Cb and Cr, with D the orthonormal cosine transform and Q the table of the
quality (ITU-T T.81, annex K, scaled as libjpeg does):

    z = D (255 block − 128) Dᵀ,    ẑ = Q round(z / Q),    block' = clip(Dᵀ ẑ D + 128, 0, 255) / 255

Colours are JFIF's (ITU-R BT.601); for 4:2:0 the chroma is averaged over 2×2 pixels and interpolated
linearly, libjpeg's "fancy upsampling". Sides that are no multiple of the blocks are continued by
their last pixel. At quality 10, 50 and 90 this is 41, 46 and 47 dB from Pillow's file of
scikit-image's astronaut and as far from x as that (within 0.2 dB); the rest is libjpeg's rounding
to whole numbers between the stages. Kornia's ``jpeg_codec_differentiable`` is not used: it rounds
softly, as DiffJPEG does, so that details pass which no file holds (37, 44 and 46 dB, and up to 0.9
dB nearer to x than the file is).

The gradient of rounding is taken as one (straight-through, see :mod:`invdiff.operators.quantize`),
that of clipping is its own.

Symbols: x image in [0, 1], grey or RGB, of any size; y the same shape.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from invdiff.operators.quantize import rounded
from invdiff.problem import Operator
from invdiff.problem.operator import Shape
from invdiff.problem.separable import check_image_shape, cosine_matrix

# fmt: off
LUMA = (
    16, 11, 10, 16, 24, 40, 51, 61,
    12, 12, 14, 19, 26, 58, 60, 55,
    14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77,
    24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101,
    72, 92, 95, 98, 112, 100, 103, 99,
)
CHROMA = (
    17, 18, 24, 47, 99, 99, 99, 99,
    18, 21, 26, 66, 99, 99, 99, 99,
    24, 26, 56, 99, 99, 99, 99, 99,
    47, 66, 99, 99, 99, 99, 99, 99,
    *(99,) * 32,
)
# fmt: on
YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
SUBSAMPLINGS = ("4:2:0", "4:4:4")


@dataclass(frozen=True, eq=False)
class JPEG(Operator):
    """JPEG compression and decompression.

    Args:
        quality: q from 1 to 100, as in libjpeg and Pillow.
        subsampling: ``"4:2:0"``, chroma at half the resolution, or ``"4:4:4"``.
    """

    quality: int = 10
    subsampling: str = "4:2:0"

    def __post_init__(self) -> None:
        super().__post_init__()
        if (
            isinstance(self.quality, bool)
            or not isinstance(self.quality, int)
            or not 1 <= self.quality <= 100
        ):
            raise ValueError(f"quality must be a whole number from 1 to 100, got {self.quality!r}")
        if self.subsampling not in SUBSAMPLINGS:
            raise ValueError(
                f"subsampling must be one of {', '.join(SUBSAMPLINGS)}, got {self.subsampling!r}"
            )

    def make_state(self, shape: Shape) -> dict[str, Tensor]:
        check_image_shape(shape, "JPEG")
        if shape[0] not in (1, 3):
            raise ValueError(f"JPEG works on grey (1, H, W) or RGB (3, H, W) images, got {shape}")
        colours = torch.tensor(YCBCR, dtype=torch.float64)
        return {
            "dct": cosine_matrix(8),
            "luma": self._table(LUMA),
            "chroma": self._table(CHROMA),
            "colours": colours,
            "rgb": torch.linalg.inv(colours),
        }

    def _table(self, base: tuple[int, ...]) -> Tensor:
        """Q as (8, 1, 8), the layout of :meth:`_coded`."""
        scale = 5000 // self.quality if self.quality < 50 else 200 - 2 * self.quality
        return torch.tensor(
            [min(max((scale * q + 50) // 100, 1), 255) for q in base], dtype=torch.float64
        ).view(8, 1, 8)

    def _forward(self, x: Tensor) -> Tensor:
        if x.shape[1] == 1:
            return (self._coded(255 * x - 128, "luma") + 128) / 255
        planes = torch.einsum(
            "ij,bjhw->bihw", self.state["colours"], 255 * x
        )  # chroma is centred at zero already
        luma, chroma = self._coded(planes[:, :1] - 128, "luma") + 128, planes[:, 1:]
        if self.subsampling == "4:4:4":
            chroma = self._coded(chroma, "chroma")
        else:
            small = self._coded(F.avg_pool2d(_padded(chroma, 2), 2), "chroma")
            chroma = F.interpolate(small, scale_factor=2, mode="bilinear")[
                ..., : x.shape[-2], : x.shape[-1]
            ]
        return (
            torch.einsum("ij,bjhw->bihw", self.state["rgb"], torch.cat([luma, chroma], 1)) / 255
        ).clamp(0, 1)

    def _coded(self, plane: Tensor, table: str) -> Tensor:
        """A plane with values in [−128, 127] after the quantisation of its blocks' coefficients."""
        dct, steps = self.state["dct"], self.state[table]
        blocks = _padded(plane, 8).unflatten(-1, (-1, 8)).unflatten(-3, (-1, 8))
        z = torch.einsum("ui,bchiwj,vj->bchuwv", dct, blocks, dct)
        z = steps * rounded(z / steps)
        decoded = torch.einsum("ui,bchuwv,vj->bchiwj", dct, z, dct).flatten(-2).flatten(-3, -2)
        return decoded[..., : plane.shape[-2], : plane.shape[-1]].clamp(-128, 127)


def _padded(x: Tensor, multiple: int) -> Tensor:
    """x continued to the right and below by its last pixels until its sides are multiples."""
    height, width = x.shape[-2:]
    return F.pad(x, (0, -width % multiple, 0, -height % multiple), mode="replicate")
