"""A lens that darkens the corners: ``y = (1 - strength r²) x``, r the distance from the centre, 1
in the corners."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from invdiff.problem import DiagonalOperator


@dataclass(frozen=True, eq=False)
class Vignette(DiagonalOperator):
    """Darker corners.

    Args:
        strength: in [0, 1); how much of the light the corners lose.
    """

    strength: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.strength < 1:
            raise ValueError(f"strength must be in [0, 1), got {self.strength}")

    def make_state(self, shape: tuple[int, ...]) -> dict[str, Tensor]:
        rows, columns = (torch.linspace(-1, 1, n, dtype=torch.float64) for n in shape[-2:])
        return {"light": 1 - self.strength * (rows[:, None] ** 2 + columns**2) / 2}

    def _forward(self, x: Tensor) -> Tensor:
        return self.state["light"] * x

    def _singular_values(self) -> Tensor:
        assert self.shape is not None
        return self.state["light"].expand(self.shape)
