"""Random numbers that belong to an image: image k has the same noise alone or in any batch.

Normal numbers are counter-based: Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as
easy as 1, 2, 3") followed by Box and Muller's transform. A number is a pure function of a key (the
seed of a chain) and a counter (which draw, which position), so that a whole batch takes one call
and every device makes the same numbers to rounding. The global random state is neither read nor
advanced.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

WORD = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
BLOCK = 32_704
"""Counters at once on a CPU: they stay in its cache, below the size from which torch divides a
tensor between threads, and fill whole vectors, so that a number does not depend on its place."""
AHEAD = 32
"""Draws at once at most: more would be made for short runs in vain."""


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part, e.g. ``seed_of("sampling", seed, k, sample)``."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator_of(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator seeded by :func:`seed_of`."""
    return torch.Generator(device).manual_seed(seed_of(*parts))


def philox(counter: Sequence[Tensor], key: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Philox 4x32-10.

    Args:
        counter: four words of 32 bits in int64 tensors of one shape; the first and the third are
            overwritten.
        key: two words in tensors that broadcast against them.

    Returns:
        Four random words, in the same form.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # The product of two words fills 64 bits, so its upper half survives in the sign bit.
        p0, p1 = c0.mul_(MULTIPLIERS[0]), c2.mul_(MULTIPLIERS[1])
        c0 = (p1 >> 32).bitwise_xor_(c1).bitwise_xor_(k0).bitwise_and_(WORD)
        c2 = (p0 >> 32).bitwise_xor_(c3).bitwise_xor_(k1).bitwise_and_(WORD)
        c1, c3 = p1.bitwise_and_(WORD), p0.bitwise_and_(WORD)
        k0, k1 = (k0 + WEYL[0]) & WORD, (k1 + WEYL[1]) & WORD
    return c0, c1, c2, c3


def _normal(words: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Standard normal numbers (4, n) from four tensors of n words (Box & Muller 1958)."""
    n = words[0].numel()
    uniform = torch.zeros(4, -(-n // 64) * 64, dtype=dtype, device=words[0].device)
    for row, word in zip(uniform, words, strict=True):
        row[:n] = word.flatten()
    uniform.mul_(2.0**-32)
    radius = uniform[0::2].add_(2.0**-33).log().mul_(-2).sqrt_()
    angle = uniform[1::2] * (2 * math.pi)
    return torch.cat([radius * angle.cos(), radius * angle.sin()])[:, :n]


class NoiseSource:
    """The noise of the chains of a batch, draw after draw.

    Args:
        seeds: a seed of at most 64 bits per chain, see :func:`seed_of`.
        device: where the noise is made; on ``meta`` nothing is.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.size = len(seeds)
        self.draws = 0
        words = [[seed >> shift & WORD for seed in seeds] for shift in (0, 32)]
        self._key = torch.tensor(words, dtype=torch.int64, device=self.device)
        self._ready: list[Tensor] = []  # of the next draws, where a block holds several

    def randn_like(self, x: Tensor) -> Tensor:
        """Standard normal noise shaped and typed as x, whose first dimension is the batch."""
        if x.shape[0] != self.size:
            raise ValueError(
                f"this noise belongs to {self.size} images, got a tensor of {x.shape[0]}"
            )
        draw, self.draws = self.draws, self.draws + 1
        if self.device.type == "meta" or x.numel() == 0:
            return torch.empty_like(x, memory_format=torch.contiguous_format, requires_grad=False)
        real = x.real.dtype if x.is_complex() else x.dtype
        dtype = torch.float64 if real == torch.float64 else torch.float32
        n = x[0].numel() * (2 if x.is_complex() else 1)
        if not (self._ready and self._ready[-1].shape[1] == n and self._ready[-1].dtype == dtype):
            self._ready = self._drawn(draw, n, dtype)
        noise = self._ready.pop().to(real)
        if x.is_complex():
            return torch.view_as_complex(noise.view(*x.shape, 2) * math.sqrt(0.5))
        return noise.view(x.shape)

    def _drawn(self, draw: int, n: int, dtype: torch.dtype) -> list[Tensor]:
        """The draws from this one on that fit into a block, the last one first: (size, n) each."""
        columns = -(-n // 4)
        block = BLOCK if self.device.type == "cpu" else self.size * columns
        ahead = AHEAD if self.device.type == "cpu" else 1
        count = max(1, min(ahead, block // (self.size * columns)))
        chains, draws = self.size * count, torch.arange(draw, draw + count, device=self.device)
        draws = draws.repeat_interleave(self.size)[:, None]
        key = self._key.repeat(1, count)[..., None]
        out = torch.empty(4, chains, columns, dtype=dtype, device=self.device)
        rows, width = max(1, block // columns), min(columns, block)
        for a in range(0, chains, rows):
            for b in range(0, columns, width):
                part = out[:, a : a + rows, b : b + width]
                shape = part.shape[1:]
                position = torch.arange(b, b + shape[1], device=self.device).repeat(shape[0], 1)
                zero = torch.zeros_like(position)
                counter = (position, zero, draws[a : a + rows].expand(shape).clone(), zero)
                part[:] = _normal(philox(counter, (*key[:, a : a + rows],)), dtype).view(4, *shape)
        drawn = out.transpose(0, 1).reshape(count, self.size, 4 * columns)[..., :n]
        return list(drawn.contiguous().unbind())[::-1]
