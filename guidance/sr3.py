"""SR3 and Palette (Saharia et al. 2021, arXiv:2104.07636; 2022, arXiv:2111.05826): a network that
sees the measurement.

    eps = eps([cond, x_t], t)      cond before x_t, along the channels

The network was trained on pairs, so the posterior is learnt and nothing is computed from the
operator while sampling. cond is an image made from the measurement once:

    upsampled   y resized to the image, bicubic with a = −1/2 (SR3), bilinear for
                guided-diffusion's upsamplers; y itself where it has the image's size (Palette:
                JPEG; colourisation from grey; inpainting from the masked image, whose missing
                pixels are mid-grey here, while Palette's own networks see noise there: give them
                cond= a function)
    pinv        A†y, for any linear operator;  adjoint: A*y

A ControlNet's image can be made in the same way, ``to="control"``: the measurement itself, at the
size that the ControlNet takes and clipped to [0, 1], guides the network beside a prompt.

Networks take t, or the continuous noise level sqrt(alpha_bar) as in SR3: ``Denoiser(...,
time=lambda t: schedule(t).alpha)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from invdiff.network import Prediction
from invdiff.problem import LinearOperator, Measurement
from invdiff.problem.wrapped import Decoded, Rescaled
from invdiff.sampling import Denoise, Guidance, Setting, Step
from invdiff.sampling.step import tiled

IMAGES = ("upsampled", "pinv", "adjoint")


@dataclass(frozen=True)
class SR3(Guidance):
    """See the module's docstring.

    Args:
        cond: ``"upsampled"``, ``"pinv"``, ``"adjoint"``, the image itself, (B, cond_channels, H, W)
            in the network's range, or a function of the measurement (y in the network's range) that
            returns it.
        to: the condition that it is given as: ``"cond"``, channels of the input, or an image
            condition of the network, ``"control"`` of one with a ControlNet.
    """

    cond: str | Callable[[Measurement], Tensor] | Tensor = "upsampled"
    to: str = "cond"

    per_image: ClassVar[tuple[str, ...]] = ("cond",)
    shipped: ClassVar[Mapping[str, str]] = {"sr": "sr3x4", "jpeg": "palette_jpeg"}

    def __post_init__(self) -> None:
        if isinstance(self.cond, str) and self.cond not in IMAGES:
            raise ValueError(
                f"cond must be one of {', '.join(IMAGES)}, or a function of the "
                f"measurement, got {self.cond!r}"
            )

    @property
    def sets(self) -> tuple[str, ...]:
        return (self.to,)

    def bind(self, setting: Setting) -> SR3:
        super().bind(setting)
        if self.to in setting.cond:
            raise ValueError(f"{self.to} is given twice, to SR3 and to the run; leave one out")
        if self.to != "cond":
            return replace(self, cond=self._beside(setting).to(setting.device, setting.dtype))
        denoiser, (images, channels, *size) = setting.denoiser, setting.shape
        cond = self._image(setting.measurement, tuple(size), denoiser.upsampling)
        if not isinstance(cond, Tensor) or cond.ndim != len(setting.shape):
            raise ValueError(
                f"cond must be images of shape ({images}, channels, "
                f"{', '.join(map(str, size))}), got {type(cond).__name__}"
            )
        y = setting.measurement.y
        if (
            self.cond == "upsampled"
            and denoiser.factor is not None
            and tuple(n * denoiser.factor for n in y.shape[2:]) != tuple(size)
        ):
            raise ValueError(
                f"{denoiser.name} was trained to enlarge by {denoiser.factor}, but this "
                f"measurement of {'x'.join(map(str, y.shape[2:]))} pixels is "
                f"one of {'x'.join(map(str, size))}; use that factor, a network for this "
                "one, or a method that knows the operator, such as dps"
            )
        takes = denoiser.cond_channels
        if takes is None and not denoiser.takes("cond"):
            raise ValueError(
                f"{denoiser.name} is not conditioned on an image; SR3 needs a "
                "network trained on [cond, x_t], such as sr3x4, "
                "which cond_channels= describes"
            )
        if (
            cond.shape[0] != images
            or tuple(cond.shape[2:]) != tuple(size)
            or (takes is not None and cond.shape[1] != takes)
        ):
            raise ValueError(
                f"the channels do not add up: {denoiser.name} takes [cond, x_t] with "
                f"{takes} + {channels} channels of size {tuple(size)}, "
                f"but cond has shape {tuple(cond.shape)}"
            )
        return replace(self, cond=cond.to(setting.device, setting.dtype))

    def _beside(self, setting: Setting) -> Tensor:
        """The image in [0, 1] for an image condition beside the input."""
        denoiser, measurement = setting.denoiser, setting.measurement
        known = denoiser.facts.image_conditions
        if self.to not in known:
            raise ValueError(
                f"{denoiser.name} takes no image as {self.to!r}; it takes "
                f"{', '.join(map(repr, known)) or 'none'}; control= takes a ControlNet, "
                "load_model(..., controlnet=...)"
            )
        if isinstance(measurement.operator, Decoded):
            measurement = replace(measurement, operator=measurement.operator.inner)
        size = tuple(n * known[self.to] for n in setting.shape[2:])
        low, high = denoiser.image_range or (0.0, 1.0)
        image = (self._image(measurement, size, denoiser.upsampling) - low) / (high - low)
        return image.clamp(0, 1).expand(-1, max(3, image.shape[1]), -1, -1)

    def _image(self, measurement: Measurement, size: tuple[int, ...], mode: str) -> Tensor:
        y, operator = measurement.y, measurement.operator
        if isinstance(self.cond, Tensor):
            return self.cond
        if callable(self.cond):
            return self.cond(measurement)
        if self.cond == "upsampled":
            if isinstance(operator, Rescaled):  # a nonlinear operator's y stays in [0, 1]
                y = operator.low + operator.width * y
            if y.ndim != 4 or y.is_complex():
                raise ValueError(
                    "cond='upsampled' needs a measurement that is an image, got shape "
                    f"{tuple(y.shape)}; use cond='pinv'"
                )
            return (
                y
                if tuple(y.shape[2:]) == size
                else F.interpolate(y, size=size, mode=mode, antialias=True)
            )
        if not isinstance(operator, LinearOperator):
            raise ValueError(
                f"cond={self.cond!r} needs a linear operator, and {type(operator).__name__} "
                "is not one; use cond='upsampled'"
            )
        return operator.pinv(y) if self.cond == "pinv" else operator.adjoint(y)

    def __call__(
        self, denoise: Denoise, x_t: Tensor, step: Step, measurement: Measurement
    ) -> Prediction:
        if not isinstance(self.cond, Tensor):
            raise TypeError("SR3 is bound to a run before it is called: SR3().bind(setting)")
        return denoise(x_t, step.t, **{self.to: tiled(self.cond, x_t)})
