"""HDF5 (h5py): one dataset, ``FILE.h5:group/dataset``; without a name the only one of two
dimensions or more.

The unit is the attribute ``units`` or ``unit``, the axes ``axes`` (or the dimensions' labels) where
they are letters. Complex numbers are h5py's, or pairs named real and imag. A file is written with
that dataset, its attributes and those of the root.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np

from invdiff.images.formats.volume import (
    Volume,
    check_axes,
    check_count,
    chosen,
    guessed_axes,
    native,
    package,
)
from invdiff.images.read import ImageError


def read(path: Path, part: str | None) -> Volume:
    h5py = package("h5py", path)
    with h5py.File(path) as file:
        names: list[str] = []

        def visit(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset) and len(item.shape or ()) >= 2:
                names.append(name)

        file.visititems(visit)
        name = chosen(path, names, part and part.strip("/"), "dataset")
        dataset = file[name]
        check_count(path, dataset.shape)
        attributes = dict(dataset.attrs)
        array = as_complex(dataset[()])
        labels = "".join(d.label for d in dataset.dims)
        root = dict(file.attrs)
    axes, notes = _axes(str(attributes.get("axes", labels)), array.shape)
    unit = attributes.get("units", attributes.get("unit", ""))
    return Volume(
        native(array),
        axes,
        unit=unit.decode() if isinstance(unit, bytes) else str(unit),
        metadata={"name": name, "attributes": attributes, "root": root},
        format=sys.modules[__name__],
        notes=notes,
    )


def encode(volume: Volume, path: Path) -> bytes:
    h5py = package("h5py", path)
    written = {"units": volume.unit} if volume.unit else {}
    kept = volume.metadata or {
        "name": "data",
        "attributes": {"axes": volume.axes, **written},
        "root": {},
    }
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        dataset = file.create_dataset(kept["name"], data=volume.array, compression="gzip")
        dataset.attrs.update(kept["attributes"])
        file.attrs.update(kept["root"])
    return buffer.getvalue()


def as_complex(array: np.ndarray) -> np.ndarray:
    """Pairs named real and imag, as MATLAB writes them, as complex numbers."""
    names = array.dtype.names
    if names is None:
        return array
    if len(names) != 2 or {n[0] for n in names} != {"r", "i"}:
        raise ImageError(f"an array of numbers is needed, got records of {', '.join(names)}")
    real, imaginary = sorted(names, reverse=True)
    return array[real] + 1j * array[imaginary]


def _axes(said: str, shape: tuple[int, ...]) -> tuple[str, tuple[str, ...]]:
    try:
        check_axes(said.upper(), shape)
    except ImageError:
        return guessed_axes(shape)
    return said.upper(), ()
