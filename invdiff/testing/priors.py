"""A prior that any method runs on: labels, a classifier, an image beside the state, latents and any
parameterisation, and no weights worth waiting for."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from invdiff import schedules
from invdiff.network import Autoencoder, Denoiser, NoisyClassifier, OfLevel

CLASSES = 3
STD = 0.3
SHIFT = 0.02
FACTOR = 2
RATIO = OfLevel(lambda level: level.ratio)
"""The inputs of the networks, so that alpha and sigma are found where the state lies."""


def _alpha_sigma(ratio: Tensor) -> tuple[Tensor, Tensor]:
    """Of variance-preserving levels, (B, 1, 1, 1) each."""
    ratio = ratio.view(-1, 1, 1, 1)
    alpha = torch.rsqrt(1 + ratio**2)
    return alpha, ratio * alpha


def _means(channels: int) -> torch.nn.Parameter:
    """One mean per class and the null class, in [-0.5, 0.5]."""
    return torch.nn.Parameter(
        torch.linspace(-0.5, 0.5, CLASSES + 1).view(-1, 1, 1, 1).expand(-1, channels, 1, 1).clone()
    )


class Attention(torch.nn.Module):
    """Adds to each place, in [-SHIFT, SHIFT], what attention between the places of the image at
    half its size says."""

    def forward(self, x: Tensor) -> Tensor:
        half = F.avg_pool2d(x, 2, ceil_mode=True)
        places = half.flatten(2).mT[:, None]
        seen = F.scaled_dot_product_attention(places, places, places)[:, 0].mT.reshape(half.shape)
        return x + SHIFT * F.interpolate(seen, x.shape[-2:]).tanh()


class Network(torch.nn.Module):
    """For pixels that are nearly independent and N(mean, STD²), their mean set by label and by what
    is shown beside the state, and a little by attention, for methods that change it."""

    def __init__(self, channels: int, predicts: str) -> None:
        super().__init__()
        self.channels, self.predicts, self.means = channels, predicts, _means(channels)
        self.mid = Attention()

    def forward(self, x: Tensor, ratio: Tensor, label: Tensor) -> Tensor:
        shown, x = x[:, : -self.channels], x[:, -self.channels :]
        alpha, sigma = _alpha_sigma(ratio)
        mean = self.means[label] + (0.3 * shown.mean(1, keepdim=True) if shown.shape[1] else 0.0)
        mean = mean + self.mid(alpha * x) - alpha * x
        x0 = mean + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x - alpha * mean)
        eps = (x - alpha * x0) / sigma
        return {"x0": x0, "eps": eps, "v": alpha * eps - sigma * x0}[self.predicts]


class Classes(torch.nn.Module):
    """Logits of the labels of a noisy state, exact for :class:`Network`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.means = _means(channels)

    def forward(self, x: Tensor, ratio: Tensor) -> Tensor:
        alpha, sigma = _alpha_sigma(ratio)
        misfit = (x[:, None] - alpha[:, None] * self.means[:CLASSES]) ** 2  # (B, CLASSES, C, H, W)
        return -0.5 * misfit.flatten(2).sum(2) / (alpha**2 * STD**2 + sigma**2).view(-1, 1)


def prior(
    channels: int,
    predicts: str = "eps",
    *,
    latent: bool = False,
    shown: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Denoiser:
    """The prior for images of some channels.

    Args:
        predicts: ``"eps"``, ``"x0"`` or ``"v"``: one prior in three parameterisations.
        latent: its states are latents of an autoencoder, with the sides halved.
        shown: channels of the image that it is shown beside the state.
    """
    states = channels * FACTOR**2 if latent else channels
    schedule = schedules.linear()
    coder = Autoencoder(
        lambda x: F.pixel_unshuffle(x, FACTOR),
        lambda z: F.pixel_shuffle(z, FACTOR),
        states,
        FACTOR,
        channels,
    )
    own: dict[str, Any] = {"autoencoder": coder} if latent else {"data_range": (-1.0, 1.0)}
    denoiser = Denoiser(
        Network(states, predicts),
        predicts=predicts,
        schedule=schedule,
        time=RATIO,
        num_classes=CLASSES,
        classifier=NoisyClassifier(Classes(states), schedule=schedule, time=RATIO),
        cond_channels=shown,
        dtype=dtype,
        name="the kit's prior",
        **own,
    )
    return denoiser.to(device)
