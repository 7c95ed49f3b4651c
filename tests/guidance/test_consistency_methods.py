"""CM4IR on exact consistency functions: equal to its update written out with plain matrices, in the
authors' frame x0 + sigma eps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from oracles import D, OneStream, correlated, rand, step_of
from torch import Tensor

import invdiff
from invdiff import schedules
from invdiff.guidance.cm4ir import CM4IR, FromBackProjection, Onward, filled
from invdiff.network import Denoiser, Prediction
from invdiff.problem import LinearOperator, Measurement
from invdiff.sampling import Setting, make_method, sample
from invdiff.schedules import Schedule
from invdiff.solving import solve
from invdiff.solving.plan import complete

pytestmark = pytest.mark.usefixtures("one_thread")

DIM, ROWS, BATCH = 6, 3, 3
PRIOR = correlated(DIM)
A = rand(ROWS, DIM, seed=8) / 3
KNOWN = torch.eye(DIM, dtype=D)[:ROWS]
FRAMES: dict[str, Schedule] = {
    "vp": schedules.linear(),
    "edm": schedules.edm(),
    "flow": schedules.flow(),
}


@dataclass(frozen=True, eq=False)
class Dense(LinearOperator):
    """y = A x for vectors, A a matrix."""

    matrix: Tensor = field(default_factory=lambda: A)

    def _forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix.to(x).T

    def _adjoint(self, y: Tensor) -> Tensor:
        return y @ self.matrix.to(y)

    def _pinv(self, y: Tensor, ridge: Tensor | float) -> Tensor:
        """With an inverse instead of conjugate gradients, which stop early."""
        inverses = [back(self.matrix, float(r)) for r in torch.as_tensor(ridge).flatten()]
        return torch.stack([v @ B.T for v, B in zip(y, inverses * len(y), strict=False)])


def back(matrix: Tensor, ridge: float) -> Tensor:
    """A* (A A* + ridge)^-1."""
    eye = torch.eye(len(matrix), dtype=D)
    return matrix.T @ torch.linalg.inv(matrix @ matrix.T + ridge * eye)


def jump(x: Tensor, sigma: float) -> Tensor:
    """Where the probability flow of N(m, C) takes x0 + sigma eps."""
    values, basis = torch.linalg.eigh(PRIOR.covariance)
    gain = (values / (values + sigma**2)).sqrt()
    return PRIOR.mean + (x - PRIOR.mean) @ basis * gain @ basis.T


def network(schedule: Schedule, clip: tuple[float, float] | None = None) -> Denoiser:
    def net(x: Tensor, t: Tensor) -> Tensor:
        level = schedule(float(t[0]))
        return jump(x / float(level.alpha), float(level.ratio))

    return Denoiser(net, predicts="x0", schedule=schedule, data_range=clip)


def measured(matrix: Tensor, sigma: Any, batch: int = BATCH) -> Measurement:
    noise = torch.as_tensor(sigma, dtype=D).view(-1, 1) * rand(batch, len(matrix), seed=4)
    y = PRIOR.draw(batch, seed=3) @ matrix.T + noise
    return Measurement(y, Dense(matrix).bind((DIM,)), sigma)


def run(method: Any, denoiser: Denoiser, measurement: Measurement, steps: int, z: Tensor) -> Tensor:
    """The engine from A† y and the noise z, with one stream of noise as the reference draws it."""
    schedule, made = denoiser.schedule, complete(method)
    levels, start = made.itinerary(schedule, steps), made.itinerary.start(measurement)
    assert start is not None
    x = float(levels[0].alpha) * start + float(levels[0].sigma) * z
    bound = made.bind(Setting(denoiser, tuple(x.shape), measurement, {}, x.device, x.dtype))
    return sample(
        denoiser,
        x,
        levels,
        schedule=schedule,
        noise=OneStream(7),
        transition=bound.transition,
        guidance=bound.chain,
        measurement=measurement,
    )


def of_the_paper(
    y: Tensor,
    matrix: Tensor,
    sigma_y: float,
    z: Tensor,
    deltas: Sequence[float],
    i_N: int,
    gamma: float,
    zeta: float,
    eta: float,
    clip: float,
) -> Tensor:
    """The authors' scheme, in the frame of x0 + sigma eps."""
    a = math.prod(1 - float(beta) for beta in torch.linspace(1e-4, 0.02, 1000, dtype=D)[: i_N + 2])
    B, stream = back(matrix, zeta * sigma_y**2), OneStream(7)
    x = y @ B.T + math.sqrt(1 - a) * z
    for k, delta in enumerate(deltas):
        sigma = math.sqrt(1 - a)
        a = min(a * (1 + gamma), 0.9999)
        x0 = jump(x, (1 + delta) * sigma).clamp(-clip, clip)
        backwards, last = (x0 - x) / sigma, k == len(deltas) - 1
        if last and sigma_y > 0:
            return x0
        x = x0 - (x0 @ matrix.T - y) @ B.T
        if not last:
            fresh = eta * stream.randn_like(x) + math.sqrt(1 - eta**2) * backwards
            x = x + math.sqrt(1 - a) * fresh
    return x


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("sigma", [0.0, 0.1])
@pytest.mark.parametrize("deltas", [(0.0,) * 4, (0.2, 0.1, 1.0, 1.0)])
def test_cm4ir_is_the_authors_on_every_schedule(
    frame: str, sigma: float, deltas: tuple[float, ...]
) -> None:
    options: dict[str, float] = {"i_N": 150, "gamma": 0.05, "zeta": 0.7, "eta": 0.4}
    clip, z = 0.8, rand(BATCH, DIM, seed=1)
    measurement = measured(A, sigma)
    ours = run(
        make_method("cm4ir", delta=deltas, **options),
        network(FRAMES[frame], (-clip, clip)),
        measurement,
        len(deltas),
        z,
    )
    theirs = of_the_paper(measurement.y, A, sigma, z, deltas, clip=clip, **options)  # type: ignore[arg-type]
    torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)


