"""Diffusion exponential integrator sampler."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from invdiff.transitions.multistep import Adams, check_order


@dataclass(frozen=True)
class DEIS(Adams):
    """Zhang & Chen 2023 (DEIS, arXiv:2204.13902), eq. 14 and 15, in log-rho form.

        x_s = alpha_s x0 + sigma_s eps + alpha_s sum_j c_j (eps_j − eps)

    eps is interpolated by a polynomial in log(rho), rho = sigma/alpha, and integrated over rho,
    c_j being the integral of the j-th Lagrange polynomial. The step to the clean image is of first
    order. A guidance's shift of x0 alone is not extrapolated.

    Args:
        order: how many levels are interpolated, 1 to 4 (tAB0 to tAB3 of the paper).
    """

    order: int = 3

    def __post_init__(self) -> None:
        check_order(self.order, 4)

    def clock(self, ratio: float) -> float:
        return math.log(ratio) if ratio > 0 else -math.inf

    def rate(self, u: np.ndarray) -> np.ndarray:
        return np.exp(u)
