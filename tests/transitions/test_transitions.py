"""Transitions and itineraries: the x0-shift contract, diffusers' and the papers' values,
convergence and moments."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    RePaintScheduler,
)
from oracles import D, Gaussian, Given, NoNoise, OneStream, correlated, in_double, rand, step_of
from torch import Tensor

from invdiff import schedules, transitions
from invdiff.guidance.dps import DPS
from invdiff.itineraries import Jumps, LateStart, Straight
from invdiff.network import Denoiser, Prediction
from invdiff.plugins.registry import list_plugins, load
from invdiff.problem import LinearOperator, Measurement
from invdiff.sampling import Denoise, Transition, sample
from invdiff.schedules import Level, Schedule
from invdiff.solving import generate, invert
from invdiff.transitions import (
    DDIM,
    DDPM,
    MALA,
    DPMSolver,
    Euler,
    EulerMaruyama,
    Heun,
    Langevin,
    PredictorCorrector,
    Renoise,
    Replace,
    Underdamped,
)

pytestmark = pytest.mark.usefixtures("one_thread")

FRAMES: dict[str, Callable[[], Schedule]] = {
    "vp": schedules.linear,
    "ve": schedules.ve,
    "flow": schedules.flow,
    "subvp": schedules.subvp,
}


class Mask(LinearOperator):
    """Keeps the first two of the coordinates, zeroes the others."""

    def _forward(self, x: Tensor) -> Tensor:
        keep = torch.zeros_like(x)
        keep[:, :2] = 1
        return keep * x

    _adjoint = _forward

    def _pinv(self, y: Tensor, ridge: Tensor | float) -> Tensor:
        return self._forward(y)


EVERY: dict[str, Callable[[], Transition]] = {
    **{name: load("transitions", name) for name in list_plugins("transitions")},
    "ddpm_large": lambda: DDPM("large"),
    "ddpm_learned": lambda: DDPM("learned"),
    "ddim_eta": lambda: DDIM(0.7),
    "ddim_std": lambda: DDIM(std=lambda t, s: 0.3 * s.sigma),
    "euler_churn": lambda: Euler(s_churn=20),
    "heun_churn": lambda: Heun(s_churn=20, s_noise=1.1),
    "predictor_corrector_ddpm_2": lambda: PredictorCorrector(DDPM(), steps=2),
}


def run(
    transition: Transition,
    net: Denoiser | Denoise,
    x: Tensor,
    levels: Sequence[Level],
    schedule: Schedule,
    noise: Any = None,
    **more: Any,
) -> Tensor:
    return sample(
        net, x, levels, schedule=schedule, noise=noise or NoNoise(), transition=transition, **more
    )


# The contract -------------------------------------------------------------------------------------


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("name", EVERY)
def test_a_shift_of_x0_shifts_the_next_state_by_alpha_s_times_it(name: str, frame: str) -> None:
    schedule, transition = FRAMES[frame](), EVERY[name]()
    x, x0, eps, dx = (rand(3, 5, seed=k) for k in range(4))
    fraction = torch.full((3, 5), 0.4, dtype=D)
    middle = schedule.t_min + torch.tensor([0.8, 0.6, 0.45], dtype=D) * (
        schedule.t_max - schedule.t_min
    )
    before, t, s = (schedule(time) for time in middle)
    for target in (s, schedule(schedule.clean)):
        states = []
        for shift in (torch.zeros_like(dx), dx):

            def predict(x_t: Tensor, level: Level, shift: Tensor = shift) -> Prediction:
                # eps does not depend on where x_t went: what is seen is the transition alone.
                implied = (x_t - level.sigma * eps) / level.alpha
                return Prediction(x_t, level, implied + shift, eps + 0.1 * level.sigma, fraction)

            last = Prediction(x, before, x0, eps)  # the step before saw no shift
            states.append(
                transition(predict, x, step_of(schedule, t, target, OneStream(), last), None)
            )
        torch.testing.assert_close(states[1] - states[0], target.alpha * dx, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", EVERY)
def test_replace_shifts_what_was_not_measured_alone(name: str) -> None:
    schedule, transition = schedules.linear(), Replace(EVERY[name]())
    x, eps, dx = (rand(3, 5, seed=k) for k in range(3))
    measurement = Measurement(Mask()(rand(3, 5, seed=9)), Mask())
    t, s = schedule(600), schedule(450)
    states = []
    for shift in (torch.zeros_like(dx), dx):

        def predict(x_t: Tensor, level: Level, shift: Tensor = shift) -> Prediction:
            return Prediction(
                x_t,
                level,
                (x_t - level.sigma * eps) / level.alpha + shift,
                eps,
                torch.full_like(x_t, 0.4),
            )

        states.append(transition(predict, x, step_of(schedule, t, s, OneStream()), measurement))
    expected = s.alpha * dx
    expected[:, :2] = 0
    torch.testing.assert_close(states[1] - states[0], expected, atol=1e-9, rtol=1e-9)


def test_replace_for_any_linear_operator() -> None:
    """x_s <- (I − A†A) x_s + A†(alpha_s y + sigma_s A z), by explicit matrices; A is neither a mask
    nor of full rank."""
    A = rand(4, 5, seed=8)
    A[3] = A[0] + 2 * A[1]

    class Matrix(LinearOperator):
        def _forward(self, x: Tensor) -> Tensor:
            return x @ A.T

        def _adjoint(self, y: Tensor) -> Tensor:
            return y @ A

    schedule, x, z = schedules.linear(), rand(3, 5), rand(3, 5, seed=2)
    measurement = Measurement(rand(3, 5, seed=9) @ A.T, Matrix(shape=(5,)))
    t, s, pinv = schedule(600), schedule(450), torch.linalg.pinv(A)

    def predict(x_t: Tensor, level: Level) -> Prediction:
        return Prediction(x_t, level, 0.3 * x_t, (1 - 0.3 * level.alpha) / level.sigma * x_t)

    out = Replace(DDIM())(predict, x, step_of(schedule, t, s, Given([z])), measurement)
    unknown = DDIM()(predict, x, step_of(schedule, t, s, NoNoise()), None)
    expected = (
        unknown - unknown @ (pinv @ A).T + (s.alpha * measurement.y + s.sigma * z @ A.T) @ pinv.T
    )
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)  # pinv by conjugate gradients
    clean = Replace(DDIM())(
        predict, x, step_of(schedule, t, schedule(-1.0), NoNoise()), measurement
    )
    torch.testing.assert_close(clean @ A.T, measurement.y, atol=1e-5, rtol=1e-5)


def test_predictions_are_what_a_step_makes() -> None:
    for transition in (
        DDPM(),
        Heun(),
        Langevin(steps=3),
        PredictorCorrector(Heun(), steps=2),
        MALA(Heun(), steps=2),
        Underdamped(DDPM(), steps=3),
        Replace(Heun()),
        Replace(Langevin(2)),
        DPMSolver(),
    ):
        made = []

        def predict(x_t: Tensor, level: Level, made: list[int] = made) -> Prediction:
            made.append(1)
            return Prediction(x_t, level, 0 * x_t, x_t / level.sigma)

        measurement = Measurement(torch.zeros(2, 5, dtype=D), Mask())
        schedule = schedules.linear()
        transition(
            predict,
            rand(2, 5),
            step_of(schedule, schedule(500), schedule(300), OneStream()),
            measurement,
        )
        assert len(made) == transition.predictions, transition


@pytest.mark.parametrize("name", EVERY)
def test_deterministic_transitions_draw_nothing_and_the_others_do(name: str) -> None:
    schedule, transition = schedules.linear(), EVERY[name]()
    noise = Given([rand(2, 5, seed=k) for k in range(10)])

    def predict(x_t: Tensor, level: Level) -> Prediction:
        return Prediction(
            x_t,
            level,
            0.3 * x_t,
            (x_t - 0.3 * level.alpha * x_t) / level.sigma,
            torch.full_like(x_t, 0.5),
        )

    transition(predict, rand(2, 5), step_of(schedule, schedule(500), schedule(300), noise), None)
    assert (noise.drawn == 0) == transition.deterministic


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("name", EVERY)
def test_no_transition_needs_more_than_finite_levels_and_the_last_is_free_of_noise(
    name: str, frame: str
) -> None:
    """The first level of flow has alpha = 0, the first of a zero-terminal-SNR schedule too; the
    last level has sigma = 0."""
    schedule, transition = FRAMES[frame](), EVERY[name]()
    levels = Straight()(schedule, 5)
    if name == "langevin":
        levels = [level for level in levels if level.alpha > 0]

    def predict(x_t: Tensor, level: Level, **_: Any) -> Prediction:
        x0 = torch.full_like(x_t, 0.25)
        return Prediction(
            x_t, level, x0, (x_t - level.alpha * x0) / level.sigma, torch.full_like(x_t, 0.5)
        )

    x = run(transition, predict, rand(4, 3) * levels[0].sigma, levels, schedule, OneStream())
    torch.testing.assert_close(x, torch.full_like(x, 0.25), atol=1e-9, rtol=0)


def test_langevin_says_that_it_needs_signal() -> None:
    flow = schedules.flow()
    with pytest.raises(ValueError, match="alpha = 0"):
        Langevin().down(
            lambda x, level: None,
            rand(1, 2),
            step_of(flow, flow(1.0), flow(0.9), OneStream()),
            None,
        )  # type: ignore[arg-type,return-value]


# diffusers, same noise ----------------------------------------------------------------------------


def toy_eps(x: Tensor, t: Tensor) -> Tensor:
    """Any smooth function of x and t serves where two samplers see the same network."""
    return torch.tanh(x * (1 + t.view(-1, *(1,) * (x.ndim - 1)).to(x) / 1000)) + 0.1 * x


def their_run(
    scheduler: Any, x: Tensor, eps: Callable[[Tensor, Tensor], Tensor], **options: Any
) -> Tensor:
    for t in scheduler.timesteps:
        shown = scheduler.scale_model_input(x, t)
        x = scheduler.step(
            eps(shown, t.expand(len(x))),
            t if t.is_floating_point() else int(t),
            x,
            return_dict=False,
            **options,
        )[0]
    return x


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("fixed_small", "small"),
        ("fixed_large", "large"),
        ("learned_range", "learned"),
        ("learned_range", "auto"),
    ],
)
@pytest.mark.parametrize("steps", [10, 1000])
def test_ddpm_of_diffusers(theirs: str, ours: str, steps: int) -> None:
    if steps == 1000 and ours != "auto":
        steps = 250  # one full-length run is enough
    reference = in_double(DDPMScheduler(variance_type=theirs, clip_sample=False))
    reference.set_timesteps(steps)
    learned = theirs == "learned_range"

    def net(x: Tensor, t: Tensor) -> Tensor:
        eps = toy_eps(x, t)
        return torch.cat([eps, torch.sin(3 * x)], 1) if learned else eps

    x = rand(2, 3, 4, 4)
    schedule = schedules.linear()
    denoiser = Denoiser(net, schedule=schedule, learned_variance=learned)
    mine = run(
        DDPM(ours), denoiser, x, Straight("leading")(schedule, steps), schedule, OneStream(7)
    )
    assert_same(mine, their_run(reference, x, net, generator=torch.Generator().manual_seed(7)))


def assert_same(ours: Tensor, theirs: Tensor, tolerance: float = 1e-9) -> None:
    assert bool(theirs.isfinite().all())
    torch.testing.assert_close(ours, theirs.to(ours), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_of_diffusers(eta: float) -> None:
    reference = in_double(DDIMScheduler(clip_sample=False))
    reference.set_timesteps(20)
    schedule, x = schedules.linear(), rand(2, 3, 4, 4)
    mine = run(
        DDIM(eta),
        Denoiser(toy_eps, schedule=schedule),
        x,
        Straight("leading")(schedule, 20),
        schedule,
        OneStream(7),
    )
    assert_same(
        mine, their_run(reference, x, toy_eps, eta=eta, generator=torch.Generator().manual_seed(7))
    )


def test_ddim_with_an_explicit_std_is_the_same_family() -> None:
    schedule, x = schedules.linear(), rand(2, 5)
    levels, denoiser = Straight()(schedule, 10), Denoiser(toy_eps, schedule=schedule)

    def ancestral(t: Level, s: Level) -> Tensor:
        a_t, a_s = t.alpha**2, s.alpha**2
        return ((1 - a_s) / (1 - a_t) * (1 - a_t / a_s)).sqrt()

    explicit = run(DDIM(std=ancestral), denoiser, x, levels, schedule, OneStream())
    torch.testing.assert_close(explicit, run(DDIM(1.0), denoiser, x, levels, schedule, OneStream()))
    torch.testing.assert_close(explicit, run(DDPM(), denoiser, x, levels, schedule, OneStream()))
    full = run(DDIM(std=lambda t, s: s.sigma), denoiser, x, levels, schedule, OneStream())
    torch.testing.assert_close(full, run(Renoise(), denoiser, x, levels, schedule, OneStream()))
    with pytest.raises(ValueError, match="exceeds sigma_s"):
        run(DDIM(std=lambda t, s: 1.1 * s.sigma), denoiser, x, levels, schedule, OneStream())


@pytest.mark.parametrize("steps", [8, 20])
def test_dpm_solver_of_diffusers_whole_trajectories(steps: int) -> None:
    """final_sigmas_type 'zero' ends on a first-order step to clean, as ours does; theirs computes
    in float32."""
    reference = in_double(
        DPMSolverMultistepScheduler(
            algorithm_type="dpmsolver++",
            solver_order=2,
            solver_type="midpoint",
            final_sigmas_type="zero",
        )
    )
    reference.set_timesteps(steps)
    schedule, x = schedules.linear(), rand(2, 3, 4, 4)
    levels = Straight([float(t) for t in reference.timesteps])(schedule, steps)
    mine = run(DPMSolver(), Denoiser(toy_eps, schedule=schedule), x, levels, schedule)
    assert_same(mine, their_run(reference, x, toy_eps), 2e-4)
    # The second-order term is what is compared: without it the trajectories part visibly.
    first_order = run(Euler(), Denoiser(toy_eps, schedule=schedule), x, levels, schedule)
    assert float((first_order - mine).abs().max()) > 0.01


@pytest.mark.parametrize(
    ("transition", "scheduler"),
    [
        (Euler(), EulerDiscreteScheduler),
        (Heun(), HeunDiscreteScheduler),
        (DDIM(1.0), EulerAncestralDiscreteScheduler),
    ],
    ids=["euler", "heun", "ancestral"],
)
def test_euler_family_of_diffusers(transition: Transition, scheduler: Any) -> None:
    """Theirs runs in the exploding frame, ours in the network's: x = alpha * theirs, from the same
    noise."""
    reference = scheduler(
        timestep_spacing="linspace", beta_schedule="linear", beta_start=1e-4, beta_end=0.02
    )
    reference.set_timesteps(28)  # 999/27 = 37: integer times, where no two interpolations differ
    schedule, x = schedules.linear(), rand(2, 3, 4, 4)
    first = schedule(999)
    options = (
        {"generator": torch.Generator().manual_seed(7)} if isinstance(transition, DDIM) else {}
    )
    theirs = their_run(reference, x / first.alpha, toy_eps, **options)
    times = reference.timesteps.unique().flip(0).tolist()
    mine = run(
        transition,
        Denoiser(toy_eps, schedule=schedule),
        x,
        Straight(times)(schedule, 28),
        schedule,
        OneStream(7),
    )
    assert_same(mine, theirs, 2e-4)  # their tables are float32


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_euler_of_diffusers(shift: float) -> None:
    reference = FlowMatchEulerDiscreteScheduler(shift=shift)
    reference.set_timesteps(sigmas=torch.linspace(1, 0, 13)[:-1].tolist())
    schedule, x = schedules.flow(shift), rand(2, 3, 4, 4)
    denoiser = Denoiser(toy_eps, predicts="velocity", schedule=schedule, time=lambda t: 1000 * t)
    theirs = x
    for t in reference.timesteps:
        theirs = reference.step(toy_eps(theirs, t.expand(2)), t, theirs, return_dict=False)[0]
    assert_same(run(Euler(), denoiser, x, Straight()(schedule, 12), schedule), theirs, 1e-4)


def test_edm_heun_with_churn_against_the_paper() -> None:
    """Karras et al. 2022, algorithm 2, line by line."""
    churn, low, high, boost, n = 30.0, 0.05, 50.0, 1.003, 18
    i = torch.arange(n, dtype=D)
    grid = (80 ** (1 / 7) + i / (n - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    grid = torch.cat([grid, torch.zeros(1, dtype=D)])
    prior, generator = correlated(3), torch.Generator().manual_seed(7)
    start = 80 * rand(4, 3)

    def d(x: Tensor, sigma: Tensor) -> Tensor:
        return prior.posterior_mean(x, 1.0, float(sigma))

    x = start
    for k in range(n):
        t, s = grid[k], grid[k + 1]
        gamma = min(churn / n, math.sqrt(2) - 1) if low <= t <= high else 0.0
        hat = t + gamma * t
        if gamma > 0:
            x = x + (hat**2 - t**2).sqrt() * boost * torch.randn(4, 3, dtype=D, generator=generator)
        slope = (x - d(x, hat)) / hat
        after = x + (s - hat) * slope
        if s > 0:
            after = x + (s - hat) * (slope / 2 + (after - d(after, s)) / s / 2)
        x = after

    schedule = schedules.edm()
    denoiser = Denoiser(prior.network("edm", schedule), predicts="edm", schedule=schedule)
    mine = run(
        Heun(churn, low, high, boost),
        denoiser,
        start,
        Straight()(schedule, n),
        schedule,
        OneStream(7),
    )
    assert_same(mine, x, 1e-8)


# Convergence and moments on exact Gaussians -------------------------------------------------------


def exact_flow(prior: Gaussian, x: Tensor, t: Level, s: Level) -> Tensor:
    """The probability-flow ODE of a Gaussian, solved: along each eigenvector x − alpha m keeps its
    number of standard deviations."""
    values, vectors = torch.linalg.eigh(prior.covariance)
    stretch = ((s.alpha**2 * values + s.sigma**2) / (t.alpha**2 * values + t.sigma**2)).sqrt()
    return s.alpha * prior.mean + ((x - t.alpha * prior.mean) @ vectors * stretch) @ vectors.T


@pytest.mark.parametrize("frame", ["vp", "ve", "flow"])
@pytest.mark.parametrize(
    ("transition", "order"),
    [(DDIM(), 1), (Euler(), 1), (Heun(), 2), (DPMSolver(), 2)],
    ids=["ddim", "euler", "heun", "dpm"],
)
def test_deterministic_transitions_converge_with_their_order(
    transition: Transition, order: int, frame: str
) -> None:
    schedule, prior = FRAMES[frame](), correlated(3)
    denoiser = Denoiser(prior.network("x0", schedule), predicts="x0", schedule=schedule)
    high, low = schedule.at(20.0), schedule.at(0.05)
    x = high.alpha * prior.mean + rand(5, 3) * high.sigma
    exact = exact_flow(prior, x, high, low)
    errors = []
    for n in (40, 80, 160):
        levels = [
            high,
            *(
                schedule.at(r)
                for r in torch.logspace(math.log10(20.0), math.log10(0.05), n + 1, dtype=D)[1:-1]
            ),
            low,
        ]
        errors.append(float((run(transition, denoiser, x, levels, schedule) - exact).norm()))
    rates = [math.log2(a / b) for a, b in pairwise(errors)]
    assert rates[-1] == pytest.approx(order, abs=0.2), (rates, errors)


@pytest.mark.parametrize("frame", ["vp", "ve", "flow", "subvp"])
@pytest.mark.parametrize(
    "transition", [DDPM(), DDPM("large"), DDIM(0.5), EulerMaruyama(), Euler(s_churn=15)], ids=repr
)
def test_stochastic_transitions_converge_to_the_marginals(
    transition: Transition, frame: str
) -> None:
    """No Monte Carlo: on a 1-d Gaussian a step is x -> a x + b + c z. a, b and c are probed and the
    moments carried along."""
    schedule = FRAMES[frame]()
    m, v = 0.7, 0.3
    prior = Gaussian(torch.tensor([m]), torch.tensor([v], dtype=D))
    denoiser = Denoiser(prior.network("x0", schedule), predicts="x0", schedule=schedule)
    high, low = schedule.at(30.0), schedule.at(0.02)
    probes = torch.tensor([[0.0], [1.0], [0.0]], dtype=D)
    draws = torch.tensor([[0.0], [0.0], [1.0]], dtype=D)
    errors = []
    for n in (100, 200):
        levels = [
            high,
            *(
                schedule.at(r)
                for r in torch.logspace(math.log10(30.0), math.log10(0.02), n + 1, dtype=D)[1:-1]
            ),
            low,
        ]
        mean, variance = float(high.alpha) * m, float(high.alpha) ** 2 * v + float(high.sigma) ** 2
        for t, s in pairwise(levels):
            b, ab, bc = (
                transition(
                    denoiser, probes, step_of(schedule, t, s, Given([draws] * 3), count=n), None
                )
                .flatten()
                .tolist()
            )
            mean, variance = (ab - b) * mean + b, (ab - b) ** 2 * variance + (bc - b) ** 2
        errors.append(
            (
                abs(mean - float(low.alpha) * m),
                abs(variance - float(low.alpha) ** 2 * v - float(low.sigma) ** 2),
            )
        )
    assert errors[1][0] < 0.01 * m
    assert errors[1][1] < 0.06 * v
    assert errors[1][1] < 0.6 * errors[0][1], "of first order: half the step, half the error"


@pytest.mark.parametrize(
    ("transition", "frame", "steps"),
    [
        (EulerMaruyama(), "vp", 200),
        (EulerMaruyama(), "ve", 200),
        (EulerMaruyama(), "flow", 200),
        (DDPM(), "vp", 200),
        (PredictorCorrector(snr=0.1), "vp", 150),
        (PredictorCorrector(DDPM(), steps=2, snr=0.1), "ve", 100),
        (PredictorCorrector(snr=0.1), "flow", 150),
        (MALA(DDPM(), snr=0.3), "vp", 60),
        (Underdamped(DDPM(), steps=2), "flow", 60),
        (Langevin(steps=10, snr=0.16), "ve", 60),
        (Langevin(steps=10, snr=0.16), "flow", 60),
    ],
    ids=lambda p: p if isinstance(p, str | int) else type(p).__name__,
)
def test_sampled_moments(transition: Transition, frame: str, steps: int) -> None:
    """600 chains of 16 independent correlated pairs: a high enough dimension for Langevin's step
    size, which is set by norms.

    Bounds: 4 standard errors, and what finitely many steps leave: 6 % of a variance, where half or
    twice the noise would leave 50 %. Langevin alone cannot catch up once it lags behind the levels
    (its steps shrink with the score), so it starts where the data matter, from the exact
    marginal."""
    pair = Gaussian(torch.tensor([0.5, -1.0]), torch.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=D))
    schedule, chains, blocks = FRAMES[frame](), 600, 16

    def net(x: Tensor, t: Tensor) -> Tensor:
        level = schedule(float(t[0]))
        return pair.posterior_mean(x.view(-1, 2), float(level.alpha), float(level.sigma)).view_as(x)

    denoiser = Denoiser(net, predicts="x0", schedule=schedule)
    high = 2.0 if isinstance(transition, Langevin) else 50.0
    levels = [
        *(
            schedule.at(r)
            for r in torch.logspace(math.log10(high), math.log10(0.02), steps, dtype=D)
        ),
        schedule(schedule.clean),
    ]
    x0 = pair.mean + rand(chains * blocks, 2, seed=3) @ torch.linalg.cholesky(pair.covariance).T
    x = levels[0].alpha * x0.view(chains, 2 * blocks) + levels[0].sigma * rand(
        chains, 2 * blocks, seed=4
    )
    x = run(transition, denoiser, x, levels, schedule, OneStream(5)).view(-1, 2)
    error = 4 / math.sqrt(len(x))
    torch.testing.assert_close(x.mean(0), pair.mean, atol=0.7 * error, rtol=0)
    torch.testing.assert_close(
        torch.cov(x.T), pair.covariance, atol=0.5 * math.sqrt(2) * error + 0.03, rtol=0
    )


def test_langevin_step_size_is_song_et_al_algorithm_5() -> None:
    x, eps, z = rand(3, 4, 2, 2), rand(3, 4, 2, 2, seed=1), rand(3, 4, 2, 2, seed=2)
    schedule = schedules.linear()
    level, snr = schedule(300), 0.16
    out = transitions.langevin.langevin_correction(
        x, eps, level, step_of(schedule, schedule(301), level, Given([z])), snr
    )
    for k in range(3):  # image by image: no norm couples the batch
        score = -eps[k] / level.sigma
        beta = 1e-4 + (0.02 - 1e-4) * 301 / 999
        e = 2 * (1 - beta) * (snr * z[k].norm() / score.norm()) ** 2
        torch.testing.assert_close(out[k], x[k] + e * score + (2 * e).sqrt() * z[k])


# Climbs, jumps, late start ------------------------------------------------------------------------


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("name", EVERY)
def test_a_climb_is_the_forward_kernel(name: str, frame: str) -> None:
    """Whatever the transition, from x_t ~ q(x_t | x0) a climb gives q(x_s | x0), and the network is
    not asked."""
    schedule = FRAMES[frame]()
    s, t = (
        schedule(schedule.t_min + part * (schedule.t_max - schedule.t_min)) for part in (0.7, 0.4)
    )
    x0 = 0.8

    def moments(transition: Transition) -> tuple[float, float]:
        def step(x: float, z: float) -> float:
            noise = Given([torch.full((1, 1), z, dtype=D)])
            return float(
                transition(
                    _refuse, torch.full((1, 1), x, dtype=D), step_of(schedule, t, s, noise), None
                )
            )

        b, a, c = step(0, 0), step(1, 0) - step(0, 0), step(0, 1) - step(0, 0)
        return a * float(t.alpha) * x0 + b, a**2 * float(t.sigma) ** 2 + c**2

    for transition in (EVERY[name](), Replace(EVERY[name]())):
        assert moments(transition) == pytest.approx(
            (float(s.alpha) * x0, float(s.sigma) ** 2), rel=1e-5
        )


def _refuse(*_: Any, **__: Any) -> Prediction:
    raise AssertionError("a climb asked the network")


def test_history_is_forgotten_after_a_climb() -> None:
    schedule, seen = schedules.linear(), []

    class Watching(DPMSolver):
        def down(
            self, predict: Denoise, x_t: Tensor, step: Any, measurement: Measurement | None
        ) -> Tensor:
            x_s = super().down(predict, x_t, step, measurement)
            first_order = super().down(predict, x_t, replace(step, last=None), measurement)
            seen.append(not torch.equal(x_s, first_order))
            return x_s

    times = [900, 600, 300, 600, 300, 100]
    run(
        Watching(),
        Denoiser(toy_eps, schedule=schedule),
        rand(1, 2),
        [schedule(t) for t in times],
        schedule,
        OneStream(),
    )
    assert seen == [False, True, False, True], "which steps are of second order"


def official_repaint_times(t_T: int, jump_len: int, jump_n_sample: int) -> list[int]:
    """andreas128/RePaint, guided_diffusion/scheduler.py: get_schedule_jump with its defaults, from
    the paper's figure 10."""
    jumps = {j: jump_n_sample - 1 for j in range(0, t_T - jump_len, jump_len)}
    t, ts = t_T, []
    while t >= 1:
        t = t - 1
        ts.append(t)
        if jumps.get(t, 0) > 0:
            jumps[t] = jumps[t] - 1
            for _ in range(jump_len):
                t = t + 1
                ts.append(t)
    ts.append(-1)
    return ts


