"""Reading, writing and picturing images: tensors (C, H, W) or (1, C, H, W), float in [0, 1], C is 1 or 3."""

from __future__ import annotations

import glob
import io
import math
import struct
import unicodedata
import warnings
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from invdiff.files import write_atomically

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image, ImageFont

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp")
HEAT_LIMIT = 0.2
"""The error or standard deviation that :func:`error_map` and :func:`std_map` paint brightest."""

_PNG = b"\x89PNG\r\n\x1a\n"
_VISIBLE = 256  # pictures lower than this are enlarged
# Ten equidistant colours of matplotlib's inferno (CC0).
_INFERNO = "000004 1b0c42 4b0c6b 781c6d a52c60 cf4446 ed6925 fb9a06 f7d03c fcffa4"


class ImageError(ValueError):
    """A file that cannot be used as an image, or an image that cannot be written."""


# Finding and reading -------------------------------------------------------------------------------------------------


def find_images(pattern: str | Path) -> list[Path]:
    """The images that a file, a folder (not its sub-folders) or a glob names, sorted; hidden files are left out.

    Raises:
        ImageError: nothing is there, or it is no image by its suffix.
    """
    allowed = f"images end in {', '.join(SUFFIXES)}"
    path = Path(pattern).expanduser()
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise ImageError(f"{pattern} is no image by its suffix {path.suffix!r}; {allowed}. Convert the file first.")
        return [path]
    candidates = list(path.iterdir()) if path.is_dir() else [Path(p) for p in glob.glob(str(path), recursive=True)]
    found = sorted(p for p in candidates if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file())
    if not found:
        what = "folder" if path.is_dir() else "glob" if glob.has_magic(str(path)) else "path"
        state = f"holds no images ({len(candidates)} other entries)" if candidates else "is empty" if path.is_dir() else "matches nothing"
        raise ImageError(f"the {what} {pattern} {state}; {allowed}. Give an image, a folder of images or a quoted glob like 'in/*.png'.")
    return found


