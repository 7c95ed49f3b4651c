"""What the framework costs: every figure is a ratio of things measured side by side, in turn, in this one run.

    python -m invdiff.benchmarks.speed [--output FOLDER] [--only overhead free peers operators]

overhead   DPS and DDIM loops beside the bare network evaluations they need (64x64, B = 8; and B = 1 beside 8).
free       a DPS step with a network that costs nothing, beside the same update written by hand in six lines of torch.
peers      whole DPS runs beside deepinv's and azula's, same network, steps, images and threads; time and peak memory.
operators  pseudo-inverses of 4x3x256x256.

Close other programs first: two busy cores make the ratios noisy. Medians over the rounds, contenders taking turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invdiff import schedules
from invdiff.denoiser import Denoiser
from invdiff.files import write_atomically
from invdiff.guidance.dps import DPS
from invdiff.itineraries import Straight
from invdiff.measurement import Measurement
from invdiff.noise import NoiseSource
from invdiff.operator import LinearOperator
from invdiff.registry import load_model, make_operator
from invdiff.sampling import sample
from invdiff.transitions import DDIM, DDPM

ZETA = 1.0


def in_turn(contenders: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each contender; one unmeasured round first, then ``rounds`` in which all take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for round_ in range(rounds + 1):
        for name, run in contenders.items():
            begun = time.perf_counter()
            run()
            if round_ > 0:
                seconds[name].append(time.perf_counter() - begun)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_memory_mb(run: Callable[[], Any]) -> float:
    """What a call allocates at its peak, from the process's resident size (Linux)."""

    def status(key: str) -> float:
        line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(key))
        return int(line.split()[1]) / 1024

    run()
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = status("VmRSS")
    run()
    return round(status("VmHWM") - before, 1)


def state(batch: int, size: int = 64) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def inpainting(batch: int, size: int = 64) -> Measurement:
    """70 % of the pixels missing, in the network's range."""
    photo = state(batch, size).sigmoid()
    return make_operator("inpaint").measure(photo, sigma=0.025).to_range(-1, 1)


def ours(denoiser: Denoiser, measurement: Measurement | None, x: Tensor, steps: int, guided: bool) -> Tensor:
    levels = Straight()(denoiser.schedule, steps)
    noise = NoiseSource(range(len(x)))
    guidance, transition = ([DPS(ZETA)], DDPM()) if guided else ([], DDIM())
    return sample(
        denoiser, x, levels, schedule=denoiser.schedule, noise=noise, transition=transition, guidance=guidance, measurement=measurement
    )


def bare(denoiser: Denoiser, x: Tensor, steps: int, backward: bool) -> None:
    """Nothing but the network's evaluations."""
    times = Straight()(denoiser.schedule, steps)[:-1]
    for level in times:
        t = torch.full((len(x),), float(level.t))
        with torch.set_grad_enabled(backward), denoiser._autocast("cpu"):
            x_t = x.detach().requires_grad_(backward)
            x_in = x_t.contiguous(memory_format=torch.channels_last) if denoiser.channels_last else x_t
            out = denoiser.net(x_in, t)
        if backward:
            torch.autograd.grad(out, x_t, torch.ones_like(out))


def overhead(rounds: int) -> dict[str, Any]:
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        denoiser = load_model("photo64", dtype=dtype, channels_last=True)
        steps = 10
        for batch in (8, 1):
            x, measurement = state(batch), inpainting(batch)
            seconds = in_turn(
                {
                    "forward": partial(bare, denoiser, x, steps, False),
                    "DDIM": partial(ours, denoiser, None, x, steps, False),
                    "forward + backward": partial(bare, denoiser, x, steps, True),
                    "DPS": partial(ours, denoiser, measurement, x, steps, True),
                },
                rounds,
            )
            found[f"{str(dtype).removeprefix('torch.')}, B = {batch}"] = {
                "DDIM / bare": round(seconds["DDIM"] / seconds["forward"], 3),
                "DPS / bare": round(seconds["DPS"] / seconds["forward + backward"], 3),
                "DPS ms per image and step": round(1000 * seconds["DPS"] / steps / batch, 2),
            }
    return found


