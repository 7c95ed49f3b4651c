"""What solve and generate return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Restoration:
    """What :func:`solve` and :func:`generate` return.

    Attributes:
        samples: (num_samples, B, C, H, W), in [0, 1] for image networks.
        nfe, nbe: network evaluations per image and sample, forward and backward, counted while they
            happened.
        seconds: wall-clock time of the sampling.
        config: what was run, as plain data.
        trajectory: (steps, num_samples, B, C, H, W), the estimate x0 after each step, if it was
            asked for.
    """

    samples: Tensor
    nfe: float
    nbe: float
    seconds: float
    config: dict[str, Any]
    trajectory: Tensor | None = None

    @property
    def x(self) -> Tensor:
        """The first sample, (B, C, H, W)."""
        return self.samples[0]

    @property
    def mean(self) -> Tensor:
        """Mean over the samples, (B, C, H, W)."""
        return self.samples.mean(0)

    @property
    def std(self) -> Tensor:
        """Standard deviation over the samples, (B, C, H, W); zero for one sample."""
        return (
            self.samples.std(0, correction=1) if len(self.samples) > 1 else torch.zeros_like(self.x)
        )
