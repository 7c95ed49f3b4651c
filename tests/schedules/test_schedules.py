"""Schedules against diffusers, the papers' closed forms, their own inverses and finite
differences."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers import (
    DDPMScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from oracles import D

from invdiff import schedules
from invdiff.schedules import Discrete, Schedule

CONTINUOUS: dict[str, Callable[[], Schedule]] = {
    "vp": schedules.vp,
    "subvp": schedules.subvp,
    "ve": schedules.ve,
    "brownian": schedules.brownian,
    "edm": schedules.edm,
    "flow": schedules.flow,
    "flow_noise_first": lambda: schedules.flow(noise_first=True),
}
DISCRETE: dict[str, Callable[[], Discrete]] = {
    "linear": schedules.linear,
    "scaled_linear": schedules.scaled_linear,
    "cosine": schedules.cosine,
    "sigmoid": schedules.sigmoid,
    "sigmas": lambda: schedules.from_sigmas(torch.logspace(-2, 2, 100, dtype=D)),
}
ALL: dict[str, Callable[[], Schedule]] = {**DISCRETE, **CONTINUOUS}


def alpha_bar(schedule: Schedule) -> torch.Tensor:
    """alpha² at the schedule's own integer times."""
    return schedule(torch.arange(1000)).alpha ** 2


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize(
    ("kind", "make", "ends"),
    [
        ("linear", schedules.linear, {}),
        ("linear", schedules.linear, {"beta_start": 0.001, "beta_end": 0.03}),
        ("scaled_linear", schedules.scaled_linear, {"beta_start": 0.00085, "beta_end": 0.012}),
        ("sigmoid", schedules.sigmoid, {}),
        ("squaredcos_cap_v2", schedules.cosine, {}),
    ],
)
def test_alpha_bar_of_diffusers(
    kind: str, make: Callable[..., Discrete], ends: dict[str, float], zero: bool
) -> None:
    theirs = DDPMScheduler(
        beta_schedule=kind, rescale_betas_zero_snr=zero, **ends
    ).alphas_cumprod.double()
    torch.testing.assert_close(
        alpha_bar(make(1000, **ends, zero_terminal_snr=zero)), theirs, atol=2e-6, rtol=2e-4
    )


def test_zero_terminal_snr_is_pure_noise_at_the_end_and_keeps_the_first_level() -> None:
    plain, zero = schedules.linear(), schedules.linear(zero_terminal_snr=True)
    last = zero(999)
    assert (float(last.alpha), float(last.sigma)) == (0.0, 1.0)
    torch.testing.assert_close(zero(0).alpha, plain(0).alpha, atol=1e-14, rtol=0)
    # Algorithm 1 of Lin et al. shifts and scales sqrt(alpha_bar): an affine map of the plain one.
    a, b = plain(torch.tensor([100, 500])).alpha, zero(torch.tensor([100, 500])).alpha
    first, end = plain(0).alpha, plain(999).alpha
    torch.testing.assert_close(b, (a - end) * first / (first - end))


def test_custom_betas_and_sigmas() -> None:
    betas = [0.1, 0.2, 0.5]
    torch.testing.assert_close(
        schedules.from_betas(betas)(torch.arange(3)).alpha ** 2,
        torch.tensor([0.9, 0.72, 0.36], dtype=D),
    )
    level = schedules.from_sigmas([0.1, 1.0, 7.0])(torch.arange(3))
    torch.testing.assert_close(level.sigma, torch.tensor([0.1, 1.0, 7.0], dtype=D))
    assert bool((level.alpha == 1).all())


@pytest.mark.parametrize("make", DISCRETE.values(), ids=DISCRETE)
def test_discrete_is_clean_at_minus_one_and_refuses_what_lies_outside(
    make: Callable[[], Discrete],
) -> None:
    schedule = make()
    clean = schedule(schedule.clean)
    assert (float(clean.t), float(clean.alpha), float(clean.sigma)) == (-1.0, 1.0, 0.0)
    for t in (-1.5, float(schedule.T)):
        with pytest.raises(ValueError, match=f"from 0 to {schedule.T - 1}"):
            schedule(t)


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_levels_are_cpu_float64_noise_grows_and_the_end_is_clean(
    make: Callable[[], Schedule],
) -> None:
    schedule = make()
    t = torch.linspace(schedule.t_max, schedule.t_min, 50, dtype=D)
    level = schedule(t)
    assert level.alpha.dtype == level.sigma.dtype == D
    assert bool((level.ratio.diff() < 0).all()), "noise falls from t_max to t_min"
    clean = schedule(schedule.clean)
    assert float(clean.sigma) == 0.0
    assert float(clean.alpha) == 1.0


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_time_inverts_ratio(make: Callable[[], Schedule]) -> None:
    schedule = make()
    t = torch.linspace(schedule.t_min, schedule.t_max, 1237, dtype=D)
    t = t[torch.isfinite(schedule(t).ratio)]
    torch.testing.assert_close(schedule.time(schedule(t).ratio), t, atol=2e-6, rtol=1e-9)


