r"""Several measurements of one image: ``y = (A_1(x), …, A_n(x))``, flattened and joined to one
vector.

    invdiff solve --operator stack \
      'operator.parts=[{name: inpaint, fraction: 0.9}, {name: sr, factor: 8}]'

Where all the parts are linear the stack is: A* y = Σ_k A_k* y_k exactly, pseudo-inverse and prox by
conjugate gradients (relative tolerance 1e-6, at most 100 iterations). Parts with noise of their
own:

    both = stack([inpaint, sr]).bind((3, 64, 64))
    measurement = both.measure(x, sigma=both.per_part([0.01, 0.05]))

Symbols: x image, y (B, m) with m the sum of the parts' sizes, y_k that of part k.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from invdiff.problem import LinearOperator, Operator
from invdiff.problem.composite import Composite, Part, assemble
from invdiff.problem.operator import Shape


def stack(
    parts: Sequence[Part] = ("inpaint", "sr"),
    *,
    shape: Shape | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> Operator:
    """Several operators on the same image.

    Args:
        parts: operators, registered names, or mappings of a ``name`` and its parameters;
            on the command line ``'operator.parts=[{name: inpaint, fraction: 0.9}, {name: sr,
            factor: 8}]'``.
        shape: of the images, where ``state`` holds the tensors already.
    """
    return assemble(Stack, LinearStack, parts, shape, state or {})


@dataclass(frozen=True, eq=False)
class Stack(Composite):
    """Several operators on the same image; made by :func:`stack`."""

    registered_as = "stack"

    @staticmethod
    def following(part: Operator) -> Shape:
        assert part.shape is not None
        return part.shape

    def image_shape(self, measurement_shape: Shape) -> Shape:
        for part in self.parts:
            if part.shape is not None:
                return part.shape
        raise ValueError(
            "a stack of measurements does not tell the shape of its image; bind it first: "
            "operator.bind((C, H, W))"
        )

    def fit(self, shape: Shape) -> Shape:
        for part in self.parts:
            fitted = part.fit(shape)
            if fitted != shape:
                return self.fit(fitted)  # the parts before may want less again
        return shape

    @property
    def kind(self) -> str:
        return f"stack of {', '.join(part.kind for part in self.parts)}"

    @property
    def measurement_shape(self) -> Shape:
        return (sum(self._sizes()),)

    def split(self, y: Tensor) -> list[Tensor]:
        """The parts' own measurements y_k (B, ...) of y (B, m). The operator must be bound."""
        flat = y.split(self._sizes(), dim=1)
        return [
            own.reshape(len(y), *part.measurement_shape)
            for own, part in zip(flat, self.parts, strict=True)
        ]

    def per_part(self, values: Sequence[float]) -> Tensor:
        """One number per part, such as its sigma, as a tensor (1, m) that broadcasts against y. The
        operator must be bound."""
        if self.shape is None:
            raise ValueError("bind this stack to an image shape first: operator.bind((C, H, W))")
        if len(values) != len(self.parts):
            raise ValueError(
                f"one number for each of the {len(self.parts)} parts is needed, got {len(values)}"
            )
        numbers = torch.as_tensor(values, dtype=torch.float64)
        return numbers.repeat_interleave(torch.tensor(self._sizes()))[None]

    def _sizes(self) -> list[int]:
        return [prod(part.measurement_shape) for part in self.parts]

    def _observed(self, y: Tensor) -> Tensor:
        return _joined(
            [
                part._like(own)._observed(own)
                for part, own in zip(self.parts, self.split(y), strict=True)
            ]
        )

    def _forward(self, x: Tensor) -> Tensor:
        return _joined([part(x) for part in self.parts])


@dataclass(frozen=True, eq=False)
class LinearStack(Stack, LinearOperator):
    """A stack of linear operators."""

    registered_as = "stack"

    def _adjoint(self, y: Tensor) -> Tensor:
        parts = [
            part for part in self.parts if isinstance(part, LinearOperator)
        ]  # which all of them are
        return torch.stack(
            [part.adjoint(own) for part, own in zip(parts, self.split(y), strict=True)]
        ).sum(0)


def _joined(measurements: Sequence[Tensor]) -> Tensor:
    return torch.cat([y.flatten(1) for y in measurements], dim=1)
