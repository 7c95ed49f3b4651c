"""A measurement: what was observed, by which operator, with how much noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from invdiff.problem import measurement_file
from invdiff.problem.linear import LinearOperator
from invdiff.problem.make import as_operator
from invdiff.problem.operator import Operator, check_tensor, of_kind
from invdiff.problem.spectral import SpectralOperator, compact, inverted
from invdiff.problem.wrapped import Rescaled, whitened

LARGEST = 1e15
"""Of sigma: beyond it float32 cannot hold sigma²."""

T = TypeVar("T")


def per_image(sigma: float | Sequence[float] | Tensor, y: Tensor) -> Tensor | float:
    """sigma as a number, or a tensor that broadcasts against y (B, ...): from one number per image,
    or per pixel."""
    if isinstance(sigma, int | float):
        if not 0 <= sigma <= LARGEST:
            raise ValueError(f"sigma must be a finite number >= 0, got {sigma:.6g}")
        return float(sigma)
    std = torch.as_tensor(sigma, dtype=y.real.dtype, device=y.device)
    if std.ndim == 0:
        return per_image(float(std), y)
    if std.ndim == 1 and len(std) == len(y):
        std = std.view(-1, *(1,) * (y.ndim - 1))
    if std.ndim != y.ndim or any(a not in (1, b) for a, b in zip(std.shape, y.shape, strict=False)):
        raise ValueError(
            f"sigma must be a number, one per image ({len(y)}) or broadcast against y "
            f"{tuple(y.shape)}, got shape {tuple(std.shape)}"
        )
    if std.device.type != "meta" and not bool((std >= 0).all() & std.isfinite().all()):
        raise ValueError("sigma must be finite and not negative everywhere")
    return std


@dataclass(frozen=True, eq=False)
class Measurement:
    """``y = A(x) + sigma * n``.

    Args:
        y: (B, ...), what was measured; values where the operator measures nothing (missing pixels)
            are set to zero.
        operator: A; it is bound to the image shape here if it was not.
        sigma: standard deviation of the noise: a number, one per image, or per pixel (any tensor
            that broadcasts to y).

    Examples:
        >>> import torch, invdiff
        >>> operator = invdiff.make_operator("denoise")
        >>> measurement = invdiff.Measurement(torch.ones(1, 1, 2, 2), operator, sigma=0.1)
        >>> measurement.norm(torch.zeros(1, 1, 2, 2))  # one value per image
        tensor([2.])
    """

    y: Tensor
    operator: Operator
    sigma: Any = 0.0

    def __post_init__(self) -> None:
        check_tensor(self.y, "y")
        operator = as_operator(self.operator)
        if operator.shape is None:
            operator = operator.bind(operator.image_shape(tuple(self.y.shape[1:])))
        if tuple(self.y.shape[1:]) != operator.measurement_shape:
            raise ValueError(
                f"y has shape {tuple(self.y.shape[1:])} per image, but "
                f"{type(operator).__name__} gives {operator.measurement_shape} for images "
                f"of shape {operator.shape}"
            )
        if self.y.dtype not in (torch.float32, torch.float64, torch.complex64, torch.complex128):
            raise TypeError(
                "y must be float32, float64 or complex, with images in [0, 1]; got "
                f"{self.y.dtype} (divide 8-bit values by 255)"
            )
        object.__setattr__(self, "y", operator._like(self.y)._observed(self.y))
        object.__setattr__(self, "operator", operator)
        object.__setattr__(self, "sigma", per_image(self.sigma, self.y))

    def __len__(self) -> int:
        return len(self.y)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one image, without the batch."""
        assert self.operator.shape is not None
        return self.operator.shape

    @property
    def linear(self) -> LinearOperator:
        """The operator, for pieces that require a linear one."""
        return of_kind(self.operator, LinearOperator)

    @property
    def spectral(self) -> SpectralOperator:
        """The operator, for pieces that require its singular value decomposition."""
        return of_kind(self.operator, SpectralOperator)

    def image_sigma(self, who: str) -> Tensor | float:
        """sigma as a number, or one per image as (B, 1, ...) that broadcasts against images; for
        methods whose algebra needs that.

        Raises:
            ValueError: sigma differs between the pixels of an image.
        """
        if isinstance(self.sigma, float):
            return self.sigma
        if self.sigma[0].numel() > 1:
            raise ValueError(
                f"{who} needs one sigma per image, but this measurement has one per pixel "
                "(Poisson noise, or a map); "
                "use a method that weighs the pixels, such as dps with likelihood=true, or "
                "give one sigma per image"
            )
        return self.sigma.view(-1, *(1,) * len(self.image_shape))

    def whitened(self, who: str) -> Measurement:
        """The same measurement in units in which every pixel has the same noise, so that sigma is
        one number per image: W y = W A x + c n with W = diag(c / sigma), c² the mean of sigma² over
        an image. The likelihood is the same up to a constant; itself where there is one sigma per
        image.

        Raises:
            ValueError: sigma is zero somewhere, and not everywhere.
        """
        if isinstance(self.sigma, float) or self.sigma[0].numel() == 1:
            return self
        sigma = self.sigma.expand(self.y.shape)
        scale = sigma.square().flatten(1).mean(1).sqrt()
        across = scale.view(-1, *(1,) * (self.y.ndim - 1))
        measured = self.operator._like(sigma)._observed(torch.ones_like(sigma)) > 0
        if not sigma.is_meta and bool(((sigma <= 0) & measured).any()):
            raise ValueError(
                f"{who} weighs the pixels of this measurement by 1/sigma, but sigma is zero at "
                "some of them; give these a sigma > 0"
            )
        weights = torch.where(sigma > 0, across / sigma.where(sigma > 0, 1.0), 1.0)
        return Measurement(weights * self.y, whitened(self.operator, weights), scale)

    @property
    def mean_variance(self) -> Tensor | float:
        """sigma² as a number, or its mean over the pixels of every image as (B, 1, ...) that
        broadcasts against images."""
        if isinstance(self.sigma, float):
            return self.sigma**2
        return self.sigma.square().flatten(1).mean(1).view(-1, *(1,) * len(self.image_shape))

    def linear_estimate(self) -> Tensor:
        """An image made from y alone: (A* A + sigma²)^-1 A* y, which is A† y without noise and the
        posterior mean of a prior N(0, I) with it.

        So that noise is not amplified where A measures little, as A† does. Where sigma differs
        between pixels, their mean sigma² counts.
        """
        return self.linear.pinv(self.y, ridge=self.mean_variance)

    def estimate(self) -> Tensor | None:
        """An image made from y alone, in the range of this measurement: the linear estimate, or y
        itself where it is an image; else None."""
        if isinstance(self.operator, LinearOperator):
            return self.linear_estimate()
        if self.y.shape[1:] != self.image_shape:
            return None
        return (
            self.operator.low + self.operator.width * self.y
            if isinstance(self.operator, Rescaled)
            else self.y
        )

    def check_noisy(self, who: str) -> None:
        """For methods that weigh by 1/sigma².

        Raises:
            ValueError: sigma is zero, be it for one image or one pixel.
        """
        sigma = torch.as_tensor(self.sigma, device=self.y.device)
        # Where nothing is measured there is nothing to weigh.
        silent = self.operator._like(self.y)._observed(
            (sigma <= 0).expand(self.y.shape).to(self.y.real.dtype)
        )
        if not sigma.is_meta and bool(silent.any()):
            raise ValueError(
                f"{who} weighs by 1/sigma², but sigma is "
                f"zero{'' if sigma.ndim == 0 else ' somewhere'}; give the noise a sigma > 0"
            )

    def component_sigma(self, who: str) -> Tensor:
        """Standard deviation sigma / s_i of the noise on y's components (U* y)_i / s_i, of a
        spectral operator; it broadcasts against V* x and is zero where y has no component.

        Raises:
            ValueError: as :meth:`image_sigma`.
        """
        operator = self.spectral
        s, measured = compact(operator.singular_values), compact(operator.measured)
        return self.image_sigma(who) * inverted(s, measured, 0.0)

    @cached_property
    def components(self) -> Tensor:
        """V* A† y of a spectral operator: what y says of each component of x; made once."""
        return self.spectral.Vt(self.spectral.pinv(self.y))

    @cached_property
    def _memo(self) -> dict[Hashable, Any]:
        return {}

    def once(self, piece: Hashable, make: Callable[[Measurement], T]) -> T:
        """What a piece makes of this measurement and needs in every step, made at the first one.

        Args:
            piece: whose it is, with the parameters that it depends on: a frozen dataclass is its
                own key.
            make: makes it of this measurement.
        """
        if piece not in self._memo:
            self._memo[piece] = make(self)
        return self._memo[piece]

    def residual(self, x: Tensor) -> Tensor:
        """y − A(x)."""
        return self.y - self.operator(x)

    def loss(self, x: Tensor) -> Tensor:
        """‖y − A(x)‖² of every image, (B,)."""
        r = self.residual(x)
        return (r * r.conj()).real.flatten(1).sum(1)

    def norm(self, x: Tensor) -> Tensor:
        """‖y − A(x)‖ of every image, (B,); its gradient is zero, not nan, where the residual is."""
        return torch.linalg.vector_norm(self.residual(x).flatten(1), dim=1)

    def consistency(self, x: Tensor) -> Tensor:
        """‖A(x) − y‖ / (sigma sqrt(m)) of every image, (B,), over the m values that were measured:
        about 1 where x fits y as well as the noise allows, far above 1 where it does not fit, far
        below where it fits the noise.

        Each value is weighed by its own sigma; complex noise has E|n|² = sigma². nan where a sigma
        is zero, or nothing is measured.
        """
        r = self.residual(x)
        std = torch.as_tensor(self.sigma, dtype=r.real.dtype, device=r.device)
        measured = self.operator._like(r)._observed(torch.ones_like(r.real)) > 0
        squares = torch.where(measured, (r.abs() / std.where(std > 0, torch.nan)).square(), 0.0)
        return (squares.flatten(1).sum(1) / measured.flatten(1).sum(1)).sqrt()

    def log_likelihood(self, x: Tensor) -> Tensor:
        """log p(y | x) of every image, (B,): Gaussian, over what was measured; needs sigma > 0.

        Complex noise has E|n|² = sigma², so its density is exp(−|r|²/sigma²) / (pi sigma²). Where a
        tensor sigma is zero the result is not finite.
        """
        r = self.residual(x)
        if isinstance(self.sigma, float) and self.sigma == 0:
            raise ValueError(
                "the likelihood of a measurement without noise is not finite; give it sigma > 0"
            )
        # A number stays on the host: made a tensor on a GPU it would be waited for.
        std = self.sigma if isinstance(self.sigma, float) else self.sigma.to(r.real.dtype)
        volume = (1 if r.is_complex() else 2) * math.pi * std**2
        log_volume = math.log(volume) if isinstance(volume, float) else volume.log()
        if r.is_complex():
            log_density = -(r.abs() / std).square() - log_volume
        else:
            log_density = -0.5 * (r / std).square() - 0.5 * log_volume
        return self.operator._like(r)._observed(log_density).flatten(1).sum(1)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Measurement:
        """The same measurement elsewhere, operator included."""
        y = (
            self.y.to(device, torch.complex128 if dtype == torch.float64 else torch.complex64)
            if self.y.is_complex() and dtype
            else self.y.to(device, dtype)
        )
        sigma = self.sigma if isinstance(self.sigma, float) else self.sigma.to(device, dtype)
        return Measurement(y, self.operator.to(device, dtype), sigma)

    def select(self, images: Tensor | Sequence[int]) -> Measurement:
        """The measurement of some images of the batch, in that order."""
        index = torch.as_tensor(images, device=self.y.device)
        sigma = (
            self.sigma
            if isinstance(self.sigma, float) or len(self.sigma) == 1
            else self.sigma[index]
        )
        return Measurement(self.y[index], self.operator.select(index), sigma)

    def to_range(self, low: float, high: float) -> Measurement:
        """The measurement of ``x' = low + (high − low) x``, for x in [0, 1] (design, conventions:
        Range)."""
        width = high - low
        if isinstance(self.operator, LinearOperator):
            images = len(self) if self.operator.per_image else 1
            offset = self.operator(
                torch.full(
                    (images, *self.image_shape), low, dtype=self.y.real.dtype, device=self.y.device
                )
            )
            return Measurement(width * self.y + offset, self.operator, width * self.sigma)
        return replace(
            self, operator=Rescaled(self.operator, low, width, shape=self.operator.shape)
        )

    @classmethod
    def concatenate(cls, measurements: Sequence[Measurement]) -> Measurement:
        """The measurements of images of one shape by one operator as one batch.

        Raises:
            ValueError: their operators are not one object, or their shapes differ.
        """
        first = measurements[0]
        for other in measurements[1:]:
            if other.operator is not first.operator or other.y.shape[1:] != first.y.shape[1:]:
                raise ValueError("only measurements by one operator are concatenated")
        sigmas = [
            torch.full((len(m), *(1,) * (m.y.ndim - 1)), m.sigma, dtype=m.y.real.dtype)
            if isinstance(m.sigma, float)
            else m.sigma.expand(len(m), *m.sigma.shape[1:])
            for m in measurements
        ]
        same = all(isinstance(m.sigma, float) and m.sigma == first.sigma for m in measurements)
        if not same:
            largest = max(sigmas, key=Tensor.numel).shape[1:]
            sigmas = [sigma.to(first.y.device).expand(-1, *largest) for sigma in sigmas]
        return cls(
            torch.cat([m.y for m in measurements]),
            first.operator,
            first.sigma if same else torch.cat(sigmas),
        )

    @property
    def hash(self) -> str:
        """SHA-256 of what was measured and how: y, sigma and the operator with its tensors."""
        tensors = measurement_file.tensors_of(self.y, self.operator, self.sigma)
        return measurement_file.digest(tensors, self.describe())

    def describe(self) -> dict[str, Any]:
        """Operator, parameters, image shape and sigma (None where it is a tensor) as plain data.

        Raises:
            ValueError: the operator is not registered, so it cannot be recorded by name.
        """
        return measurement_file.describe(self.operator, self.sigma)

    def save(self, path: str | Path) -> None:
        """Writes one ``.safetensors`` file: tensors, and as JSON metadata the operator, its
        parameters, sigma and hash."""
        measurement_file.write(Path(path), self.y, self.operator, self.sigma)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads what :meth:`save` wrote; a file whose content does not match its hash is
        refused."""
        return cls(*measurement_file.read(Path(path)))
