"""Problems whose posterior is known exactly, and distances of samples to it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from invdiff.benchmarks.exact.mixture import D, Mixture
from invdiff.network import Denoiser
from invdiff.noise import generator_of
from invdiff.operators.matrix import Matrix
from invdiff.problem import Measurement, make_operator
from invdiff.schedules import Discrete, from_betas, linear


@dataclass(frozen=True)
class Problem:
    """A prior, a measurement of one of its draws, and the exact posterior."""

    prior: Mixture
    denoiser: Denoiser
    measurement: Measurement
    posterior: Mixture


@cache
def gaussian_prior(shape: tuple[int, ...]) -> Mixture:
    """Small colour images in [-1, 1]: smooth over 2 pixels, correlated channels, standard deviation
    0.5 around grey."""
    channels, *size = shape
    grid = torch.cartesian_prod(*(torch.arange(n, dtype=D) for n in size))
    space = torch.exp(-(torch.cdist(grid, grid) ** 2) / (2 * 2.0**2)) + 0.02 * torch.eye(
        len(grid), dtype=D
    )
    colour = 0.8 * torch.ones(channels, channels, dtype=D) + 0.2 * torch.eye(channels, dtype=D)
    covariance = 0.25 * torch.kron(colour, space / space[0, 0])
    return Mixture.of(torch.ones(1, dtype=D), torch.zeros(1, len(covariance), dtype=D), covariance)


def gaussian_problem(
    operator: dict[str, Any], shape: tuple[int, ...], sigma: float, seed: int
) -> Problem:
    """A Gaussian image under a linear operator by name."""
    prior = gaussian_prior(shape)
    x = prior.draw(1, generator_of("exact", "gaussian", seed)).view(1, *shape)
    made = make_operator(operator["name"], **{k: v for k, v in operator.items() if k != "name"})
    measurement = made.measure(x, sigma=sigma, seed=seed)
    units = torch.eye(x.numel(), dtype=D).view(-1, *shape)
    A = measurement.operator(units).flatten(1).mT
    seen = A.abs().amax(1) > 0  # rows that measure nothing, as at missing pixels, say nothing
    return Problem(
        prior,
        prior.denoiser(linear(1000), "gaussian"),
        measurement,
        prior.posterior(A[seen], measurement.y.flatten()[seen], sigma),
    )


def falling_betas() -> Discrete:
    """alpha_bar = cumprod(1 − linspace(0.02, 1e-4, 999)) and the clean level before it (Cardoso et
    al.)."""
    return from_betas(torch.linspace(0.02, 1e-4, 999, dtype=D))


def mixture_problem(d: int, d_y: int, seed: int) -> Problem:
    """One draw of Cardoso et al.'s problem."""
    generator = generator_of("exact", "mixture", d, d_y, seed)
    centres = torch.cartesian_prod(*(torch.arange(-2.0, 3.0, dtype=D),) * 2)
    weights = torch.randn(len(centres), dtype=D, generator=generator) ** 2
    prior = Mixture(
        weights / weights.sum(), (-8 * centres).repeat(1, d // 2), torch.ones(d, dtype=D)
    )
    u, _, vt = torch.linalg.svd(
        torch.randn(d_y, d, dtype=D, generator=generator), full_matrices=False
    )
    s = torch.rand(d_y, dtype=D, generator=generator).sort(descending=True).values
    A = (u * s) @ vt
    sigma = float(torch.rand((), dtype=D, generator=generator) * s.max())
    x = prior.draw(1, generator)
    y = x @ A.mT + sigma * torch.randn(1, d_y, dtype=D, generator=generator)
    measurement = Measurement(y, Matrix(A).bind((d,)), sigma)
    return Problem(
        prior,
        prior.denoiser(falling_betas(), "mixture"),
        measurement,
        prior.posterior(A, y[0], sigma),
    )


def sliced_wasserstein(a: Tensor, b: Tensor, directions: int = 1000) -> float:
    """First-order Wasserstein distance between two samples (n, d), averaged over fixed
    directions."""
    along = torch.randn(a.shape[1], directions, dtype=a.dtype, generator=generator_of("directions"))
    along = along / along.norm(dim=0)
    return float(((a @ along).sort(0).values - (b @ along).sort(0).values).abs().mean())


def moments(x: Tensor, posterior: Mixture) -> dict[str, float]:
    """Errors of a sample's mean and covariance against a single Gaussian."""
    C = posterior.covariance
    mean = (x.mean(0) - posterior.means[0]).norm() / C.trace().sqrt()
    return {"mean": float(mean), "covariance": float((torch.cov(x.mT) - C).norm() / C.norm())}
