"""Nonlinear blur: a shaken camera averages light, and then its response curve and its saturation
act.

    y = g(min(1, e · (w * g⁻¹(x))))

g is the response from light to pixel values, w the kernel of the camera's path, e the exposure.
This is how the blur of GOPRO is made (Nah, Kim and Lee, "Deep Multi-scale Convolutional Neural
Network for Dynamic Scene Deblurring", CVPR 2017, arXiv:1612.02177, equations 1 and 2: the mean of
sharp frames in linear light), with sRGB's curve (IEC 61966-2-1) for their power 1/2.2, which it
approximates and whose slope at black is finite. Below 0 the curve goes on as a straight line, so
gradients exist everywhere; they are 0 where light saturates.

It is NOT the operator of the ``nonlinear deblur`` task of DPS and DAPS: that is a network trained
on GOPRO (Tran et al., "Explore Image Deblurring via Encoded Blur Kernel Space", CVPR 2021,
arXiv:2104.00317, "bkse") fed a random code. Those who have its checkpoint pass it as an operator of
their own:

    @dataclass(frozen=True, eq=False)
    class EncodedBlur(Operator):
        net: KernelWizard
        code: Tensor                                        # 1.2 * randn(1, 512, 2, 2), drawn once

        def _forward(self, x):
            return self.net.adaptKernel(x, kernel=self.code.expand(len(x), -1, -1, -1)).clamp(0, 1)

Symbols: x image in [0, 1], y measurement of the same shape.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from invdiff.operators.blur import Blur, blur
from invdiff.problem import Operator
from invdiff.problem.operator import Shape


@dataclass(frozen=True, eq=False)
class NonlinearBlur(Operator):
    """Motion blur of light, seen through a camera's response.

    Args:
        kernel_size: side of the kernel in pixels, odd.
        intensity: of the camera's shake, in (0, 1], as for ``blur`` with ``kernel="motion"``.
        exposure: e; above 1 highlights saturate.
        seed: of the camera's path.
        border: ``"reflect"``, ``"replicate"`` or ``"circular"``.
    """

    kernel_size: int = 31
    intensity: float = 0.5
    exposure: float = 1.0
    seed: int = 0
    border: str = "reflect"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.exposure < float("inf"):
            raise ValueError(f"exposure must be positive and finite, got {self.exposure}")
        self._blur()

    def _blur(self) -> Blur:
        """The blur of light; it shares shape and state with this operator."""
        return blur(
            "motion",
            kernel_size=self.kernel_size,
            intensity=self.intensity,
            seed=self.seed,
            border=self.border,
            shape=self.shape,
            state=self.state,
        )

    def make_state(self, shape: Shape) -> dict[str, Tensor]:
        return self._blur().make_state(shape)

    def _forward(self, x: Tensor) -> Tensor:
        return response((self.exposure * self._blur()._forward(light(x))).clamp(max=1))


def light(value: Tensor) -> Tensor:
    """Light from sRGB values; 1 is 1."""
    return torch.where(
        value > 0.04045, ((value.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4, value / 12.92
    )


def response(light: Tensor) -> Tensor:
    """sRGB values from light: the inverse of :func:`light`."""
    return torch.where(
        light > 0.0031308, 1.055 * light.clamp(min=0.0031308) ** (1 / 2.4) - 0.055, 12.92 * light
    )
