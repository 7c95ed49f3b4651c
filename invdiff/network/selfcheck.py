"""Finds a wrong ``predicts``, schedule or range of a network: it denoises a photograph as it is
read and as it might be read.

A ``data_range`` that is a part of the true one is not found: a network of (-1, 1) that is read as
(0, 1) is given a bright photograph of low contrast, and denoises it as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from invdiff import schedules
from invdiff.images import sample_photo
from invdiff.network.clock import OfLevel
from invdiff.network.denoiser import Denoiser
from invdiff.noise import generator_of
from invdiff.schedules import Discrete

NOISE = (0.05, 0.2, 1.0)
"""Standard deviations at which the photograph is denoised, in units of [0, 1]."""
AT_LEAST = 3.0
"""The least gain over each noisy photograph, in dB, of a network that is read rightly."""
MARGIN = 0.7
"""By how much, on average over :data:`NOISE`, another predicts or schedule must be better before it
is proposed, in dB."""
RANGE_MARGIN = 0.4
"""The same for another range over the first two of :data:`NOISE`: it changes less, and at high
noise nothing."""
RANGES = ((-1.0, 1.0), (0.0, 1.0), (0.0, 255.0))
NO_RANGE = (
    "it has no data_range, so its units are taken to be yours, and its predicts, schedule and time "
    "are taken as given; if it works on images, say their range, e.g. data_range=(-1, 1), and "
    "channels=3"
)
LARGEST = 256
"""Side of the shipped photograph."""


class Reading(NamedTuple):
    """Options with which a network might be read, in words too; at how many levels and by how much
    it must be better."""

    options: dict[str, Any]
    text: str
    levels: int = len(NOISE)
    margin: float = MARGIN


def self_check(denoiser: Denoiser) -> list[str]:
    """Names in a sentence each the probable faults in the reading of an image network; empty where
    there are none.

    It costs about sixty evaluations of a 64x64 image, or of the only size that an exported network
    takes. Networks on latents, or that need conditions, are not checked, see
    :func:`why_unchecked`; of a network without a ``data_range``, which may be one of images, that
    is said.

    Examples:
        >>> import invdiff
        >>> invdiff.self_check(invdiff.load_model("photo64"))
        []
    """
    if (why := why_unchecked(denoiser)) is not None:
        return [f"{denoiser.name} was not checked: {why}"] if why is NO_RANGE else []
    side = _side(denoiser)
    photo = sample_photo(side)[0].to(denoiser.device or "cpu")
    photo = photo.mean(dim=1, keepdim=True) if denoiser.channels == 1 else photo
    try:
        given = gains(denoiser, photo)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return [f"{denoiser.name} could not be checked, it fails at {side}x{side}: {first}"]
    better, best = _best(denoiser, given, photo)
    if best is not None:
        before = given[: best.levels].mean()
        named = " and ".join(name for name in best.options if name != "time")
        return [
            f"{denoiser.name} denoises a photograph by {before:.1f} dB on average as it is "
            f"read, with {best.text} by {before + better:.1f} dB; "
            f"is its {named} right?"
        ]
    if given.min() < AT_LEAST:
        return [
            f"{denoiser.name} denoises a photograph badly under every reading tried, as it "
            f"is read by {given.min():.1f} dB at the least; it is "
            "a network of something else than photographs, or its predicts, schedule, time "
            "or data_range is wrong in another way"
        ]
    return []


def why_unchecked(denoiser: Denoiser) -> str | None:
    """Why a network cannot be asked to denoise a photograph; None where it can."""
    if denoiser.autoencoder is None and denoiser.data_range is None:
        return NO_RANGE if denoiser.channels in (None, 1, 3) else "its states are not images"
    if denoiser.autoencoder is not None:
        return "its states are not images"
    if denoiser.channels not in (1, 3):
        return f"it has neither one nor three channels (channels={denoiser.channels})"
    if denoiser.cond_channels is not None or denoiser.required:
        return f"it needs conditions ({', '.join(denoiser.required) or 'an image'})"
    if denoiser.num_classes is not None and denoiser.null_label is None:
        return "it needs a label"
    if not denoiser.schedule.from_noise:
        return "it cannot start from noise"
    fixed = denoiser.facts.fixed_size
    if fixed is not None and (fixed[0] != fixed[1] or fixed[0] > LARGEST):
        return f"it takes images of {fixed[0]}x{fixed[1]} only"
    return None


def _side(denoiser: Denoiser) -> int:
    """The side of the images it is asked with."""
    fixed = denoiser.facts.fixed_size
    return min(denoiser.image_size or 64, 64) if fixed is None else fixed[0]


def gains(denoiser: Denoiser, photo: Tensor, levels: int = len(NOISE)) -> Tensor:
    """The gain of denoising over the noisy photograph at the first levels of :data:`NOISE`,
    (levels,), in dB, at least -100; nothing is clipped.

    Args:
        photo: (1, C, H, W) in [0, 1].
    """
    low, high = denoiser.data_range or (0.0, 1.0)
    found = []
    for std in NOISE[:levels]:
        level = denoiser.schedule.at(std * (high - low))
        z = torch.randn(photo.shape, generator=generator_of("self-check")).to(photo)
        x_t = (level.alpha * (low + (high - low) * photo) + level.sigma * z).to(photo)
        with torch.no_grad():
            x0 = (denoiser(x_t, level, clip_x0=False).x0 - low) / (high - low)
        found.append(-20 * ((x0 - photo).square().mean().sqrt() / std).log10())
    return torch.stack(found).nan_to_num(nan=-100.0).clamp(min=-100.0).cpu()


def _best(denoiser: Denoiser, given: Tensor, photo: Tensor) -> tuple[float, Reading | None]:
    """The reading that is most convincingly better than the given one, and by how many dB on
    average; (0, None) if none is."""
    found: list[tuple[float, Reading | None]] = [(0.0, None)]
    for reading in _readings(denoiser):
        try:
            gain = gains(denoiser.read_as(**reading.options), photo, reading.levels)
        except (
            RuntimeError,
            ValueError,
            TypeError,
            IndexError,
        ):  # it cannot be read so: it does not know such times, for example
            continue
        if gain.min() >= AT_LEAST:
            found.append((float(gain.mean() - given[: reading.levels].mean()), reading))
    return max(found, key=lambda pair: pair[0] - (pair[1].margin if pair[1] else 0))


def _readings(denoiser: Denoiser) -> Iterator[Reading]:
    """Other readings of a network: each of the usual schedules with what is predicted on it, in the
    time that such networks count."""
    own = denoiser.schedule
    discrete = isinstance(own, Discrete)
    for predicts in ("eps", "x0", "v", "score", *(() if discrete else ("velocity",))):
        if predicts != denoiser.predicts:
            yield Reading({"predicts": predicts}, f"predicts={predicts!r}")
    T = own.T if isinstance(own, Discrete) else 1000
    counted: dict[str, Any] = {} if discrete else {"time": None}
    for make in (schedules.linear, schedules.cosine, schedules.scaled_linear):
        if isinstance(own, Discrete) and torch.equal(own.ratio, make(T).ratio):
            continue
        for predicts in ("eps", "x0", "v"):
            changed = {} if predicts == denoiser.predicts else {"predicts": predicts}
            text = " and ".join(
                [*(f"predicts={p!r}" for p in changed.values()), f"schedule={make.__name__}({T})"]
            )
            yield Reading(changed | {"schedule": make(T)} | counted, text)
    for text, schedule, predicts, time in (
        ("flow(), time=lambda t: 1000 * t", schedules.flow(), "velocity", lambda t: 1000 * t),
        ("flow()", schedules.flow(), "velocity", None),
        ("edm()", schedules.edm(), "edm", None),
        ("ve(), time=OfLevel(sigma)", schedules.ve(), "score", OfLevel(lambda level: level.sigma)),
    ):
        yield Reading(
            {"predicts": predicts, "schedule": schedule, "time": time},
            f"predicts={predicts!r} and schedule={text}",
        )
    for data_range in RANGES:
        if data_range != denoiser.data_range:
            yield Reading({"data_range": data_range}, f"data_range={data_range}", 2, RANGE_MARGIN)
