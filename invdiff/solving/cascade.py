"""Cascades: images made or restored at low resolution, then enlarged.

A second diffusion run takes the small images y for a measurement of larger ones (SR3, Saharia et
al. 2021, section 4.4; Ho et al. 2022, arXiv:2106.15282):

    x ~ p(x | y),    y = downsampled x,    drawn by any method of solve with any network

Resampling is the baseline: bicubic (a = −1/2, as the super-resolution operator) or Lanczos, without
rounding to 8 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from invdiff.loading.model import load_model
from invdiff.network import Denoiser
from invdiff.noise import seed_of
from invdiff.plugins.registry import list_plugins
from invdiff.problem import Measurement, make_operator
from invdiff.sampling import Callback, Method, make_method
from invdiff.sampling.method import describe
from invdiff.solving.solve import check_solve, solve


def upscale(
    x: Tensor, how: Any = "sr3", *, seed: int = 0, progress: bool = False, **options: Any
) -> Tensor:
    """Enlarges images by a whole factor.

    Args:
        x: (B, C, H, W) in [0, 1].
        how: ``"bicubic"``, ``"lanczos"``, or a method as :func:`invdiff.solve` takes it, by default
            ``"sr3"``.
        seed: of the sampling noise.
        progress: show a bar on stderr.
        options: ``factor``, ``model``, ``steps``, ``dtype`` and ``device`` of
            :func:`make_upscaler`.

    Returns:
        (B, C, factor H, factor W) in [0, 1].

    Raises:
        ValueError: pieces that do not fit each other or the images, before sampling.

    Examples:
        >>> import torch, invdiff
        >>> invdiff.upscale(torch.rand(1, 3, 8, 8), "bicubic").shape
        torch.Size([1, 3, 32, 32])
    """
    return make_upscaler(how, **options)(x, seed=seed, progress=progress)


def make_upscaler(
    how: Any = "sr3",
    *,
    factor: int = 4,
    model: Denoiser | str | None = None,
    steps: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Upscaler:
    """An :class:`Upscaler`; a network is loaded if it needs one.

    Args:
        how: ``"bicubic"``, ``"lanczos"``, or a method as :func:`invdiff.solve` takes it.
        factor: whole, at least 2.
        model: a Denoiser, a registered name or a folder; by default ``"sr3x4"``.
        steps: of the run, by default 25.
        dtype, device: of a network that is loaded here.

    Raises:
        ValueError: an unknown ``how``, a factor that the network was not trained for, a network or
            steps for what only resamples.
    """
    if isinstance(factor, bool) or not isinstance(factor, int) or factor < 2:
        raise ValueError(f"factor must be a whole number of at least 2, got {factor!r}")
    if isinstance(how, str) and how in RESAMPLING:
        if model is not None or steps is not None:
            raise ValueError(
                f"{how!r} resamples: it has no model or steps; leave them out, or use a "
                "method such as 'sr3'"
            )
        return Upscaler(how, factor)
    if isinstance(how, str) and how not in list_plugins("guidance"):
        known = f"{', '.join(RESAMPLING)}; or a method: {', '.join(list_plugins('guidance'))}"
        raise ValueError(f"unknown way to upscale {how!r}; known: {known}")
    method = make_method(how)
    if not isinstance(model, Denoiser):
        model = load_model(model or "sr3x4", dtype=dtype)
        model = model if device is None else model.to(device)
    if model.factor not in (None, factor):
        raise ValueError(
            f"{model.name} was trained to enlarge by {model.factor}, not by {factor}; use "
            f"that factor, another model, or {' or '.join(RESAMPLING)}, "
            "which take any"
        )
    return Upscaler(
        how if isinstance(how, str) else type(how).__name__,
        factor,
        method,
        model,
        25 if steps is None else steps,
    )


@dataclass
class Upscaler:
    """Enlarges images (B, C, H, W) by ``factor``: by resampling, or by sampling p(large | small)
    with a network.

    Attributes:
        name: a key of ``RESAMPLING``, or how the method is called in records.
        method, model, steps: of the run; None where images are resampled.
        nfe: network evaluations per image of the last call.
    """

    name: str
    factor: int = 4
    method: Method | None = None
    model: Denoiser | None = None
    steps: int | None = None
    nfe: float = field(default=0.0, init=False)

    def check(self, shape: tuple[int, ...]) -> None:
        """Raises what would stop it for images of a shape (C, H, W), so that nobody waits for the
        images first."""
        if self.model is None:
            return
        if self.model.channels not in (None, shape[0]):
            raise ValueError(
                f"{self.model.name} enlarges images with {self.model.channels} channels, "
                f"but these have {shape[0]}; "
                f"use {' or '.join(RESAMPLING)}, or a model for {shape[0]}"
            )
        check_solve(
            self._measurement(torch.zeros(1, *shape)), self.model, self.method, steps=self.steps
        )

    def __call__(
        self,
        x: Tensor,
        *,
        seed: int = 0,
        batch_size: int | None = None,
        image_ids: Sequence[int] | None = None,
        progress: bool = False,
        callback: Callback | None = None,
    ) -> Tensor:
        """(B, C, factor H, factor W) in [0, 1] from x (B, C, H, W) in [0, 1]; the rest as in
        :func:`invdiff.solve`."""
        if x.ndim != 4 or not x.is_floating_point():
            raise ValueError(
                f"x must be images (B, C, H, W) in [0, 1], got shape {tuple(x.shape)} and {x.dtype}"
            )
        if self.model is None:
            return RESAMPLING[self.name](x, self.factor).clamp(0, 1)
        assert self.steps is not None
        # A stream of its own: with the seed itself, the noise would begin with the numbers that x
        # was made from.
        result = solve(
            self._measurement(x),
            self.model,
            self.method,
            steps=self.steps,
            seed=seed_of("upscale", seed),
            batch_size=batch_size,
            image_ids=image_ids,
            progress=progress,
            callback=callback,
            dtype=x.dtype,
        )
        self.nfe = result.nfe
        return result.x.clamp(0, 1)

    def _measurement(self, x: Tensor) -> Measurement:
        return Measurement(x, make_operator("sr", factor=self.factor), sigma=0.0)

    def describe(self) -> dict[str, Any]:
        """For records."""
        made: dict[str, Any] = {"name": self.name, "factor": self.factor}
        if self.model is not None:
            made |= {
                "method": describe(self.method),
                "model": self.model.name,
                "weights": self.model.hash,
            }
            made |= {"steps": self.steps, "nfe": self.nfe}
        return made


def _bicubic(x: Tensor, factor: int) -> Tensor:
    return F.interpolate(x, scale_factor=factor, mode="bicubic", antialias=True)


def _lanczos(x: Tensor, factor: int) -> Tensor:
    import numpy as np
    from PIL import Image

    size = (x.shape[-1] * factor, x.shape[-2] * factor)
    channels = x.detach().to("cpu", torch.float32).flatten(0, 1).numpy()
    larger = [
        np.asarray(Image.fromarray(c).resize(size, Image.Resampling.LANCZOS)) for c in channels
    ]  # float, so nothing is rounded
    return torch.from_numpy(np.stack(larger)).unflatten(0, x.shape[:2]).to(x)


RESAMPLING: dict[str, Callable[[Tensor, int], Tensor]] = {"bicubic": _bicubic, "lanczos": _lanczos}
"""The ways that need no network, by name."""
