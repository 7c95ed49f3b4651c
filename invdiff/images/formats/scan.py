"""A file of science as images to restore: each of its slices is one, in [0, 1] by its range."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import tifffile
import torch
from torch import Tensor

from invdiff.images.formats import read_volume, split_part, suffix_of
from invdiff.images.formats.volume import Volume
from invdiff.images.read import SUFFIXES, ImageError, find_images, quiet
from invdiff.plugins.registry import list_plugins

Range = tuple[float, float]
SMALL = 0.1
"""The share of the range that values fill below which the range is doubted."""


def find_files(pattern: str | Path) -> list[str | Path]:
    """The pictures and files of science that a file, ``FILE:PART``, a folder or a glob names; of a
    folder with pictures, those alone.

    Raises:
        ImageError: as :func:`~invdiff.images.find_images`.
    """
    if split_part(pattern)[1] is not None:
        return [pattern]
    return [*find_images(pattern, [f".{suffix}" for suffix in list_plugins("formats")])]


def is_scan(path: str | Path, data_range: Range | None = None) -> bool:
    """Whether a file is read as a scan: by its suffix; of a TIFF, which may be a picture as well,
    where it has several pages or where its range is given."""
    file, part = split_part(path)
    if file.suffix.lower() not in SUFFIXES:
        return True
    if file.suffix.lower() not in (".tif", ".tiff"):
        return False
    if data_range is not None or part is not None:
        return True
    try:
        with quiet(), tifffile.TiffFile(file) as tif:
            return len(tif.pages) > 1
    except Exception:  # a broken file: what reads it says what is wrong
        return False


@dataclass(frozen=True, eq=False)
class Scan:
    """The slices of a file.

    Args:
        path: the file, or ``FILE:PART``.
        data_range: (low, high) in the units of the file, which become 0 and 1; None takes what the
            file declares.
        axes: as of :func:`~invdiff.images.formats.read_volume`.
    """

    path: str | Path
    data_range: Range | None = None
    axes: str | None = None

    @cached_property
    def volume(self) -> Volume:
        """The numbers of the file."""
        return read_volume(self.path, self.axes)

    @cached_property
    def range(self) -> Range:
        """(low, high) of the images, in the units of the file."""
        return self.volume.range_of(self.data_range)

    @cached_property
    def slices(self) -> Tensor:
        """(N, C, H, W) in the units of the file."""
        return self.volume.slices

    def __len__(self) -> int:
        return len(self.slices)

    @property
    def stem(self) -> str:
        """The name of the file without its suffix."""
        name = split_part(self.path)[0].name
        return name[: -len(suffix_of(Path(name))) - 1]

    @property
    def names(self) -> list[str]:
        """A name for each slice."""
        width = max(3, len(str(len(self) - 1)))
        return (
            [self.stem]
            if len(self) == 1
            else [f"{self.stem}_{k:0{width}}" for k in range(len(self))]
        )

    @property
    def notes(self) -> list[str]:
        """Sentences, for the user, about how the file is read."""
        low, high = self.range
        values = f"{low:g} to {high:g} {self.volume.unit}".strip()
        count = f"{len(self)} slices" if len(self) > 1 else "one slice"
        said = [f"{self.stem}: {count}, the range is {values}", *self.volume.notes]
        found = self.slices.abs() if self.slices.is_complex() else self.slices
        lowest, highest = (float(v) for v in found.nan_to_num(low).aminmax())
        if highest - lowest < SMALL * (high - low) or highest > 2 * high - low:
            said.append(
                f"{self.stem}: its values go from {lowest:g} to {highest:g}, which does not suit "
                "that range: --range LOW,HIGH says which values are black and white"
            )
        return said

    def image(self, k: int, channels: int | None = None) -> Tensor:
        """Slice k as an image (1, C, H, W): the range becomes [0, 1], nothing is clipped.

        Args:
            channels: of the network. Grey is repeated; complex numbers become the two channels real
                and imaginary part.

        Raises:
            ImageError: a range that is not known, channels that the network does not have.
        """
        low, high = self.range
        x = (self.slices[[k]] - low) / (high - low)
        if x.is_complex():
            x = torch.cat([x.real, x.imag], 1)
        if channels in (None, x.shape[1]):
            return x
        if x.shape[1] == 1:
            return x.expand(-1, channels, -1, -1)
        kind = "complex" if self.slices.is_complex() else "real"
        raise ImageError(
            f"the slices of {self.path} have {self.slices.shape[1]} {kind} channels, the network "
            f"{channels}; take a network of {x.shape[1]} channels, or one part of the file"
        )

    def restored(self, images: Sequence[Tensor]) -> Volume:
        """The file with other slices, in its own units and layout.

        Args:
            images: (C, H, W) each, as of :meth:`image`; channels of a slice that was grey are
                averaged.

        Raises:
            ImageError: slices of another size, which the metadata of the file would not describe.
        """
        low, high = self.range
        x = torch.stack(list(images)).to(torch.float64)
        if self.slices.is_complex() and x.shape[1] == 2 * self.slices.shape[1]:
            x = torch.complex(*x.chunk(2, 1))
        if self.slices.shape[1] == 1:
            x = x.mean(1, keepdim=True)
        return self.volume.with_slices(low + (high - low) * x)

    def plain(self, images: Sequence[Tensor]) -> Volume:
        """Images as slices (N, C, H, W) in the units of the file, without its metadata."""
        low, high = self.range
        x = torch.stack(list(images)).to(torch.float32)
        if self.slices.shape[1] == 1:
            x = x.mean(1, keepdim=True)
        return Volume((low + (high - low) * x).numpy(), "ZCYX", unit=self.volume.unit)
