"""Sampling steps written by hand in a few lines of torch each, as one writes them for one network,
one operator (a mask with noise) and one batch: what the framework's own steps are measured against.

The network predicts eps. Level coefficients are Python numbers made beforehand and nothing is
checked. ``noise`` makes noise shaped as a state: ``torch.randn_like``, or that of the framework.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from invdiff.schedules import Level

Net = Callable[[Tensor], Tensor]
Noise = Callable[[Tensor], Tensor]


class Pair(NamedTuple):
    """alpha and sigma of a step's two levels."""

    a_t: float
    s_t: float
    a_s: float
    s_s: float


def pairs(levels: Sequence[Level]) -> list[Pair]:
    """The steps between levels."""
    numbers = [(float(level.alpha), float(level.sigma)) for level in levels]
    return [Pair(*t, *s) for t, s in zip(numbers[:-1], numbers[1:], strict=True)]


def estimates(net: Net, x_t: Tensor, step: Pair) -> tuple[Tensor, Tensor]:
    """x0 and eps."""
    eps = net(x_t)
    return (x_t - step.s_t * eps) / step.a_t, eps


def ancestral(x_t: Tensor, x0: Tensor, eps: Tensor, step: Pair, noise: Noise) -> Tensor:
    """The next state of DDPM."""
    a_t, s_t, a_s, s_s = step
    std = s_s / s_t * max(s_t**2 - (a_t / a_s * s_s) ** 2, 0) ** 0.5
    x_s = a_s * x0 + max(s_s**2 - std**2, 0) ** 0.5 * eps
    return x_s + std * noise(x_t) if s_s > 0 else x_s


def ddim(net: Net, noise: Noise, x: Tensor, steps: Sequence[Pair]) -> Tensor:
    """DDIM without noise."""
    for step in steps:
        x0, eps = estimates(net, x, step)
        x = step.a_s * x0 + step.s_s * eps
    return x


def dps(
    net: Net, noise: Noise, x: Tensor, steps: Sequence[Pair], y: Tensor, mask: Tensor, zeta: float
) -> Tensor:
    """DPS with ancestral noise."""
    for step in steps:
        x = x.requires_grad_()
        x0, eps = estimates(net, x, step)
        norm = (y - mask * x0).flatten(1).norm(dim=1).sum()
        (grad,) = torch.autograd.grad(norm, x)
        x = (ancestral(x, x0, eps, step, noise) - zeta * grad).detach()
    return x


def cfg(net: Net, noise: Noise, x: Tensor, steps: Sequence[Pair], w: float) -> Tensor:
    """Classifier-free guidance with ancestral noise, in two calls."""
    for step in steps:
        cond, uncond = net(x), net(x)
        eps = uncond + w * (cond - uncond)
        x = ancestral(x, (x - step.s_t * eps) / step.a_t, eps, step, noise)
    return x


def diffpir(
    net: Net,
    noise: Noise,
    x: Tensor,
    steps: Sequence[Pair],
    y: Tensor,
    mask: Tensor,
    sigma: float,
    zeta: float = 0.3,
    lmbda: float = 1.0,
) -> Tensor:
    """DiffPIR."""
    for step in steps:
        x0, _ = estimates(net, x, step)
        rho = lmbda * (sigma * step.a_t / step.s_t) ** 2
        x0 = x0 + mask * (y - mask * x0) / (1 + rho)
        eps = (x - step.a_t * x0) / step.s_t
        z = noise(x)
        x = step.a_s * x0 + step.s_s * ((1 - zeta) ** 0.5 * eps + zeta**0.5 * z)
    return x


def reddiff(
    net: Net,
    noise: Noise,
    x: Tensor,
    steps: Sequence[Pair],
    y: Tensor,
    mask: Tensor,
    lmbda: float = 0.25,
    lr: float = 0.1,
) -> Tensor:
    """RED-diff with its Adam."""
    mu, m, v, n = y.clone(), torch.zeros_like(x), torch.zeros_like(x), x[0].numel()
    for k, step in enumerate(steps, 1):
        x0, _ = estimates(net, x, step)
        grad = -mask * (y - mask * mu) / n + lmbda / n * (mu - x0)
        m, v = 0.9 * m + 0.1 * grad, 0.99 * v + 0.01 * grad**2
        mu = mu - lr * (m / (1 - 0.9**k)) / ((v / (1 - 0.99**k)).sqrt() + 1e-8)
        x = step.a_s * mu + step.s_s * noise(x) if step.s_s > 0 else mu
    return x


def ddrm(
    net: Net,
    noise: Noise,
    x: Tensor,
    steps: Sequence[Pair],
    y: Tensor,
    mask: Tensor,
    sigma: float,
    eta: float = 0.85,
) -> Tensor:
    """DDRM with eta_b = 1; of a mask all components are measured alike, or not at all."""
    known, kept = mask > 0, (1 - eta**2) ** 0.5
    for step in steps:
        x0, eps = estimates(net, x, step)
        z, n = noise(x), step.a_s * sigma
        loose = step.a_s * x0 + step.s_s * (kept * eps + eta * z)
        if n > step.s_s:
            held = step.a_s * x0 + step.s_s * (kept * (step.a_s * (y - x0)) / n + eta * z)
        else:
            held = step.a_s * y + (step.s_s**2 - n**2) ** 0.5 * z
        x = torch.where(known, held, loose)
    return x


def ddnm(
    net: Net,
    noise: Noise,
    x: Tensor,
    steps: Sequence[Pair],
    y: Tensor,
    mask: Tensor,
    sigma: float,
    eta: float = 0.85,
) -> Tensor:
    """DDNM+."""
    known, kept = mask > 0, (1 - eta**2) ** 0.5
    for step in steps:
        x0, eps = estimates(net, x, step)
        z, n = noise(x), step.a_s * sigma
        weight = kept * step.s_s / n if n > step.s_s else 1.0
        x0 = x0 + weight * mask * (y - mask * x0)
        fresh = eta * step.s_s if n > step.s_s else (step.s_s**2 - n**2) ** 0.5
        added = torch.where(known, fresh * z, eta * step.s_s * z + kept * step.s_s * eps)
        x = step.a_s * x0 + added
    return x
