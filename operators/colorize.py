"""Colourisation: the luma of an RGB image, ``y = 0.299 R + 0.587 G + 0.114 B``.

With w the weights of ITU-R Rec. BT.601, as in kornia's ``rgb_to_grayscale`` and (rounded to four
digits) deepinv's ``Decolorize``. A = wᵀ on the channels of every pixel has rank one: its singular
value is ‖w‖, V a fixed orthogonal 3×3 matrix whose first column is w/‖w‖, U = 1. Spectral arrays
have the image's layout; only channel 0 is measured.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from invdiff.problem import SpectralOperator
from invdiff.problem.operator import Shape

REC601 = (0.299, 0.587, 0.114)


@dataclass(frozen=True, eq=False)
class Colorize(SpectralOperator):
    """RGB (3, H, W) in [0, 1] to luma (1, H, W); it has no parameters."""

    def make_state(self, shape: Shape) -> dict[str, Tensor]:
        if len(shape) != 3 or shape[0] != 3:
            raise ValueError(
                f"Colorize works on RGB images of shape (3, H, W), got {shape}; for grey "
                "images repeat the channel: x.expand(-1, 3, -1, -1)"
            )
        w = torch.tensor(REC601, dtype=torch.float64)
        norm = w.norm()
        # The Householder reflection that swaps w/‖w‖ and e_1: orthogonal and symmetric, so it is V
        # and V* at once.
        normal = w / norm - torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
        v = torch.eye(3, dtype=torch.float64) - 2 * normal[:, None] * normal / normal.square().sum()
        return {
            "weights": w.view(3, 1, 1),
            "v": v,
            "s": torch.stack([norm, 0 * norm, 0 * norm]).view(3, 1, 1),
        }

    def image_shape(self, measurement_shape: Shape) -> Shape:
        if len(measurement_shape) != 3 or measurement_shape[0] != 1:
            raise ValueError(f"Colorize measures one channel, (1, H, W), got {measurement_shape}")
        return (3, *measurement_shape[1:])

    def _forward(self, x: Tensor) -> Tensor:
        return (self.state["weights"] * x).sum(-3, keepdim=True)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self.state["weights"] * y

    def _singular_values(self) -> Tensor:
        assert self.shape is not None
        return self.state["s"].expand(self.shape)

    def _vt(self, x: Tensor) -> Tensor:
        return torch.einsum("ij,bjhw->bihw", self.state["v"], x)

    def _v(self, z: Tensor) -> Tensor:
        return self._vt(z)

    def _ut(self, y: Tensor) -> Tensor:
        return torch.cat([y, torch.zeros_like(y), torch.zeros_like(y)], dim=1)

    def _u(self, z: Tensor) -> Tensor:
        return z[:, :1]
