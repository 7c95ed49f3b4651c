"""DiffPIR, RED-diff and DAPS: equal to their papers' algorithms, written out in alpha_bar and plain
matrices, from the same noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from oracles import D, Given, OneStream, correlated, rand, step_of
from torch import Tensor

from invdiff import schedules
from invdiff.guidance.daps import DAPS, Annealing, daps
from invdiff.guidance.diffpir import DiffPIR, Root, diffpir
from invdiff.guidance.reddiff import REDDiff, reddiff
from invdiff.itineraries import Straight
from invdiff.network import Denoiser
from invdiff.operators.matrix import Matrix
from invdiff.problem import Measurement, Operator, make_operator
from invdiff.sampling import Method, make_method, sample
from invdiff.schedules import Level, Schedule
from invdiff.solving import solve
from invdiff.transitions import Heun

pytestmark = pytest.mark.usefixtures("one_thread")

SCHEDULE = schedules.linear(
    beta_start=1e-5
)  # its least noisy level lies below the end of DAPS' ODE
ALPHA_BAR = torch.cumprod(1 - torch.linspace(1e-5, 0.02, 1000, dtype=D), 0)
TIMES = [990, 700, 400, 150, 30]
A = rand(3, 5, seed=8) / 2
PRIOR = correlated(5)
B = 2


def posterior_mean(x: Tensor, scale: float | Tensor, noise: float | Tensor) -> Tensor:
    """E[x0 | scale x0 + noise eps = x] under the prior."""
    m, C = PRIOR.mean, PRIOR.covariance
    gain = scale * C @ torch.linalg.inv(scale**2 * C + noise**2 * torch.eye(5, dtype=D))
    return m + (x - scale * m) @ gain.T


def denoiser(schedule: Schedule = SCHEDULE) -> Denoiser:
    return Denoiser(PRIOR.network("eps", schedule), schedule=schedule)


def levels(times: Sequence[int] = TIMES) -> list[Level]:
    return [SCHEDULE(t) for t in (*times, -1)]


def measured(sigma: Any = 0.2) -> Measurement:
    return Matrix(A).bind((5,)).measure(PRIOR.draw(B, seed=3), sigma=sigma)


def run(
    method: Method,
    x: Tensor,
    measurement: Measurement,
    draws: Sequence[Tensor],
    visited: Sequence[Level] | None = None,
) -> Tensor:
    """The method's pieces in the loop, from x and with the given draws, of which none may be
    left."""
    assert method.transition is not None
    noise = Given(draws)
    out = sample(
        denoiser(),
        x,
        visited or levels(),
        schedule=SCHEDULE,
        noise=noise,
        transition=method.transition,
        guidance=method.chain,
        measurement=measurement,
    )
    assert noise.drawn == len(draws)
    return out


@dataclass(frozen=True, eq=False)
class Squares(Operator):
    """y = (A x)², a nonlinear operator."""

    def _forward(self, x: Tensor) -> Tensor:
        return (x @ A.T.to(x)) ** 2


def images(batch: int = 3) -> Tensor:
    return rand(batch, 1, 8, 8, seed=4).sigmoid()


def tanh() -> Denoiser:
    """A network of images that is no one's prior."""
    return Denoiser(
        lambda x, t: 0.7 * torch.tanh(x) * (1 - t / 3000).view(-1, 1, 1, 1),
        predicts="x0",
        schedule="linear",
        data_range=(-1, 1),
    )


METHODS: dict[str, Callable[[], Method]] = {
    "diffpir": lambda: diffpir(0.7, 0.4),
    "reddiff": lambda: reddiff(0.3, 0.2),
    "daps": lambda: daps(ode_steps=2, langevin_steps=5, tau=0.05),
    "daps_exact": lambda: daps(ode_steps=2, exact=True, tau=0.05),
}