@pytest.mark.parametrize(
    ("steps", "length", "resamplings"),
    [(250, 10, 10), (250, 10, 1), (20, 5, 3), (7, 10, 4), (21, 1, 2), (33, 10, 5)],
)
def test_jumps_are_repaints_published_schedule(steps: int, length: int, resamplings: int) -> None:
    schedule = schedules.linear(steps)
    levels = Jumps(length, resamplings)(schedule, steps)
    assert [int(level.t) for level in levels] == official_repaint_times(steps, length, resamplings)


def test_repaints_published_schedule_makes_2410_evaluations_of_250_respaced_times() -> None:
    levels = Jumps()(schedules.linear(), 250)
    assert sum(bool(s.ratio < t.ratio) for t, s in pairwise(levels)) == 2410
    assert (
        sorted({float(level.t) for level in levels})[1:]
        == schedules.linear().times(250).flip(0).tolist()
    )
    reference = RePaintScheduler()
    reference.set_timesteps(250, 10, 10)
    theirs = reference.timesteps.tolist()
    assert sum(b < a for a, b in pairwise([1000, *theirs])) == 2410


def test_late_start_runs_the_end_of_the_itinerary() -> None:
    schedule = schedules.linear()
    whole = Straight()(schedule, 40)
    late = LateStart(0.25)(schedule, 40)
    assert [float(level.t) for level in late] == [float(level.t) for level in whole[-11:]]
    assert len(LateStart(1.0)(schedule, 40)) == 41
    assert len(LateStart(0.001)(schedule, 40)) == 2
    for strength in (0.0, 1.1):
        with pytest.raises(ValueError, match="strength"):
            LateStart(strength)
    with pytest.raises(ValueError, match="at least 1"):
        Jumps(0)


