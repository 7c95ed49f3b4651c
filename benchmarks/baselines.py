"""Baselines that methods are compared with on the same measurements: classical restorations, and
the samplers of other packages.

    pinv        (A* A + sigma²)^-1 A* y, that is A† y without noise     linear operators
    bicubic     y enlarged, antialiased cubic                           where y is a smaller image
    biharmonic  missing pixels by the biharmonic equation               where pixels are missing
    tv          total variation, by deepinv's primal-dual algorithm     linear operators
    wiener      posterior mean of a Gaussian prior whose spectrum is    linear operators
                that of photographs
    deepinv_dps, deepinv_ddrm, deepinv_diffpir    see :mod:`invdiff.benchmarks.peers`

Images do not depend on each other: an image alone is restored as it is in a batch, to rounding.
Where sigma differs between the pixels of an image, its root mean square counts. The weight of
``tv`` was chosen once, on PSNR over the centre 64x64 of eight Kodak24 photographs (01, 04, 07, 13,
...), for all operators together; the spectrum of ``wiener`` was measured on other photographs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, is_dataclass
from typing import ClassVar

import torch
from torch import Tensor

from invdiff.network import Denoiser
from invdiff.plugins.registry import PluginError, call, load
from invdiff.problem import DiagonalOperator, LinearOperator, Measurement, Operator
from invdiff.problem.separable import check_image_shape, cosine_matrix
from invdiff.problem.solvers import conjugate_gradients
from invdiff.sampling import NonFiniteError
from invdiff.solving.cascade import RESAMPLING


class Unfit(ValueError):
    """A measurement that a method or baseline cannot restore, by its own account: reported in its
    row, where other errors are failures."""


def make_baseline(name: str, **parameters: object) -> Baseline:
    """A baseline by name, with its parameters.

    Raises:
        ValueError: an unknown name, parameter or value; says what is known.
    """
    made = call(load("baselines", name), f"baseline {name!r}", parameters)
    if not (isinstance(made, Baseline) and is_dataclass(made)):
        raise PluginError(
            f"baseline {name!r} is {made!r}; register a dataclass that is a subclass of "
            "invdiff.benchmarks.baselines.Baseline"
        )
    return made


@dataclass(frozen=True)
class Baseline(ABC):
    """One way to restore images from a measurement. Subclasses write :meth:`restore`.

    Attributes:
        network: whether it needs a denoiser.
        requires: the class of operators that it restores from; None: any.
    """

    network: ClassVar[bool] = False
    requires: ClassVar[type[Operator] | None] = LinearOperator

    def __call__(
        self,
        measurement: Measurement,
        denoiser: Denoiser | None = None,
        *,
        seed: int = 0,
        image_ids: Sequence[int] | None = None,
    ) -> Tensor:
        """Restores images.

        Args:
            measurement: of B images (C, H, W) in [0, 1].
            denoiser: the prior, where ``network`` says that one is needed; otherwise it is not
                looked at.
            seed: of the sampling noise, where there is any; image k draws a stream of its own.
            image_ids: the k of each image; by default 0..B-1.

        Returns:
            (B, C, H, W), float32 in [0, 1].

        Raises:
            Unfit: a measurement, or a network, that it cannot work with; says why.
            NonFiniteError: the result is not finite.
        """
        who = type(self).__name__
        try:
            check_image_shape(measurement.image_shape, who)
        except ValueError as error:
            raise Unfit(str(error)) from error
        if self.requires is not None and not isinstance(measurement.operator, self.requires):
            raise Unfit(
                f"{who} restores from {self.requires.wanted()}; {measurement.operator.kind} is none"
            )
        if self.network and denoiser is None:
            raise ValueError(f"{who} samples with a network; give it a denoiser")
        ids = list(range(len(measurement))) if image_ids is None else list(image_ids)
        if len(ids) != len(measurement):
            raise ValueError(
                f"image_ids must name each of the {len(measurement)} images, got {len(ids)}"
            )
        x = self.restore(measurement, denoiser, seed, ids).float()
        if not bool(x.isfinite().all()):
            raise NonFiniteError(
                f"{who} turned non-finite; other parameters may hold it, of {self}"
            )
        return x.clamp(0, 1)

    @abstractmethod
    def restore(
        self, measurement: Measurement, denoiser: Denoiser | None, seed: int, ids: list[int]
    ) -> Tensor:
        """(B, C, H, W), of a measurement that is known to fit."""


@dataclass(frozen=True)
class PseudoInverse(Baseline):
    """:meth:`~invdiff.problem.Measurement.linear_estimate`: A† itself would amplify noise without
    bound where A measures little."""

    def restore(
        self, measurement: Measurement, denoiser: Denoiser | None, seed: int, ids: list[int]
    ) -> Tensor:
        return measurement.linear_estimate()


@dataclass(frozen=True)
class Bicubic(Baseline):
    """y enlarged to the image's size; a grey y becomes a grey image."""

    requires: ClassVar[type[Operator] | None] = None

    def restore(
        self, measurement: Measurement, denoiser: Denoiser | None, seed: int, ids: list[int]
    ) -> Tensor:
        y, (channels, height, width) = measurement.y, measurement.image_shape
        factor = height // y.shape[-2]
        if (
            y.ndim != 4
            or factor < 2
            or (y.shape[-2] * factor, y.shape[-1] * factor) != (height, width)
            or y.shape[1] not in (1, channels)
        ):
            raise Unfit(
                "Bicubic enlarges a smaller image by a whole factor; this measurement has "
                f"shape {tuple(y.shape[1:])} for images of shape "
                f"{measurement.image_shape}"
            )
        return RESAMPLING["bicubic"](y.expand(-1, channels, -1, -1), factor)


