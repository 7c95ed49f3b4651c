"""Kernel files: the point spread function of a blur."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor

from invdiff.images.arrays import is_array, read_array
from invdiff.images.read import ImageError, read_stored

NEAR = 0.05
"""How far from 1 the sum of a kernel may be without being divided by it."""


def read_kernel(path: str | Path) -> Tensor:
    """Reads a blur kernel from a picture, .npy or .pt file.

    A picture is divided by its sum. An array is used as it is where its sum is 1 (within 5 %), so
    that a kernel may change brightness a little, and is else divided by it with a warning.

    Returns:
        (k, l) float64.

    Raises:
        ImageError: a file that cannot be read, is no kernel, or whose sum is not positive.
    """
    path = Path(path).expanduser()
    if is_array(path):
        kernel = read_array(path, "a kernel").to(torch.float64)
        if kernel.ndim == 3 and kernel.shape[-1] == 1:
            kernel = kernel[..., 0]  # (H, W, 1), as numpy keeps pictures
    else:
        stored = read_stored(path, what="a kernel")
        if stored.alpha is not None and bool((stored.alpha < 1).any()):
            raise ImageError(f"the kernel {path} has transparent pixels; remove the alpha channel")
        kernel = stored.grey.to(torch.float64)
    kernel = kernel_matrix(kernel, f"the kernel {path}")
    total = float(kernel.sum())
    if total <= 0:
        raise ImageError(
            f"the kernel {path} has the sum {total:.4g}, so it is no blur that keeps brightness; "
            "give other kernels as a tensor in Python"
        )
    if is_array(path) and abs(total - 1) <= NEAR:
        return kernel
    if is_array(path):
        warnings.warn(
            f"the kernel {path} has the sum {total:.4g} and is divided by it, so that the blur "
            "keeps brightness",
            stacklevel=2,
        )
    return kernel / total


def kernel_matrix(kernel: Tensor, what: str) -> Tensor:
    """A kernel as (k, l); leading dimensions of one are dropped.

    Raises:
        ImageError: another shape, complex, not finite or all zeros.
    """
    while kernel.ndim > 2 and kernel.shape[0] == 1:
        kernel = kernel[0]
    if kernel.ndim != 2 or kernel.numel() == 0:
        raise ImageError(
            f"{what} must have two dimensions (height, width), got shape {tuple(kernel.shape)}"
        )
    if kernel.is_complex() or not bool(kernel.isfinite().all()) or not bool(kernel.any()):
        raise ImageError(f"{what} must be real, finite and not all zeros")
    return kernel
