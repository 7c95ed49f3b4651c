"""An array as science keeps it: units, axes, metadata."""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invdiff.images.read import ImageError

CHANNELS = "CS"
LARGEST = 2_000_000_000
"""Numbers above which a file is refused before its array is read."""


@dataclass(frozen=True, eq=False)
class Volume:
    """Slices of images in the units of their file.

    Attributes:
        array: as in the file: any dtype of whole, floating-point or complex numbers.
        axes: one letter for each of its dimensions: Y and X, C or S for channels, any other for
            slices (depth, time, coil sets).
        unit: of the numbers, as the file says it; empty where it says nothing.
        data_range: (low, high) that the file declares, in these units, or None.
        metadata: what the format needs to write the file again; an object of its own.
        format: the module that read it.
        notes: assumptions made in reading, as sentences.
    """

    array: np.ndarray
    axes: str
    unit: str = ""
    data_range: tuple[float, float] | None = None
    metadata: Any = None
    format: ModuleType | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.array.dtype.kind not in "biufc" or self.array.size == 0:
            raise ImageError(
                f"an array of numbers is needed, got {self.array.dtype} of shape {self.array.shape}"
            )
        check_axes(self.axes, self.array.shape)

    @property
    def slices(self) -> Tensor:
        """(N, C, H, W) in the file's units: float32 where it holds every value, else float64;
        complex stays complex."""
        order = self._order()
        array = self.array.transpose(order)
        count = sum(axis not in "YX" + CHANNELS for axis in self.axes)
        height, width = array.shape[-2:]
        shape = (math.prod(array.shape[:count]), math.prod(array.shape[count:-2]), height, width)
        kind, size = array.dtype.kind, array.dtype.itemsize
        real = np.float32 if (size <= 2 if kind in "biu" else size <= 4) else np.float64
        wanted = {True: array.dtype if size > 4 else np.complex64, False: real}[kind == "c"]
        return torch.from_numpy(np.ascontiguousarray(array, dtype=wanted).reshape(shape))

    def with_slices(self, x: Tensor) -> Volume:
        """This volume with other numbers, in its own layout and dtype: whole numbers are rounded
        and clipped to their range.

        Args:
            x: (N, C, H, W), of the shape of ``slices``.

        Raises:
            ImageError: another shape, which the metadata would not describe; complex numbers for an
                array of real ones; not finite.
        """
        if tuple(x.shape) != tuple(self.slices.shape):
            raise ImageError(
                f"the volume has slices of shape {tuple(self.slices.shape)}, got {tuple(x.shape)}: "
                "its metadata would not describe them; write a volume of its own"
            )
        if x.is_complex() and self.array.dtype.kind != "c":
            raise ImageError("the volume is real, the slices are complex")
        if not bool(x.isfinite().all()):
            raise ImageError(f"the slices have {int((~x.isfinite()).sum())} values not finite")
        order = self._order()
        values = x.detach().cpu().numpy().reshape([self.array.shape[i] for i in order])
        values = values.transpose(np.argsort(order))
        kind = self.array.dtype.kind
        if kind in "iu":
            limits = np.iinfo(self.array.dtype)
            values = values.round().clip(limits.min, limits.max)
        elif kind == "b":
            values = values >= 0.5
        return replace(self, array=np.ascontiguousarray(values, dtype=self.array.dtype))

    def images(self, data_range: tuple[float, float] | None = None) -> Tensor:
        """(N, C, H, W) as invdiff takes images: low is 0 and high is 1; nothing is clipped.

        Args:
            data_range: (low, high) in the file's units; None takes what the file declares.

        Raises:
            ImageError: neither the file nor the caller says the range; complex numbers whose range
                does not begin at 0.
        """
        low, high = self.range_of(data_range)
        return (self.slices - low) / (high - low)

    def with_images(self, x: Tensor, data_range: tuple[float, float] | None = None) -> Volume:
        """The inverse of :meth:`images`, as :meth:`with_slices`."""
        low, high = self.range_of(data_range)
        return self.with_slices(low + (high - low) * x)

    def pictures(self) -> dict[str, Tensor]:
        """Pictures for people (N, 1 or 3, H, W) in [0, 1]: windowed to the middle 99 % of the
        finite values; of complex numbers the magnitude, and the phase with 0 as grey. Channels that
        are neither 1 nor 3 are combined, by root sum of squares (complex) or mean."""
        x = self.slices
        few = x.shape[1] in (1, 3)
        if not x.is_complex():
            return {"picture": _windowed(x if few else x.mean(1, keepdim=True))}
        magnitude = x.abs() if few else x.abs().square().sum(1, keepdim=True).sqrt()
        phase = (x if few else x.sum(1, keepdim=True)).angle()
        return {"magnitude": _windowed(magnitude), "phase": (phase / math.tau + 0.5).float()}

    def range_of(self, data_range: tuple[float, float] | None = None) -> tuple[float, float]:
        """(low, high) that become 0 and 1: what is given, else what the file declares.

        Raises:
            ImageError: as :meth:`images`.
        """
        given = data_range or self.data_range
        if given is None:
            finite = self.array[np.isfinite(self.array)]
            extent = (np.abs(finite) if finite.dtype.kind == "c" else finite).astype(np.float64)
            raise ImageError(
                "the file does not say its range; give it, data_range=(low, high) or --range "
                f"LOW,HIGH: its values go from {extent.min(initial=np.inf):.4g} to "
                f"{extent.max(initial=-np.inf):.4g} {self.unit}".rstrip()
            )
        low, high = given
        if not low < high or (self.array.dtype.kind == "c" and low != 0):
            raise ImageError(
                f"data_range must have low < high, and low = 0 for complex numbers, got {given}"
            )
        return low, high

    def _order(self) -> list[int]:
        """The axes as slices, channels, Y, X."""
        places = range(len(self.axes))
        return [
            *(i for i in places if self.axes[i] not in "YX" + CHANNELS),
            *(i for i in places if self.axes[i] in CHANNELS),
            self.axes.index("Y"),
            self.axes.index("X"),
        ]


