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

Symbols: z the coefficients; x image in [0, 1], grey or RGB, of any size; y the same shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self, cast

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
SUBSAMPLINGS = {"4:2:0": (2, 2), "4:2:2": (1, 2), "4:4:0": (2, 1), "4:4:4": (1, 1)}
"""Pixels, (rows, columns), that share a chroma value."""
Tables = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, eq=False)
class JPEG(Operator):
    """JPEG compression and decompression.

    Args:
        quality: q from 1 to 100, as in libjpeg and Pillow. None is that of the file where a JPEG
            file is given as measurement, and else 10.
        subsampling: of the chroma: ``"4:2:0"``, half the resolution, ``"4:2:2"`` or ``"4:4:0"``,
            half of it along rows or columns, or ``"4:4:4"``. None is the file's, and else 4:2:0.
        tables: the quantisation tables in place of a quality: 64 steps, row by row, of the luma or
            of luma and chroma; or the path of a JPEG file, whose tables (and subsampling) are
            taken.
    """

    quality: int | None = None
    subsampling: str | None = None
    tables: Sequence[Sequence[int]] | str | Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        quality = self.quality
        if quality is not None and (
            isinstance(quality, bool) or not isinstance(quality, int) or not 1 <= quality <= 100
        ):
            raise ValueError(f"quality must be a whole number from 1 to 100, got {quality!r}")
        if self.subsampling not in (None, *SUBSAMPLINGS):
            raise ValueError(
                f"subsampling must be one of {', '.join(SUBSAMPLINGS)}, got {self.subsampling!r}"
            )
        if self.tables is None:
            return
        if quality is not None:
            raise ValueError("quality and tables say the same thing: give one of them")
        if isinstance(self.tables, str | Path):
            tables, subsampling = read_tables(self.tables)
            object.__setattr__(self, "subsampling", self.subsampling or subsampling)
        else:
            tables = _checked(self.tables)
        object.__setattr__(self, "tables", tables)

    def of_file(self, path: Path) -> Self:
        """With the tables and the subsampling of a JPEG file, where none are given."""
        if self.tables is not None or self.quality is not None:
            return self
        tables, subsampling = read_tables(path)
        quality = quality_of(tables)
        return replace(
            self,
            quality=quality,
            tables=tables if quality is None else None,
            subsampling=self.subsampling or subsampling,
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """Quality and subsampling."""
        steps = f"quality {self.quality or 10}" if self.tables is None else "tables of its own"
        return (f"jpeg: {steps}, chroma {self.subsampling or '4:2:0'}",)

    def make_state(self, shape: Shape) -> dict[str, Tensor]:
        check_image_shape(shape, "JPEG")
        if shape[0] not in (1, 3):
            raise ValueError(f"JPEG works on grey (1, H, W) or RGB (3, H, W) images, got {shape}")
        colours = torch.tensor(YCBCR, dtype=torch.float64)
        luma, *chroma = (
            standard_tables(self.quality or 10)
            if self.tables is None
            else cast(Tables, self.tables)
        )
        return {
            "dct": cosine_matrix(8),
            "luma": _steps(luma),
            "chroma": _steps(chroma[0] if chroma else luma),
            "colours": colours,
            "rgb": torch.linalg.inv(colours),
        }

    def _forward(self, x: Tensor) -> Tensor:
        if x.shape[1] == 1:
            return (self._coded(255 * x - 128, "luma") + 128) / 255
        planes = torch.einsum(
            "ij,bjhw->bihw", self.state["colours"], 255 * x
        )  # chroma is centred at zero already
        luma, chroma = self._coded(planes[:, :1] - 128, "luma") + 128, planes[:, 1:]
        rows, columns = factors = SUBSAMPLINGS[self.subsampling or "4:2:0"]
        small = self._coded(F.avg_pool2d(_padded(chroma, rows, columns), factors), "chroma")
        if factors != (1, 1):
            small = F.interpolate(
                small, scale_factor=(float(rows), float(columns)), mode="bilinear"
            )
        chroma = small[..., : x.shape[-2], : x.shape[-1]]
        return (
            torch.einsum("ij,bjhw->bihw", self.state["rgb"], torch.cat([luma, chroma], 1)) / 255
        ).clamp(0, 1)

    def _coded(self, plane: Tensor, table: str) -> Tensor:
        """A plane with values in [−128, 127] after the quantisation of its blocks' coefficients."""
        dct, steps = self.state["dct"], self.state[table]
        blocks = _padded(plane, 8, 8).unflatten(-1, (-1, 8)).unflatten(-3, (-1, 8))
        z = torch.einsum("ui,bchiwj,vj->bchuwv", dct, blocks, dct)
        z = steps * rounded(z / steps)
        decoded = torch.einsum("ui,bchuwv,vj->bchiwj", dct, z, dct).flatten(-2).flatten(-3, -2)
        return decoded[..., : plane.shape[-2], : plane.shape[-1]].clamp(-128, 127)


def _padded(x: Tensor, rows: int, columns: int) -> Tensor:
    """x continued to the right and below by its last pixels until its sides are multiples."""
    height, width = x.shape[-2:]
    return F.pad(x, (0, -width % columns, 0, -height % rows), mode="replicate")


def _steps(table: Sequence[int]) -> Tensor:
    """Q as (8, 1, 8), the layout of :meth:`JPEG._coded`."""
    return torch.tensor(table, dtype=torch.float64).view(8, 1, 8)


def standard_tables(quality: int) -> Tables:
    """Luma and chroma of libjpeg's quality, from 1 to 100."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return tuple(
        tuple(min(max((scale * q + 50) // 100, 1), 255) for q in base) for base in (LUMA, CHROMA)
    )


def quality_of(tables: Tables) -> int | None:
    """The quality whose standard tables these are; None where there is none."""
    return next((q for q in range(1, 101) if standard_tables(q)[: len(tables)] == tables), None)


def read_tables(path: str | Path) -> tuple[Tables, str | None]:
    """The quantisation tables and the chroma subsampling that a JPEG file was written with.

    They are those of the picture as viewers show it: turned with it where it carries an EXIF
    orientation.

    Returns:
        One table (grey) or two (luma and chroma), 64 steps each, row by row; and the subsampling,
        None for grey.

    Raises:
        ValueError: no JPEG file, or one whose coding this operator does not describe.
    """
    from PIL import Image, JpegImagePlugin

    path = Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f"no JPEG file at {path}")
    try:
        with Image.open(path, formats=("JPEG",)) as image:
            assert isinstance(image, JpegImagePlugin.JpegImageFile)
            stored = [tuple(image.quantization[component[3]]) for component in image.layer]
            factors = [tuple(component[1:3]) for component in image.layer]
            orientation, size = image.getexif().get(0x0112, 1), image.size
            coded = image.mode in ("L", "RGB") and image.info.get("adobe_transform", 1) == 1
    except Exception as error:  # decoders raise much on broken files
        raise ValueError(
            f"{path} is no JPEG file that can be read, so its quantisation is not known; give the "
            "quality that it once had, operator.quality=Q"
        ) from error
    ratios = {(v, h): name for name, (v, h) in SUBSAMPLINGS.items()}
    (across, down), *rest = factors
    name = ratios.get((down, across)) if set(rest) == {(1, 1)} else None
    if not coded or (rest and (name is None or len(set(stored[1:])) != 1)):
        raise ValueError(
            f"{path} is coded in a way that the operator does not describe (components "
            f"{factors}, not YCbCr with one table for its chroma); give operator.quality=Q"
        )
    tables = _checked(stored[:2])
    down, across = SUBSAMPLINGS[name] if name else (1, 1)
    # Blocks begin at the top left of what is stored; what is mirrored must end with a whole one.
    ends = {2: (1, 0), 3: (1, 1), 4: (0, 1), 6: (0, 1), 7: (1, 1), 8: (1, 0)}
    turned = ends.get(orientation, (0, 0))
    if any(t and n % (8 * f) for t, n, f in zip(turned, size, (across, down), strict=True)):
        raise ValueError(
            f"{path} is stored turned (EXIF orientation {orientation}) and its sides {size} are no "
            "multiples of its blocks; turn it without loss (jpegtran -trim) or give "
            "operator.quality=Q"
        )
    if orientation in (5, 6, 7, 8):
        tables = tuple(tuple(t[8 * (i % 8) + i // 8] for i in range(64)) for t in tables)
        name = {"4:2:2": "4:4:0", "4:4:0": "4:2:2"}.get(name or "", name)
    return tables, name


def _checked(tables: Sequence[Sequence[int]]) -> Tables:
    made = tuple(tuple(table) for table in tables)
    if len(made) not in (1, 2) or any(
        len(t) != 64 or any(not isinstance(q, int) or not 1 <= q <= 65535 for q in t) for t in made
    ):
        raise ValueError(
            "tables are one or two quantisation tables of 64 whole numbers from 1 each, got "
            f"lengths {[len(t) for t in made]}"
        )
    return made
