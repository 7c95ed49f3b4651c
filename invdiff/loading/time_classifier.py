"""The noise-aware classifier network: the encoder half of a small U-Net with a head of logits."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from invdiff.loading.state_dict import filled
from invdiff.loading.unet import TimeEmbedding, down_blocks

WEIGHTS = "diffusion_pytorch_model.safetensors"


class TimeClassifier(nn.Module):
    """log p(y | x_t, t) of noisy images: ``net(x_t, t) -> logits``, x_t (B, C, H, W), t (B,),
    logits (B, num_classes).

    The encoder of a U-Net and a global mean, as the noisy classifiers of Dhariwal & Nichol (2021,
    section 4) without attention. ``config`` are its arguments.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        block_out_channels: Sequence[int] = (32, 64, 64),
        layers_per_block: int = 1,
        norm_num_groups: int = 8,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "in_channels": in_channels,
            "num_classes": num_classes,
            "block_out_channels": list(block_out_channels),
            "layers_per_block": layers_per_block,
            "norm_num_groups": norm_num_groups,
        }
        first, last = block_out_channels[0], block_out_channels[-1]
        self.time_embedding = TimeEmbedding(first)
        self.conv_in = nn.Conv2d(in_channels, first, 3, padding=1)
        self.down_blocks = down_blocks(block_out_channels, layers_per_block, norm_num_groups, 1e-6)
        self.norm_out = nn.GroupNorm(norm_num_groups, last)
        self.head = nn.Linear(last, num_classes)

    @classmethod
    def from_folder(cls, folder: Path, config: Mapping[str, Any]) -> TimeClassifier:
        """The network of a ``config.json`` with the weights beside it, in float32.

        Raises:
            ValueError: weights that cannot be read or do not belong to it; what
                ``config`` says that the class does not have.
        """
        made = {k: v for k, v in config.items() if k[0] != "_" and k != "dropout"}
        try:
            net = filled(lambda: cls(**made), load_file(folder / WEIGHTS))
        except (OSError, SafetensorError, ValueError, TypeError) as error:
            raise ValueError(f"the weights in {folder} cannot be read: {error}") from error
        assert isinstance(net, cls)
        return net

    def to_json_string(self) -> str:
        """The text of its ``config.json``."""
        return json.dumps({"_class_name": type(self).__name__} | self.config, indent=2) + "\n"

    def save_pretrained(self, folder: Path) -> None:
        """Writes ``config.json`` and the weights into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(self.to_json_string())
        save_file(self.state_dict(), folder / WEIGHTS)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        emb, x = self.time_embedding(t), self.conv_in(x_t)
        for block in self.down_blocks:
            x = block(x, emb)[-1]
        return self.head(F.silu(self.norm_out(x)).mean(dim=(2, 3)))