# DiffPIR ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.2, 0.0, [0.5, 0.1], [0.0, 0.3]])
@pytest.mark.parametrize("zeta", [0.0, 0.3, 1.0])
def test_diffpir_is_algorithm_1(zeta: float, sigma: Any) -> None:
    lmbda, measurement, x_T = 0.7, measured(sigma), rand(B, 5)
    draws = [rand(B, 5, seed=10 + k) for k in range(len(TIMES) - 1 if zeta else 0)]
    rows = []
    for k, noise in enumerate(torch.as_tensor(sigma, dtype=D).expand(B)):
        x, y = x_T[k], measurement.y[k]
        for i, t in enumerate(TIMES):
            bar, bar_s = (
                ALPHA_BAR[t],
                ALPHA_BAR[TIMES[i + 1]] if i + 1 < len(TIMES) else torch.ones((), dtype=D),
            )
            x0 = posterior_mean(x, bar.sqrt(), (1 - bar).sqrt())
            rho = lmbda * noise**2 / ((1 - bar) / bar)
            if rho > 0:
                x0 = torch.linalg.solve(A.T @ A + rho * torch.eye(5, dtype=D), A.T @ y + rho * x0)
            else:
                x0 = x0 + torch.linalg.pinv(A) @ (y - A @ x0)
            eps = (x - bar.sqrt() * x0) / (1 - bar).sqrt()
            fresh = zeta**0.5 * draws[i][k] if zeta and bar_s < 1 else 0
            x = bar_s.sqrt() * x0 + (1 - bar_s).sqrt() * ((1 - zeta) ** 0.5 * eps + fresh)
        rows.append(x)
    torch.testing.assert_close(
        run(diffpir(lmbda, zeta), x_T, measurement, draws), torch.stack(rows), atol=1e-9, rtol=0
    )


def test_diffpir_without_noise_fits_the_measurement() -> None:
    measurement = measured(0.0)
    x = solve(measurement, denoiser(), "diffpir", steps=10, dtype=D).x
    torch.testing.assert_close(x @ A.T, measurement.y, atol=1e-9, rtol=0)


@pytest.mark.parametrize("steps", [1, 20, 100, 700, 1000])
def test_diffpir_visits_the_levels_of_its_code(steps: int) -> None:
    visited = [int(level.t) for level in Root()(schedules.linear(), steps)]
    seq = [int(math.sqrt(1000**2 * k / max(steps - 1, 1))) for k in range(steps)]
    published = [999 - min(s, 999) for s in seq]
    if len(set(published)) == steps:
        assert visited[:-1] == published
    assert visited[0] == 999 and visited[-1] == -1
    assert all(a > b for a, b in zip(visited, visited[1:], strict=False))
    assert Root()(schedules.edm(), steps) == Straight()(schedules.edm(), steps)


# RED-diff -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("operator", [Matrix(A), Squares()])
def test_reddiff_is_algorithm_1(operator: Operator) -> None:
    """One image after the other: a shared optimiser couples nothing."""
    lmbda, lr, sigma = 0.25, 0.1, 0.2
    A_of = operator.bind((5,))
    measurement = A_of.measure(PRIOR.draw(B, seed=3), sigma=sigma)
    z = [rand(B, 5, seed=10 + k) for k in range(len(TIMES))]
    first, rows = [], []
    for k in range(B):
        y = measurement.y[k]
        bar = ALPHA_BAR[TIMES[0]]
        if isinstance(operator, Matrix):
            start = torch.linalg.solve(A.T @ A + sigma**2 * torch.eye(5, dtype=D), A.T @ y)
            x = bar.sqrt() * start + (1 - bar).sqrt() * z[0][k]
        else:
            x = z[0][k]
            start = posterior_mean(x, bar.sqrt(), (1 - bar).sqrt())
        first.append(x)
        mu = start.clone().requires_grad_()
        adam = torch.optim.Adam([mu], lr=lr, betas=(0.9, 0.99))
        for i, t in enumerate(TIMES):
            bar = ALPHA_BAR[t]
            noise = z[i][k] if i else (x - bar.sqrt() * mu.detach()) / (1 - bar).sqrt()
            x_t = bar.sqrt() * mu.detach() + (1 - bar).sqrt() * noise
            eps = (x_t - bar.sqrt() * posterior_mean(x_t, bar.sqrt(), (1 - bar).sqrt())) / (
                1 - bar
            ).sqrt()
            weight = lmbda * ((1 - bar) / bar).sqrt()
            loss = (y - A_of(mu[None])[0]).square().mean() / 2 + weight * (
                (eps - noise) * mu
            ).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
        rows.append(mu.detach())
    out = run(reddiff(lmbda, lr), torch.stack(first), measurement, z[1:])
    torch.testing.assert_close(out, torch.stack(rows), atol=1e-9, rtol=0)


