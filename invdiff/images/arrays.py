"""Arrays of numbers in files, .npy and .pt: the same checks for whatever is read from one."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from invdiff.images.read import PIXELS, ImageError

ARRAYS = (".npy", ".pt")


def is_array(path: Path) -> bool:
    """Whether the suffix names an array rather than a picture."""
    return path.suffix.lower() in ARRAYS


def read_array(
    path: str | Path, what: str, max_values: int = 3 * PIXELS, allow_complex: bool = False
) -> Tensor:
    """Reads a .npy file, or a tensor that ``torch.save`` wrote; nothing in it is executed.

    Args:
        what: what the file is to be, for messages: ``"a mask"``.
        max_values: numbers above which the file is refused before they are read.
        allow_complex: whether complex numbers are taken.

    Returns:
        The array as it is stored: bool, whole numbers or floats.

    Raises:
        ImageError: missing, damaged, too large, empty, pickled objects, complex or not finite.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ImageError(f"no file at {path}")
    try:
        array = (_load_npy if path.suffix.lower() == ".npy" else _load_pt)(path, max_values)
    except ImageError:
        raise
    except Exception as error:  # both raise much: ValueError, UnpicklingError, EOFError
        raise ImageError(
            f"{path} cannot be read as {what}, it may be damaged or hold Python objects, which are "
            f"never loaded: {type(error).__name__}: {' '.join(str(error).split())[:120]}"
        ) from error
    refused = array.is_complex() and not allow_complex
    if refused or array.numel() == 0 or not bool(array.isfinite().all()):
        raise ImageError(
            f"{path} holds {array.dtype} of shape {tuple(array.shape)}; {what} needs "
            f"{'' if allow_complex else 'real, '}finite numbers, and at least one"
        )
    return array


def _load_npy(path: Path, max_values: int) -> Tensor:
    # Mapped first, so that the header's size is checked against the file's before it is allocated.
    mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(mapped, np.ndarray):
        raise ValueError("it is an archive (.npz), not one array")
    _check_size(path, mapped.size, max_values)
    native = mapped.dtype.newbyteorder("=")
    if native.kind == "u" and native.itemsize > 1:  # torch's unsigned types have no comparisons
        native = np.dtype(np.float64)
    return torch.from_numpy(np.array(mapped, dtype=native))


def _load_pt(path: Path, max_values: int) -> Tensor:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            _check_size(path, sum(entry.file_size for entry in archive.infolist()) // 8, max_values)
    tensor = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(tensor, Tensor):
        raise ValueError(f"it holds a {type(tensor).__name__}, not one tensor")
    _check_size(path, tensor.numel(), max_values)  # a view can be larger than what it is stored in
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise ValueError(f"its tensor is {tensor.layout}, not a plain one")
    return tensor.detach()


def _check_size(path: Path, values: int, max_values: int) -> None:
    if values > max_values:
        raise ImageError(
            f"{path} declares {values:,} numbers, more than the {max_values:,} allowed"
        )
