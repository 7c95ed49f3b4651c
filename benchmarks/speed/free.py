"""Steps with a network that costs nothing beside the same updates by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from invdiff import schedules
from invdiff.benchmarks import by_hand
from invdiff.benchmarks.speed.measure import ZETA, W, in_turn, measured, state
from invdiff.guidance.cfg import CFG
from invdiff.guidance.dps import DPS
from invdiff.itineraries import Straight
from invdiff.network import Denoiser
from invdiff.noise import NoiseSource
from invdiff.problem import Measurement
from invdiff.sampling import Setting, make_method, sample
from invdiff.schedules import Level
from invdiff.solving.plan import complete
from invdiff.transitions import DDIM

GOALS: dict[str, dict[int, float]] = {
    "DPS": {1: 1.2, 8: 1.1},
    "DDRM": {1: 2.0},
    "DDNM": {1: 2.0},
} | {name: {1: 1.5} for name in ("DiffPIR", "RED-diff", "DDIM")}
"""Most that a step may cost over the same update by hand, by the size of the batch."""


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