def read_image(path: str | Path, channels: int | None = None, max_pixels: int = 64_000_000) -> Tensor:
    """Reads one PNG, JPEG, TIFF, WebP or BMP file, of 8 or 16 bits.

    EXIF orientation is applied. Stored values are taken as they are: colour profiles and gamma are ignored. Alpha is
    composited over white, with a warning. Palettes become colour; CMYK (8 bits) is converted without a profile. Of a
    TIFF, more than 8 bits are scaled by the largest value of its declared bits, and floats must lie in [0, 1].

    Args:
        channels: 1 turns colour into luma (Rec. 601), 3 repeats grey; None keeps what the file has.
        max_pixels: width times height above which the file is refused before it is decoded.

    Returns:
        (1, C, H, W) float32 in [0, 1].

    Raises:
        ImageError: missing, too large, broken, several frames or pages, or a kind of image that is not supported.
    """
    if channels not in (None, 1, 3):
        raise ValueError(f"channels must be 1, 3 or None, got {channels}")
    path = Path(path).expanduser()
    if not path.is_file():
        raise ImageError(f"no image file at {path}")
    try:
        with path.open("rb") as file:
            header = file.read(26)
        values, orientation = None, 1
        if header[:2] in (b"II", b"MM"):
            values, orientation = _read_deep_tiff(path, max_pixels)
        if values is None:
            values, orientation = _read(path, header, max_pixels)
    except ImageError:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, RuntimeError, struct.error, ... on broken files
        raise ImageError(f"{path} cannot be read as an image, it may be truncated or no image: {type(error).__name__}: {error}") from error

    x = torch.from_numpy(values).permute(2, 0, 1)[None]
    if x.shape[1] in (2, 4):
        _warn_of_alpha()
        colour, alpha = x[:, :-1], x[:, -1:]
        x = colour * alpha + (1 - alpha)
    x = _upright(x, orientation)
    if channels == 1 and x.shape[1] == 3:
        x = (x * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    elif channels == 3 and x.shape[1] == 1:
        x = x.expand(-1, 3, -1, -1)
    return x.contiguous().clamp(0, 1)


@cache
def _warn_of_alpha() -> None:  # once a process: Python's own filter forgets whenever a library changes the filters
    warnings.warn("images with alpha are composited over white; this is said once", stacklevel=3)


def _read(path: Path, header: bytes, max_pixels: int) -> tuple[np.ndarray, int]:
    """Values (H, W, C or C + alpha) in [0, 1] and the EXIF orientation of anything Pillow opens."""
    import numpy as np
    from PIL import Image

    try:
        image: Image.Image = Image.open(path, formats=("PNG", "JPEG", "TIFF", "WEBP", "BMP"))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{path} is too large to be opened safely: {error} (PIL.Image.MAX_IMAGE_PIXELS)") from error
    with image:
        _check_size(path, *image.size, max_pixels)
        if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # MPO: a phone's JPEG with a preview behind it
            raise ImageError(f"{path} holds {image.n_frames} frames; save the one you want as an image of its own")  # type: ignore[attr-defined]
        image.load()
        orientation = image.getexif().get(0x0112, 1)
        if header.startswith(_PNG) and header[24] == 16:
            return _decode_png16(path, image.size, header[25], image.info.get("transparency")), orientation
        mode = ("L" if image.mode in ("1", "L", "LA", "La") else "RGB") + ("A" if image.has_transparency_data else "")
        values = np.asarray(image.convert(mode), dtype=np.float32) / 255
    return values.reshape(*values.shape[:2], -1), orientation


def _decode_png16(path: Path, size: tuple[int, int], kind: int, transparent: int | tuple[int, ...] | None) -> np.ndarray:
    """16 bits of grey or colour, which Pillow would reduce to 8; ``kind`` is the PNG's colour type."""
    import numpy as np
    from kornia_rs.io import decode_image_png_u16  # kornia's decoder; torchvision's is deprecated

    if kind == 4:
        raise ImageError(f"{path} is a PNG of 16-bit grey with alpha, which is not supported; remove the alpha or save it as TIFF")
    values = np.asarray(decode_image_png_u16(path.read_bytes(), size[::-1], {0: "mono", 2: "rgb", 6: "rgba"}[kind]))
    if transparent is not None:  # one colour that counts as transparent, instead of an alpha channel
        opaque = (values != np.asarray(transparent)).any(-1, keepdims=True)
        values = np.concatenate([values, opaque * np.uint16(65535)], axis=-1)
    return values.astype(np.float32) / 65535


def _read_deep_tiff(path: Path, max_pixels: int) -> tuple[np.ndarray | None, int]:
    """Like :func:`_read` for a TIFF of more than 8 bits; None when Pillow is the better reader."""
    import numpy as np
    import tifffile

    with tifffile.TiffFile(path) as tif:
        page = tif.pages.first
        _check_size(path, page.imagewidth, page.imagelength, max_pixels)
        if len(tif.series[0]) > 1:
            raise ImageError(f"{path} holds {len(tif.series[0])} pages; save the one you want as an image of its own")
        bits, kind = page.bitspersample, np.dtype(page.dtype or "V").kind
        if kind in "bu" and bits <= 8:
            return None, 1
        colours = {"MINISBLACK": 1, "MINISWHITE": 1, "RGB": 3}.get(getattr(page.photometric, "name", ""), 0)
        alpha = tuple(page.extrasamples)
        plain = page.axes in ("YX", "YXS", "SYX") and page.samplesperpixel == colours + len(alpha)
        if kind not in "uf" or not plain or alpha not in ((), (1,), (2,)):
            raise ImageError(
                f"{path} is a TIFF of {page.samplesperpixel} samples ({page.photometric!s}, extra samples {alpha}), "
                f"{page.dtype}, axes {page.axes}; more than 8 bits are read as grey or RGB with or without alpha, "
                "unsigned or float. Convert it first."
            )
        stored = page.asarray()
        orientation = page.tags.valueof("Orientation", 1)
    stored = stored[..., None] if page.axes == "YX" else np.moveaxis(stored, 0, -1) if page.axes == "SYX" else stored
    if stored.shape != (page.imagelength, page.imagewidth, page.samplesperpixel) or stored.size == 0:
        raise ImageError(f"{path} is a broken TIFF: its tags and its data disagree")
    if kind == "f":
        low, high = stored.min(), stored.max()
        if not (low >= 0 and high <= 1):  # also catches nan
            raise ImageError(f"{path} holds floats from {low:g} to {high:g}; they must lie in [0, 1]. Rescale them first.")
        values = stored.astype(np.float32)
    else:
        values = (stored / np.float64(2**bits - 1)).astype(np.float32)
    if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
        values[..., 0] = 1 - values[..., 0]
    if alpha == (1,):  # colours are stored multiplied by alpha
        values[..., :-1] /= np.maximum(values[..., -1:], 1e-6)
    return values, orientation


def _check_size(path: Path, width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageError(
            f"{path} declares {width} x {height} pixels, more than the {max_pixels:,} allowed; crop or downscale it, "
            "or pass a larger max_pixels if you trust the file"
        )


def _upright(x: Tensor, orientation: int) -> Tensor:
    """Undoes an EXIF orientation, 1 to 8; anything else is taken as upright."""
    x = x.transpose(-1, -2) if orientation in (5, 6, 7, 8) else x
    return x.flip({2: (-1,), 3: (-1, -2), 4: (-2,), 6: (-1,), 7: (-1, -2), 8: (-2,)}.get(orientation, ()))


# Writing -------------------------------------------------------------------------------------------------------------


def write_image(path: str | Path, x: Tensor, bits: int = 8) -> None:
    """Writes an image, clamped to [0, 1] and rounded, in the format of the suffix; the file appears whole or not at all.

    PNG and TIFF (deflate) and WebP are lossless, JPEG has quality 95 without chroma subsampling.

    Args:
        x: (C, H, W) or (1, C, H, W), C is 1 or 3.
        bits: 8, or 16 for PNG and TIFF.

    Raises:
        ImageError: unknown suffix, 16 bits in a format that has 8, a missing folder, wrong shape, values not finite.
    """
    path = Path(path).expanduser()
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ImageError(f"{path}: the suffix {suffix!r} names no image format; images end in {', '.join(SUFFIXES)}")
    if bits not in (8, 16) or (bits == 16 and suffix not in (".png", ".tif", ".tiff")):
        raise ImageError(f"{path}: bits must be 8, or 16 for .png and .tif, got {bits}")
    if not path.parent.is_dir():
        raise ImageError(f"cannot write {path}: there is no folder {path.parent}; create it first")
    pixels = _pixels(x, bits)
    write_atomically(path, _encode_png16(pixels) if suffix == ".png" and bits == 16 else _encode(pixels, suffix))


def _pixels(x: Tensor, bits: int) -> np.ndarray:
    """(H, W) or (H, W, 3) unsigned integers."""
    import numpy as np

    x = _one_image(x).detach().to("cpu", torch.float32)
    if not x.isfinite().all():
        raise ImageError(f"the image has {int((~x.isfinite()).sum())} values that are not finite")
    pixels = (x.clamp(0, 1) * (2**bits - 1)).round().permute(1, 2, 0).numpy().astype(np.uint8 if bits == 8 else np.uint16)
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels


def _one_image(x: Tensor) -> Tensor:
    """(C, H, W)."""
    image = x[0] if x.ndim == 4 and x.shape[0] == 1 else x
    if image.ndim != 3 or image.shape[0] not in (1, 3) or image.numel() == 0:
        raise ImageError(f"an image is (C, H, W) or (1, C, H, W) with 1 or 3 channels, got {tuple(x.shape)}")
    return image


def _encode(pixels: np.ndarray, suffix: str) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    if suffix in (".tif", ".tiff"):
        import tifffile

        tifffile.imwrite(buffer, pixels, photometric="rgb" if pixels.ndim == 3 else "minisblack", compression="zlib", metadata=None)
    else:
        name = {".jpg": "JPEG", ".jpeg": "JPEG"}.get(suffix, suffix[1:].upper())
        options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(name, {})
        Image.fromarray(pixels).save(buffer, name, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def _encode_png16(pixels: np.ndarray) -> bytes:
    """A 16-bit PNG: Pillow writes 16 bits of grey only, kornia to paths only, torchvision none."""
    import numpy as np

    height, width = pixels.shape[:2]
    stored = np.ascontiguousarray(pixels, ">u2").view(np.uint8).reshape(height, -1)
    rows = np.full((height, 1 + stored.shape[1]), 2, np.uint8)  # each row starts with its filter: 2, difference to the row above
    rows[:, 1:] = stored - np.vstack([np.zeros_like(stored[:1]), stored[:-1]])

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 16, 2 if pixels.ndim == 3 else 0, 0, 0, 0)
    return _PNG + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows.tobytes())) + chunk(b"IEND", b"")


