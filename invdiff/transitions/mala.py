"""Predictor and Metropolis-adjusted Langevin corrections."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from invdiff.sampling import Denoise, Step
from invdiff.sampling.checks import positive
from invdiff.transitions.corrected import Corrected


@dataclass(frozen=True)
class MALA(Corrected):
    """A predictor step to s, then ``steps`` Langevin moves at s that are made or left (Roberts &
    Tweedie 1996), as far as a score network can tell (Sjöberg et al. 2023, arXiv:2307.14012):

        x' = x + e score(x) + sqrt(2 e) z,   e = 2 (snr sigma_s)²
        log a = log p(x')/p(x) + (‖z‖² − ‖z'‖²)/2,   z' = z + sqrt(e/2) (score(x) + score(x'))

    and x' is kept with probability min(1, a), z' being the noise of the way back. The ratio of the
    densities is the integral of the score along the way, by Simpson's rule:

        log p(x')/p(x) = (x' − x)^T (score(x) + 4 score((x + x')/2) + score(x'))/6

    which is exact where the score is a cubic in between, of Gaussians always. A network's score
    need not be a gradient, and the integral then depends on the way. Two evaluations a correction.

    Each image is accepted by itself. The larger an image, the smaller the moves that are: snr falls
    as d^(-1/6) in d dimensions. Of 16 moves of images of 3x64x64 by ``photo64`` all were made with
    snr 0.08, 8 with 0.16 and 1 with 0.25. A rejected move costs as much as an accepted one.

    Args:
        predictor: the transition of the first step.
        steps: corrections after it.
        snr: length of the drift where the score is as long as that of noise alone, in units of
            2 snr sigma_s.
    """

    snr: float = 0.16

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(snr=self.snr)

    @property
    def predictions(self) -> int:
        return self.predictor.predictions + 1 + 2 * self.steps

    def correct(self, predict: Denoise, x: Tensor, step: Step) -> Tensor:
        s = step.s
        e = 2 * (self.snr * float(s.sigma)) ** 2
        score = predict(x, s).score
        for _ in range(self.steps):
            z, n = step.randn_like(x), step.randn_like(x)
            moved = x + e * score + math.sqrt(2 * e) * z
            middle, there = predict((x + moved) / 2, s).score, predict(moved, s).score
            back = z + math.sqrt(e / 2) * (score + there)
            densities = (moved - x) * (score + 4 * middle + there) / 6
            log_a = (densities + (z**2 - back**2) / 2).flatten(1).sum(1)
            uniform = (1 + torch.erf(n.flatten(1)[:, 0] / math.sqrt(2))) / 2
            kept = (log_a > uniform.log()).view(-1, *(1,) * (x.ndim - 1))
            x, score = torch.where(kept, moved, x), torch.where(kept, there, score)
        return x
