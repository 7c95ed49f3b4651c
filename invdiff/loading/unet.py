"""The plain convolutional U-Net of Ho et al. 2020 (arXiv:2006.11239, appendix B), written anew.

It is diffusers' ``UNet2DModel`` with ``DownBlock2D`` and ``UpBlock2D`` only, under the same
parameter names and bit-equal to it, so that networks of this kind load without diffusers, whose
import takes longer than restoring a small image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class TimeEmbedding(nn.Module):
    """Cosines, then sines, of times (B,) at ``channels / 2`` frequencies from 1 to 1/10000, and two
    linear layers: (B, 4 * channels)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.waves = channels // 2
        self.linear_1 = nn.Linear(channels, 4 * channels)
        self.linear_2 = nn.Linear(4 * channels, 4 * channels)

    def forward(self, t: Tensor) -> Tensor:
        steps = torch.arange(self.waves, dtype=torch.float32, device=t.device)
        angles = t[:, None].float() * torch.exp(-math.log(10_000) * steps / self.waves)
        both = torch.cat([angles.cos(), angles.sin()], dim=1)
        return self.linear_2(F.silu(self.linear_1(both.to(self.linear_1.weight.dtype))))


class ResBlock(nn.Module):
    """Residual block; the time embedding is added between its convolutions."""

    def __init__(self, before: int, after: int, emb: int, groups: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, before, eps)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.time_emb_proj = nn.Linear(emb, after)
        self.norm2 = nn.GroupNorm(groups, after, eps)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(before, after, 1) if before != after else None
        self.checkpointing = False

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(self._run, x, emb, use_reentrant=False)  # type: ignore[return-value]
        return self._run(x, emb)

    def _run(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time_emb_proj(F.silu(emb))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return (x if self.conv_shortcut is None else self.conv_shortcut(x)) + h


class Attention(nn.Module):
    """x + out(attention(norm(x))) over all pixels of (B, C, H, W), ``width`` channels a head."""

    def __init__(self, channels: int, width: int, groups: int) -> None:
        super().__init__()
        self.heads = channels // width
        self.group_norm = nn.GroupNorm(groups, channels)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        pixels = self.group_norm(x.flatten(2)).transpose(1, 2)
        q, k, v = (
            part(pixels).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in (self.to_q, self.to_k, self.to_v)
        )
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.to_out[0](out).transpose(1, 2).unflatten(2, x.shape[2:]) + x


class Resampling(nn.Module):
    """Half the sides by a convolution of stride 2, or twice the sides by repetition and a
    convolution."""

    def __init__(self, channels: int, up: bool) -> None:
        super().__init__()
        self.up = up
        self.conv = nn.Conv2d(channels, channels, 3, stride=1 if up else 2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0) if self.up else x)


class DownBlock(nn.Module):
    """One resolution on the way down; returns the results of its layers, the last of which goes
    on."""

    def __init__(
        self, before: int, after: int, emb: int, groups: int, eps: float, layers: int, last: bool
    ) -> None:
        super().__init__()
        widths = [before] + [after] * layers
        self.resnets = nn.ModuleList(ResBlock(a, b, emb, groups, eps) for a, b in pairwise(widths))
        self.downsamplers = nn.ModuleList([] if last else [Resampling(after, up=False)])

    def forward(self, x: Tensor, emb: Tensor) -> list[Tensor]:
        results = []
        for block in self.resnets:
            x = block(x, emb)
            results.append(x)
        return results + [down(x) for down in self.downsamplers]


class UpBlock(nn.Module):
    """One resolution on the way up; each residual block is also given a result of the way down,
    the last of which is taken first."""

    def __init__(self, befores: Sequence[int], after: int, emb: int, groups: int, last: bool):
        super().__init__()
        self.resnets = nn.ModuleList(ResBlock(n, after, emb, groups) for n in befores)
        self.upsamplers = nn.ModuleList([] if last else [Resampling(after, up=True)])

    def forward(self, x: Tensor, emb: Tensor, passed: list[Tensor]) -> Tensor:
        for block in self.resnets:
            x = block(torch.cat([x, passed.pop()], dim=1), emb)
        for up in self.upsamplers:
            x = up(x)
        return x


