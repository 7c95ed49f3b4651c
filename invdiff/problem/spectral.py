"""Operators with a singular value decomposition."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from invdiff.problem.linear import LinearOperator


@dataclass(frozen=True, eq=False)
class SpectralOperator(LinearOperator):
    """``A = U diag(s) V*`` with s >= 0, all spectral arrays of one layout: ``Vt(x)``, ``Ut(y)`` and
    ``singular_values`` are elementwise compatible, with zeros where y has no component. Adjoint,
    pseudo-inverse and proximal map follow. Singular values below ``rcond`` times the largest count
    as zero in the pseudo-inverse.

    Examples:
        >>> import torch, invdiff
        >>> operator = invdiff.make_operator("inpaint", mask=torch.tensor([[[1.0, 0.0]]]))
        >>> operator = operator.bind((1, 1, 2))
        >>> operator.singular_values.tolist()
        [[[1.0, 0.0]]]
    """

    rcond = 1e-5

    def prepare(self) -> None:
        """Nothing is solved iteratively here."""

    @abstractmethod
    def _singular_values(self) -> Tensor: ...
    @abstractmethod
    def _vt(self, x: Tensor) -> Tensor: ...
    @abstractmethod
    def _v(self, z: Tensor) -> Tensor: ...
    @abstractmethod
    def _ut(self, y: Tensor) -> Tensor: ...
    @abstractmethod
    def _u(self, z: Tensor) -> Tensor: ...

    def _forward(self, x: Tensor) -> Tensor:
        return self._u(self._singular_values() * self._vt(x))

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._v(self._singular_values() * self._ut(y))

    def _pinv(self, y: Tensor, ridge: Tensor | float) -> Tensor:
        return self._v(inverted(self._singular_values(), self.measured, ridge) * self._ut(y))

    def _prox(self, z: Tensor, y: Tensor, gamma: Tensor | float) -> Tensor:
        s = self._singular_values()
        return self._v((self._vt(z) + gamma * s * self._ut(y)) / (1 + gamma * s**2))

    @property
    def singular_values(self) -> Tensor:
        """s, in the layout of ``Vt(x)`` less the batch. The operator must be bound."""
        if self.shape is None:
            raise ValueError(
                f"bind this {type(self).__name__} to an image shape first: operator.bind((C, H, W))"
            )
        return self._singular_values()

    @property
    def measured(self) -> Tensor:
        """Which components y tells about: singular values above ``rcond`` times the largest, in
        their layout."""
        memo = self._memo
        if "measured" not in memo:
            s = self.singular_values
            small = compact(s)
            # The largest of every image: the images of a batch do not depend on each other.
            largest = (
                small.flatten(1).amax(1).view(-1, *(1,) * (s.ndim - 1))
                if self.per_image
                else small.max()
            )
            memo["measured"] = (small > self.rcond * largest).expand(s.shape)
        return memo["measured"]

    def Vt(self, x: Tensor) -> Tensor:
        """V* x: the image in the right singular basis."""
        return self._for_image(x)._vt(x)

    def V(self, z: Tensor) -> Tensor:
        """V z: back to an image."""
        return self._like(z)._v(z)

    def Ut(self, y: Tensor) -> Tensor:
        """U* y: the measurement in the left singular basis."""
        return self._for_measurement(y)._ut(y)

    def U(self, z: Tensor) -> Tensor:
        """U z: back to a measurement."""
        return self._like(z)._u(z)


@dataclass(frozen=True, eq=False)
class DiagonalOperator(SpectralOperator):
    """``A = diag(s)`` on the pixels themselves, s >= 0: U and V are the identity."""

    def masked(self, known: Tensor) -> Self | None:
        """An operator of this kind in which the pixels ``known`` (H, W) bool are as they are and
        the others missing; None of a kind that does not leave out pixels."""
        return None

    def _vt(self, x: Tensor) -> Tensor:
        return x

    def _v(self, z: Tensor) -> Tensor:
        return z

    def _ut(self, y: Tensor) -> Tensor:
        return y

    def _u(self, z: Tensor) -> Tensor:
        return z


def compact(values: Tensor) -> Tensor:
    """values with one entry along every dimension in which they were only expanded: they broadcast
    as before, and what is computed of them is as small as they are."""
    return values[tuple(slice(0, 1) if step == 0 else slice(None) for step in values.stride())]


def inverted(s: Tensor, keep: Tensor, ridge: Tensor | float) -> Tensor:
    """s / (s² + ridge) of the singular values that are kept, 0 of the others."""
    return torch.where(keep, s / torch.where(keep, s**2 + ridge, 1.0), 0.0)
