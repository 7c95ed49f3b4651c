"""FLAIR (Erbach et al., NeurIPS 2025, arXiv:2506.02680): variational posteriors with latent flows.

The mean mu of a variational posterior is drawn to the flow and to the measurement in turn, while
the noise around it follows the flow's own trajectory:

    x_t = (1 − t) mu + t n                          the state
    mu <- mu + w_t/t (x0(x_t) − mu)                 the loss of flow matching, −w_t (v − (n − mu))
    mu <- mu − lr w_t grad ‖y − A D(mu)‖²           many times, until it is small
    n  <- (1 − s) z1 + sqrt(1 − (1 − s)²) eps       z1, the noise that x_t came from

in the network's times, from noise (1) to data (0). The network is not differentiated, the decoder
is. mu starts at E(A† y).

Symbols: w_t = weight/e_t, normalised to a mean of ``weight``, with e_t the network's squared error
of v at time t, which is measured once for a network (``errors``) and says when it can be trusted;
tau, the mean squared residual at which an image waits. Where no errors are known w_t = weight t
here, so that mu moves by the same share at each level. Published with Stable Diffusion 3: 50 steps
that end at t = 0.18, weight 0.5, 15 data steps with lr 0.1 (inpainting) to 12 (super-resolution by
12), tau 1e-4, classifier-free guidance with w = 2. Here a run goes to t = 0 unless an itinerary
says otherwise, and waiting is each image's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from invdiff.guidance.flowdps import share
from invdiff.network import Prediction
from invdiff.problem import Measurement, Operator
from invdiff.problem.operator import of_kind
from invdiff.problem.wrapped import Decoded
from invdiff.sampling import Between, Denoise, Method, Setting, StatefulGuidance, Step, gradient
from invdiff.sampling.checks import nonnegative
from invdiff.schedules import Level
from invdiff.transitions import DDIM


@dataclass(frozen=True)
class FLAIR(StatefulGuidance[Tensor]):
    """See the module's docstring."""

    lr: float = 0.1
    weight: float = 0.5
    iterations: int = 15
    tau: float = 1e-4
    errors: Sequence[float] | str | Path | None = None
    requires: ClassVar[type[Operator] | None] = Decoded
    posterior: ClassVar[bool] = False

    def __post_init__(self) -> None:
        nonnegative(lr=self.lr, weight=self.weight, tau=self.tau)
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {self.iterations}")
        self._weights()

    def bind(self, setting: Setting) -> Self:
        bound = super().bind(setting)
        of_kind(setting.measurement.operator, Decoded).linear("FLAIR", "dps or flowchef")
        weights = self._weights()  # a file of errors is read once
        return bound if weights is None else replace(bound, errors=tuple((1 / weights).tolist()))

    def init(self, x_T: Tensor, measurement: Measurement) -> Tensor:
        operator = of_kind(measurement.operator, Decoded)
        seen = Measurement(measurement.y, operator.inner, measurement.sigma)
        return operator.autoencoder.encode(seen.linear_estimate()).to(x_T)

    def advance(
        self, denoise: Denoise, x_t: Tensor, step: Step, measurement: Measurement, state: Tensor
    ) -> tuple[Prediction, Tensor]:
        p, t = denoise(x_t, step.t), share(step.t)
        w = self._weight(t)
        mu = state + w / t * (p.x0 - state)
        enough = self.tau * measurement.y[0].numel()
        for _ in range(self.iterations):
            with torch.enable_grad():
                mu = mu.detach().requires_grad_()
                loss = measurement.loss(mu)
                grad = gradient(loss, mu)
            going = (loss.detach() >= enough).view(-1, *(1,) * (mu.ndim - 1))
            mu = mu.detach() - self.lr * w * torch.where(going, grad, 0.0)
        return p.move_x0(mu - p.x0), mu

    def _weight(self, t: float) -> float:
        """w_t."""
        weights = self._weights()
        if weights is None:
            return self.weight * t
        nearest = math.ceil((1 - t) * (len(weights) - 1) - 0.5)  # of two the noisier
        return self.weight * float(weights[max(0, nearest)])

    def _weights(self) -> np.ndarray | None:
        """1/e_t with a mean of 1, at equally spaced times from 1 to 0."""
        if self.errors is None:
            return None
        given = np.load(self.errors) if isinstance(self.errors, str | Path) else self.errors
        errors = np.asarray(given, dtype=np.float64)
        if errors.ndim != 1 or len(errors) < 2 or not (np.isfinite(errors) & (errors > 0)).all():
            raise ValueError(
                "errors are the network's squared errors at equally spaced times from 1 to 0, two "
                f"or more positive numbers, got shape {errors.shape}"
            )
        return 1 / errors / (1 / errors).mean()


def renewed(t: Level, s: Level) -> float:
    """Standard deviation of the noise that is drawn again in a step to s."""
    return float(s.sigma) * math.sqrt(1 - (1 - share(s)) ** 2)


def flair(
    lr: Annotated[float, Between(0.001, 30, log=True)] = FLAIR.lr,
    weight: Annotated[float, Between(0.05, 2)] = FLAIR.weight,
    iterations: int = FLAIR.iterations,
    tau: float = FLAIR.tau,
    errors: Sequence[float] | str | Path | None = None,
) -> Method:
    """FLAIR with the noise of the flow's own trajectory, partly renewed.

    Args:
        lr: size of a gradient step on the squared residual.
        weight: of the flow against the measurement.
        iterations: gradient steps at each level.
        tau: mean squared residual, in the network's range, at which an image waits.
        errors: the network's squared errors of v at equally spaced times from 1 (noise) to 0, or
            an ``.npy`` file of them.
    """
    return Method(FLAIR(lr, weight, iterations, tau, errors), DDIM(std=renewed))
