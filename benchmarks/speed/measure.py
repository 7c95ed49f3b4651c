"""Contenders that take turns, and what they are given."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invdiff.itineraries import Straight
from invdiff.network import Denoiser, NoisyClassifier
from invdiff.noise import NoiseSource
from invdiff.problem import Measurement, make_operator
from invdiff.sampling import Guidance, Setting, sample
from invdiff.transitions import DDIM, DDPM

ZETA, W = 1.0, 2.0


def in_turn(contenders: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each contender; one unmeasured round first, then ``rounds`` in which all
    take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for round_ in range(rounds + 1):
        for name, run in contenders.items():
            begun = time.perf_counter()
            run()
            if round_ > 0:
                seconds[name].append(time.perf_counter() - begun)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_memory_mb(run: Callable[[], Any], warm_up: Callable[[], Any] | None = None) -> float:
    """The peak memory that a call allocates, from the process's resident size (Linux). What is
    allocated once and kept is left out by a call before it, by default the same."""

    def status(key: str) -> float:
        line = next(
            row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(key)
        )
        return int(line.split()[1]) / 1024

    (warm_up or run)()
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = status("VmRSS")
    run()
    return round(status("VmHWM") - before, 1)


def state(batch: int, size: int = 64, channels: int = 3) -> Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(0))


def measured(operator: str, batch: int, size: int = 64, **parameters: Any) -> Measurement:
    """By default 70 % of the pixels missing or four times smaller, in the network's range."""
    photo = state(batch, size).sigmoid()
    return make_operator(operator, **parameters).measure(photo, sigma=0.025).to_range(-1, 1)


def ready(
    guidance: Guidance, denoiser: Denoiser, x: Tensor, measurement: Measurement | None = None
) -> Guidance:
    """Made ready for a run from x, as ``solve`` does once before it samples."""
    return guidance.bind(Setting(denoiser, tuple(x.shape), measurement, {}, x.device, x.dtype))


def ours(
    denoiser: Denoiser,
    x: Tensor,
    steps: int,
    guidance: Guidance | None = None,
    measurement: Measurement | None = None,
) -> Tensor:
    """Ancestral under guidance, DDIM without."""
    levels = Straight()(denoiser.schedule, steps)
    noise = NoiseSource(range(len(x)))
    chain, transition = ([guidance], DDPM()) if guidance else ([], DDIM())
    return sample(
        denoiser,
        x,
        levels,
        schedule=denoiser.schedule,
        noise=noise,
        transition=transition,
        guidance=chain,
        measurement=measurement,
    )


def bare(
    denoiser: Denoiser | NoisyClassifier, x: Tensor, steps: int, backward: bool, **cond: Tensor
) -> None:
    """Nothing but the network's evaluations."""
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    channels_last = False
    if isinstance(denoiser, Denoiser):
        autocast = partial(denoiser._autocast, x.device.type)
        channels_last = denoiser.channels_last
    for level in Straight()(denoiser.schedule, steps)[:-1]:
        t = torch.full((len(x),), float(level.t), device=x.device)
        with torch.set_grad_enabled(backward), autocast():
            x_t = x.detach().requires_grad_(backward)
            x_in = x_t.contiguous(memory_format=torch.channels_last) if channels_last else x_t
            out = denoiser.net(x_in, t, **cond)
        if backward:
            torch.autograd.grad(out, x_t, torch.ones_like(out))