# Whole methods against independent implementations ------------------------------------------------


@pytest.mark.parametrize("resamplings", [1, 3])
def test_repaint_against_the_paper(resamplings: int) -> None:
    """Lugmayr et al. 2022, algorithm 1 on the official schedule, in posterior-mean form, from the
    same noise."""
    T, length = 12, 4
    schedule, prior = schedules.linear(T, 1e-2, 0.3), correlated(5)
    net, generator = prior.network("eps", schedule), torch.Generator().manual_seed(7)
    truth, start = rand(3, 5, seed=4), rand(3, 5, seed=5)
    beta = torch.linspace(1e-2, 0.3, T, dtype=D)
    bar = torch.cat([torch.cumprod(1 - beta, 0), torch.ones(1, dtype=D)])  # bar[-1]: clean
    mask = torch.zeros(5, dtype=D)
    mask[:2] = 1

    def z() -> Tensor:
        return torch.randn(3, 5, dtype=D, generator=generator)

    x = start
    for t, s in pairwise(official_repaint_times(T, length, resamplings)):
        if s > t:
            x = (1 - beta[s]).sqrt() * x + beta[s].sqrt() * z()
            continue
        eps = net(x, torch.full((3,), float(t)))
        x0 = (x - (1 - bar[t]).sqrt() * eps) / bar[t].sqrt()
        mean = (
            bar[s].sqrt() * beta[t] / (1 - bar[t]) * x0
            + (1 - beta[t]).sqrt() * (1 - bar[s]) / (1 - bar[t]) * x
        )
        if s >= 0:
            unknown = mean + ((1 - bar[s]) / (1 - bar[t]) * beta[t]).sqrt() * z()
            known = bar[s].sqrt() * truth + (1 - bar[s]).sqrt() * z()
        else:
            unknown, known = mean, truth
        x = mask * known + (1 - mask) * unknown

    mine = run(
        Replace(DDPM()),
        Denoiser(net, schedule=schedule),
        start,
        Jumps(length, resamplings)(schedule, T),
        schedule,
        OneStream(7),
        measurement=Measurement(Mask()(truth), Mask()),
    )
    assert_same(mine, x)


