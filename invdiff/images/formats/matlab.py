"""MATLAB's .mat (SciPy up to version 7.2, h5py for 7.3): one variable, ``FILE.mat:name``.

MATLAB's arrays are (rows, columns, ...): what follows are channels where there are 1, 3 or 4 of
them, and else slices. The other variables of a file up to version 7.2 are written again. SciPy's
reader can crash the interpreter on a damaged file, so give it files of known origin.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np

from invdiff.images.formats.hdf5 import as_complex
from invdiff.images.formats.volume import Volume, check_count, chosen, native, package


def read(path: Path, part: str | None) -> Volume:
    import scipy.io

    try:
        shapes = {name: shape for name, shape, _ in scipy.io.whosmat(path)}
    except NotImplementedError:  # version 7.3 is HDF5
        array, name, others = _read_hdf5(path, part)
    else:
        name = chosen(path, _images(shapes), part, "variable")
        check_count(path, shapes[name])
        variables = scipy.io.loadmat(path, struct_as_record=True)
        others = {k: v for k, v in variables.items() if not k.startswith("__") and k != name}
        array = variables[name]
    axes = "YX" + ("C" if array.ndim == 3 and array.shape[2] in (1, 3, 4) else "ZTUVW")
    axes = axes[: array.ndim]
    note = f"axes of {array.shape} are taken as {axes}; give axes= if they are others"
    return Volume(
        native(array),
        axes,
        metadata=(name, others),
        format=sys.modules[__name__],
        notes=(note,) if array.ndim > 2 else (),
    )


def encode(volume: Volume, path: Path) -> bytes:
    import scipy.io

    name, others = volume.metadata or ("array", {})
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {**others, name: volume.array}, do_compression=True)
    return buffer.getvalue()


def _images(shapes: dict[str, Any]) -> list[str]:
    """Of MATLAB's variables, which all have two dimensions or more, those that are no scalar."""
    return [name for name, shape in shapes.items() if sum(n > 1 for n in shape) >= 2]


def _read_hdf5(path: Path, part: str | None) -> tuple[np.ndarray, str, dict[str, Any]]:
    h5py = package("h5py", path)
    with h5py.File(path) as file:
        shapes = {k: v.shape for k, v in file.items() if isinstance(v, h5py.Dataset)}
        name = chosen(path, _images(shapes), part, "variable")
        check_count(path, shapes[name])
        return as_complex(file[name][()]).T, name, {}  # stored by columns
