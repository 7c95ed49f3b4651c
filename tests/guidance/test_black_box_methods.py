"""A method that only runs the operator: its update written out, an exact posterior, and a simulator
outside of torch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import invdiff
from invdiff import schedules
from invdiff.benchmarks.exact import mixture_problem
from invdiff.benchmarks.exact.problems import sliced_wasserstein
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


def test_samples_come_near_an_exact_posterior() -> None:
    """Of a mixture: nearer than the prior is, by the sliced Wasserstein distance."""
    problem = mixture_problem(8, 4, 0)
    exact = problem.posterior.draw(300, generator_of("reference"))

    def distance(made: object) -> float:
        result = invdiff.solve(
            problem.measurement, problem.denoiser, made, steps=30, num_samples=300, dtype=D
        )
        return sliced_wasserstein(result.samples[:, 0], exact)

    assert distance(SCG(n=8)) < 0.4 * distance("none")


@dataclass(frozen=True, eq=False)
class Simulator(Operator):
    """A simulator that leaves torch: no gradient comes back."""

    def _forward(self, x: Tensor) -> Tensor:
        import numpy as np

        if x.is_meta:
            return x
        return torch.from_numpy(np.round(np.tanh(x.detach().cpu().numpy()), 3)).to(x)


def test_a_simulator_outside_of_torch_is_inverted() -> None:
    truth = 0.5 * rand(1, 4, seed=8)
    measurement = Measurement(Simulator()(truth), Simulator().bind((4,)), 0.05)
    denoiser = invdiff.Denoiser(
        lambda x, t: float(SCHEDULE(float(t[0])).alpha) * x, predicts="x0", schedule=SCHEDULE
    )
    options = {"steps": 30, "num_samples": 32, "dtype": D}
    fit = measurement.norm(invdiff.solve(measurement, denoiser, "scg", **options).mean)
    free = measurement.norm(invdiff.solve(measurement, denoiser, "none", **options).mean)
    assert float(fit) < 0.6 * float(free)
