"""A prior without weights: pixels are independent and N(0, 0.3²) on [-1, 1], so images are grey."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from invdiff import Denoiser, schedules

STD = 0.3


def grey(**options: Any) -> Denoiser:
    """The exact posterior mean; options are those of :class:`invdiff.Denoiser`."""
    schedule = schedules.linear(1000)

    def net(x_t: Tensor, alpha: Tensor) -> Tensor:
        alpha = alpha.view(-1, 1, 1, 1)
        return alpha * STD**2 / (alpha**2 * STD**2 + 1 - alpha**2) * x_t

    defaults = {
        "predicts": "x0",
        "schedule": schedule,
        "time": lambda t: schedule(t).alpha,
        "data_range": (-1.0, 1.0),
        "channels": 3,
    }
    return Denoiser(net, name="grey", **{**defaults, **options})
