"""Kernels that diffuse along with the image, under a network of kernels: BlindDPS."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import invdiff
from invdiff import schedules
from invdiff.guidance.dps import DPS
from invdiff.itineraries.jumps import Jumps
from invdiff.network import Denoiser
from invdiff.noise import NoiseSource
from invdiff.operators import blur as module
from invdiff.operators.blur import blur
from invdiff.problem import Measurement
from invdiff.sampling.joint import ZETA
from invdiff.sampling.loop import sample
from invdiff.schedules import Level
from invdiff.transitions import DDPM

SCHEDULE = schedules.linear(1000)


def network(channels: int, seed: int = 0, **options: Any) -> Denoiser:
    """Two convolutions with random weights, which read the level, too."""
    draw = torch.Generator().manual_seed(seed)
    weights = [
        0.3 * torch.randn(shape, generator=draw, dtype=torch.float64)
        for shape in ((6, channels, 3, 3), (channels, 6, 3, 3))
    ]

    def net(x: Tensor, t: Tensor) -> Tensor:
        hidden = torch.tanh(F.conv2d(x, weights[0].to(x), padding=1) + t.view(-1, 1, 1, 1) / 1000)
        return F.conv2d(hidden, weights[1].to(x), padding=1)

    options = {"data_range": (-1.0, 1.0), "clip": False} | options
    return Denoiser(net, predicts="v", schedule=SCHEDULE, channels=channels, **options)


def registered(monkeypatch: pytest.MonkeyPatch, made: Denoiser) -> None:
    monkeypatch.setattr(module, "load", lambda kind, name: {"models": lambda: made}[kind])


@pytest.fixture
def prior(monkeypatch: pytest.MonkeyPatch) -> Denoiser:
    """A network of kernels in 8x8 pixels, registered as ``tiny``."""
    made = network(1, seed=1, image_size=8)
    registered(monkeypatch, made)
    return made


def photographs(count: int, side: int = 12) -> Tensor:
    draw = torch.Generator().manual_seed(3)
    return torch.rand(count, 3, side, side, generator=draw, dtype=torch.float64)


def blind(count: int = 2, **options: Any) -> Measurement:
    y = blur("box", kernel_size=3).measure(photographs(count), sigma=0.02).y
    return Measurement(y, blur("unknown", kernel_size=5, prior="tiny", **options), 0.02)


def test_a_step_is_that_of_the_paper(prior: Denoiser) -> None:
    """Algorithm 1 of Chung et al. 2023 written out, from the same noise: both chains take DDPM's
    ancestral step, less a multiple of the gradient of the norm of the residual."""
    image, given, zeta = network(3), blind(), 0.7
    levels = [SCHEDULE(torch.tensor(t)) for t in (900, 500, 100)] + [SCHEDULE(torch.tensor(-1))]
    start = 2 * photographs(2) - 1
    kernels: list[Tensor] = []
    x = sample(
        image,
        start,
        levels,
        schedule=SCHEDULE,
        noise=NoiseSource([7, 8]),
        transition=DDPM(),
        guidance=[DPS(zeta=zeta)],
        measurement=given,
        callback=lambda p: kernels.append(p.unknown["kernel"]),
    )

    noise = NoiseSource([7, 8])
    x_i = start
    k_i = float(levels[0].sigma) * noise.randn_like(torch.empty(2, 1, 8, 8, dtype=torch.float64))

    def kernel_of(k0: Tensor) -> Tensor:
        # Within 8x8 the centre is (4, 4), of 5x5 (2, 2).
        k = ((k0 + 1) / 2)[..., 2:7, 2:7].clamp(min=0)
        return k / k.sum((-2, -1), keepdim=True)

    def step(x0: Tensor, x_t: Tensor, t: Level, s: Level, n: Tensor | None) -> Tensor:
        # q(x_s | x_t, x0) of Ho et al. 2020, eq. 7, with the beta between the two levels.
        (a, b), beta = (float(s.alpha), float(t.alpha) / float(s.alpha)), 0.0
        beta = 1 - b**2
        total = 1 - float(t.alpha) ** 2
        out = a * beta / total * x0 + b * (1 - a**2) / total * x_t
        return out if n is None else out + math.sqrt((1 - a**2) / total * beta) * n

    for t, s in pairwise(levels):
        x_i, k_i = x_i.detach().requires_grad_(), k_i.detach().requires_grad_()
        x0, k0 = image(x_i, t).x0, prior(k_i, t).x0
        w = kernel_of(k0)
        # Convolution of each image with its kernel, periodic.
        padded = F.pad(x0, (2, 2, 2, 2), mode="circular").view(1, 6, 16, 16)
        flipped = w.flip(-2, -1).repeat_interleave(3, 0)
        seen = F.conv2d(padded, flipped, groups=6).view(2, 3, 12, 12)
        norm = (given.y - seen).flatten(1).norm(dim=1).sum()
        of_x, of_k = torch.autograd.grad(norm, (x_i, k_i))
        last = s.sigma == 0
        with torch.no_grad():
            x_i = step(x0, x_i, t, s, None if last else noise.randn_like(x_i)) - zeta * of_x
            k_i = step(k0, k_i, t, s, None if last else noise.randn_like(k_i)) - ZETA * of_k
        shown = k_i if last else prior(k_i, s).x0
        assert torch.allclose(kernels.pop(0), kernel_of(shown), atol=1e-10)
    assert torch.allclose(x, x_i, atol=1e-10)


@pytest.mark.parametrize("method", ["ddrm", "diffpir", "pigdm"])
def test_an_image_has_in_a_batch_the_kernel_that_it_has_alone(prior: Denoiser, method: str) -> None:
    given, image = blind(3), network(3)
    options: dict[str, Any] = {"steps": 5, "dtype": torch.float64, "num_samples": 2}
    together = invdiff.solve(given, image, method, image_ids=[0, 1, 2], **options)
    part = given.select(torch.tensor([1]))
    alone = invdiff.solve(part, image, method, image_ids=[1], **options)
    kernels = together.unknown["kernel"]
    assert torch.allclose(kernels[:, :, 1:2], alone.unknown["kernel"], atol=1e-8)
    assert torch.allclose(together.samples[:, 1:2], alone.samples, atol=1e-8)
    sums = kernels.sum((-2, -1))
    assert float(kernels.min()) >= 0 and torch.allclose(sums, torch.ones_like(sums))


def test_of_two_kernels_that_of_the_measurement_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The prior holds two kernels alone, with a posterior mean that is exact, and the image is
    known: the chains of all noise end at the kernel that blurred it."""
    paths = [blur("motion", kernel_size=7, intensity=0.8, seed=s).make_kernel() for s in (1, 2)]
    both = 2 * torch.stack([F.pad(w / w.max(), (1, 0, 1, 0)) for w in paths]) - 1

    def mean(k: Tensor, t: Tensor) -> Tensor:
        level = SCHEDULE(t[0])
        squares = (k - level.alpha * both.to(k)).square().sum((-2, -1))
        shares = torch.softmax(-squares / (2 * level.sigma**2), -1)
        return torch.einsum("bn,nij->bij", shares.to(k), both.to(k))[:, None]

    kernels = Denoiser(mean, predicts="x0", schedule=SCHEDULE, data_range=(-1.0, 1.0), image_size=8)
    registered(monkeypatch, kernels)
    truth = photographs(1, 32).float()
    image = Denoiser(
        lambda x, t: 2 * truth - 1 + 0 * x, predicts="x0", schedule=SCHEDULE, data_range=(-1.0, 1.0)
    )
    for true in paths:
        y = blur(true).measure(truth, sigma=0.02).y
        given = Measurement(y, blur("unknown", kernel_size=7, prior="two"), 0.02)
        result = invdiff.solve(given, image, "ddrm", steps=20, num_samples=4)
        for found in result.unknown["kernel"][-1, :, 0, 0]:
            assert (found.double() - true).norm() < 0.1 * true.norm()


