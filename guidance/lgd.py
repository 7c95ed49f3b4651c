"""Loss-guided diffusion with Monte Carlo (LGD-MC; Song et al., ICML 2023, PMLR 202:32483,
"Loss-Guided Diffusion Models for Plug-and-Play Controllable Generation").

    eps_hat = eps − zeta sigma_t grad_{x_t} log (1/n) Σ_i exp(−loss(x0(x_t) + r_t z_i))
    z_i     ~ N(0, I)

p(y | x_t) averages p(y | x0) over p(x0 | x_t), which is taken as N(x0(x_t), r_t²), and the average
is over n draws. With r_t = 0 one would have p(y | x0(x_t)), as DPS, which trusts its own estimate
too much where x_t is noisy. One evaluation of the network and one gradient through it, whatever n.

Symbols: n, the draws; zeta, the weight of the guidance; the loss is −log p(y | x0), Gaussian. The
paper's r_t = sigma~ / sqrt(1 + sigma~²), sigma~ = sigma_t/alpha_t, the standard deviation of x0
given x_t under a prior N(0, I), is sigma_t / sqrt(alpha_t² + sigma_t²) in every frame, and sigma_t
itself in the paper's VP.

There is no official code. The draws estimate an average over as many dimensions as y has: where
these are many and sigma is small, the nearest draw takes all of the weight, so smaller weights zeta
are needed. InverseBench averages the gradients of the draws instead of their likelihoods and
divides them by the root of the loss, which is DPS with a blurred loss, not this estimate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from invdiff.network import Prediction
from invdiff.problem import Measurement
from invdiff.sampling import Between, Denoise, Guidance, Setting, Step, gradient, traced
from invdiff.sampling.checks import nonnegative


@dataclass(frozen=True)
class LGD(Guidance):
    """See the module's docstring.

    Args:
        n: how many draws.
        zeta: the weight; 1 is Bayes' rule.
    """

    n: int = 10
    zeta: Annotated[float, Between(1e-3, 10, log=True)] = 1.0

    scale: ClassVar[tuple[str, ...]] = ("zeta",)

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"n must be at least 1, got {self.n}")
        nonnegative(zeta=self.zeta)

    def bind(self, setting: Setting) -> LGD:
        bound = super().bind(setting)
        setting.measurement.check_noisy("LGD")
        return bound

    def __call__(
        self, denoise: Denoise, x_t: Tensor, step: Step, measurement: Measurement
    ) -> Prediction:
        t = step.t
        if t.alpha == 0:  # pure noise says nothing about the image
            return denoise(x_t, t)
        r = float(t.sigma / (t.alpha**2 + t.sigma**2).sqrt())
        with torch.enable_grad():
            x_t, p = traced(denoise, x_t, t, "LGD")
            draws = [
                measurement.log_likelihood(p.x0 + r * step.randn_like(p.x0)) for _ in range(self.n)
            ]
            grad = gradient(torch.stack(draws).logsumexp(0), x_t)
        return p.detach().move(self.zeta * t.sigma**2 / t.alpha * grad)
