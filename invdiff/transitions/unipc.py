"""The unified predictor-corrector."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from invdiff.problem import Measurement
from invdiff.sampling import Denoise, StatefulTransition, Step
from invdiff.schedules import Level
from invdiff.transitions.multistep import Node, Past, behind, check_order, implied_x0, log_step


class Made(NamedTuple):
    """What the step before was made from, and of which order it was."""

    past: Past
    order: int


@dataclass(frozen=True)
class UniPC(StatefulTransition[Made]):
    """Zhao et al. 2023 (UniPC, arXiv:2302.04867), algorithms 1 and 2, for estimates of x0, with
    lambda = log(alpha/sigma), h = lambda_s − lambda_t and B = e^−h − 1:

        x_s = (sigma_s/sigma_t) x_t^c − alpha_s (e^−h − 1) D_t
              − alpha_s B sum_k a_k (D_k − D_t)/r_k

    D_k are earlier estimates, r_k = (lambda_k − lambda_t)/h their places and a_k their weights,
    which solve the paper's eq. 8. The state x_t is first corrected to x_t^c by what the network
    says there, at no further evaluation: the same sum, whose nodes include D_t, in the place of the
    one that made x_t. So order p is p + 1 with the corrector. A shift of x0 by guidance enters in
    full, once, and is not extrapolated.

    Args:
        order: p, 1 to 3; lower in the first steps and in the last ones.
        variant: B; ``"bh1"`` is −h, ``"bh2"`` e^−h − 1.
    """

    order: int = 2
    variant: str = "bh2"

    def __post_init__(self) -> None:
        check_order(self.order, 3)
        if self.variant not in ("bh1", "bh2"):
            raise ValueError(f"variant must be 'bh1' or 'bh2', got {self.variant!r}")

    @property
    def deterministic(self) -> bool:
        return True

    def init(self, x_T: Tensor, measurement: Measurement | None) -> Made:
        return Made((), 0)

    def advance(
        self,
        predict: Denoise,
        x_t: Tensor,
        step: Step,
        measurement: Measurement | None,
        state: Made,
    ) -> tuple[Tensor, Made]:
        p, t, s = predict(x_t, step.t), step.t, step.s
        if t.alpha == 0 or s.sigma == 0:
            return s.alpha * p.x0 + s.sigma * p.eps, Made((), 0)
        here, past = Node(t, implied_x0(p).detach()), behind(state.past, t)
        x_c = x_t + self._correction(here, past[: state.order]) if past else x_t
        nodes = (here, *past)[: self.order]
        order = min(len(nodes), step.count - step.index)
        x_s = s.alpha * p.x0 + s.sigma / t.sigma * (x_c - t.alpha * implied_x0(p))
        scale, a, differences = self._terms(nodes[:order], s)
        for c, d in zip(a, differences, strict=True):
            x_s = torch.add(x_s, d, alpha=-float(s.alpha) * scale * c)
        return x_s, Made(nodes, order)

    def _terms(self, nodes: Past, s: Level) -> tuple[float, list[float], list[Tensor]]:
        """B, and what stands in the sum of a step to s from nodes[0]: the a_k and (D_k − D)/r_k."""
        h, r = log_step(nodes[0].level, s), self._places(nodes, s)
        differences = [(n.value - nodes[0].value) / x for n, x in zip(nodes[1:], r, strict=True)]
        a = [0.5] if len(r) == 1 else self._weights(r, h)
        return self._scale(h), a, differences

    def _correction(self, here: Node, past: Past) -> Tensor:
        """x_t^c − x_t: the sum with D_t less the one without."""
        t, base = here.level, past[0]
        h, r = log_step(base.level, t), self._places(past, t)
        scale, a, differences = self._terms(past, t)
        b = self._weights([*r, 1.0], h) if r else [0.5]
        total = b[-1] * (here.value - base.value)
        for before, after, d in zip(a, b, differences, strict=False):
            total = total + (after - before) * d
        return -float(t.alpha) * scale * total

    def _places(self, nodes: Past, s: Level) -> list[float]:
        """r_k = (lambda_k − lambda_t)/h of the nodes behind the first."""
        h = log_step(nodes[0].level, s)
        return [log_step(nodes[0].level, n.level) / h for n in nodes[1:]]

    def _scale(self, h: float) -> float:
        return -h if self.variant == "bh1" else math.expm1(-h)

    def _weights(self, r: list[float], h: float) -> list[float]:
        """The a_k of eq. 8: sum_k a_k r_k^(i − 1) = i! phi_(i+1)(−h) (−h)/B."""
        rhs, phi = [], math.expm1(-h) / -h - 1
        for i in range(1, len(r) + 1):
            rhs.append(phi * math.factorial(i) / self._scale(h))
            phi = phi / -h - 1 / math.factorial(i + 1)
        matrix = np.vander(np.array(r), increasing=True).T
        return [float(v) for v in np.linalg.solve(matrix, np.array(rhs))] if r else []
