"""The Gaussian kernel p(x_s | x_t) that ancestral transitions share."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from invdiff.network import Prediction
from invdiff.sampling import Transition
from invdiff.sampling.ancestral import forward_variance, mean, posterior_variance
from invdiff.schedules import Level

__all__ = ["Ancestral", "check_density", "forward_variance", "mean", "posterior_variance"]


class Ancestral(Transition):
    """A transition whose p(x_s | x_t) is Gaussian, so that it has a density."""

    @abstractmethod
    def kernel(self, p: Prediction, t: Level, s: Level) -> tuple[Tensor, Tensor | float]:
        """Mean and standard deviation of p(x_s | x_t)."""

    @abstractmethod
    def noise_std(self, p: Prediction, t: Level, s: Level) -> Tensor | float:
        """Standard deviation of the noise that a step from t to s draws."""


def check_density(inner: Transition, who: str) -> None:
    """Refuses transitions without the density p(x_s | x_t) that weights are made of."""
    if not isinstance(inner, Ancestral) or inner.deterministic:
        raise ValueError(
            f"{who} weighs particles by the transition's density: use DDPM, or DDIM(eta) with "
            f"eta > 0, got {inner}"
        )
