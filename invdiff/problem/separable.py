"""Operators that act on rows and columns apart: ``A X = R X Cᵀ`` for every channel X (H, W), with
small matrices R and C.

With ``R = U_R S_R V_Rᵀ`` and ``C = U_C S_C V_Cᵀ`` the singular value decomposition of A is exact
and cheap:

    A X = U_R (S_R (V_Rᵀ X V_C) S_C) U_Cᵀ,    singular values s_ij = S_R,i S_C,j

R is h×H and C is w×W with h <= H, w <= W. Spectral arrays have the image's layout (C, H, W), with
zeros beyond (h, w).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from invdiff.problem.operator import Shape
from invdiff.problem.spectral import SpectralOperator, inverted


@dataclass(frozen=True, eq=False)
class SeparableOperator(SpectralOperator):
    """``A X = R X Cᵀ``. Subclasses write :meth:`matrices`."""

    @abstractmethod
    def matrices(self, shape: Shape) -> tuple[Tensor, Tensor]:
        """R (h, H) and C (w, W) for images of ``shape``, float64."""

    def make_state(self, shape: Shape) -> dict[str, Tensor]:
        state: dict[str, Tensor] = {}
        for name, matrix in zip(("rows", "columns"), self.matrices(shape), strict=True):
            u, s, vt = torch.linalg.svd(matrix, full_matrices=True)
            state |= {
                name: matrix,
                f"{name}.u": u.contiguous(),
                f"{name}.s": s,
                f"{name}.v": vt.mT.contiguous(),
            }
        return state

    def _forward(self, x: Tensor) -> Tensor:
        return self._both(self.state["rows"], x, self.state["columns"].mT)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._both(self.state["rows"].mT, y, self.state["columns"])

    def _pinv(self, y: Tensor, ridge: Tensor | float) -> Tensor:
        s = self._s()
        return self._thin_v(inverted(s, s > self.rcond * s.max(), ridge) * self._thin_ut(y))

    def _prox(self, z: Tensor, y: Tensor, gamma: Tensor | float) -> Tensor:
        # z changes in the range of A* only: the small matrices suffice, and the null space is left
        # as it is.
        s = self._s()
        gap = self._thin_ut(y) - s * self._both(self._v_of("rows").mT, z, self._v_of("columns"))
        return z + self._thin_v(gamma * s / (1 + gamma * s**2) * gap)

    def _singular_values(self) -> Tensor:
        assert self.shape is not None
        return self._pad(self._s()).expand(self.shape)

    def _vt(self, x: Tensor) -> Tensor:
        return self._both(self.state["rows.v"].mT, x, self.state["columns.v"])

    def _v(self, z: Tensor) -> Tensor:
        return self._both(self.state["rows.v"], z, self.state["columns.v"].mT)

    def _ut(self, y: Tensor) -> Tensor:
        return self._pad(self._thin_ut(y))

    def _u(self, z: Tensor) -> Tensor:
        h, w = len(self.state["rows.s"]), len(self.state["columns.s"])
        return self._both(self.state["rows.u"], z[..., :h, :w], self.state["columns.u"].mT)

    def _s(self) -> Tensor:
        return self.state["rows.s"][:, None] * self.state["columns.s"]

    def _v_of(self, name: str) -> Tensor:
        return self.state[f"{name}.v"][:, : len(self.state[f"{name}.s"])]

    def _thin_ut(self, y: Tensor) -> Tensor:
        return self._both(self.state["rows.u"].mT, y, self.state["columns.u"])

    def _thin_v(self, z: Tensor) -> Tensor:
        return self._both(self._v_of("rows"), z, self._v_of("columns").mT)

    def _pad(self, z: Tensor) -> Tensor:
        height, width = len(self.state["rows.v"]), len(self.state["columns.v"])
        return F.pad(z, (0, width - z.shape[-1], 0, height - z.shape[-2]))

    @staticmethod
    def _both(left: Tensor, x: Tensor, right: Tensor) -> Tensor:
        """left X right, the cheaper product first."""
        a, (h, w), b = len(left), x.shape[-2:], right.shape[-1]
        rows_first = a * h * w + a * w * b <= h * w * b + a * h * b
        return (left @ x) @ right if rows_first else left @ (x @ right)


def check_image_shape(shape: Shape, who: str) -> None:
    """Refuses what is not (C, H, W)."""
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(
            f"{who} works on images of shape (C, H, W), got {shape}; give one image its batch, "
            "x[None], and grey images their channel: x[:, None]"
        )


def cosine_matrix(size: int) -> Tensor:
    """The orthonormal cosine transform (DCT-II) of ``size`` values as a matrix, float64: row k
    holds cos(π k (i + ½) / size)."""
    k, i = torch.arange(size, dtype=torch.float64)[:, None], torch.arange(size, dtype=torch.float64)
    waves = torch.cos(torch.pi * k * (i + 0.5) / size) * (2 / size) ** 0.5
    waves[0] /= 2**0.5
    return waves
