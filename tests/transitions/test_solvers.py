"""Multistep solvers: diffusers' schedulers and k-diffusion's formulas from the same noise, and
orders of convergence on an exact probability flow."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import (
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    LMSDiscreteScheduler,
    UniPCMultistepScheduler,
)
from oracles import D, Given, NoNoise, OneStream, correlated, in_double, rand
from torch import Tensor

from invdiff import schedules
from invdiff.network import Denoiser, Prediction
from invdiff.sampling import StatefulTransition, Step, Transition, sample
from invdiff.schedules import Level, Schedule
from invdiff.solving import invert
from invdiff.transitions import DEIS, LMS, DPMSolver, DPMSolver3M, UniPC
from invdiff.transitions.multistep import Node
from invdiff.transitions.unipc import Made

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS = 20  # from 15 on, diffusers' multistep schedulers end at full order


def toy_eps(x: Tensor, t: Tensor) -> Tensor:
    """Any smooth function of x and t serves where two samplers see the same network."""
    return torch.tanh(x * (1 + t.view(-1, *(1,) * (x.ndim - 1)).to(x) / 1000)) + 0.1 * x


def run(transition: Transition, levels: list[Level], x: Tensor, noise: Any = None) -> Tensor:
    schedule = schedules.linear()
    denoiser = Denoiser(toy_eps, schedule=schedule, dtype=D)
    noise = noise or NoNoise()
    return sample(denoiser, x, levels, schedule=schedule, noise=noise, transition=transition)


def levels_of(scheduler: Any) -> list[Level]:
    schedule, end = schedules.linear(), float(scheduler.sigmas[-1])
    return [
        *(schedule(float(t)) for t in scheduler.timesteps),
        schedule.at(end) if end else schedule(schedule.clean),
    ]


def their_run(scheduler: Any, x: Tensor, **more: Any) -> Tensor:
    for t in scheduler.timesteps:
        shown = scheduler.scale_model_input(x, t)
        eps = toy_eps(shown, torch.as_tensor(t).expand(len(x)))
        x = scheduler.step(eps, t, x, return_dict=False, **more)[0]
    return x


@pytest.mark.parametrize(
    ("transition", "cls", "options"),
    [
        (DEIS(1), DEISMultistepScheduler, {"solver_order": 1}),
        (DEIS(2), DEISMultistepScheduler, {"solver_order": 2}),
        (DEIS(3), DEISMultistepScheduler, {"solver_order": 3}),
        (UniPC(1), UniPCMultistepScheduler, {"solver_order": 1}),
        (UniPC(2), UniPCMultistepScheduler, {"solver_order": 2}),
        (UniPC(3), UniPCMultistepScheduler, {"solver_order": 3}),
        (
            UniPC(3, "bh1"),
            UniPCMultistepScheduler,
            {"solver_order": 3, "solver_type": "bh1", "final_sigmas_type": "sigma_min"},
        ),
        (
            DPMSolver3M(exact_curvature=False),
            DPMSolverMultistepScheduler,
            {"solver_order": 3, "solver_type": "heun"},
        ),
    ],
    ids=repr,
)
def test_solvers_of_diffusers(transition: Transition, cls: Any, options: dict[str, Any]) -> None:
    """Theirs keep their noise levels in float32, which is the tolerance."""
    reference = in_double(cls(beta_schedule="linear", **options))
    reference.set_timesteps(STEPS)
    x = rand(2, 3, 4, 4)
    mine = run(transition, levels_of(reference), x)
    theirs = their_run(reference, x)
    torch.testing.assert_close(mine, theirs, atol=3e-4, rtol=1e-4)
    lower = run(DEIS(1) if transition != DEIS(1) else DEIS(2), levels_of(reference), x)
    assert float((lower - mine).abs().max()) > 0.01, "another order parts visibly"


@pytest.mark.parametrize("steps", [10, 28])
def test_linear_multistep_of_diffusers(steps: int) -> None:
    """Theirs runs in the exploding frame, ours in the network's: x = alpha * theirs."""
    reference = LMSDiscreteScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=0.02)
    reference.set_timesteps(steps)
    assert all(float(t).is_integer() for t in reference.timesteps), "no interpolation differs"
    levels, x = levels_of(reference), rand(2, 3, 4, 4)
    theirs = their_run(reference, x / levels[0].alpha)
    torch.testing.assert_close(run(LMS(4), levels, x), theirs, atol=3e-4, rtol=1e-4)


