"""SDEdit (Meng et al., ICLR 2022, arXiv:2108.01073, algorithms 1 and 2).

    x_t0 = alpha_t0 y + sigma_t0 z,   then ancestral steps from t0 to the clean image

K times, y being the image of the time before. The guide y keeps what the noise of level t0 leaves
of it, and the prior fills in the rest. It is made from the measurement once, which is not looked at
again: a large t0 is realistic, a small one faithful.

With a map m it is Differential Diffusion (Levin & Fried, Computer Graphics Forum 2025,
arXiv:2306.00950), a strength for each pixel: m t0 in the place of t0. Before the step i of n,
pixels with m < (n − i)/n are set to what they were, at that level:

    x_t <- alpha_t y + sigma_t z,   with the z of the start

A soft edge of the map is then a soft edge of the change, which a mask has not. Pixels with m = 0
are y itself in the end; the authors' code lets the network have the last step of these.

Symbols: t0 (``strength``), the share of the itinerary that is run, 0.3 to 0.6 in the paper; K
(``repeats``). The official code also keeps a region of the image that a mask names; that is what
``replace`` and ``repaint`` do.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from invdiff.images import read_image
from invdiff.itineraries import LateStart
from invdiff.problem import Measurement
from invdiff.sampling import Between, Denoise, Method, Setting, Step, Transition, Wrapping
from invdiff.sampling.pieces import StatefulTransition
from invdiff.transitions import DDPM


@dataclass(frozen=True)
class Differential(Wrapping, StatefulTransition[Tensor]):
    """Steps of ``inner`` that each pixel joins when its strength allows it.

    Args:
        strength_map: m in [0, 1], (H, W) or (B, 1, H, W), of the images' size, or a grey image file
            of it: white is changed most, black stays.
        inner: makes the steps.
        start: y as a state; that of the run.
    """

    strength_map: Tensor | str | Path
    inner: Transition = field(default_factory=DDPM)
    start: Tensor | None = None
    per_image: ClassVar[tuple[str, ...]] = ("strength_map", "start")

    def bind(self, setting: Setting) -> Differential:
        if setting.start is None:
            raise ValueError(
                "a strength for each pixel needs an image that the run starts from: a measurement, "
                "or start=image; this run starts from pure noise or a given state"
            )
        bound = super().bind(setting)
        images, _, *size = setting.shape
        strengths = _read(self.strength_map)
        coder = setting.denoiser.autoencoder
        pixels = [n * (1 if coder is None else coder.factor) for n in size]
        if list(strengths.shape[2:]) != pixels or len(strengths) not in (1, images):
            raise ValueError(
                f"the map of strengths must have the images' size, {pixels[0]}x{pixels[1]}, got "
                f"{tuple(strengths.shape)}"
            )
        strengths = strengths.to(setting.device, setting.dtype)
        if coder is not None:  # of a latent the mean of its pixels
            strengths = F.interpolate(strengths, tuple(size), mode="area")
        return replace(
            bound, strength_map=strengths.expand(images, -1, -1, -1), start=setting.start
        )

    def init(self, x_T: Tensor, measurement: Measurement | None) -> Tensor:
        return torch.zeros_like(x_T)

    def advance(
        self, predict: Denoise, x_t: Tensor, step: Step, measurement: Measurement, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        y, m, t = self.start, self.strength_map, step.t
        if y is None or not isinstance(m, Tensor):
            raise TypeError("Differential is bound to a run before it is called: .bind(setting)")
        z = (x_t - t.alpha * y) / t.sigma if step.index == 0 else state
        waits = m < (step.count - step.index) / step.count
        x_t = torch.where(waits, t.alpha * y + t.sigma * z, x_t)
        x_s = self.inner.down(predict, x_t, step, measurement)
        return (torch.where(m == 0, y, x_s) if step.s.sigma == 0 else x_s), z

    def down(self, predict: Denoise, x_t: Tensor, step: Step, measurement: Measurement) -> Tensor:
        return StatefulTransition.down(self, predict, x_t, step, measurement)


def _read(given: Any) -> Tensor:
    """A map as (1 or B, 1, H, W)."""
    m = given if isinstance(given, Tensor) else read_image(given, channels=1)
    m = m if m.ndim == 4 else m[None, None]
    if m.ndim != 4 or m.shape[1] != 1 or not (m.is_meta or bool(((m >= 0) & (m <= 1)).all())):
        raise ValueError(
            "the map of strengths is (H, W) or (B, 1, H, W) in [0, 1], got shape "
            f"{tuple(given.shape) if isinstance(given, Tensor) else tuple(m.shape)}"
        )
    return m


def sdedit(
    strength: Annotated[float, Between(0.05, 1)] = LateStart.strength,
    repeats: int = LateStart.repeats,
    variance: str = DDPM.variance,
    strength_map: Tensor | str | Path | None = None,
) -> Method:
    """SDEdit by name.

    Args:
        strength: t0, the share of the itinerary that is run, in (0, 1].
        repeats: K, how often it is run, each time from what the last one made.
        variance: of the ancestral step: ``"small"``, ``"large"``, ``"learned"`` or ``"auto"``, see
            :class:`invdiff.transitions.DDPM`.
        strength_map: m in [0, 1], (H, W) or (B, 1, H, W), or a grey image file of it; a pixel's
            strength is m times ``strength``.
    """
    way = LateStart(strength, repeats=repeats)
    if strength_map is None:
        return Method(transition=DDPM(variance), itinerary=way)
    if repeats != 1:
        raise ValueError(f"a map of strengths is run once, but repeats={repeats} was given")
    return Method(transition=Differential(strength_map, DDPM(variance)), itinerary=way)
