"""Is a network read rightly? Asked to denoise a photograph and to make images up, it tells a wrong ``predicts``, schedule or range."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from invdiff import schedules
from invdiff.denoiser import Denoiser
from invdiff.images import sample_photo
from invdiff.noise import NoiseSource, generator_of, seed_of
from invdiff.sampling import sample
from invdiff.transitions import DDIM

NOISE = (0.05, 0.2, 1.0)
"""Standard deviations at which the photograph is denoised, in units of [0, 1]."""
AT_LEAST = 3.0
"""What a network of photographs that is read rightly gains over each noisy photograph, in dB."""
MARGIN = 0.7
"""By how much, on average over :data:`NOISE`, another reading must be better before it is proposed, in dB."""
LARGEST = 256
"""Side of the shipped photograph."""
READINGS = ("eps", "x0", "v", "score")


def self_check(denoiser: Denoiser) -> list[str]:
    """What is probably wrong with the reading of an image network, a sentence each; empty where nothing is.

    It costs about seventy evaluations of a 64x64 image, or of the only size that an exported network takes. What cannot be asked is not checked,
    see :func:`why_unchecked`.
    """
    if why_unchecked(denoiser) is not None:
        return []
    try:
        return [found for found in (_wrong_reading(denoiser), _wrong_range(denoiser)) if found is not None]
    except (RuntimeError, ValueError, TypeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return [f"{denoiser.name} could not be checked, it fails at {_side(denoiser)}x{_side(denoiser)}: {first}"]


def why_unchecked(denoiser: Denoiser) -> str | None:
    """Why a network cannot be asked to denoise a photograph; None where it can."""
    if denoiser.autoencoder is not None or denoiser.data_range is None:
        return "its states are not images"
    if denoiser.channels not in (1, 3):
        return f"it is not known to work on grey or colour images (channels={denoiser.channels})"
    if denoiser.cond_channels is not None or denoiser.required:
        return f"it needs conditions ({', '.join(denoiser.required) or 'an image'})"
    if denoiser.num_classes is not None and denoiser.null_label is None:
        return "it needs a label"
    if not denoiser.schedule.from_noise:
        return "it cannot start from noise"
    fixed = getattr(denoiser.net, "fixed_size", None)
    if fixed is not None and (fixed[0] != fixed[1] or fixed[0] > LARGEST):
        return f"it takes images of {fixed[0]}x{fixed[1]} only"
    return None


def _side(denoiser: Denoiser) -> int:
    """The side of the images it is asked with."""
    fixed = getattr(denoiser.net, "fixed_size", None)
    return min(denoiser.image_size or 64, 64) if fixed is None else fixed[0]


def gains(denoiser: Denoiser, photo: Tensor) -> Tensor:
    """What denoising gains over the noisy photograph at each of :data:`NOISE`, in dB.

    Args:
        photo: (1, C, H, W) in [0, 1].
    """
    low, high = denoiser.data_range or (0.0, 1.0)
    found = []
    for std in NOISE:
        level = denoiser.schedule.at(std * (high - low))
        z = torch.randn(photo.shape, generator=generator_of("self-check")).to(photo)
        x_t = (level.alpha * (low + (high - low) * photo) + level.sigma * z).to(photo)
        with torch.no_grad():
            x0 = (denoiser(x_t, level).x0 - low) / (high - low)
        found.append(-20 * ((x0 - photo).square().mean().sqrt() / std).log10())
    return torch.stack(found).nan_to_num(nan=-torch.inf).cpu()


def _wrong_reading(denoiser: Denoiser) -> str | None:
    photo = sample_photo(_side(denoiser))[0].to(denoiser.device or "cpu")
    photo = photo.mean(dim=1, keepdim=True) if denoiser.channels == 1 else photo
    changes: list[dict[str, Any]] = [{"predicts": p} for p in READINGS if p != denoiser.predicts]
    if isinstance(denoiser.schedule, schedules.Discrete):
        T = denoiser.schedule.T
        changes += [{"schedule": make(T)} for make in (schedules.linear, schedules.cosine, schedules.scaled_linear)]
    given = gains(denoiser, photo)
    tried = [(gains(denoiser.read_as(**change), photo), change) for change in changes]
    best, change = max(tried, key=lambda found: float(found[0].mean()))
    if best.min() < AT_LEAST or best.mean() < given.mean() + MARGIN:
        return None  # it is read well, or is a network of something else than photographs
    ((name, value),) = change.items()
    what = f"predicts={value!r}" if name == "predicts" else "another noise schedule"
    return (
        f"{denoiser.name} denoises a photograph by {given.mean():.1f} dB on average as it is read, with {what} by {best.mean():.1f} dB; "
        f"is its {name} right?"
    )


def _wrong_range(denoiser: Denoiser) -> str | None:
    """A network denoises well in half of its range too, but the images it makes up fill its own."""
    side = _side(denoiser)
    free = denoiser.read_as(clip=False)
    low, high = denoiser.data_range or (0.0, 1.0)
    # Not from the noisiest level, whose unclipped x0 is the network's error a hundredfold.
    levels = [free.schedule.at(r) for r in (5 * (high - low) * torch.logspace(0, -2.5, 12, dtype=torch.float64))]
    levels.append(free.schedule(free.schedule.clean))
    noise = NoiseSource([seed_of("self-check", k) for k in range(4)], free.device or "cpu")
    x = float(levels[0].sigma) * noise.randn_like(torch.empty(4, denoiser.channels or 3, side, side, device=noise.device))
    made = sample(free, x, levels, schedule=free.schedule, noise=noise, transition=DDIM())
    least, most = made.flatten().quantile(torch.tensor([0.02, 0.98], device=made.device)).tolist()
    slack, middle = 0.1 * (high - low), (low + high) / 2
    if low - slack <= least <= middle <= most <= high + slack:
        return None
    return (
        f"images that {denoiser.name} makes up reach from {least:.2g} to {most:.2g}, which leaves its data_range={denoiser.data_range} or a "
        "half of it unused; (-1, 1) and (0, 1) are the usual ones"
    )
