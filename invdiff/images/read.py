"""Finding and reading images: tensors (1, C, H, W), float in [0, 1], C is 1 or 3."""

from __future__ import annotations

import glob
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

PIXELS = 64_000_000
"""Width times height above which a file is refused before it is decoded."""
LUMA = (0.299, 0.587, 0.114)
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp")


_PNG = b"\x89PNG\r\n\x1a\n"


class ImageError(ValueError):
    """A file that cannot be used as an image, or an image that cannot be written."""


def find_images(pattern: str | Path, scans: Sequence[str] = ()) -> list[Path]:
    """The images that a file, a folder (not its sub-folders) or a glob names, sorted; hidden files
    are left out.

    Args:
        scans: other suffixes that are taken, of files of science; where a folder or a glob has
            pictures as well, those alone.

    Raises:
        ImageError: nothing is there, or it is no image by its suffix.
    """
    allowed = f"images end in {', '.join(dict.fromkeys((*SUFFIXES, *scans)))}"
    path = Path(pattern).expanduser()
    if path.is_file():
        if not path.name.lower().endswith((*SUFFIXES, *scans)):
            raise ImageError(
                f"{pattern} is no image by its suffix {path.suffix!r}; {allowed}. Convert "
                "the file first."
            )
        return [path]
    candidates = (
        list(path.iterdir())
        if path.is_dir()
        else [Path(p) for p in glob.glob(str(path), recursive=True)]
    )
    files = sorted(p for p in candidates if not p.name.startswith(".") and p.is_file())
    found = [p for p in files if p.suffix.lower() in SUFFIXES]
    found = found or [p for p in files if p.name.lower().endswith(tuple(scans))]
    if not found:
        what = "folder" if path.is_dir() else "glob" if glob.has_magic(str(path)) else "path"
        state = (
            f"holds no images ({len(candidates)} other entries)"
            if candidates
            else "is empty"
            if path.is_dir()
            else "matches nothing"
        )
        raise ImageError(
            f"the {what} {pattern} {state}; {allowed}. Give an image, a folder of images or "
            "a quoted glob like 'in/*.png'."
        )
    return found


@dataclass(frozen=True)
class Stored:
    """A picture as its file holds it, upright.

    Attributes:
        colour: (C, H, W), C is 1 or 3, in the units of the file.
        alpha: (1, H, W) in [0, 1], 1 being opaque; None where the file has none.
        full: the value of ``colour`` that is white: 255, 65535, ...; 1 for floats.
        kind: of the numbers: ``"u"`` unsigned, ``"i"`` signed, ``"f"`` floating point. The white of
            the last two is a guess: their files do not declare it.
    """

    colour: Tensor
    alpha: Tensor | None
    full: float
    kind: str

    @property
    def grey(self) -> Tensor:
        """(H, W), luma (Rec. 601) of colour."""
        if len(self.colour) == 1:
            return self.colour[0]
        return (self.colour * self.colour.new_tensor(LUMA).view(3, 1, 1)).sum(0)


