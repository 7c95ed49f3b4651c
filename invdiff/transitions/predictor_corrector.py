"""Predictor and corrector."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from invdiff.sampling import Denoise, Step
from invdiff.sampling.checks import positive
from invdiff.transitions.corrected import Corrected
from invdiff.transitions.langevin import langevin_correction


@dataclass(frozen=True)
class PredictorCorrector(Corrected):
    """Song et al. 2021, algorithm 1: a predictor step to s, then ``steps`` Langevin corrections at
    s.

    Args:
        predictor: the transition of the first step.
        steps: corrections after it.
        snr: signal-to-noise ratio of a correction, from which its size follows.
    """

    snr: float = 0.16

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(snr=self.snr)

    @property
    def predictions(self) -> int:
        return self.predictor.predictions + self.steps

    def correct(self, predict: Denoise, x: Tensor, step: Step) -> Tensor:
        for _ in range(self.steps):
            x = langevin_correction(x, predict(x, step.s).eps, step.s, step, self.snr)
        return x
