"""Predictor and underdamped Langevin corrections."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from invdiff.sampling import Denoise, Step
from invdiff.sampling.checks import nonnegative, positive
from invdiff.transitions.corrected import Corrected


@dataclass(frozen=True)
class Underdamped(Corrected):
    """A predictor step to s, then ``steps`` moves of Langevin dynamics with inertia at s, in the
    splitting BAOAB (Leimkuhler & Matthews 2013, Rational construction of stochastic numerical
    methods for molecular sampling):

        v <- v − h/2 eps(x)
        x <- x + h/2 sigma_s v
        v <- c v + sqrt(1 − c²) z,   c = exp(−gamma h)
        x <- x + h/2 sigma_s v
        v <- v − h/2 eps(x)

    with v ~ N(0, I) at first: lengths in units of sigma_s, where −eps is the score. What h leaves
    of an error is of second order, and none at all on Gaussians; it is stable below h = 2. One
    evaluation a correction.

    Args:
        predictor: the transition of the first step.
        steps: corrections after it.
        h: time of a correction.
        gamma: friction; 0 is Hamiltonian Monte Carlo without rejections.
    """

    h: float = 0.5
    gamma: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(h=self.h)
        nonnegative(gamma=self.gamma)

    @property
    def predictions(self) -> int:
        return self.predictor.predictions + 1 + self.steps

    def correct(self, predict: Denoise, x: Tensor, step: Step) -> Tensor:
        s, c = step.s, math.exp(-self.gamma * self.h)
        half, sigma = self.h / 2, float(step.s.sigma)
        v, eps = step.randn_like(x), predict(x, s).eps
        for _ in range(self.steps):
            v = v - half * eps
            x = x + half * sigma * v
            v = torch.add(c * v, step.randn_like(x), alpha=math.sqrt(1 - c**2))
            x = x + half * sigma * v
            eps = predict(x, s).eps
            v = v - half * eps
        return x
