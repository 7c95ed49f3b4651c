"""The public way in: solve and generate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from invdiff.network import Denoiser
from invdiff.problem import Measurement
from invdiff.sampling import make_method
from invdiff.solving.options import RunOptions, takes_options
from invdiff.solving.recommend import recommend
from invdiff.solving.restoration import Restoration
from invdiff.solving.run import Run, check_image
from invdiff.transitions import DDIM


@takes_options
def solve(
    measurement: Measurement,
    denoiser: Denoiser,
    method: Any = None,
    *,
    num_samples: int = 1,
    **options: Any,
) -> Restoration:
    """Restores images from a measurement with a diffusion prior.

    Args:
        measurement: ``y = A(x) + sigma n`` of B images, in [0, 1] for image networks.
        denoiser: the prior.
        method: a registered name, an object, or a list of these, the first nearest to the network.
            None takes what :func:`~invdiff.recommend` recommends, with its number of steps.
        num_samples: samples per image.
        options: ``steps``, ``seed``, ``transition`` and the other fields of
            :class:`~invdiff.solving.RunOptions`; anything else is a condition of the network, e.g.
            ``label=3``; a tensor has one entry per image.

    Raises:
        ValueError: pieces that do not fit each other, named on both sides, before sampling starts;
            sampling that turns non-finite (:class:`~invdiff.sampling.NonFiniteError`).

    Examples:
        >>> import invdiff
        >>> x, _ = invdiff.images.sample_photo(32)
        >>> measurement = invdiff.make_operator("inpaint").measure(x, sigma=0.025)
        >>> denoiser = invdiff.load_model("photo64")
        >>> invdiff.solve(measurement, denoiser, "ddrm", steps=2).x.shape
        torch.Size([1, 3, 32, 32])
    """
    return _solving(measurement, denoiser, method, options)(num_samples)


def check_solve(
    measurement: Measurement, denoiser: Denoiser, method: Any = None, **options: Any
) -> None:
    """Raises what :func:`solve` would raise before it samples. No network is called; a classifier
    is tried on one empty image."""
    _solving(measurement, denoiser, method, options)


def _solving(
    measurement: Measurement, denoiser: Denoiser, method: Any, given: dict[str, Any]
) -> Run:
    if not isinstance(measurement, Measurement):
        raise TypeError(
            "measurement must be an invdiff.Measurement (operator.measure(x) makes one), got "
            f"{type(measurement).__name__}"
        )
    check_image(denoiser, measurement.image_shape)
    if method is None:
        choice = recommend(measurement, denoiser)
        method, given = choice.method, {"steps": choice.steps} | given
    options, cond = RunOptions.split(given)
    shape = (len(measurement), *measurement.image_shape)
    return Run.prepare(denoiser, method, shape, options, measurement=measurement, cond=cond)


@takes_options
def generate(
    denoiser: Denoiser,
    shape: Sequence[int] | None = None,
    method: Any = "none",
    *,
    x_T: Tensor | None = None,
    **options: Any,
) -> Restoration:
    """Samples from the prior, under guidance that needs no measurement.

    Args:
        denoiser: the prior.
        shape: (B, C, H, W) of the batch.
        method: as in :func:`solve`.
        x_T: a state to start from instead of noise, in the network's own frame and range, e.g. from
            :func:`invert`; the transition is then DDIM(eta=0) unless one is given.
        options: as in :func:`solve`.

    Examples:
        >>> import invdiff
        >>> denoiser = invdiff.load_model("digits32")
        >>> invdiff.generate(denoiser, (2, 1, 32, 32), steps=2, label=3).x.shape
        torch.Size([2, 1, 32, 32])
    """
    return plan_of_samples(denoiser, shape, method, x_T=x_T, **options)(1)


def plan_of_samples(
    denoiser: Denoiser,
    shape: Sequence[int] | None,
    method: Any,
    *,
    x_T: Tensor | None = None,
    **options: Any,
) -> Run:
    """What :func:`generate` samples, with its arguments: checked, and not begun."""
    if shape is None:
        if x_T is None or denoiser.autoencoder is not None:
            raise ValueError(
                "generate needs the shape of the batch, e.g. shape=(16, 3, 32, 32), or a state x_T"
            )
        shape = x_T.shape
    if not isinstance(shape, Sequence):
        raise TypeError(f"shape is that of the batch, e.g. (16, 3, 32, 32), got {shape!r}")
    shape = tuple(int(n) for n in shape)
    check_image(denoiser, shape[1:])
    if x_T is not None and tuple(x_T.shape) != denoiser.state_shape(shape):
        raise ValueError(
            f"x_T has shape {tuple(x_T.shape)}, but images of shape={shape} are made from "
            f"{denoiser.state_shape(shape)}"
        )
    made, cond = RunOptions.split(options)
    if x_T is not None and made.transition is None and make_method(method).transition is None:
        made = replace(made, transition=DDIM())  # as invert does by default
    return Run.prepare(denoiser, method, shape, made, x_T=x_T, cond=cond)