class Middle(nn.Module):
    """Two residual blocks at the lowest resolution, with attention between them if asked for."""

    def __init__(self, channels: int, emb: int, groups: int, width: int | None) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(
            [] if width is None else [Attention(channels, width, groups)]
        )
        self.resnets = nn.ModuleList(ResBlock(channels, channels, emb, groups) for _ in range(2))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        x = self.resnets[0](x, emb)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x, emb)


class UNet(nn.Module):
    """``net(x, t, label=None)``: x (B, in_channels, H, W), t (B,), label (B,) where the network has
    classes; the output is (B, out_channels, H, W).

    Args:
        channels: of each resolution, finest first.
        layers: residual blocks per resolution.
        groups: of the group normalisations.
        classes: rows of the table of class embeddings; None without.
        attention: channels of a head of the attention at the lowest resolution; None without.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int],
        layers: int = 1,
        groups: int = 32,
        classes: int | None = None,
        attention: int | None = None,
    ) -> None:
        super().__init__()
        first, emb = channels[0], 4 * channels[0]
        self.conv_in = nn.Conv2d(in_channels, first, 3, padding=1)
        self.time_embedding = TimeEmbedding(first)
        self.class_embedding = None
        if classes is not None:  # zeros: drawing on the meta device imports 900 modules of torch
            table = torch.zeros(classes, emb)
            self.class_embedding = nn.Embedding.from_pretrained(table, freeze=False)
        self.down_blocks = down_blocks(channels, layers, groups)
        self.mid_block = Middle(channels[-1], emb, groups, attention)
        passed = [first]  # the channels of what the way down leaves for the way up
        for level, width in enumerate(channels):
            passed += [width] * (layers + (level + 1 < len(channels)))
        self.up_blocks = nn.ModuleList()
        before = channels[-1]
        for level, width in reversed(list(enumerate(channels))):
            widths = [before] + [width] * layers
            befores = [n + passed.pop() for n in widths]
            self.up_blocks.append(UpBlock(befores, width, emb, groups, last=level == 0))
            before = width
        self.conv_norm_out = nn.GroupNorm(groups, first)
        self.conv_out = nn.Conv2d(first, out_channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        emb = self.time_embedding(t)
        if self.class_embedding is not None:
            if label is None:
                raise ValueError("this network is class-conditional and needs a label")
            emb = emb + self.class_embedding(label)
        passed = [self.conv_in(x)]
        for block in self.down_blocks:
            passed += block(passed[-1], emb)
        x = self.mid_block(passed[-1], emb)
        for block in self.up_blocks:
            x = block(x, emb, passed)
        return self.conv_out(F.silu(self.conv_norm_out(x)))

    def enable_gradient_checkpointing(self) -> None:
        """Residual blocks are computed again on the way back instead of being kept."""
        for module in self.modules():
            if isinstance(module, ResBlock):
                module.checkpointing = True


def down_blocks(
    channels: Sequence[int], layers: int, groups: int, eps: float = 1e-5
) -> nn.ModuleList:
    """The way down through resolutions of so many channels, finest first; ``eps`` of their group
    normalisations."""
    emb, last = 4 * channels[0], len(channels) - 1
    before = [channels[0], *channels]
    return nn.ModuleList(
        DownBlock(before[level], after, emb, groups, eps, layers, level == last)
        for level, after in enumerate(channels)
    )


PLAIN: Mapping[str, Any] = {
    "act_fn": "silu",
    "attn_norm_num_groups": None,
    "center_input_sample": False,
    "class_embed_type": None,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "dropout": 0.0,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2D",
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "upsample_type": "conv",
}
"""The settings in diffusers' configuration under which :class:`UNet` is the network."""


def from_config(config: Mapping[str, Any]) -> UNet:
    """The network of a diffusers ``UNet2DModel``'s complete configuration.

    Raises:
        ValueError: it is of another kind.
    """
    channels = config["block_out_channels"]
    wanted = {
        **PLAIN,
        "_class_name": "UNet2DModel",
        "down_block_types": ["DownBlock2D"] * len(channels),
        "up_block_types": ["UpBlock2D"] * len(channels),
    }
    if other := [key for key, value in wanted.items() if config.get(key, value) != value]:
        raise ValueError(f"the plain U-Net has no {other[0]} = {config[other[0]]!r}")
    return UNet(
        config["in_channels"],
        config["out_channels"],
        channels,
        config["layers_per_block"],
        config["norm_num_groups"],
        config.get("num_class_embeds"),
        config["attention_head_dim"] if config["add_attention"] else None,
    )
