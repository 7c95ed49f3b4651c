"""Flux: a transformer of diffusers whose state is a sequence of 2 x 2 patches, as a network on
image-shaped latents."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SIDE = 2
"""Of a patch."""
DISTANT = 128
"""Side of the latents that the published networks were trained on, which their configuration does
not state (diffusers' FluxPipeline)."""


class Packed(torch.nn.Module):
    """``FluxTransformer2DModel`` or ``FluxControlNetModel`` on states (B, C, H, W) with even sides:
    they are packed to (B, H/2 W/2, 4 C), with the position of each patch beside them; the time is
    that of the scheduler, 0..1000.

    Attributes:
        config: the network's, with the channels and the patch of the states.
    """

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net: Any = net
        own: Any = net.config
        channels = {k: own[k] // SIDE**2 for k in ("in_channels", "out_channels") if own.get(k)}
        self.config: dict[str, Any] = {**own, **channels, "patch_size": SIDE}
        self.config.setdefault("sample_size", DISTANT)

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        guidance: Tensor | None = None,
        controlnet_cond: Tensor | None = None,
        **more: Any,
    ) -> Any:
        rows, columns = (n // SIDE for n in x.shape[2:])
        if controlnet_cond is not None:
            more["controlnet_cond"] = pack(controlnet_cond)
        out = self.net(
            hidden_states=pack(x),
            timestep=timestep / 1000,
            encoder_hidden_states=encoder_hidden_states,
            pooled_projections=pooled_projections,
            guidance=guidance,
            img_ids=positions(rows, columns, x),
            txt_ids=x.new_zeros(encoder_hidden_states.shape[1], 3),
            **more,
        )
        return out if controlnet_cond is not None else (unpack(out[0], rows, columns),)

    def enable_gradient_checkpointing(self) -> None:
        """diffusers' own."""
        self.net.enable_gradient_checkpointing()


def pack(x: Tensor) -> Tensor:
    """(B, C, 2 H, 2 W) -> (B, H W, 4 C)."""
    x = x.unflatten(3, (-1, SIDE)).unflatten(2, (-1, SIDE))  # (B, C, H, 2, W, 2)
    return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpack(patches: Tensor, rows: int, columns: int) -> Tensor:
    """(B, rows columns, 4 C) -> (B, C, 2 rows, 2 columns)."""
    x = patches.unflatten(2, (-1, SIDE, SIDE)).unflatten(1, (rows, columns))
    return x.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def positions(rows: int, columns: int, like: Tensor) -> Tensor:
    """(0, row, column) of each patch, (rows columns, 3)."""
    at = like.new_zeros(rows, columns, 3)
    at[..., 1] += torch.arange(rows, device=like.device)[:, None]
    at[..., 2] += torch.arange(columns, device=like.device)
    return at.flatten(0, 1)
