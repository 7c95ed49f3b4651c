"""deepinv's samplers (https://deepinv.github.io, 0.5) on our measurements and with our networks,
through their own classes.

    deepinv_dps       ``deepinv.sampling.DPS``        any operator
    deepinv_ddrm      ``deepinv.sampling.DDRM``       operators with a singular value decomposition
    deepinv_diffpir   ``deepinv.sampling.DiffPIR``    linear operators, with noise

Formulas, noise schedules, starting states and random draws are deepinv's. Ours are y, A, the
network, and the number of network evaluations, which is theirs too. Images are sampled one at a
time, since deepinv holds one noise level and one mask for all of a batch, draws noise for all of it
at once, and knows no noise per pixel; photo64 takes as long for eight images apart as together on a
CPU.

What was tried for the defaults, with photo64 in bfloat16 and 100 evaluations on the centre 64x64 of
kodim01 and kodim07, sigma 0.025; PSNR / LPIPS for a random 70 % missing, bicubic x4, gaussian blur
of 1.5 px:

    DPS      annealed, weight 1   22.0 / 0.23   14.6 / 0.80   22.5 / 0.31
             3                    24.1 / 0.07   19.2 / 0.53   23.7 / 0.21
             4.5, 6 for blur      24.3 / 0.06                 23.8 / 0.16
             10                   15.9 / 0.41   21.9 / 0.35
             20                                 21.9 / 0.29
             norm, weight 1       (deepinv's default)
             100                  21.8 / 0.29                 21.7 / 0.22
             300 (default)        23.8 / 0.14   20.8 / 0.19   22.2 / 0.14
             1000                               19.2 / 0.16
    DDRM     eta 0.85 (default)   24.9 / 0.13   22.3 / 0.47   25.1 / 0.16
             eta 0.5              23.7 / 0.12   22.5 / 0.44   23.3 / 0.09
    DiffPIR  lambda 7, zeta 0.1   19.4 / 0.41   20.2 / 0.27   22.0 / 0.12      (deepinv's default)
             7, 0.3               21.2 / 0.21   20.7 / 0.27   23.2 / 0.10
             7, 1                 24.6 / 0.17   21.7 / 0.48   24.5 / 0.30
             2, 0.3               21.2 / 0.21   20.7 / 0.24   22.4 / 0.09
             2, 0.6 (default)     23.0 / 0.11   21.5 / 0.27   24.1 / 0.10
             2, 1                 24.9 / 0.11   22.2 / 0.40   25.4 / 0.21
             0.7, 0.6             22.9 / 0.11   21.4 / 0.27   20.8 / 0.18
             0.7, 1               24.9 / 0.09   22.4 / 0.35   25.2 / 0.13

Ours with their presets, on the same: DPS 23.4 / 0.07, 21.1 / 0.31, 23.3 / 0.24; DDRM 23.6 / 0.12,
21.4 / 0.22, 24.5 / 0.15; DiffPIR 25.0 / 0.09, 21.2 / 0.22, 24.8 / 0.13. Those presets are chosen
for each operator, so a comparison should choose for these as well.

Known of deepinv 0.5: DDRM divides its noise by sqrt(2), which is right for the complex spectrum of
``BlurFFT`` and too little for every real one (with noise sqrt(2) times as large, DDRM at eta 0.5
has 21.2 / 0.22 for super-resolution, as ours); levels spaced quadratically or cubically instead of
linearly change little. DiffPIR divides by sigma, so that measurements without noise are refused,
takes sigma~ in units of [-1, 1] and sigma in those of [0, 1], so that a lambda is not ours, and
returns a state with the last level's noise in it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import deepinv
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from invdiff.benchmarks.baselines import Baseline, Unfit, mean_sigma
from invdiff.network import Denoiser
from invdiff.noise import generator_of, seed_of
from invdiff.problem import LinearOperator, Measurement, Operator, SpectralOperator
from invdiff.solving.solve import check_solve


class AsDenoiser(deepinv.models.Denoiser):
    """Our network as deepinv's: ``(x, sigma) -> E[x0 | x]`` for x = x0 + sigma n with images in [0,
    1].

    Noise below the network's least is denoised as that.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.low, high = denoiser.image_range or (0.0, 1.0)
        self.width = high - self.low
        self.least = float(denoiser.schedule(denoiser.schedule.t_min).ratio)

    def forward(self, x: Tensor, sigma: Tensor | float, *args: Any, **kwargs: Any) -> Tensor:
        level = self.denoiser.schedule.at(max(self.width * float(sigma), self.least))
        x_t = (self.low + self.width * x) * float(level.alpha)
        return (self.denoiser(x_t, level).x0 - self.low) / self.width


