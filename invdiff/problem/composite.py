"""Operators made of others, and their composition ``A2 @ A1``."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from invdiff.problem.linear import LinearOperator
from invdiff.problem.make import as_operator, make_operator, remade
from invdiff.problem.operator import Operator, Shape

Part = Operator | str | Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Composite(Operator):
    """An operator made of others.

    Attributes:
        parts: the operators; bound ones once this is.
        state: their tensors, those of part k under the names ``k.*``.
    """

    parts: tuple[Operator, ...] = ()

    @staticmethod
    @abstractmethod
    def following(part: Operator) -> Shape:
        """The image shape of the part after a bound one."""

    def bind(self, shape: Shape) -> Self:
        shape = tuple(int(n) for n in shape)
        if self.shape is not None:
            return super().bind(shape)
        if unknown := [name for part in self.parts for name in part.unknown]:
            raise ValueError(
                f"the {unknown[0]} of a part of {self.kind} is unknown: only an operator that "
                "stands alone is estimated"
            )
        memo = {} if self.traced else self._memo
        if shape not in memo:
            parts, here = list[Operator](), shape
            for part in self.parts:
                parts.append(part.bind(here))
                here = self.following(parts[-1])
            memo[shape] = dataclasses.replace(self, shape=shape)._with(parts)
        return memo[shape]

    @property
    def traced(self) -> bool:
        return super().traced or any(part.traced for part in self.parts)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Self:
        return self._with([part.to(device, dtype) for part in self.parts])

    def select(self, images: Tensor) -> Self:
        return self._with([part.select(images) for part in self.parts])

    @property
    def per_image(self) -> frozenset[str]:
        return frozenset(
            f"{k}.{name}" for k, part in enumerate(self.parts) for name in part.per_image
        )

    def _with(self, parts: Sequence[Operator]) -> Self:
        state = {
            f"{k}.{name}": tensor
            for k, part in enumerate(parts)
            for name, tensor in part.state.items()
        }
        return dataclasses.replace(self, parts=tuple(parts), state=state)


@dataclass(frozen=True, eq=False)
class Composition(Composite):
    """One operator after the other; made by ``compose``."""

    registered_as = "compose"

    @staticmethod
    def following(part: Operator) -> Shape:
        return part.measurement_shape

    def image_shape(self, measurement_shape: Shape) -> Shape:
        for part in reversed(self.parts):
            measurement_shape = (
                part.image_shape(measurement_shape) if part.shape is None else part.shape
            )
        return measurement_shape

    def fit(self, shape: Shape) -> Shape:
        return _fit(self.parts, shape)

    @property
    def kind(self) -> str:
        return " @ ".join(part.kind for part in reversed(self.parts))

    @property
    def measurement_shape(self) -> Shape:
        return self.parts[-1].measurement_shape

    def _observed(self, y: Tensor) -> Tensor:
        return self.parts[-1]._like(y)._observed(y)

    def _forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x


@dataclass(frozen=True, eq=False)
class LinearComposition(Composition, LinearOperator):
    """A composition of linear operators."""

    registered_as = "compose"

    def _adjoint(self, y: Tensor) -> Tensor:
        for part in reversed(self.parts):
            assert isinstance(part, LinearOperator)
            y = part.adjoint(y)
        return y


def composed(
    parts: Sequence[Part], shape: Shape | None = None, state: Mapping[str, Tensor] | None = None
) -> Operator:
    """One operator after the other, in the order in which they act; linear where all of them
    are."""
    return assemble(Composition, LinearComposition, parts, shape, state or {})


def assemble(
    general: type[Composite],
    linear: type[Composite],
    parts: Sequence[Part],
    shape: Shape | None,
    state: Mapping[str, Tensor],
) -> Operator:
    """A composite of these parts, ``linear`` where all of them are. With a shape it is bound, to
    the tensors in ``state``."""
    if isinstance(parts, str | Mapping) or not isinstance(parts, Sequence) or not parts:
        raise ValueError(
            f"parts must be a list of operators, e.g. [{{name: blur, sigma: 2}}, {{name: "
            f"sr, factor: 4}}], got {parts!r}"
        )
    made, here = list[Operator](), shape
    for k, part in enumerate(parts):
        own = {
            name.removeprefix(f"{k}."): tensor
            for name, tensor in state.items()
            if name.startswith(f"{k}.")
        }
        made.append(_made(part, here, own))
        here = None if here is None else general.following(made[-1])
    chosen = linear if all(isinstance(part, LinearOperator) for part in made) else general
    return chosen(parts=tuple(made), shape=shape, state=state)


def _made(part: Part, shape: Shape | None, state: Mapping[str, Tensor]) -> Operator:
    if isinstance(part, str):
        return make_operator(part)
    if not isinstance(part, Mapping):
        return as_operator(part)
    if not isinstance(part.get("name"), str):
        raise ValueError(
            f"a part is an operator's name with its parameters, e.g. {{name: blur, sigma: "
            f"2}}, got {dict(part)}"
        )
    parameters = {key: value for key, value in part.items() if key != "name"}
    if shape is None:
        return make_operator(part["name"], **parameters)
    return remade(part["name"], parameters, shape, state)


def _fit(parts: Sequence[Operator], shape: Shape) -> Shape:
    """The largest image shape within ``shape`` that all the parts take, one after the other."""
    first, *others = parts
    fitted = first.fit(shape)
    if not others:
        return fitted
    between = first.bind(fitted).measurement_shape
    smaller = _fit(others, between)
    return fitted if smaller == between else first.image_shape(smaller)
