"""The cost of the framework: every figure is a ratio of things measured side by side, in turn, in
this one run.

    python -m invdiff.benchmarks.speed [--output FOLDER] [--only overhead conditional free peers
    operators solvers tiled windows]

overhead     DPS and DDIM loops beside the bare network evaluations they need (64x64, B = 8; and B =
             1 beside 8).
conditional  likewise CFG, its branches in two calls or in one, and classifier guidance (digits,
32x32, B = 16), and SR3 (64x64, B = 8).
free       steps of DDIM, DPS, DiffPIR, RED-diff, DDRM, DDNM and CFG with a network that costs
           nothing, beside the same updates written by hand in a few lines of torch (B = 1 and 8).
tiled      what a step on a large image in windows allocates, beside one on an image of a single
           window; windows against whole.
windows    the time of 256x256 in tiles of 128 over that of the whole.
peers      whole DPS runs beside deepinv's and azula's, same network, steps, images and threads;
           time and peak memory.
operators  pseudo-inverses of 4x3x256x256.
solvers    conjugate gradients beside deepinv's on the same system; calls of A by DiffPIR on CT.

Close other programs first: two busy cores make the ratios noisy. Medians over the rounds,
contenders taking turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from invdiff import schedules
from invdiff.benchmarks import by_hand
from invdiff.benchmarks.tables import markdown
from invdiff.files import write_atomically
from invdiff.guidance.cfg import CFG
from invdiff.guidance.classifier import ClassifierGuidance
from invdiff.guidance.dps import DPS
from invdiff.guidance.sr3 import SR3
from invdiff.itineraries import Straight
from invdiff.loading.model import load_model
from invdiff.network import Denoiser, NoisyClassifier
from invdiff.noise import NoiseSource
from invdiff.problem import LinearOperator, Measurement, make_operator
from invdiff.sampling import Guidance, Setting, make_method, sample
from invdiff.schedules import Level
from invdiff.solving import solve as solve_
from invdiff.solving.plan import complete
from invdiff.transitions import DDIM, DDPM

ZETA, W = 1.0, 2.0


def in_turn(contenders: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
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
        autocast, channels_last = partial(denoiser._autocast, "cpu"), denoiser.channels_last
    for level in Straight()(denoiser.schedule, steps)[:-1]:
        t = torch.full((len(x),), float(level.t))
        with torch.set_grad_enabled(backward), autocast():
            x_t = x.detach().requires_grad_(backward)
            x_in = x_t.contiguous(memory_format=torch.channels_last) if channels_last else x_t
            out = denoiser.net(x_in, t, **cond)
        if backward:
            torch.autograd.grad(out, x_t, torch.ones_like(out))


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


def whole(
    method: Any, denoiser: Denoiser, x: Tensor, steps: int, measurement: Measurement | None = None
) -> tuple[Callable[[], Tensor], list[Level]]:
    """A method as ``solve`` runs it once everything is checked, from x; and the levels that it
    visits."""
    plan = complete(method)
    levels = plan.itinerary(denoiser.schedule, steps)
    setting = Setting(denoiser, tuple(x.shape), measurement, {}, x.device, x.dtype)
    bound = plan.bind(setting)
    return (
        lambda: sample(
            denoiser,
            x,
            levels,
            schedule=denoiser.schedule,
            noise=NoiseSource(range(len(x))),
            transition=bound.transition,
            guidance=bound.chain,
            measurement=measurement,
        ),
        levels,
    )


def with_noise(
    hand: Callable[..., Tensor], net: by_hand.Net, x: Tensor, steps: Sequence[by_hand.Pair]
) -> Tensor:
    """An update by hand with the framework's noise."""
    return hand(net, NoiseSource(range(len(x))).randn_like, x, steps)


GOALS: dict[str, dict[int, float]] = {
    "DPS": {1: 1.2, 8: 1.1},
    "DDRM": {1: 2.0},
    "DDNM": {1: 2.0},
} | {name: {1: 1.5} for name in ("DiffPIR", "RED-diff", "DDIM")}
"""Most that a step may cost over the same update by hand, by the size of the batch."""