def _windowed(x: Tensor) -> Tensor:
    finite = x[x.isfinite()].double()
    if len(finite) == 0:
        return torch.zeros(x.shape)
    low, high = np.quantile(finite.numpy(), [0.005, 0.995])
    return ((x - low) / (high - low or 1)).nan_to_num(0.0).clamp(0, 1).float()


def check_axes(axes: str, shape: tuple[int, ...]) -> None:
    if len(axes) != len(shape) or "Y" not in axes or "X" not in axes or len(set(axes)) < len(axes):
        raise ImageError(
            f"axes must name each of the {len(shape)} dimensions {shape} by a letter of its own, "
            f"Y and X among them, got {axes!r}"
        )


def guessed_axes(shape: tuple[int, ...]) -> tuple[str, tuple[str, ...]]:
    """Axes for an array whose file says none, and the note that says so."""
    if len(shape) < 2:
        raise ImageError(f"an image has two dimensions or more, the array has the shape {shape}")
    first = len(shape) > 2 and shape[-3] in (1, 3, 4)
    last = len(shape) > 2 and shape[-1] in (1, 3, 4) and not first
    axes = {2: "YX", 3: "YXC" if last else "CYX" if first else "ZYX", 4: "ZYXC" if last else "ZCYX"}
    if len(shape) > 5:
        raise ImageError(f"the axes of an array of shape {shape} cannot be guessed; give axes=")
    found = axes.get(len(shape), "TZCYX")
    if found == "YX":
        return found, ()
    return found, (f"axes of {shape} are taken as {found}; give axes= if they are others",)


def package(name: str, path: Path | str) -> Any:
    """An optional package.

    Raises:
        ImageError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImageError(
            f"{path} needs the package {name.split('.')[0]}: pip install 'invdiff[science]'"
        ) from error


def check_count(path: Path, shape: tuple[int, ...]) -> None:
    """Refuses an array that is too large by its header."""
    if math.prod(shape) > LARGEST:
        raise ImageError(
            f"{path} declares an array of shape {tuple(shape)}, more than the {LARGEST:,} numbers "
            "allowed; give a part of it"
        )


def chosen(path: Path, names: list[str], part: str | None, what: str) -> str:
    """The one of several arrays that is read.

    Raises:
        ImageError: none, or several of which none or an unknown one was named.
    """
    shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    if not names:
        raise ImageError(f"{path} holds no {what} that is an image")
    if part is None and len(names) == 1:
        return names[0]
    if part not in names:
        raise ImageError(
            f"{path} holds the {what}s {shown}; "
            + (f"there is no {part!r}" if part else f"say which one: {path.name}:{names[0]}")
        )
    return part


def native(array: Any) -> np.ndarray:
    """In the byte order of the machine, which torch needs."""
    made = np.asarray(array)
    return made.astype(made.dtype.newbyteorder("="), copy=False)
