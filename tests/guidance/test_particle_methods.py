"""TDS and MCGDiff against plain implementations of their papers, against exact posteriors, and what
makes a particle system one."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracles import D, Gaussian, Given, Mixture, OneStream, correlated, rand
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from invdiff import schedules
from invdiff.guidance.mcgdiff import MCGDiff
from invdiff.guidance.tds import TDS
from invdiff.itineraries import Jumps, LateStart, Straight
from invdiff.network import Denoiser
from invdiff.noise import NoiseSource
from invdiff.operators.matrix import Matrix
from invdiff.problem import Measurement, make_operator
from invdiff.sampling import Step, Transition, make_method, sample
from invdiff.sampling.particles import resample
from invdiff.schedules import Level, Schedule
from invdiff.solving import solve
from invdiff.solving.plan import complete
from invdiff.transitions import DDIM, DDPM, Heun

pytestmark = pytest.mark.usefixtures("one_thread")

SCHEDULE = schedules.linear()
d, N = 4, 6
A = rand(2, d, seed=3)
Y = rand(2, seed=4) * 1.5


def modes(spread: float = 1.5) -> Mixture:
    """Two correlated Gaussians."""
    covariances = torch.stack([correlated(d, seed).covariance for seed in (5, 6)])
    return Mixture(torch.tensor([0.3, 0.7], dtype=D), spread * rand(2, d, seed=7), covariances)


def unit_modes(distance: float = 3.0) -> Mixture:
    """Two modes of unit covariance, whose ancestral kernel with the large variance is Gaussian and
    exact within each."""
    direction = torch.nn.functional.normalize(rand(d, seed=8), dim=0)
    means = torch.stack([distance * direction, -distance * direction])
    return Mixture(torch.tensor([0.4, 0.6], dtype=D), means, torch.eye(d, dtype=D).expand(2, d, d))


def denoiser(prior: Mixture, schedule: Schedule = SCHEDULE) -> Denoiser:
    return Denoiser(prior.network("x0", schedule), predicts="x0", schedule=schedule, dtype=D)


def measured(y: Tensor, sigma: Any, matrix: Tensor = A) -> Measurement:
    return Measurement(y, Matrix(matrix).bind((matrix.shape[1],)), sigma)


def ours(
    transition: Transition,
    prior: Mixture,
    sigma: Any,
    x: Tensor,
    levels: list[Level],
    draws: list[Tensor],
) -> Tensor:
    """One particle system from given noise."""
    measurement = measured(Y.expand(len(x), 2), sigma)
    noise = Given(draws)
    out = sample(
        denoiser(prior),
        x,
        levels,
        schedule=SCHEDULE,
        noise=noise,
        transition=transition,
        measurement=measurement,
        particles=len(x),
    )
    assert noise.drawn == len(draws)
    return out


def draws_of(steps: int, n: int = N, seed: int = 10) -> list[Tensor]:
    """What a run of n particles draws: a number for resampling and a state's noise in each step, in
    the last a number only."""
    return [
        z
        for i in range(steps)
        for z in (rand(n, 1, seed=seed + 2 * i), rand(n, d, seed=seed + 2 * i + 1))
    ][:-1]


def systematic(w: list[float], u: float) -> list[int]:
    """Systematic resampling by its definition: as many lines u/n, (1 + u)/n, ... as particles, each
    takes the particle it falls on."""
    n, chosen = len(w), []
    for k in range(n):
        line, below = (k + u) / n, 0.0
        for i, share in enumerate(w):
            below += share
            if line < below:
                chosen.append(i)
                break
    return chosen


# Resampling ---------------------------------------------------------------------------------------


def step_with(particles: int, noise: NoiseSource, index: int = 0) -> Step:
    levels = Straight()(SCHEDULE, 4)
    return Step(index, levels[0], levels[1], SCHEDULE, noise, particles=particles)


@pytest.mark.parametrize("seed", range(5))
def test_systematic_resampling_by_its_definition(seed: int) -> None:
    n, images = 7, 3
    log_w, z = 2 * rand(images * n, seed=seed), rand(images * n, 1, seed=seed + 50)
    rows, after = resample(log_w, step_with(n, Given([z])))
    for image in range(images):
        own = slice(image * n, (image + 1) * n)
        w = torch.softmax(log_w[own], 0)
        u = float(Normal(0.0, 1.0).cdf(z[image * n, 0]))
        assert (rows[own] - image * n).tolist() == systematic(w.tolist(), u)
    assert torch.equal(after, torch.zeros_like(after))


def test_ancestors_never_cross_images_and_weights_of_one_do_not_matter_to_another() -> None:
    n, images = 50, 4
    log_w = 30 * rand(images, n, seed=1)
    rows, _ = resample(log_w.flatten(), step_with(n, OneStream()))
    assert torch.equal(rows // n, torch.arange(images).repeat_interleave(n))
    log_w[2] -= 1e4  # an image that is unlikely as a whole
    assert torch.equal(resample(log_w.flatten(), step_with(n, OneStream()))[0], rows)


def test_particles_are_expected_as_often_as_they_weigh() -> None:
    n, images = 5, 20000
    w = torch.softmax(rand(n, seed=2), 0)
    rows, _ = resample(w.log().repeat(images), step_with(n, OneStream(3)))
    expected = torch.bincount(rows % n, minlength=n).double() / images
    assert torch.allclose(expected, n * w, atol=0.02)


def test_only_a_poor_effective_sample_size_resamples() -> None:
    n = 10
    rich, poor = torch.zeros(n, dtype=D), torch.full((n,), -40.0, dtype=D)
    rich[0], poor[3] = 1.0, 0.0  # effective sizes of 8.2 and 1
    rows, after = resample(torch.cat([rich, poor]), step_with(n, OneStream()), threshold=0.5)
    assert torch.equal(rows, torch.cat([torch.arange(n), torch.full((n,), n + 3)]))
    assert torch.equal(after[n:], torch.zeros(n, dtype=D))
    kept = after[:n]
    assert torch.allclose(kept - kept[1], rich) and abs(float(kept.exp().mean()) - 1) < 1e-12
    everything, _ = resample(torch.cat([rich, poor]), step_with(n, OneStream()), threshold=0.0)
    assert torch.equal(everything, torch.arange(2 * n))


# Equal to the papers, from the same noise ---------------------------------------------------------


def alpha_bars(levels: list[Level]) -> list[float]:
    return [float(level.alpha) ** 2 for level in levels]


def plain_tds(
    prior: Mixture,
    covariance: str,
    sigma: float,
    ess: float,
    eta: float,
    x: Tensor,
    bars: list[float],
    draws: list[Tensor],
) -> Tensor:
    """Wu et al., algorithm 1, on a VP diffusion: densities from torch.distributions, one particle
    at a time."""
    noise, n = iter(draws), len(x)
    log_w = torch.zeros(n, dtype=D)
    for bar, bar_s in zip(bars, bars[1:], strict=False):
        beta_tilde = (1 - bar_s) / (1 - bar) * (1 - bar / bar_s)
        std = eta * math.sqrt(beta_tilde)
        plain, twisted, log_twist = [], [], []
        for k in range(n):

            def estimate(v: Tensor, bar: float = bar) -> Tensor:
                return prior.posterior_mean(v[None], bar**0.5, (1 - bar) ** 0.5)[0]

            x0, jacobian = estimate(x[k]), torch.autograd.functional.jacobian(estimate, x[k])
            C = (
                (1 - bar) * torch.eye(d, dtype=D)
                if covariance == "pigdm"
                else (1 - bar) / bar**0.5 * jacobian
            )
            S = A @ C @ A.T + sigma**2 * torch.eye(2, dtype=D)
            log_twist.append(MultivariateNormal(A @ x0, (S + S.T) / 2).log_prob(Y))
            grad = jacobian.T @ A.T @ torch.linalg.solve(S, Y - A @ x0)
            for kept, xstart in ((plain, x0), (twisted, x0 + (1 - bar) / bar**0.5 * grad)):
                eps = (x[k] - bar**0.5 * xstart) / (1 - bar) ** 0.5
                kept.append(bar_s**0.5 * xstart + math.sqrt(1 - bar_s - std**2) * eps)
        log_w = log_w + torch.stack(log_twist)
        w = torch.softmax(log_w, 0)
        u = float(Normal(0.0, 1.0).cdf(next(noise)[0, 0]))
        if bar_s == 1 or 1 / float(w.square().sum()) < ess * n:
            chosen, log_w = systematic(w.tolist(), u), torch.zeros(n, dtype=D)
        else:
            chosen = list(range(n))
        if bar_s == 1:
            return torch.stack([twisted[k] for k in chosen])
        x = torch.stack([twisted[k] for k in chosen]) + std * next(noise)
        for k, a in enumerate(chosen):
            log_w[k] += (
                Normal(plain[a], std).log_prob(x[k]).sum()
                - Normal(twisted[a], std).log_prob(x[k]).sum()
                - log_twist[a]
            )
    raise AssertionError("the last level is clean")


@pytest.mark.parametrize("eta, inner", [(1.0, DDPM("small")), (0.85, DDIM(0.85))])
@pytest.mark.parametrize("ess", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("covariance", ["pigdm", "tweedie"])
def test_tds_is_the_papers_algorithm(
    covariance: str, ess: float, eta: float, inner: DDPM | DDIM
) -> None:
    steps, sigma, prior = 8, 0.3, modes()
    levels, x, draws = Straight()(SCHEDULE, steps), rand(N, d, seed=9), draws_of(steps)
    expected = plain_tds(prior, covariance, sigma, ess, eta, x, alpha_bars(levels), draws)
    got = ours(TDS(covariance, ess, inner), prior, sigma, x, levels, draws)
    assert torch.allclose(got, expected, atol=1e-9)


def brownian_bridge(at: float, low: float, high: float) -> tuple[float, float, float]:
    """u_at given u_low and u_high of a Brownian motion, times being variances: weights of the ends
    and the variance, by conditioning."""
    ends = torch.tensor([[low, low], [low, high]], dtype=D) + torch.ones(2, 2, dtype=D)
    cross = torch.tensor([low, at], dtype=D) + 1.0
    weights = torch.linalg.solve(ends, cross)
    return float(weights[0]), float(weights[1]), at + 1.0 - float(weights @ cross)


def plain_mcgdiff(
    prior: Mixture, sigma: float, eta: float, x: Tensor, bars: list[float], draws: list[Tensor]
) -> Tensor:
    """Cardoso et al., algorithms 1 and 2, one particle and component at a time, in x /
    sqrt(alpha_bar), a Brownian motion in (1 − bar)/bar."""
    U, singular, Vt = torch.linalg.svd(A, full_matrices=True)
    observed = (U.T @ Y / singular).tolist()
    times = [sigma**2 / float(s) ** 2 for s in singular]
    noise, n = iter(draws), len(x)
    for i, (bar, bar_s) in enumerate(zip(bars, bars[1:], strict=False)):
        T, S = (1 - bar) / bar, (1 - bar_s) / bar_s
        beta_tilde = (1 - bar_s) / (1 - bar) * (1 - bar / bar_s)
        std = eta * math.sqrt(beta_tilde)
        x0 = prior.posterior_mean(x, bar**0.5, (1 - bar) ** 0.5)
        eps = (x - bar**0.5 * x0) / (1 - bar) ** 0.5
        m = (bar_s**0.5 * x0 + math.sqrt(1 - bar_s - std**2) * eps) @ Vt.T / bar_s**0.5
        u = x @ Vt.T / bar**0.5
        spread = 1 - bar if bar_s == 1 else std**2 / bar_s
        log_w, means, variances = (
            torch.zeros(n, dtype=D),
            m.clone(),
            torch.full((n, d), spread, dtype=D),
        )
        for k in range(n):
            for j, (y, tau) in enumerate(zip(observed, times, strict=True)):
                if tau >= T:
                    continue
                # What y says about u_s: y = a u_s + b + noise of variance v.
                if tau <= S:
                    a, b, v = 1.0, 0.0, S - tau
                else:
                    a, share, v = brownian_bridge(tau, S, T)
                    b = share * float(u[k, j])
                log_w[k] += Normal(a * m[k, j] + b, math.sqrt(a**2 * spread + v)).log_prob(
                    torch.tensor(y, dtype=D)
                )
                if i > 0:
                    log_w[k] -= Normal(u[k, j], math.sqrt(T - tau)).log_prob(
                        torch.tensor(y, dtype=D)
                    )
                gain = a * spread / (a**2 * spread + v)
                means[k, j] += gain * (y - a * m[k, j] - b)
                variances[k, j] *= 1 - gain * a
        chosen = systematic(
            torch.softmax(log_w, 0).tolist(), float(Normal(0.0, 1.0).cdf(next(noise)[0, 0]))
        )
        u = means[chosen]
        if bar_s < 1:
            u = u + variances.sqrt() * (next(noise) @ Vt.T)
        x = bar_s**0.5 * u @ Vt
    return x


@pytest.mark.parametrize("eta, inner", [(1.0, DDPM("small")), (0.85, DDIM(0.85))])
@pytest.mark.parametrize("sigma", [0.0, 0.02, 0.7])  # without noise; tau below and amid the levels
def test_mcgdiff_is_the_papers_algorithm(sigma: float, eta: float, inner: DDPM | DDIM) -> None:
    steps, prior = 8, modes()
    levels, x, draws = Straight()(SCHEDULE, steps), rand(N, d, seed=9), draws_of(steps)
    expected = plain_mcgdiff(prior, sigma, eta, x, alpha_bars(levels), draws)
    got = ours(MCGDiff(inner), prior, sigma, x, levels, draws)
    assert torch.allclose(got, expected, atol=1e-8)


@pytest.mark.parametrize("transition", [TDS(), TDS("tweedie"), MCGDiff()])
def test_every_frame_is_the_same_run(transition: Transition) -> None:
    """States of equal sigma/alpha are the same up to a factor, whatever the schedule; so are their
    particles."""
    prior, steps = modes(), 8
    vp = Straight()(SCHEDULE, steps)
    x, draws = rand(N, d, seed=9), draws_of(steps)
    expected = ours(transition, prior, 0.4, x, vp, draws)
    for schedule in (schedules.flow(), schedules.ve(sigma_min=1e-3, sigma_max=500.0)):
        levels = [schedule.at(level.ratio) for level in vp[:-1]] + [
            Level(torch.tensor(0.0), torch.tensor(1.0, dtype=D), torch.tensor(0.0, dtype=D))
        ]
        scaled = x * float(levels[0].alpha / vp[0].alpha)
        assert torch.allclose(
            ours(transition, prior, 0.4, scaled, levels, draws), expected, atol=1e-7
        )


# What theory promises: few steps, growing systems -------------------------------------------------

SYSTEMS: dict[str, Callable[[], Transition]] = {
    "pigdm": lambda: TDS("pigdm", inner=DDPM("large")),
    "tweedie": lambda: TDS("tweedie", inner=DDPM("large")),
    "mcgdiff": lambda: MCGDiff(DDPM("large")),
}


def system(
    transition: Transition,
    prior: Mixture,
    sigma: float,
    particles: int,
    steps: int,
    images: int = 1,
    seed: int = 0,
) -> Tensor:
    """(images, particles, d), independent systems of one measurement."""
    x = rand(images * particles, d, seed=seed + 1000)
    out = sample(
        denoiser(prior),
        x,
        Straight()(SCHEDULE, steps),
        schedule=SCHEDULE,
        noise=OneStream(seed),
        transition=transition,
        measurement=measured(Y.expand(len(x), 2), sigma),
        particles=particles,
    )
    return out.view(images, particles, d)


def moment_errors(x: Tensor, exact: Mixture) -> float:
    """Root mean square over systems of the errors of mean and covariance."""
    mean, covariance = (
        x.mean(1) - exact.mean,
        torch.stack([torch.cov(s.T, correction=0) for s in x]) - exact.covariance,
    )
    return float((mean.square().sum(1) + covariance.square().sum((1, 2))).mean().sqrt())


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_gaussian_posterior_in_a_dozen_steps_as_particles_grow(name: str) -> None:
    """The ancestral kernel is exact for unit covariance, so only the number of particles limits."""
    prior, sigma = Gaussian(rand(d, seed=11), torch.ones(d, dtype=D)), 0.4
    exact = prior.posterior(A, Y, sigma)
    few, many = (
        moment_errors(system(SYSTEMS[name](), prior, sigma, n, 12, 5000 // n), exact)
        for n in (20, 5000)
    )
    assert many < 0.15 and many < few / 5


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_share_of_each_mode_as_particles_grow(name: str) -> None:
    prior, sigma = unit_modes(), 0.8
    exact = prior.posterior(A, Y, sigma)

    def share(x: Tensor) -> Tensor:
        return (torch.cdist(x, exact.means).argmin(-1) == 0).double().mean(-1)

    truth = share(exact.draw(100_000))
    few, many = (
        (share(system(SYSTEMS[name](), prior, sigma, n, 30, 2000 // n, seed=5)) - truth)
        .square()
        .mean()
        .sqrt()
        for n in (10, 2000)
    )
    assert 0.1 < truth < 0.9
    assert many < 0.05 and many < few / 3


# What makes a particle system one -----------------------------------------------------------------

METHODS: dict[str, Callable[[], Transition]] = {
    "pigdm": TDS,
    "tweedie": lambda: TDS("tweedie"),
    "mcgdiff": MCGDiff,
}
PRIOR = modes()


def restore(measurement: Measurement, method: Any, **options: Any) -> Any:
    return solve(
        measurement,
        denoiser(PRIOR),
        method,
        **{"steps": 6, "num_samples": 5, "dtype": D, **options},
    )


@pytest.mark.parametrize("sigma", [0.3, 0.0, [0.1, 0.0, 0.5]])
@pytest.mark.parametrize("name", METHODS)
def test_an_image_alone_is_the_image_in_its_batch(name: str, sigma: Any) -> None:
    y, method = rand(3, 2, seed=20), METHODS[name]()
    together = restore(measured(y, sigma), method)
    assert together.samples.isfinite().all()
    for size in (5, 12):  # one system at once, two at once
        assert torch.allclose(
            restore(measured(y, sigma), method, batch_size=size).samples,
            together.samples,
            atol=1e-10,
        )
    own = sigma[1] if isinstance(sigma, list) else sigma
    alone = restore(measured(y[1:2], own), method, image_ids=[1])
    assert torch.allclose(alone.samples[:, 0], together.samples[:, 1], atol=1e-10)


@pytest.mark.parametrize("name", ["pigdm", "mcgdiff"])
def test_masks_of_each_image(name: str) -> None:
    x = torch.rand(2, 1, 2, 2, dtype=D, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[[[1.0, 0], [1, 1]]], [[[0, 1], [0, 1]]]], dtype=D)
    operator = make_operator("inpaint", mask=mask)
    measurement = operator.measure(x, sigma=0.0)
    together = restore(measurement, METHODS[name]())
    alone = restore(measurement.select([1]), METHODS[name](), image_ids=[1])
    assert torch.allclose(alone.samples[:, 0], together.samples[:, 1], atol=1e-10)
    if name == "mcgdiff":  # what was measured without noise stays as it was
        assert torch.allclose(
            mask * together.samples, (mask * x).expand(5, -1, -1, -1, -1), atol=1e-10
        )


def test_a_fourier_basis_is_the_same_operator_as_its_matrix() -> None:
    """Complex spectral components come in pairs; the real SVD of the same blur must give the same
    law, here compared by its moments."""
    x = torch.rand(1, 1, 2, 2, dtype=D, generator=torch.Generator().manual_seed(1))
    blur = make_operator("blur", kernel=torch.tensor([[0.1, 0.6, 0.3]], dtype=D)).measure(
        x, sigma=0.2
    )
    units = torch.eye(4, dtype=D).view(4, 1, 2, 2)
    matrix = blur.operator(units).flatten(1).T
    dense = Measurement(blur.y.flatten(1), Matrix(matrix).bind((1, 2, 2)), 0.2)
    prior = Gaussian(torch.zeros(d, dtype=D), torch.ones(d, dtype=D))
    exact = prior.posterior(matrix, blur.y[0].flatten(), 0.2)
    for measurement in (blur, dense):
        found = solve(
            measurement,
            denoiser(prior),
            MCGDiff(DDPM("large")),
            steps=20,
            num_samples=2000,
            dtype=D,
        ).samples.flatten(1)
        assert moment_errors(found[None], exact) < 0.1


def test_evaluations_are_one_forward_a_step_and_the_backward_passes_of_the_twist() -> None:
    measurement = measured(Y[None], 0.3)
    for name, backward in (("pigdm", 6), ("tweedie", 12), ("mcgdiff", 0)):
        result = restore(measurement, METHODS[name]())
        assert (result.nfe, result.nbe) == (6, backward)


@pytest.mark.parametrize("name", METHODS)
def test_samples_of_an_image_share_a_batch(name: str) -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 5, got 4"):
        restore(measured(Y[None], 0.3), METHODS[name](), batch_size=4)


def test_one_particle_is_told() -> None:
    with pytest.warns(UserWarning, match="one particle"):
        restore(measured(Y[None], 0.3), TDS(), num_samples=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        restore(measured(Y[None], 0.3), TDS(), num_samples=2)


def test_a_late_start_weighs_its_particles() -> None:
    result = restore(measured(Y[None], 0.3), "tds", itinerary=LateStart(0.5))
    assert result.samples.isfinite().all() and result.nfe == 3


def test_a_chosen_transition_becomes_the_kernel() -> None:
    chosen = complete(make_method("tds", ess=1.0), DDIM(0.5)).transition
    assert chosen == TDS(ess=1.0, inner=DDIM(0.5))
    assert complete("mcgdiff", DDPM("large")).transition == MCGDiff(DDPM("large"))


@pytest.mark.parametrize("name", ["tds", "mcgdiff"])
def test_what_cannot_work_is_refused(name: str) -> None:
    for kernel in (DDIM(0.0), Heun()):
        with pytest.raises(ValueError, match=r"use DDPM, or DDIM\(eta\) with eta > 0"):
            restore(measured(Y[None], 0.3), name, transition=kernel)
    zero = torch.tensor([[0.0, 0.2]], dtype=D)
    with pytest.raises(ValueError, match="sigma is zero at some"):
        restore(measured(Y[None], zero), name)
    with pytest.raises(ValueError, match="cannot climb"):
        restore(measured(Y[None], 0.3), name, itinerary=Jumps(2, 2))


def test_wrong_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match="'pigdm' or 'tweedie', got 'full'"):
        TDS("full")
    with pytest.raises(ValueError, match="must be in"):
        TDS(ess=1.5)
    with pytest.raises(ValueError, match="one variance for all pixels"):
        MCGDiff(DDPM("learned"))
    x = torch.zeros(1, 1, 16, 16)
    with pytest.raises(ValueError, match="at most 64 real measurements"):
        solve(make_operator("denoise").measure(x, sigma=0.1), denoiser(PRIOR), TDS("tweedie"))