@pytest.mark.parametrize("make", DISCRETE.values(), ids=DISCRETE)
def test_time_is_exact_at_the_own_levels_and_between_clean_and_the_first(
    make: Callable[[], Discrete],
) -> None:
    schedule = make()
    own = torch.arange(schedule.T, dtype=D)
    assert torch.equal(schedule.time(schedule(own).ratio), own)
    below = torch.tensor([-1.0, -0.75, -0.25], dtype=D)
    torch.testing.assert_close(schedule.time(schedule(below).ratio), below, atol=1e-9, rtol=0)


def test_fractional_discrete_times_interpolate_log_ratio() -> None:
    schedule = schedules.linear()
    a, b, between = schedule(400).ratio, schedule(401).ratio, schedule(400.25)
    torch.testing.assert_close(between.ratio.log(), 0.75 * a.log() + 0.25 * b.log())
    torch.testing.assert_close(between.alpha**2 + between.sigma**2, torch.tensor(1.0, dtype=D))


def test_infinite_ratio_is_the_last_level() -> None:
    zero = schedules.linear(zero_terminal_snr=True)
    assert float(zero.time(torch.tensor(math.inf))) == 999
    assert float(schedules.flow().time(torch.tensor(math.inf))) == 1.0
    assert float(schedules.flow(noise_first=True).time(torch.tensor(math.inf))) == 0.0


def test_vp_integrates_its_betas() -> None:
    t = np.linspace(0, 1, 100_001)
    beta = 0.1 + t * (20.0 - 0.1)
    integral = np.concatenate(
        [[0], np.cumsum((beta[1:] + beta[:-1]) / 2 * np.diff(t))]
    )  # exact: beta is linear
    for k in (1000, 30_000, 100_000):
        level, sub = schedules.vp()(t[k]), schedules.subvp()(t[k])
        decay = math.exp(-integral[k])
        assert float(level.alpha) == pytest.approx(math.exp(-integral[k] / 2), rel=1e-9)
        assert float(level.sigma) == pytest.approx(math.sqrt(1 - decay), rel=1e-7)
        assert float(sub.alpha) == pytest.approx(math.exp(-integral[k] / 2), rel=1e-9)
        assert float(sub.sigma) == pytest.approx(1 - decay, rel=1e-7)


def test_vp_is_the_limit_of_ddpm_linear() -> None:
    t = torch.tensor([100, 500, 900])
    torch.testing.assert_close(
        schedules.linear()(t).alpha,
        schedules.vp()((t.double() + 1) / 1000).alpha,
        rtol=0,
        atol=1e-3,
    )


def test_ve_brownian_edm_flow_closed_forms() -> None:
    t = torch.tensor([0.2, 0.5], dtype=D)
    torch.testing.assert_close(
        schedules.ve(0.01, 50)(t).sigma,
        torch.tensor([0.01 * 5000**0.2, math.sqrt(0.01 * 50)], dtype=D),
    )
    torch.testing.assert_close(schedules.brownian()(4.0).sigma, torch.tensor(2.0, dtype=D))
    assert float(schedules.edm()(3.0).sigma) == 3.0
    assert schedules.flow()(0.2)[1:] == (torch.tensor(0.8, dtype=D), torch.tensor(0.2, dtype=D))
    assert schedules.flow(noise_first=True)(0.2)[1:] == (
        torch.tensor(0.2, dtype=D),
        torch.tensor(0.8, dtype=D),
    )


