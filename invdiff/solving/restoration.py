"""The results of solve and generate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, repr=False)
class Restoration:
    """The result of :func:`solve` and :func:`generate`.

    Attributes:
        samples: (num_samples, B, C, H, W), in [0, 1] for image networks.
        nfe, nbe: network evaluations per image and sample, forward and backward, counted while they
            happened.
        seconds: wall-clock time of the sampling.
        config: what was run, as plain data.
        trajectory: (steps, num_samples, B, C, H, W), the estimate x0 after each step, if it was
            asked for.
        unknown: what was estimated of an unknown operator along with the images, by name: (late
            steps, num_samples, B, ...), the last step last.

    Examples:
        >>> import invdiff
        >>> denoiser = invdiff.Denoiser(lambda x, t: x, schedule=invdiff.schedules.linear(1000))
        >>> result = invdiff.generate(denoiser, (2, 5), steps=4, seed=0)
        >>> result.samples.shape, result.nfe
        (torch.Size([1, 2, 5]), 4.0)
    """

    samples: Tensor
    nfe: float
    nbe: float
    seconds: float
    config: dict[str, Any]
    trajectory: Tensor | None = None
    unknown: Mapping[str, Tensor] = field(default_factory=dict)

    def estimate(self, name: str) -> tuple[Tensor, Tensor]:
        """What was estimated of an unknown operator: the mean over the samples after the last step
        and the standard deviation over samples and late steps, (B, ...) both."""
        values = self.unknown[name]
        return values[-1].mean(0), values.flatten(0, 1).std(0, correction=0)

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

    def __repr__(self) -> str:
        n, *shape = self.samples.shape
        samples = "1 sample" if n == 1 else f"{n} samples"
        return (
            f"Restoration({samples} of {'x'.join(map(str, shape))}, {self.nfe:g} evaluations "
            f"forward and {self.nbe:g} backward per image, {self.seconds:.1f} s)"
        )

    def _repr_png_(self) -> bytes | None:
        """The samples as a picture, images beside each other, for notebooks; None for what are no
        images."""
        x = self.samples.detach()
        if x.ndim != 5 or x.is_complex() or x.shape[2] not in (1, 3):
            return None
        from invdiff.images import grid
        from invdiff.images.write import png

        return png(grid(list(x.flatten(0, 1)), columns=x.shape[1], height=128))