def test_runs_of_reddiff_share_no_state() -> None:
    method, measurement = reddiff(), measured()
    first, again = (solve(measurement, denoiser(), method, steps=4, dtype=D).x for _ in range(2))
    assert torch.equal(first, again)


def test_reddiff_keeps_a_state_so_a_step_predicts_once() -> None:
    with pytest.raises(
        ValueError, match="REDDiff keeps a state between steps, but Heun predicts more than once"
    ):
        solve(measured(), denoiser(), "reddiff", transition=Heun(), steps=4)


# DAPS ---------------------------------------------------------------------------------------------


def karras(high: float, low: float, n: int) -> list[float]:
    return [
        (high ** (1 / 7) + i / (n - 1) * (low ** (1 / 7) - high ** (1 / 7))) ** 7 for i in range(n)
    ]


@pytest.mark.parametrize("kind", ["langevin", "squares", "exact"])
def test_daps_is_algorithm_1(kind: str) -> None:
    """The paper's frame is variance exploding, x_t = x0 + sigma eps; the run's preserves the
    variance."""
    lr, least, tau, ode, langevin, steps = 1e-3, 0.1, 0.3, 3, 4, 3
    operator = (Squares() if kind == "squares" else Matrix(A)).bind((5,))
    measurement = operator.measure(PRIOR.draw(B, seed=3), sigma=0.2)
    y, sigmas, seeds = measurement.y, karras(20.0, 0.1, steps), iter(range(10, 100))
    draws: list[Tensor] = []

    def drawn(*shape: int) -> Tensor:
        draws.append(rand(*shape, seed=next(seeds)))
        return draws[-1]

    x_T = rand(B, 5)
    x = x_T * (1 + sigmas[0] ** 2) ** 0.5  # from VP: divided by alpha
    for i, sigma in enumerate(sigmas):
        ladder = [*karras(sigma, 0.01, ode), 0.0]
        for here, there in zip(ladder, ladder[1:], strict=False):
            x = x + (there - here) * (x - posterior_mean(x, 1.0, here)) / here
        x0_hat = x
        if kind == "exact":
            precision = torch.eye(5, dtype=D) / sigma**2 + A.T @ A / tau**2
            right = (x0_hat + sigma * drawn(B, 5)) / sigma**2 + (y + tau * drawn(B, 3)) @ A / tau**2
            x = torch.linalg.solve(precision, right.T).T
        else:
            eta = lr * (1 + i / steps * (least - 1))
            for _ in range(langevin):
                Ax = x @ A.T
                pull = (y - Ax) @ A if kind == "langevin" else (2 * Ax * (y - Ax**2)) @ A
                x = (
                    x
                    + eta * (pull / tau**2 - (x - x0_hat) / sigma**2)
                    + (2 * eta) ** 0.5 * drawn(B, 5)
                )
        if i + 1 < steps:
            x = x + sigmas[i + 1] * drawn(B, 5)
    method = daps(ode, langevin, lr, least, tau, kind == "exact", 20.0, 0.1)
    assert method.itinerary is not None
    out = run(method, x_T, measurement, draws, method.itinerary(SCHEDULE, steps))
    torch.testing.assert_close(out, x, atol=1e-8, rtol=1e-8)


