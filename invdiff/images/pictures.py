"""Pictures for people: labelled grids, maps of errors and of standard deviations."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image, ImageFont
from invdiff.images.write import VISIBLE, enlargement, one_image, pixels_of, resized

HEAT_LIMIT = 0.2
"""The error or standard deviation that :func:`error_map` and :func:`std_map` paint brightest."""


# Ten equidistant colours of matplotlib's inferno (CC0).
_INFERNO = "000004 1b0c42 4b0c6b 781c6d a52c60 cf4446 ed6925 fb9a06 f7d03c fcffa4"


def grid(
    images: Sequence[Tensor],
    labels: Sequence[str] | None = None,
    columns: int | None = None,
    padding: int = 8,
    *,
    rows: Sequence[str] | None = None,
    height: int = VISIBLE,
) -> Tensor:
    """Images side by side on white, labels above them: (3, H, W).

    Panels are brought to the height of the largest by nearest-neighbour interpolation, and all are
    enlarged by one integer so that none is lower than ``height``. Grey stays grey. Labels are
    wrapped; Greek letters are spelt out, since Pillow's built-in font has none.

    Args:
        images: (C, H, W) or (1, C, H, W) in [0, 1] each, or a batch (B, C, H, W).
        labels: one per image.
        columns: panels in a row; None puts all in one.
        padding: pixels around panels.
        rows: one label per row, at its left.
        height: pixels that a panel has at least.
    """
    from PIL import Image, ImageDraw, ImageFont

    if (
        len(images) == 0
        or (labels is not None and len(labels) != len(images))
        or (columns is not None and columns < 1)
    ):
        raise ValueError(
            "a grid needs images, a label for each and at least one column, got "
            f"{len(images)}, {labels}, {columns}"
        )
    panels = [one_image(x).detach().to("cpu", torch.float32) for x in images]
    tallest = max(p.shape[1] for p in panels)
    height = tallest * enlargement(tallest, height)
    panels = [resized(p, height, round(height * p.shape[2] / p.shape[1])) for p in panels]
    columns = min(columns or len(panels), len(panels))
    if rows is not None and len(rows) != math.ceil(len(panels) / columns):
        raise ValueError(
            f"rows needs a label for each of the {math.ceil(len(panels) / columns)} rows, "
            f"got {len(rows)}"
        )

    size = max(18, height // 20)
    font = ImageFont.load_default(size)
    texts = [_spelt(label) for label in labels] if labels is not None else [""] * len(panels)
    # A column is as wide as its widest panel or word.
    needed = [
        max([p.shape[2], *(math.ceil(font.getlength(w)) for w in t.split())])
        for p, t in zip(panels, texts, strict=True)
    ]
    widths = [max(needed[c::columns]) for c in range(columns)]
    lines = [_wrapped(t, font, widths[i % columns]) for i, t in enumerate(texts)]
    line = round(1.3 * size)
    strips = [line * max(map(len, lines[i : i + columns])) for i in range(0, len(lines), columns)]

    beside = [_spelt(row) for row in rows or ()]
    margin = padding + max((math.ceil(font.getlength(t)) + padding for t in beside), default=0)
    extent = (
        margin + sum(w + padding for w in widths),
        padding + sum(s + height + padding for s in strips),
    )
    picture = Image.new("RGB", extent, "white")
    draw = ImageDraw.Draw(picture)
    for i, (panel, text) in enumerate(zip(panels, lines, strict=True)):
        row, column = divmod(i, columns)
        left = margin + sum(w + padding for w in widths[:column])
        top = padding + sum(s + height + padding for s in strips[:row]) + strips[row]
        for k, words in enumerate(text):  # the last line stands next to the panel
            draw.text((left, top - (len(text) - k) * line), words, fill="black", font=font)
        if beside and column == 0:
            draw.text(
                (padding, top + height // 2), beside[row], fill="black", font=font, anchor="lm"
            )
        picture.paste(Image.fromarray(pixels_of(panel, 8)).convert("RGB"), (left, top))
    return torch.from_numpy(_array(picture)).permute(2, 0, 1).float() / 255


def _array(picture: Image.Image) -> np.ndarray:
    import numpy as np

    return np.array(picture)


def _spelt(label: str) -> str:
    """A label in letters the font has: ``σ₀`` is ``sigma0``, ``×`` is ``x``."""

    def spell(c: str) -> str:
        name = unicodedata.name(c, "")
        if not name.startswith("GREEK"):
            return c
        return name.split()[-1].capitalize() if "CAPITAL" in name else name.split()[-1].lower()

    return "".join(map(spell, unicodedata.normalize("NFKC", label).replace("×", "x")))


def _wrapped(
    text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int
) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def viewable(x: Tensor, window: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    """A picture for people, (1 or 3, H, W) in [0, 1], of data that need not be one.

    Args:
        x: (C, H, W). Two channels are real and imaginary part, of which this is the magnitude; more
            than three are averaged.
        window: the values that become black and white.
    """
    low, high = window
    return ((_visible(x) - low) / (high - low)).clamp(0, 1)


def window_of(x: Tensor) -> tuple[float, float]:
    """The window, of :func:`viewable`, that the middle 99 % of the values of x lie in."""
    import numpy as np

    low, high = np.quantile(_visible(x).double().cpu().numpy(), [0.005, 0.995]).tolist()
    return (low, high) if high > low else (0.0, 1.0)


def phase(x: Tensor) -> Tensor:
    """The phase (1, H, W) of the real and imaginary part (2, H, W), from -pi, black, to pi."""
    return torch.atan2(x[1:], x[:1]) / math.tau + 0.5


def _visible(x: Tensor) -> Tensor:
    if len(x) in (1, 3):
        return x
    return x.square().sum(0, keepdim=True).sqrt() if len(x) == 2 else x.mean(0, keepdim=True)


def error_map(x: Tensor, reference: Tensor) -> Tensor:
    """Heat picture of the error per pixel, root mean square over channels: black is 0, yellow 0.2
    and more.

    The scale is that of :func:`std_map`, so that the two can be compared.

    Args:
        x, reference: (..., C, H, W) in [0, 1], of one shape.

    Returns:
        (..., 3, H, W).
    """
    if x.shape != reference.shape:
        raise ValueError(
            f"x and reference must have one shape, got {tuple(x.shape)} and "
            f"{tuple(reference.shape)}"
        )
    return std_map(x - reference)


def std_map(std: Tensor) -> Tensor:
    """Heat picture of a standard deviation (..., C, H, W), root mean square over channels: black is
    0, yellow 0.2 and more.

    Returns:
        (..., 3, H, W).
    """
    heat = (std.detach().to("cpu", torch.float32).square().mean(-3).sqrt() / HEAT_LIMIT).clamp(0, 1)
    colours = torch.tensor([list(bytes.fromhex(c)) for c in _INFERNO.split()]) / 255
    place = heat.nan_to_num(1.0) * (len(colours) - 1)
    low = place.long().clamp(max=len(colours) - 2)
    return torch.lerp(colours[low], colours[low + 1], (place - low)[..., None]).movedim(-1, -3)
