"""Latent diffusion with a space-to-depth autoencoder, whose latents are the pixels themselves in
another order."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import invdiff
from invdiff import schedules
from invdiff.guidance.classifier import ClassifierGuidance
from invdiff.network import Autoencoder, Denoiser
from invdiff.noise import NoiseSource, seed_of
from invdiff.solving import generate, invert, solve
from invdiff.transitions import DDIM

SHAPE = (2, 3, 16, 24)
S = schedules.linear(1000)
SCALE = 0.5
AUTOENCODER = Autoencoder(
    lambda x: F.pixel_unshuffle(x, 2) * SCALE,
    lambda z: F.pixel_shuffle(z / SCALE, 2),
    channels=12,
    factor=2,
)


def shrink(x: Tensor, t: Tensor) -> Tensor:
    return torch.tanh(0.3 * x)


def latent() -> Denoiser:
    return Denoiser(shrink, schedule=S, autoencoder=AUTOENCODER, channels=3)


def images(seed: int = 0) -> Tensor:
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(seed))


def test_dps_is_its_update_in_latent_space() -> None:
    measurement = invdiff.make_operator("inpaint", fraction=0.5).measure(images(), sigma=0.02)
    steps, zeta = 5, 0.4
    result = solve(
        measurement,
        latent(),
        invdiff.make_method("dps", zeta=zeta),
        transition=DDIM(),
        steps=steps,
        seed=3,
    )

    mask, y = (
        measurement.operator.state["mask"].float(),
        2 * measurement.y - measurement.operator(torch.ones(SHAPE)),
    )
    times = S.times(steps)
    levels = [S(t) for t in times] + [S(-1)]
    z = levels[0].sigma.float() * NoiseSource(
        [seed_of("sampling", 3, k, 0) for k in range(2)]
    ).randn_like(torch.empty(2, 12, 8, 12))
    for t, s in zip(levels, levels[1:], strict=False):
        z = z.requires_grad_()
        eps = shrink(z, t.t)
        z0 = (z - t.sigma * eps) / t.alpha
        norm = (y - mask * AUTOENCODER.decode(z0)).flatten(1).norm(dim=1).sum()
        (grad,) = torch.autograd.grad(norm, z)
        z = (s.alpha * z0 + s.sigma * eps - zeta * grad).detach().float()
    expected = ((AUTOENCODER.decode(z) + 1) / 2).clamp(0, 1)
    torch.testing.assert_close(result.x, expected, atol=2e-5, rtol=0)


def test_images_stay_images() -> None:
    denoiser = latent()
    result = generate(denoiser, SHAPE, steps=4, trajectory=True)
    assert result.x.shape == SHAPE
    assert result.trajectory is not None and result.trajectory.shape == (4, 1, *SHAPE)
    assert result.x.min() >= 0 and result.x.max() <= 1
    x_T = invert(denoiser, images(), steps=50)
    assert x_T.shape == (2, 12, 8, 12)
    back = generate(denoiser, SHAPE, x_T=x_T, steps=50).x
    assert (back - images()).abs().mean() < 0.05


def test_what_cannot_be_done_in_latent_space_is_refused_before_sampling() -> None:
    def never(x: Tensor, t: Tensor) -> Tensor:
        raise AssertionError("the network was called")

    denoiser = Denoiser(never, schedule=S, autoencoder=AUTOENCODER)
    measurement = invdiff.make_operator("inpaint").measure(images(), sigma=0.02)
    with pytest.raises(
        ValueError, match="Replace requires a LinearOperator, but .* of a decoded latent is not one"
    ):
        solve(measurement, denoiser, "repaint", steps=3)
    with pytest.raises(ValueError, match="3 channels, got 1"):
        generate(denoiser, (1, 1, 16, 16))
    with pytest.raises(ValueError, match="sides that divide by 2, got 15x16; crop to 14x16"):
        generate(denoiser, (1, 3, 15, 16))
    with pytest.raises(ValueError, match=r"are made from \(2, 12, 8, 12\)"):
        generate(denoiser, SHAPE, x_T=torch.zeros(SHAPE))


def test_a_log_probability_of_x0_sees_the_decoded_images() -> None:
    seen: list[Tensor] = []

    def log_prob(x0: Tensor) -> Tensor:
        seen.append(x0)
        return -x0.square().flatten(1).sum(1)

    z = torch.randn(2, 12, 8, 12, generator=torch.Generator().manual_seed(0))
    generate(latent(), SHAPE, ClassifierGuidance(log_prob=log_prob, of="x0", s=0.1), x_T=z, steps=3)
    t = S(S.times(3)[0])
    expected = (AUTOENCODER.decode((z - t.sigma * shrink(z, t.t)) / t.alpha) + 1) / 2
    torch.testing.assert_close(seen[0].detach(), expected.float())


def test_two_log_probabilities_of_one_shape_are_two_transitions() -> None:
    a, b = (
        invdiff.make_method(
            "classifier", log_prob=lambda x, level, k=k: k * x.flatten(1).sum(1), mean_shift=True
        )
        for k in (1, -1)
    )
    assert invdiff.make_method([a, a]).transition == a.transition
    with pytest.raises(ValueError, match="room for one transition"):
        invdiff.make_method([a, b])


class Coder(torch.nn.Module):
    """An autoencoder whose functions are methods."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor([2.0]))

    def encode(self, x: Tensor) -> Tensor:
        return self.scale * x

    def decode(self, z: Tensor) -> Tensor:
        return z / self.scale


def test_another_dtype_copies_the_autoencoder_or_says_that_it_cannot() -> None:
    net, coder = torch.nn.Conv2d(3, 3, 1), Coder()
    made = Autoencoder(coder.encode, coder.decode, channels=3, factor=1, net=coder)
    first = Denoiser(Applied(net), schedule=S, autoencoder=made)
    other = first.read_as(dtype=torch.float64)
    assert coder.scale.dtype == torch.float32 and first.autoencoder is made
    assert other.autoencoder is not None and other.autoencoder.net is not coder
    assert other.autoencoder.encode(torch.ones(1)).dtype == torch.float64
    closed = Autoencoder(lambda x: x, lambda z: z, channels=3, factor=1, net=coder)
    with pytest.raises(ValueError, match="plain functions cannot be copied"):
        Denoiser(Applied(net), schedule=S, autoencoder=closed).read_as(dtype=torch.float64)


class Applied(torch.nn.Module):
    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(x)
