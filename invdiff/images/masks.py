"""Mask files: which pixels of a photograph are known.

A mask that is drawn by hand, saved as JPEG or blurred by an editor has edges between black and
white. The photograph at these pixels is neither known nor multiplied by that grey, so a pixel
counts as known only where the mask keeps it (almost) fully.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from invdiff.images.arrays import is_array, read_array
from invdiff.images.read import ImageError, read_stored

FULLY = 0.95
"""Share of the colour that is kept from which a pixel counts as known."""


def read_mask(path: str | Path, shape: tuple[int, int], keep: str = "white") -> Tensor:
    """Reads which pixels are known from a picture, .npy or .pt file.

    A picture is read as a viewer shows it: EXIF orientation applied, colours as luma. Its own
    largest value is white, if that is at least half of what the format holds or if there are only
    two values, one of them 0. A mask may be drawn into the alpha channel: where all that is opaque
    is white, alpha is the mask (opaque counts as white); where it is all black, transparent counts
    as white. A mask of another size than the image is resized where its aspect ratio is the
    image's; no pixel that is missing becomes known by that.

    Args:
        shape: (H, W) of the image.
        keep: which colour is known, ``"white"`` or ``"black"``.

    Returns:
        (H, W), or (..., H, W) where an array has more dimensions; 1.0 is known and 0.0 missing.

    Raises:
        ImageError: a file that cannot be read, or whose meaning is unclear: too dark, outside any
            usual range, colours and alpha that disagree, another aspect ratio, nothing known.
    """
    path = Path(path).expanduser()
    known = (_of_array if is_array(path) else _of_picture)(path, shape, keep)
    known = _resized(known, shape, path)
    if not bool(known.any()):
        raise ImageError(
            f"the mask {path} marks no pixel as known; keep={keep!r} (--mask-keep) says which "
            "colour is known"
        )
    share = float(known.to(torch.float64).mean())
    other = "black" if keep == "white" else "white"
    if share < 0.5:
        warnings.warn(
            f"the mask {path} keeps {100 * share:.1f} % of the pixels, the smaller part: {keep} is "
            f"known; if {other} is, as in diffusers, LaMa and OpenCV, say keep={other} "
            f"(--mask-keep {other})",
            stacklevel=2,
        )
    elif share == 1:
        warnings.warn(f"the mask {path} marks every pixel as known: none is missing", stacklevel=2)
    return known.to(torch.float64).contiguous()


def _of_picture(path: Path, shape: tuple[int, int], keep: str) -> Tensor:
    stored = read_stored(path, what="a mask")
    grey = stored.grey
    if stored.alpha is None or bool((stored.alpha[0] >= FULLY).all()):
        return _kept(_levels(grey, path, stored.full if stored.kind == "u" else None), keep)
    opaque = stored.alpha[0] >= FULLY
    if not bool(opaque.any()):
        raise ImageError(f"the mask {path} is transparent everywhere")
    levels = (grey / stored.full).clamp(0, 1)
    if bool((levels[opaque] >= FULLY).all()):
        return _kept(stored.alpha[0], keep)
    if bool((levels[opaque] <= 1 - FULLY).all()):
        warnings.warn(
            f"the mask {path} is opaque black on transparent: transparent counts as white",
            stacklevel=3,
        )
        return _kept(1 - stored.alpha[0], keep)
    known = _kept(levels, keep)
    if bool((known & ~opaque).any()):
        raise ImageError(
            f"the colours and the alpha channel of the mask {path} disagree: "
            f"{int((known & ~opaque).sum())} transparent pixels are {keep}; remove the alpha "
            "channel or fill the colours"
        )
    return known


def _of_array(path: Path, shape: tuple[int, int], keep: str) -> Tensor:
    array = read_array(path, "a mask")
    if array.ndim == 3 and array.shape[-2:] != shape and array.shape[-1] in (1, 3):
        array = array.movedim(-1, 0)  # (H, W, C), as numpy keeps pictures
    if array.ndim < 2:
        raise ImageError(
            f"the mask {path} must be (H, W) or (C, H, W), got shape {tuple(array.shape)}"
        )
    return _kept(_levels(array.to(torch.float64), path, None), keep)


def _levels(values: Tensor, path: Path, full: float | None) -> Tensor:
    """Values over the largest of them, which is white.

    Args:
        full: the white of the format; None where it declares none: then 1, 255 or 65535, the least
            that holds the values.
    """
    low, high = (float(v) for v in values.aminmax())
    if not (low >= 0 and high < float("inf")):  # also catches nan
        raise ImageError(
            f"the mask {path} must have values from 0, or black, to white; it has values from "
            f"{low:g} to {high:g}"
        )
    two = bool(((values == 0) | (values == high)).all())
    if high == 0 or (two and (full is None or high >= full / 2)):
        return values / (high or 1)
    if full is None:
        full = next((white for white in (1.0, 255.0, 65535.0) if white >= high), 65535.0)
    if two:
        warnings.warn(
            f"the mask {path} has the values 0 and {high:g}, of {full:g}; {high:g} counts as white",
            stacklevel=4,
        )
        return values / high
    if high < full / 2 or high > full:
        raise ImageError(
            f"the mask {path} has values from {low:g} to {high:g}, where {full:g} is white: which "
            "pixels are white is not clear. Save it as black and white"
        )
    return values / high


def _kept(levels: Tensor, keep: str) -> Tensor:
    return levels >= FULLY if keep == "white" else levels <= 1 - FULLY


def _resized(known: Tensor, shape: tuple[int, int], path: Path) -> Tensor:
    (height, width), (h, w) = known.shape[-2:], shape
    if (height, width) == (h, w):
        return known
    if round(height * w / width) != h and round(width * h / height) != w:
        turned = (
            ". It fits when turned by 90 degrees: the EXIF orientation of photographs is applied, "
            "so draw the mask on the photograph as viewers show it"
            if round(width * w / height) == h or round(height * h / width) == w
            else "; crop the mask to the image's"
        )
        raise ImageError(
            f"the mask {path} is {height}x{width}, the image {h}x{w}: another aspect ratio{turned}"
        )
    warnings.warn(
        f"the mask {path} is resized from {height}x{width} to the image's {h}x{w}", stacklevel=3
    )
    missing = F.adaptive_max_pool2d((~known).reshape(1, -1, height, width).float(), (h, w))
    return (missing == 0).view(*known.shape[:-2], h, w)


def grown(mask: Tensor, pixels: int) -> Tensor:
    """A mask (..., H, W) with everything missing that is at most ``pixels`` (Euclidean) away from a
    pixel that is."""
    import numpy as np
    from scipy.ndimage import distance_transform_edt

    planes = mask.reshape(-1, *mask.shape[-2:])
    far = [
        distance_transform_edt(plane) > pixels if not plane.all() else np.ones(plane.shape, bool)
        for plane in (planes > 0).numpy()
    ]
    return mask * torch.from_numpy(np.stack(far)).view(mask.shape)
