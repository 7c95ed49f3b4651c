"""Writing images and animations: tensors (C, H, W) or (1, C, H, W), float in [0, 1], C is 1 or
3."""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from invdiff.files import write_atomically

if TYPE_CHECKING:
    import numpy as np
from invdiff.images.read import _PNG, SUFFIXES, ImageError

VISIBLE = 256
"""Pictures for people that are lower than this are enlarged, by an integer."""


def write_image(path: str | Path, x: Tensor, bits: int = 8) -> None:
    """Writes an image, clamped to [0, 1] and rounded, in the format of the suffix; the file appears
    whole or not at all.

    PNG and TIFF (deflate) and WebP are lossless, JPEG has quality 95 without chroma subsampling.

    Args:
        x: (C, H, W) or (1, C, H, W), C is 1 or 3.
        bits: 8, or 16 for PNG and TIFF.

    Raises:
        ImageError: unknown suffix, 16 bits in a format that has 8, a missing folder, wrong shape,
            values not finite.
    """
    path = Path(path).expanduser()
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ImageError(
            f"{path}: the suffix {suffix!r} names no image format; images end in "
            f"{', '.join(SUFFIXES)}"
        )
    if bits not in (8, 16) or (bits == 16 and suffix not in (".png", ".tif", ".tiff")):
        raise ImageError(f"{path}: bits must be 8, or 16 for .png and .tif, got {bits}")
    if not path.parent.is_dir():
        raise ImageError(f"cannot write {path}: there is no folder {path.parent}; create it first")
    pixels = pixels_of(x, bits)
    write_atomically(
        path, _encode_png16(pixels) if suffix == ".png" and bits == 16 else _encode(pixels, suffix)
    )


def png(x: Tensor) -> bytes:
    """An image as the content of an 8-bit PNG file."""
    return _encode(pixels_of(x, 8), ".png")


def pixels_of(x: Tensor, bits: int) -> np.ndarray:
    """(H, W) or (H, W, 3) unsigned integers."""
    import numpy as np

    x = one_image(x).detach().to("cpu", torch.float32)
    if not x.isfinite().all():
        raise ImageError(f"the image has {int((~x.isfinite()).sum())} values that are not finite")
    pixels = (
        (x.clamp(0, 1) * (2**bits - 1))
        .round()
        .permute(1, 2, 0)
        .numpy()
        .astype(np.uint8 if bits == 8 else np.uint16)
    )
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels


def one_image(x: Tensor) -> Tensor:
    """(C, H, W)."""
    image = x[0] if x.ndim == 4 and x.shape[0] == 1 else x
    if image.ndim != 3 or image.shape[0] not in (1, 3) or image.numel() == 0:
        raise ImageError(
            f"an image is (C, H, W) or (1, C, H, W) with 1 or 3 channels, got {tuple(x.shape)}"
        )
    return image


def _encode(pixels: np.ndarray, suffix: str) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    if suffix in (".tif", ".tiff"):
        import tifffile

        tifffile.imwrite(
            buffer,
            pixels,
            photometric="rgb" if pixels.ndim == 3 else "minisblack",
            compression="zlib",
            metadata=None,
        )
    else:
        name = {".jpg": "JPEG", ".jpeg": "JPEG"}.get(suffix, suffix[1:].upper())
        options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(
            name, {}
        )
        Image.fromarray(pixels).save(buffer, name, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def _encode_png16(pixels: np.ndarray) -> bytes:
    """A 16-bit PNG: Pillow writes 16 bits of grey only, kornia to paths only, torchvision none."""
    import numpy as np

    height, width = pixels.shape[:2]
    stored = np.ascontiguousarray(pixels, ">u2").view(np.uint8).reshape(height, -1)
    rows = np.full(
        (height, 1 + stored.shape[1]), 2, np.uint8
    )  # each row starts with its filter: 2, difference to the row above
    rows[:, 1:] = stored - np.vstack([np.zeros_like(stored[:1]), stored[:-1]])

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 16, 2 if pixels.ndim == 3 else 0, 0, 0, 0)
    return (
        _PNG
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows.tobytes()))
        + chunk(b"IEND", b"")
    )


def write_gif(path: str | Path, frames: Sequence[Tensor], seconds: float = 3.0) -> None:
    """Writes an endless animation of ``seconds``, its last frame held 1.5 s longer; small frames
    are enlarged.

    Args:
        frames: images of one shape; evenly spaced ones are left out where there are more than 50 a
            second.

    Raises:
        ImageError: no frames, frames of differing shapes, a suffix other than .gif, or what
            write_image refuses.
    """
    from PIL import Image

    path = Path(path).expanduser()
    if path.suffix.lower() != ".gif":
        raise ImageError(f"an animation is written as .gif, got {path}")
    if not path.parent.is_dir():
        raise ImageError(f"cannot write {path}: there is no folder {path.parent}; create it first")
    shapes = {tuple(one_image(f).shape) for f in frames}
    if len(shapes) != 1 or seconds <= 0:
        raise ImageError(
            "an animation needs frames of one shape and a positive duration, got shapes "
            f"{sorted(shapes)} and {seconds} s"
        )
    count = min(len(frames), max(2, int(seconds / 0.02)))  # viewers slow anything faster down
    kept = [
        frames[i]
        for i in torch.linspace(0, len(frames) - 1, count, dtype=torch.float64)
        .round()
        .long()
        .tolist()[:-1]
    ] + [frames[-1]]
    pictures = [Image.fromarray(pixels_of(_enlarged(one_image(f)), 8)) for f in kept]
    # The octree is quick and keeps rare colours, which median cut loses; the frame that is looked
    # at longest gets k-means.
    last = pictures[-1].convert("RGB").quantize(256, kmeans=1)
    pictures = [
        p.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE) for p in pictures[:-1]
    ] + [last]
    duration = max(20, 10 * round(100 * seconds / count))
    buffer = io.BytesIO()
    pictures[0].save(
        buffer,
        "GIF",
        save_all=True,
        append_images=pictures[1:],
        loop=0,
        duration=[duration] * (count - 1) + [duration + 1500],
    )
    write_atomically(path, buffer.getvalue())


def enlargement(height: int, wanted: int = VISIBLE) -> int:
    return math.ceil(wanted / height)


def resized(x: Tensor, height: int, width: int) -> Tensor:
    return functional.interpolate(x[None], (height, max(1, width)), mode="nearest-exact")[0]


def _enlarged(x: Tensor) -> Tensor:
    factor = enlargement(x.shape[1])
    return resized(x, factor * x.shape[1], factor * x.shape[2])
