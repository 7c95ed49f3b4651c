"""diffusers' autoencoders as the :class:`~invdiff.network.Autoencoder` of a latent network: z =
(latent − shift) · scale."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from invdiff.network import Autoencoder

AUTOENCODERS = ("AutoencoderKL", "VQModel", "AutoencoderTiny", "AutoencoderDC")
"""Classes of diffusers that are read: KL with or without shift, VQ, the small ones that stand in
for either (TAESD), and the deep compression of Sana."""


def from_diffusers(
    net: torch.nn.Module, *, encode: str = "mode", decode: str = "whole", raw: bool = False
) -> Autoencoder:
    """An autoencoder of diffusers, images (B, C, H, W) in [-1, 1] <-> scaled latents (B, c,
    H/factor, W/factor).

    It runs in the dtype of its weights and answers in that of its input. A VQ decoder looks up the
    nearest codes, and gradients pass as if it had not (straight through), as in diffusers.

    Args:
        net: one of :data:`AUTOENCODERS`.
        encode: ``"mode"``, the most likely latent, or ``"sample"``, a draw of q(z | x) from the
            noise of the image in a run.
        decode: ``"whole"``; ``"slices"``, image by image; ``"tiles"``, large images in blended
            windows of what it was trained on. The last two are diffusers' own: slices save memory
            without gradients only, tiles change the image a little.
        raw: the latents are neither scaled nor, by a VQ decoder, looked up, as Kandinsky has it.

    Raises:
        ValueError: an unknown ``encode`` or ``decode``; one that this class of autoencoder has not.
    """
    config: Any = net.config
    name = type(net).__name__
    if encode not in ("mode", "sample"):
        raise ValueError(f"encode must be 'mode' or 'sample', got {encode!r}")
    if encode == "sample" and name != "AutoencoderKL":
        raise ValueError(
            "encode='sample' draws from the distribution of an AutoencoderKL; a "
            f"{name} encodes to one latent only"
        )
    factor = factor_of(config)
    _decode_in(net, decode, factor)
    net.eval().requires_grad_(False)
    coder = Scaled(net, raw)
    return Autoencoder(
        coder.latents,
        coder.images,
        channels=config.get("vq_embed_dim") or config["latent_channels"],
        factor=factor,
        image_channels=config["in_channels"],
        net=net,
        posterior=coder.posterior if encode == "sample" else None,
    )


def factor_of(config: Any) -> int:
    """How many pixels a side of a latent stands for, of an autoencoder's configuration."""
    blocks = config.get("encoder_block_out_channels") or config["block_out_channels"]
    return 2 ** (len(blocks) - 1)


class Scaled:
    """An autoencoder of diffusers with its latents normalised, z = (latent - shift) * scale; runs
    in the dtype of its weights and answers in that of its input. ``raw``: z = latent."""

    def __init__(self, net: torch.nn.Module, raw: bool = False) -> None:
        self.net: Any = net
        self.given = {"force_not_quantize": True} if raw else {}
        self.shift, self.scale = (torch.zeros(()), torch.ones(())) if raw else _affine(net.config)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, std) of q(z | x)."""
        latents = self.net.encode(self._own(x)).latent_dist
        return self._scaled(latents.mean, x), latents.std.to(x.dtype) * self.scale.to(x)

    def latents(self, x: Tensor, shifted: bool = True) -> Tensor:
        """The only latent, or the most likely one; without ``shifted`` scaled only."""
        found = self.net.encode(self._own(x), return_dict=False)[0]
        latent = found if isinstance(found, Tensor) else found.mode()
        return self._scaled(latent, x) if shifted else latent.to(x.dtype) * self.scale.to(x)

    def images(self, z: Tensor) -> Tensor:
        """The decoded images."""
        latent = z / self.scale.to(z) + self.shift.to(z)
        return self.net.decode(self._own(latent), **self.given).sample.to(z.dtype)

    def _own(self, x: Tensor) -> Tensor:
        return x.to(next(self.net.parameters()).dtype)

    def _scaled(self, latent: Tensor, x: Tensor) -> Tensor:
        return (latent.to(x.dtype) - self.shift.to(x)) * self.scale.to(x)


def _decode_in(net: Any, decode: str, factor: int) -> None:
    ways = {"whole": None, "slices": "use_slicing", "tiles": "use_tiling"}
    if decode not in ways:
        raise ValueError(f"decode must be one of {', '.join(map(repr, ways))}, got {decode!r}")
    flag = ways[decode]
    if flag is None:
        return
    if not hasattr(net, flag):
        raise ValueError(
            f"diffusers' {type(net).__name__} cannot decode in {decode}; use decode='whole'"
        )
    setattr(net, flag, True)


def _affine(config: Any) -> tuple[Tensor, Tensor]:
    """(shift, scale): numbers, or one for each channel where the latents are normalised channel by
    channel."""
    scale = torch.tensor(float(config["scaling_factor"]), dtype=torch.float64)
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is None or std is None:
        return torch.tensor(float(config.get("shift_factor") or 0), dtype=torch.float64), scale
    shift, spread = (torch.tensor(v, dtype=torch.float64).view(1, -1, 1, 1) for v in (mean, std))
    return shift, scale / spread
