"""CLIP: how well images fit a prompt (Radford et al., ICML 2021, arXiv:2103.00020)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from invdiff.loading.folder_files import read_json
from invdiff.loading.text_parts import read_part

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the images that the published networks were trained on, where the folder does not say."""
SMALLEST = 0.5
"""Side of the smallest crop, as a share of the image's shorter one."""


class Clip:
    """The logit of a prompt for images: 1/temperature times the cosine of their embeddings,
    averaged over random square crops.

    Args:
        folder: a ``CLIPModel`` of transformers with its tokenizer, as ``save_pretrained`` writes
            them; ``preprocessor_config.json`` gives the mean and standard deviation of its images.
        prompt: one for all images, or one for each.
        crops: how many, for each image.

    Raises:
        ValueError: transformers is not installed, or what is in the folder is another model.
    """

    def __init__(self, folder: Path, prompt: str | Sequence[str], crops: int = 16) -> None:
        if crops < 1:
            raise ValueError(f"crops must be at least 1, got {crops}")
        config = read_json(folder / "config.json")
        if config.get("model_type") != "clip":
            raise ValueError(f"{folder} holds a {config.get('model_type')}, not a clip model")
        self.model: Any = read_part(folder, ("transformers", "CLIPModel"), False, torch.float32)
        self.model.eval().requires_grad_(False)
        self.crops, self.size = crops, int(self.model.config.vision_config.image_size)
        file = folder / "preprocessor_config.json"
        known = read_json(file) if file.is_file() else {}
        self.mean, self.std = (
            torch.tensor(known.get(name, value)).view(-1, 1, 1)
            for name, value in (("image_mean", MEAN), ("image_std", STD))
        )
        self.text = self._embedded(folder, [prompt] if isinstance(prompt, str) else list(prompt))
        self.prompts = len(self.text)

    def to(self, device: torch.device | str) -> Clip:
        """Moves it in place; returns itself."""
        self.model.to(device)
        self.mean, self.std = self.mean.to(device), self.std.to(device)
        self.text = self.text.to(device)
        return self

    def __call__(self, images: Tensor, uniform: Tensor, text: Tensor) -> Tensor:
        """The logit of each image's prompt, (B,), differentiable.

        Args:
            images: (B, 3, H, W) in [0, 1].
            uniform: (B, crops, 3) in [0, 1]: side and place of each crop.
            text: (B, d), the embedding of each image's prompt.
        """
        views = crops_of(images, uniform, self.size)
        seen = (views.to(self.mean) - self.mean) / self.std
        made = self.model.vision_model(pixel_values=seen)[1]
        embedded = F.normalize(self.model.visual_projection(made), dim=-1)
        cosine = (
            (embedded * text.repeat_interleave(self.crops, 0))
            .sum(-1)
            .view(len(images), self.crops)
            .mean(1)
        )
        return (self.model.logit_scale.exp() * cosine).to(images.dtype)

    def _embedded(self, folder: Path, prompts: list[str]) -> Tensor:
        from transformers import CLIPTokenizer

        try:
            words = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, TypeError) as error:
            raise ValueError(f"the tokenizer in {folder} cannot be read: {error}") from error
        length = self.model.config.text_config.max_position_embeddings
        tokens = words(
            prompts, padding=True, truncation=True, max_length=length, return_tensors="pt"
        )
        with torch.no_grad():
            made = self.model.text_model(
                input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
            )[1]
            return F.normalize(self.model.text_projection(made), dim=-1)


def crops_of(images: Tensor, uniform: Tensor, size: int) -> Tensor:
    """Square crops of (B, C, H, W), resampled to ``size``: (B crops, C, size, size). The numbers of
    (B, crops, 3) are the side, from SMALLEST to 1 times the shorter one, and the place, from the
    left and from the top."""
    rows, columns = images.shape[2:]
    shorter = min(rows, columns)
    side = shorter * (SMALLEST + (1 - SMALLEST) * uniform[..., 0])
    left, top = uniform[..., 1] * (columns - side), uniform[..., 2] * (rows - side)
    fine = max(1, round(shorter / size))  # points for each pixel of a crop, against aliasing
    at = (torch.arange(fine * size, device=images.device, dtype=images.dtype) + 0.5) / (fine * size)
    x = 2 * (left[..., None] + side[..., None] * at) / columns - 1
    y = 2 * (top[..., None] + side[..., None] * at) / rows - 1
    shape = (*uniform.shape[:2], fine * size, fine * size)
    grid = torch.stack([x[..., None, :].expand(shape), y[..., :, None].expand(shape)], -1)
    many = images.repeat_interleave(uniform.shape[1], 0)
    views = F.grid_sample(
        many, grid.flatten(0, 1), mode="bilinear", padding_mode="border", align_corners=False
    )
    return F.avg_pool2d(views, fine) if fine > 1 else views