def write_gif(path: str | Path, frames: Sequence[Tensor], seconds: float = 3.0) -> None:
    """Writes an endless animation of ``seconds``, its last frame held 1.5 s longer; small frames are enlarged.

    Args:
        frames: images of one shape; evenly spaced ones are left out where there are more than 50 a second.

    Raises:
        ImageError: no frames, frames of differing shapes, a suffix other than .gif, or what write_image refuses.
    """
    from PIL import Image

    path = Path(path).expanduser()
    if path.suffix.lower() != ".gif":
        raise ImageError(f"an animation is written as .gif, got {path}")
    if not path.parent.is_dir():
        raise ImageError(f"cannot write {path}: there is no folder {path.parent}; create it first")
    shapes = {tuple(_one_image(f).shape) for f in frames}
    if len(shapes) != 1 or seconds <= 0:
        raise ImageError(f"an animation needs frames of one shape and a positive duration, got shapes {sorted(shapes)} and {seconds} s")
    count = min(len(frames), max(2, int(seconds / 0.02)))  # viewers slow anything faster down
    kept = [frames[i] for i in torch.linspace(0, len(frames) - 1, count, dtype=torch.float64).round().long().tolist()[:-1]] + [frames[-1]]
    pictures = [Image.fromarray(_pixels(_enlarged(_one_image(f)), 8)) for f in kept]
    # The octree is quick and keeps rare colours, which median cut loses; the frame that is looked at longest gets k-means.
    last = pictures[-1].convert("RGB").quantize(256, kmeans=1)
    pictures = [p.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE) for p in pictures[:-1]] + [last]
    duration = max(20, 10 * round(100 * seconds / count))
    buffer = io.BytesIO()
    pictures[0].save(
        buffer, "GIF", save_all=True, append_images=pictures[1:], loop=0, duration=[duration] * (count - 1) + [duration + 1500]
    )
    write_atomically(path, buffer.getvalue())


