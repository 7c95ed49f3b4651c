"""Annealed Langevin dynamics."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from invdiff.problem import Measurement
from invdiff.sampling import Denoise, Step, Transition
from invdiff.schedules import Level


@dataclass(frozen=True)
class Langevin(Transition):
    """Annealed Langevin dynamics (Song & Ermon 2019, algorithm 1; step size of Song et al. 2021,
    algorithm 5): ``steps`` corrections at level t, then on to s; the last step returns x0.

        x <- x + e score + sqrt(2 e) z,   e = 2 a (snr ‖z‖ / ‖score‖)²,   a = (alpha_t/alpha_s)²

    with e the step size and norms per image (a is 1 on VE schedules and 1 − beta on VP ones). The
    steps shrink as the score grows, so a chain that lags behind its levels does not catch up: use
    many levels, several corrections at each, or start near the data.

    A shift that guidance put on x0 alone enters once in each correction, in full.

    Args:
        steps: corrections at each level.
        snr: signal-to-noise ratio of a correction, from which its size follows.
    """

    steps: int = 1
    snr: float = 0.16

    def __post_init__(self) -> None:
        if self.steps < 1 or self.snr <= 0:
            raise ValueError(
                f"steps must be at least 1 and snr positive, got {self.steps} and {self.snr}"
            )

    @property
    def predictions(self) -> int:
        return self.steps

    def down(
        self, predict: Denoise, x_t: Tensor, step: Step, measurement: Measurement | None
    ) -> Tensor:
        t, s = step.t, step.s
        if s.sigma == 0:
            return s.alpha * predict(x_t, t).x0
        if t.alpha == 0:
            raise ValueError(
                "Langevin dynamics needs signal in the state: start just below alpha = 0"
            )
        x = x_t
        for _ in range(self.steps):
            p = predict(x, t)
            implied = (x - t.sigma * p.eps) / t.alpha
            x = langevin_correction(x, p.eps, t, step, self.snr) + t.alpha * (p.x0 - implied)
        return s.alpha / t.alpha * x


def langevin_correction(x: Tensor, eps: Tensor, level: Level, step: Step, snr: float) -> Tensor:
    """One Langevin step at ``level`` with the signal-to-noise ratio ``snr`` (Song et al. 2021,
    algorithms 4 and 5; 1 − beta_i there is (alpha_t/alpha_s)² of the step that is being made)."""
    score, z = -eps / level.sigma, step.randn_like(x)
    norm = [v.flatten(1).norm(dim=1).view(-1, *(1,) * (x.ndim - 1)) for v in (z, score)]
    size = 2 * (step.t.alpha / step.s.alpha) ** 2 * (snr * norm[0] / norm[1].clamp(min=1e-12)) ** 2
    return x + size * score + (2 * size).sqrt() * z