def test_sde_solver_of_diffusers_from_the_same_noise() -> None:
    reference = in_double(
        DPMSolverMultistepScheduler(
            beta_schedule="linear",
            algorithm_type="sde-dpmsolver++",
            solver_order=2,
            final_sigmas_type="zero",
        )
    )
    reference.set_timesteps(STEPS)
    levels, x, noise = (
        levels_of(reference),
        rand(2, 3, 4, 4),
        [rand(2, 3, 4, 4, seed=k) for k in range(1, 40)],
    )
    theirs = x
    for t, z in zip(reference.timesteps, noise, strict=False):
        eps = toy_eps(theirs, t.expand(2))
        theirs = reference.step(eps, t, theirs, variance_noise=z, return_dict=False)[0]
    torch.testing.assert_close(
        run(DPMSolver(eta=1), levels, x, Given(noise)), theirs, atol=3e-4, rtol=1e-4
    )


def k_diffusion_3m_sde(x: Tensor, levels: list[Level], noise: list[Tensor], eta: float) -> Tensor:
    """sample_dpmpp_3m_sde of k-diffusion, of the formulas that it computes, in its own frame."""
    x, past, widths = x / levels[0].alpha, [], []
    for (t, s), z in zip(pairwise(levels), noise, strict=False):
        high, low = float(t.ratio), float(s.ratio)
        scale = (1 + high**2) ** -0.5
        d = x - high * toy_eps(x * scale, t.t.expand(len(x)))
        if low == 0:
            return d
        h = math.log(high / low)
        k = h * (1 + eta)
        x = math.exp(-k) * x - math.expm1(-k) * d
        phi_2 = math.expm1(-k) / k + 1
        if len(past) >= 2:
            r0, r1 = widths[-1] / h, widths[-2] / h
            d10, d11 = (d - past[-1]) / r0, (past[-1] - past[-2]) / r1
            d1 = d10 + (d10 - d11) * r0 / (r0 + r1)
            x = x + phi_2 * d1 - (phi_2 / k - 0.5) * (d10 - d11) / (r0 + r1)
        elif past:
            x = x + phi_2 * (d - past[-1]) / (widths[-1] / h)
        if eta:
            x = x + z * low * (-math.expm1(-2 * h * eta)) ** 0.5
        past.append(d)
        widths.append(h)
    return x


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_third_order_of_k_diffusion_from_the_same_noise(eta: float) -> None:
    schedule = schedules.linear()
    levels = [*map(schedule, range(999, 0, -100)), schedule(schedule.clean)]
    x, noise = rand(2, 3, 4, 4), [rand(2, 3, 4, 4, seed=k) for k in range(1, 40)]
    theirs = k_diffusion_3m_sde(x, levels, noise, eta)
    mine = run(DPMSolver3M(eta, exact_curvature=False), levels, x, Given(noise))
    torch.testing.assert_close(mine, theirs, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(
    "transition", [DEIS(), LMS(), UniPC(), UniPC(3), DPMSolver3M(), DPMSolver3M(1.0)], ids=repr
)
def test_a_climb_starts_anew_and_no_shift_is_extrapolated(
    transition: StatefulTransition[Any],
) -> None:
    schedule = schedules.linear()
    denoiser = Denoiser(toy_eps, schedule=schedule, dtype=D)
    levels = [schedule(float(t)) for t in (900, 700, 500, 800, 600, 400)]
    x = rand(2, 3)

    def steps(path: list[Level], x: Tensor, move: dict[int, Tensor]) -> Tensor:
        state = transition.init(x, None)
        for k, (t, s) in enumerate(pairwise(path)):

            def predict(x_t: Tensor, level: Level, k: int = k) -> Prediction:
                return denoiser(x_t, level).move_x0(move.get(k, torch.zeros(2, 3, dtype=D)))

            step = Step(k, t, s, schedule, OneStream(k), count=99)
            x, state = (
                (transition.up(x, step), state)
                if step.climbs
                else transition.advance(predict, x, step, None, state)
            )
        return x

    climbed = steps(levels[:4], x, {})
    state = transition.init(x, None)
    step = Step(3, levels[3], levels[4], schedule, OneStream(3), count=99)
    alone, _ = transition.advance(denoiser, climbed, step, None, state)
    torch.testing.assert_close(steps(levels[:5], x, {}), alone)
    last, dx = len(levels[:3]) - 2, rand(2, 3, seed=9)
    shifted = steps(levels[:3], x, {last: dx}) - steps(levels[:3], x, {})
    torch.testing.assert_close(shifted, levels[2].alpha * dx)


def test_solvers_refuse_what_they_cannot_do() -> None:
    for make in (
        lambda: LMS(0),
        lambda: DEIS(5),
        lambda: UniPC(4),
        lambda: UniPC(variant="bh3"),
        lambda: DPMSolver(eta=1.5),
        lambda: DPMSolver3M(-0.1),
    ):
        with pytest.raises(ValueError, match="must be"):
            make()
    denoiser = Denoiser(toy_eps, schedule=schedules.linear(), dtype=D)
    with pytest.raises(ValueError, match="keeps a state between steps"):
        invert(denoiser, rand(1, 2), transition=UniPC())


# Order --------------------------------------------------------------------------------------------


def flow(x: Tensor, t: Level, s: Level) -> Tensor:
    """The probability flow of the correlated Gaussian, solved."""
    prior = correlated(3)
    values, vectors = torch.linalg.eigh(prior.covariance)
    stretch = ((s.alpha**2 * values + s.sigma**2) / (t.alpha**2 * values + t.sigma**2)).sqrt()
    return s.alpha * prior.mean + ((x - t.alpha * prior.mean) @ vectors * stretch) @ vectors.T


def started(
    transition: StatefulTransition[Any], denoiser: Denoiser, levels: list[Level], x: Tensor
) -> Any:
    """The transition with the past that an exact run up to levels[2] leaves, in a run that
    goes on: the order of a multistep method is that of its steps, not of its start and end."""
    nodes = []
    for level in (levels[1], levels[0]):
        p = denoiser(flow(x, levels[0], level), level)
        nodes.append(Node(level, p.eps if isinstance(transition, DEIS | LMS) else p.x0))

    class Started(type(transition)):  # type: ignore[misc]
        def init(self, x_T: Tensor, measurement: Any) -> Any:
            past = tuple(nodes)[: self.order if hasattr(self, "order") else 3]
            return Made(past, len(past)) if isinstance(self, UniPC) else past

        def advance(self, predict: Any, x_t: Tensor, step: Step, *more: Any) -> Any:
            return super().advance(predict, x_t, replace(step, count=step.count + 3), *more)

    return Started(**vars(transition))


@pytest.mark.parametrize("frame", ["vp", "flow"])
@pytest.mark.parametrize(
    ("transition", "order"),
    [
        (DEIS(2), 2),
        (DEIS(3), 3),
        (LMS(2), 2),
        (LMS(3), 3),
        (UniPC(1), 2),
        (UniPC(2), 3),
        (DPMSolver3M(), 3),
        (DPMSolver3M(exact_curvature=False), 2),
    ],
    ids=repr,
)
def test_solvers_converge_with_their_order(
    transition: StatefulTransition[Any], order: int, frame: str
) -> None:
    frames: dict[str, Callable[[], Schedule]] = {
        "vp": schedules.linear,
        "flow": schedules.flow,
    }
    schedule, prior = frames[frame](), correlated(3)
    denoiser = Denoiser(prior.network("x0", schedule), predicts="x0", schedule=schedule, dtype=D)
    errors = []
    for n in (60, 120):
        grid = torch.logspace(math.log10(5.0), math.log10(0.05), n + 1, dtype=D)
        levels = [schedule.at(r) for r in grid]
        x = levels[0].alpha * prior.mean + rand(5, 3) * levels[0].sigma
        chosen = started(transition, denoiser, levels, x)
        start = flow(x, levels[0], levels[2])
        made = sample(
            denoiser, start, levels[2:], schedule=schedule, noise=NoNoise(), transition=chosen
        )
        errors.append(float((made - flow(x, levels[0], levels[-1])).norm()))
    rates = [math.log2(a / b) for a, b in pairwise(errors)]
    assert rates[-1] == pytest.approx(order, abs=0.3), (rates, errors)