# Pictures ------------------------------------------------------------------------------------------------------------


def grid(
    images: Sequence[Tensor],
    labels: Sequence[str] | None = None,
    columns: int | None = None,
    padding: int = 8,
    *,
    rows: Sequence[str] | None = None,
    height: int = _VISIBLE,
) -> Tensor:
    """Images side by side on white, labels above them: (3, H, W).

    Panels are brought to the height of the largest by nearest-neighbour interpolation, and all are enlarged by one
    integer so that none is lower than ``height``. Grey stays grey. Labels are wrapped; Greek letters are spelt out,
    since Pillow's built-in font has none.

    Args:
        images: (C, H, W) or (1, C, H, W) in [0, 1] each, or a batch (B, C, H, W).
        labels: one per image.
        columns: panels in a row; None puts all in one.
        padding: pixels around panels.
        rows: one label per row, at its left.
        height: pixels that a panel has at least.
    """
    from PIL import Image, ImageDraw, ImageFont

    if len(images) == 0 or (labels is not None and len(labels) != len(images)) or (columns is not None and columns < 1):
        raise ValueError(f"a grid needs images, a label for each and at least one column, got {len(images)}, {labels}, {columns}")
    panels = [_one_image(x).detach().to("cpu", torch.float32) for x in images]
    tallest = max(p.shape[1] for p in panels)
    height = tallest * _factor(tallest, height)
    panels = [_resized(p, height, round(height * p.shape[2] / p.shape[1])) for p in panels]
    columns = min(columns or len(panels), len(panels))
    if rows is not None and len(rows) != math.ceil(len(panels) / columns):
        raise ValueError(f"rows needs a label for each of the {math.ceil(len(panels) / columns)} rows, got {len(rows)}")

    size = max(18, height // 20)
    font = ImageFont.load_default(size)
    texts = [_spelt(label) for label in labels] if labels is not None else [""] * len(panels)
    # A column is as wide as its widest panel or word.
    needed = [max([p.shape[2], *(math.ceil(font.getlength(w)) for w in t.split())]) for p, t in zip(panels, texts, strict=True)]
    widths = [max(needed[c::columns]) for c in range(columns)]
    lines = [_wrapped(t, font, widths[i % columns]) for i, t in enumerate(texts)]
    line = round(1.3 * size)
    strips = [line * max(map(len, lines[i : i + columns])) for i in range(0, len(lines), columns)]

    beside = [_spelt(row) for row in rows or ()]
    margin = padding + max((math.ceil(font.getlength(t)) + padding for t in beside), default=0)
    extent = (margin + sum(w + padding for w in widths), padding + sum(s + height + padding for s in strips))
    picture = Image.new("RGB", extent, "white")
    draw = ImageDraw.Draw(picture)
    for i, (panel, text) in enumerate(zip(panels, lines, strict=True)):
        row, column = divmod(i, columns)
        left = margin + sum(w + padding for w in widths[:column])
        top = padding + sum(s + height + padding for s in strips[:row]) + strips[row]
        for k, words in enumerate(text):  # the last line stands next to the panel
            draw.text((left, top - (len(text) - k) * line), words, fill="black", font=font)
        if beside and column == 0:
            draw.text((padding, top + height // 2), beside[row], fill="black", font=font, anchor="lm")
        picture.paste(Image.fromarray(_pixels(panel, 8)).convert("RGB"), (left, top))
    return torch.from_numpy(_array(picture)).permute(2, 0, 1).float() / 255


def _array(picture: Image.Image) -> np.ndarray:
    import numpy as np

    return np.array(picture)


def _factor(height: int, wanted: int = _VISIBLE) -> int:
    return math.ceil(wanted / height)


def _resized(x: Tensor, height: int, width: int) -> Tensor:
    return functional.interpolate(x[None], (height, max(1, width)), mode="nearest-exact")[0]


def _enlarged(x: Tensor) -> Tensor:
    factor = _factor(x.shape[1])
    return _resized(x, factor * x.shape[1], factor * x.shape[2])


def _spelt(label: str) -> str:
    """A label in letters the font has: ``σ₀`` is ``sigma0``, ``×`` is ``x``."""

    def spell(c: str) -> str:
        name = unicodedata.name(c, "")
        if not name.startswith("GREEK"):
            return c
        return name.split()[-1].capitalize() if "CAPITAL" in name else name.split()[-1].lower()

    return "".join(map(spell, unicodedata.normalize("NFKC", label).replace("×", "x")))


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def error_map(x: Tensor, reference: Tensor) -> Tensor:
    """Heat picture of the error per pixel, root mean square over channels: black is 0, yellow 0.2 and more.

    The scale is that of :func:`std_map`, so that the two can be compared.

    Args:
        x, reference: (..., C, H, W) in [0, 1], of one shape.

    Returns:
        (..., 3, H, W).
    """
    if x.shape != reference.shape:
        raise ValueError(f"x and reference must have one shape, got {tuple(x.shape)} and {tuple(reference.shape)}")
    return std_map(x - reference)


def std_map(std: Tensor) -> Tensor:
    """Heat picture of a standard deviation (..., C, H, W), root mean square over channels: black is 0, yellow 0.2 and more.

    Returns:
        (..., 3, H, W).
    """
    heat = (std.detach().to("cpu", torch.float32).square().mean(-3).sqrt() / HEAT_LIMIT).clamp(0, 1)
    colours = torch.tensor([list(bytes.fromhex(c)) for c in _INFERNO.split()]) / 255
    place = heat.nan_to_num(1.0) * (len(colours) - 1)
    low = place.long().clamp(max=len(colours) - 2)
    return torch.lerp(colours[low], colours[low + 1], (place - low)[..., None]).movedim(-1, -3)


def sample_photo(size: int = 128) -> tuple[Tensor, str]:
    """A cat's face: a crop of scikit-image's ``chelsea`` (CC0, by Stefan van der Walt), which its wheel contains.

    Args:
        size: side in pixels, at most 256; smaller ones are averages over areas.

    Returns:
        (1, 3, size, size) in [0, 1], and the photograph's name.
    """
    from skimage import data

    if not 1 <= size <= 256:
        raise ValueError(f"the sample photo has 1 to 256 pixels a side, got {size}")
    photo: Any = data.chelsea()
    crop = torch.from_numpy(photo[20:276, 100:356].copy()).permute(2, 0, 1)[None].float() / 255
    return functional.adaptive_avg_pool2d(crop, size), "chelsea"
