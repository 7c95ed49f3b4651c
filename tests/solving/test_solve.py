"""solve, generate: images are independent of their batch, runs of each other, and failures say what
happened."""

from __future__ import annotations

import inspect
import json
import random
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from oracles import Calls, D, Gaussian, correlated, rand
from torch import Tensor

from invdiff import schedules
from invdiff.device import free_memory_mb
from invdiff.guidance.classifier import MeanShift
from invdiff.guidance.dps import DPS
from invdiff.itineraries import Jumps, LateStart, Straight
from invdiff.network import Denoiser, Prediction
from invdiff.noise import NoiseSource, seed_of
from invdiff.problem import LinearOperator, Measurement, Operator, SpectralOperator, make_operator
from invdiff.sampling import (
    Denoise,
    Guidance,
    Method,
    NonFiniteError,
    Progress,
    StatefulGuidance,
    Step,
    make_method,
)
from invdiff.sampling.loop import guide
from invdiff.solving import Restoration, generate, invert, solve
from invdiff.solving.plan import complete
from invdiff.transitions import DDIM, DDPM, Euler, Heun, Langevin, PredictorCorrector, Replace

pytestmark = pytest.mark.usefixtures("one_thread")

SCHEDULE = schedules.linear()


class Conv(torch.nn.Module):
    """A small convolution network with fixed random weights; ``label`` shifts it."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.first, self.second = (
            torch.nn.Conv2d(a, b, 3, padding=1) for a, b in ((channels, 8), (8, channels))
        )
        generator = torch.Generator().manual_seed(0)
        for p in self.parameters():
            p.data.normal_(0, 0.2, generator=generator)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        h = torch.tanh(self.first(x)) * (1 + t / 1000).view(-1, 1, 1, 1)
        return x + self.second(h) + (0 if label is None else 0.01 * label.to(x).view(-1, 1, 1, 1))


def conv(**options: Any) -> Denoiser:
    return Denoiser(Conv(), **{"schedule": SCHEDULE, "data_range": (-1, 1), **options})


@dataclass(frozen=True, eq=False)
class Half(LinearOperator):
    """Keeps the left half of the pixels (or coordinates)."""

    def _forward(self, x: Tensor) -> Tensor:
        keep = (torch.arange(x.shape[-1], device=x.device) < x.shape[-1] // 2).to(x)
        return keep * x

    _adjoint = _forward

    def _pinv(self, y: Tensor, ridge: Tensor | float) -> Tensor:
        return self._forward(y) / (1 + ridge)


@dataclass(frozen=True, eq=False)
class Squared(Operator):
    """A nonlinear operator."""

    def _forward(self, x: Tensor) -> Tensor:
        return x.square().mean(-1)

    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*measurement_shape, 8)


def measured(
    batch: int = 3, sigma: float = 0.02, dtype: torch.dtype = torch.float32
) -> Measurement:
    return Half().measure(rand(batch, 3, 8, 8, seed=3).sigmoid().to(dtype), sigma=sigma)


METHODS: dict[str, dict[str, Any]] = {
    "none": {"method": "none"},
    "dps": {"method": DPS(0.4)},
    "replace": {"method": "replace"},
    "repaint": {"method": make_method("repaint", jump_length=2, resamplings=2)},
    "dps_heun_churn": {"method": DPS(0.4), "transition": Heun(s_churn=10)},
    "dps_langevin": {"method": DPS(0.4), "transition": PredictorCorrector(DDPM(), steps=2)},
    "late_start": {"method": DPS(0.4), "itinerary": LateStart(0.5)},
}


# Per image, always --------------------------------------------------------------------------------


def test_noise_of_an_image_is_bit_equal_alone_and_in_any_batch() -> None:
    seeds = [seed_of("sampling", 0, k, 0) for k in range(5)]
    together, x = NoiseSource(seeds), torch.zeros(5, 3, 7, 5)
    draws = [together.randn_like(x) for _ in range(3)]
    alone, pair = NoiseSource(seeds[3:4]), NoiseSource([seeds[4], seeds[3]])
    for draw in draws:
        assert torch.equal(alone.randn_like(x[:1])[0], draw[3])
        assert torch.equal(pair.randn_like(x[:2])[1], draw[3])
    assert not torch.equal(draws[0], draws[1])
    assert abs(float(torch.cat(draws).mean())) < 0.1
    assert len(set(seeds)) == 5
    with pytest.raises(ValueError, match="5 images"):
        together.randn_like(x[:2])


@pytest.mark.parametrize("name", METHODS)
def test_an_image_alone_is_the_image_in_its_batch(name: str) -> None:
    for dtype, tolerance in ((torch.float32, 2e-4), (D, 1e-12)):
        measurement, denoiser = measured(dtype=dtype), conv(dtype=dtype)
        together = solve(measurement, denoiser, steps=8, seed=5, dtype=dtype, **METHODS[name])
        assert together.x.dtype == dtype
        for k in (0, 2):
            alone = solve(
                measurement.select([k]),
                denoiser,
                steps=8,
                seed=5,
                image_ids=[k],
                dtype=dtype,
                **METHODS[name],
            )
            torch.testing.assert_close(alone.x[0], together.x[k], atol=tolerance, rtol=0)


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("name", METHODS)
def test_micro_batches_equal_the_full_batch(name: str, size: int) -> None:
    measurement, denoiser = measured(dtype=D), conv(dtype=D)
    options: dict[str, Any] = {
        "steps": 6,
        "num_samples": 2,
        "trajectory": True,
        "dtype": D,
        **METHODS[name],
    }
    full = solve(measurement, denoiser, **options)
    parts = solve(measurement, denoiser, batch_size=size, **options)
    torch.testing.assert_close(parts.samples, full.samples, atol=1e-12, rtol=0)
    torch.testing.assert_close(parts.trajectory, full.trajectory, atol=1e-12, rtol=0)
    assert (parts.nfe, parts.nbe) == (full.nfe, full.nbe)


def test_conditions_and_per_image_sigmas_follow_their_images_through_micro_batches() -> None:
    labels = torch.tensor([4, 0, 7])
    measurement = Half().measure(rand(3, 3, 8, 8, seed=3).sigmoid(), sigma=[0.01, 0.1, 0.3])
    denoiser = conv(dtype=D, num_classes=10)
    options: dict[str, Any] = {"method": DPS(0.4), "steps": 5, "num_samples": 2, "dtype": D}
    full = solve(measurement, denoiser, label=labels, batch_size=4, **options)
    for k in range(3):
        alone = solve(
            measurement.select([k]), denoiser, label=int(labels[k]), image_ids=[k], **options
        )
        torch.testing.assert_close(full.samples[:, k], alone.samples[:, 0], atol=1e-12, rtol=0)
    with pytest.raises(
        ValueError, match="label must be one number or one for each of the 3 images"
    ):
        solve(measurement, denoiser, label=labels[:2], **options)


def test_seeds_and_ids_decide() -> None:
    measurement, denoiser = measured(), conv()
    a = solve(measurement, denoiser, steps=3, seed=1)
    assert torch.equal(a.x, solve(measurement, denoiser, steps=3, seed=1).x)
    assert not torch.equal(a.x, solve(measurement, denoiser, steps=3, seed=2).x)
    shuffled = solve(measurement, denoiser, steps=3, seed=1, image_ids=[2, 1, 0])
    torch.testing.assert_close(shuffled.x[1], a.x[1], atol=2e-4, rtol=0)
    assert not torch.allclose(shuffled.x[0], a.x[0], atol=1e-2)


def test_the_global_random_state_is_neither_read_nor_advanced() -> None:
    measurement, denoiser = measured(), conv()
    runs: list[Callable[[], Restoration]] = [
        lambda: solve(measurement, denoiser, DPS(0.4), steps=3, num_samples=2),
        lambda: solve(measurement, denoiser, "repaint", itinerary=Jumps(2, 2), steps=5),
        lambda: generate(denoiser, (2, 3, 8, 8), transition=PredictorCorrector(), steps=3),
    ]
    for run in runs:
        with torch.random.fork_rng():
            before = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())
            first = run()
            assert torch.equal(torch.get_rng_state(), before[0])
            assert np.array_equal(np.random.get_state()[1], before[1])
            assert random.getstate() == before[2]
            torch.randn(5)  # somewhere else in the stream: same result
            assert torch.equal(run().samples, first.samples)


# What comes back ----------------------------------------------------------------------------------


def test_samples_mean_and_std() -> None:
    measurement, denoiser = measured(), conv()
    many = solve(measurement, denoiser, DPS(0.4), steps=4, num_samples=3)
    assert many.samples.shape == (3, 3, 3, 8, 8)
    torch.testing.assert_close(
        many.x, solve(measurement, denoiser, DPS(0.4), steps=4).x, atol=2e-4, rtol=0
    )
    assert not torch.allclose(many.samples[0], many.samples[1], atol=1e-2)
    torch.testing.assert_close(many.mean, sum(many.samples) / 3)
    spread = sum((s - many.mean) ** 2 for s in many.samples)
    torch.testing.assert_close(many.std, (spread / 2) ** 0.5)
    assert bool((solve(measurement, denoiser, steps=2).std == 0).all())


@pytest.mark.parametrize(
    ("options", "nfe", "nbe"),
    [
        ({"method": "none"}, 7, 0),
        ({"method": DPS()}, 7, 7),
        ({"method": "none", "transition": Heun()}, 13, 0),
        ({"method": DPS(), "transition": Heun()}, 13, 13),
        ({"method": "none", "transition": PredictorCorrector(steps=2)}, 7 + 6 * 2, 0),
        ({"method": "none", "transition": Langevin(steps=3)}, 6 * 3 + 1, 0),
        ({"method": make_method("repaint", jump_length=2, resamplings=3)}, 7 + 2 * 2 * 3, 0),
        ({"method": "none", "itinerary": LateStart(0.5)}, 4, 0),
    ],
)
def test_evaluations_are_per_image_and_sample(options: dict[str, Any], nfe: int, nbe: int) -> None:
    # RePaint: 7 steps and jumps of 2 from the indices 0, 2, 4, each walked twice more; 0..7-2-1
    # holds 0, 2, 4
    result = solve(measured(), conv(), steps=7, num_samples=2, **options)
    assert (result.nfe, result.nbe) == (nfe, nbe)


def test_the_published_repaint_run_makes_2410_evaluations() -> None:
    denoiser = Denoiser(lambda x, t: 0.1 * x, schedule=SCHEDULE)
    result = solve(Half().measure(rand(1, 4).float()), denoiser, "repaint", steps=250)
    assert (result.nfe, result.nbe) == (2410, 0)


def test_callback_and_trajectory() -> None:
    seen: list[Progress] = []
    result = solve(
        measured(),
        conv(),
        DPS(0.4),
        steps=5,
        num_samples=2,
        batch_size=3,
        callback=seen.append,
        trajectory=True,
    )
    assert [p.index for p in seen] == [0, 1, 2, 3, 4] * 2
    assert {p.count for p in seen} == {5}
    assert [float(p.level.t) for p in seen[:5]] == [*SCHEDULE.times(5).tolist()[1:], -1.0]
    assert all(
        p.x.shape == (3, 3, 8, 8) and p.x0 is not None and p.x0.shape == p.x.shape for p in seen
    )
    assert result.trajectory is not None
    assert result.trajectory.shape == (5, 2, 3, 3, 8, 8)
    assert torch.equal(result.trajectory[-1], result.samples), "the last step returns x0"
    assert torch.equal(((seen[4].x + 1) / 2).clamp(0, 1), result.x)
    assert solve(measured(), conv(), steps=2).trajectory is None


def test_a_climb_has_no_estimate() -> None:
    seen: list[Progress] = []
    result = solve(
        measured(),
        conv(),
        "repaint",
        itinerary=Jumps(2, 2),
        steps=5,
        callback=seen.append,
        trajectory=True,
    )
    ups = [p for p in seen if p.x0 is None]
    assert len(ups) == 2 * 2
    assert result.trajectory is not None
    assert len(result.trajectory) == len(seen) - len(ups) == result.nfe


def test_config_is_plain_data() -> None:
    result = solve(
        measured(),
        conv(num_classes=10, name="toy"),
        ["none", DPS(0.4)],
        steps=2,
        seed=7,
        transition=DDIM(0.5),
        label=3,
    )
    record = json.loads(json.dumps(result.config))
    assert record["model"] == "toy"
    assert record["method"]["guidance"] == [{"name": "DPS", "zeta": 0.4, "likelihood": False}]
    assert record["method"]["transition"]["eta"] == 0.5
    assert (record["steps"], record["seed"], record["cond"]) == (2, 7, {"label": 3})
    assert result.seconds > 0


# Range --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operator", [Half(), Squared()], ids=["linear", "nonlinear"])
@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 1.0), (-3.0, 2.0)])
def test_a_networks_own_range_is_the_users_unit_interval(
    operator: Operator, low: float, high: float
) -> None:
    """The same problem posed in the network's units, where nothing is converted, from the same
    noise."""
    width = high - low
    x = rand(2, 3, 8, 8, seed=3).sigmoid()
    measurement = operator.measure(x, sigma=0.02)

    @dataclass(frozen=True, eq=False)
    class Native(Squared):
        def _forward(self, x: Tensor) -> Tensor:
            return super()._forward((x - low) / width)

    if isinstance(operator, LinearOperator):
        native = Measurement(
            width * measurement.y + operator(torch.full_like(x, low)), operator, 0.02 * width
        )
    else:
        native = Measurement(measurement.y, Native(), 0.02)
    there = solve(native, conv(data_range=None, dtype=D), DPS(0.4), steps=6, dtype=D).x
    here = solve(
        measurement, conv(data_range=(low, high), clip=False, dtype=D), DPS(0.4), steps=6, dtype=D
    ).x
    torch.testing.assert_close(here, (there - low) / width, atol=1e-12, rtol=0)


def test_clipped_images_stay_in_the_unit_interval() -> None:
    x = solve(measured(), conv(), DPS(5.0), steps=4).samples
    assert float(x.min()) >= 0
    assert float(x.max()) <= 1


# Vectors, exactness -------------------------------------------------------------------------------


class Matrix(LinearOperator):
    """y = A x for a fixed (3, 5) matrix."""

    A = rand(3, 5, seed=8)

    def _forward(self, x: Tensor) -> Tensor:
        return x @ self.A.to(x).T

    def _adjoint(self, y: Tensor) -> Tensor:
        return y @ self.A.to(y)

    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (5,)


def test_dps_on_a_linear_gaussian_toy_is_an_independent_implementation_from_the_same_noise() -> (
    None
):
    """Posterior-mean form of the ancestral step and the official post-step update; exactly, DPS's
    bias included."""
    prior, zeta, T, chains = correlated(5), 0.5, 25, 40
    schedule = schedules.linear(T, 1e-2, 0.3)
    net = prior.network("eps", schedule)
    truth = prior.mean + rand(1, 5, seed=2) @ torch.linalg.cholesky(prior.covariance).T
    measurement = Matrix().measure(truth, sigma=0.05)
    result = solve(
        measurement,
        Denoiser(net, schedule=schedule),
        DPS(zeta),
        steps=T,
        seed=3,
        num_samples=chains,
        dtype=D,
    )

    source = NoiseSource([seed_of("sampling", 3, 0, j) for j in range(chains)])

    def draw() -> Tensor:
        return source.randn_like(torch.empty(chains, 5, dtype=D))

    beta = torch.linspace(1e-2, 0.3, T, dtype=D)
    bar = torch.cat([torch.cumprod(1 - beta, 0), torch.ones(1, dtype=D)])
    x = (1 - bar[T - 1]).sqrt() * draw()
    for t in range(T - 1, -1, -1):
        x = x.requires_grad_()
        x0 = (x - (1 - bar[t]).sqrt() * net(x, torch.full((chains,), float(t)))) / bar[t].sqrt()
        (grad,) = torch.autograd.grad((measurement.y - x0 @ Matrix.A.T).norm(dim=1).sum(), x)
        s = t - 1
        mean = (
            bar[s].sqrt() * beta[t] / (1 - bar[t]) * x0
            + (1 - beta[t]).sqrt() * (1 - bar[s]) / (1 - bar[t]) * x
        )
        noise = ((1 - bar[s]) / (1 - bar[t]) * beta[t]).sqrt() * draw() if t > 0 else 0
        x = (mean + noise - zeta * grad).detach()
    torch.testing.assert_close(result.samples[:, 0], x, atol=1e-10, rtol=0)

    posterior = prior.posterior(Matrix.A, measurement.y[0], 0.05)
    far = (prior.mean - posterior.mean).norm()
    assert float((result.mean[0] - posterior.mean).norm()) < 0.5 * float(far), (
        "biased, but on the right side of the prior"
    )


def test_none_reproduces_the_prior_whatever_was_measured() -> None:
    prior: Gaussian = correlated(3)
    schedule = schedules.vp()
    denoiser = Denoiser(prior.network("x0", schedule), predicts="x0", schedule=schedule)
    n = 1500
    measurement = Half().measure(rand(1, 3))
    x = solve(
        measurement,
        denoiser,
        "none",
        transition=Heun(),
        schedule=schedules.edm(),
        steps=25,
        num_samples=n,
        dtype=D,
    ).samples[:, 0]
    scale = float(prior.covariance.diagonal().max())
    torch.testing.assert_close(x.mean(0), prior.mean, atol=4 * (scale / n) ** 0.5, rtol=0)
    torch.testing.assert_close(
        torch.cov(x.T), prior.covariance, atol=4 * scale * (2 / n) ** 0.5, rtol=0
    )
    again = generate(
        denoiser, (n, 3), transition=Heun(), schedule=schedules.edm(), steps=25, dtype=D
    ).x
    torch.testing.assert_close(
        torch.cov(again.T), prior.covariance, atol=4 * scale * (2 / n) ** 0.5, rtol=0
    )


@pytest.mark.parametrize("method", ["replace", "repaint"])
@pytest.mark.parametrize("data_range", [None, (-1.0, 1.0)])
def test_known_pixels_stay_as_they_were_measured(
    method: str, data_range: tuple[float, float] | None
) -> None:
    measurement = measured(sigma=0.0)
    result = solve(
        measurement,
        conv(data_range=data_range),
        method,
        steps=12,
        itinerary=Jumps(3, 2) if method == "repaint" else None,
    )
    known = measurement.y[..., :4]
    if data_range is None:
        assert torch.equal(result.x[..., :4], known)
    else:  # there and back through [-1, 1] rounds
        torch.testing.assert_close(result.x[..., :4], known, atol=1e-6, rtol=0)
    assert float(result.x[..., 4:].std()) > 0.01


def test_a_fulfilled_measurement_pulls_nowhere() -> None:
    """The norm's gradient is zero where the residual is, not nan, and one image's does not touch
    another's."""
    x = rand(3, 6).requires_grad_()
    y = Half()(x).detach()
    y[1, 0] += 2.0
    norm = Measurement(y, Half()).norm(x)
    assert norm.tolist() == [0.0, 2.0, 0.0]
    (grad,) = torch.autograd.grad(norm.sum(), x)
    expected = torch.zeros(3, 6, dtype=D)
    expected[1, 0] = -1.0
    assert torch.equal(grad, expected)
    torch.testing.assert_close(
        Measurement(y, Half()).loss(x).detach(), torch.tensor([0.0, 4.0, 0.0], dtype=D)
    )