def test_levels_end_at_the_least_noise_and_start_where_a_schedule_can() -> None:
    levels = FromBackProjection(i_N=400, gamma=0.7)(FRAMES["edm"], 6)
    a = [1 - float(level.ratio) ** 2 for level in levels[:-1]]
    first = math.prod(1 - float(b) for b in torch.linspace(1e-4, 0.02, 1000, dtype=D)[:402])
    expected = [min(first * 1.7**k, 0.9999) for k in range(6)]
    assert a == pytest.approx(expected, abs=1e-9) and float(levels[-1].sigma) == 0
    quiet = schedules.from_sigmas([0.1, 0.2, 0.3])
    assert float(FromBackProjection()(quiet, 2)[0].ratio) == pytest.approx(0.3)


def test_every_image_of_a_batch_has_its_own_end() -> None:
    """Where one image of the batch has no noise, its last jump alone is back-projected."""
    sigma, z = torch.tensor([0.0, 0.1, 0.0], dtype=D), rand(BATCH, DIM, seed=1)
    measurement = measured(A, sigma)
    together = run(make_method("cm4ir", eta=0.0), network(FRAMES["edm"]), measurement, 3, z)
    for k in range(BATCH):
        alone = of_the_paper(
            measurement.y[k : k + 1],
            A,
            float(sigma[k]),
            z[k : k + 1],
            (0.0,) * 3,
            250,
            0.2,
            1.0,
            0.0,
            math.inf,
        )
        torch.testing.assert_close(together[k : k + 1], alone, atol=1e-9, rtol=1e-9)


def test_what_is_measured_without_noise_is_met() -> None:
    measurement = measured(A, 0.0)
    x = run(make_method("cm4ir"), network(FRAMES["vp"]), measurement, 4, rand(BATCH, DIM))
    assert float(measurement.residual(x).abs().max()) < 1e-12
    every = measured(rand(DIM, DIM, seed=20), 0.0)  # nothing is left open
    x = run(make_method("cm4ir"), network(FRAMES["vp"]), every, 2, rand(BATCH, DIM))
    torch.testing.assert_close(x, PRIOR.draw(BATCH, seed=3), atol=1e-9, rtol=1e-9)


def test_its_noise_brings_the_mean_nearer_to_the_posteriors() -> None:
    """In units of the prior's error; fresh noise alone, and one step, are farther off."""
    chains, sigma = 4000, 0.05
    one = measured(KNOWN, sigma, 1)
    posterior = PRIOR.posterior(KNOWN, one.y[0], sigma)
    measurement = Measurement(one.y.expand(chains, -1), one.operator, sigma)

    def error(steps: int, **options: float) -> float:
        z = rand(chains, DIM, seed=1)
        x = run(make_method("cm4ir", **options), network(FRAMES["edm"]), measurement, steps, z)
        return float((x.mean(0) - posterior.mean).norm() / (PRIOR.mean - posterior.mean).norm())

    assert error(4) < 0.3 < error(4, eta=1.0) < 0.4 < error(1) < 0.55


