"""What multistep transitions share: the nodes behind the current one, and where to stop using
them."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import NamedTuple

import numpy as np
from torch import Tensor

from invdiff.network import Prediction
from invdiff.problem import Measurement
from invdiff.sampling import Denoise, StatefulTransition, Step
from invdiff.schedules import Level


class Node(NamedTuple):
    """What was read at an earlier level: eps, or the x0 that it implies."""

    level: Level
    value: Tensor


Past = tuple[Node, ...]
"""The nodes of the descent so far, the latest first."""


def behind(past: Past, t: Level) -> Past:
    """The past of a state at t: none after a step to more noise, or from alpha = 0."""
    if past and (past[0].level.ratio <= t.ratio or past[0].level.alpha == 0):
        return ()
    return past


def implied_x0(p: Prediction) -> Tensor:
    """(x_t − sigma_t eps)/alpha_t: x0, unless a guidance moved x0 alone, whose shift is then not
    extrapolated."""
    return (p.x_t - p.level.sigma * p.eps) / p.level.alpha


def log_step(t: Level, s: Level) -> float:
    """h = lambda_s − lambda_t, lambda = log(alpha/sigma)."""
    return math.log(float(t.ratio) / float(s.ratio))


def check_order(order: int, highest: int) -> None:
    """Refuses an order that a solver does not have."""
    if isinstance(order, bool) or not isinstance(order, int) or not 1 <= order <= highest:
        raise ValueError(f"order must be a whole number in 1..{highest}, got {order!r}")


class Adams(StatefulTransition[Past]):
    """An explicit Adams method for d(x/alpha)/d rho = eps, rho = sigma/alpha: eps is interpolated
    through the last ``order`` levels by a polynomial in a clock u(rho), and integrated.

        x_s = alpha_s x0 + sigma_s eps + alpha_s sum_j c_j (eps_j − eps),
        c_j = ∫ l_j(u(rho)) d rho  from rho_t to rho_s,   l_j the Lagrange polynomials

    The first steps have as many nodes as there are levels.
    """

    order: int

    @property
    def deterministic(self) -> bool:
        return True

    @abstractmethod
    def clock(self, ratio: float) -> float:
        """u(rho)."""

    @abstractmethod
    def rate(self, u: np.ndarray) -> np.ndarray:
        """d rho / du."""

    def init(self, x_T: Tensor, measurement: Measurement | None) -> Past:
        return ()

    def advance(
        self,
        predict: Denoise,
        x_t: Tensor,
        step: Step,
        measurement: Measurement | None,
        state: Past,
    ) -> tuple[Tensor, Past]:
        p, t, s = predict(x_t, step.t), step.t, step.s
        nodes = (Node(t, p.eps.detach()), *behind(state, t))[: self.order]
        x_s = s.alpha * p.x0 + s.sigma * p.eps
        for c, node in zip(self._weights(nodes, s), nodes[1:], strict=False):
            x_s = x_s + float(s.alpha) * c * (node.value - p.eps)
        return x_s, nodes

    def _weights(self, nodes: Past, s: Level) -> list[float]:
        """c_1, c_2, ... of the nodes behind the current one, by Gauss quadrature, which is exact to
        rounding."""
        end = self.clock(float(s.ratio))
        if len(nodes) == 1 or not math.isfinite(end):
            return []
        u = [self.clock(float(node.level.ratio)) for node in nodes]
        x, w = np.polynomial.legendre.leggauss(24)
        at = u[0] + (end - u[0]) * (x + 1) / 2
        w = w * (end - u[0]) / 2 * self.rate(at)
        return [
            float(np.sum(w * np.prod([(at - v) / (u[j] - v) for v in u[:j] + u[j + 1 :]], axis=0)))
            for j in range(1, len(u))
        ]
