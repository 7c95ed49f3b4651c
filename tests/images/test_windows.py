"""Windows cover what is missing once, with context, for less than the image."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from invdiff.images.windows import Window, windows


def photograph(*holes: tuple[slice, slice], shape: tuple[int, int] = (500, 700)) -> Tensor:
    missing = torch.zeros(shape, dtype=torch.bool)
    for hole in holes:
        missing[hole] = True
    return missing


def scratch(shape: tuple[int, int] = (500, 700)) -> Tensor:
    """From the upper left to the lower right, five pixels wide."""
    rows, columns = torch.arange(shape[0])[:, None], torch.arange(shape[1])
    return (columns - rows * shape[1] / shape[0]).abs() < 2.5


def specks() -> Tensor:
    missing = torch.zeros(500, 700, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    for _ in range(12):
        top, left = (int(torch.randint(n - 9, (), generator=generator)) for n in (500, 700))
        missing[top : top + 9, left : left + 9] = True
    return missing


def cost(found: list[Window]) -> int:
    return sum(window.height * window.width for window in found)


MASKS = {
    "none": photograph(),
    "one": photograph((slice(200, 240), slice(300, 350))),
    "at the border": photograph((slice(0, 5), slice(690, 700)), (slice(480, 500), slice(0, 30))),
    "two near": photograph((slice(100, 110), slice(100, 110)), (slice(112, 120), slice(120, 125))),
    "large": photograph((slice(100, 260), slice(300, 520))),
    "thin and high": photograph((slice(3, 497), slice(350, 352))),
    "scratch": scratch(),
    "specks": specks(),
    "random": torch.rand(500, 700, generator=torch.Generator().manual_seed(0)) < 0.7,
    "small": photograph((slice(5, 9), slice(3, 7)), shape=(40, 30)),
    "narrow": photograph((slice(50, 90), slice(3, 7)), shape=(400, 30)),
    "all": torch.ones(80, 90, dtype=torch.bool),
}


@pytest.mark.parametrize("margin", [None, 0, 31])
@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("name", MASKS)
def test_every_missing_pixel_is_taken_once_and_has_context(
    name: str, size: int, margin: int | None
) -> None:
    missing = MASKS[name]
    found = windows(missing, size, multiple=16, margin=margin)
    taken = torch.zeros(missing.shape, dtype=torch.int)
    reach = size // 4 if margin is None else margin
    for window in found:
        inner = window.crop(taken)
        inner += window.take.int()
        if (window.height, window.width) == missing.shape:
            continue
        assert (window.height, window.width) == tuple(min(size, n) for n in missing.shape)
        rows, columns = window.take.nonzero().T
        for place, begin, side, n in (
            (rows, window.top, window.height, missing.shape[0]),
            (columns, window.left, window.width, missing.shape[1]),
        ):
            assert begin >= 0 and begin + side <= n
            assert begin == 0 or int(place.min()) >= reach
            assert begin + side == n or side - 1 - int(place.max()) >= reach
    assert torch.equal(taken, missing.int())
    assert cost(found) <= missing.numel()


def test_what_it_costs() -> None:
    """Of a photograph of 700x500 pixels whose missing share is about 3 %."""
    assert windows(MASKS["none"], 64) == []
    assert len(windows(MASKS["one"], 128)) == 1 and len(windows(MASKS["two near"], 64)) == 1
    assert len(windows(MASKS["small"], 64)) == 1
    large = photograph((slice(100, 200), slice(300, 405)))
    assert large.float().mean() == pytest.approx(0.03)
    assert cost(windows(large, 256)) == 256**2 and cost(windows(large, 64)) < 0.25 * 500 * 700
    assert cost(windows(MASKS["scratch"], 64)) < 0.35 * 500 * 700
    assert cost(windows(MASKS["specks"], 64)) <= 12 * 64**2
    (whole,) = windows(MASKS["random"], 64)
    assert (whole.height, whole.width) == (500, 700) and torch.equal(whole.take, MASKS["random"])


def test_a_hole_that_fits_stands_in_the_middle() -> None:
    (window,) = windows(photograph((slice(200, 220), slice(300, 310))), 64)
    assert (window.top, window.left) == (178, 273)
    (window,) = windows(photograph((slice(0, 4), slice(696, 700))), 64)
    assert (window.top, window.left) == (0, 636)


def test_windows_are_pasted() -> None:
    x = torch.zeros(1, 3, 500, 700)
    for window in windows(MASKS["scratch"], 64):
        x = window.paste(x, window.crop(torch.ones_like(x)))
    assert torch.equal(x, MASKS["scratch"].float().expand_as(x))


def test_sizes_are_rounded_up_to_the_multiple() -> None:
    (window,) = windows(MASKS["one"], 100, multiple=32)
    assert (window.height, window.width) == (128, 128)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((torch.zeros(3, 3), 64), "bool"),
        ((torch.zeros(1, 3, 3).bool(), 64), r"\(H, W\)"),
        ((torch.zeros(3, 3).bool(), 0), "positive"),
        ((torch.zeros(3, 3).bool(), 64, 1, 32), "below half of the size 64"),
    ],
)
def test_what_cannot_be(arguments: tuple, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        windows(*arguments)
