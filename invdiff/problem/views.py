"""Images and measurements of a foreign operator, seen as one tensor each.

    image         a real image of one channel where complex ones are two real channels: its
                  imaginary part is zero; a real image where complex tensors are wanted
    measurement   a list of tensors: each flattened, joined to one vector

A view is linear in the image, and its way back is its adjoint, so an adjoint seen through it stays
one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import prod
from typing import Any

import torch
from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class View:
    """How an operator's images and measurements are seen.

    Attributes:
        kind: what the operator is given: ``"same"``, the image; ``"pair"``, its real and imaginary
            part as two channels; ``"complex"``, a complex tensor.
        complex_images: whether images are complex, else real.
        parts: of a list of measurements, the shape of each and whether it is complex; None where
            it is one tensor.
    """

    kind: str = "same"
    complex_images: bool = False
    parts: tuple[tuple[Shape, bool], ...] | None = None

    @property
    def plain(self) -> bool:
        """Whether nothing is changed."""
        return self.kind == "same" and self.parts is None

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about what is assumed."""
        real = "the image is taken as real, its imaginary part as zero"
        joined = f"the {len(self.parts or ())} measurements are flattened and joined to one vector"
        return (
            *((real,) if self.kind != "same" and not self.complex_images else ()),
            *((joined,) if self.parts is not None else ()),
        )

    def given(self, x: Tensor) -> Tensor:
        """What the operator is given of an image x (B, ...)."""
        if self.kind == "pair":
            return torch.cat([x.real, x.imag if x.is_complex() else torch.zeros_like(x)], dim=1)
        if self.kind == "complex" and not x.is_complex():
            return torch.complex(x, torch.zeros_like(x))
        return x

    def image(self, made: Tensor) -> Tensor:
        """The adjoint of :meth:`given`."""
        if self.kind == "pair":
            real, imaginary = made.chunk(2, dim=1)
            return torch.complex(real, imaginary) if self.complex_images else real
        return made.real if made.is_complex() and not self.complex_images else made

    def of(self, measured: Any) -> View:
        """This view with the parts of what the operator gave.

        Raises:
            ValueError: it is neither a tensor nor a list of tensors.
        """
        if isinstance(measured, Tensor):
            return self
        try:
            parts = list(measured)
        except TypeError:
            parts = []
        if not parts or not all(isinstance(part, Tensor) for part in parts):
            raise ValueError(
                f"it gives a {type(measured).__name__}, which is neither a tensor nor a list of "
                "tensors"
            )
        found = tuple((tuple(part.shape[1:]), part.is_complex()) for part in parts)
        return replace(self, parts=found)

    def measured(self, given: Any) -> Tensor:
        """One tensor (B, ...) of what the operator gives."""
        if self.parts is None:
            return given
        return torch.cat([part.flatten(1) for part in given], dim=1)

    def parts_of(self, y: Tensor) -> Any:
        """What the operator gave, of y; the adjoint of :meth:`measured` is its inverse."""
        if self.parts is None:
            return y
        from deepinv.utils import TensorList

        ends = [0, *accumulate(prod(shape) for shape, _ in self.parts)]
        found = [
            y[:, start:end].reshape(len(y), *shape)
            for start, end, (shape, _) in zip(ends, ends[1:], self.parts, strict=False)
        ]
        return TensorList(
            [
                part.real if part.is_complex() and not is_complex else part
                for part, (_, is_complex) in zip(found, self.parts, strict=True)
            ]
        )


SAME = View()


def views(shape: Shape, complex_images: bool) -> Sequence[View]:
    """The views to try for images of one shape, in this order."""
    pair = [View("pair", complex_images)] if len(shape) > 1 and shape[0] == 1 else []
    if complex_images:
        return [View("complex", True), *pair]
    return [SAME, *pair, View("complex")]