class Spectral(deepinv.physics.DecomposablePhysics):
    """Our operator with its singular value decomposition as deepinv's.

    A, its adjoint and its proximal map are the operator's own, which are those of the decomposition
    to rounding and up to 60 times as fast. A Fourier transform is laid out as in deepinv's
    ``BlurFFT``, half of the columns as pairs (real, imaginary): DDRM's noise depends on it.

    Raises:
        ValueError: a complex decomposition that is no Fourier transform.
    """

    def __init__(self, operator: SpectralOperator, sigma: float) -> None:
        assert operator.shape is not None
        s = operator.singular_values
        s = s if operator.per_image else s[None]
        x = torch.rand(1, *operator.shape, dtype=s.dtype, generator=generator_of("peers")).to(
            s.device
        )
        is_complex, width = operator.Vt(x).is_complex(), operator.shape[-1]
        if is_complex:
            s = s[..., : width // 2 + 1, None].expand(*s.shape[:-1], -1, 2)
        super().__init__(
            U=_from_pairs(operator.U, width) if is_complex else operator.U,
            U_adjoint=_to_pairs(operator.Ut) if is_complex else operator.Ut,
            V=_from_pairs(operator.V, width) if is_complex else operator.V,
            V_adjoint=_to_pairs(operator.Vt) if is_complex else operator.Vt,
            mask=s,
            img_size=operator.shape,
            noise_model=deepinv.physics.GaussianNoise(sigma),
            device=s.device,
        )
        self.operator = operator
        if is_complex and not torch.allclose(self.V(self.V_adjoint(x)), x, atol=1e-4):
            raise Unfit(
                "deepinv has no layout for the complex singular vectors of "
                f"{operator.kind}, which are no Fourier transform"
            )

    def A(self, x: Tensor, **_: Any) -> Tensor:
        return self.operator(x)

    def A_adjoint(self, y: Tensor, **_: Any) -> Tensor:
        return self.operator.adjoint(y)

    def prox_l2(self, z: Tensor, y: Tensor, gamma: Tensor | float, **_: Any) -> Tensor:
        return self.operator.prox(z, y, gamma)


def _to_pairs(transform: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def half(x: Tensor) -> Tensor:
        return torch.view_as_real(transform(x)[..., : x.shape[-1] // 2 + 1].contiguous())

    return half


def _from_pairs(inverse: Callable[[Tensor], Tensor], width: int) -> Callable[[Tensor], Tensor]:
    """Of an inverse that returns real parts: columns that stand for two count twice."""
    half = width // 2 + 1
    single = torch.tensor([j == 0 or 2 * j == width for j in range(half)])

    def whole(z: Tensor) -> Tensor:
        columns = torch.view_as_complex(z)
        return inverse(
            F.pad(torch.where(single.to(z.device), columns, 2 * columns), (0, width - half))
        )

    return whole


def linear_physics(operator: LinearOperator, sigma: float = 0.0) -> deepinv.physics.LinearPhysics:
    """A bound operator as deepinv's physics. One without a decomposition is solved by deepinv's
    conjugate gradients."""
    if isinstance(operator, SpectralOperator):
        return Spectral(operator, sigma)
    return deepinv.physics.LinearPhysics(
        A=lambda x, **_: operator(x),
        A_adjoint=lambda y, **_: operator.adjoint(y),
        img_size=operator.shape,
        noise_model=deepinv.physics.GaussianNoise(sigma),
    )


@dataclass(frozen=True)
class Peer(Baseline):
    """A sampler of deepinv's. Each image is sampled alone, with deepinv's own draws from torch's
    generator, seeded for that image; deepinv knows one noise level and one operator for all images.

    Args:
        steps: network evaluations.
    """

    network: ClassVar[bool] = True

    steps: int = 100

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise ValueError(f"steps must be at least 2, got {self.steps}")

    def restore(
        self, measurement: Measurement, denoiser: Denoiser | None, seed: int, ids: list[int]
    ) -> Tensor:
        assert denoiser is not None
        try:
            check_solve(measurement, denoiser, "none")  # whether the network makes such images
        except ValueError as error:
            raise Unfit(str(error)) from error
        who = f"deepinv's {type(self).__name__}"
        if denoiser.autoencoder is not None:
            raise Unfit(f"{who} works on images; {denoiser.name} is a latent network")
        self.check(measurement, who)
        net = AsDenoiser(denoiser)
        measurement = measurement.to(denoiser.device, torch.float32)
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            return torch.cat(
                [
                    self._restore_one(net, measurement.select([k]), seed_of("sampling", seed, i))
                    for k, i in enumerate(ids)
                ]
            )

    def _restore_one(self, net: AsDenoiser, measurement: Measurement, seed: int) -> Tensor:
        torch.manual_seed(seed)
        return self.sample(net, measurement)

    def check(self, measurement: Measurement, who: str) -> None:
        """Raises :class:`Unfit` for what it cannot sample."""

    @abstractmethod
    def sample(self, net: AsDenoiser, measurement: Measurement) -> Tensor:
        """Of one image, (1, C, H, W), drawing from torch's global generator."""


@dataclass(frozen=True)
class DPS(Peer):
    """Chung et al. 2023, on the VP schedule by ancestral steps.

    Args:
        steps: network evaluations, each forward and backward.
        weight: deepinv's lambda of the likelihood's score; of the norm hundreds, annealed a few,
            see the module's docstring.
        guidance: ``"norm"``, the gradient of ‖y − A(x0)‖, or ``"annealed"``, that of ‖y − A(x0)‖² /
            (2 (sigma² + sigma_t²)).
    """

    requires: ClassVar[type[Operator] | None] = None

    weight: float = 300.0
    guidance: str = "norm"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.guidance not in ("norm", "annealed"):
            raise ValueError(f"guidance must be 'norm' or 'annealed', got {self.guidance!r}")
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"weight must be a finite number, at least 0, got {self.weight}")

    def sample(self, net: AsDenoiser, measurement: Measurement) -> Tensor:
        operator, noise = (
            measurement.operator,
            deepinv.physics.GaussianNoise(float(mean_sigma(measurement))),
        )
        physics = deepinv.physics.Physics(A=lambda x, **_: operator(x), noise_model=noise)
        sampler = deepinv.sampling.DPS(
            net,
            weight=self.weight,
            guidance=self.guidance,
            num_steps=self.steps + 1,
            device=measurement.y.device,
        )
        return sampler(measurement.y, physics, x_init=(1, *measurement.image_shape))


@dataclass(frozen=True)
class DDRM(Peer):
    """Kawar et al. 2022, on noise levels that fall linearly from 1 to 0 for images in [0, 1].

    Args:
        steps: network evaluations.
        eta: share of fresh noise in components that y does not tell, in [0, 1].
        etab: how far components that y tells well follow it, in [0, 1].
    """

    requires: ClassVar[type[Operator] | None] = SpectralOperator

    eta: float = 0.85
    etab: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 <= self.eta <= 1 and 0 <= self.etab <= 1):
            raise ValueError(f"eta and etab must be in [0, 1], got {self.eta} and {self.etab}")

    def check(self, measurement: Measurement, who: str) -> None:
        measurement.image_sigma(who)

    def sample(self, net: AsDenoiser, measurement: Measurement) -> Tensor:
        assert isinstance(measurement.operator, SpectralOperator)
        physics = linear_physics(measurement.operator, float(mean_sigma(measurement)))
        sampler = deepinv.sampling.DDRM(
            net, sigmas=np.linspace(1, 0, self.steps), eta=self.eta, etab=self.etab
        )
        return sampler(measurement.y, physics)


@dataclass(frozen=True)
class DiffPIR(Peer):
    """Zhu et al. 2023, from the noised A* y, on the DDPM schedule of 1000 levels.

    Args:
        steps: network evaluations.
        zeta: share of fresh noise in the variance, in [0, 1].
        lambda_: how far the prior outweighs the measurement.
    """

    zeta: float = 0.6
    lambda_: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.zeta <= 1:
            raise ValueError(f"zeta must be in [0, 1], got {self.zeta}")
        if not 0 < self.lambda_ < float("inf"):
            raise ValueError(f"lambda_ must be a finite number above 0, got {self.lambda_}")

    def check(self, measurement: Measurement, who: str) -> None:
        measurement.check_noisy(who)
        measurement.image_sigma(who)

    def sample(self, net: AsDenoiser, measurement: Measurement) -> Tensor:
        assert isinstance(measurement.operator, LinearOperator)
        sigma = float(mean_sigma(measurement))
        sampler = deepinv.sampling.DiffPIR(
            net,
            deepinv.optim.data_fidelity.L2(),
            sigma=sigma,
            max_iter=self.steps,
            zeta=self.zeta,
            lambda_=self.lambda_,
            device=measurement.y.device,
        )
        return sampler(measurement.y, linear_physics(measurement.operator, sigma))