# Late start ---------------------------------------------------------------------------------------


def test_late_start_begins_from_the_noised_pseudo_inverse_or_the_given_image() -> None:
    measurement, denoiser = measured(sigma=0.0, dtype=D), conv(dtype=D, clip=False)
    levels = LateStart(0.3)(SCHEDULE, 10)
    first: dict[str, Tensor] = {}

    class Watch(DDIM):
        def down(
            self, predict: Denoise, x_t: Tensor, step: Step, measurement: Measurement | None
        ) -> Tensor:
            first.setdefault("x", x_t)
            return super().down(predict, x_t, step, measurement)

    given = rand(3, 3, 8, 8, seed=8).sigmoid()
    ranged = measurement.to_range(-1.0, 1.0)  # what is missing is grey, not black
    blank = (ranged.operator.pinv(ranged.y) + 1) / 2  # type: ignore[attr-defined]
    for start, image in ((None, blank), (given, given)):
        first.clear()
        solve(
            measurement,
            denoiser,
            "none",
            steps=10,
            itinerary=LateStart(0.3),
            transition=Watch(),
            start=start,
            dtype=D,
            seed=4,
        )
        noise = NoiseSource([seed_of("sampling", 4, k, 0) for k in range(3)]).randn_like(image)
        torch.testing.assert_close(
            first["x"], levels[0].alpha * (2 * image - 1) + levels[0].sigma * noise
        )
    with pytest.raises(ValueError, match="shape of the images"):
        solve(measurement, denoiser, "none", itinerary=LateStart(), start=given[:2])
    with pytest.raises(ValueError, match="pass start=image"):
        solve(Squared().measure(given), denoiser, "none", itinerary=LateStart())


