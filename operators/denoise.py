"""Denoising: ``y = x + sigma n``, so A is the identity.

Symbols: x image, y measurement of the same shape. Singular values are all one; images may have any
shape.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from invdiff.problem import DiagonalOperator
from invdiff.problem.operator import Shape


@dataclass(frozen=True, eq=False)
class Denoise(DiagonalOperator):
    """The identity; it has no parameters."""

    def make_state(self, shape: Shape) -> dict[str, Tensor]:
        return {
            "one": torch.ones(1, dtype=torch.float64)
        }  # tells singular_values their device and dtype

    def _forward(self, x: Tensor) -> Tensor:
        return x

    def _singular_values(self) -> Tensor:
        assert self.shape is not None
        return self.state["one"].expand(self.shape)

    def _adjoint(self, y: Tensor) -> Tensor:
        return y

    def _pinv(self, y: Tensor, ridge: Tensor | float) -> Tensor:
        return y / (1 + ridge)
