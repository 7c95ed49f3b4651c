"""Parameterisations: (x0, eps) from the output of a network, in its own frame ``x = alpha x0 +
sigma eps``; alpha and sigma are numbers.

``"edm"`` is the raw network of Karras et al. 2022 (table 1), whose input is scaled as well:

    D(x; sigma) = c_skip x + c_out F(c_in x; c_noise)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from invdiff.network.clock import OfLevel
from invdiff.schedules import Schedule

PREDICTS = ("eps", "x0", "v", "score", "edm", "velocity")
ALIASES = {
    "epsilon": "eps",
    "sample": "x0",
    "v_prediction": "v",
    "flow_prediction": "velocity",
}
"""What diffusers calls them."""
C_NOISE = OfLevel(lambda level: level.ratio.log() / 4)
"""The noise level as an EDM network takes it (Karras et al. 2022, table 1)."""

Read = Callable[[Tensor, Tensor, float, float], tuple[Tensor, Tensor]]
"""``read(x, out, alpha, sigma) -> (x0, eps)``."""


def from_eps(x: Tensor, out: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
    """x0 = (x − sigma eps) / alpha."""
    check_signal("eps", alpha)
    return torch.sub(x, out, alpha=sigma) * (1 / alpha), out  # two passes over memory, not three


def from_score(x: Tensor, out: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
    """eps = −sigma score."""
    check_signal("score", alpha)
    return torch.add(x, out, alpha=sigma**2) * (1 / alpha), -sigma * out


def from_v(x: Tensor, out: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
    """v = alpha eps − sigma x0 (Salimans & Ho 2022)."""
    norm = alpha**2 + sigma**2
    return (alpha * x - sigma * out) / norm, (sigma * x + alpha * out) / norm


def from_x0(x: Tensor, out: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
    """eps = (x − alpha x0) / sigma."""
    return out, (x - alpha * out) / sigma


def from_velocity(schedule: Schedule) -> Read:
    """v = dx_t/dt = alpha' x0 + sigma' eps, with the schedule's rates."""

    @lru_cache(maxsize=4096)
    def rates(alpha: float, sigma: float) -> tuple[float, float]:
        ratio = torch.tensor(sigma, dtype=torch.float64) / alpha
        d_alpha, d_sigma = schedule.rates(schedule.time(ratio))
        return float(d_alpha), float(d_sigma)

    def read(x: Tensor, out: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
        d_alpha, d_sigma = rates(alpha, sigma)
        det = alpha * d_sigma - sigma * d_alpha
        return (d_sigma * x - sigma * out) / det, (alpha * out - d_alpha * x) / det

    return read


def from_edm(sigma_data: float) -> Read:
    """x0 = c_skip x + c_out F."""

    def read(x: Tensor, out: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
        noise = sigma / alpha
        c_skip = sigma_data**2 / (noise**2 + sigma_data**2)
        c_out = noise * sigma_data / (noise**2 + sigma_data**2) ** 0.5
        return from_x0(x, c_skip * (x / alpha) + c_out * out, alpha, sigma)

    return read


def c_in(alpha: float, sigma: float, sigma_data: float) -> float:
    """The factor of an EDM network's input, for a state of any frame."""
    return 1 / alpha / ((sigma / alpha) ** 2 + sigma_data**2) ** 0.5


def reader(predicts: str, schedule: Schedule, sigma_data: float) -> Read:
    """The function that reads the output of a network that predicts one of :data:`PREDICTS`."""
    match predicts:
        case "velocity":
            return from_velocity(schedule)
        case "edm":
            return from_edm(sigma_data)
    return {"eps": from_eps, "score": from_score, "v": from_v, "x0": from_x0}[predicts]


def check_signal(predicts: str, alpha: float) -> None:
    """Refuses pure noise, of which eps does not tell x0."""
    if alpha == 0:
        raise ValueError(
            f"x0 cannot be found from {predicts} at alpha = 0 (pure noise); start just below the "
            "last level, or use a network that predicts v, x0 or velocity"
        )
