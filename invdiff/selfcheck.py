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
READINGS = ("eps", "x0", "v", "score")


def self_check(denoiser: Denoiser) -> list[str]:
    """What is probably wrong with the reading of an image network, a sentence each; empty where nothing is.

    About thirty evaluations at 64x64. Networks that cannot be asked are not checked: without an image range, with image
    conditions, with labels but no null class, of other than 1 or 3 channels.
    """
    if denoiser.data_range is None or denoiser.channels not in (1, 3) or denoiser.cond_channels is not None:
        return []
    if denoiser.num_classes is not None and denoiser.null_label is None:
        return []
    return [found for found in (_wrong_reading(denoiser), _wrong_range(denoiser)) if found is not None]


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
    photo = sample_photo(min(denoiser.image_size or 64, 64))[0].to(denoiser.device or "cpu")
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
    side = min(denoiser.image_size or 64, 64)
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
