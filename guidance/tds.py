"""Twisted diffusion sampler (Wu et al., NeurIPS 2023, arXiv:2306.17775, algorithm 1): sequential
Monte Carlo whose proposals are guided and whose weights make up for the guidance's error. The
samples of an image are its particles.

    p~(y | x_t)  = N(y; A x0(x_t), A C_t A* + sigma²)                the twisting function
    x_s          ~ p~(x_s | x_t, y) = N(m~, std²)
    w_s          = p(x_s | x_t) p~(y | x_s) / (p~(y | x_t) p~(x_s | x_t, y))

with m~ the mean of p(x_s | x_t) from x0 + sigma_t²/alpha_t grad_{x_t} log p~(y | x_t).

Particles are resampled where their effective number falls below ``ess`` times their number, and
before the last step in any case: it returns the mean E~[x0 | x_t, y] = x0 + sigma_t²/alpha_t grad
log p~ without noise, as ancestral sampling does, so that samples are equally weighted. However
rough the twist, many particles sample p(x0) p~(y | x_t) of the least noisy level, with p(x0) what
the transition makes of the network.

Symbols: C_t, the twist's covariance of x0 given x_t; ess, the resampling threshold (algorithm 1 has
ess = 1); K particles, the run's ``num_samples``. The official inpainting run has K = 4 and 100
respaced steps.

The paper's own twist has C_t = 0 and its code adds the variances of reconstruction guidance to the
noise; here C_t stays inside A C A*, as in PiGDM, so that every linear operator and zero noise work.
The code weighs the particles once more at the clean level by p(y | x0), which leaves one of them
where the noise is small, and its last step is the unguided mean with y put in the place of what was
measured; up to there the states are the same. Resampling is systematic, as there; the guided x0 is
clipped where the network clips, and so is the plain one, which the code leaves as it is. With
thousands of measurements all particles soon descend from one: they then choose among paths, and say
little about the posterior.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Self

import torch
from torch import Tensor

from invdiff.network import Prediction
from invdiff.problem import LinearOperator, Measurement, Operator
from invdiff.sampling import Denoise, Setting, StatefulTransition, Step, Wrapping, traced
from invdiff.sampling.particles import resample
from invdiff.transitions import DDPM, Ancestral, check_density

MOST = 64
"""Measurements for which ``"tweedie"`` is affordable: each costs a backward pass a step."""


@dataclass(frozen=True)
class TDS(StatefulTransition[Tensor], Wrapping):
    """See the module's docstring.

    Args:
        covariance: C_t. ``"pigdm"``: r_t² I, r_t² = sigma_t²/(alpha_t² + sigma_t²), that of data
            with unit variance, for one backward pass; ``"tweedie"``: sigma_t²/alpha_t dx0/dx_t,
            exact for an exact network, for as many backward passes as y has entries.
        ess: resample where the effective number of particles is below this share; 1 resamples in
            every step.
        inner: p(x_s | x_t): DDPM, or DDIM(eta) with eta > 0.
    """

    covariance: str = "pigdm"
    ess: float = 0.5
    inner: Ancestral = field(default_factory=DDPM)
    requires: ClassVar[type[Operator] | None] = LinearOperator
    one_sigma: ClassVar[bool] = True
    particles: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.covariance not in ("pigdm", "tweedie"):
            raise ValueError(f"covariance must be 'pigdm' or 'tweedie', got {self.covariance!r}")
        if not 0 <= self.ess <= 1:
            raise ValueError(
                "ess, the share of effective particles below which they are resampled, "
                f"must be in [0, 1], got {self.ess}"
            )
        check_density(self.inner, "TDS")

    def bind(self, setting: Setting) -> Self:
        bound = super().bind(setting)
        y = setting.measurement.y
        if self.covariance == "tweedie" and (y[0].numel() > MOST or y.is_complex()):
            raise ValueError(
                f"covariance='tweedie' makes a backward pass for each of at most {MOST} "
                f"real measurements, got {y.dtype} {tuple(y.shape[1:])}; "
                "use covariance='pigdm'"
            )
        return bound

    def init(self, x_T: Tensor, measurement: Measurement) -> Tensor:
        """Equal log weights."""
        return x_T.new_zeros(len(x_T))

    def advance(
        self, predict: Denoise, x_t: Tensor, step: Step, measurement: Measurement, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        t, s = step.t, step.s
        p, log_p, grad = self.twist(predict, x_t, step, measurement)
        last = bool(s.sigma == 0)
        rows, log_w = resample(state + log_p, step, 1.0 if last else self.ess)
        guided = p if t.alpha == 0 else p.move(t.sigma**2 / t.alpha * grad).clip()
        (plain, std), (twisted, _) = (self.inner.kernel(q, t, s) for q in (p, guided))
        if last:
            return twisted[rows], log_w
        z = step.randn_like(x_t)
        std = std[rows] if isinstance(std, Tensor) else std
        shift = (twisted - plain)[rows] / std
        # p~(y | x_t) was weighed, and p(x_s | x_t) / p~(x_s | x_t, y) is to be
        log_w = log_w - log_p[rows] - (shift * (z + shift / 2)).flatten(1).sum(1)
        return twisted[rows] + std * z, log_w

    def up(self, x_t: Tensor, step: Step) -> Tensor:
        raise ValueError(
            "TDS weighs particles on their way down and cannot climb; use the itinerary Straight"
        )

    def twist(
        self, predict: Denoise, x_t: Tensor, step: Step, measurement: Measurement
    ) -> tuple[Prediction, Tensor, Tensor]:
        """The prediction at x_t, log p~(y | x_t) but for a constant, (B,), and its gradient with
        C_t held fixed."""
        if (
            step.t.alpha == 0
        ):  # pure noise: x0 does not depend on it, and all particles weigh the same
            return predict(x_t, step.t), x_t.new_zeros(len(x_t)), torch.zeros_like(x_t)
        with torch.enable_grad():
            x_t, p = traced(predict, x_t, step.t, "TDS")
        log_p, grad = (_isotropic if self.covariance == "pigdm" else _tweedie)(x_t, p, measurement)
        return p.detach(), log_p, grad


def _isotropic(x_t: Tensor, p: Prediction, measurement: Measurement) -> tuple[Tensor, Tensor]:
    """Of C = r² I. With r = y − A x0 and u = A*(A A* + sigma²/r_t²)^-1 r, the ridge solution:

    −2 log p~ = ‖u‖²/r_t² + ‖r − A u‖²/sigma²,    grad log p~ = (dx0/dx_t)* u / r_t²
    """
    operator, t = measurement.linear, p.level
    noise = _variance(measurement)
    spread = t.sigma**2 / (t.alpha**2 + t.sigma**2)
    residual = measurement.residual(p.x0.detach())
    u = operator.pinv(residual, noise / spread)
    (grad,) = torch.autograd.grad(p.x0, x_t, u / spread)
    misfit, noise = (residual - operator(u)).abs().square().flatten(1).sum(1), noise.flatten()
    misfit = torch.where(noise > 0, misfit / noise.where(noise > 0, 1.0), 0.0)
    return -0.5 * (u.square().flatten(1).sum(1) / spread + misfit), grad


def _tweedie(x_t: Tensor, p: Prediction, measurement: Measurement) -> tuple[Tensor, Tensor]:
    """Of C = sigma_t²/alpha_t J, J = dx0/dx_t, the covariance of x0 given x_t where the network is
    exact. The rows of A J, one backward pass each, make A C A* and combine to the gradient J* A* (A
    C A* + sigma²)^-1 (y − A x0)."""
    operator, t, y = measurement.linear, p.level, measurement.y
    m = y[0].numel()
    noise = _variance(measurement)
    units = (
        torch.eye(m, dtype=y.dtype, device=y.device).view(m, 1, *y.shape[1:]).expand(m, *y.shape)
    )
    rows = [
        torch.autograd.grad(p.x0, x_t, operator.adjoint(unit), retain_graph=j + 1 < m)[0]
        for j, unit in enumerate(units)
    ]
    spread = t.sigma**2 / t.alpha * torch.stack([operator(row).flatten(1) for row in rows], dim=1)
    values, basis = torch.linalg.eigh((spread + spread.mT) / 2)
    # A network's Jacobian is neither symmetric nor positive to the last digit.
    values = values.clamp(min=torch.finfo(values.dtype).eps) + noise.view(-1, 1)
    along = torch.einsum("bij,bi->bj", basis, measurement.residual(p.x0.detach()).flatten(1))
    pull = torch.einsum("bij,bj->ib", basis, along / values)
    return -0.5 * (along**2 / values + values.log()).sum(1), torch.einsum(
        "jb,jb...->b...", pull, torch.stack(rows)
    )


def _variance(measurement: Measurement) -> Tensor:
    """sigma² of every image as (B, 1, ...), or as (1, 1, ...) where it is a number: filled in on
    the device, since a copy from the host would be waited for."""
    sigma = measurement.image_sigma("TDS")
    if isinstance(sigma, Tensor):
        return sigma**2
    real = measurement.y.real
    return real.new_full((1,) * (1 + len(measurement.image_shape)), sigma) ** 2
