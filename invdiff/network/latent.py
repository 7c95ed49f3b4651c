"""Latent diffusion: an autoencoder between the images of a measurement and the states of a
network."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from types import MethodType

import torch
from torch import Tensor


@dataclass(frozen=True)
class Autoencoder:
    """Images (B, C, H, W) in ``data_range`` <-> latents (B, channels, H/factor, W/factor).

    Attributes:
        encode, decode: both differentiable; scaling and shift of the latents are theirs.
        channels: of the latents.
        factor: how many pixels a side of a latent stands for.
        image_channels: of the images.
        data_range: (low, high) of the images.
        net: the module behind both, if there is one, moved with the network.
        posterior: x -> (mean, std) of q(z | x), both shaped as the latents, where a run is to start
            from a draw of it instead of from ``encode``; each image's noise is its own.
    """

    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    channels: int
    factor: int
    image_channels: int = 3
    data_range: tuple[float, float] = (-1.0, 1.0)
    net: torch.nn.Module | None = None
    posterior: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None

    def shape(self, image: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the latents of images of shape (B, C, H, W)."""
        images, channels, *size = image
        if channels != self.image_channels:
            raise ValueError(
                f"the autoencoder takes images with {self.image_channels} channels, got "
                f"{channels} (image shape {tuple(image[1:])})"
            )
        if any(n % self.factor for n in size):
            fits = "x".join(str(n // self.factor * self.factor) for n in size)
            raise ValueError(
                f"the autoencoder takes sides that divide by {self.factor}, got "
                f"{size[0]}x{size[1]}; crop to {fits}"
            )
        return (images, self.channels, *(n // self.factor for n in size))

    def copy(self) -> Autoencoder:
        """The same with weights of its own.

        Raises:
            ValueError: its functions are not methods, so whether they use ``net`` is not known.
        """
        if self.net is None:
            return self
        if not all(isinstance(f, MethodType | torch.nn.Module) for f in (self.encode, self.decode)):
            raise ValueError(
                "an autoencoder whose encode and decode are plain functions cannot be copied, "
                "which another dtype or memory layout asks for: give one that runs in it, "
                "read_as(..., autoencoder=...), or load the network with that option"
            )
        return deepcopy(self)

    def to(self, device: torch.device | str) -> Autoencoder:
        """Moves the autoencoder in place, as ``torch.nn.Module.to``; returns itself."""
        if self.net is not None:
            self.net.to(device)
        return self
