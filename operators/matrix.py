"""A dense matrix: ``y = A x`` on the flattened image or vector, with an exact SVD.

For vectors, small images and experiments whose A is given; a random one is made from its seed. At
256x256 no dense matrix fits into memory: ``compressed_sensing`` measures as many numbers with a
fast transform.

Symbols: x of n entries, y of m, A (m, n) = U diag(s) Vᵀ. Spectral arrays have max(m, n) entries in
the last dimension and one in each dimension before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from invdiff.noise import generator_of
from invdiff.problem import SpectralOperator
from invdiff.problem.operator import Shape

LARGEST = 2**26
"""Entries beyond which U or V is refused; an SVD then takes minutes."""


@dataclass(frozen=True, eq=False)
class Matrix(SpectralOperator):
    """Any matrix.

    Args:
        matrix: A, a tensor (m, n); None draws entries from N(0, 1/n).
        fraction: of the random matrix: m = round(fraction n), at least 1.
        seed: of the random matrix.
    """

    matrix: Tensor | None = None
    fraction: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.matrix is not None and not isinstance(self.matrix, Tensor):
            raise TypeError(f"matrix must be a tensor (m, n), got {self.matrix!r}")
        if self.matrix is not None and (
            self.matrix.ndim != 2 or self.matrix.is_complex() or not self.matrix.is_floating_point()
        ):
            raise ValueError(
                "matrix must be real and have two dimensions (m, n), got "
                f"{self.matrix.dtype} {tuple(self.matrix.shape)}"
            )
        if not 0 < self.fraction <= 1:
            raise ValueError(
                "fraction, how many numbers are measured for each that x has, must be in "
                f"(0, 1], got {self.fraction}"
            )

    def make_state(self, shape: Shape) -> dict[str, Tensor]:
        n = prod(shape)
        if self.matrix is None:
            m = max(1, round(self.fraction * n))
            _check_size(m, n)
            matrix = (
                torch.randn(
                    m, n, dtype=torch.float64, generator=generator_of("matrix", self.seed, *shape)
                )
                / n**0.5
            )
        else:
            matrix = self.matrix.to("cpu", torch.float64)
            if matrix.shape[1] != n:
                raise ValueError(
                    f"the matrix has {matrix.shape[1]} columns, but x of shape {shape} has "
                    f"{n} entries"
                )
            _check_size(*matrix.shape)
        u, s, vt = torch.linalg.svd(matrix, full_matrices=True)
        return {
            "matrix": matrix.clone(),
            "u": u.contiguous(),
            "s": F.pad(s, (0, max(matrix.shape) - len(s))),
            "v": vt.mT.contiguous(),
        }

    def image_shape(self, measurement_shape: Shape) -> Shape:
        raise ValueError(
            "a matrix does not tell the shape of its images; bind it first: "
            "operator.bind((C, H, W)), or operator.bind((n,))"
        )

    def _forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.state["matrix"].mT

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._image(y @ self.state["matrix"])

    def _singular_values(self) -> Tensor:
        return self._spectral(self.state["s"][None])[0]

    def _vt(self, x: Tensor) -> Tensor:
        return self._spectral(x.flatten(1) @ self.state["v"])

    def _v(self, z: Tensor) -> Tensor:
        return self._image(z.flatten(1)[:, : len(self.state["v"])] @ self.state["v"].mT)

    def _ut(self, y: Tensor) -> Tensor:
        return self._spectral(y @ self.state["u"])

    def _u(self, z: Tensor) -> Tensor:
        return z.flatten(1)[:, : len(self.state["u"])] @ self.state["u"].mT

    def _spectral(self, z: Tensor) -> Tensor:
        """As many dimensions as images have, so that one number per image broadcasts against
        both."""
        assert self.shape is not None
        return F.pad(z, (0, len(self.state["s"]) - z.shape[1])).view(
            len(z), *(1,) * (len(self.shape) - 1), -1
        )

    def _image(self, x: Tensor) -> Tensor:
        assert self.shape is not None
        return x.view(len(x), *self.shape)


def _check_size(m: int, n: int) -> None:
    if max(m, n) ** 2 > LARGEST:
        raise ValueError(
            f"the SVD of a dense matrix of {m}x{n} is too large; use the operator "
            "compressed_sensing, which needs no matrix"
        )
