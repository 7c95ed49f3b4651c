"""Linear multistep: Adams-Bashforth on the probability flow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from invdiff.transitions.multistep import Adams, check_order


@dataclass(frozen=True)
class LMS(Adams):
    """The linear multistep sampler of k-diffusion (Crowson 2022; Karras et al. 2022 compare with
    it): an Adams-Bashforth method with levels of any distance.

        x_s = alpha_s x0 + sigma_s eps + alpha_s sum_j c_j (eps_j − eps)

    eps is interpolated by a polynomial in rho = sigma/alpha and integrated over rho, c_j being the
    integral of the j-th Lagrange polynomial. A guidance's shift of x0 alone is not extrapolated.

    Args:
        order: how many levels are interpolated, 1 to 4.
    """

    order: int = 4

    def __post_init__(self) -> None:
        check_order(self.order, 4)

    def clock(self, ratio: float) -> float:
        return ratio

    def rate(self, u: np.ndarray) -> np.ndarray:
        return np.ones_like(u)
