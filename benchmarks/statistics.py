"""Means over images with 95 % intervals. Images are the units: seeds of one image are averaged
first, for they are not independent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import sqrt
from statistics import fmean, stdev
from typing import TypedDict

CONFIDENCE = 0.95


class Interval(TypedDict):
    """A mean of n values and half the width of its interval; the mean is None without values, the
    half with fewer than two."""

    mean: float | None
    half: float | None
    n: int


def interval(values: Sequence[float], among: int = 1) -> Interval:
    """Mean of independent values and half the width of its Student t interval, ``t_{0.975, n-1} sd
    / sqrt(n)``; of one of several intervals, ``among`` of them, so wide that all of them hold at
    once with that confidence (Bonferroni)."""
    from scipy.special import stdtrit

    n = len(values)
    quantile = 1 - (1 - CONFIDENCE) / 2 / among
    half = float(stdtrit(n - 1, quantile)) * stdev(values) / sqrt(n) if n > 1 else None
    return {"mean": fmean(values) if n else None, "half": half, "n": n}


def per_image(values: Mapping[tuple[int, int], float]) -> list[float]:
    """Values by (image, seed) as one for each image, the mean over its seeds."""
    images: dict[int, list[float]] = {}
    for (image, _), value in values.items():
        images.setdefault(image, []).append(value)
    return [fmean(of) for of in images.values()]


def paired(
    a: Mapping[tuple[int, int], float], b: Mapping[tuple[int, int], float], among: int = 1
) -> Interval:
    """:func:`interval` of the differences a - b per image, over the images and seeds that both
    have.

    The interval is that of the paired t-test: it excludes 0 where the test rejects at 5 %, of
    several comparisons (``among``) at 5 % for all of them together.
    """
    return interval(per_image({k: a[k] - b[k] for k in a if k in b}), among)


def decimals(values: Iterable[float | None]) -> int:
    """How many of the figures of a column are printed: two behind the point if any reaches 10, else
    three."""
    return 2 if any(v is not None and abs(v) >= 10 for v in values) else 3


def mean_and_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half of its 95 % interval by the normal approximation, 1.96 sd/sqrt(n); zero for
    one value."""
    half = 1.96 * stdev(values) / sqrt(len(values)) if len(values) > 1 else 0.0
    return fmean(values), half
