"""Denoising diffusion null-space models (Wang et al., ICLR 2023, arXiv:2212.00490): DDNM, DDNM+ for
noise, and time travel.

What y tells replaces the network's estimate in the range of A†, which keeps the null space (eq.
13). Noise on y weakens that and makes up part of the next state's noise (DDNM+, eq. 17 and 51, in
the components of A = U diag(s) V*):

    x0 <- x0 + Sigma A†(y − A x0),    x_s = alpha_s x0 + Phi z + Psi eps

with diagonal Sigma, Phi, Psi; where n_i = alpha_s sigma_y / s_i is the noise on y's component at
the scale of x_s,

                        Sigma                       Phi                    Psi
    none or unmeasured  1                           eta sigma_s            sqrt(1 − eta²) sigma_s
    n_i <= sigma_s      1                           sqrt(sigma_s² − n_i²)  0
    n_i > sigma_s       sqrt(1 − eta²) sigma_s/n_i  eta sigma_s            0

Sigma is the guidance, Phi and Psi the transition. Time travel (section 3.3) climbs
``travel_length`` levels after as many steps, ``travel_repeat`` − 1 times, to alpha_s x0 + sigma_s z
with the last x0: not to a noised x_t, as RePaint does.

Symbols: eta, the share of fresh noise. Published: eta 0.85, 100 steps, no time travel. More fresh
noise gives a higher PSNR, less of it a better LPIPS.

A component with s_i > 0 may carry nothing but noise. Where the measurement has noise, those whose
sigma_y / s_i exceeds ``sigma_max`` count as unmeasured; the authors' code cuts by the singular
value instead, below 3e-2 for deblurring. Nor does it clip x0, as ``clip`` of the network does here
where images have a range. Its Lambda_noise for super-resolution by means multiplies eps by V
without V*, which mixes the components; the formulas above do not.

This is the authors' SVD code, which has DDIM where the paper has DDPM; with noise in every
component it is DDRM with eta_b = 1. Their code travels back from the network's x0, here it is the
corrected one. Their simplified DDNM+, one Sigma and Phi for all components, presumes that A† does
not amplify noise, and is left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Self

import torch
from torch import Tensor

from invdiff.itineraries import Jumps
from invdiff.network import Prediction
from invdiff.problem import LinearOperator, Measurement, Operator, SpectralOperator
from invdiff.problem.spectral import compact
from invdiff.sampling import Between, Denoise, Guidance, Method, Setting, Step, Transition


def _check_eta(eta: float) -> None:
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be in [0, 1], got {eta}")


def _check_sigma_max(sigma_max: float) -> None:
    if not sigma_max > 0:
        raise ValueError(f"sigma_max must be positive, got {sigma_max}")


def _noisy(measurement: Measurement) -> bool:
    """Whether any image may be noisy; tensors are not looked into."""
    return isinstance(measurement.sigma, Tensor) or measurement.sigma > 0


def _noise(measurement: Measurement, sigma_max: float) -> tuple[Tensor, Tensor]:
    """sigma_y / s_i, zero where nothing is measured; and where y tells something: it is measured,
    and sigma_y / s_i is not too large to count. Both broadcast against V* x."""

    def make(measurement: Measurement) -> tuple[Tensor, Tensor]:
        sigma = measurement.component_sigma("DDNM")
        counts = sigma <= sigma_max
        return torch.where(counts, sigma, 0.0), counts & compact(measurement.spectral.measured)

    return measurement.once(("ddnm", sigma_max), make)


@dataclass(frozen=True)
class DDNM(Guidance):
    """x0 + Sigma A†(y − A x0). Without noise any transition may follow; with noise
    :class:`NullSpaceNoise` of the same eta.

    Args:
        eta: the share of fresh noise that the transition draws; it matters with noise only.
        sigma_max: the largest sigma_y / s_i, in the network's range, of a component that counts as
            measured.
    """

    eta: float = 0.85
    sigma_max: float = 2.0
    requires: ClassVar[type[Operator] | None] = LinearOperator
    one_sigma: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_eta(self.eta)
        _check_sigma_max(self.sigma_max)

    def bind(self, setting: Setting) -> Self:
        bound, measurement = super().bind(setting), setting.measurement
        if _noisy(measurement) and not isinstance(measurement.operator, SpectralOperator):
            raise ValueError(
                f"DDNM requires {SpectralOperator.wanted()} where the measurement has "
                f"noise, but {measurement.operator.kind} is not one; "
                "choose another method or operator, or say sigma=0"
            )
        return bound

    def __call__(
        self, denoise: Denoise, x_t: Tensor, step: Step, measurement: Measurement
    ) -> Prediction:
        operator, p = measurement.linear, denoise(x_t, step.t)
        if not (isinstance(operator, SpectralOperator) and _noisy(measurement)):
            return p.move_x0(operator.pinv(measurement.residual(p.x0)))
        noise, told = _noise(measurement, self.sigma_max)
        n, sigma = float(step.s.alpha) * noise, float(step.s.sigma)
        kept = math.sqrt(1 - self.eta**2) * sigma
        weight = torch.where(n > sigma, kept / torch.where(n > sigma, n, 1.0), told.to(n))
        return p.move_x0(operator.V(weight * (measurement.components - operator.Vt(p.x0))))


@dataclass(frozen=True)
class NullSpaceNoise(Transition):
    """x_s = alpha_s x0 + Phi z + Psi eps, and up to alpha_s x0 + sigma_s z with the last x0.

    Args:
        eta: the share of fresh noise.
        sigma_max: as in :class:`DDNM`.
    """

    eta: float = DDNM.eta
    sigma_max: float = DDNM.sigma_max
    requires: ClassVar[type[Operator] | None] = LinearOperator

    def __post_init__(self) -> None:
        _check_eta(self.eta)
        _check_sigma_max(self.sigma_max)

    def down(self, predict: Denoise, x_t: Tensor, step: Step, measurement: Measurement) -> Tensor:
        operator, p = measurement.operator, predict(x_t, step.t)
        alpha, sigma, z = float(step.s.alpha), float(step.s.sigma), step.randn_like(x_t)
        fresh, kept = self.eta * sigma, math.sqrt(1 - self.eta**2) * sigma
        if not isinstance(operator, SpectralOperator) or not _noisy(measurement):
            return torch.add(alpha * p.x0 + fresh * z, p.eps, alpha=kept)
        n = alpha * _noise(measurement, self.sigma_max)[0]
        phi = torch.where((n > 0) & (n <= sigma), (sigma**2 - n**2).clamp(min=0).sqrt(), fresh)
        psi = torch.zeros_like(n).masked_fill(n == 0, kept)
        noise = operator.V(torch.addcmul(phi * operator.Vt(z), psi, operator.Vt(p.eps)))
        return torch.add(noise, p.x0, alpha=alpha)

    def up(self, x_t: Tensor, step: Step) -> Tensor:
        if step.last is None:
            raise ValueError("time travel goes back up from an estimate: begin with a step down")
        return step.s.alpha * step.last.x0 + step.s.sigma * step.randn_like(x_t)


def ddnm(
    eta: Annotated[float, Between(0, 1)] = DDNM.eta,
    travel_length: int = 1,
    travel_repeat: int = 1,
    sigma_max: float = DDNM.sigma_max,
    spacing: str | None = None,
) -> Method:
    """DDNM, which is DDNM+ where the measurement has noise.

    Args:
        eta: the share of fresh noise.
        travel_length: l, how many levels time travel climbs.
        travel_repeat: r, how often each stretch is walked; 1 is no time travel.
        sigma_max: the largest sigma_y / s_i, in the network's range, of a component that counts as
            measured.
        spacing: of the levels, see :meth:`invdiff.schedules.Schedule.times`; by default the
            schedule's own.
    """
    travel = Jumps(travel_length, travel_repeat, spacing)
    pieces = DDNM(eta, sigma_max), NullSpaceNoise(eta, sigma_max)
    return Method(*pieces, travel if travel_repeat > 1 or spacing else None)
