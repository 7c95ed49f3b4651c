"""Checks of metrics: ``metric(x, reference)`` of images (B, C, H, W) in [0, 1], one value per
image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from invdiff.images import sample_photo
from invdiff.testing.imports import importing
from invdiff.testing.operators import draw
from invdiff.testing.randomness import generators, moved, seed_all
from invdiff.testing.report import distance, expect, within

SIDES = (45, 64)
NOISE = (0.02, 0.1, 0.4)
"""Standard deviations of the noise on images that are ever less like the reference."""


@dataclass(frozen=True)
class Case:
    """A metric under test.

    Attributes:
        metric: takes images and their references.
        module: whose import is tried.
    """

    metric: Callable[[Tensor, Tensor], Tensor]
    module: str


def pair(noise: float = 0.1, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Three noisy photographs, and the photographs themselves: odd, not square."""
    photo = sample_photo(64)[0][..., : SIDES[0], : SIDES[1]]
    reference = torch.cat([photo, photo.flip(-1), photo.flip(1)])
    x = (reference + noise * draw(*reference.shape, dtype=torch.float32)).clamp(0, 1)
    return x.to(dtype), reference.to(dtype)


def shapes(case: Case) -> str:
    """One value per image, at odd and non-square sizes, on the CPU."""
    values = case.metric(*pair())
    expect(
        isinstance(values, Tensor) and values.shape == (3,),
        f"of 3 images it returns {_kind(values)}",
    )
    expect(
        values.device.type == "cpu" and values.is_floating_point(),
        f"it returns {values.dtype} on {values.device}",
    )
    return f"(3, 3, {SIDES[0]}, {SIDES[1]}) -> (3,)"


def _kind(value: object) -> str:
    return (
        f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
    )


def dtypes(case: Case) -> str:
    """float32 and float64 images give the same values."""
    single, double = (
        case.metric(*pair(dtype=dtype)).double() for dtype in (torch.float32, torch.float64)
    )
    return within("float32 from float64", distance(single, double), 1e-3)


def order(case: Case) -> str:
    """More noise is worse, in one direction for every image, that declared as ``better`` if any,
    and the reference itself is best."""
    reference = pair()[1]
    values = torch.stack(
        [case.metric(reference, reference), *(case.metric(*pair(noise)) for noise in NOISE)]
    ).double()
    expect(
        not bool(values.isnan().any()) and bool(values[1:].isfinite().all()),
        f"values are not numbers: {values.tolist()}",
    )
    rising = values[1:] > values[:-1]
    expect(
        bool(rising.all()) or not bool((values[1:] >= values[:-1]).any()),
        f"values do not follow the noise: {values.tolist()}",
    )
    better = "lower" if rising.all() else "higher"
    declared = getattr(case.metric, "better", better)
    expect(declared == better, f"it declares better = {declared!r}, but {better} values are")
    return f"{better} is better: {', '.join(f'{v:.3g}' for v in values.flatten(1)[:, 0])}"


def batch(case: Case) -> str:
    """An image alone gives what it gives in a batch."""
    x, reference = pair()
    together = case.metric(x, reference)
    worst = max(
        distance(case.metric(x[k : k + 1], reference[k : k + 1]), together[k : k + 1])
        for k in range(3)
    )
    return within("alone from in a batch", worst, 1e-4)


def repeatable(case: Case) -> str:
    """The same images give the same values, whatever the global generators hold."""
    first = case.metric(*pair())
    seed_all(1)
    expect(torch.equal(case.metric(*pair()), first), "two calls with the same images differ")
    return "equal under another global seed"


def global_rng(case: Case) -> str:
    """The global generators are not advanced."""
    before = generators()
    case.metric(*pair())
    expect(
        not (names := moved(before)), f"it advances the global generator of {' and '.join(names)}"
    )
    return "torch, numpy and random untouched"


def unchanged(case: Case) -> str:
    """The images are left as they are, and no graph hangs on the values."""
    x, reference = pair()
    before = x.clone(), reference.clone()
    values = case.metric(x.requires_grad_(), reference)
    expect(torch.equal(x, before[0]) and torch.equal(reference, before[1]), "it changed the images")
    expect(not values.requires_grad, "the values carry a graph; detach them")
    expect(torch.is_grad_enabled(), "it switched gradients off for the whole process")
    return "images as before, values without a graph"


def refuses(case: Case) -> str:
    """Images that do not have their reference's shape are refused, not broadcast."""
    x, reference = pair()
    try:
        case.metric(x, reference[:1])
    except (ValueError, TypeError) as error:
        return f"says {str(error)[:60]!r}"
    raise AssertionError(
        "3 images and 1 reference are compared without an error; raise ValueError where "
        "shapes differ"
    )


def imports(case: Case) -> str:
    """See :func:`~invdiff.testing.imports.importing`."""
    return importing(case.module)


CHECKS: dict[str, Callable[[Case], str]] = {
    f.__name__: f
    for f in (shapes, dtypes, order, batch, repeatable, global_rng, unchanged, refuses, imports)
}
