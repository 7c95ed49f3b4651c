"""Spatially varying blur: kernels that stand on a grid, interpolated between its nodes.

    y = Σ_k  c_k ⊙ (w_k * x)

w_k is the kernel of node k and c_k(i) its share at pixel i, linear between neighbouring nodes, Σ_k
c_k = 1: Nagy and O'Leary, "Restoring Images Degraded by Spatially Variant Blur", SIAM J. Sci.
Comput. 1998. Nodes span the image from corner to corner. The adjoint is exact, Σ_k w_kᵀ (c_k ⊙ y);
pseudo-inverse and prox by conjugate gradients (relative tolerance 1e-6, at most 100 iterations).

Symbols: x image, y measurement of the same shape. Borders are those of
:mod:`invdiff.operators.blur`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import hypot
from typing import ClassVar

import torch
from torch import Tensor

from invdiff.noise import seed_of
from invdiff.operators.blur import BORDERS, Blur, blur
from invdiff.problem import LinearOperator
from invdiff.problem.operator import Shape

KERNELS = ("gaussian", "motion")


@dataclass(frozen=True, eq=False)
class VaryingBlur(LinearOperator):
    """A blur that differs across the image.

    Args:
        kernel: ``"gaussian"``, out of focus towards the corners; ``"motion"``, another random
            camera path at every node; or a tensor (rows, columns, k, l) of kernels, used as they
            are.
        grid: rows and columns of nodes; a tensor of kernels has its own.
        sigma: standard deviations of the gaussians in pixels, (in the centre, in the corners),
            linear in the distance between.
        kernel_size: side of the kernels in pixels, odd; None is 4 sigma to each side for gaussians,
            31 for motion.
        intensity: of the camera's shake, in (0, 1].
        seed: of the camera's paths.
        border: ``"reflect"``, ``"replicate"`` or ``"circular"``.
    """

    kernel: str | Tensor = "gaussian"
    grid: tuple[int, int] = (3, 3)
    sigma: tuple[float, float] = (0.5, 3.0)
    kernel_size: int | None = None
    intensity: float = 0.5
    seed: int = 0
    border: str = "reflect"

    expected_failures: ClassVar[dict[str, str]] = {
        "pinv": "kernels this wide need more than the 100 iterations after which conjugate "
        "gradients stop; A A+ A x is then off by 1e-3"
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("grid", "sigma"):  # JSON knows lists only
            pair = getattr(self, name)
            object.__setattr__(self, name, tuple(pair) if isinstance(pair, list) else pair)
            if not isinstance(getattr(self, name), tuple) or len(getattr(self, name)) != 2:
                raise ValueError(f"{name} must be a pair, got {pair!r}")
        if isinstance(self.kernel, Tensor):
            if self.kernel.ndim != 4:
                raise ValueError(
                    "a tensor of kernels is (rows, columns, k, l), got shape "
                    f"{tuple(self.kernel.shape)}"
                )
            object.__setattr__(self, "grid", tuple(self.kernel.shape[:2]))
        elif self.kernel not in KERNELS:
            raise ValueError(
                f"kernel must be one of {', '.join(KERNELS)} or a tensor (rows, columns, k, "
                f"l), got {self.kernel!r}"
            )
        if any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in self.grid):
            raise ValueError(
                f"grid must be (rows, columns) of at least one node each, got {self.grid}"
            )
        if self.border not in BORDERS:
            raise ValueError(f"border must be one of {', '.join(BORDERS)}, got {self.border!r}")
        if not isinstance(self.kernel, Tensor):
            self._node(0, 0)  # refuses its parameters

    def make_kernels(self) -> Tensor:
        """The kernels w (rows, columns, k, l), float64."""
        if isinstance(self.kernel, Tensor):
            return self.kernel.to("cpu", torch.float64)
        rows, columns = self.grid
        return torch.stack(
            [
                torch.stack([self._node(i, j).make_kernel() for j in range(columns)])
                for i in range(rows)
            ]
        )

    def _node(self, i: int, j: int) -> Blur:
        """The blur of a node alone."""
        if self.kernel == "motion":
            seed = seed_of("varying_blur", self.seed, i, j)
            return blur("motion", kernel_size=self.kernel_size, intensity=self.intensity, seed=seed)
        centre, corner = self.sigma
        height, width = (
            (2 * k / (n - 1) - 1 if n > 1 else 0.0) for k, n in zip((i, j), self.grid, strict=True)
        )
        sigma = centre + (corner - centre) * hypot(height, width) / 2**0.5
        widest = 2 * int(4 * max(self.sigma) + 0.5) + 1
        return blur(
            "gaussian",
            sigma=sigma,
            kernel_size=widest if self.kernel_size is None else self.kernel_size,
        )

    def make_state(self, shape: Shape) -> dict[str, Tensor]:
        made = [
            blur(kernel, border=self.border).make_state(shape)
            for kernel in self.make_kernels().flatten(0, 1)
        ]
        rows, columns = (
            _shares(nodes, pixels) for nodes, pixels in zip(self.grid, shape[1:], strict=True)
        )
        shares = (rows[:, None, :, None] * columns[None, :, None, :]).flatten(0, 1)
        return made[0] | {"shares": shares, "transfer": torch.stack([m["transfer"] for m in made])}

    def _blur(self) -> Blur:
        """The blur by all kernels at once, from images (B C, 1, H, W) to (B C, nodes, H, W); they
        are in its state, whatever its name."""
        return blur("motion", border=self.border, shape=self.shape, state=self.state)

    def _forward(self, x: Tensor) -> Tensor:
        blurred = self._blur()._forward(x.flatten(0, 1)[:, None])
        return (self.state["shares"] * blurred).sum(1).view_as(x)

    def _adjoint(self, y: Tensor) -> Tensor:
        shared = self.state["shares"] * y.flatten(0, 1)[:, None]
        return self._blur()._adjoint(shared).sum(1).view_as(y)


def _shares(nodes: int, pixels: int) -> Tensor:
    """Linear interpolation along one axis: the share of every node at every pixel, (nodes,
    pixels)."""
    position = torch.arange(pixels, dtype=torch.float64) * (nodes - 1) / max(pixels - 1, 1)
    return (1 - (position - torch.arange(nodes)[:, None]).abs()).clamp(min=0)
