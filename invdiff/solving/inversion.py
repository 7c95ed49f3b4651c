"""The way back from an image to noise, and the way between two noises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from invdiff.itineraries import Straight
from invdiff.network import Denoiser
from invdiff.noise import NoiseSource
from invdiff.problem import Measurement
from invdiff.sampling import (
    Denoise,
    Itinerary,
    StatefulTransition,
    Step,
    Transition,
    sample,
)
from invdiff.schedules import Schedule
from invdiff.solving.ranges import encoded, into_range
from invdiff.solving.run import check_image, noise_of, resolve_conditions
from invdiff.transitions import DDIM


def invert(
    denoiser: Denoiser,
    x: Tensor,
    *,
    steps: int = 100,
    transition: Transition | None = None,
    schedule: Schedule | None = None,
    dtype: torch.dtype = torch.float32,
    **cond: Any,
) -> Tensor:
    """Deterministic inversion: the state x_T from which the same deterministic transition leads
    back to the image.

    The image is taken as the state at the least noisy level, scaled by its alpha (Song et al. 2021,
    DDIM, section 4.3).

    Args:
        x: (B, ...) images in [0, 1] for image networks.
        steps, transition, schedule, cond: as they will be used on the way back,
            ``generate(denoiser, x_T=..., ...)``.

    Examples:
        >>> import torch, invdiff
        >>> denoiser = invdiff.Denoiser(lambda x, t: x, schedule=invdiff.schedules.linear(1000))
        >>> invdiff.invert(denoiser, torch.ones(1, 2), steps=4).shape
        torch.Size([1, 2])
    """
    check_image(denoiser, tuple(x.shape[1:]))
    transition = transition or DDIM()
    if not transition.deterministic:
        raise ValueError(
            "inversion needs a deterministic transition, e.g. DDIM(eta=0) or Heun(); "
            f"{transition} draws noise"
        )
    if isinstance(transition, StatefulTransition):
        raise ValueError(
            f"{transition} keeps a state between steps, which leads another way back; invert with "
            "DDIM(eta=0), Heun() or DPMSolver()"
        )
    schedule = (schedule or denoiser.schedule).sized(denoiser.state_shape(tuple(x.shape)))
    levels = Straight()(schedule, steps)[-2::-1]  # least noisy first, the clean end left out
    state = (
        encoded(denoiser, into_range(denoiser, x.to(denoiser.device or x.device, dtype)))
        * levels[0].alpha
    )
    cond = resolve_conditions(denoiser, cond, len(x), state.device)
    noise = NoiseSource([0] * len(x), state.device)  # asked for nothing
    return sample(
        denoiser,
        state,
        levels,
        schedule=schedule,
        noise=noise,
        transition=_Upwards(transition),
        cond=cond,
    )


def interpolate(
    denoiser: Denoiser,
    shape: Sequence[int],
    seeds: tuple[int, int],
    frames: int = 16,
    *,
    steps: int = 100,
    itinerary: Itinerary | None = None,
    schedule: Schedule | None = None,
    image_id: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """States x_T on the way from the noise of one seed to that of another, ``generate(denoiser,
    x_T=...)`` makes images of them.

    Spherical, since noise in many dimensions lies near a sphere, which a straight line would leave
    (Shoemake 1985; Song et al. 2021, DDIM, section 5.3). The first and the last state are those of
    ``generate(denoiser, (1, *shape), seed=...)``.

    Args:
        shape: of one image, (C, H, W).
        seeds: where the way begins and where it ends; two different ones.
        frames: how many states, both ends included; at least 2.
        steps, itinerary, schedule: as they will be used by ``generate``: they say how noisy x_T is.
        image_id: the k of the image whose noise is taken.

    Returns:
        (frames, C, H, W), in the network's own frame and range.

    Examples:
        >>> import invdiff
        >>> schedule = invdiff.schedules.linear(1000)
        >>> denoiser = invdiff.Denoiser(lambda x, t: x, schedule=schedule)
        >>> invdiff.interpolate(denoiser, (1, 8, 8), (0, 1), 5, steps=4).shape
        torch.Size([5, 1, 8, 8])
    """
    if frames < 2:
        raise ValueError(f"an interpolation has at least 2 frames, its two ends, got {frames}")
    if seeds[0] == seeds[1]:
        raise ValueError(f"an interpolation goes from one seed to another, got {seeds[0]} twice")
    schedule = (schedule or denoiser.schedule).sized(denoiser.state_shape((1, *shape)))
    first = (itinerary or Straight())(schedule, steps)[0]
    device = denoiser.device or torch.device("cpu")
    a, b = (
        noise_of(seed, [(0, image_id)], device).randn_like(
            torch.empty(denoiser.state_shape((1, *shape)), dtype=dtype, device=device)
        )
        for seed in seeds
    )
    angle = torch.acos(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0))
    way = torch.linspace(0, 1, frames, dtype=dtype, device=device).view(-1, *(1,) * len(shape))
    return (
        float(first.sigma)
        * (torch.sin((1 - way) * angle) * a + torch.sin(way * angle) * b)
        / torch.sin(angle)
    )


@dataclass(frozen=True)
class _Upwards(Transition):
    """A deterministic transition on its way up: its own formula instead of the forward process."""

    inner: Transition

    def __call__(
        self, predict: Denoise, x_t: Tensor, step: Step, measurement: Measurement
    ) -> Tensor:
        return self.inner.down(predict, x_t, step, measurement)

    down = __call__