@dataclass(frozen=True)
class Biharmonic(Baseline):
    """``skimage.restoration.inpaint_biharmonic`` (Damelin and Hoang 2018): missing pixels where the
    square of the Laplacian vanishes. Known pixels stay as they were measured, with their noise."""

    requires: ClassVar[type[Operator] | None] = DiagonalOperator

    def restore(
        self, measurement: Measurement, denoiser: Denoiser | None, seed: int, ids: list[int]
    ) -> Tensor:
        from skimage.restoration import inpaint_biharmonic

        operator = measurement.operator
        assert isinstance(operator, DiagonalOperator)
        known = operator.measured.expand(len(measurement), *measurement.image_shape)
        if bool(known.all()):
            raise Unfit("Biharmonic fills in missing pixels; none is missing here")
        if not bool(known.flatten(1).any(1).all()):
            raise Unfit("Biharmonic fills in missing pixels from known ones; an image has none")
        images = (
            operator.pinv(measurement.y).double().cpu().numpy()
        )  # divides by masks between 0 and 1
        channels = zip(
            images.reshape(-1, *images.shape[2:]), (~known).cpu().flatten(0, 1).numpy(), strict=True
        )
        filled = [
            torch.from_numpy(inpaint_biharmonic(channel, missing)) for channel, missing in channels
        ]
        return torch.stack(filled).view(images.shape).to(measurement.y.device)


@dataclass(frozen=True)
class TotalVariation(Baseline):
    """argmin_x ½ ‖A x − y‖² + lambda Σ_i ‖(∇x)_i‖ (Rudin, Osher and Fatemi 1992), isotropic, each
    channel apart, by the primal-dual algorithm of Chambolle and Pock (2011),
    ``deepinv.optim.PDCP``, with the proximal map of the data term.

    lambda = weight · sigma^1.5; noise below ``FLOOR`` counts as that. Between sigma 0.005 and 0.1
    the best lambda grew with a power of 1.4 to 1.6, where a known prior would have 2. Best weights,
    at sigma 0.005, 0.025 and 0.1: inpainting 2.8, 2.0, 2.0; super-resolution 0.8, 1.0, 0.6; blur
    0.8, 1.0, 1.1; denoising 2.3, 2.8, 2.5.

    Args:
        weight: see above.
        iterations: of the algorithm.
    """

    weight: float = 1.5
    iterations: int = 500

    FLOOR: ClassVar[float] = 1e-3
    STEP: ClassVar[float] = 0.03
    """Of the primal variable, for data of weight 1/lambda; the fastest of 0.005 to 1 over the
    operators above."""

    def __post_init__(self) -> None:
        if not 0 < self.weight < float("inf"):
            raise ValueError(f"weight must be a finite number above 0, got {self.weight}")
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {self.iterations}")

    def strength(self, measurement: Measurement) -> Tensor:
        """lambda of every image, (B, 1, 1, 1)."""
        return self.weight * mean_sigma(measurement).clamp(min=self.FLOOR) ** 1.5

    def restore(
        self, measurement: Measurement, denoiser: Denoiser | None, seed: int, ids: list[int]
    ) -> Tensor:
        from deepinv.models import TVDenoiser
        from deepinv.optim import PDCP, L12Prior
        from deepinv.optim.data_fidelity import L2

        from invdiff.benchmarks.peers import linear_physics

        start = measurement.linear_estimate()
        solver = PDCP(
            K=TVDenoiser.nabla,
            K_adjoint=TVDenoiser.nabla_adjoint,
            data_fidelity=L2(
                sigma=self.strength(measurement).sqrt()
            ),  # divided by lambda, so that it may differ between images
            prior=L12Prior(),
            g_first=True,
            stepsize=self.STEP,
            stepsize_dual=1 / (8 * self.STEP),  # ‖∇‖² <= 8
            max_iter=self.iterations,
            custom_init=lambda y, physics: {
                "est": (start, start, torch.zeros_like(TVDenoiser.nabla(start)))
            },
        )
        assert isinstance(measurement.operator, LinearOperator)
        with torch.no_grad():
            return solver(measurement.y, linear_physics(measurement.operator))


