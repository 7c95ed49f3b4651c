"""MALA and underdamped Langevin: equal to their moves written out with densities, and leaving
p(x_s) as it is where unadjusted moves of the same size do not."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracles import D, Mixture, OneStream, correlated, in_floors, rand, step_of
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from invdiff import schedules
from invdiff.network import Denoiser, Prediction
from invdiff.schedules import Level, Schedule
from invdiff.transitions import DDIM, MALA, Heun, Underdamped
from invdiff.transitions.corrected import Corrected

pytestmark = pytest.mark.usefixtures("one_thread")

FRAMES: dict[str, Schedule] = {
    "vp": schedules.linear(),
    "ve": schedules.ve(),
    "flow": schedules.flow(),
}
MIXTURE = Mixture(
    torch.tensor([0.3, 0.7], dtype=D),
    torch.tensor([[-1.0, 0.5], [1.5, -0.5]], dtype=D),
    torch.tensor([[[0.2, 0.1], [0.1, 0.3]], [[0.4, -0.15], [-0.15, 0.2]]], dtype=D),
)
RATIO = 0.5


def marginal(prior: Mixture, level: Level) -> Mixture:
    """p(x_s)."""
    alpha, sigma = float(level.alpha), float(level.sigma)
    noise = sigma**2 * torch.eye(prior.means.shape[1], dtype=D)
    return Mixture(prior.weights, alpha * prior.means, alpha**2 * prior.covariances + noise)


def corrected(transition: Corrected, prior: Mixture, frame: str, x: Tensor) -> tuple[Tensor, Level]:
    """The state after the corrections at one level, and the level."""
    schedule = FRAMES[frame]
    level = schedule.at(RATIO)
    denoiser = Denoiser(prior.network("x0", schedule), predicts="x0", schedule=schedule)
    step = step_of(schedule, level, level, OneStream(7))
    return transition.correct(denoiser, x, step), level


@pytest.mark.parametrize("frame", FRAMES)
def test_mala_is_its_definition_with_densities(frame: str) -> None:
    """On a Gaussian, where Simpson's rule is exact: the density of the state, and of the proposal
    there and back."""
    prior, chains, snr, stream = correlated(4), 50, 0.9, OneStream(7)
    level = FRAMES[frame].at(RATIO)
    p = marginal(prior, level)
    density = MultivariateNormal(p.mean, p.covariance)
    x = start = p.draw(chains, seed=1)
    e, taken = 2 * (snr * float(level.sigma)) ** 2, 0

    def drifted(x: Tensor) -> Tensor:
        return x - e * (x - p.mean) @ torch.linalg.inv(p.covariance)

    for _ in range(20):
        moved = drifted(x) + math.sqrt(2 * e) * stream.randn_like(x)
        there = Normal(drifted(x), math.sqrt(2 * e)).log_prob(moved).sum(1)
        back = Normal(drifted(moved), math.sqrt(2 * e)).log_prob(x).sum(1)
        log_a = density.log_prob(moved) - density.log_prob(x) + back - there
        uniform = Normal(0.0, 1.0).cdf(stream.randn_like(x)[:, 0])
        kept = (uniform < log_a.exp())[:, None]
        x, taken = torch.where(kept, moved, x), taken + int(kept.sum())
    assert 0.2 * chains * 20 < taken < 0.8 * chains * 20
    ours, _ = corrected(MALA(steps=20, snr=snr), prior, frame, start)
    torch.testing.assert_close(ours, x, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("frame", FRAMES)
def test_underdamped_is_its_splitting(frame: str) -> None:
    prior, h, gamma, stream = correlated(4), 0.8, 0.6, OneStream(7)
    level = FRAMES[frame].at(RATIO)
    p, sigma = marginal(prior, level), float(level.sigma)
    precision = torch.linalg.inv(p.covariance)
    x = start = p.draw(6, seed=1)
    v = sigma * stream.randn_like(x)  # lengths and speeds in those of the state
    for _ in range(5):
        v = v - sigma**2 * h / 2 * (x - p.mean) @ precision
        x = x + h / 2 * v
        v = math.exp(-gamma * h) * v
        v = v + sigma * math.sqrt(1 - math.exp(-2 * gamma * h)) * stream.randn_like(v)
        x = x + h / 2 * v
        v = v - sigma**2 * h / 2 * (x - p.mean) @ precision
    ours, _ = corrected(Underdamped(steps=5, h=h, gamma=gamma), prior, frame, start)
    torch.testing.assert_close(ours, x, atol=1e-9, rtol=1e-9)


def unadjusted(prior: Mixture, frame: str, x: Tensor, snr: float, steps: int) -> Tensor:
    """The same Langevin moves, each of them made."""
    level, stream = FRAMES[frame].at(RATIO), OneStream(7)
    alpha, sigma = float(level.alpha), float(level.sigma)
    e = 2 * (snr * sigma) ** 2
    for _ in range(steps):
        score = (alpha * prior.posterior_mean(x, alpha, sigma) - x) / sigma**2
        x = x + e * score + math.sqrt(2 * e) * stream.randn_like(x)
    return x


@pytest.mark.parametrize("frame", ["flow"])
def test_the_corrected_mixture_is_the_mixture(frame: str) -> None:
    """From exact draws of p(x_s), and from draws of one component alone, in floors of exact
    draws; unadjusted moves end in another distribution."""
    chains, level = 2000, FRAMES[frame].at(RATIO)
    exact = marginal(MIXTURE, level)
    one = Mixture(torch.ones(1, dtype=D), exact.means[:1], exact.covariances[:1])
    for start, steps in ((exact.draw(chains, 1), 50), (one.draw(chains, 1), 400)):
        for transition in (MALA(steps=steps, snr=0.9), Underdamped(steps=steps, h=0.4)):
            x, _ = corrected(transition, MIXTURE, frame, start)
            assert in_floors(x, exact) < 1.5
            torch.testing.assert_close(x.mean(0), exact.mean, atol=0.1, rtol=0)
            torch.testing.assert_close(torch.cov(x.T), exact.covariance, atol=0.1, rtol=0)
    assert in_floors(unadjusted(MIXTURE, frame, exact.draw(chains, 1), 0.9, 50), exact) > 3


def test_underdamped_has_no_error_of_its_step_on_a_gaussian() -> None:
    """At a step near its stability, from a start that is far off."""
    prior, chains = correlated(4), 8000
    x, level = corrected(Underdamped(steps=100, h=1.6), prior, "vp", 3 * rand(chains, 4, seed=1))
    exact = marginal(prior, level)
    torch.testing.assert_close(x.mean(0), exact.mean, atol=0.06, rtol=0)
    torch.testing.assert_close(torch.cov(x.T), exact.covariance, atol=0.1, rtol=0)


def test_an_image_is_accepted_by_itself() -> None:
    """Where the score of one image is not finite none of its moves is made."""
    schedule = FRAMES["vp"]
    level = schedule.at(RATIO)

    def predict(x: Tensor, level: Level) -> Prediction:
        eps = x.clone()
        eps[1] = torch.nan
        return Prediction(x, level, x, eps)

    x = rand(3, 2, 4, 4, seed=1)
    out = MALA(steps=3, snr=0.2).correct(predict, x, step_of(schedule, level, level, OneStream()))
    assert torch.equal(out[1], x[1])
    assert not torch.equal(out[0], x[0]) and not torch.equal(out[2], x[2])


def test_there_is_no_correction_of_pure_noise_nor_of_what_is_clean() -> None:
    flow, made = schedules.flow(), []

    def predict(x: Tensor, level: Level) -> Prediction:
        made.append(float(level.t))
        return Prediction(x, level, 0.5 * x, x)

    for transition in (MALA(DDIM()), Underdamped(DDIM())):
        for t, s in ((1.0, 0.9), (0.3, 0.0)):
            made.clear()
            transition.down(predict, rand(2, 3), step_of(flow, flow(t), flow(s), OneStream()), None)  # type: ignore[arg-type]
            assert made == [t]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MALA(steps=0), "steps must be at least 1, got 0"),
        (lambda: MALA(snr=0.0), "snr must be a finite positive number, got 0"),
        (lambda: Underdamped(h=-1.0), "h must be a finite positive number, got -1"),
        (lambda: Underdamped(gamma=math.inf), "gamma must be a finite number, at least 0, got inf"),
        (lambda: Underdamped(Heun(), steps=0), "steps must be at least 1, got 0"),
    ],
)
def test_wrong_parameters_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
