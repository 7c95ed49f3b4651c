"""Loops beside the bare evaluations that they need, and beside other packages."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from invdiff.benchmarks.speed.measure import (
    ZETA,
    W,
    bare,
    in_turn,
    measured,
    ours,
    peak_memory_mb,
    ready,
    state,
)
from invdiff.guidance.cfg import CFG
from invdiff.guidance.classifier import ClassifierGuidance
from invdiff.guidance.dps import DPS
from invdiff.guidance.sr3 import SR3
from invdiff.loading.model import load_model


def overhead(rounds: int) -> dict[str, Any]:
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        denoiser = load_model("photo64", dtype=dtype, channels_last=True)
        steps = 10
        for batch in (8, 1):
            x, measurement = state(batch), measured("inpaint", batch)
            seconds = in_turn(
                {
                    "forward": partial(bare, denoiser, x, steps, False),
                    "DDIM": partial(ours, denoiser, x, steps),
                    "forward + backward": partial(bare, denoiser, x, steps, True),
                    "DPS": partial(ours, denoiser, x, steps, DPS(ZETA), measurement),
                },
                rounds,
            )
            found[f"{str(dtype).removeprefix('torch.')}, B = {batch}"] = {
                "DDIM / bare": round(seconds["DDIM"] / seconds["forward"], 3),
                "DPS / bare": round(seconds["DPS"] / seconds["forward + backward"], 3),
                "DPS ms per image and step": round(1000 * seconds["DPS"] / steps / batch, 2),
            }
    return found


def conditional(rounds: int) -> dict[str, Any]:
    found = {}
    steps, digits, photos = 5, state(16, 32, channels=1), state(8)
    for dtype in (torch.float32, torch.bfloat16):
        digits32, sr3x4 = load_model("digits32", dtype=dtype), load_model("sr3x4", dtype=dtype)
        assert digits32.classifier is not None
        label, measurement = torch.arange(16) % 10, measured("sr", 8, factor=4)
        null = digits32.labels(None, 16)
        sr3 = ready(SR3(), sr3x4, photos, measurement)
        assert isinstance(sr3, SR3) and isinstance(sr3.cond, Tensor)
        guided = {
            "CFG, two calls": ready(CFG(label, W, batched=False), digits32, digits),
            "CFG, one call": ready(CFG(label, W), digits32, digits),
            "classifier": ready(ClassifierGuidance(label), digits32, digits),
        }
        contenders: dict[str, Callable[[], Any]] = {
            "label": partial(bare, digits32, digits, steps, False, label=label),
            "null": partial(bare, digits32, digits, steps, False, label=null),
            "both": partial(
                bare,
                digits32,
                torch.cat([digits, digits]),
                steps,
                False,
                label=torch.cat([label, null]),
            ),
            "gradient": partial(bare, digits32.classifier, digits, steps, True),
            "image": partial(bare, sr3x4, torch.cat([sr3.cond, photos], dim=1), steps, False),
            "SR3": partial(ours, sr3x4, photos, steps, sr3, measurement),
        }
        contenders.update(
            {
                name: partial(ours, digits32, digits, steps, guidance)
                for name, guidance in guided.items()
            }
        )
        seconds = in_turn(contenders, rounds)
        two = seconds["label"] + seconds["null"]
        compared = [
            ("CFG, two calls", "two evaluations", two, len(digits)),
            ("CFG, one call", "two evaluations", two, len(digits)),
            ("CFG, one call", "one evaluation of 2 B", seconds["both"], len(digits)),
            (
                "classifier",
                "an evaluation and a gradient of the classifier",
                seconds["null"] + seconds["gradient"],
                len(digits),
            ),
            ("SR3", "one evaluation", seconds["image"], len(photos)),
        ]
        for name, beside, bare_seconds, batch in compared:
            found[f"{name} / {beside}, {str(dtype).removeprefix('torch.')}"] = {
                "ratio": round(seconds[name] / bare_seconds, 3),
                "ms per image and step": round(1000 * seconds[name] / steps / batch, 2),
                "bare ms": round(1000 * bare_seconds / steps / batch, 2),
            }
    return found


def peers(rounds: int) -> dict[str, Any]:
    import deepinv
    from azula.denoise import Denoiser as AzulaDenoiser
    from azula.denoise import DiracPosterior
    from azula.guidance.dps import DPSSampler
    from azula.noise import VPSchedule

    steps, batch = 10, 8
    denoiser = load_model("photo64", channels_last=True)
    fast = load_model("photo64", channels_last=True, dtype=torch.bfloat16)
    net, ratio = denoiser.net, denoiser.schedule.ratio  # type: ignore[attr-defined]
    measurement, x = measured("inpaint", batch), state(batch)
    mask = measurement.operator.state["mask"].float()

    def x0_of(x_ve: Tensor, noise: Tensor) -> Tensor:
        """The same network as a denoiser of x + noise n, by the nearest of its own times, as both
        peers' users write it."""
        alpha = (1 + noise**2).rsqrt()
        t = torch.searchsorted(ratio, noise.double().reshape(1)).clamp(max=999)
        eps = net(
            (alpha * x_ve).to(torch.float32).contiguous(memory_format=torch.channels_last),
            t.expand(len(x_ve)),
        )
        return (x_ve - noise * eps).clamp(-1, 1)

    class ForDeepinv(deepinv.models.Denoiser):
        def forward(self, x: Tensor, sigma: Any, *args: Any, **kwargs: Any) -> Tensor:
            return (x0_of(2 * x - 1, 2 * torch.as_tensor(sigma).flatten()[0]) + 1) / 2

    class ForAzula(AzulaDenoiser):
        schedule = VPSchedule(alpha_min=6.35e-3, sigma_min=1e-2)

        def forward(self, x_t: Tensor, t: Tensor, **kwargs: Any) -> DiracPosterior:
            alpha, sigma = self.schedule(t)
            return DiracPosterior(mean=x0_of(x_t / alpha, sigma / alpha))

    physics = deepinv.physics.Inpainting((3, 64, 64), mask=mask.expand(3, 64, 64))
    theirs = deepinv.sampling.DPS(
        ForDeepinv(), num_steps=steps + 1, dtype=torch.float32
    )  # time points, one more than steps
    azula = DPSSampler(
        ForAzula(), measurement.y, lambda x: mask * x, zeta=ZETA, steps=steps, silent=True
    )
    y01 = (measurement.y + mask) / 2
    contenders: dict[str, Callable[[], Any]] = {
        "invdiff, float32": lambda: ours(denoiser, x, steps, DPS(ZETA), measurement),
        "invdiff, bfloat16": lambda: ours(fast, x, steps, DPS(ZETA), measurement),
        "azula 0.11, float32": lambda: azula(x),
        "deepinv 0.5, float32": lambda: theirs(y01, physics),
    }
    seconds = in_turn(contenders, rounds)
    memory = {name: peak_memory_mb(run) for name, run in contenders.items()}
    reference = seconds["invdiff, float32"]
    return {
        name: {
            "seconds per image": round(s / batch, 4),
            "x invdiff float32": round(s / reference, 3),
            "peak MB": memory[name],
        }
        for name, s in seconds.items()
    }
