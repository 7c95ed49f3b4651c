"""High dynamic range: contrast stretched until both ends clip, ``y = clip(p + s (x − p), 0, 1)``.

The task of Zhang et al., "Improving Diffusion Inverse Problem Solving with Decoupled Noise
Annealing" (DAPS), CVPR 2025, arXiv:2407.01521: ``clip(2 x, −1, 1)`` for x in [−1, 1]. With u = (x +
1)/2 in [0, 1] that is clip(2u − 1/2, 0, 1): the pivot p is middle grey, 1/2, and dark and bright
regions are both lost. With p = 0 black stays black and only highlights are lost, as under a longer
exposure. The gradient is s where nothing clips and 0 where it does.

Symbols: x image in [0, 1], y measurement of the same shape, s scale, p pivot.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from invdiff.problem import Operator


@dataclass(frozen=True, eq=False)
class HighDynamicRange(Operator):
    """Clipping after a change of contrast; images may have any shape.

    Args:
        scale: s > 0; 2 is the literature's.
        pivot: p, the value that the scaling leaves where it is: 0.5 is the literature's, 0 an
            overexposure.
    """

    scale: float = 2.0
    pivot: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.scale < float("inf"):
            raise ValueError(f"scale must be positive and finite, got {self.scale}")
        if not 0 <= self.pivot <= 1:
            raise ValueError(f"pivot must be in [0, 1], got {self.pivot}")

    def _forward(self, x: Tensor) -> Tensor:
        return (self.pivot + self.scale * (x - self.pivot)).clamp(0, 1)
