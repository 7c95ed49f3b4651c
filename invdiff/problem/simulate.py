"""Measurements made of known images: ``y = A(x) + sigma n``, with Poisson noise before it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from invdiff.noise import generator_of
from invdiff.problem.measurement import Measurement, per_image
from invdiff.problem.operator import Operator, check_tensor

GAINS = 1e-9, 1e9
"""Of Poisson noise: counts that are numbers, and that are not all zero."""


def simulated(
    operator: Operator,
    x: Tensor,
    sigma: float | Sequence[float] | Tensor,
    seed: int,
    gain: float,
    image_ids: Sequence[int] | None,
) -> Measurement:
    """What :meth:`Operator.measure` says."""
    if operator.unknown:
        raise ValueError(
            f"the {' and '.join(operator.unknown)} of this {operator.kind} is unknown, so that "
            "nothing can be simulated with it: give what was measured (--measurement FILE, or "
            "Measurement(y, operator, sigma)), or say what it is"
        )
    check_tensor(x, "x")
    if not x.is_floating_point() and not x.is_complex():
        raise TypeError(
            f"x must be a float tensor, images in [0, 1]; got {x.dtype} (divide 8-bit "
            "values by 255)"
        )
    if gain != 0 and not GAINS[0] <= gain <= GAINS[1]:
        raise ValueError(
            f"gain must be 0, for no Poisson noise, or between {GAINS[0]:g} and {GAINS[1]:g}, "
            f"got {gain:.6g}"
        )
    check_range(x)
    bound = (operator.of_complex_images() if x.is_complex() else operator).bind(tuple(x.shape[1:]))
    y = bound(x)
    if gain > 0 and y.is_complex():
        raise ValueError(f"Poisson noise is of real counts, but {operator.kind} gives complex y")
    std = per_image(sigma, y)
    generators = [generator_of("measurement", seed, k) for k in (image_ids or range(len(y)))]
    if gain > 0:
        counts = [
            torch.poisson(row.clamp(min=0).cpu() / gain, generator=g)
            for row, g in zip(y, generators, strict=True)
        ]
        y = gain * torch.stack(counts).to(y)
    noise = torch.stack(
        [
            torch.randn(row.shape, dtype=row.dtype, generator=g)
            for row, g in zip(y, generators, strict=True)
        ]
    )
    y = y + std * noise.to(y.device)  # Measurement drops it where nothing is measured
    if gain > 0:
        std = poisson_sigma(y, std, gain)
    return Measurement(y, bound, std)


def poisson_sigma(y: Tensor, sigma: float | Tensor, gain: float) -> Tensor:
    """The standard deviation of ``y = gain * Poisson(A(x) / gain) + sigma * n`` at each pixel, as
    estimated from y itself: ``sqrt(sigma^2 + gain * y)``, with at least one count."""
    return torch.sqrt(torch.as_tensor(sigma) ** 2 + gain * y.clamp(min=gain))


def check_range(x: Tensor) -> None:
    """Warns where x looks like images, but not like images in [0, 1]: latents, vectors and toys of
    a few pixels are as they are."""
    if x.ndim != 4 or x.shape[1] not in (1, 3) or min(x.shape[2:]) < 16 or x.is_meta or len(x) == 0:
        return
    if x.is_complex():
        return
    low, high = (float(v) for v in x.detach().aminmax())
    if low < -0.5 or high > 1.5:
        range_, how = ("[0, 255]", "x / 255") if high > 2 else ("[-1, 1]", "(x + 1) / 2")
        warnings.warn(
            f"x has values from {low:.3g} to {high:.3g}, but images are in [0, 1] here, "
            "whatever the network's own range; "
            f"if these are in {range_}, give {how}",
            stacklevel=4,
        )
