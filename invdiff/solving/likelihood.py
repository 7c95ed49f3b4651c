"""How likely a network finds an image: its density by the probability flow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invdiff.network import Denoiser
from invdiff.noise import NoiseSource, seed_of
from invdiff.problem.operator import check_tensor
from invdiff.solving.ranges import into_range
from invdiff.solving.run import check_image, resolve_conditions

HIGHEST = 1e3
"""sigma/alpha from which on the state counts as noise, on schedules that end at alpha = 0."""


@dataclass(frozen=True)
class Likelihood:
    """Log densities of images.

    Attributes:
        nats: (B,), log p(x) in natural units, of x in the user's range ([0, 1] for images).
        bits_per_dimension: (B,), −log2 p(x)/d; of images with grey levels, that of the levels.
        evaluations: (B,), how often the network was evaluated for each image.
    """

    nats: Tensor
    bits_per_dimension: Tensor
    evaluations: Tensor


def log_likelihood(
    denoiser: Denoiser,
    x: Tensor,
    *,
    probes: int | None = 1,
    levels: int | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    seed: int = 0,
    image_ids: Sequence[int] | None = None,
    **cond: Any,
) -> Likelihood:
    """log p(x) of a network's own distribution, by the instantaneous change of variables along its
    probability flow (Song et al. 2021, score SDE, appendix D.2).

        d u / d tau = rho eps(u),   u = x_t/alpha_t, rho = sigma_t/alpha_t = e^tau
        log p(x) = log N(u_T; x0(u_T), rho_T²) + ∫ rho div eps d tau

    The flow is solved by Dormand and Prince's embedded pair (``scipy.integrate.solve_ivp``, RK45),
    each image by itself with its own steps. The divergence is estimated with Rademacher probes
    (Hutchinson 1990, Skilling 1989), the same along the way, so that what is integrated is smooth.
    The image is taken as the state at the schedule's least noisy level. At the noisiest one the
    density is that of noise around the network's own mean: around 0, as the paper has it, leaves an
    error of the order of mean/rho_T; what is left is a share of the order of var(x)/rho_T².

    Args:
        x: (B, ...), images in [0, 1] for image networks.
        probes: vectors of the estimate, each one more in the batch; unbiased with any number. None
            computes the divergence exactly, with one backward pass for each of the d numbers of x.
        levels: grey levels of the images, 256 for 8 bits: each gets uniform noise over the width of
            its level, and bits per dimension are those of the levels (Theis et al. 2016). None
            takes x as continuous.
        rtol, atol: tolerances of the solver.
        seed, image_ids: of the probes and the noise; image k's are its own.
        cond: what the network is conditioned on.

    Examples:
        >>> import invdiff, torch
        >>> schedule = invdiff.schedules.linear(1000)
        >>> def eps(x, t):  # of data that are N(0, I): x_t is, too
        ...     return x * schedule(t).sigma.view(-1, 1).to(x)
        >>> denoiser = invdiff.Denoiser(eps, schedule=schedule)
        >>> found = invdiff.log_likelihood(denoiser, torch.zeros(1, 2), probes=None)
        >>> round(float(found.nats[0]), 2)  # -log(2 pi)
        -1.84

    Raises:
        ValueError: a latent network, whose density is one of latents; images that are not finite
            or, of an image network, far outside [0, 1]; what the arguments exclude.
    """
    if denoiser.autoencoder is not None:
        raise ValueError(
            f"{denoiser.name} is a latent network: it has a density of latents, not of images"
        )
    if probes is not None and probes < 1:
        raise ValueError(f"probes must be at least 1, or None for the exact trace, got {probes}")
    if levels is not None and (levels < 2 or denoiser.image_range is None):
        raise ValueError(
            f"levels must be at least 2 and needs images in [0, 1], got {levels} for "
            f"{denoiser.name} with data_range={denoiser.image_range}"
        )
    check_tensor(x, "x")
    check_image(denoiser, tuple(x.shape[1:]))
    if not bool(x.isfinite().all()):
        raise ValueError(f"x has {int((~x.isfinite()).sum())} values that are not finite")
    if denoiser.image_range is not None and not bool(((x > -0.5) & (x < 1.5)).all()):
        raise ValueError(
            f"x must be images in [0, 1], got values from {float(x.min()):.4g} to "
            f"{float(x.max()):.4g}; 8-bit ones are divided by 255"
        )
    device, ids = denoiser.device or x.device, list(image_ids or range(len(x)))
    if len(ids) != len(x):
        raise ValueError(f"image_ids must name each of the {len(x)} images, got {len(ids)}")
    d = math.prod(x.shape[1:])
    cond = resolve_conditions(denoiser, cond, len(x), device)
    made = []
    for k, image in enumerate(x.to(device, torch.float64)):
        noise = NoiseSource([seed_of("likelihood", seed, ids[k])], device)
        image = image[None]
        if levels is not None:
            uniform = torch.special.ndtr(noise.randn_like(image))
            image = ((image * (levels - 1)).round() + uniform) / levels
        flow = _Flow(
            denoiser,
            _probes(noise, image, probes),
            probes is None,
            {n: v[k : k + 1] if isinstance(v, Tensor) and v.ndim else v for n, v in cond.items()},
        )
        log_p = flow.solve(into_range(denoiser, image), rtol, atol)
        if denoiser.image_range is not None:
            log_p += d * math.log(denoiser.image_range[1] - denoiser.image_range[0])
        made.append((log_p, flow.evaluations))
    nats = torch.tensor([log_p for log_p, _ in made], dtype=torch.float64)
    bits = -nats / (d * math.log(2)) + (0 if levels is None else math.log2(levels))
    return Likelihood(nats, bits, torch.tensor([count for _, count in made]))


def _probes(noise: NoiseSource, image: Tensor, probes: int | None) -> Tensor:
    """Rademacher vectors (probes, ...), or the unit vectors for the exact trace."""
    if probes is None:
        d = image.numel()
        return torch.eye(d, dtype=image.dtype, device=image.device).view(d, *image.shape[1:])
    return torch.cat([noise.randn_like(image) for _ in range(probes)]).sign()


class _Flow:
    """The probability flow of one image with the log density along it."""

    def __init__(
        self, denoiser: Denoiser, probes: Tensor, exact: bool, cond: dict[str, Any]
    ) -> None:
        self.denoiser, self.probes, self.exact, self.cond = denoiser, probes, exact, cond
        self.evaluations = 0

    def solve(self, x: Tensor, rtol: float, atol: float) -> float:
        """log p(x), x in the network's range."""
        from scipy.integrate import solve_ivp  # 300 modules that no other command needs

        schedule, d = self.denoiser.schedule, x.numel()
        low = math.log(float(schedule(schedule.t_min).ratio))
        high = math.log(min(float(schedule(schedule.t_max).ratio), HIGHEST))
        start = np.append(x.flatten().cpu().numpy(), 0.0)
        solved = solve_ivp(
            self._rate(x.shape), (low, high), start, method="RK45", rtol=rtol, atol=atol
        )
        if not solved.success:
            raise ValueError(f"the probability flow could not be solved: {solved.message}")
        u, change = torch.from_numpy(solved.y[:-1, -1]), float(solved.y[-1, -1])
        level = schedule.at(math.exp(high))
        with torch.no_grad():
            x_t = (level.alpha * u).view(x.shape).to(x.device)
            mean = self.denoiser(x_t, level, clip_x0=False, **self.cond).x0.flatten().cpu()
        prior = -float(((u - mean) ** 2).sum()) / (2 * math.exp(2 * high))
        return prior - d * (high + math.log(2 * math.pi) / 2) + change

    def _rate(self, shape: torch.Size) -> Any:
        def rate(tau: float, state: np.ndarray) -> np.ndarray:
            level = self.denoiser.schedule.at(math.exp(tau))
            u = torch.from_numpy(state[:-1].copy()).view(shape).to(self.probes.device)
            n = len(self.probes)
            self.evaluations += 1
            with torch.enable_grad():
                x_t = (level.alpha * u).expand(n, *shape[1:]).clone().requires_grad_()
                eps = self.denoiser(x_t, level, clip_x0=False, **self._conditions(n)).eps
                (gradient,) = torch.autograd.grad((eps * self.probes).sum(), x_t)
            trace = float((gradient * self.probes).sum()) * float(level.alpha)
            ratio = math.exp(tau)
            slope = ratio * eps[0].detach().double().flatten().cpu().numpy()
            return np.append(slope, ratio * trace / (1 if self.exact else n))

        return rate

    def _conditions(self, n: int) -> dict[str, Any]:
        return {
            k: v.expand(n, *v.shape[1:]) if isinstance(v, Tensor) and v.ndim else v
            for k, v in self.cond.items()
        }
