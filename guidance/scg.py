"""SCG: stochastic control guidance (Huang et al., ICML 2024, arXiv:2402.14285, algorithm 1), for
simulators that can be run but not differentiated.

    x_s^i ~ p(x_s | x_t),   i = 1..n
    x_s   = the x_s^i of the least ‖y − A(x0(x_s^i))‖

Of n steps that the network's own prior proposes the one is taken whose estimate fits the
measurement best: the optimal control of the reverse process, greedily and with one draw per
candidate in its expectation. Nothing is differentiated, and sigma does not enter.

Symbols: n, the candidates. Each costs an evaluation of the network and of A, in every step. The
candidates of the last step, which draws no noise, are one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from invdiff.problem import Measurement, Operator
from invdiff.sampling import Denoise, Step, Wrapping
from invdiff.transitions import DDPM, Ancestral, check_density


@dataclass(frozen=True)
class SCG(Wrapping):
    """See the module's docstring.

    Args:
        n: candidates of each step.
        inner: p(x_s | x_t): DDPM, or DDIM(eta) with eta > 0.
    """

    n: int = 8
    inner: Ancestral = field(default_factory=DDPM)
    requires: ClassVar[type[Operator] | None] = Operator

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"n must be at least 1, got {self.n}")
        check_density(self.inner, "SCG")

    @property
    def predictions(self) -> int:
        return 1 + self.n

    def down(self, predict: Denoise, x_t: Tensor, step: Step, measurement: Measurement) -> Tensor:
        p, s = predict(x_t, step.t), step.s
        mean, std = self.inner.kernel(p, step.t, s)
        if s.sigma == 0:
            return mean
        best, least = mean, None
        for _ in range(self.n):
            x = mean + std * step.randn_like(x_t)
            norm = measurement.norm(predict(x, s).x0)
            if least is None:
                best, least = x, norm
                continue
            better = (norm < least).view(-1, *(1,) * (x.ndim - 1))
            best, least = torch.where(better, x, best), torch.minimum(norm, least)
        return best