def free(rounds: int) -> dict[str, Any]:
    """The network is one multiplication, so everything else is what is measured."""
    steps, batch = 100, 8
    denoiser = Denoiser(lambda x, t: 0.5 * x, predicts="eps", schedule=schedules.linear(1000))
    measurement, x = inpainting(batch), state(batch)
    levels = Straight()(denoiser.schedule, steps)
    y, mask = measurement.y, measurement.operator.state["mask"].float()
    pairs = [(float(t.alpha), float(t.sigma), float(s.alpha), float(s.sigma)) for t, s in zip(levels[:-1], levels[1:], strict=True)]

    def by_hand() -> Tensor:
        x_t = x
        for a_t, s_t, a_s, s_s in pairs:
            x_t = x_t.detach().requires_grad_()
            eps = 0.5 * x_t
            x0 = (x_t - s_t * eps) / a_t
            grad = torch.autograd.grad((y - mask * x0).flatten(1).norm(dim=1).sum(), x_t)[0]
            std = s_s / s_t * max(s_t**2 - (a_t / a_s * s_s) ** 2, 0) ** 0.5
            x_t = (a_s * x0 + max(s_s**2 - std**2, 0) ** 0.5 * eps + std * torch.randn_like(x_t) - ZETA * grad).detach()
        return x_t

    seconds = in_turn({"ours": lambda: ours(denoiser, measurement, x, steps, True), "by hand": by_hand}, rounds)
    return {
        "DPS step / by hand": round(seconds["ours"] / seconds["by hand"], 3),
        "ms per step": {k: round(1000 * v / steps, 3) for k, v in seconds.items()},
    }


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
    measurement, x = inpainting(batch), state(batch)
    mask = measurement.operator.state["mask"].float()

    def x0_of(x_ve: Tensor, noise: Tensor) -> Tensor:
        """The same network as a denoiser of x + noise n, by the nearest of its own times, as both peers' users write it."""
        alpha = (1 + noise**2).rsqrt()
        t = torch.searchsorted(ratio, noise.double().reshape(1)).clamp(max=999)
        eps = net((alpha * x_ve).to(torch.float32).contiguous(memory_format=torch.channels_last), t.expand(len(x_ve)))
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
    theirs = deepinv.sampling.DPS(ForDeepinv(), num_steps=steps + 1, dtype=torch.float32)  # time points, one more than steps
    azula = DPSSampler(ForAzula(), measurement.y, lambda x: mask * x, zeta=ZETA, steps=steps, silent=True)
    y01 = (measurement.y + mask) / 2
    contenders: dict[str, Callable[[], Any]] = {
        "invdiff, float32": lambda: ours(denoiser, measurement, x, steps, True),
        "invdiff, bfloat16": lambda: ours(fast, measurement, x, steps, True),
        "azula 0.11, float32": lambda: azula(x),
        "deepinv 0.5, float32": lambda: theirs(y01, physics),
    }
    seconds = in_turn(contenders, rounds)
    memory = {name: peak_memory_mb(run) for name, run in contenders.items()}
    reference = seconds["invdiff, float32"]
    return {
        name: {"seconds per image": round(s / batch, 4), "x invdiff float32": round(s / reference, 3), "peak MB": memory[name]}
        for name, s in seconds.items()
    }


def operators(rounds: int) -> dict[str, Any]:
    found = {}
    for name, parameters in (("sr", {"factor": 4}), ("blur", {"kernel": "gaussian", "sigma": 2.0}), ("inpaint", {}), ("colorize", {})):
        operator = make_operator(name, **parameters).bind((3, 256, 256))
        assert isinstance(operator, LinearOperator)
        y = operator(state(4, 256))
        found[f"{name} pinv, ms"] = round(1000 * in_turn({"pinv": partial(operator.pinv, y)}, 5 * rounds)["pinv"], 2)
    return found


PARTS = {"overhead": overhead, "free": free, "peers": peers, "operators": operators}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m invdiff.benchmarks.speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="folder for speed.json")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    found: dict[str, Any] = {"threads": args.threads, "torch": torch.__version__}
    for part in args.only:
        found[part] = PARTS[part](args.rounds)
        print(json.dumps({part: found[part]}, indent=2), flush=True)
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        write_atomically(args.output / "speed.json", json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