# Chains -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Times(StatefulGuidance[int]):
    """x0 -> factor * x0 + shift; its state counts its calls."""

    factor: float = 1.0
    shift: float = 0.0
    requires: ClassVar[type[Operator] | None] = None

    def init(self, x_T: Tensor, measurement: Measurement) -> int:
        return 0

    def advance(
        self, denoise: Denoise, x_t: Tensor, step: Step, measurement: Measurement, state: int
    ) -> tuple[Prediction, int]:
        assert state == step.index, "a state is this guidance's own and begins anew in every run"
        p = denoise(x_t, step.t)
        return p.move_x0((self.factor - 1) * p.x0 + self.shift), state + 1


def test_the_first_of_a_chain_stands_nearest_to_the_network() -> None:
    denoiser = Denoiser(lambda x, t: torch.full_like(x, 0.5), predicts="x0", schedule=SCHEDULE)
    double, add = Times(factor=2.0), Times(shift=1.0)
    assert generate(denoiser, (1, 2), [double, add], steps=3).x.tolist() == [[2.0, 2.0]]
    assert generate(denoiser, (1, 2), [add, double], steps=3).x.tolist() == [[3.0, 3.0]]
    assert generate(denoiser, (1, 2), Method([double, add, double]), steps=3).x.tolist() == [
        [4.0, 4.0]
    ]
    assert make_method([[double, add], Method([add, double])]).chain == (double, add, add, double)
    assert make_method([double, "none", [add, DDIM()], Jumps(2, 2)]) == Method(
        (double, add), DDIM(), Jumps(2, 2)
    )


