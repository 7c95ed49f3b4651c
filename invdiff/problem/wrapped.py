"""Operators seen from elsewhere: from the range of a network, and from the latents of an
autoencoder."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from invdiff.network import Autoencoder
from invdiff.problem.operator import Operator, Shape


@dataclass(frozen=True, eq=False)
class Rescaled(Operator):
    """``A'(x) = A((x − low) / width)``: a nonlinear operator defined on [0, 1], seen from a
    network's range."""

    inner: Operator
    low: float
    width: float

    @property
    def kind(self) -> str:
        return self.inner.kind

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Rescaled:
        return replace(self, inner=self.inner.to(device, dtype))

    def select(self, images: Tensor) -> Rescaled:
        return replace(self, inner=self.inner.select(images))

    @property
    def measurement_shape(self) -> Shape:
        return self.inner.measurement_shape

    def _observed(self, y: Tensor) -> Tensor:
        return self.inner._like(y)._observed(y)

    @property
    def unknown(self) -> tuple[str, ...]:
        return self.inner.unknown

    def learned(self, x: Tensor, y: Tensor) -> Rescaled:
        return replace(self, inner=self.inner.learned((x - self.low) / self.width, y))

    def _forward(self, x: Tensor) -> Tensor:
        return self.inner((x - self.low) / self.width)


@dataclass(frozen=True, eq=False)
class Decoded(Operator):
    """``A(decode(z))``: a forward operator seen from latent space. Guidance does not notice."""

    inner: Operator
    autoencoder: Autoencoder

    @property
    def kind(self) -> str:
        return f"{self.inner.kind} of a decoded latent"

    @classmethod
    def wanted(cls) -> str:
        return "an operator seen through the autoencoder of a latent diffusion network"

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Decoded:
        return replace(self, inner=self.inner.to(device, dtype))

    def select(self, images: Tensor) -> Decoded:
        return replace(self, inner=self.inner.select(images))

    def image_shape(self, measurement_shape: Shape) -> Shape:
        return self.autoencoder.shape((1, *self.inner.image_shape(measurement_shape)))[1:]

    @property
    def measurement_shape(self) -> Shape:
        return self.inner.measurement_shape  # found without running the decoder

    @property
    def unknown(self) -> tuple[str, ...]:
        return self.inner.unknown

    def learned(self, x: Tensor, y: Tensor) -> Decoded:
        return replace(self, inner=self.inner.learned(self.autoencoder.decode(x), y))

    def _forward(self, z: Tensor) -> Tensor:
        return self.inner(self.autoencoder.decode(z))

    def _observed(self, y: Tensor) -> Tensor:
        return self.inner._observed(y)
