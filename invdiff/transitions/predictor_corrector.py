"""Predictor and corrector."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from invdiff.problem import Measurement
from invdiff.sampling import Denoise, Step, Transition
from invdiff.transitions.euler_maruyama import EulerMaruyama
from invdiff.transitions.langevin import langevin_correction


@dataclass(frozen=True)
class PredictorCorrector(Transition):
    """Song et al. 2021, algorithm 1: a predictor step to s, then ``steps`` Langevin corrections at
    s.

    The corrector reads eps only: a guidance that moves x0 alone, such as DPS, acts in the
    predictor, though it is paid for in each.

    Args:
        predictor: the transition of the first step.
        steps: corrections after it.
        snr: signal-to-noise ratio of a correction, from which its size follows.
    """

    predictor: Transition = field(default_factory=EulerMaruyama)
    steps: int = 1
    snr: float = 0.16

    def __post_init__(self) -> None:
        if self.steps < 1 or self.snr <= 0:
            raise ValueError(
                f"steps must be at least 1 and snr positive, got {self.steps} and {self.snr}"
            )

    @property
    def predictions(self) -> int:
        return self.predictor.predictions + self.steps

    def down(self, predict: Denoise, x_t: Tensor, step: Step, measurement: Measurement) -> Tensor:
        x = self.predictor.down(predict, x_t, step, measurement)
        if step.s.sigma > 0 and step.t.alpha > 0:  # from pure noise the step size would be zero
            for _ in range(self.steps):
                x = langevin_correction(x, predict(x, step.s).eps, step.s, step, self.snr)
        return x