def deepinvs_ddrm(
    denoiser: Denoiser, y: Tensor, mask: Tensor, sigma: float, steps: int
) -> Callable[[], Tensor]:
    """deepinv's DDRM under the network of :func:`free`, over the same levels."""
    import deepinv

    ratios = [float(level.ratio) for level in Straight()(denoiser.schedule, steps)[:-1]]

    class Free(deepinv.models.Denoiser):
        def forward(self, x: Tensor, sigma: Any, *args: Any, **kwargs: Any) -> Tensor:
            return x - sigma * (0.5 * x)

    noise = deepinv.physics.GaussianNoise(sigma=sigma)
    shape = tuple(y.shape[1:])
    physics = deepinv.physics.Inpainting(shape, mask=mask.expand(shape), noise_model=noise)
    model = deepinv.sampling.DDRM(Free(), sigmas=ratios)
    return lambda: model(y, physics)


def free(rounds: int) -> dict[str, Any]:
    """The network is one multiplication, so everything else is what is measured."""
    steps, found = 100, dict[str, Any]()

    def net(x: Tensor) -> Tensor:
        return 0.5 * x

    denoiser = Denoiser(lambda x, t: net(x), predicts="eps", schedule=schedules.linear(1000))
    classes = Denoiser(
        lambda x, t, label: net(x), predicts="eps", schedule=denoiser.schedule, num_classes=10
    )
    for batch in (1, 8):
        measurement, x = measured("inpaint", batch), state(batch)
        y, mask = measurement.y, measurement.operator.state["mask"].float()
        sigma = measurement.sigma
        assert isinstance(sigma, float)
        methods: dict[str, tuple[Any, Callable[..., Tensor]]] = {
            "DDIM": (DDIM(), by_hand.ddim),
            "DPS": (DPS(ZETA), partial(by_hand.dps, y=y, mask=mask, zeta=ZETA)),
            "DiffPIR": ("diffpir", partial(by_hand.diffpir, y=y, mask=mask, sigma=sigma)),
            "RED-diff": ("reddiff", partial(by_hand.reddiff, y=y, mask=mask)),
            "DDRM": ("ddrm", partial(by_hand.ddrm, y=y, mask=mask, sigma=sigma)),
            "DDNM": ("ddnm", partial(by_hand.ddnm, y=y, mask=mask, sigma=sigma)),
        }
        methods |= {
            f"CFG, {calls}": (CFG(7, W, batched=batched), partial(by_hand.cfg, w=W))
            for calls, batched in (("two calls", False), ("one call", True))
        }
        contenders: dict[str, Callable[[], Any]] = {}
        for name, (method, hand) in methods.items():
            wrapped = classes if name.startswith("CFG") else denoiser
            given = None if wrapped is classes or name == "DDIM" else measurement
            contenders[name], levels = whole(make_method(method), wrapped, x, steps, given)
            taken = by_hand.pairs(levels)
            contenders[f"{name}, hand"] = partial(hand, net, torch.randn_like, x, taken)
            contenders[f"{name}, same noise"] = partial(with_noise, hand, net, x, taken)
        contenders["deepinv's DDRM"] = deepinvs_ddrm(denoiser, y, mask, sigma, steps)
        seconds = in_turn(contenders, rounds)
        found[f"DDRM over deepinv 0.5's, B = {batch}"] = {
            "over it": round(seconds["DDRM"] / seconds["deepinv's DDRM"], 2),
            "goal": 0.8,
        }
        for name in methods:
            found[f"{name}, B = {batch}"] = {
                "over by hand": round(seconds[name] / seconds[f"{name}, hand"], 2),
                "goal": GOALS[name].get(batch, "") if name in GOALS else "",
                "over by hand with our noise": round(
                    seconds[name] / seconds[f"{name}, same noise"], 2
                ),
                "ms per step": round(1000 * seconds[name] / steps, 3),
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


def operators(rounds: int) -> dict[str, Any]:
    found = {}
    for name, parameters in (
        ("sr", {"factor": 4}),
        ("blur", {"kernel": "gaussian", "sigma": 2.0}),
        ("inpaint", {}),
        ("colorize", {}),
    ):
        operator = make_operator(name, **parameters).bind((3, 256, 256))
        assert isinstance(operator, LinearOperator)
        y = operator(state(4, 256))
        found[f"{name} pinv, ms"] = round(
            1000 * in_turn({"pinv": partial(operator.pinv, y)}, 5 * rounds)["pinv"], 2
        )
    return found


def solvers(rounds: int) -> dict[str, Any]:
    """One system, A* A + ridge of a motion blur with a reflecting border (4x3x256x256), by ours and
    by deepinv's conjugate gradients; and how often DiffPIR applies A of CT."""
    import deepinv
    from deepinv.optim.linear import conjugate_gradient as theirs

    found: dict[str, Any] = {}
    operator = make_operator("blur", kernel="motion", border="reflect").bind((3, 256, 256))
    assert isinstance(operator, LinearOperator)
    y = operator(state(4, 256).sigmoid())
    b = operator.adjoint(y)
    for ridge, goal in ((0.0, 0.4), (0.1, "")):

        def normal(x: Tensor, ridge: float = ridge) -> Tensor:
            return operator.adjoint(operator(x)) + ridge * x

        contenders: dict[str, Callable[[], Tensor]] = {
            "invdiff": partial(operator.pinv, y, ridge),
            "deepinv 0.5": partial(theirs, normal, b, max_iter=100, tol=1e-6),
        }
        seconds = in_turn(contenders, rounds)
        for name, solve in contenders.items():
            left = (b - normal(solve())).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)
            found[f"motion blur, ridge {ridge:g}, {name}"] = {
                "seconds": round(seconds[name], 3),
                "goal": goal if name == "invdiff" else "",
                "relative residual": f"{float(left.max()):.1e}",
            }
    physics = deepinv.physics.Tomography(angles=30, img_width=64, circle=False)
    measurement = make_operator(physics).measure(state(2).sigmoid(), sigma=0.05)
    denoiser, calls = load_model("photo64", channels_last=True), 0
    applied = type(measurement.operator)._forward

    def counted(self: Any, x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return applied(self, x)

    with mock.patch.object(type(measurement.operator), "_forward", counted):
        solve_(measurement, denoiser, "diffpir", steps=8)
    found["DiffPIR on CT, 8 steps"] = {"calls of A": calls, "goal": 150}
    return found


def tiled(rounds: int) -> dict[str, Any]:
    denoiser = load_model("photo64", channels_last=True, tile=512, tile_overlap=64)
    found: dict[str, Any] = {}
    for name, guidance in (("DDIM", None), ("DPS", DPS(ZETA))):
        steps = [
            partial(ours, denoiser, state(1, side), 1, guidance, measured("inpaint", 1, side))
            for side in (512, 2048)
        ]
        small, large = (
            peak_memory_mb(step, warm_up=steps[0]) for step in steps
        )  # the large one takes minutes
        found[f"{name} step, 512x512 windows"] = {
            "MB at 512x512": small,
            "MB at 2048x2048": large,
            "ratio": round(large / small, 2),
        }
    x_t, level = state(1, 512), denoiser.schedule(200)
    windows: dict[str, Any] = {"tile": 256, "tile_overlap": 64}
    whole, cut = (
        load_model("photo64", channels_last=True, **options)(x_t, level).x0
        for options in ({}, windows)
    )
    error = (whole - cut).square().mean().sqrt() / 2
    found["512x512 in windows of 256x256"] = {
        "difference to whole, RMS in [0, 1]": round(float(error), 5)
    }
    return found


def windows(rounds: int) -> dict[str, Any]:
    """256x256 in tiles of 128 beside the whole."""
    x, measurement = state(1, 256), measured("inpaint", 1, 256)
    contenders: dict[str, Callable[[], Any]] = {}
    for name, tile in (("whole", None), ("tiles", 128)):
        denoiser = load_model("photo64", tile=tile)
        contenders[f"DDIM, {name}"] = partial(ours, denoiser, x, 1)
        contenders[f"DPS, {name}"] = partial(ours, denoiser, x, 1, DPS(ZETA), measurement)
    seconds = in_turn(contenders, rounds)
    return {
        f"256x256 in tiles of 128, {name}": {
            "time over the whole": round(seconds[f"{name}, tiles"] / seconds[f"{name}, whole"], 2),
            "goal": goal,
        }
        for name, goal in (("DDIM", 1.5), ("DPS", 1.8))
    }


PARTS = {
    "overhead": overhead,
    "conditional": conditional,
    "free": free,
    "peers": peers,
    "operators": operators,
    "solvers": solvers,
    "tiled": tiled,
    "windows": windows,
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m invdiff.benchmarks.speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
        rows = [
            {part: name, **(figures if isinstance(figures, dict) else {"measured": figures})}
            for name, figures in found[part].items()
        ]
        print(f"{markdown(rows)}\n", flush=True)
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        write_atomically(args.output / "speed.json", json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