def read_image(path: str | Path, channels: int | None = None, max_pixels: int = PIXELS) -> Tensor:
    """Reads one PNG, JPEG, TIFF, WebP or BMP file, of 8 or 16 bits.

    EXIF orientation is applied. Stored values are taken as they are: colour profiles and gamma are
    ignored. Alpha is composited over white, with a warning. Palettes become colour; CMYK (8 bits)
    is converted without a profile. Of a TIFF, more than 8 bits are scaled by the largest value of
    its declared bits, and floats must lie in [0, 1].

    Args:
        channels: 1 turns colour into luma (Rec. 601), 3 repeats grey; None keeps what the file has.
        max_pixels: width times height above which the file is refused before it is decoded.

    Returns:
        (1, C, H, W) float32 in [0, 1].

    Raises:
        ImageError: missing, too large, broken, several frames or pages, or a kind of image that is
            not supported.
    """
    if channels not in (None, 1, 3):
        raise ValueError(f"channels must be 1, 3 or None, got {channels}")
    stored = read_stored(path, max_pixels)
    if stored.kind == "i":
        raise ImageError(
            f"{path} holds signed whole numbers, whose white is not declared; pictures are "
            "unsigned or float. Convert it first."
        )
    if stored.kind == "f":
        low, high = (float(v) for v in stored.colour.aminmax())
        if not (low >= 0 and high <= 1):  # also catches nan
            raise ImageError(
                f"{path} holds floats from {low:g} to {high:g}; they must lie in [0, 1]. "
                "Rescale them first."
            )
    x = (stored.colour / stored.full).float()[None]
    if stored.alpha is not None:
        _warn_of_alpha()
        x = x * stored.alpha + (1 - stored.alpha)
    if channels == 1 and x.shape[1] == 3:
        x = (x * torch.tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
    elif channels == 3 and x.shape[1] == 1:
        x = x.expand(-1, 3, -1, -1)
    return x.contiguous().clamp(0, 1)


def read_stored(path: str | Path, max_pixels: int = PIXELS, what: str = "an image") -> Stored:
    """Reads the picture that :func:`read_image` reads, before any range or background is assumed.

    Args:
        what: what the file is to be, for messages.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ImageError(f"no image file at {path}")
    try:
        with path.open("rb") as file:
            header = file.read(26)
        stored = None
        if header[:2] in (b"II", b"MM"):
            stored = _read_deep_tiff(path, max_pixels)
        return stored or _read(path, header, max_pixels)
    except ImageError:
        raise
    # decoders raise OSError, SyntaxError, RuntimeError, struct.error, ... on broken files
    except Exception as error:
        raise ImageError(
            f"{path} cannot be read as {what}, it may be truncated or no image: "
            f"{type(error).__name__}: {error}"
        ) from error


def _stored(values: np.ndarray, alpha: bool, full: float, kind: str, orientation: int) -> Stored:
    """From values (H, W, C or C + alpha); alpha is in the units of the colours."""
    real = np.float64 if full > 65535 else np.float32
    x = torch.from_numpy(values.astype(real)).permute(2, 0, 1)
    x = _upright(x, orientation).contiguous()
    if not alpha:
        return Stored(x, None, full, kind)
    return Stored(x[:-1], (x[-1:] / full).float(), full, kind)


@cache
def _warn_of_alpha() -> (
    None
):  # once a process: Python's own filter forgets whenever a library changes the filters
    warnings.warn("images with alpha are composited over white; this is said once", stacklevel=3)


def _read(path: Path, header: bytes, max_pixels: int) -> Stored:
    """Anything that Pillow opens."""
    from PIL import Image

    try:
        image: Image.Image = Image.open(path, formats=("PNG", "JPEG", "TIFF", "WEBP", "BMP"))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(
            f"{path} is too large to be opened safely: {error} (PIL.Image.MAX_IMAGE_PIXELS)"
        ) from error
    with image:
        _check_size(path, *image.size, max_pixels)
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format != "MPO":  # MPO: a phone's JPEG with a preview behind it
            raise ImageError(
                f"{path} holds {frames} frames; save the one you want as an image of its own"
            )
        image.load()
        orientation = image.getexif().get(0x0112, 1)
        if header.startswith(_PNG) and header[24] == 16:
            values = _decode_png16(path, image.size, header[25], image.info.get("transparency"))
            return _stored(values, values.shape[-1] in (2, 4), 65535, "u", orientation)
        if image.mode.startswith("I;16"):  # of a TIFF whose compression tifffile does not have
            return _stored(np.asarray(image)[..., None], False, 65535, "u", orientation)
        alpha = image.has_transparency_data
        mode = ("L" if image.mode in ("1", "L", "LA", "La") else "RGB") + ("A" if alpha else "")
        values = np.asarray(image.convert(mode))
    return _stored(values.reshape(*values.shape[:2], -1), alpha, 255, "u", orientation)


def _decode_png16(
    path: Path, size: tuple[int, int], kind: int, transparent: int | tuple[int, ...] | None
) -> np.ndarray:
    """16 bits of grey or colour, which Pillow would reduce to 8; ``kind`` is the PNG's colour
    type."""
    from kornia_rs.io import decode_image_png_u16  # kornia's decoder; torchvision's is deprecated

    if kind == 4:
        raise ImageError(
            f"{path} is a PNG of 16-bit grey with alpha, which is not supported; remove the "
            "alpha or save it as TIFF"
        )
    values = np.asarray(
        decode_image_png_u16(path.read_bytes(), size[::-1], {0: "mono", 2: "rgb", 6: "rgba"}[kind])
    )
    if (
        transparent is not None
    ):  # one colour that counts as transparent, instead of an alpha channel
        opaque = (values != np.asarray(transparent)).any(-1, keepdims=True)
        values = np.concatenate([values, opaque * np.uint16(65535)], axis=-1)
    return values


def _read_deep_tiff(path: Path, max_pixels: int) -> Stored | None:
    """A TIFF of more than 8 bits; None when Pillow is the better reader."""
    import tifffile

    with quiet(), tifffile.TiffFile(path) as tif:
        page = tif.pages.first
        _check_size(path, page.imagewidth, page.imagelength, max_pixels)
        if len(tif.series[0]) > 1:
            raise ImageError(
                f"{path} holds {len(tif.series[0])} pages; save the one you want as an "
                "image of its own"
            )
        bits, kind = page.bitspersample, np.dtype(page.dtype or "V").kind
        if kind in "bu" and bits <= 8:
            return None
        colours = {"MINISBLACK": 1, "MINISWHITE": 1, "RGB": 3}.get(
            getattr(page.photometric, "name", ""), 0
        )
        alpha = tuple(page.extrasamples)
        plain = page.axes in ("YX", "YXS", "SYX") and page.samplesperpixel == colours + len(alpha)
        if kind not in "uif" or not plain or alpha not in ((), (1,), (2,)):
            raise ImageError(
                f"{path} is a TIFF of {page.samplesperpixel} samples ({page.photometric!s}, "
                f"extra samples {alpha}), "
                f"{page.dtype}, axes {page.axes}; more than 8 bits are read as grey or RGB "
                "with or without alpha, "
                "unsigned or float. Convert it first."
            )
        white = page.photometric == tifffile.PHOTOMETRIC.MINISWHITE
        try:
            stored = page.asarray()
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            if kind == "u" and bits == 16 and page.axes == "YX" and not white:
                return None  # Pillow decodes more, but 16 bits of grey only
            raise ImageError(
                f"{path} is a TIFF compressed as {getattr(page.compression, 'name', 'unknown')}, "
                "which needs the package imagecodecs: pip install imagecodecs, or save the file "
                "without compression"
            ) from error
        orientation = page.tags.valueof("Orientation", 1)
    stored = (
        stored[..., None]
        if page.axes == "YX"
        else np.moveaxis(stored, 0, -1)
        if page.axes == "SYX"
        else stored
    )
    if (
        stored.shape != (page.imagelength, page.imagewidth, page.samplesperpixel)
        or stored.size == 0
    ):
        raise ImageError(f"{path} is a broken TIFF: its tags and its data disagree")
    full = 1.0 if kind == "f" else 2.0 ** (bits - (kind == "i")) - 1
    values: Any = stored.astype(np.float32 if bits <= 16 or kind == "f" else np.float64)
    if white:
        values[..., 0] = full - values[..., 0]
    if alpha == (1,):  # colours are stored multiplied by alpha
        values[..., :-1] *= full / np.maximum(values[..., -1:], 1e-6 * full)
    return _stored(values, bool(alpha), full, kind, orientation)


@contextmanager
def quiet() -> Iterator[None]:
    """Without tifffile's log of everything that is odd in a broken file: one error says enough."""
    log = logging.getLogger("tifffile")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        log.setLevel(level)


def _check_size(path: Path, width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageError(
            f"{path} declares {width} x {height} pixels, more than the {max_pixels:,} "
            "allowed; crop or downscale it, "
            "or pass a larger max_pixels if you trust the file"
        )


def _upright(x: Tensor, orientation: int) -> Tensor:
    """Undoes an EXIF orientation, 1 to 8; anything else is taken as upright."""
    x = x.transpose(-1, -2) if orientation in (5, 6, 7, 8) else x
    return x.flip(
        {2: (-1,), 3: (-1, -2), 4: (-2,), 6: (-1,), 7: (-1, -2), 8: (-2,)}.get(orientation, ())
    )


def sample_photo(size: int = 128) -> tuple[Tensor, str]:
    """A cat's face: a crop of scikit-image's ``chelsea`` (CC0, by Stefan van der Walt), which its
    wheel contains.

    Args:
        size: side in pixels, at most 256; smaller ones are averages over areas.

    Returns:
        (1, 3, size, size) in [0, 1], and the photograph's name.
    """
    from skimage import data

    if not 1 <= size <= 256:
        raise ValueError(f"the sample photo has 1 to 256 pixels a side, got {size}")
    # Its file, since data.chelsea() imports what writes and converts images, too.
    crop = read_image(Path(data.__file__).parent / "chelsea.png")[..., 20:276, 100:356]
    return functional.adaptive_avg_pool2d(crop, size), "chelsea"
