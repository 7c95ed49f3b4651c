"""Denoisers ``denoiser(x, sigma)`` as priors: deepinv's, or any function of that kind.

A denoiser is given as an object, not as a file. It takes x = x0 + sigma n with images in [0, 1] and
gives E[x0 | x] (exactly that, if it was trained by the mean squared error). Tweedie's formula makes
it a prior (Efron 2011; Kadkhodaie & Simoncelli 2021, arXiv:2007.13640):

    score(x; sigma) = (D(x; sigma) - x) / sigma^2

which is a variance-exploding state with alpha = 1. It is asked only for the noise levels it was
trained for: its schedule runs from ``sigma_max`` down to ``sigma_min``, whatever leaves it is an
error, and the last step takes D(x; sigma_min) as the image. Where sigma_max is too little to start
from pure noise (below PURE_NOISE), a run needs an image to start from, to which it adds noise of
sigma_max.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from invdiff.loading.source import Source
from invdiff.network import Denoiser, OfLevel
from invdiff.schedules import VE, Level

PURE_NOISE = 5.0
"""Noise, in units of the images' width, above which a state holds next to nothing of its image."""


def recognises(source: Source) -> bool:
    """Whether it is a function or a module, not a path."""
    return callable(source.given)


def load(
    source: Source, *, sigma_range: tuple[float, float] | None = None, **options: Any
) -> Denoiser:
    """A Denoiser, see :func:`from_deepinv`."""
    if sigma_range is None:
        raise ValueError(
            f"{source} is taken as a denoiser(x, sigma); give the noise it was trained for, "
            "sigma_range=(lowest, highest) in [0, 1] units, or wrap a diffusion network: "
            "invdiff.Denoiser(net, predicts=..., schedule=..., data_range=...)"
        )
    return from_deepinv(source.given, sigma_range, **options)


@dataclass(frozen=True)
class Trained(VE):
    """The geometric levels from sigma_max to sigma_min, and no other.

    Attributes:
        of: whose levels they are, for messages.
        from_noise: whether a run may start from noise alone.
    """

    of: str = "this denoiser"
    from_noise: bool = True

    def frame(self, alpha: float, sigma: float) -> tuple[Level, float]:
        noise = sigma / alpha if alpha > 0 else float("inf")
        if not self.sigma_min * (1 - 1e-6) <= noise <= self.sigma_max * (1 + 1e-6):
            raise ValueError(
                f"{self.of} denoises sigma in [{self.sigma_min:g}, {self.sigma_max:g}] "
                f"(images in [0, 1]) and was asked for {noise:.4g}; sample "
                "on its own schedule (no schedule=), or give the sigma_range it was really "
                "trained for"
            )
        return super().frame(alpha, sigma)


def from_deepinv(
    denoiser: Callable[..., Tensor], sigma_range: tuple[float, float], **options: Any
) -> Denoiser:
    """A prior from a denoiser such as deepinv's DRUNet, called as ``denoiser(x, sigma)`` with sigma
    (B,).

    Denoisers that are no posterior mean (total variation, BM3D, median filters) run as well, but
    then nothing is sampled from a distribution that exists; and one that stops by a criterion over
    its batch couples the images.

    Args:
        denoiser: takes (B, C, H, W) images in [0, 1] with noise of standard deviation sigma,
            returns the denoised images.
        sigma_range: (lowest, highest) noise it was trained for, both positive, e.g. (0.01, 0.2) for
            one that handles 2.5 to 50 of 255.
        options: of :class:`~invdiff.network.Denoiser`, e.g. ``clip=False`` or ``channels``.

    Raises:
        ValueError: an impossible range; a ``schedule``, which follows from the range.
    """
    if not callable(denoiser):
        raise TypeError(
            f"a denoiser is a callable denoiser(x, sigma), got {type(denoiser).__name__}"
        )
    low, high = sigma_range
    if not 0 < low < high:
        raise ValueError(
            "sigma_range is (lowest, highest) noise it was trained for, 0 < lowest < "
            f"highest in [0, 1] units, got {sigma_range}"
        )
    if "schedule" in options:
        raise ValueError(
            f"the schedule of a denoiser follows from its sigma_range, {sigma_range}; give "
            "that, and no schedule="
        )
    name = getattr(denoiser, "__name__", type(denoiser).__name__)
    found: dict[str, Any] = {
        "predicts": "x0",
        "schedule": Trained(low, high, of=name, from_noise=high >= PURE_NOISE),
        "data_range": (0.0, 1.0),
        "time": OfLevel(lambda level: level.ratio),
        "name": name,
    }
    # A Module has to be seen as one, so that it is frozen, moved and hashed.
    return Denoiser(
        _Called(denoiser) if isinstance(denoiser, nn.Module) else denoiser, **(found | options)
    )


class _Called(nn.Module):
    """``net(x, t)`` of a denoiser that may name its arguments as it likes."""

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.denoiser(x, t)
