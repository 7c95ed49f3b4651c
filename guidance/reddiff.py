"""RED-diff: a variational perspective on solving inverse problems with diffusion models (Mardani et
al., ICLR 2024, arXiv:2305.04391, algorithm 1).

The posterior is sought as one point mu, moved by one Adam step at each level from noisy to clean:

    x_t  = alpha_t mu + sigma_t z
    loss = ‖y − A(mu)‖² / (2 m) + lambda_t <sg(eps(x_t) − z), mu> / n
    lambda_t = lambda sigma_t / alpha_t
    mu  <- Adam(mu, grad loss)

mu is the next estimate of x0, and x_t comes from the transition ``Renoise``. Since eps − z =
alpha_t (mu − x0(x_t)) / sigma_t, the gradient of the second term is lambda (mu − x0(x_t)) / n:
regularisation by denoising, which needs neither z nor a gradient through the network. How strong
the measurement's noise is does not enter.

Symbols: lmbda, weight of the prior (official: 0.25); lr of Adam (official: 0.1, and 0.5 for
nonlinear operators), betas 0.9 and 0.99; sg, which stops the gradient; m and n, of how many values
y and x consist (the paper writes sums, its code means, which these values belong to). Published:
1000 steps, values in [-1, 1].

mu starts at A† y, which the first x_t, though noise alone, is taken to hold. Here A† is regularised
by the noise, which it amplifies. Under a nonlinear operator, for which the official code has a
rough inverse each, mu starts at the network's first estimate. That code takes its means over the
batch too, which shrinks gradients towards Adam's epsilon, does not clip x0, and returns mu as it
was before the last update.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import torch
from torch import Tensor

from invdiff.network import Prediction
from invdiff.problem import LinearOperator, Measurement
from invdiff.sampling import Between, Denoise, Method, StatefulGuidance, Step, data_gradient
from invdiff.sampling.checks import nonnegative, positive
from invdiff.transitions import Renoise


class Adam(NamedTuple):
    """Adam (Kingma & Ba 2015, algorithm 1) on an image that is sought, with betas 0.9 and 0.99."""

    x: Tensor
    m: Tensor
    v: Tensor
    k: int = 0

    @classmethod
    def at(cls, x: Tensor) -> Adam:
        """Before the first step, at x."""
        return cls(x, torch.zeros_like(x), torch.zeros_like(x))

    def stepped(self, grad: Tensor, lr: float) -> Adam:
        """After a step along −grad."""
        k, (b1, b2) = self.k + 1, (0.9, 0.99)
        m, v = torch.lerp(grad, self.m, b1), torch.lerp(grad.square(), self.v, b2)
        direction = (m / (1 - b1**k)) / ((v / (1 - b2**k)).sqrt() + 1e-8)
        return Adam(self.x - lr * direction, m, v, k)


@dataclass(frozen=True)
class REDDiff(StatefulGuidance[Adam | None]):
    """The optimisation; :func:`reddiff` goes on with new noise at each level."""

    lmbda: float = 0.25
    lr: float = 0.1

    posterior: ClassVar[bool] = False

    def __post_init__(self) -> None:
        nonnegative(lmbda=self.lmbda)
        positive(lr=self.lr)

    def init(self, x_T: Tensor, measurement: Measurement) -> Adam | None:
        """mu = A† y; under a nonlinear operator it is the network's first estimate."""
        linear = isinstance(measurement.operator, LinearOperator)
        return Adam.at(measurement.linear_estimate()) if linear else None

    def advance(
        self,
        denoise: Denoise,
        x_t: Tensor,
        step: Step,
        measurement: Measurement,
        state: Adam | None,
    ) -> tuple[Prediction, Adam]:
        p = denoise(x_t, step.t)
        adam = Adam.at(p.x0) if state is None else state
        mu, m, n = adam.x, measurement.y[0].numel(), x_t[0].numel()
        grad = data_gradient(measurement, mu) / (2 * m) + self.lmbda / n * (mu - p.x0)
        adam = adam.stepped(grad, self.lr)
        return p.move(adam.x - p.x0), adam


def reddiff(
    lmbda: Annotated[float, Between(0.01, 5, log=True)] = REDDiff.lmbda,
    lr: Annotated[float, Between(0.02, 2, log=True)] = REDDiff.lr,
) -> Method:
    """RED-diff by name.

    Args:
        lmbda: weight of the prior.
        lr: step size of Adam.
    """
    return Method(REDDiff(lmbda, lr), Renoise())