def test_daps_with_momentum_is_latent_daps_of_the_present_repository() -> None:
    """The repository's levels, step sizes and clipped gradient; the variance-exploding frame as
    above, and the paper's end of the ODE."""
    lr, least, tau, m, ode, count, steps = 1e-3, 0.1, 0.4, 0.6, 2, 4, 3
    measurement = Matrix(A).bind((5,)).measure(PRIOR.draw(B, seed=3), sigma=0.2)
    y, seeds, draws = measurement.y, iter(range(10, 100)), list[Tensor]()

    def drawn() -> Tensor:
        draws.append(rand(B, 5, seed=next(seeds)))
        return draws[-1]

    sigmas = [*karras(20.0, 0.1, steps + 1)[:-1], 0.0]  # N of N + 1 points, then clean
    x_T, clipped = rand(B, 5), 0
    x = x_T * (1 + sigmas[0] ** 2) ** 0.5
    for i in range(steps):
        sigma, h = sigmas[i], (lr * (1 + i / (steps + 1) * (least - 1))) ** 0.5
        ladder = [*karras(sigma, 0.01, ode), 0.0]
        for here, there in zip(ladder, ladder[1:], strict=False):
            x = x + (there - here) * (x - posterior_mean(x, 1.0, here)) / here
        x0_hat, v = x, drawn()
        for _ in range(count):
            slope = 2 * (x @ A.T - y) @ A  # of ‖y − A x‖²
            clipped += int((slope.abs() > 1).sum())
            score = -slope.clamp(-1, 1) / tau**2 - (x - x0_hat) / sigma**2
            v = m * v + h * score + (2 * (1 - m)) ** 0.5 * drawn()
            x = x + h * v
        if i + 1 < steps:
            x = x + sigmas[i + 1] * drawn()
    assert clipped > 0
    method = daps(
        ode,
        count,
        lr,
        1 - (1 - least) * steps / (steps + 1),
        tau / 2**0.5,
        sigma_max=20.0,
        sigma_min=sigmas[-2],
        momentum=m,
        limit=1.0,
    )
    assert method.itinerary is not None
    out = run(method, x_T, measurement, draws, method.itinerary(SCHEDULE, steps))
    torch.testing.assert_close(out, x, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize(
    ("exact", "momentum"), [(False, 0.0), (False, 0.5), (True, 0.0)], ids=["lmc", "hmc", "exact"]
)
def test_daps_draws_from_its_gaussian(exact: bool, momentum: float) -> None:
    tau, chains = 0.5, 4000
    x0_hat, y, level = rand(5), rand(3, seed=1), SCHEDULE.at(0.8)
    measurement = Measurement(y.expand(chains, 3), Matrix(A).bind((5,)), tau)
    guidance = DAPS(lr=0.01, lr_min_ratio=1.0, langevin_steps=400, tau=0, momentum=momentum)
    draw = guidance.solved if exact else guidance.langevin
    x = draw(x0_hat.expand(chains, 5), step_of(SCHEDULE, level, level, OneStream()), measurement)
    covariance = torch.linalg.inv(torch.eye(5, dtype=D) / 0.8**2 + A.T @ A / tau**2)
    torch.testing.assert_close(
        x.mean(0), covariance @ (x0_hat / 0.8**2 + A.T @ y / tau**2), atol=0.05, rtol=0
    )
    torch.testing.assert_close(x.T.cov(), covariance, atol=0.05, rtol=0)


def test_daps_anneals_on_karras_grid_in_every_frame() -> None:
    for schedule in (schedules.linear(), schedules.ve(0.01, 200), schedules.flow()):
        visited = Annealing()(schedule, 200)
        torch.testing.assert_close(
            torch.stack([s.ratio for s in visited]),
            torch.tensor([*karras(100, 0.1, 200), 0.0], dtype=D),
        )
    assert float(Annealing()(schedules.edm(), 5)[0].sigma) == pytest.approx(
        80
    )  # no noisier than the network knows
    with pytest.raises(ValueError, match="start just below alpha = 0"):
        flow = Denoiser(PRIOR.network("v", schedules.flow()), predicts="v", schedule="flow")
        solve(measured(), flow, "daps", itinerary=Straight(), steps=3)


def test_sigma_takes_the_place_of_tau() -> None:
    measurement = measured([0.2, 0.4])
    own = solve(
        measurement,
        denoiser(),
        make_method("daps", tau=0, langevin_steps=4, lr=1e-3),
        steps=4,
        dtype=D,
    ).x
    for k, sigma in enumerate([0.2, 0.4]):
        given = make_method("daps", tau=sigma, langevin_steps=4, lr=1e-3)
        alone = solve(measurement.select([k]), denoiser(), given, steps=4, image_ids=[k], dtype=D).x
        torch.testing.assert_close(alone[0], own[k], atol=1e-9, rtol=0)
    with pytest.raises(ValueError, match="DAPS with tau=0 weighs by 1/sigma², but sigma is zero"):
        solve(measured(0.0), denoiser(), make_method("daps", tau=0), steps=4)
    with pytest.raises(ValueError, match="exact=True needs a linear operator"):
        solve(
            Squares().bind((5,)).measure(rand(B, 5)),
            denoiser(),
            make_method("daps", exact=True),
            steps=4,
        )


# All of them --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_an_image_alone_is_the_image_in_its_batch(name: str) -> None:
    """With a mask and a sigma of its own each; one of them without noise."""
    mask = (rand(3, 1, 8, 8, seed=6) > 0).to(D)
    measurement = make_operator("inpaint", mask=mask).measure(images(), sigma=[0.0, 0.05, 0.1])
    together = solve(measurement, tanh(), METHODS[name](), steps=4, dtype=D)
    assert (together.nfe, together.nbe) == (8 if name.startswith("daps") else 4, 0)
    for k in range(3):
        alone = solve(
            measurement.select([k]), tanh(), METHODS[name](), steps=4, image_ids=[k], dtype=D
        )
        torch.testing.assert_close(alone.x[0], together.x[k], atol=1e-12, rtol=0)


@pytest.mark.parametrize("schedule", ["linear", "ve", "edm", "flow"])
@pytest.mark.parametrize("name", METHODS)
def test_every_frame_and_zero_noise(name: str, schedule: str) -> None:
    chosen = schedules.make_schedule(schedule)
    net = Denoiser(
        PRIOR.network("x0" if schedule != "flow" else "velocity", chosen),
        predicts="x0" if schedule != "flow" else "velocity",
        schedule=chosen,
    )
    x = solve(measured(0.0), net, METHODS[name](), steps=6, dtype=D).x
    assert bool(x.isfinite().all())


def test_sigmas_per_pixel() -> None:
    measurement = make_operator("denoise").measure(images(), gain=0.1)
    for taken in (
        reddiff(),
        daps(tau=0, langevin_steps=2),
        daps(exact=True),
        daps(tau=0, exact=True),
        diffpir(),
    ):
        assert bool(solve(measurement, tanh(), taken, steps=3).x.isfinite().all())
    holes = torch.where(measurement.y > 0.5, 0.0, torch.as_tensor(measurement.sigma))
    partly = Measurement(measurement.y, measurement.operator, holes)
    for refused, who in ((diffpir(), "DiffPIR"), (daps(tau=0, exact=True), "DAPS")):
        with pytest.raises(ValueError, match=f"{who}.* sigma is zero"):
            solve(partly, tanh(), refused, steps=3)


def test_diffpir_refuses_a_nonlinear_operator() -> None:
    with pytest.raises(
        ValueError, match="DiffPIR requires a LinearOperator, but Squares is not one"
    ):
        solve(Squares().bind((5,)).measure(rand(B, 5)), denoiser(), "diffpir", steps=3)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: diffpir(lmbda=-1), "lmbda must be a finite number, at least 0, got -1"),
        (lambda: DiffPIR(math.inf), "lmbda must be"),
        (lambda: diffpir(zeta=1.5), r"zeta must be in \[0, 1\], got 1.5"),
        (lambda: REDDiff(lmbda=-0.1), "lmbda must be"),
        (lambda: reddiff(lr=0), "lr must be a finite positive number, got 0"),
        (lambda: daps(ode_steps=0), "ode_steps must be at least 1, got 0"),
        (lambda: daps(langevin_steps=0), "langevin_steps must be at least 1"),
        (lambda: daps(lr=-1e-4), "lr must be a finite positive number"),
        (lambda: daps(momentum=1.0), r"momentum must be in \[0, 1\), got 1"),
        (lambda: daps(limit=0.0), "limit must be positive"),
        (lambda: daps(limit=1.0, tau=0), "needs a tau above 0"),
        (lambda: daps(exact=True, momentum=0.5), "takes no steps"),
        (lambda: daps(tau=-0.1), "tau must be a finite number, at least 0, got -0.1"),
        (lambda: daps(lr_min_ratio=0), r"lr_min_ratio must be in \(0, 1\], got 0"),
        (lambda: daps(sigma_min=200.0), "sigma_max must exceed sigma_min"),
        (lambda: Annealing()(SCHEDULE, 0), "steps must be at least 1"),
    ],
)
def test_wrong_parameters_are_refused(make: Callable[[], object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()
