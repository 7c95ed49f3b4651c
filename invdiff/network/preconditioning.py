"""The input and the meaning of the output of a network, for each way in which networks are trained.

A state of the network's own schedule is ``x = alpha * x0 + sigma * eps``; the network returns

    eps       eps
    x0        x0, the posterior mean
    v         alpha * eps - sigma * x0                       (Salimans & Ho 2022, appendix D)
    score     -eps / sigma
    velocity  dx/dt = alpha' * x0 + sigma' * eps             (Lipman et al. 2023)
    edm       F with x0 = c_skip * x / alpha + c_out * F(c_in * x / alpha; c_noise)
                                                             (Karras et al. 2022, table 1)
    consistency  the same with x0 a sample, and c_skip and c_out that return the state itself at the
              least noise of the schedule                    (Song et al. 2023, appendix C)

Each function below turns ``(x, out, at)`` into (x0, eps); ``at`` gives alpha and sigma as numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import torch
from torch import Tensor

from invdiff.network.clock import OfLevel, Place
from invdiff.schedules import Discrete, Schedule

Convert = Callable[[Tensor, Tensor, Place], tuple[Tensor, Tensor]]

C_NOISE = OfLevel(lambda level: level.ratio.log() / 4)
"""The time input of an EDM network (Karras et al. 2022, table 1)."""

TIMES = {"edm": C_NOISE, "consistency": OfLevel(lambda level: 250 * level.ratio.log())}
"""The time inputs of the networks whose input is scaled by c_in."""

ALIASES = {
    "epsilon": "eps",
    "sample": "x0",
    "v_prediction": "v",
    "flow_prediction": "velocity",
}
"""diffusers' words for what a network predicts."""


def from_eps(x: Tensor, out: Tensor, at: Place) -> tuple[Tensor, Tensor]:
    _needs_signal("eps", at)
    # Two passes over memory instead of three.
    return torch.sub(x, out, alpha=at.sigma) * (1 / at.alpha), out


def from_score(x: Tensor, out: Tensor, at: Place) -> tuple[Tensor, Tensor]:
    _needs_signal("score", at)
    return torch.add(x, out, alpha=at.sigma**2) * (1 / at.alpha), -at.sigma * out


def from_x0(x: Tensor, out: Tensor, at: Place) -> tuple[Tensor, Tensor]:
    return out, (x - at.alpha * out) / at.sigma


def from_v(x: Tensor, out: Tensor, at: Place) -> tuple[Tensor, Tensor]:
    alpha, sigma, norm = at.alpha, at.sigma, at.alpha**2 + at.sigma**2
    return (alpha * x - sigma * out) / norm, (sigma * x + alpha * out) / norm


def from_velocity(
    x: Tensor, out: Tensor, at: Place, rates: Callable[[float, float], tuple[float, float]]
) -> tuple[Tensor, Tensor]:
    """``rates`` gives (alpha', sigma') at (alpha, sigma)."""
    d_alpha, d_sigma = rates(at.alpha, at.sigma)
    det = at.alpha * d_sigma - at.sigma * d_alpha
    return (d_sigma * x - at.sigma * out) / det, (at.alpha * out - d_alpha * x) / det


def from_edm(x: Tensor, out: Tensor, at: Place, sigma_data: float) -> tuple[Tensor, Tensor]:
    _, c_skip, c_out = edm_scalings(at, sigma_data)
    return from_x0(x, c_skip * (x / at.alpha) + c_out * out, at)


def from_consistency(
    x: Tensor, out: Tensor, at: Place, sigma_data: float, least: float
) -> tuple[Tensor, Tensor]:
    """``least``: sigma / alpha of the level at which the network returns the state itself."""
    noise = at.sigma / at.alpha
    c_skip = sigma_data**2 / ((noise - least) ** 2 + sigma_data**2)
    c_out = (noise - least) * sigma_data / (noise**2 + sigma_data**2) ** 0.5
    return from_x0(x, c_skip * (x / at.alpha) + c_out * out, at)


def edm_scalings(at: Place, sigma_data: float) -> tuple[float, float, float]:
    """(c_in, c_skip, c_out) of Karras et al. 2022, table 1, at the noise sigma / alpha."""
    noise = at.sigma / at.alpha
    total = noise**2 + sigma_data**2
    return 1 / total**0.5, sigma_data**2 / total, noise * sigma_data / total**0.5


def rates_of(schedule: Schedule) -> Callable[[float, float], tuple[float, float]]:
    """(alpha', sigma') of a schedule as a function of (alpha, sigma), remembered."""

    @lru_cache(maxsize=4096)
    def rates(alpha: float, sigma: float) -> tuple[float, float]:
        ratio = torch.tensor(sigma, dtype=torch.float64) / alpha
        d_alpha, d_sigma = schedule.rates(schedule.time(ratio))
        return float(d_alpha), float(d_sigma)

    return rates


PREDICTS: dict[str, Callable[[Schedule, float], Convert]] = {
    "eps": lambda schedule, sigma_data: from_eps,
    "x0": lambda schedule, sigma_data: from_x0,
    "v": lambda schedule, sigma_data: from_v,
    "score": lambda schedule, sigma_data: from_score,
    "edm": lambda schedule, sigma_data: partial(from_edm, sigma_data=sigma_data),
    "velocity": lambda schedule, sigma_data: partial(from_velocity, rates=rates_of(schedule)),
    "consistency": lambda schedule, sigma_data: partial(
        from_consistency,
        sigma_data=sigma_data,
        least=float(schedule(schedule.t_min).ratio),
    ),
}
"""Makes the conversion of each, of a schedule and the data's standard deviation."""


def spelled(predicts: str) -> str:
    """The name in :data:`PREDICTS`, also of diffusers' word for it.

    Raises:
        ValueError: an unknown name.
    """
    name = ALIASES.get(predicts, predicts)
    if name not in PREDICTS:
        raise ValueError(
            f"unknown predicts={predicts!r}; a network predicts one of {', '.join(PREDICTS)}"
        )
    return name


def conversion(predicts: str, schedule: Schedule, sigma_data: float) -> Convert:
    """The function from (x, output, place) to (x0, eps).

    Raises:
        ValueError: a velocity on a discrete schedule.
    """
    if predicts == "velocity" and isinstance(schedule, Discrete):
        raise ValueError(
            "a velocity is dx_t/dt and needs a schedule in continuous time, e.g. "
            "schedules.flow(); give time= if the network counts in steps"
        )
    return PREDICTS[predicts](schedule, sigma_data)


def _needs_signal(predicts: str, at: Place) -> None:
    if at.alpha == 0:
        raise ValueError(
            f"x0 cannot be found from {predicts} at alpha = 0 (pure noise); start just below the "
            "last level, or use a network that predicts v, x0 or velocity"
        )
