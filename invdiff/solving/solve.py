"""The public way in: solve and generate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from invdiff.network import Denoiser
from invdiff.problem import Measurement
from invdiff.sampling import Callback, Itinerary, Transition, make_method
from invdiff.schedules import Schedule
from invdiff.solving.restoration import Restoration
from invdiff.solving.run import Run, check_image
from invdiff.transitions import DDIM


def solve(
    measurement: Measurement,
    denoiser: Denoiser,
    method: Any = "dps",
    *,
    steps: int = 100,
    seed: int = 0,
    num_samples: int = 1,
    transition: Transition | None = None,
    itinerary: Itinerary | None = None,
    schedule: Schedule | None = None,
    start: Tensor | None = None,
    batch_size: int | None = None,
    image_ids: Sequence[int] | None = None,
    callback: Callback | None = None,
    trajectory: bool = False,
    progress: bool = False,
    dtype: torch.dtype = torch.float32,
    **cond: Any,
) -> Restoration:
    """Restores images from a measurement with a diffusion prior.

    Args:
        measurement: ``y = A(x) + sigma n`` of B images, in [0, 1] for image networks.
        denoiser: the prior.
        method: a registered name, an object, or a list of these, the first nearest to the network.
        steps: how many levels a straight run visits.
        seed: of the sampling noise. Image k of sample j draws a stream of its own, alone or in any
            batch.
        num_samples: samples per image.
        transition, itinerary: take the place of the method's own.
        schedule: noise schedule to sample on; by default the network's. Any network runs on any
            schedule.
        start: (B, C, H, W) images that an itinerary with a late start begins from.
        batch_size: at most this many chains at once; None: all, halved (with a warning) when memory
            runs out.
        image_ids: the k of each image, which its noise is derived from; by default 0..B-1.
        callback: called after each step with a :class:`~invdiff.sampling.Progress`.
        trajectory: keep the estimate of each step.
        progress: show a bar with ETA on stderr.
        dtype: of the state.
        cond: what the network is conditioned on, e.g. ``label=3``; a tensor has one entry per
            image.

    Raises:
        ValueError: pieces that do not fit each other, named on both sides, before sampling starts;
            sampling that turns non-finite (:class:`~invdiff.sampling.NonFiniteError`).
    """
    run = _solving(
        measurement,
        denoiser,
        method,
        transition=transition,
        itinerary=itinerary,
        schedule=schedule,
        start=start,
        image_ids=image_ids,
        seed=seed,
        steps=steps,
        dtype=dtype,
        cond=cond,
    )
    return run(num_samples, batch_size, callback, trajectory, progress)


def check_solve(
    measurement: Measurement, denoiser: Denoiser, method: Any = "dps", **options: Any
) -> None:
    """Raises what :func:`solve` would raise before it samples. No network is called; a classifier
    is tried on one empty image."""
    _solving(measurement, denoiser, method, **options)


def _solving(measurement: Measurement, denoiser: Denoiser, method: Any, **options: Any) -> Run:
    if not isinstance(measurement, Measurement):
        raise TypeError(
            "measurement must be an invdiff.Measurement (operator.measure(x) makes one), "
            f"got {type(measurement).__name__}"
        )
    check_image(denoiser, measurement.image_shape)
    return Run.prepare(
        denoiser,
        method,
        (len(measurement), *measurement.image_shape),
        measurement=measurement,
        **options,
    )


def generate(
    denoiser: Denoiser,
    shape: Sequence[int] | None = None,
    method: Any = "none",
    *,
    x_T: Tensor | None = None,
    steps: int = 100,
    seed: int = 0,
    transition: Transition | None = None,
    itinerary: Itinerary | None = None,
    schedule: Schedule | None = None,
    start: Tensor | None = None,
    batch_size: int | None = None,
    image_ids: Sequence[int] | None = None,
    callback: Callback | None = None,
    trajectory: bool = False,
    progress: bool = False,
    dtype: torch.dtype = torch.float32,
    **cond: Any,
) -> Restoration:
    """Samples from the prior, under guidance that needs no measurement. Arguments as in
    :func:`solve`, and:

    Args:
        shape: (B, C, H, W) of the batch.
        x_T: a state to start from instead of noise, in the network's own frame and range, e.g. from
            :func:`invert`; the transition is then DDIM(eta=0) unless one is given.
    """
    if shape is None:
        if x_T is None or denoiser.autoencoder is not None:
            raise ValueError(
                "generate needs the shape of the batch, e.g. shape=(16, 3, 32, 32), or a state x_T"
            )
        shape = x_T.shape
    shape = tuple(int(n) for n in shape)
    check_image(denoiser, shape[1:])
    if x_T is not None and tuple(x_T.shape) != denoiser.state_shape(shape):
        raise ValueError(
            f"x_T has shape {tuple(x_T.shape)}, but images of shape={shape} are made from "
            f"{denoiser.state_shape(shape)}"
        )
    if x_T is not None and transition is None and make_method(method).transition is None:
        transition = DDIM()  # as invert does by default
    run = Run.prepare(
        denoiser,
        method,
        shape,
        transition=transition,
        itinerary=itinerary,
        schedule=schedule,
        start=start,
        x_T=x_T,
        image_ids=image_ids,
        seed=seed,
        steps=steps,
        dtype=dtype,
        cond=cond,
    )
    return run(1, batch_size, callback, trajectory, progress)