def test_a_climb_takes_the_kernel_up_with_the_image(prior: Denoiser) -> None:
    itinerary = Jumps(length=2, resamplings=2)
    result = invdiff.solve(blind(), network(3), "ddrm", itinerary=itinerary, steps=6)
    assert result.x.isfinite().all() and result.estimate("kernel")[0].isfinite().all()


def test_what_cannot_be_is_refused(prior: Denoiser) -> None:
    with pytest.raises(ValueError, match="prior='tiny'.*kernel=unknown, got 'motion'"):
        blur("motion", prior="tiny")
    with pytest.raises(ValueError, match="the name of a network of kernels, got 5"):
        blur("unknown", prior=5)  # type: ignore[arg-type]
    given = Measurement(photographs(1), blur("unknown", kernel_size=9, prior="tiny"), 0.1)
    with pytest.raises(ValueError, match="within 8x8 pixels.*kernel_size=7 or less, got 9"):
        invdiff.solve(given, network(3), "ddrm", steps=2)


def test_a_network_that_nobody_registers_is_refused() -> None:
    for name, says in (("nothing", "nothing"), ("photo64", "photo64 is no network of kernels")):
        given = Measurement(photographs(1), blur("unknown", kernel_size=5, prior=name), 0.1)
        with pytest.raises(ValueError, match=says):
            invdiff.solve(given, network(3), "ddrm", steps=2)
