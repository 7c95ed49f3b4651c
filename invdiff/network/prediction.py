"""A network's estimates of x0 and eps at a noisy state, and how guidance may move them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from invdiff.schedules import Level


@dataclass(frozen=True)
class Prediction:
    """The estimates at x_t under the alpha and sigma of ``level``: ``x_t = alpha * x0 + sigma *
    eps``.

    Attributes:
        x_t: the noisy state, (B, ...).
        level: its noise level.
        x0: the posterior mean E[x0 | x_t], possibly moved by guidance.
        eps: the noise, re-derived from x0 or kept, as the guidance decides.
        variance_fraction: learned variance f in [0, 1], log var = f log(beta) + (1 - f) log(beta
            tilde).
        clip_range: what the network clips x0 to; None where it does not.

    Examples:
        >>> import torch, invdiff
        >>> level = invdiff.schedules.flow()(torch.tensor(0.5))
        >>> one = torch.ones(1, 2)
        >>> p = invdiff.Prediction(one, level, x0=one, eps=one)
        >>> p.move_x0(one).eps  # moves x0 and keeps eps
        tensor([[1., 1.]])
        >>> p.move(one).eps  # derives eps again
        tensor([[0., 0.]])
    """

    x_t: Tensor
    level: Level
    x0: Tensor
    eps: Tensor
    variance_fraction: Tensor | None = None
    clip_range: tuple[float, float] | None = None

    def move_x0(self, dx: Tensor) -> Prediction:
        """x0 + dx with the same eps: the next state shifts by exactly alpha_s * dx (DPS, DDNM,
        PiGDM)."""
        return Prediction(
            self.x_t, self.level, self.x0 + dx, self.eps, self.variance_fraction, self.clip_range
        )

    def move(self, dx: Tensor) -> Prediction:
        """x0 + dx, with eps re-derived so that x_t stays alpha * x0 + sigma * eps (clipping,
        classifier guidance)."""
        eps = torch.sub(self.eps, dx, alpha=float(self.level.alpha) / float(self.level.sigma))
        return Prediction(
            self.x_t, self.level, self.x0 + dx, eps, self.variance_fraction, self.clip_range
        )

    def clip(self) -> Prediction:
        """x0 clipped to the network's range, with eps re-derived from x_t; unchanged where the
        network does not clip."""
        if self.clip_range is None:
            return self
        x0 = self.x0.clamp(*self.clip_range)
        return replace(self, x0=x0, eps=(self.x_t - self.level.alpha * x0) / self.level.sigma)

    def chunk(self, n: int) -> tuple[Prediction, ...]:
        """The predictions of n batches that were stacked for one call."""
        f = self.variance_fraction
        fractions = [None] * n if f is None else f.chunk(n)
        parts = zip(self.x_t.chunk(n), self.x0.chunk(n), self.eps.chunk(n), fractions, strict=True)
        return tuple(
            replace(self, x_t=x_t, x0=x0, eps=eps, variance_fraction=v) for x_t, x0, eps, v in parts
        )

    def detach(self) -> Prediction:
        """The same values without their autograd graph; itself where there is none."""
        f, tensors = self.variance_fraction, (self.x_t, self.x0, self.eps)
        if not any(v.requires_grad for v in (*tensors, *(() if f is None else (f,)))):
            return self
        x_t, x0, eps = (v.detach() for v in tensors)
        return Prediction(
            x_t, self.level, x0, eps, None if f is None else f.detach(), self.clip_range
        )

    @property
    def score(self) -> Tensor:
        """grad log p_t(x_t) = -eps / sigma."""
        return -self.eps / self.level.sigma

    @property
    def v(self) -> Tensor:
        """alpha * eps - sigma * x0 (Salimans & Ho 2022)."""
        return self.level.alpha * self.eps - self.level.sigma * self.x0
