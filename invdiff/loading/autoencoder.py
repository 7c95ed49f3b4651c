"""diffusers' autoencoders as the :class:`~invdiff.network.Autoencoder` of a latent network: z =
(latent − shift) · scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from invdiff.network import Autoencoder

AUTOENCODERS = ("AutoencoderKL", "VQModel", "AutoencoderTiny")
"""Classes of diffusers that are read: KL with or without shift, VQ, and the small ones that stand
in for either (TAESD)."""


def from_diffusers(
    net: torch.nn.Module, *, encode: str = "mode", decode: str = "whole"
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

    Raises:
        ValueError: an unknown ``encode`` or ``decode``; one that this class of autoencoder has not.
    """
    config: Any = net.config
    name = type(net).__name__
    if encode not in ("mode", "sample"):
        raise ValueError(f"encode must be 'mode' or 'sample', got {encode!r}")
    if encode == "sample" and name != "AutoencoderKL":
        raise ValueError(
            "encode='sample' draws from the distribution that an AutoencoderKL knows; a "
            f"{name} encodes to one latent only"
        )
    blocks = config.get("encoder_block_out_channels") or config["block_out_channels"]
    factor = 2 ** (len(blocks) - 1)
    _decode_in(net, decode, factor)
    shift, scale = _affine(config)

    def call(function: Callable[[Tensor], Any], x: Tensor) -> Any:
        return function(x.to(next(net.parameters()).dtype))

    def scaled(latent: Tensor, x: Tensor) -> Tensor:
        return (latent.to(x.dtype) - shift.to(x)) * scale.to(x)

    def posterior(x: Tensor) -> tuple[Tensor, Tensor]:
        latents = call(net.encode, x).latent_dist  # type: ignore[arg-type]
        return scaled(latents.mean, x), latents.std.to(x.dtype) * scale.to(x)

    def encoded(x: Tensor) -> Tensor:
        if name == "AutoencoderKL":
            return posterior(x)[0]
        return scaled(call(net.encode, x).latents, x)  # type: ignore[arg-type]

    def decoded(z: Tensor) -> Tensor:
        return call(net.decode, z / scale.to(z) + shift.to(z)).sample.to(z.dtype)  # type: ignore[arg-type]

    net.eval().requires_grad_(False)
    return Autoencoder(
        encoded,
        decoded,
        channels=config.get("vq_embed_dim") or config["latent_channels"],
        factor=factor,
        image_channels=config["in_channels"],
        net=net,
        posterior=posterior if encode == "sample" else None,
    )


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
