"""Quantisation to few bits: ``y = round((2^b − 1) clip(x, 0, 1)) / (2^b − 1)``, so 0 and 1 are
among the 2^b levels.

The gradient of rounding is zero almost everywhere. It is taken as one (the straight-through
estimator: Bengio, Léonard and Courville, "Estimating or Propagating Gradients Through Stochastic
Neurons", 2013, arXiv:1308.3432); clipping keeps its own, zero outside [0, 1].

Symbols: x image in [0, 1], y measurement of the same shape, b bits per value.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from invdiff.problem import Operator


@dataclass(frozen=True, eq=False)
class Quantize(Operator):
    """Uniform quantisation; images may have any shape.

    Args:
        bits: b, from 1 to 16.
    """

    bits: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if (
            isinstance(self.bits, bool)
            or not isinstance(self.bits, int)
            or not 1 <= self.bits <= 16
        ):
            raise ValueError(f"bits must be a whole number from 1 to 16, got {self.bits!r}")

    def _forward(self, x: Tensor) -> Tensor:
        steps = 2**self.bits - 1
        return rounded(steps * x.clamp(0, 1)) / steps


def rounded(x: Tensor) -> Tensor:
    """x rounded to whole numbers, exactly, with the gradient of x."""
    return x + (x.round() - x).detach()
