"""CM4IR (Garber & Tirer, CVPR 2025, arXiv:2412.20596): consistency networks restore in four
evaluations.

In the frame of x0 + sigma eps, from the noised back-projection of y to the last jump:

    x_T = A†_zeta y + sigma_T z
    x0  = f(x_t, (1 + delta_t) sigma_t)
    z^- = (x0 − x_t) / sigma_t
    x_s = x0 − A†_zeta (A x0 − y) + sigma_s (eta z + sqrt(1 − eta²) z^-)

with A†_zeta = A* (A A* + zeta sigma_y²)^-1 and levels sigma² = 1 − a, where a starts at alpha_bar
of DDPM's linear schedule at time i_N and grows by 1 + gamma in every step, to 0.9999 at most. Where
y has noise the last jump is the result, without a last back-projection. Missing pixels of the start
are filled by the median of their neighbours, in windows that grow until every pixel has one.

Symbols: f, a network that jumps to the clean image; eta, the share of fresh noise. The rest, z^-,
is the estimated noise with its sign turned: a step goes on in the direction in which the network
has moved the image, as with momentum. delta, by how much the noise level given to the network
exceeds the state's, one number or one for each step. Published: 4 evaluations, eta 0.1; i_N from 50
to 400 and gamma from 0.01 to 0.7, more noise for harder problems; zeta 0 for super-resolution and
inpainting, 1 to 4 for blur; delta 0, or up to 1 in the last steps.

With delta the network is given a state of the noisier level as a whole, so that its input's scale
and its skip connection belong to (1 + delta) sigma_t, too. So has the authors' code for inpainting;
for super-resolution and blur it changes the network's time alone. Its zeta is 0 by default, which
amplifies the noise on what A hardly measures without a bound; here it is 1. Medians are of each
channel's own mask. For the rest this is their code to rounding, run beside it from the same noise
(super-resolution, blur, inpainting; their medians as well).

What it makes is one image, not a draw from the posterior. On a Gaussian with its exact consistency
map and half of six values measured (sigma_y 0.05) the mean is off by 0.27 of the prior's error in
4 steps, by 0.36 with fresh noise alone (eta 1) and by 0.49 in one step, while the variance is 0.07
of the posterior's (0.94 with eta 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from invdiff.network import Prediction
from invdiff.problem import DiagonalOperator, LinearOperator, Measurement, Operator
from invdiff.sampling import Between, Denoise, Guidance, Itinerary, Method, Step, Transition
from invdiff.sampling.checks import nonnegative
from invdiff.schedules import Level, Schedule, linear

LARGEST = 0.9999
"""Of a, so that the least noise has a standard deviation of 0.01."""


@dataclass(frozen=True)
class CM4IR(Guidance):
    """The jump and the back-projection; :func:`cm4ir` goes on with its noise and levels.

    Args:
        zeta: how much of the measurement's variance regularises the pseudo-inverse.
        delta: by how much the noise level given to the network exceeds the state's, one number or
            one for each step.
    """

    zeta: float = 1.0
    delta: float | Sequence[float] = 0.0
    requires: ClassVar[type[Operator] | None] = LinearOperator
    one_sigma: ClassVar[bool] = True
    posterior: ClassVar[bool] = False

    def __post_init__(self) -> None:
        nonnegative(zeta=self.zeta)
        for delta in self.delta if isinstance(self.delta, Sequence) else (self.delta,):
            nonnegative(delta=delta)

    def __call__(
        self, denoise: Denoise, x_t: Tensor, step: Step, measurement: Measurement
    ) -> Prediction:
        p, sigma = self.jump(denoise, x_t, step), measurement.image_sigma("CM4IR")
        dx = measurement.linear.pinv(measurement.residual(p.x0), ridge=self.zeta * sigma**2)
        return p.move_x0(dx * (sigma == 0) if step.s.sigma == 0 else dx)

    def jump(self, denoise: Denoise, x_t: Tensor, step: Step) -> Prediction:
        """The prediction at the level given to the network, as one at t."""
        delta, t = self.delta, step.t
        if isinstance(delta, Sequence):
            if len(delta) != step.count:
                raise ValueError(
                    f"delta has {len(delta)} values, but the run has {step.count} steps: give one "
                    "for each, or one number"
                )
            delta = delta[step.index]
        if delta == 0:
            return denoise(x_t, t)
        given = step.schedule.at((1 + delta) * t.ratio)
        p = denoise(given.alpha / t.alpha * x_t, given)
        return replace(p, x_t=x_t, level=t, eps=(x_t - t.alpha * p.x0) / t.sigma)


@dataclass(frozen=True)
class Onward(Transition):
    """x_s = alpha_s x0 + sigma_s (eta z − sqrt(1 − eta²) eps): the estimated noise with its sign
    turned, and a share eta of fresh noise."""

    eta: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be in [0, 1], got {self.eta}")

    def down(
        self, predict: Denoise, x_t: Tensor, step: Step, measurement: Measurement | None
    ) -> Tensor:
        p, sigma = predict(x_t, step.t), float(step.s.sigma)
        if sigma == 0:
            return float(step.s.alpha) * p.x0
        noise = self.eta * step.randn_like(x_t) - math.sqrt(1 - self.eta**2) * p.eps
        return torch.add(sigma * noise, p.x0, alpha=float(step.s.alpha))


@dataclass(frozen=True)
class FromBackProjection(Itinerary):
    """Levels sigma² = 1 − a from the noised A†_zeta y, as sigma/alpha.

    Args:
        i_N: time in DDPM's linear schedule, 0 to 998, whose alpha_bar the first a is.
        gamma: by which share a grows in every step.
        zeta: as in :class:`CM4IR`.
    """

    i_N: int = 250
    gamma: float = 0.2
    zeta: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.i_N <= 998:
            raise ValueError(f"i_N must be a time from 0 to 998, got {self.i_N}")
        nonnegative(gamma=self.gamma, zeta=self.zeta)

    def __call__(self, schedule: Schedule, steps: int) -> list[Level]:
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        first = float(linear(1000)(self.i_N + 1).alpha) ** 2
        noisiest = float(schedule(schedule.t_max).ratio)
        a = [min(first * (1 + self.gamma) ** k, LARGEST) for k in range(steps)]
        ratios = [min(math.sqrt(1 - value), noisiest) for value in a]
        return [*map(schedule.at, ratios), schedule(schedule.clean)]

    def start(self, measurement: Measurement | None) -> Tensor | None:
        operator = None if measurement is None else measurement.operator
        if measurement is None or not isinstance(operator, LinearOperator):
            given = "there is no measurement" if operator is None else f"got {operator.kind}"
            raise ValueError(
                f"CM4IR starts from A† y and requires {LinearOperator.wanted()}, but {given}; "
                "choose another method or operator"
            )
        image = operator.pinv(measurement.y, ridge=self.zeta * measurement.mean_variance)
        if not isinstance(operator, DiagonalOperator) or image.ndim != 4:
            return image
        return filled(image, operator.measured.expand_as(image))


def filled(image: Tensor, known: Tensor) -> Tensor:
    """(B, C, H, W) with every pixel that is not ``known`` replaced by the median of the known ones
    around it, in windows of 5, 7, ... pixels; those that have none wait, and what was filled counts
    as known in the next window. Pixels of a channel in which none is known stay."""
    if image.is_meta:
        return image
    some = known.flatten(2).any(2)[..., None, None]
    image = torch.where(known, image, torch.nan).where(some, image)
    reach = 2
    while bool((missing := image.isnan()).any()):
        size = 2 * reach + 1
        known = 1 - missing.to(image.dtype)
        missing &= F.max_pool2d(known, size, stride=1, padding=reach) > 0
        padded = F.pad(image, (reach,) * 4, value=torch.nan)
        windows = padded.unfold(-2, size, 1).unfold(-2, size, 1)[missing]
        image = image.masked_scatter(missing, windows.flatten(1).nanmedian(1).values)
        reach += 1
    return image


def cm4ir(
    i_N: Annotated[int, Between(25, 600, log=True)] = FromBackProjection.i_N,
    gamma: Annotated[float, Between(0.01, 1, log=True)] = FromBackProjection.gamma,
    zeta: Annotated[float, Between(0.03, 10, log=True)] = CM4IR.zeta,
    eta: Annotated[float, Between(0, 1)] = Onward.eta,
    delta: float | Sequence[float] = CM4IR.delta,
) -> Method:
    """CM4IR by name.

    Args:
        i_N: the first level, as a time from 0 to 998 of DDPM's linear schedule.
        gamma: by which share the signal's part a of the variance grows in every step.
        zeta: how much of the measurement's variance regularises the pseudo-inverse.
        eta: share of fresh noise, in [0, 1].
        delta: by how much the noise level given to the network exceeds the state's, one number or
            one for each step.
    """
    return Method(CM4IR(zeta, delta), Onward(eta), FromBackProjection(i_N, gamma, zeta))
