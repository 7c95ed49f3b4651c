"""A predictor and corrections of the state that it made."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field

from torch import Tensor

from invdiff.problem import Measurement
from invdiff.sampling import Denoise, Step, Transition
from invdiff.transitions.euler_maruyama import EulerMaruyama


@dataclass(frozen=True)
class Corrected(Transition):
    """A step of ``predictor`` to s, then ``steps`` corrections there: moves of a Markov chain that
    leaves p(x_s) as it is. None from pure noise, nor at the clean level.

    A corrector reads eps only: a guidance that moves x0 alone, such as DPS, acts in the predictor,
    though it is paid for in each evaluation.

    Args:
        predictor: the transition of the first step.
        steps: corrections after it.
    """

    predictor: Transition = field(default_factory=EulerMaruyama)
    steps: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")

    def down(self, predict: Denoise, x_t: Tensor, step: Step, measurement: Measurement) -> Tensor:
        x = self.predictor.down(predict, x_t, step, measurement)
        return self.correct(predict, x, step) if step.s.sigma > 0 and step.t.alpha > 0 else x

    @abstractmethod
    def correct(self, predict: Denoise, x: Tensor, step: Step) -> Tensor:
        """x after the corrections at level s."""
