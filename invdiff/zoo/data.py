"""Training data of the shipped networks: crops of photographs, handwritten digits and blur kernels,
held in memory."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

PATHS = 100
"""Camera paths that are drawn at once."""


@dataclass(frozen=True)
class Batch:
    """Images x0 (B, C, H, W) in [-1, 1], their labels (B,), and the images that a network is shown
    beside x_t."""

    x0: Tensor
    label: Tensor | None = None
    cond: Tensor | None = None


Source = Callable[[int], Batch]


class Crops:
    """Random square crops of photographs at several scales, half of them mirrored."""

    def __init__(self, folder: Path, size: int, scales: tuple[float, ...], seed: int) -> None:
        files = sorted(
            p for p in folder.rglob("*") if p.suffix.lower() in {".jpg", ".jpeg", ".png", ".tif"}
        )
        if not files:
            raise ValueError(f"no photographs found below {folder}")
        self.size = size
        self.photos: list[list[np.ndarray]] = []
        for file in files:
            with Image.open(file) as opened:
                photo = opened.convert("RGB")
            sizes = [(round(photo.width * s), round(photo.height * s)) for s in scales]
            fit = [wh for wh in sizes if min(wh) >= size]
            if fit:
                self.photos.append(
                    [np.asarray(photo.resize(wh, Image.Resampling.LANCZOS)) for wh in fit]
                )
        self.rng = np.random.default_rng(seed)

    def __call__(self, n: int) -> Batch:
        batch = np.empty((n, self.size, self.size, 3), np.uint8)
        for k in range(n):
            scales = self.photos[self.rng.integers(len(self.photos))]
            photo = scales[self.rng.integers(len(scales))]
            top = self.rng.integers(photo.shape[0] - self.size + 1)
            left = self.rng.integers(photo.shape[1] - self.size + 1)
            patch = photo[top : top + self.size, left : left + self.size]
            batch[k] = patch[:, ::-1] if self.rng.random() < 0.5 else patch
        return Batch(torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 127.5 - 1)


class Digits:
    """MNIST's digits, padded from 28x28 to ``size`` with their black background: {x,y}_{train,test}
    of an npz file."""

    def __init__(self, file: Path, size: int, part: str, seed: int) -> None:
        with np.load(file) as arrays:
            x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        border = (size - x.shape[-1]) // 2
        self.x = F.pad(torch.from_numpy(x), (border,) * 4)[:, None]
        self.y = torch.from_numpy(y).long()
        self.rng = np.random.default_rng(seed)

    def __call__(self, n: int) -> Batch:
        drawn = torch.from_numpy(self.rng.integers(len(self.x), size=n))
        return Batch(self.x[drawn].float() / 127.5 - 1, self.y[drawn])


class Kernels:
    """Blur kernels, each over its largest value, in the middle of ``size`` x ``size`` pixels (pixel
    size // 2): three in four are camera paths in a square of 9 pixels or more
    (:class:`deepinv.physics.generator.MotionBlurGenerator`, intensity 0.4 to 1), the others
    Gaussians of 0.4 to 3 pixels along two axes that are turned at random."""

    def __init__(self, size: int, count: int, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        paths = torch.cat([self._paths(size) for _ in range(3 * count // (4 * PATHS))])
        both = torch.cat([paths, self._gaussians(size, len(paths) // 3)])
        self.x = both / both.amax((-2, -1), keepdim=True)

    def _paths(self, size: int) -> Tensor:
        """PATHS kernels of one square and intensity."""
        from deepinv.physics.generator import MotionBlurGenerator

        k = 9 + 2 * int(self.rng.integers((size - 8) // 2))
        draw = torch.Generator().manual_seed(int(self.rng.integers(2**62)))
        make = MotionBlurGenerator((k, k), rng=draw, sigma=self.rng.uniform(0.4, 1.0) / 2)
        made = make.step(PATHS)["filter"]
        before, after = size // 2 - k // 2, size - size // 2 - (k - k // 2)
        return F.pad(made[made.sum((1, 2, 3)) > 0], (before, after, before, after))

    def _gaussians(self, size: int, count: int) -> Tensor:
        a, b = torch.from_numpy(
            np.exp(self.rng.uniform(np.log(0.4), np.log(3.0), (2, count, 1, 1)))
        )
        turn = torch.from_numpy(self.rng.uniform(0, np.pi, (count, 1, 1)))
        i = torch.arange(size).double() - size // 2
        u, v = i[:, None] * turn.cos() + i * turn.sin(), i * turn.cos() - i[:, None] * turn.sin()
        return torch.exp(-0.5 * ((u / a).square() + (v / b).square())).float()[:, None]

    def __call__(self, n: int) -> Batch:
        return Batch(2 * self.x[torch.from_numpy(self.rng.integers(len(self.x), size=n))] - 1)


def degraded(source: Source, factor: int, max_noise: float, generator: torch.Generator) -> Source:
    """Adds what an upscaling network is shown: the bicubic upsampling of the ``factor`` times
    smaller, noisy image.

    Half of the small images stay clean; the others get noise of a standard deviation drawn up to
    ``max_noise`` (in [0, 1] pixels), so that the network takes measurements as they are
    (conditioning augmentation, Ho et al. 2022, section 4).
    """

    def draw(n: int) -> Batch:
        batch = source(n)
        small = F.interpolate(batch.x0, scale_factor=1 / factor, mode="bicubic", antialias=True)
        std = 2 * max_noise * (2 * torch.rand(n, 1, 1, 1, generator=generator) - 1).clamp(min=0)
        small = small + std * torch.randn(small.shape, generator=generator)
        return replace(
            batch,
            cond=F.interpolate(small, size=batch.x0.shape[2:], mode="bicubic", antialias=True),
        )

    return draw


def compressed(source: Source, qualities: tuple[int, int], generator: torch.Generator) -> Source:
    """Adds what a network that restores JPEG files is conditioned on: the image as libjpeg stores
    it, chroma at half the resolution, at a quality that is drawn between two (Palette, Saharia et
    al. 2022, section 4.4: 5 to 30)."""
    low, high = qualities

    def draw(n: int) -> Batch:
        batch = source(n)
        drawn = torch.randint(low, high + 1, (n,), generator=generator).tolist()
        pixels = ((batch.x0 + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        files = [decoded(image, quality) for image, quality in zip(pixels, drawn, strict=True)]
        stored = torch.from_numpy(np.stack(files)).permute(0, 3, 1, 2)
        return replace(batch, cond=stored.float() / 127.5 - 1)

    return draw


def decoded(pixels: np.ndarray, quality: int) -> np.ndarray:
    """RGB pixels as they come back from a JPEG file of this quality."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return np.asarray(Image.open(file))


def label_dropout(source: Source, share: float, null: int, generator: torch.Generator) -> Source:
    """Replaces a share of the labels by the null label (Ho & Salimans 2022, algorithm 1)."""

    def draw(n: int) -> Batch:
        batch = source(n)
        assert batch.label is not None
        dropped = torch.rand(n, generator=generator) < share
        return replace(batch, label=batch.label.where(~dropped, null))

    return draw
