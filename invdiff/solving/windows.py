"""Restoration in windows around what is missing: a small hole costs a small part of an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from invdiff.images.windows import Window, windows
from invdiff.network import Denoiser
from invdiff.noise import seed_of
from invdiff.problem import DiagonalOperator, Measurement
from invdiff.solving.restoration import Restoration
from invdiff.solving.solve import solve

SIDE = 128
"""Side of a window for networks that take any size, in pixels."""


def find_windows(measurement: Measurement, denoiser: Denoiser) -> list[Window]:
    """The windows around what is missing in one photograph; none where it is of another kind, or
    where they would cost as much as the whole."""
    known = known_pixels(measurement)
    if known is None or len(measurement) != 1 or denoiser.autoencoder is not None:
        return []
    missing = (~known).reshape(-1, *known.shape[-2:]).any(0)
    fixed = denoiser.facts.fixed_size
    if fixed is not None and fixed[0] != fixed[1]:
        return []
    size = fixed[0] if fixed else max(SIDE, denoiser.image_size or 0)
    found = windows(missing, size, denoiser.multiple)
    area = sum(window.height * window.width for window in found)
    return found if area < missing.numel() else []


def known_pixels(measurement: Measurement) -> Tensor | None:
    """Which values of the images are measured as they are, bool, by a mask that leaves out the
    others; None of another operator."""
    operator = measurement.operator
    if len(measurement.image_shape) != 3 or not isinstance(operator, DiagonalOperator):
        return None
    s = operator.singular_values
    whole = torch.ones(s.shape[-2:], dtype=torch.bool)
    if operator.masked(whole) is None or bool(((s != 0) & (s != 1)).any()) or bool((s > 0).all()):
        return None
    return s > 0


def keep_known(measurement: Measurement, x: Tensor) -> Tensor:
    """Images x (..., B, C, H, W) with the pixels that a mask leaves as they were measured, as
    :func:`solve_windows` has them; x itself under another operator."""
    known = known_pixels(measurement)
    return x if known is None else torch.where(known.to(x.device), measurement.y.to(x), x)


def solve_windows(
    measurement: Measurement,
    denoiser: Denoiser,
    method: Any,
    found: Sequence[Window],
    *,
    num_samples: int = 1,
    image_ids: Sequence[int] = (0,),
    **options: Any,
) -> Restoration:
    """:func:`~invdiff.solve` in the windows that :func:`find_windows` found, one after the other:
    what one restored is known to the next, and pixels that are known stay as they were measured.

    Returns:
        The whole images. ``nfe`` and ``nbe`` count the evaluations of all windows, which are
        smaller than the image.

    Raises:
        ValueError: no windows, which means that the image is to be restored as a whole.
    """
    if not found:
        raise ValueError("no windows were found: restore the whole image, invdiff.solve")
    operator = measurement.operator
    assert isinstance(operator, DiagonalOperator)
    s = operator.singular_values
    known = (s > 0).reshape(-1, *s.shape[-2:]).all(0).cpu()
    x = measurement.y.repeat(num_samples, 1, 1, 1)  # every sample goes on with its own pixels
    many: dict[str, Any] = {
        k: v.repeat(num_samples, *(1,) * (v.ndim - 1)) if isinstance(v, Tensor) and v.ndim else v
        for k, v in options.items()
    }
    runs = []
    for k, window in enumerate(found):
        masked = operator.masked(window.crop(known))
        assert masked is not None
        ids = [seed_of("window", image_ids[0], j, k) % 2**48 for j in range(num_samples)]
        part = Measurement(window.crop(x), masked, measurement.sigma)
        runs.append(solve(part, denoiser, method, image_ids=ids, **many))
        x = window.paste(x, runs[-1].x.to(x))
        known = window.paste(known, torch.ones(window.height, window.width, dtype=torch.bool))
    sides = [[w.top, w.left, w.height, w.width] for w in found]
    return replace(
        runs[0],
        samples=x[:, None],
        nfe=sum(run.nfe for run in runs),
        nbe=sum(run.nbe for run in runs),
        seconds=sum(run.seconds for run in runs),
        config=runs[0].config | {"num_samples": num_samples, "windows": sides},
    )
