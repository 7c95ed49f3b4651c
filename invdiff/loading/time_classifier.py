"""The noise-aware classifier network, as a diffusers model: the encoder half of a small UNet with a
head of logits."""

from __future__ import annotations

import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d_blocks import DownBlock2D
from torch import Tensor, nn


class TimeClassifier(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """log p(y | x_t, t) of noisy images: ``net(x_t, t) -> logits``, x_t (B, C, H, W), t (B,),
    logits (B, num_classes).

    The encoder of a UNet and a global mean, as the noisy classifiers of Dhariwal & Nichol (2021,
    section 4) without attention.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        block_out_channels: tuple[int, ...] = (32, 64, 64),
        layers_per_block: int = 1,
        norm_num_groups: int = 8,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        first, last = block_out_channels[0], block_out_channels[-1]
        self.time_proj = Timesteps(first, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(first, 4 * first)
        self.conv_in = nn.Conv2d(in_channels, first, 3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownBlock2D(
                in_channels=before,
                out_channels=after,
                temb_channels=4 * first,
                num_layers=layers_per_block,
                resnet_groups=norm_num_groups,
                dropout=dropout,
                add_downsample=after_index + 1 < len(block_out_channels),
                downsample_padding=1,
            )
            for after_index, (before, after) in enumerate(
                zip((first, *block_out_channels), block_out_channels, strict=False)
            )
        )
        self.norm_out = nn.GroupNorm(norm_num_groups, last)
        self.head = nn.Linear(last, num_classes)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        time = self.time_embedding(self.time_proj(t).to(x_t.dtype))
        x = self.conv_in(x_t)
        for block in self.down_blocks:
            x, _ = block(x, time)
        return self.head(F.silu(self.norm_out(x)).mean(dim=(2, 3)))
