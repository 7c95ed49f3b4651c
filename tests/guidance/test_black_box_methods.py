"""Methods that only run the operator: their updates written out, exact posteriors, and a simulator
outside of torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import invdiff
from invdiff import schedules
from invdiff.benchmarks.exact import mixture_problem
from invdiff.benchmarks.exact.problems import Problem, sliced_wasserstein
from invdiff.guidance.dpg import DPG
from invdiff.guidance.enkg import EnKG
from invdiff.guidance.scg import SCG
from invdiff.network import Prediction
from invdiff.noise import NoiseSource, generator_of
from invdiff.operators.matrix import Matrix
from invdiff.problem import Measurement, Operator
from invdiff.sampling import Step
from invdiff.schedules import Level
from invdiff.transitions import DDPM

D = torch.float64
SCHEDULE = schedules.linear(1000)


def rand(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=D)


def predict(x_t: Tensor, level: Level, **_: object) -> Prediction:
    """The network of the prior N(0, 1): x0 = alpha x_t / (alpha² + sigma²)."""
    x0 = level.alpha * x_t / (level.alpha**2 + level.sigma**2)
    return Prediction(x_t, level, x0, (x_t - level.alpha * x0) / level.sigma)


def step(rows: int) -> Step:
    t, s = SCHEDULE(torch.tensor(600)), SCHEDULE(torch.tensor(400))
    return Step(0, t, s, SCHEDULE, NoiseSource([7] * rows), 10)


def test_scg_takes_the_candidate_that_fits_best() -> None:
    A, n = rand(3, 5, seed=4), 5
    x_t, y = rand(4, 5, seed=5), rand(4, 3, seed=6)
    measurement = Measurement(y, Matrix(A).bind((5,)), 0.1)
    here = step(4)
    mean, std = DDPM().kernel(predict(x_t, here.t), here.t, here.s)
    noise = NoiseSource([7] * 4)
    candidates = torch.stack([mean + std * noise.randn_like(x_t) for _ in range(n)])
    fits = torch.stack([(y - predict(x, here.s).x0 @ A.mT).norm(dim=1) for x in candidates])
    expected = candidates[fits.argmin(0), torch.arange(4)]
    assert torch.allclose(SCG(n=n).down(predict, x_t, here, measurement), expected)


def test_dpg_is_the_papers_update() -> None:
    """Two steps of each image alone: by the policy's loss and its gradient as the paper has them,
    with the running mean of the misfit and the momentum."""
    A, n, d, beta, zeta = rand(3, 5, seed=4), 6, 5, 0.3, 0.7
    y, noise, ours = rand(2, 3, seed=6), NoiseSource([7, 8]), NoiseSource([7, 8])
    measurement = Measurement(y, Matrix(A).bind((5,)), 0.1)
    method, state, Z, before = DPG(zeta, n, beta), None, [0.0] * 2, [torch.zeros(5)] * 2
    for i in range(2):
        t, s = SCHEDULE(torch.tensor(600 - 200 * i)), SCHEDULE(torch.tensor(400 - 200 * i))
        x_t = rand(2, 5, seed=20 + i)
        here = Step(i, t, s, SCHEDULE, ours, count=3)
        p, state = method.advance(predict, x_t, here, measurement, state)
        draws = torch.stack([noise.randn_like(x_t) for _ in range(n)])
        for k in range(2):
            x = x_t[k].clone().requires_grad_()
            mean = predict(x, t).x0
            misfit = float((y[k] - A @ mean.detach()).square().sum())
            Z[k] = misfit if i == 0 else 0.9 * Z[k] + 0.1 * misfit
            r = math.sqrt(Z[k] / d) / 2
            states = (mean + r * draws[:, k]).detach()
            rewards = torch.exp((misfit - (y[k] - states @ A.mT).square().sum(1)) / Z[k])
            baseline = (rewards.sum() - rewards) / (n - 1)
            loss = (states - mean).square().sum(1) / (2 * r**2)
            (g,) = torch.autograd.grad((rewards - baseline).dot(loss) / n, x)
            kept = beta * (2 - i) / 3 if i else 0.0
            mixed = (1 - kept) * g + kept * before[k]
            before[k] = g
            expected = predict(x_t, t).eps[k] + zeta * math.sqrt(d) * mixed / mixed.norm()
            torch.testing.assert_close(p.eps[k], expected)


def test_enkg_is_the_papers_update() -> None:
    """A step of two ensembles, particle by particle."""
    A, n = rand(3, 5, seed=4), 4
    x_t, y = rand(2 * n, 5, seed=5), rand(2, 3, seed=6)
    measurement = Measurement(y.repeat_interleave(n, 0), Matrix(A).bind((5,)), 0.1)
    t, s = SCHEDULE(torch.tensor(600)), SCHEDULE(torch.tensor(400))
    here = Step(0, t, s, SCHEDULE, NoiseSource([7] * 2 * n), count=20, particles=n)
    made = EnKG(zeta=1.5, updates=2, factor=8).down(predict, x_t, here, measurement)

    def flow(x: Tensor) -> Tensor:
        """Three Euler steps (one, and one for each eight of the 19 to go) of dx/dsigma = (x −
        x0)/sigma, x in the variance-exploding frame."""
        high, low = float(s.sigma / s.alpha), 0.01 / math.sqrt(1 - 0.01**2)
        sigmas = [
            (high ** (1 / 7) + u * (low ** (1 / 7) - high ** (1 / 7))) ** 7 for u in (0, 0.5, 1)
        ]
        x = x / s.alpha
        for at, to in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
            x = x + (to - at) * (x - x / (1 + at**2)) / at
        return x

    for image in range(2):
        rows = slice(image * n, (image + 1) * n)
        p = predict(x_t[rows], t)
        x = s.alpha * p.x0 + s.sigma * p.eps
        for _ in range(2):
            values = flow(x) @ A.mT
            centred, residual = values - values.mean(0), y[image] - values
            c = torch.tensor([[float(a @ r) / n for a in centred] for r in residual], dtype=D)
            w = 1.5 / c.square().sum().sqrt()
            x = x + w * sum(c[:, k : k + 1] * (x[k] - x.mean(0)) for k in range(n))
        torch.testing.assert_close(made[rows], x, atol=1e-7, rtol=1e-7)


def distance(problem: Problem, made: object, particles: int = 300, steps: int = 30) -> float:
    """The sliced Wasserstein distance of samples to the exact posterior."""
    exact = problem.posterior.draw(particles, generator_of("reference"))
    result = invdiff.solve(
        problem.measurement, problem.denoiser, made, steps=steps, num_samples=particles, dtype=D
    )
    return sliced_wasserstein(result.samples[:, 0], exact)


@pytest.mark.parametrize(
    ("made", "share"), [(SCG(n=8), 0.1), (DPG(zeta=0.5, n=50), 0.1), (EnKG(), 0.6)]
)
def test_samples_come_near_an_exact_posterior(made: object, share: float) -> None:
    """Of a mixture: nearer than the prior is."""
    problem = mixture_problem(8, 4, 0)
    assert distance(problem, made) < share * distance(problem, "none")


@dataclass(frozen=True, eq=False)
class Simulator(Operator):
    """A simulator that leaves torch: no gradient comes back."""

    def _forward(self, x: Tensor) -> Tensor:
        import numpy as np

        if x.is_meta:
            return x
        return torch.from_numpy(np.round(np.tanh(x.detach().cpu().numpy()), 3)).to(x)


@pytest.mark.parametrize("method", ["scg", "dpg", "enkg"])
def test_a_simulator_outside_of_torch_is_inverted(method: str) -> None:
    truth = 0.5 * rand(1, 4, seed=8)
    measurement = Measurement(Simulator()(truth), Simulator().bind((4,)), 0.05)
    denoiser = invdiff.Denoiser(
        lambda x, t: float(SCHEDULE(float(t[0])).alpha) * x, predicts="x0", schedule=SCHEDULE
    )
    options = {"steps": 30, "num_samples": 32, "dtype": D}
    fit = measurement.norm(invdiff.solve(measurement, denoiser, method, **options).mean)
    free = measurement.norm(invdiff.solve(measurement, denoiser, "none", **options).mean)
    assert float(fit) < 0.7 * float(free)


def test_an_ensemble_of_one_is_told_and_parameters_are_checked() -> None:
    problem = mixture_problem(8, 4, 0)
    with pytest.warns(UserWarning, match="one particle"):
        invdiff.solve(problem.measurement, problem.denoiser, "enkg", steps=3, dtype=D)
    for wrong in ({"updates": 0}, {"factor": 0}, {"zeta": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            EnKG(**wrong)
    for wrong in ({"n": 1}, {"beta": 1.0}, {"zeta": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            DPG(**wrong)
