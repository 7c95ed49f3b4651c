"""Between the user's range and the network's: images, and the states that an autoencoder makes."""

from __future__ import annotations

import torch
from torch import Tensor

from invdiff.network import Denoiser
from invdiff.noise import NoiseSource


def into_range(denoiser: Denoiser, x: Tensor) -> Tensor:
    """Images in the user's range as the network has them."""
    if denoiser.image_range is None:
        return x
    low, high = denoiser.image_range
    return low + (high - low) * x


def encoded(denoiser: Denoiser, x: Tensor, noise: NoiseSource | None = None) -> Tensor:
    """Images in the network's range as clean states. With noise, an autoencoder that encodes by a
    draw draws."""
    if denoiser.autoencoder is None:
        return x
    with torch.no_grad():
        if noise is None or denoiser.autoencoder.posterior is None:
            return denoiser.autoencoder.encode(x)
        mean, std = denoiser.autoencoder.posterior(x)
        return mean + std * noise.randn_like(mean)


def from_range(denoiser: Denoiser, x: Tensor) -> Tensor:
    """Clean states of the network as images in the user's range, clipped to [0, 1] where the
    network clips, and where an autoencoder made them."""
    if denoiser.autoencoder is not None:
        with torch.no_grad():
            x = denoiser.autoencoder.decode(x)
    if denoiser.image_range is None:
        return x
    low, high = denoiser.image_range
    x = (x - low) / (high - low)
    return x.clamp(0, 1) if denoiser.clip or denoiser.autoencoder is not None else x