class Twice(OneStream):
    """diffusers' RePaint spends one draw on the known and the unknown part, and one on the last
    step, which uses none."""

    def __init__(self, seed: int, pattern: Sequence[int]) -> None:
        super().__init__(seed)
        self.uses, self.left, self.kept = list(pattern), 0, torch.zeros(0)

    def randn_like(self, x: Tensor) -> Tensor:
        if self.left == 0:
            while (uses := self.uses.pop(0)) == 0:
                super().randn_like(x)
            self.kept, self.left = super().randn_like(x), uses
        self.left -= 1
        return self.kept


def test_repaint_of_diffusers() -> None:
    """diffusers reads the schedule as the times to evaluate, so its states lie one level lower: it
    resamples from clean."""
    T = 12
    schedule, prior = schedules.linear(T, 1e-2, 0.3), correlated(5)
    net, truth, start = prior.network("eps", schedule), rand(3, 5, seed=4), rand(3, 5, seed=5)
    reference = RePaintScheduler(
        num_train_timesteps=T, trained_betas=None, eta=1.0, clip_sample=False
    )
    reference.betas = torch.linspace(1e-2, 0.3, T, dtype=D)
    reference.alphas_cumprod = torch.cumprod(1 - reference.betas, 0)
    reference.set_timesteps(T, 4, 3)
    mask, generator, x, last, pattern = (
        torch.tensor([1.0, 1, 0, 0, 0]),
        torch.Generator().manual_seed(7),
        start,
        T,
        [],
    )
    for t in reference.timesteps.tolist():
        if t < last:
            x = reference.step(
                net(x, torch.full((3,), float(t))), t, x, truth, mask, generator, return_dict=False
            )[0]
            pattern.append(2 if t > 0 else 0)
        else:
            x = reference.undo_step(x, last, generator)
            pattern.append(1)
        last = t
    levels = [schedule(t) for t in [T - 1, *(t - 1.0 for t in reference.timesteps.tolist())]]
    measurement = Measurement(Mask()(truth), Mask())
    mine = run(
        Replace(DDPM()),
        Denoiser(net, schedule=schedule),
        start,
        levels,
        schedule,
        Twice(7, pattern),
        measurement=measurement,
    )
    assert_same(mine, x)