@pytest.mark.parametrize("make", CONTINUOUS.values(), ids=CONTINUOUS)
def test_rates_are_derivatives(make: Callable[[], Schedule]) -> None:
    schedule = make()
    t = schedule.t_min + torch.tensor([0.2, 0.5, 0.9], dtype=D) * (schedule.t_max - schedule.t_min)
    h = 1e-5 * abs(schedule.t_max - schedule.t_min)
    up, down = schedule(t + h), schedule(t - h)
    d_alpha, d_sigma = schedule.rates(t)
    torch.testing.assert_close(d_alpha, (up.alpha - down.alpha) / (2 * h), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(d_sigma, (up.sigma - down.sigma) / (2 * h), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("steps", [1, 3, 10, 50, 77, 250, 1000])
@pytest.mark.parametrize(
    ("ours", "theirs"), [("leading", "leading"), ("trailing", "trailing"), ("uniform", "linspace")]
)
def test_respacing_of_diffusers(ours: str, theirs: str, steps: int) -> None:
    reference = DDPMScheduler(timestep_spacing=theirs)
    reference.set_timesteps(steps)
    times = schedules.linear().times(steps, ours)
    if theirs == "linspace" and steps == 1:
        assert times.tolist() == [
            999
        ]  # numpy's linspace of one is [0], from which nothing can be sampled
    else:
        assert times.tolist() == reference.timesteps.tolist()


@pytest.mark.parametrize("steps", [2, 25, 50, 100, 250, 333, 1000])
def test_uniform_respacing_of_guided_diffusion(steps: int) -> None:
    # improved/guided-diffusion, respace.py: one section, accumulated stride, rounded.
    stride, position, taken = 999 / (steps - 1), 0.0, []
    for _ in range(steps):
        taken.append(round(position))
        position += stride
    assert schedules.linear().times(steps).tolist() == taken[::-1]


@pytest.mark.parametrize("steps", [10, 50, 100])
def test_quadratic_respacing_of_ddim(steps: int) -> None:
    # ddim, runners/diffusion.py: skip_type "quad".
    sequence = [int(s) for s in np.linspace(0, np.sqrt(1000 * 0.8), steps) ** 2]
    ours = schedules.linear().times(steps, "quadratic").tolist()[::-1]
    first = next(
        i for i in range(steps) if sequence[i] >= i and i > 0
    )  # before it theirs repeats levels, ours counts up
    assert ours[first:] == sequence[first:]
    assert ours[:first] == list(range(first))


@pytest.mark.parametrize("steps", [1, 2, 99, 800, 1000])
def test_quadratic_respacing_visits_every_time_once(steps: int) -> None:
    times = schedules.linear().times(steps, "quadratic")
    assert len(times) == steps
    assert bool((times.diff() < 0).all())
    assert float(times[-1]) == 0 or steps == 1
    assert 800 <= float(times[0]) <= 999


def test_continuous_spacings_meet_their_ends() -> None:
    for schedule in (
        schedules.vp(),
        schedules.ve(),
        schedules.flow(),
        schedules.flow(noise_first=True),
    ):
        n = 8
        uniform, quadratic = schedule.times(n, "uniform"), schedule.times(n, "quadratic")
        for times in (uniform, quadratic):
            torch.testing.assert_close(
                times[[0, -1]],
                torch.tensor([schedule.t_max, schedule.t_min], dtype=D),
                atol=1e-12,
                rtol=1e-12,
            )
        trailing = schedule.times(n, "trailing")
        assert float(trailing[0]) == schedule.t_max
        torch.testing.assert_close(trailing.diff(), trailing.diff()[:1].expand(n - 1))
        assert bool((schedule(schedule.times(n, "leading")).ratio.diff() < 0).all())
        # quadratic means equal steps of the root of the distance from the clean side
        root = (quadratic - schedule.clean_side).abs().sqrt()
        torch.testing.assert_close(
            root.diff(), root.diff()[:1].expand(n - 1), rtol=1e-9, atol=1e-12
        )


def test_karras_grid_of_edm() -> None:
    reference = EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0)
    reference.set_timesteps(18)
    schedule = schedules.edm()
    times = schedule.times(18)
    torch.testing.assert_close(times, reference.sigmas[:-1].double(), rtol=1e-5, atol=0)
    i = torch.arange(18, dtype=D)
    torch.testing.assert_close(
        times, (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    )
    assert (float(times[0]), float(times[-1])) == pytest.approx((80.0, 0.002), rel=1e-12)


def test_karras_grid_on_a_discrete_schedule() -> None:
    reference = EulerDiscreteScheduler(use_karras_sigmas=True)
    reference.set_timesteps(20)
    schedule = schedules.linear()
    times = schedule.times(20, "karras")
    torch.testing.assert_close(
        schedule(times).ratio, reference.sigmas[:-1].double(), rtol=1e-3, atol=0
    )
    assert len(schedule.times(1500, "karras")) == 1500  # finer than the schedule itself


def test_karras_needs_finite_ends() -> None:
    for schedule in (schedules.flow(), schedules.linear(zero_terminal_snr=True)):
        with pytest.raises(ValueError, match="finite"):
            schedule.times(10, "karras")


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_grid_of_diffusers(shift: float) -> None:
    # diffusers shifts its training grid, whose ends it then respaces; given plain sigmas it shifts
    # them once, as we do.
    reference = FlowMatchEulerDiscreteScheduler(shift=shift)
    reference.set_timesteps(sigmas=torch.linspace(1, 0, 11)[:-1].tolist())
    torch.testing.assert_close(
        schedules.flow(shift).times(10), reference.sigmas[:-1].double(), rtol=1e-6, atol=1e-7
    )
    torch.testing.assert_close(
        schedules.flow(shift, noise_first=True).times(10), 1 - schedules.flow(shift).times(10)
    )


def test_custom_times() -> None:
    assert schedules.linear().times(100, [900, 400, 3]).tolist() == [900.0, 400.0, 3.0]
    for bad in ([], [[1.0]]):
        with pytest.raises(ValueError, match="non-empty list"):
            schedules.linear().times(10, bad)  # type: ignore[arg-type]


def test_errors_say_what_is_allowed() -> None:
    with pytest.raises(ValueError, match="at most 1000 steps, got 1001"):
        schedules.linear().times(1001)
    with pytest.raises(ValueError, match="uniform, leading, trailing, quadratic, karras"):
        schedules.vp().times(10, "linear")
    with pytest.raises(ValueError, match="at least 1"):
        schedules.vp().times(0)
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        schedules.from_betas([0.1, 1.5])
    with pytest.raises(ValueError, match="do not fall"):
        schedules.from_sigmas([3.0, 1.0])
