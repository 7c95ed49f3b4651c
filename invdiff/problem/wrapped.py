"""Operators seen from elsewhere: from the range of a network, from the latents of an autoencoder,
and in units of the noise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from invdiff.network import Autoencoder, Denoiser
from invdiff.noise import generator_of
from invdiff.problem.linear import LinearOperator
from invdiff.problem.operator import Operator, Shape, of_kind
from invdiff.problem.spectral import SpectralOperator


@dataclass(frozen=True, eq=False)
class Seen(Operator):
    """An operator seen from elsewhere.

    Attributes:
        inner: the operator as it is.
    """

    inner: Operator

    @property
    def kind(self) -> str:
        return self.inner.kind

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Self:
        return replace(super().to(device, dtype), inner=self.inner.to(device, dtype))

    def select(self, images: Tensor) -> Self:
        return replace(super().select(images), inner=self.inner.select(images))

    @property
    def measurement_shape(self) -> Shape:
        return self.inner.measurement_shape

    def _observed(self, y: Tensor) -> Tensor:
        return self.inner._like(y)._observed(y)

    @property
    def unknown(self) -> tuple[str, ...]:
        return self.inner.unknown

    def unknown_prior(self) -> tuple[Denoiser, Shape] | None:
        return self.inner.unknown_prior()

    def drawn(self, state: Tensor) -> Self:
        return replace(self, inner=self.inner.drawn(state))

    @property
    def estimates(self) -> dict[str, Tensor]:
        return self.inner.estimates


@dataclass(frozen=True, eq=False)
class Rescaled(Seen):
    """``A'(x) = A((x − low) / width)``: a nonlinear operator defined on [0, 1], seen from a
    network's range."""

    low: float
    width: float

    def learned(self, x: Tensor, y: Tensor, ratio: float = 0.0) -> Rescaled:
        x = (x - self.low) / self.width
        return replace(self, inner=self.inner.learned(x, y, ratio))

    def _forward(self, x: Tensor) -> Tensor:
        return self.inner((x - self.low) / self.width)


@dataclass(frozen=True, eq=False)
class Decoded(Seen):
    """``A(decode(z))``: a forward operator seen from latent space. Guidance does not notice."""

    autoencoder: Autoencoder

    @property
    def kind(self) -> str:
        return f"{self.inner.kind} of a decoded latent"

    @classmethod
    def wanted(cls) -> str:
        return "an operator seen through the autoencoder of a latent diffusion network"

    def image_shape(self, measurement_shape: Shape) -> Shape:
        return self.autoencoder.shape((1, *self.inner.image_shape(measurement_shape)))[1:]

    def linear(self, who: str, instead: str) -> LinearOperator:
        """The operator of the decoded image, for a method that needs a linear one.

        Args:
            who: the method.
            instead: methods that do not.

        Raises:
            ValueError: it is not linear.
        """
        if not isinstance(self.inner, LinearOperator):
            raise ValueError(
                f"{who} requires {LinearOperator.wanted()} of the decoded image, but "
                f"{self.inner.kind} is not one; use {instead}"
            )
        return self.inner

    def learned(self, x: Tensor, y: Tensor, ratio: float = 0.0) -> Decoded:
        x = self.autoencoder.decode(x)
        return replace(self, inner=self.inner.learned(x, y, ratio))

    def _forward(self, z: Tensor) -> Tensor:
        return self.inner(self.autoencoder.decode(z))


@dataclass(frozen=True, eq=False)
class Whitened(Seen):
    """``W A(x)`` with W = diag(w), w > 0: an operator in units in which the noise is the same for
    every value of a measurement. Its state ``weights`` is w (B, *measurement shape); made by
    :func:`whitened`."""

    @property
    def kind(self) -> str:
        return f"{self.inner.kind} with a sigma for each pixel"

    @property
    def per_image(self) -> frozenset[str]:
        return frozenset({"weights"})

    def learned(self, x: Tensor, y: Tensor, ratio: float = 0.0) -> Self:
        weights = self.state["weights"].to(y)
        return replace(self, inner=self.inner.learned(x, y / weights, ratio))

    def _forward(self, x: Tensor) -> Tensor:
        return self.state["weights"] * self.inner(x)


@dataclass(frozen=True, eq=False)
class LinearWhitened(Whitened, LinearOperator):
    """W A of a linear A; pseudo-inverse and proximal map by conjugate gradients."""

    def _adjoint(self, y: Tensor) -> Tensor:
        return of_kind(self.inner, LinearOperator).adjoint(self.state["weights"] * y)


@dataclass(frozen=True, eq=False)
class SpectralWhitened(LinearWhitened, SpectralOperator):
    """W A = U diag(U* w) S V* of an A whose U only places pixels among the components: U and V
    stay, and each singular value is weighed."""

    _forward = Whitened._forward
    _adjoint = LinearWhitened._adjoint

    @property
    def _spectral(self) -> SpectralOperator:
        return of_kind(self.inner, SpectralOperator)

    def _singular_values(self) -> Tensor:
        return self._spectral.singular_values * self._spectral.Ut(self.state["weights"])

    def _vt(self, x: Tensor) -> Tensor:
        return self._spectral.Vt(x)

    def _v(self, z: Tensor) -> Tensor:
        return self._spectral.V(z)

    def _ut(self, y: Tensor) -> Tensor:
        return self._spectral.Ut(y)

    def _u(self, z: Tensor) -> Tensor:
        return self._spectral.U(z)


def whitened(operator: Operator, weights: Tensor) -> Whitened:
    """W A of a bound operator, with a singular value decomposition where A's U places pixels among
    the components and does not mix them (masks, colour, selected coefficients)."""
    kind: type[Whitened] = Whitened
    if isinstance(operator, LinearOperator):
        kind = LinearWhitened
    if isinstance(operator, SpectralOperator) and _places(operator, weights):
        kind = SpectralWhitened
    return kind(operator, shape=operator.shape, state={"weights": weights})


def _places(operator: SpectralOperator, weights: Tensor) -> bool:
    """Whether U* (w y) = (U* w)(U* y), on random w > 0 and y: U* puts each pixel in one place."""
    if weights.is_meta:
        return False
    draw = generator_of("places")
    w = torch.rand(weights.shape, generator=draw, dtype=weights.dtype).to(weights.device) + 0.5
    y = torch.randn(weights.shape, generator=draw, dtype=weights.dtype).to(weights.device)
    both, apart = operator.Ut(w * y), operator.Ut(w) * operator.Ut(y)
    return bool((both - apart).norm() <= 1e-4 * both.norm())
