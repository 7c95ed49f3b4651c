"""Inverses of operators, and images in windows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

from torch import Tensor

from invdiff.benchmarks.speed.measure import ZETA, in_turn, measured, ours, peak_memory_mb, state
from invdiff.guidance.dps import DPS
from invdiff.loading.model import load_model
from invdiff.problem import LinearOperator, make_operator
from invdiff.solving import solve as solve_


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
