"""Operators from operators: sums, multiples, adjoints and Gram operators, as one writes them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from invdiff.problem.composite import Composite, assemble
from invdiff.problem.linear import LinearOperator
from invdiff.problem.operator import Operator, Shape, of_kind


@dataclass(frozen=True, eq=False)
class Sum(Composite):
    """``A + B``: operators on one image, whose measurements of one shape are added."""

    @staticmethod
    def following(part: Operator) -> Shape:
        assert part.shape is not None
        return part.shape

    def bind(self, shape: Shape) -> Sum:
        bound = super().bind(shape)
        first, *others = bound.parts
        for other in others:
            if other.measurement_shape != first.measurement_shape:
                raise ValueError(
                    f"{first.kind} and {other.kind} cannot be added: of images of shape "
                    f"{bound.shape} they give measurements of shape {first.measurement_shape} and "
                    f"{other.measurement_shape}"
                )
        return bound

    def image_shape(self, measurement_shape: Shape) -> Shape:
        return self.parts[0].image_shape(measurement_shape)

    def fit(self, shape: Shape) -> Shape:
        for part in self.parts:
            fitted = part.fit(shape)
            if fitted != shape:
                return self.fit(fitted)  # the parts before may want less again
        return shape

    @property
    def kind(self) -> str:
        return " + ".join(part.kind for part in self.parts)

    @property
    def measurement_shape(self) -> Shape:
        return self.parts[0].measurement_shape

    def _forward(self, x: Tensor) -> Tensor:
        return torch.stack([part(x) for part in self.parts]).sum(0)


@dataclass(frozen=True, eq=False)
class LinearSum(Sum, LinearOperator):
    """A sum of linear operators; A* = Σ_k A_k*."""

    def _adjoint(self, y: Tensor) -> Tensor:
        parts = [of_kind(part, LinearOperator) for part in self.parts]
        return torch.stack([part.adjoint(y) for part in parts]).sum(0)


@dataclass(frozen=True, eq=False)
class Multiple(Composite):
    """``factor * A``; made by multiplying an operator with a number."""

    factor: float | Tensor = 1.0

    @staticmethod
    def following(part: Operator) -> Shape:
        assert part.shape is not None
        return part.shape

    @property
    def inner(self) -> Operator:
        """A."""
        return self.parts[0]

    def image_shape(self, measurement_shape: Shape) -> Shape:
        return self.inner.image_shape(measurement_shape)

    def fit(self, shape: Shape) -> Shape:
        return self.inner.fit(shape)

    @property
    def kind(self) -> str:
        return f"{self.factor:g} {self.inner.kind}"

    @property
    def measurement_shape(self) -> Shape:
        return self.inner.measurement_shape

    def _observed(self, y: Tensor) -> Tensor:
        return self.inner._like(y)._observed(y)

    def _forward(self, x: Tensor) -> Tensor:
        return self.factor * self.inner(x)


@dataclass(frozen=True, eq=False)
class LinearMultiple(Multiple, LinearOperator):
    """A multiple of a linear operator, with its pseudo-inverse and proximal map."""

    def prepare(self) -> None:
        of_kind(self.inner, LinearOperator).prepare()

    def _adjoint(self, y: Tensor) -> Tensor:
        return self.factor * of_kind(self.inner, LinearOperator).adjoint(y)

    def _pinv(self, y: Tensor, ridge: Tensor | float) -> Tensor:
        if self.factor == 0:
            return self._adjoint(y)
        inner = of_kind(self.inner, LinearOperator)
        return inner.pinv(y / self.factor, ridge / self.factor**2)

    def _prox(self, z: Tensor, y: Tensor, gamma: Tensor | float) -> Tensor:
        if self.factor == 0:
            return z
        inner = of_kind(self.inner, LinearOperator)
        return inner.prox(z, y / self.factor, gamma * self.factor**2)


@dataclass(frozen=True, eq=False)
class Adjoint(LinearOperator):
    """``A.H`` of a bound linear operator: images are A's measurements."""

    inner: LinearOperator

    @property
    def kind(self) -> str:
        return f"{self.inner.kind}.H"

    def image_shape(self, measurement_shape: Shape) -> Shape:
        return self.inner.measurement_shape

    @property
    def measurement_shape(self) -> Shape:
        assert self.inner.shape is not None
        return self.inner.shape

    @property
    def H(self) -> LinearOperator:
        return self.inner

    def _forward(self, x: Tensor) -> Tensor:
        return self.inner.adjoint(x)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self.inner(y)


def added(parts: list[Operator]) -> Operator:
    """The sum of operators, linear where all of them are."""
    return assemble(Sum, LinearSum, parts, None, {})


def multiplied(operator: Operator, factor: float | Tensor) -> Operator:
    """A multiple of an operator, linear if it is."""
    kind = LinearMultiple if isinstance(operator, LinearOperator) else Multiple
    return kind(parts=(operator,), factor=factor if isinstance(factor, Tensor) else float(factor))


def adjoint_of(operator: LinearOperator) -> Adjoint:
    """The adjoint as an operator.

    Raises:
        ValueError: the operator is not bound, so that the shape of its images is not known.
    """
    if operator.shape is None:
        raise ValueError(
            f"bind {operator.kind} to a shape of images first, e.g. operator.bind((3, 64, 64)).H"
        )
    return Adjoint(operator, shape=operator.measurement_shape)
