"""Blur: true convolution with a kernel, the same for every channel (not correlation: a kernel is
not flipped in its effect).

    y[i] = sum_j  w[j] x[i + c − j],    c = k // 2 the centre of a kernel of k pixels (per axis)

Outside the image x goes on by the border rule: ``circular`` (… c d | a b c d | a b …), ``reflect``
(… c b | a b c d | c b …, the edge is not repeated) or ``replicate`` (… a a | a b c d | d d …);
scipy.ndimage calls them wrap, mirror and nearest. With ``valid`` nothing is assumed of it: y has
only the pixels whose neighbours are all in the image, so that x is larger than y by k - 1.

Symbols: x image, y measurement of the same shape, w kernel, sigma its standard deviation in pixels,
h = FFT(w) for circular. :class:`Blur` returns the class that fits kernel and border:

    FourierBlur    circular: V* = FFT, s = |h|, U = V diag(h/|h|); exact SVD
    SeparableBlur  gaussian and box with another border: R X Cᵀ; exact SVD (the cosine transform
                   diagonalises mirrored symmetric kernels too, but its basis is not orthogonal, so
                   it gives no pseudo-inverse)
    Blur           other kernels with another border: exact adjoint, pseudo-inverse and prox by
                   conjugate gradients (relative tolerance 1e-6, at most 100 iterations, which are
                   too few without a ridge: their stop regularises, and is reported). Circulant and
                   mirrored preconditioners saved at most a third of the iterations with a ridge
                   of 0.01, and took a pseudo-inverse without one further from the image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from invdiff.images.kernels import kernel_matrix, read_kernel
from invdiff.network import Denoiser
from invdiff.operators import kernel_estimate
from invdiff.operators.kernel_estimate import PRIORS
from invdiff.plugins.registry import load
from invdiff.problem import LinearOperator, SeparableOperator, SpectralOperator
from invdiff.problem.operator import Shape
from invdiff.problem.separable import check_image_shape

KERNELS = ("gaussian", "motion", "box", "disk", *PRIORS)
BORDERS = ("circular", "reflect", "replicate", "valid")


@dataclass(frozen=True, eq=False)
class Blur(LinearOperator):
    """Convolution with any kernel under a border that is mirrored, repeated or unknown; its fields
    are the parameters of :func:`blur`, which makes the right class."""

    kernel: str | Path | Tensor = "gaussian"
    _: KW_ONLY
    sigma: float | Tensor = 2.0
    sigma_x: float | Tensor | None = None
    kernel_size: int | None = None
    intensity: float = 0.5
    seed: int = 0
    border: str | None = None
    prior: str | None = None

    registered_as = "blur"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beyond == "circular" and type(self) is Blur:
            raise TypeError("a blur with a circular border is a FourierBlur; blur(...) makes it")
        if self.beyond not in BORDERS:
            raise ValueError(f"border must be one of {', '.join(BORDERS)}, got {self.border!r}")
        if isinstance(self.kernel, Tensor):
            if self.kernel.device.type != "meta":
                kernel_matrix(self.kernel, "the kernel tensor")
        elif (
            str(self.kernel) not in KERNELS
            and not self.state
            and not Path(self.kernel).expanduser().is_file()
        ):
            # A loaded measurement carries its kernel; the file may be gone by then.
            raise ValueError(
                f"kernel must be one of {', '.join(KERNELS)}, an existing kernel file or a "
                f"tensor, got {str(self.kernel)!r}"
            )
        for name in ("sigma", "sigma_x"):
            value = getattr(self, name)
            if value is not None and (not value > 0 or value == float("inf")):
                raise ValueError(
                    f"{name}, the kernel's standard deviation in pixels, must be positive, got "
                    f"{value}"
                )
        if self.sigma_x is not None and str(self.kernel) != "gaussian":
            raise ValueError("sigma_x belongs to the gaussian kernel alone")
        size = self.kernel_size
        if size is not None and (
            isinstance(size, bool) or not isinstance(size, int) or size < 1 or size % 2 == 0
        ):
            raise ValueError(f"kernel_size must be an odd number of pixels, e.g. 9, got {size!r}")
        if self.unknown and (size or 0) > kernel_estimate.WIDEST:
            raise ValueError(
                f"kernel_size of an unknown kernel is at most {kernel_estimate.WIDEST}, got {size}"
            )
        if self.prior is not None and not isinstance(self.prior, str):
            raise ValueError(f"prior is the name of a network of kernels, got {self.prior!r}")
        if self.prior is not None and str(self.kernel) != "unknown":
            raise ValueError(
                f"prior={self.prior!r} is the network of a kernel that is unknown: say "
                f"kernel=unknown, got {str(self.kernel)!r}"
            )
        if not 0 < self.intensity <= 1:
            raise ValueError(f"intensity must be above 0 and at most 1, got {self.intensity}")

    @property
    def beyond(self) -> str:
        """The border rule."""
        return self.border or "circular"

    def of_file(self, path: Path) -> Blur:
        """A photograph goes on beyond its border, so that its blur is ``valid`` unless said."""
        if self.border:
            return self
        if "valid" not in self._memo:
            self._memo["valid"] = blur(**self.parameters | {"border": "valid"})
        return self._memo["valid"]

    def measured_part(self, x: Tensor) -> Tensor:
        if self.beyond != "valid":
            return x
        (top, left), (height, width) = ((k - 1) // 2 for k in self._size()), self._size()
        return x[
            ..., top : x.shape[-2] - (height - 1 - top), left : x.shape[-1] - (width - 1 - left)
        ]

    @property
    def notes(self) -> tuple[str, ...]:
        """The kernel's size, and what is assumed beyond the border."""
        height, width = self._size()
        said = f"blur: kernel of {height}x{width} pixels, border {self.beyond}"
        if not self.unknown:
            return (said,)
        prior = f"as {self.prior} draws them" if self.prior else PRIORS[str(self.kernel)]
        return (f"{said}, unknown: non-negative, with the sum 1, and {prior}",)

    @property
    def unknown(self) -> tuple[str, ...]:
        known = isinstance(self.kernel, Tensor) or str(self.kernel) not in PRIORS
        return () if known else ("kernel",)

    @property
    def per_image(self) -> frozenset[str]:
        """All of it, once a kernel was estimated for each image."""
        each = self.unknown and "kernel" in self.state and self.state["kernel"].ndim == 4
        return frozenset(self.state) if each else frozenset()

    def learned(self, x: Tensor, y: Tensor, ratio: float = 0.0) -> Self:
        if not self.unknown:
            return self
        assert self.shape is not None
        here, prior = self._like(x), PRIORS[str(self.kernel)]
        size = here.state["kernel"].shape[-2:]
        start = here.state["kernel"].expand(len(x), 1, *size)
        kernel = kernel_estimate.estimated(x, y, start, self.beyond, prior, ratio)
        return self._changed(state=here.state_of(kernel, self.shape))

    def unknown_prior(self) -> tuple[Denoiser, Shape] | None:
        if self.prior is None:
            return None
        network: Denoiser = load("models", self.prior)()
        if network.channels not in (None, 1):
            raise ValueError(
                f"{self.prior} is no network of kernels, which have one channel: it takes "
                f"{network.channels}; kernels16 is one"
            )
        size = max(self._size())
        side = network.image_size or size
        if size > side:
            raise ValueError(
                f"{self.prior} was trained on kernels within {side}x{side} pixels: give "
                f"operator.kernel_size={side - 1 + side % 2} or less, got {size}"
            )
        return network, (1, side, side)

    def drawn(self, state: Tensor) -> Self:
        assert self.shape is not None
        here = self._like(state)
        kernel = kernel_estimate.shown(state, here._size())
        return self._changed(state=here.state_of(kernel, self.shape))

    def estimated(self, values: Mapping[str, Tensor]) -> Blur:
        if not self.unknown:
            return self
        kernel = blur(kernel_matrix(values["kernel"].cpu(), "the kernel"), border=self.border)
        return kernel if self.shape is None else kernel.bind(self.shape)

    def image_shape(self, measurement_shape: Shape) -> Shape:
        if self.beyond != "valid":
            return measurement_shape
        check_image_shape(measurement_shape, "Blur")
        sides = zip(measurement_shape[1:], self._size(), strict=True)
        return (measurement_shape[0], *(n + k - 1 for n, k in sides))

    def _size(self) -> Sequence[int]:
        return (self.state["kernel"] if "kernel" in self.state else self.make_kernel()).shape[-2:]

    def make_kernel(self) -> Tensor:
        """The kernel w (k, l), float64."""
        if isinstance(self.kernel, Tensor):
            kernel = kernel_matrix(self.kernel, "the kernel tensor")
            return kernel.to("cpu", torch.float64, copy=True)
        match str(self.kernel):
            case "gaussian" | "box":
                rows, columns = self._profiles()
                return rows[:, None] * columns
            case unknown if unknown in PRIORS:
                return self._guess()
            case "disk":
                return disk(self.kernel_size or 9)
            case "motion":
                from invdiff.problem.physics import motion_kernel

                return motion_kernel(self.kernel_size or 31, self.intensity, self.seed)
            case path:
                return read_kernel(path)

    def _guess(self) -> Tensor:
        """Where the estimation of an unknown kernel starts: a Gaussian as wide as its square."""
        size = self.kernel_size or 15
        return blur("gaussian", sigma=max(size / 6, 0.5), kernel_size=size).make_kernel()

    def _profiles(self) -> tuple[Tensor, Tensor]:
        """The 1-D factors of a gaussian or box kernel, along a column and along a row."""
        if str(self.kernel) == "box":
            size = self.kernel_size or 9
            return (torch.full((size,), 1 / size, dtype=torch.float64),) * 2
        across = self.sigma if self.sigma_x is None else self.sigma_x
        return self._gaussian(self.sigma), self._gaussian(across)

    def _gaussian(self, sigma: float | Tensor) -> Tensor:
        size = self.kernel_size
        radius = int(4 * sigma + 0.5) if size is None else size // 2  # as scipy.ndimage
        places = torch.arange(-radius, radius + 1, dtype=torch.float64)
        profile = torch.exp(-0.5 * (places / sigma) ** 2)
        return profile / profile.sum()

    def _check_fits(self, size: Sequence[int], shape: Shape) -> None:
        if self.beyond == "valid":
            if any(k > n for k, n in zip(size, shape[1:], strict=True)):
                raise ValueError(
                    f"no pixel of an image of {shape[1]}x{shape[2]} has all the neighbours that a "
                    f"kernel of {size[0]}x{size[1]} pixels takes: give a smaller kernel_size"
                )
            return
        if any(k // 2 >= n for k, n in zip(size, shape[1:], strict=True)):
            raise ValueError(
                f"a kernel of {size[0]}x{size[1]} pixels reaches beyond an image of "
                f"{shape[1]}x{shape[2]} mirrored once: "
                "give a smaller kernel_size or border='circular'"
            )

    # Pad, convolve by FFT, crop; the adjoint runs backwards. Subclasses know better for their
    # kernels and borders.

    def make_state(self, shape: Shape) -> dict[str, Tensor]:
        check_image_shape(shape, "Blur")
        kernel = self.make_kernel()
        self._check_fits(kernel.shape, shape)
        return self.state_of(kernel, shape)

    def state_of(self, kernel: Tensor, shape: Shape) -> dict[str, Tensor]:
        """The state of a kernel (k, l), or of one for every image, (B, 1, k, l)."""
        transfer = torch.fft.rfft2(kernel, s=_lengths(shape, kernel.shape[-2:]))
        return {"transfer": torch.view_as_real(transfer).contiguous(), "kernel": kernel}

    def _sizes(self) -> tuple[list[int], list[int], list[int]]:
        """How far the padding reaches before and after the image, (rows, columns), and the
        transform's lengths."""
        assert self.shape is not None
        sizes = self.state["kernel"].shape[-2:]
        return [k - 1 - k // 2 for k in sizes], [k // 2 for k in sizes], _lengths(self.shape, sizes)

    def _forward(self, x: Tensor) -> Tensor:
        before, after, lengths = self._sizes()
        padded = x
        if self.beyond != "valid":
            padded = F.pad(x, (before[1], after[1], before[0], after[0]), mode=self.beyond)
        full = torch.fft.irfft2(
            torch.fft.rfft2(padded, s=lengths) * torch.view_as_complex(self.state["transfer"]),
            s=lengths,
        )
        top, left = (k - 1 for k in self.state["kernel"].shape[-2:])
        return full[..., top : padded.shape[-2], left : padded.shape[-1]]

    def _adjoint(self, y: Tensor) -> Tensor:
        before, after, lengths = self._sizes()
        h, w = y.shape[-2:]
        top, left = (k - 1 for k in self.state["kernel"].shape[-2:])
        placed = F.pad(y, (left, lengths[1] - left - w, top, lengths[0] - top - h))
        padded = torch.fft.irfft2(
            torch.fft.rfft2(placed) * torch.view_as_complex(self.state["transfer"]).conj(),
            s=lengths,
        )
        padded = padded[..., : before[0] + h + after[0], : before[1] + w + after[1]]
        if self.beyond == "valid":
            return padded
        x = self._fold(padded.mT, before[0], after[0]).mT
        return self._fold(x, before[1], after[1])

    def _fold(self, padded: Tensor, before: int, after: int) -> Tensor:
        """The adjoint of padding the last dimension: what was copied is added back where it came
        from."""
        size = padded.shape[-1] - before - after
        head, x, tail = padded.split([before, size, after], dim=-1)
        if self.beyond == "replicate":
            return (
                x
                + F.pad(head.sum(-1, keepdim=True), (0, size - 1))
                + F.pad(tail.sum(-1, keepdim=True), (size - 1, 0))
            )
        return (
            x
            + F.pad(head.flip(-1), (1, size - 1 - before))
            + F.pad(tail.flip(-1), (size - 1 - after, 1))
        )


@dataclass(frozen=True, eq=False)
class FourierBlur(SpectralOperator, Blur):
    """Circular border. Spectral arrays are full complex transforms (C, H, W), orthonormal."""

    registered_as = "blur"

    def make_state(self, shape: Shape) -> dict[str, Tensor]:
        check_image_shape(shape, "Blur")
        return self.state_of(self.make_kernel(), shape)

    def state_of(self, kernel: Tensor, shape: Shape) -> dict[str, Tensor]:
        height, width = shape[1:]
        rows, columns = (
            (torch.arange(k, device=kernel.device) - k // 2) % n
            for k, n in zip(kernel.shape[-2:], (height, width), strict=True)
        )
        # A kernel larger than the image wraps around it.
        wrapped = kernel.new_zeros(*kernel.shape[:-2], height * width)
        wrapped = wrapped.index_add(
            -1, (rows[:, None] * width + columns).flatten(), kernel.flatten(-2)
        )
        h = torch.fft.fft2(wrapped.unflatten(-1, (height, width)))
        h = (
            h + torch.roll(h.flip(-2, -1), (1, 1), (-2, -1)).conj()
        ) / 2  # symmetric to the last bit, so that U z is real
        s = h.abs()
        tiny = s <= 1e-14 * s.amax((-2, -1), keepdim=True)  # of rounding alone, phase included
        s, phase = torch.where(tiny, 0.0, s), torch.where(tiny, 1.0, h / torch.where(tiny, 1.0, s))
        half = torch.where(tiny, 0.0, h)[..., : width // 2 + 1]
        # Complex numbers as pairs: they move between dtypes and into files like any other tensor.
        own = {"kernel": kernel} if self.unknown else {}
        return own | {
            "transfer": torch.view_as_real(half).contiguous(),
            "s": s,
            "phase": torch.view_as_real(phase).contiguous(),
        }

    # The half transform of real images is twice as fast as the SVD's full one, so the solvers use
    # it.

    def _filter(self, x: Tensor, multiplier: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(x) * multiplier, s=x.shape[-2:])

    def _h(self) -> Tensor:
        return torch.view_as_complex(self.state["transfer"])

    def _forward(self, x: Tensor) -> Tensor:
        return self._filter(x, self._h())

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._filter(y, self._h().conj())

    def _pinv(self, y: Tensor, ridge: Tensor | float) -> Tensor:
        h, s = self._h(), self._half_s()
        keep = s > self.rcond * s.amax((-2, -1), keepdim=True)
        return self._filter(
            y, torch.where(keep, h.conj() / torch.where(keep, s.square() + ridge, 1.0), 0.0)
        )

    def _prox(self, z: Tensor, y: Tensor, gamma: Tensor | float) -> Tensor:
        h = self._h()
        numerator = torch.fft.rfft2(z) + gamma * h.conj() * torch.fft.rfft2(y)
        return torch.fft.irfft2(numerator / (1 + gamma * self._half_s() ** 2), s=z.shape[-2:])

    def _half_s(self) -> Tensor:
        s = self.state["s"]
        return s[..., : s.shape[-1] // 2 + 1]

    # The singular value decomposition -------------------------------------------------------------

    def _singular_values(self) -> Tensor:
        assert self.shape is not None
        s = self.state["s"]
        return s.expand(*s.shape[:-3], *self.shape)

    def _vt(self, x: Tensor) -> Tensor:
        return torch.fft.fft2(x, norm="ortho")

    def _v(self, z: Tensor) -> Tensor:
        return torch.fft.ifft2(z, norm="ortho").real

    def _ut(self, y: Tensor) -> Tensor:
        return torch.view_as_complex(self.state["phase"]).conj() * torch.fft.fft2(y, norm="ortho")

    def _u(self, z: Tensor) -> Tensor:
        return torch.fft.ifft2(torch.view_as_complex(self.state["phase"]) * z, norm="ortho").real


@dataclass(frozen=True, eq=False)
class SeparableBlur(SeparableOperator, Blur):
    """Gaussian or box kernel with a reflecting, replicating or unknown border."""

    registered_as = "blur"

    def matrices(self, shape: Shape) -> tuple[Tensor, Tensor]:
        check_image_shape(shape, "Blur")
        rows, columns = self._profiles()
        self._check_fits((len(rows), len(columns)), shape)
        return self._matrix(rows, shape[1]), self._matrix(columns, shape[2])

    def _matrix(self, profile: Tensor, size: int) -> Tensor:
        reach = len(profile) // 2
        units = torch.eye(size, dtype=torch.float64)[None]
        # Row j: the padded unit vector e_j.
        padded = (
            units if self.beyond == "valid" else F.pad(units, (reach, reach), mode=self.beyond)
        )[0]
        return (
            padded.unfold(1, len(profile), 1).matmul(profile).mT.contiguous()
        )  # profiles are symmetric: no flip


def blur(
    kernel: str | Path | Tensor = Blur.kernel,
    *,
    sigma: float | Tensor = Blur.sigma,
    sigma_x: float | Tensor | None = None,
    kernel_size: int | None = None,
    intensity: float = Blur.intensity,
    seed: int = Blur.seed,
    border: str | None = None,
    prior: str | None = None,
    shape: Shape | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> Blur:
    """Convolution with a kernel, by the class that knows most of it.

    Args:
        kernel: ``"gaussian"``, ``"motion"`` (a random camera path), ``"box"``, ``"disk"`` (out of
            focus, with smooth edges), the path of a file, a tensor (k, l), or ``"unknown"``,
            ``"unknown_sparse"``, ``"unknown_gaussian"``: a run then estimates it along with the
            image, as smooth, sparse or of Gaussian shape. Tensors are used as
            they are, files as :func:`invdiff.images.read_kernel` says: pictures are divided by
            their sum, and arrays where that is far from 1.
        sigma: standard deviation of the gaussian, in pixels.
        sigma_x: along a row (horizontally), where the gaussian is as wide as sigma along a column
            alone. None is sigma.
        kernel_size: k, side of the kernel in pixels, odd; the disk's diameter. None is 4 sigma to
            each side for the gaussian, 31 for motion, 15 for unknown (at most 63), 9 for box and
            disk.
        intensity: of the camera's shake, in (0, 1]: the path's standard deviation is intensity k /
            4 pixels per axis.
        seed: of the camera path.
        border: ``"circular"``, ``"reflect"``, ``"replicate"`` or, for photographs that arrive
            blurred and go on beyond their border, ``"valid"``. None is circular, and valid for a
            file that is the measurement.
        prior: a registered network of kernels, such as ``"kernels16"``, of ``kernel="unknown"``:
            the kernel then diffuses along with the image (:mod:`invdiff.sampling.joint`) instead of
            being estimated from it.
        shape: of the images, where ``state`` holds the tensors already.
    """
    separable = not isinstance(kernel, Tensor) and str(kernel) in ("gaussian", "box")
    kind = (
        FourierBlur
        if (border or "circular") == "circular"
        else SeparableBlur
        if separable
        else Blur
    )
    return kind(
        kernel,
        sigma=sigma,
        sigma_x=sigma_x,
        kernel_size=kernel_size,
        intensity=intensity,
        seed=seed,
        border=border,
        prior=prior,
        shape=shape,
        state=state or {},
    )


def disk(diameter: int, oversampling: int = 16) -> Tensor:
    """A disk (k, k) of ``diameter`` k pixels whose edge pixels count by the share that it
    covers."""
    fine = (
        torch.arange(diameter * oversampling, dtype=torch.float64) + 0.5
    ) / oversampling - diameter / 2
    inside = (fine[:, None] ** 2 + fine**2 <= (diameter / 2) ** 2).to(torch.float64)
    kernel = F.avg_pool2d(inside[None, None], oversampling)[0, 0]
    return kernel / kernel.sum()


def _lengths(shape: Shape, kernel: Sequence[int]) -> list[int]:
    """Transform lengths for a padded image. Longer than it is fine: the part that is cropped out
    does not see it."""
    return [_fast_length(n + k - 1) for n, k in zip(shape[1:], kernel, strict=True)]


def _fast_length(n: int) -> int:
    """The next length without prime factors above 5."""
    while True:
        rest = n
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 1