@pytest.mark.parametrize("learned", [False, True])
def test_dps_is_the_official_post_step_update(learned: bool) -> None:
    """DPS2022/diffusion-posterior-sampling: p_sample in posterior-mean form, then x − zeta grad ‖y
    − A x0‖, per image."""
    T, zeta = 10, 0.4
    schedule = schedules.linear(T, 1e-2, 0.3)
    beta = torch.linspace(1e-2, 0.3, T, dtype=D)
    bar = torch.cat([torch.cumprod(1 - beta, 0), torch.ones(1, dtype=D)])
    A, y, start = rand(3, 5, seed=8), rand(4, 3, seed=9), rand(4, 5, seed=5)

    def net(x: Tensor, t: Tensor) -> Tensor:
        eps = toy_eps(x, 100 * t)
        return torch.cat([eps, torch.sin(3 * x)], 1) if learned else eps

    class Matrix(LinearOperator):
        def _forward(self, x: Tensor) -> Tensor:
            return x @ A.to(x).T

        def _adjoint(self, y: Tensor) -> Tensor:
            return y @ A.to(y)

    x, generator = start, torch.Generator().manual_seed(7)
    for t in range(T - 1, -1, -1):
        s = t - 1
        x = x.detach().requires_grad_()
        out = net(x, torch.full((4,), float(t)))
        eps, v = out.chunk(2, 1) if learned else (out, None)
        x0 = (x - (1 - bar[t]).sqrt() * eps) / bar[t].sqrt()
        small = (1 - bar[s]) / (1 - bar[t]) * beta[t]
        mean = (
            bar[s].sqrt() * beta[t] / (1 - bar[t]) * x0
            + (1 - beta[t]).sqrt() * (1 - bar[s]) / (1 - bar[t]) * x
        )
        std = (
            small.sqrt()
            if v is None
            else torch.exp(0.5 * ((v + 1) / 2 * beta[t].log() + (1 - (v + 1) / 2) * small.log()))
        )
        after = mean + std * torch.randn(4, 5, dtype=D, generator=generator) if t > 0 else mean
        gradients = [
            torch.autograd.grad(torch.linalg.vector_norm(y[k] - x0[k] @ A.T), x, retain_graph=True)[
                0
            ][k]
            for k in range(4)
        ]
        x = (after - zeta * torch.stack(gradients)).detach()

    denoiser = Denoiser(net, schedule=schedule, learned_variance=learned)
    measurement = Measurement(y, Matrix(shape=(5,)))
    mine = run(
        DDPM(),
        denoiser,
        start,
        Straight()(schedule, T),
        schedule,
        OneStream(7),
        guidance=[DPS(zeta)],
        measurement=measurement,
    )
    assert_same(mine, x)


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize(
    ("transition", "order"),
    [(DDIM(), 1), (Euler(), 1), (Heun(), 2), (DPMSolver(), 2)],
    ids=["ddim", "euler", "heun", "dpm"],
)
def test_inversion_and_back(transition: Transition, order: int, frame: str) -> None:
    schedule, prior = FRAMES[frame](), correlated(3)
    predicts = "velocity" if frame == "flow" else "eps"
    denoiser = Denoiser(prior.network(predicts, schedule), predicts=predicts, schedule=schedule)
    x, errors = prior.mean + 0.5 * rand(4, 3), []
    for n in (30, 120):
        x_T = invert(denoiser, x, steps=n, transition=transition, dtype=D)
        back = generate(denoiser, x_T=x_T, steps=n, transition=transition, dtype=D).x
        # The image is taken as the state at the least noisy level, so what comes back is that
        # level's estimate of it.
        least = Straight()(schedule, n)[-2]
        target = prior.posterior_mean(x * least.alpha, float(least.alpha), float(least.sigma))
        errors.append(float((back - target).norm() / x.norm()))
    assert errors[1] < 0.05
    assert errors[1] < 0.5 * errors[0], errors


def test_inversion_refuses_noise() -> None:
    with pytest.raises(ValueError, match="deterministic"):
        invert(Denoiser(toy_eps, schedule=schedules.linear()), rand(1, 2), transition=DDPM())


def test_construction_errors() -> None:
    for make in (
        lambda: DDPM("huge"),
        lambda: DDIM(1.5),
        lambda: Langevin(steps=0),
        lambda: PredictorCorrector(snr=0.0),
    ):
        with pytest.raises(ValueError, match="got"):
            make()
    schedule = schedules.linear()
    with pytest.raises(ValueError, match="learned_variance=True"):
        run(
            DDPM("learned"),
            Denoiser(toy_eps, schedule=schedule),
            rand(1, 2),
            Straight()(schedule, 3),
            schedule,
            OneStream(),
        )