@dataclass(frozen=True)
class Wiener(Baseline):
    """The posterior mean (Wiener 1949) of x ~ N(½, C) under y = A x + sigma n, for any linear A:

        x = ½ + C A* (A C A* + sigma²)^-1 (y − A ½),  C = Dᵀ diag(power / f²) D for every channel
                                                      apart

    D is the orthonormal cosine transform, which knows no jump at the border, and f the frequency in
    cycles per pixel, so that the spectrum is that of photographs at any size (Field 1987). The
    constant counts as half the lowest frequency, which gives the mean of an image a standard
    deviation of 4 sqrt(power).

    Solved in float64 for z of x = ½ + C^½ z, where the prior is white, by conjugate gradients. A
    circular blur has no closed form here, for it is diagonal in another basis.

    Args:
        power: of photographs at one cycle per pixel, in units of [0, 1] squared. Measured over the
            centres of CBSD68, at 64² to 256² and over f: 1.6e-3 below 0.01, 1.0e-3 at 0.05, 0.7e-3
            at 0.2, 0.2e-3 at the corners.
        iterations: of conjugate gradients. 100 are within 1e-6 of the solution for inpainting and
            super-resolution, with noise or without. Deblurring without noise is ill-posed, and is
            still going on sharpening when they end.
    """

    power: float = 1e-3
    iterations: int = 200

    def __post_init__(self) -> None:
        if not 0 < self.power < float("inf"):
            raise ValueError(f"power must be a finite number above 0, got {self.power}")
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {self.iterations}")

    def restore(
        self, measurement: Measurement, denoiser: Denoiser | None, seed: int, ids: list[int]
    ) -> Tensor:
        measurement = measurement.to(dtype=torch.float64)
        operator, (channels, height, width) = measurement.operator, measurement.image_shape
        assert isinstance(operator, LinearOperator)
        device = measurement.y.device
        rows, columns = cosine_matrix(height).to(device), cosine_matrix(width).to(device)
        root = self.spectrum(height, width).sqrt().to(device)
        mean = torch.full(
            (len(measurement), channels, height, width), 0.5, dtype=torch.float64, device=device
        )
        variance = mean_sigma(measurement) ** 2

        def colour(z: Tensor) -> Tensor:  # C^½
            return rows.mT @ (root * z) @ columns

        def adjoint(y: Tensor) -> Tensor:  # of A C^½
            return root * (rows @ operator.adjoint(y) @ columns.mT)

        z = conjugate_gradients(
            lambda z: adjoint(operator(colour(z))) + variance * z,
            adjoint(measurement.residual(mean)),
            self.iterations,
            tolerance=1e-8,
        )
        return mean + colour(z)

    def spectrum(self, height: int, width: int) -> Tensor:
        """The variance of every coefficient of D x, (H, W), float64."""
        rows, columns = (torch.arange(n, dtype=torch.float64) / (2 * n) for n in (height, width))
        squared = rows[:, None] ** 2 + columns**2
        squared[0, 0] = (0.25 / max(height, width)) ** 2
        return self.power / squared


def mean_sigma(measurement: Measurement) -> Tensor:
    """One sigma per image, (B, 1, 1, 1): the root mean square over its values."""
    y = measurement.y
    sigma = torch.as_tensor(measurement.sigma, dtype=y.real.dtype, device=y.device)
    each = (
        sigma.square().expand(len(y), *sigma.shape[1:])
        if sigma.ndim
        else sigma.square().expand(len(y), 1)
    )
    return each.flatten(1).mean(1).sqrt().view(-1, 1, 1, 1)
