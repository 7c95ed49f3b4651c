"""The UNet of ADM (Dhariwal & Nichol 2021, arXiv:2105.05233, section 3; Nichol & Dhariwal 2021,
arXiv:2102.09672), written anew: :class:`ADM` predicts the noise, :class:`ADMClassifier` is its
encoder with a head of logits. Parameters carry the names of openai/guided-diffusion.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from invdiff.loading.adm_architecture import POOLS, Architecture
from invdiff.network import Facts

GROUPS = 32


class Attention(nn.Module):
    """Scaled dot-product attention of ``heads`` heads on (B, 3C, N) queries, keys and values: (B,
    C, N). No parameters."""

    def __init__(self, heads: int, new_order: bool) -> None:
        super().__init__()
        self.heads, self.new_order = heads, new_order

    def forward(self, qkv: Tensor) -> Tensor:
        if self.new_order:  # (3, heads, C/heads)
            parts = qkv.unflatten(1, (3, self.heads, -1)).unbind(1)
        else:  # (heads, 3, C/heads)
            parts = qkv.unflatten(1, (self.heads, 3, -1)).unbind(2)
        q, k, v = (part.transpose(-1, -2) for part in parts)  # (B, heads, N, C/heads)
        return F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).flatten(1, 2)


class AttentionBlock(nn.Module):
    """x + proj(attention(norm(x))) over all pixels of (B, C, H, W)."""

    def __init__(self, channels: int, heads: int, new_order: bool) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.attention = Attention(heads, new_order)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        pixels = x.flatten(2)
        return x + self.proj_out(self.attention(self.qkv(self.norm(pixels)))).view_as(x)


class ResBlock(nn.Module):
    """Residual block under a time embedding; ``resize`` halves (0.5) or doubles (2.0) the sides of
    both branches."""

    def __init__(
        self, before: int, after: int, emb: int, scale_shift: bool, resize: float = 1.0
    ) -> None:
        super().__init__()
        self.scale_shift, self.resize = scale_shift, resize
        self.in_layers = nn.Sequential(
            nn.GroupNorm(GROUPS, before), nn.SiLU(), nn.Conv2d(before, after, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(
            nn.SiLU(), nn.Linear(emb, 2 * after if scale_shift else after)
        )
        # The third place is that of the dropout.
        self.out_layers = nn.Sequential(
            nn.GroupNorm(GROUPS, after),
            nn.SiLU(),
            nn.Identity(),
            nn.Conv2d(after, after, 3, padding=1),
        )
        self.skip_connection = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        norm, activation, conv = self.in_layers
        h = conv(_resized(activation(norm(x)), self.resize))
        shift = self.emb_layers(emb)[:, :, None, None].to(h.dtype)
        norm, *rest = self.out_layers
        if self.scale_shift:
            scale, shift = shift.chunk(2, dim=1)
            h = norm(h) * (1 + scale) + shift
        else:
            h = norm(h + shift)
        for layer in rest:
            h = layer(h)
        return self.skip_connection(_resized(x, self.resize)) + h


def _resized(x: Tensor, factor: float) -> Tensor:
    if factor == 2.0:
        return F.interpolate(x, scale_factor=2.0, mode="nearest")
    return F.avg_pool2d(x, 2) if factor == 0.5 else x


class Downsample(nn.Module):
    """Half the sides, by a convolution ``op`` or by the mean of 2x2 pixels."""

    def __init__(self, channels: int, conv: bool) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1) if conv else nn.AvgPool2d(2)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Twice the sides by repetition, then a convolution ``conv`` or nothing."""

    def __init__(self, channels: int, conv: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if conv else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.conv(_resized(x, 2.0))


class Stem(nn.Conv2d):
    """The first convolution, called as every other layer."""

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        return super().forward(x)


class Layers(nn.Sequential):
    """Layers that are all called as ``layer(x, emb)``."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # type: ignore[override]
        for layer in self:
            x = layer(x, emb)
        return x


class _Encoder(nn.Module):
    """The part that denoiser and classifier share: time embedding, the way down and the middle."""

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.architecture = a
        self.checkpointing = False
        emb = 4 * a.model_channels
        self.time_embed = nn.Sequential(
            nn.Linear(a.model_channels, emb), nn.SiLU(), nn.Linear(emb, emb)
        )
        channels = a.channels[0]
        self.widths = [channels]
        self.input_blocks = nn.ModuleList([Layers(Stem(a.in_channels, channels, 3, padding=1))])
        for level, width in enumerate(a.channels):
            for _ in range(a.blocks):
                self.input_blocks.append(self._block(channels, width, level))
                channels = width
                self.widths.append(channels)
            if level + 1 < len(a.channels):
                self.input_blocks.append(Layers(self._resample(channels, down=True)))
                self.widths.append(channels)
        self.middle_block = Layers(
            ResBlock(channels, channels, emb, a.scale_shift),
            AttentionBlock(channels, a.heads_of(channels), a.new_order),
            ResBlock(channels, channels, emb, a.scale_shift),
        )

    def _block(self, before: int, after: int, level: int, *more: nn.Module) -> Layers:
        a = self.architecture
        layers: list[nn.Module] = [ResBlock(before, after, 4 * a.model_channels, a.scale_shift)]
        if level in a.attention:
            layers.append(AttentionBlock(after, a.heads_of(after), a.new_order))
        return Layers(*layers, *more)

    def _resample(self, channels: int, down: bool) -> nn.Module:
        a = self.architecture
        if a.resample == "block":
            return ResBlock(
                channels, channels, 4 * a.model_channels, a.scale_shift, 0.5 if down else 2.0
            )
        return (Downsample if down else Upsample)(channels, a.resample == "conv")

    def enable_gradient_checkpointing(self) -> None:
        """Blocks are computed again on the way back instead of being kept."""
        self.checkpointing = True

    def _run(self, block: nn.Module, x: Tensor, emb: Tensor) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x, emb, use_reentrant=False)  # type: ignore[return-value]
        return block(x, emb)

    def _embedding(self, t: Tensor) -> Tensor:
        """The embedding of times (B,): cosines, then sines, of geometric frequencies from 1 to
        1/10000."""
        half = self.architecture.model_channels // 2
        steps = torch.arange(half, dtype=torch.float32, device=t.device)
        angles = t[:, None].float() * torch.exp(-math.log(10_000) / half * steps)
        waves = torch.cat([angles.cos(), angles.sin()], dim=1)
        return self.time_embed(
            F.pad(waves, (0, self.architecture.model_channels % 2)).to(
                next(self.parameters()).dtype
            )
        )

    def _down(self, x: Tensor, emb: Tensor) -> Iterator[Tensor]:
        for block in self.input_blocks:
            x = self._run(block, x, emb)
            yield x


class ADM(_Encoder):
    """``net(x, t, label=None)``: x (B, in_channels, H, W) in [-1, 1], t (B,) the training's step
    0..T-1, fractions allowed; label (B,), where the network has classes. Returns (B, out_channels,
    H, W): the noise and, where learned, the variance's v after it.

    Args:
        image_last: channels of a low-resolution image that it takes after the state; x is [image,
            x_t], as a Denoiser joins them. guided-diffusion enlarges it bilinearly.
    """

    def __init__(self, architecture: Architecture, image_last: int = 0) -> None:
        super().__init__(architecture)
        a = architecture
        self.image_last = image_last
        if image_last:
            self.facts = Facts(conditions={"label"}, upsampling="bilinear", cond_last=True)
        if a.rows is not None:
            self.label_emb = nn.Embedding(a.rows, 4 * a.model_channels)
        channels, widths = a.channels[-1], list(self.widths)
        self.output_blocks = nn.ModuleList()
        for level, width in reversed(list(enumerate(a.channels))):
            for i in range(a.blocks + 1):
                up = [self._resample(width, down=False)] if level and i == a.blocks else []
                self.output_blocks.append(self._block(channels + widths.pop(), width, level, *up))
                channels = width
        self.out = nn.Sequential(
            nn.GroupNorm(GROUPS, channels),
            nn.SiLU(),
            nn.Conv2d(channels, a.out_channels, 3, padding=1),
        )

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        emb = self._embedding(t)
        if self.architecture.rows is not None:
            if label is None:
                raise ValueError("this network is class-conditional and needs a label")
            emb = emb + self.label_emb(label)
        if self.image_last:
            x = x.roll(-self.image_last, dims=1)
        passed = list(self._down(x, emb))
        h = self._run(self.middle_block, passed[-1], emb)
        for block in self.output_blocks:
            h = self._run(block, torch.cat([h, passed.pop()], dim=1), emb)
        return self.out(h)


class AttentionPool(nn.Module):
    """Logits from what the mean of all pixels attends to (the image encoder of CLIP, Radford et al.
    2021): (B, C, n, n) to (B, K)."""

    def __init__(self, size: int, channels: int, heads: int, out: int) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.zeros(channels, size**2 + 1))
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1)
        self.attention = Attention(heads, new_order=True)
        self.c_proj = nn.Conv1d(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.flatten(2)
        if pixels.shape[2] + 1 != self.positional_embedding.shape[1]:
            side = math.isqrt(self.positional_embedding.shape[1] - 1)
            raise ValueError(
                f"the classifier pools {side}x{side} features and was given "
                f"{x.shape[-2]}x{x.shape[-1]}: it has one image size"
            )
        tokens = (
            torch.cat([pixels.mean(dim=2, keepdim=True), pixels], dim=2) + self.positional_embedding
        )
        return self.c_proj(self.attention(self.qkv_proj(tokens)))[:, :, 0]


class ADMClassifier(_Encoder):
    """``net(x_t, t) -> logits`` (B, classes) of noisy images (Dhariwal & Nichol 2021, section 4):
    x_t in [-1, 1], t in 0..T-1."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture)
        a, channels = architecture, architecture.channels[-1]
        seen = (
            sum(self.widths) + channels
        )  # of the spatial pools: the mean of every block's output and of the middle's
        match a.pool:
            case "adaptive":
                self.out = nn.Sequential(
                    nn.GroupNorm(GROUPS, channels),
                    nn.SiLU(),
                    nn.AdaptiveAvgPool2d(1),
                    nn.Conv2d(channels, a.out_channels, 1),
                    nn.Flatten(),
                )
            case "attention":
                assert a.pool_size is not None
                pool = AttentionPool(a.pool_size, channels, a.heads_of(channels), a.out_channels)
                self.out = nn.Sequential(nn.GroupNorm(GROUPS, channels), nn.SiLU(), pool)
            case "spatial":
                self.out = nn.Sequential(
                    nn.Linear(seen, 2048), nn.ReLU(), nn.Linear(2048, a.out_channels)
                )
            case "spatial_v2":
                self.out = nn.Sequential(
                    nn.Linear(seen, 2048),
                    nn.GroupNorm(GROUPS, 2048),
                    nn.SiLU(),
                    nn.Linear(2048, a.out_channels),
                )
            case _:
                raise ValueError(f"unknown pool {a.pool!r}; known: {', '.join(POOLS)}")

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        emb = self._embedding(t)
        passed = list(self._down(x, emb))
        h = self._run(self.middle_block, passed[-1], emb)
        if self.architecture.pool in ("adaptive", "attention"):
            return self.out(h)
        return self.out(torch.cat([part.mean(dim=(2, 3)) for part in (*passed, h)], dim=1))
