"""Random numbers that belong to an image: image k draws the same noise alone or in any batch.

The global random state is neither read nor advanced.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part, e.g. ``seed_of("sampling", seed, k, sample)``."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator_of(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator seeded by :func:`seed_of`."""
    return torch.Generator(device).manual_seed(seed_of(*parts))


class NoiseSource:
    """One generator per image of a batch.

    Args:
        seeds: a seed per image, see :func:`seed_of`.
        device: where the noise is drawn; on ``meta`` nothing is drawn.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.size = len(seeds)
        meta = self.device.type == "meta"
        self.generators = (
            [] if meta else [torch.Generator(self.device).manual_seed(s) for s in seeds]
        )

    def randn_like(self, x: Tensor) -> Tensor:
        """Standard normal noise shaped and typed as x, whose first dimension is the batch."""
        if x.shape[0] != self.size:
            raise ValueError(
                f"this noise belongs to {self.size} images, got a tensor of {x.shape[0]}"
            )
        noise = torch.empty_like(x, memory_format=torch.contiguous_format, requires_grad=False)
        for row, generator in zip(noise, self.generators, strict=False):
            row.normal_(generator=generator)
        return noise
