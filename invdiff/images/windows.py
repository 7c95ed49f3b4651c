"""Windows around what is missing: a small hole costs a small part of a large photograph."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Window:
    """A part of an image, and the missing pixels that are restored in it.

    Attributes:
        top, left, height, width: in pixels of the image.
        take: (height, width) bool, which pixels of the image are taken from this window. The others
            in it, missing or not, are its context.
    """

    top: int
    left: int
    height: int
    width: int
    take: Tensor

    def crop(self, x: Tensor) -> Tensor:
        """The window of x (..., H, W)."""
        return x[..., self.top : self.top + self.height, self.left : self.left + self.width]

    def paste(self, x: Tensor, restored: Tensor) -> Tensor:
        """x (..., H, W) with the pixels that are taken from ``restored`` (..., height, width)."""
        pasted = x.clone()
        self.crop(pasted)[..., self.take] = restored[..., self.take]
        return pasted


def windows(
    missing: Tensor, size: int, multiple: int = 1, margin: int | None = None
) -> list[Window]:
    """Windows of one size that cover everything missing, with known pixels around it.

    Every missing pixel is taken from one window, in which it is ``margin`` pixels away from each
    side that is not the image's. A connected hole that fits into a window is taken from one as a
    whole, in its middle; a larger one, such as a scratch across the photograph, from several that
    follow it: restored in their order, with what was pasted before as known, they meet without a
    seam. Where windows would cost as much as the image, there is one, which is the image.

    Args:
        missing: (H, W) bool.
        size: side of the squares that the network is made for; shorter where the image is.
        multiple: of the sides, which the network needs; ``size`` is rounded up to it.
        margin: of context, below half of the size; None is a quarter of it.

    Returns:
        The windows from top to bottom; none where nothing is missing.

    Raises:
        ValueError: a mask or sizes that cannot be.
    """
    if missing.ndim != 2 or missing.dtype != torch.bool:
        raise ValueError(f"missing must be (H, W) bool, got {missing.dtype} {tuple(missing.shape)}")
    if size < 1 or multiple < 1:
        raise ValueError(f"size and multiple must be positive, got {size} and {multiple}")
    size += -size % multiple
    margin = size // 4 if margin is None else margin
    if not 0 <= margin < size / 2:
        raise ValueError(
            f"margin must be at least 0 and below half of the size {size}, got {margin}"
        )
    from scipy.ndimage import find_objects, label

    (h, w), rest = missing.shape, missing.cpu().numpy().copy()
    whole = Window(0, 0, h, w, missing.cpu().clone())
    height, width = min(size, h), min(size, w)
    made: list[Window] = []
    while rest.any():
        if (len(made) + 1) * height * width >= h * w:
            return [whole]
        holes, _ = label(rest, [[1] * 3] * 3)
        first, *others = find_objects(holes)  # the first begins topmost
        if first[0].stop - first[0].start > height - 2 * margin:
            # The upper part of a hole that is too high, as far as the middle of a window reaches.
            rows = slice(first[0].start, first[0].start + max(1, height - 2 * margin))
            columns = (holes[rows] == 1).any(0).nonzero()[0]
            first = (rows, slice(int(columns[0]), int(columns[-1]) + 1))
        if first[1].stop - first[1].start > width - 2 * margin:
            first = (first[0], slice(first[1].start, first[1].start + max(1, width - 2 * margin)))
        for other in others:  # neighbours that fit beside it
            both = tuple(
                slice(min(a.start, b.start), max(a.stop, b.stop))
                for a, b in zip(first, other, strict=True)
            )
            if all(
                s.stop - s.start <= side - 2 * margin
                for s, side in zip(both, (height, width), strict=True)
            ):
                first = both
        (top, bottom), (left, right) = (
            _around(hole, side, n)
            for hole, side, n in zip(first, (height, width), (h, w), strict=True)
        )
        middle = (
            slice(top and top + margin, h if bottom == h else bottom - margin),
            slice(left and left + margin, w if right == w else right - margin),
        )
        take = torch.zeros(h, w, dtype=torch.bool)
        take[middle] = torch.from_numpy(rest[middle])
        rest[middle] = False
        made.append(Window(top, left, height, width, take[top:bottom, left:right].clone()))
    return made


def _around(hole: slice, side: int, n: int) -> tuple[int, int]:
    """Begin and end of ``side`` pixels around a hole, within 0 and n."""
    begin = min(max((hole.start + hole.stop - side) // 2, 0), n - side)
    return begin, begin + side