def test_conditions_and_levels_pass_through_a_chain() -> None:
    seen: list[tuple[Any, float]] = []

    @dataclass(frozen=True)
    class Conditional(Guidance):
        """Asks with and without a label, and once at a level of its own."""

        requires: ClassVar[type[Operator] | None] = None

        def __call__(
            self, denoise: Denoise, x_t: Tensor, step: Step, measurement: Measurement | None
        ) -> Prediction:
            denoise(x_t, step.t, label=None)
            denoise(x_t, step.schedule(17.0), label=3)
            return denoise(x_t, step.t)

    @dataclass(frozen=True)
    class Inner(Guidance):
        """Nearest to the network: sees the level that was asked for, asks with a label of its own
        and with the one it was given."""

        requires: ClassVar[type[Operator] | None] = None

        def __call__(
            self, denoise: Denoise, x_t: Tensor, step: Step, measurement: Measurement | None
        ) -> Prediction:
            denoise(x_t, step.t, label=8)
            p = denoise(x_t, step.t)
            assert float(p.level.t) == float(step.t.t)
            return p

    def net(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        seen.append((int(label[0]), float(t[0])))
        return x

    denoiser = Denoiser(net, schedule=SCHEDULE, num_classes=10)
    generate(denoiser, (1, 2), [Inner(), Conditional()], steps=1, label=5)
    # cond of solve is the default, a guidance's own wins (None included), and the nearest to the
    # network has the last word
    assert seen == [(8, 999.0), (10, 999.0), (8, 17.0), (3, 17.0), (8, 999.0), (5, 999.0)]


def test_guide_is_plain_wrapping() -> None:
    def network(x: Tensor, level: Any, **cond: Any) -> Prediction:
        return Prediction(x, level, x, x)

    step = Step(0, SCHEDULE(500), SCHEDULE(400), SCHEDULE, NoiseSource([0]))
    assert guide(network, [], step, [], None) is network


def test_a_chain_has_room_for_one_transition_and_one_itinerary() -> None:
    for pieces in (
        [DDIM(), DDPM()],
        [Method(transition=DDIM(0.5)), DDIM(0.2)],
        [Jumps(), Straight()],
    ):
        with pytest.raises(ValueError, match="room for one"):
            make_method(pieces)
    same = make_method([DDIM(0.5), Method(transition=DDIM(0.5)), DPS()])
    assert same.transition == DDIM(0.5)
    around = make_method(
        ["repaint", "replace", Euler()]
    )  # what replaces does so around any transition
    assert around.transition == Replace(Euler())
    result = solve(measured(), conv(), ["replace", DPS(0.1)], steps=2, transition=DDIM())
    assert result.config["method"]["transition"] == {
        "name": "Replace",
        "inner": {"name": "DDIM", "eta": 0.0, "std": None},
    }


def test_a_chosen_transition_does_not_drop_what_wraps_it() -> None:
    shift = make_method(
        "classifier", log_prob=lambda x, level: -x.square().flatten(1).sum(1), mean_shift=True
    )
    chain = complete([shift, "replace"], DDIM(1.0))
    assert isinstance(chain.transition, Replace) and isinstance(chain.transition.inner, MeanShift)
    assert chain.transition.inner.inner == DDIM(1.0)
    known = solve(measured(), conv(), "replace", steps=2, transition=DDIM(1.0)).x
    torch.testing.assert_close(known[..., :4], measured().y[..., :4].clamp(0, 1), atol=1e-6, rtol=0)


def test_wrong_methods() -> None:
    with pytest.raises(TypeError, match="Guidance, Transition or Itinerary"):
        make_method(3)
    with pytest.raises(TypeError, match="go with a method's name"):
        make_method(DPS(), zeta=1.0)
    with pytest.raises(ValueError, match="Did you mean 'zeta'"):
        make_method("dps", zetta=1.0)


# Errors before sampling ---------------------------------------------------------------------------


@dataclass(frozen=True)
class NeedsSVD(Times):
    requires: ClassVar[type[Operator] | None] = SpectralOperator


def test_what_does_not_fit_is_refused_before_the_network_is_called() -> None:
    net = Calls.of(lambda x, t: x)
    denoiser, m = Denoiser(net, schedule=SCHEDULE, data_range=(-1, 1), channels=3), measured()
    squared = Squared().measure(torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    refused: list[tuple[type[Exception], str, Callable[[], Any]]] = [
        (
            ValueError,
            "NeedsSVD requires a SpectralOperator, but Half",
            lambda: solve(m, denoiser, NeedsSVD()),
        ),
        (
            ValueError,
            "Replace requires a LinearOperator, but Squared",
            lambda: solve(squared, denoiser, "replace"),
        ),
        (ValueError, "DPS restores a measurement", lambda: generate(denoiser, (1, 3, 8, 8), DPS())),
        (
            ValueError,
            "Times keeps a state.*Heun predicts more than once",
            lambda: solve(m, denoiser, Times(), transition=Heun()),
        ),
        (
            ValueError,
            "Times keeps a state.*Replace",
            lambda: solve(m, denoiser, Times(), transition=Replace(Heun())),
        ),
        (
            ValueError,
            "Times keeps a state.*Langevin",
            lambda: solve(m, denoiser, Times(), transition=Langevin(steps=2)),
        ),
        (ValueError, "3 channels, got 4", lambda: generate(denoiser, (1, 4, 8, 8))),
        (ValueError, "num_samples", lambda: solve(m, denoiser, num_samples=0)),
        (ValueError, "batch_size", lambda: solve(m, denoiser, batch_size=0)),
        (ValueError, "each of the 3 images", lambda: solve(m, denoiser, image_ids=[0])),
        (ValueError, "at most 1000 steps", lambda: solve(m, denoiser, steps=1001)),
        (ValueError, "Did you mean 'dps'", lambda: solve(m, denoiser, "dpss")),
        (ValueError, "shape of the batch", lambda: generate(denoiser)),
        (
            ValueError,
            "x_T has shape",
            lambda: generate(denoiser, (1, 3, 8, 8), x_T=torch.zeros(2, 3, 8, 8)),
        ),
        (TypeError, "invdiff.Measurement", lambda: solve(m.y, denoiser)),  # type: ignore[arg-type]
        (TypeError, "invdiff.Denoiser", lambda: generate(net, (1, 3, 8, 8))),  # type: ignore[arg-type]
        (TypeError, "invdiff.Denoiser", lambda: solve(m, net)),  # type: ignore[arg-type]
        (TypeError, "invdiff.Denoiser", lambda: invert(net, m.y)),  # type: ignore[arg-type]
    ]
    for error, says, call in refused:
        with pytest.raises(error, match=says):
            call()
    assert net.times == []


def test_a_size_far_from_the_networks_warns_once_for_each() -> None:
    denoiser = conv(image_size=64)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            generate(denoiser, (1, 3, 8, 8), steps=1)
    assert [str(w.message) for w in caught] == [
        "network was trained on 64x64 images; 8x8 is far from that and quality may suffer"
    ]


# Failures while sampling --------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [0, 3, 19, 39])
def test_non_finite_sampling_names_step_and_level(bad: int) -> None:
    times = SCHEDULE.times(40)

    def net(x: Tensor, t: Tensor) -> Tensor:
        out = 0.1 * x
        out[-1] = torch.where(t[-1] == times[bad], torch.nan, out[-1])
        return out

    level = SCHEDULE(times[bad])
    with pytest.raises(
        NonFiniteError,
        match=rf"in step {bad + 1} of 40, from sigma/alpha = {float(level.ratio):.4g} to ",
    ):
        generate(Denoiser(net, schedule=SCHEDULE), (3, 2), steps=40)


def greedy(limit: int, error: Callable[[], BaseException]) -> Callable[[Tensor, Tensor], Tensor]:
    """Fails for more than ``limit`` images, but half-way through the run: what was done until then
    must be forgotten."""

    def net(x: Tensor, t: Tensor) -> Tensor:
        if len(x) > limit and t[0] < 500:
            raise error()
        return torch.tanh(x)

    return net


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError, lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory")],
)
def test_running_out_of_memory_halves_the_batch_tells_and_changes_nothing(
    error: Callable[[], BaseException],
) -> None:
    m = Half().measure(rand(5, 6))
    plain = solve(
        m, Denoiser(greedy(10, error), schedule=SCHEDULE), "dps", steps=4, num_samples=2, dtype=D
    )
    with pytest.warns(UserWarning, match="out of memory") as caught:
        small = solve(
            m, Denoiser(greedy(2, error), schedule=SCHEDULE), "dps", steps=4, num_samples=2, dtype=D
        )
    assert [str(w.message) for w in caught] == [
        "out of memory; going on with 5 chains at once",
        "out of memory; going on with 2 chains at once",
    ]
    assert torch.equal(small.samples, plain.samples)
    assert (small.nfe, small.nbe) == (plain.nfe, plain.nbe) == (4, 4)


def test_what_starts_at_once_is_bound_by_what_one_chain_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of 100 MiB that are free one chain takes 30: two run at once, and nothing else changes."""
    m, denoiser = (
        Half().measure(rand(5, 6)),
        Denoiser(lambda x, t: torch.tanh(x), schedule=SCHEDULE),
    )

    def run(**options: Any) -> tuple[Restoration, list[int]]:
        sizes: list[int] = []
        result = solve(
            m,
            denoiser,
            steps=4,
            num_samples=2,
            dtype=D,
            callback=lambda p: sizes.append(len(p.x)),
            **options,
        )
        return result, sizes

    plain, all_at_once = run()
    assert all_at_once == [10] * 4
    peaks = iter([50.0, 80.0])
    monkeypatch.setattr("invdiff.solving.run.SURE", 1e9)
    monkeypatch.setattr("invdiff.solving.run.free_memory_mb", lambda device: 100.0)
    monkeypatch.setattr("invdiff.solving.run.reset_peak_memory", lambda device: True)
    monkeypatch.setattr("invdiff.solving.run.peak_memory_mb", lambda device: next(peaks))
    bound, sizes = run()
    assert sizes == [2] * 20
    assert torch.equal(bound.samples, plain.samples)
    assert (bound.nfe, bound.nbe) == (plain.nfe, plain.nbe)
    assert run(batch_size=10)[1] == [10] * 4  # what is asked for is not measured


def test_a_particle_system_that_does_not_fit_runs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    m = make_operator("inpaint").measure(x, sigma=0.1)
    denoiser, sizes = Denoiser(lambda x, t: 0.5 * x, schedule=SCHEDULE), list[int]()
    peaks = iter([0.0, 1000.0])
    monkeypatch.setattr("invdiff.solving.run.SURE", 1e9)
    monkeypatch.setattr("invdiff.solving.run.free_memory_mb", lambda device: 100.0)
    monkeypatch.setattr("invdiff.solving.run.reset_peak_memory", lambda device: True)
    monkeypatch.setattr("invdiff.solving.run.peak_memory_mb", lambda device: next(peaks))
    solve(m, denoiser, "tds", steps=3, num_samples=3, callback=lambda p: sizes.append(len(p.x)))
    assert sizes == [3] * 6


MEMORY = """
import torch
from invdiff import Denoiser, generate, schedules
from invdiff.solving import run

def net(x, t):
    held = torch.ones(len(x), 2**24)
    return x * held[:, :1].view(-1, *(1,) * (x.ndim - 1))

run.SURE, run.free_memory_mb, sizes = 1e9, lambda device: 640.0, []
denoiser = Denoiser(net, schedule=schedules.linear())
generate(denoiser, (20, 6), steps=2, callback=lambda p: sizes.append(len(p.x)))
print(sizes[0])
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are Linux's")
def test_the_memory_of_a_chain_is_measured() -> None:
    """A network that holds 64 MiB for an image: of 640 MiB, 80 % hold eight, more or less. In a
    process of its own, whose memory nothing else gives back meanwhile."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 4 <= int(done.stdout) <= 12


def test_free_memory_is_known_of_this_system() -> None:
    free = free_memory_mb(torch.device("cpu"))
    assert free is None or free > 0
    assert free_memory_mb(torch.device("meta")) is None


def test_memory_that_cannot_be_helped_and_other_errors_pass_through() -> None:
    m = Half().measure(rand(4, 6))
    with pytest.warns(UserWarning, match="out of memory"), pytest.raises(torch.OutOfMemoryError):
        solve(m, Denoiser(greedy(0, torch.OutOfMemoryError), schedule=SCHEDULE), steps=2)
    with pytest.raises(torch.OutOfMemoryError):  # a size that was asked for is not changed
        solve(
            m, Denoiser(greedy(2, torch.OutOfMemoryError), schedule=SCHEDULE), steps=2, batch_size=4
        )
    with pytest.raises(RuntimeError, match="something else"):
        solve(
            m,
            Denoiser(greedy(2, lambda: RuntimeError("something else")), schedule=SCHEDULE),
            steps=2,
        )


def test_interruption_passes_through_and_the_next_run_is_untouched() -> None:
    m, denoiser, method = measured(dtype=D), conv(dtype=D), [Times(0.9), DPS(0.3)]
    expected = solve(m, denoiser, method, steps=6, dtype=D)

    def stop(p: Progress) -> None:
        if p.index == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        solve(m, denoiser, method, steps=6, dtype=D, callback=stop)
    again = solve(m, denoiser, method, steps=6, dtype=D)
    assert torch.equal(again.samples, expected.samples)
    assert (again.nfe, again.nbe) == (6, 6)


def test_nothing_that_was_given_is_changed() -> None:
    m, denoiser = measured(), conv()
    y, weights = m.y.clone(), {k: v.clone() for k, v in denoiser.net.state_dict().items()}  # type: ignore[attr-defined]
    solve(m, denoiser, DPS(0.4), steps=3)
    assert torch.equal(m.y, y)
    assert all(torch.equal(v, weights[k]) for k, v in denoiser.net.state_dict().items())  # type: ignore[attr-defined]
    assert all(p.grad is None for p in denoiser.net.parameters())  # type: ignore[attr-defined]


def test_progress_bar_on_stderr_counts_chains_times_steps(
    capsys: pytest.CaptureFixture[str],
) -> None:
    solve(measured(), conv(), steps=4, num_samples=2, batch_size=2, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "24/24" in err
    solve(measured(), conv(), steps=2)
    assert capsys.readouterr().err == ""


def test_unknown_arguments_are_refused_with_a_hint() -> None:
    denoiser = Denoiser(lambda x, t: 0 * x, schedule=schedules.linear())
    measurement = make_operator("denoise").measure(torch.zeros(1, 3, 8, 8))
    with pytest.raises(TypeError, match=r"make_method\('dps', zeta=0.5\)"):
        solve(measurement, denoiser, "dps", zeta=3.0)


def test_the_way_back_is_deterministic_by_default() -> None:
    denoiser = Denoiser(lambda x, t: 0.1 * x, schedule=schedules.linear())
    x_T = torch.ones(2, 4)
    runs = [generate(denoiser, x_T=x_T, steps=5, seed=seed).x for seed in (0, 1)]
    assert torch.equal(*runs)


def test_pieces_by_name() -> None:
    m, denoiser = measured(), conv()
    for given, piece in (
        ({"transition": "heun"}, {"transition": Heun()}),
        ({"transition": {"name": "ddim", "eta": 0.5}}, {"transition": DDIM(0.5)}),
        (
            {"transition": {"name": "predictor_corrector", "predictor": {"name": "ddim"}}},
            {"transition": PredictorCorrector(DDIM())},
        ),
        ({"itinerary": {"name": "jumps", "length": 1}}, {"itinerary": Jumps(1)}),
        ({"schedule": "cosine"}, {"schedule": schedules.cosine()}),
    ):
        by_name, by_object = (solve(m, denoiser, "dps", steps=3, **o).x for o in (given, piece))
        assert torch.equal(by_name, by_object)
    for wrong, says in (
        ({"transition": "heum"}, "Did you mean 'heun'"),
        ({"transition": {"eta": 0.5}}, "a transition is given by its name, one of ddim"),
        ({"transition": {"name": "ddim", "eto": 0.5}}, "Did you mean 'eta'"),
        ({"itinerary": 3}, "an itinerary is a name or an object such as"),
    ):
        with pytest.raises((ValueError, TypeError), match=says):
            solve(m, denoiser, "dps", steps=3, **wrong)


def test_options_are_in_the_signature_and_the_rest_are_conditions() -> None:
    for function in (solve, generate):
        names = list(inspect.signature(function).parameters)
        assert {"steps", "seed", "transition", "batch_size", "dtype"} < set(names)
        assert names[-1] == "cond"
    with pytest.raises(TypeError, match="unknown argument 'step'"):
        solve(measured(), conv(), step=3)


def test_a_result_is_one_line_and_a_picture() -> None:
    result = solve(measured(), conv(), "dps", steps=2, num_samples=2)
    assert re.fullmatch(
        r"Restoration\(2 samples of \d+x3x\d+x\d+, 2 evaluations forward and 2 backward per "
        r"image, \d+\.\d s\)",
        repr(result),
    )
    png = result._repr_png_()
    assert png is not None and png.startswith(b"\x89PNG")
    vectors = Restoration(torch.zeros(1, 4, 2), 1, 0, 0.1, {})
    assert vectors._repr_png_() is None


def test_pictures_given_to_a_network_without_a_range_are_warned_of() -> None:
    m = make_operator("denoise").measure(torch.rand(1, 3, 16, 16))
    with pytest.warns(UserWarning, match=r"most networks of images expect data_range=\(-1, 1\)"):
        solve(m, Denoiser(lambda x, t: 0.1 * x, schedule="linear"), "none", steps=2)
    ranged = Denoiser(lambda x, t: 0.1 * x, schedule="linear", data_range=(0, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solve(m, ranged, "none", steps=2)
