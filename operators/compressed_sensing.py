"""Compressed sensing with a structured matrix: ``A = S F D``, as incoherent as a random one, and as
fast as a transform.

D flips the sign of every value at random, F is the orthonormal cosine transform of each channel,
and S keeps a random set of the coefficients: the subsampled randomised transforms of Do, Gan,
Nguyen and Tran, "Fast and Efficient Compressive Sensing Using Structurally Random Matrices", IEEE
TSP 2012, arXiv:1106.5037. At 256×256 nothing larger than 256×256 is stored.

Symbols: x image (C, H, W) of n values; y its coefficients in the same layout, m of them measured
and the others zero. The rows of A are orthonormal: V* = F D, U = 1, s is 1 where measured and else
0, so A† = A*.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from invdiff.noise import generator_of
from invdiff.problem import SpectralOperator
from invdiff.problem.operator import Shape
from invdiff.problem.separable import check_image_shape, cosine_matrix


@dataclass(frozen=True, eq=False)
class CompressedSensing(SpectralOperator):
    """Random coefficients of the image with random signs.

    Args:
        fraction: m / n, how many numbers are measured for each that x has: exactly round(fraction
            n), at least one.
        seed: of signs and coefficients, which depend on (seed, C, H, W) alone.
    """

    fraction: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.fraction <= 1:
            raise ValueError(
                "fraction, how many numbers are measured for each that x has, must be in "
                f"(0, 1], got {self.fraction}"
            )

    def make_state(self, shape: Shape) -> dict[str, Tensor]:
        check_image_shape(shape, "CompressedSensing")
        draw = generator_of("compressed_sensing", self.seed, *shape)
        signs = 2 * torch.randint(2, shape, generator=draw).to(torch.float64) - 1
        order = torch.randperm(signs.numel(), generator=draw).view(shape)
        mask = (order < max(1, round(self.fraction * signs.numel()))).to(torch.float64)
        return {
            "signs": signs,
            "mask": mask,
            "rows": cosine_matrix(shape[1]),
            "columns": cosine_matrix(shape[2]),
        }

    def _observed(self, y: Tensor) -> Tensor:
        return self.state["mask"] * y

    def _singular_values(self) -> Tensor:
        return self.state["mask"]

    def _vt(self, x: Tensor) -> Tensor:
        return self.state["rows"] @ (self.state["signs"] * x) @ self.state["columns"].mT

    def _v(self, z: Tensor) -> Tensor:
        return self.state["signs"] * (self.state["rows"].mT @ z @ self.state["columns"])

    def _ut(self, y: Tensor) -> Tensor:
        return y

    def _u(self, z: Tensor) -> Tensor:
        return z
