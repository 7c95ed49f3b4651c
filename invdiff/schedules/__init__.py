"""Noise schedules: ``x_t = alpha x0 + sigma eps`` at every time t of a network.

linear, scaled_linear, cosine, sigmoid, from_betas, from_sigmas    T discrete levels
vp, subvp, ve, brownian, edm, flow                                 continuous time
"""

from invdiff.schedules.base import SPACINGS, Level, Schedule, karras
from invdiff.schedules.continuous import (
    EDM,
    VE,
    VP,
    Brownian,
    Flow,
    SizedFlow,
    SubVP,
    brownian,
    edm,
    flow,
    subvp,
    ve,
    vp,
)
from invdiff.schedules.discrete import (
    Discrete,
    cosine,
    from_betas,
    from_sigmas,
    linear,
    scaled_linear,
    sigmoid,
)
from invdiff.schedules.make import make_schedule

__all__ = [
    "EDM",
    "SPACINGS",
    "VE",
    "VP",
    "Brownian",
    "Discrete",
    "Flow",
    "Level",
    "Schedule",
    "SizedFlow",
    "SubVP",
    "brownian",
    "cosine",
    "edm",
    "flow",
    "from_betas",
    "from_sigmas",
    "karras",
    "linear",
    "make_schedule",
    "scaled_linear",
    "sigmoid",
    "subvp",
    "ve",
    "vp",
]