def test_a_shift_of_x0_shifts_the_next_state_by_alpha_s_times_it() -> None:
    schedule = FRAMES["vp"]
    t, s, x = schedule(500.0), schedule(200.0), rand(2, 5, seed=1)
    p = Prediction(x, t, rand(2, 5, seed=2), rand(2, 5, seed=3))
    dx, step = rand(2, 5, seed=4), lambda: step_of(schedule, t, s, OneStream(3))
    measurement = Measurement(torch.zeros(2, 5, dtype=D), invdiff.make_operator("denoise"))
    before = Onward()(lambda *_: p, x, step(), measurement)
    after = Onward()(lambda *_: p.move_x0(dx), x, step(), measurement)
    torch.testing.assert_close(after - before, s.alpha * dx)


# Medians ------------------------------------------------------------------------------------------


def slowly_filled(x: Tensor, known: Tensor) -> Tensor:
    """One channel, pixel by pixel."""
    x, reach = torch.where(known, x, torch.nan), 1
    while bool(x.isnan().any()):
        before, reach = x.clone(), reach + 1
        for i, j in before.isnan().nonzero().tolist():
            window = before[max(0, i - reach) : i + reach + 1, max(0, j - reach) : j + reach + 1]
            values = window[~window.isnan()].sort().values
            if len(values):
                x[i, j] = values[(len(values) - 1) // 2]
    return x


def test_missing_pixels_of_the_start_are_medians_of_what_is_around_them() -> None:
    x = rand(2, 3, 14, 19, seed=1)
    known = rand(2, 3, 14, 19, seed=2) > 1.0
    known[0, 1] = False  # of a channel that was not seen at all
    known[1, 2, 2:12, 3:17] = False
    made = filled(x, known)
    for b in range(2):
        for c in range(3):
            if (b, c) == (0, 1):
                assert torch.equal(made[b, c], x[b, c])
            else:
                assert torch.equal(made[b, c], slowly_filled(x[b, c], known[b, c]))
    image = torch.rand(1, 3, 16, 16, dtype=D, generator=torch.Generator().manual_seed(0))
    measurement = invdiff.make_operator("inpaint", fraction=0.6).measure(image)
    start = FromBackProjection().start(measurement)
    assert start is not None
    mask = measurement.spectral.singular_values[0].bool()
    for c in range(3):
        assert torch.equal(start[0, c], slowly_filled(image[0, c], mask))


# On images, and what cannot work ------------------------------------------------------------------


@pytest.mark.parametrize("operator", ["inpaint", "sr", "blur", "colorize"])
def test_it_restores_in_four_evaluations_forward_alone(operator: str) -> None:
    image = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    measurement = invdiff.make_operator(operator).measure(image, sigma=0.02)

    def net(x: Tensor, t: Tensor) -> Tensor:
        assert not torch.is_grad_enabled() and not x.requires_grad
        return x / (1 + t.view(-1, 1, 1, 1) ** 2).sqrt()

    denoiser = Denoiser(net, predicts="x0", schedule="edm", data_range=(-1, 1))
    result = solve(measurement, denoiser, "cm4ir", steps=4)
    assert (result.nfe, result.nbe) == (4, 0)
    assert bool(result.x.isfinite().all())


def never(x: Tensor, t: Tensor) -> Tensor:
    raise AssertionError("the network was called")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CM4IR(zeta=-1), "zeta must be a finite number, at least 0, got -1"),
        (lambda: CM4IR(delta=(0.1, -0.1)), "delta must be a finite number, at least 0, got -0.1"),
        (lambda: Onward(eta=1.1), r"eta must be in \[0, 1\], got 1.1"),
        (lambda: FromBackProjection(i_N=999), "i_N must be a time from 0 to 998, got 999"),
        (lambda: FromBackProjection(gamma=-0.1), "gamma must be a finite number, at least 0"),
    ],
)
def test_wrong_parameters_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_what_cannot_work_is_refused_before_sampling() -> None:
    denoiser = Denoiser(never, predicts="x0", schedule="edm", data_range=(-1, 1))
    image = torch.rand(1, 3, 16, 16)
    with pytest.raises(ValueError, match="requires a LinearOperator, but got JPEG"):
        solve(invdiff.make_operator("jpeg").measure(image, sigma=0.02), denoiser, "cm4ir", steps=4)
    with pytest.raises(ValueError, match="there is no measurement"):
        invdiff.generate(denoiser, (1, 3, 16, 16), "cm4ir", steps=4)
    measurement = invdiff.make_operator("denoise").measure(image, sigma=0.02)
    with pytest.raises(ValueError, match="delta has 3 values, but the run has 4 steps"):
        solve(measurement, denoiser, make_method("cm4ir", delta=(0, 0, 1.0)), steps=4)
