"""DDRM, DDNM, PiGDM and MMPS: the papers' algorithms written out with plain matrices, from the same
noise; the exact posterior where theory promises it; every kind of sigma."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracles import D, Gaussian, Given, Mixture, OneStream, correlated, rand, step_of
from torch import Tensor

from invdiff import schedules
from invdiff.config import build_method, compose
from invdiff.guidance.ddnm import DDNM, NullSpaceNoise, ddnm
from invdiff.guidance.ddrm import DDRM
from invdiff.guidance.mmps import MMPS, gmres
from invdiff.guidance.pigdm import PiGDM, pigdm
from invdiff.itineraries import Jumps
from invdiff.network import Denoiser, Prediction
from invdiff.operators.blur import blur
from invdiff.operators.inpaint import Inpaint
from invdiff.operators.matrix import Matrix
from invdiff.problem import Measurement, Operator, make_operator
from invdiff.sampling import Method, Step, make_method, sample
from invdiff.schedules import Level
from invdiff.solving import solve
from invdiff.solving.plan import complete
from invdiff.transitions import DDIM, DDPM, DPMSolver

pytestmark = pytest.mark.usefixtures("one_thread")

T, B, DIM = 25, 6, 5
SCHEDULE = schedules.linear(T, 1e-2, 0.3)
ABAR = torch.cat(
    [torch.ones(1, dtype=D), torch.cumprod(1 - torch.linspace(1e-2, 0.3, T, dtype=D), 0)]
)  # ABAR[t + 1]
U, VT = (torch.linalg.qr(rand(n, n, seed=n)).Q for n in (3, 5))
A = (
    U @ torch.diag(torch.tensor([1.4, 0.5, 0.06], dtype=D)) @ VT[:3]
)  # components above and below the noise at every stage of a run
PRIOR = correlated(DIM)
NET = PRIOR.network("eps", SCHEDULE)
OPERATOR = Matrix(matrix=A).bind((DIM,))


def measured(sigma: Any, operator: Operator = OPERATOR) -> Measurement:
    return operator.measure(PRIOR.draw(B, seed=3), sigma=sigma, seed=4)


def run(
    method: Any,
    measurement: Measurement,
    x: Tensor,
    scale: Callable[[Level], Tensor] | None = None,
    net: Any = NET,
) -> Tensor:
    """The loop over all levels from x_T = x, with one noise stream for the batch; ``scale`` puts
    every level into another frame."""
    plan = complete(method)
    levels = plan.itinerary(SCHEDULE, T)
    if scale is not None:
        x = x * scale(levels[0])
        levels = [
            Level(level.t, level.alpha * scale(level), level.sigma * scale(level))
            for level in levels
        ]
    denoiser = Denoiser(net, schedule=SCHEDULE, dtype=D)
    return sample(
        denoiser,
        x,
        levels,
        schedule=SCHEDULE,
        noise=OneStream(1),
        transition=plan.transition,
        guidance=plan.chain,
        measurement=measurement,
    )


class Draws:
    """The same noise as the run's."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(1)

    def __call__(self) -> Tensor:
        return torch.randn(B, DIM, dtype=D, generator=self.generator)


def steps() -> Iterator[tuple[int, Tensor, Tensor]]:
    """(t, alpha_bar_t, alpha_bar_s) of a straight run."""
    return ((t, ABAR[t + 1], ABAR[t]) for t in range(T - 1, -1, -1))


def predicted(x: Tensor, t: int, at: Tensor) -> tuple[Tensor, Tensor]:
    """x0 and eps, in the papers' notation."""
    e = NET(x, torch.full((B,), float(t)))
    return (x - (1 - at).sqrt() * e) / at.sqrt(), e


X_T = rand(B, DIM, seed=7)


# The papers' algorithms ---------------------------------------------------------------------------


def ddrm(x: Tensor, y: Tensor, sigma_0: float, eta: float, eta_b: float) -> Tensor:
    u, singulars, vt = torch.linalg.svd(A)
    draw = Draws()
    for t, at, an in steps():
        x0, e = predicted(x, t, at)
        sigma = (1 - an).sqrt() / an.sqrt()
        x0, e, z = x0 @ vt.T, e @ vt.T, draw() @ vt.T
        new = x0 + (1 - eta**2) ** 0.5 * sigma * e + eta * sigma * z
        for i, s in enumerate(singulars):
            uy = (y @ u)[:, i]
            if sigma >= sigma_0 / s:
                new[:, i] = (
                    (1 - eta_b) * x0[:, i]
                    + eta_b * uy / s
                    + (sigma**2 - (eta_b * sigma_0 / s) ** 2).sqrt() * z[:, i]
                )
            else:
                new[:, i] = x0[:, i] + sigma * (
                    (1 - eta**2) ** 0.5 * (uy - s * x0[:, i]) / sigma_0 + eta * z[:, i]
                )
        x = an.sqrt() * new @ vt
    return x


@pytest.mark.parametrize("sigma", [0.0, 0.1, 0.7])
@pytest.mark.parametrize(("eta", "eta_b"), [(0.85, 1.0), (0.4, 0.6), (0.0, 1.0)])
def test_ddrm_is_the_papers(sigma: float, eta: float, eta_b: float) -> None:
    m = measured(sigma)
    torch.testing.assert_close(
        run(DDRM(eta, eta_b, math.inf), m, X_T),
        ddrm(X_T, m.y, sigma, eta, eta_b),
        atol=1e-9,
        rtol=0,
    )


@pytest.mark.parametrize("method", [DDRM, ddnm])
def test_components_of_noise_alone_count_as_not_measured(method: Any) -> None:
    """Above ``sigma_max`` a component is treated as if its singular value were zero."""
    sigma = 0.7
    u, s, vt = torch.linalg.svd(A, full_matrices=False)
    largest = float(sigma / s[1]) * 1.001  # of the three components the last one is cut
    kept = torch.where(sigma / s <= largest, s, 0.0)
    assert int((kept > 0).sum()) == 2
    m, fewer = measured(sigma), Matrix(u @ torch.diag(kept) @ vt).bind((DIM,))
    told = Measurement(m.y @ u[:, :2] @ u[:, :2].T, fewer, sigma)
    torch.testing.assert_close(
        run(method(sigma_max=largest), m, X_T),
        run(method(sigma_max=math.inf), told, X_T),
        atol=1e-9,
        rtol=0,
    )


def ddnm_svd(x: Tensor, y: Tensor, sigma_y: float, eta: float, times: list[int]) -> Tensor:
    """The authors' SVD code; back in time from the corrected x0."""
    u, s, vt = torch.linalg.svd(A)
    s = torch.cat([s, torch.zeros(2, dtype=D)])
    pinv = torch.linalg.pinv(A)
    draw, hat = Draws(), x
    for t, n in pairwise(times):
        at, an = ABAR[t + 1], ABAR[n + 1]
        if n > t:
            x = an.sqrt() * hat + (1 - an).sqrt() * draw()
            continue
        x0, e = predicted(x, t, at)
        a, sigma_t = an.sqrt(), (1 - an).sqrt()
        weight, d1, d2 = (
            torch.ones(DIM, dtype=D),
            torch.full((DIM,), float(eta * sigma_t), dtype=D),
            torch.full((DIM,), float((1 - eta**2) ** 0.5 * sigma_t), dtype=D),
        )
        for i in range(3 if sigma_y > 0 else 0):
            d2[i] = 0
            if sigma_t < a * sigma_y / s[i]:
                weight[i] = s[i] * sigma_t * (1 - eta**2) ** 0.5 / a / sigma_y
            else:
                d1[i] = (sigma_t**2 - (a * sigma_y / s[i]) ** 2).sqrt()
        hat = x0 - ((x0 @ A.T - y) @ pinv.T @ vt.T * weight) @ vt
        x = a * hat + (draw() @ vt.T * d1 + e @ vt.T * d2) @ vt
    return x


@pytest.mark.parametrize("sigma", [0.0, 0.1, 0.7])
@pytest.mark.parametrize(("length", "repeat"), [(1, 1), (4, 3)])
def test_ddnm_is_the_authors_with_its_time_travel(sigma: float, length: int, repeat: int) -> None:
    m, times = measured(sigma), [int(level.t) for level in Jumps(length, repeat)(SCHEDULE, T)]
    assert (len(times) > T + 1) == (repeat > 1)
    torch.testing.assert_close(
        run(ddnm(0.85, length, repeat, math.inf), m, X_T),
        ddnm_svd(X_T, m.y, sigma, 0.85, times),
        atol=1e-9,
        rtol=0,
    )


@pytest.mark.parametrize("sigma", [0.02, 0.5], ids=["less noise than x_s", "more"])
def test_ddnm_keeps_noise_on_means_in_the_basis_of_the_operator(sigma: float) -> None:
    """Means of 2x2 pixels, for which the authors' Lambda_noise multiplies eps by V without V*. By
    the paper, with P the projection onto what a mean tells (s = 1/2): the noise in P is that which
    y lacks, the rest is DDIM's."""
    operator = make_operator("sr", factor=2, kernel="box").bind((1, 4, 4))
    x_t, z = rand(2, 1, 4, 4, seed=1), rand(2, 1, 4, 4, seed=2)
    y = operator(rand(2, 1, 4, 4, seed=3))
    t, s = SCHEDULE(torch.tensor(12)), SCHEDULE(torch.tensor(8))

    def P(x: Tensor) -> Tensor:
        return F.interpolate(F.avg_pool2d(x, 2), scale_factor=2)

    def net(x: Tensor, _: Tensor, **cond: Any) -> Tensor:
        return torch.tanh(x + 0.3 * x.flip(-1))

    eta, e = 0.6, net(x_t, t.t)
    x0 = (x_t - t.sigma * e) / t.alpha
    n = s.alpha * sigma / 0.5
    kept = (1 - eta**2) ** 0.5 * s.sigma
    x0 = x0 + (1.0 if n < s.sigma else kept / n) * (F.interpolate(y, scale_factor=2) - P(x0))
    phi = (s.sigma**2 - n**2).sqrt() if n < s.sigma else eta * s.sigma
    expected = s.alpha * x0 + phi * P(z) + eta * s.sigma * (z - P(z)) + kept * (e - P(e))

    out = sample(
        Denoiser(net, schedule=SCHEDULE, dtype=D),
        x_t,
        [t, s],
        schedule=SCHEDULE,
        noise=Given([z]),
        transition=NullSpaceNoise(eta, math.inf),
        guidance=(DDNM(eta, math.inf),),
        measurement=Measurement(y, operator, sigma),
    )
    torch.testing.assert_close(out, expected, atol=1e-10, rtol=0)


def pigdm_plain(x: Tensor, y: Tensor, sigma_y: float, eta: float, adaptive: bool) -> Tensor:
    """Algorithm 1 with the authors' coefficient sqrt(alpha_bar_t alpha_bar_s); or eq. 7 as a
    score."""
    draw = Draws()
    for t, at, an in steps():
        x = x.detach().requires_grad_()
        x0, e = predicted(x, t, at)
        r2 = 1 - at
        inverse = torch.linalg.inv(r2 * A @ A.T + sigma_y**2 * torch.eye(3, dtype=D))
        (g,) = torch.autograd.grad(((y - x0 @ A.T).detach() @ inverse @ A * x0).sum(), x)
        c1 = eta * ((1 - at / an) * (1 - an) / (1 - at)).sqrt()
        c2 = (1 - an - c1**2).sqrt()
        if adaptive:
            mean = an.sqrt() * x0 + c2 * e + (at * an).sqrt() * r2 * g
        else:
            e = e - (1 - at).sqrt() * g
            mean = an.sqrt() * (x - (1 - at).sqrt() * e) / at.sqrt() + c2 * e
        x = (mean + c1 * draw() if c1 > 0 else mean).detach()
    return x


@pytest.mark.parametrize("sigma", [0.0, 0.1])
@pytest.mark.parametrize("eta", [1.0, 0.3])
@pytest.mark.parametrize("adaptive", [True, False])
def test_pigdm_is_the_authors(sigma: float, eta: float, adaptive: bool) -> None:
    m = measured(sigma)
    torch.testing.assert_close(
        run(pigdm(eta, adaptive), m, X_T),
        pigdm_plain(X_T, m.y, sigma, eta, adaptive),
        atol=1e-8,
        rtol=0,
    )


@pytest.mark.parametrize("sigma", [0.0, 0.1])
def test_mmps_is_the_papers_with_its_covariance_written_out(sigma: float) -> None:
    m, draw, x = measured(sigma), Draws(), X_T
    for t, at, an in steps():
        x0, _ = predicted(x, t, at)
        C = (
            (1 - at)
            / at.sqrt()
            * torch.func.jacfwd(lambda v, t=t, at=at: predicted(v.expand(B, -1), t, at)[0][0])(
                x[0]
            ).T
        )
        score = (
            torch.linalg.solve(sigma**2 * torch.eye(3, dtype=D) + A @ C @ A.T, (m.y - x0 @ A.T).T).T
            @ A
        )
        x0 = x0 + score @ C.T
        e = (x - at.sqrt() * x0) / (1 - at).sqrt()
        c1 = ((1 - at / an) * (1 - an) / (1 - at)).sqrt()
        x = an.sqrt() * x0 + (1 - an - c1**2).sqrt() * e + (c1 * draw() if c1 > 0 else 0)
    torch.testing.assert_close(run(MMPS(iterations=3), m, X_T), x, atol=1e-7, rtol=0)


@pytest.mark.parametrize(
    "method", [DDRM(), ddnm(0.85, 3, 2), pigdm(), pigdm(adaptive=False), MMPS()], ids=repr
)
@pytest.mark.parametrize("frame", ["ve", "flow"])
def test_every_frame_tells_the_same_story(method: Any, frame: str) -> None:
    m = measured(0.1)
    scale = {
        "ve": lambda level: 1 / level.alpha,
        "flow": lambda level: 1 / (level.alpha + level.sigma),
    }[frame]
    torch.testing.assert_close(run(method, m, X_T, scale), run(method, m, X_T), atol=1e-9, rtol=0)


def test_with_noise_everywhere_ddnm_is_ddrm() -> None:
    m = measured(0.2)
    torch.testing.assert_close(
        run(ddnm(0.6), m, X_T), run(DDRM(0.6, 1.0), m, X_T), atol=1e-10, rtol=0
    )


def test_ddrms_first_state_around_y_would_change_nothing_to_speak_of() -> None:
    """Eq. 7, from the same noise, on the schedule of the paper's networks."""
    schedule, m = schedules.linear(), measured(0.1)
    levels = [
        Level(*values)
        for values in zip(*schedule(torch.tensor([999.0, 700, 400, 150, 20, -1])), strict=True)
    ]
    denoiser, z = (
        Denoiser(PRIOR.network("eps", schedule), schedule=schedule, dtype=D),
        OPERATOR.Vt(X_T),
    )
    around_y = levels[0].ratio ** 2 - m.component_sigma("a test") ** 2
    paper = levels[0].alpha * OPERATOR.V(OPERATOR.Vt(OPERATOR.pinv(m.y)) + around_y.sqrt() * z)
    results = [
        sample(
            denoiser,
            x,
            levels,
            schedule=schedule,
            noise=OneStream(1),
            transition=DDRM(),
            measurement=m,
        )
        for x in (paper, levels[0].sigma * X_T)
    ]
    torch.testing.assert_close(results[0], results[1], atol=2e-3, rtol=0)


def image_net(x: Tensor, t: Tensor) -> Tensor:
    """Neither linear nor local in the image."""
    return 0.9 * x + 0.1 * torch.tanh(x.roll(1, -1)) + 0.02 * x.mean((2, 3), keepdim=True)


def test_complex_components_give_real_images_as_a_matrix_would() -> None:
    circular = blur(kernel="gaussian", sigma=1.0, kernel_size=5, border="circular").bind((1, 4, 5))
    m = circular.measure(rand(B, 1, 4, 5, seed=2), sigma=0.1)
    dense = circular(torch.eye(20, dtype=D).view(20, 1, 4, 5)).flatten(1).T
    same = Measurement(m.y.flatten(1), Matrix(matrix=dense).bind((1, 4, 5)), 0.1)
    for method in (DDRM(), ddnm(), pigdm(), MMPS()):
        x = run(method, m, rand(B, 1, 4, 5), net=image_net)
        assert not x.is_complex()
        torch.testing.assert_close(
            x, run(method, same, rand(B, 1, 4, 5), net=image_net), atol=1e-7, rtol=0
        )


# What theory promises -----------------------------------------------------------------------------

SIGMAS = {
    "number": 0.3,
    "per image": [0.1, 0.2, 0.4, 0.8, 1.6, 3.2],
    "per pixel": rand(B, 3, seed=5).abs() + 0.1,
    "zero": 1e-6,
}


def exact_mean(prior: Mixture, m: Measurement, x: Tensor, level: Level) -> Tensor:
    """E[x0 | x_t, y] image by image, sigma per image or pixel."""
    std = torch.as_tensor(m.sigma, dtype=D).expand(B, 3)
    rows = [
        prior.restored_mean(
            x[k : k + 1],
            float(level.alpha),
            float(level.sigma),
            A / std[k][:, None],
            (m.y[k] / std[k])[None],
            1.0,
        )
        for k in range(B)
    ]
    return torch.cat(rows)


def predict(guidance: Any, prior: Mixture, m: Measurement, x: Tensor, level: Level) -> Prediction:
    denoiser = Denoiser(prior.network("eps", SCHEDULE), schedule=SCHEDULE, dtype=D)
    return guidance(denoiser, x, step_of(SCHEDULE, level, level, OneStream()), m)


@pytest.mark.parametrize("kind", SIGMAS)
@pytest.mark.parametrize("time", [1.0, 8.0, 20.0])
def test_mmps_is_exact_on_a_gaussian_with_every_kind_of_sigma(kind: str, time: float) -> None:
    level, m = SCHEDULE(time), measured(SIGMAS[kind])
    x = level.alpha * PRIOR.draw(B, seed=9) + level.sigma * X_T
    taken = Measurement(m.y, OPERATOR, 0.0) if kind == "zero" else m
    p = predict(MMPS(iterations=3), PRIOR, taken, x, level)
    torch.testing.assert_close(
        p.x0, exact_mean(PRIOR, m, x, level), atol=2e-4 if kind == "zero" else 1e-7, rtol=0
    )
    torch.testing.assert_close(level.alpha * p.x0 + level.sigma * p.eps, x, atol=1e-9, rtol=0)


@pytest.mark.parametrize("kind", ["number", "per image", "per pixel"])
@pytest.mark.parametrize("time", [1.0, 8.0, 20.0])
def test_pigdm_as_a_score_is_exact_on_standard_normal_data(kind: str, time: float) -> None:
    prior = Gaussian(torch.zeros(DIM, dtype=D), torch.ones(DIM, dtype=D))
    level, m = SCHEDULE(time), measured(SIGMAS[kind])
    p = predict(PiGDM(adaptive=False), prior, m.whitened("PiGDM"), X_T, level)
    atol = 1e-5 if kind == "per pixel" else 1e-9  # by conjugate gradients
    torch.testing.assert_close(p.x0, exact_mean(prior, m, X_T, level), atol=atol, rtol=0)


def moments(method: Method, prior: Gaussian, steps: int, chains: int) -> tuple[float, float]:
    """Errors of the posterior's mean and covariance, relative to the largest standard deviation and
    variance."""
    schedule = schedules.vp()
    m = OPERATOR.measure(prior.draw(1, seed=3), sigma=0.2)
    exact = prior.posterior(A, m.y[0], 0.2)
    m = m.select([0] * chains)
    denoiser = Denoiser(prior.network("eps", schedule), schedule=schedule, dtype=D)
    full = complete(method)
    levels, noise = full.itinerary(schedule, steps), OneStream(5)
    x = levels[0].sigma * noise.randn_like(torch.empty(chains, DIM, dtype=D))
    x = sample(
        denoiser,
        x,
        levels,
        schedule=schedule,
        noise=noise,
        transition=full.transition,
        guidance=full.chain,
        measurement=m,
    )
    variance = exact.covariance.diagonal().max()
    mean_error, error = (
        (x.mean(0) - exact.mean).norm() / variance.sqrt(),
        (torch.cov(x.T) - exact.covariance).norm() / variance,
    )
    return float(mean_error), float(error)


@pytest.mark.parametrize("name", ["mmps", "pigdm"])
def test_score_consistent_guidance_samples_the_posterior_as_steps_grow(name: str) -> None:
    prior = (
        PRIOR if name == "mmps" else Gaussian(torch.zeros(DIM, dtype=D), torch.ones(DIM, dtype=D))
    )
    method = Method(MMPS(iterations=3), DDPM()) if name == "mmps" else pigdm(adaptive=False)
    few, many = (moments(method, prior, steps, 4000) for steps in (20, 200))
    assert sum(few) > 3 * sum(many)
    assert many[0] < 0.06  # 0.02 of the draws alone
    assert many[1] < 0.16  # 0.07 of the draws alone, 0.08 of the steps


# Solver and linearisation -------------------------------------------------------------------------


def test_gmres_is_exact_after_as_many_iterations_as_dimensions_and_leaves_solved_images_alone() -> (
    None
):
    matrix = rand(4, 4) + 3 * torch.eye(4, dtype=D)  # neither symmetric nor definite
    b = rand(3, 4, seed=1)
    b[1] = 0
    b[2] = torch.linalg.eig(matrix).eigenvectors.real[
        :, torch.linalg.eigvals(matrix).imag.abs().argmin()
    ]  # solved at once
    x = gmres(lambda v: v @ matrix.T, b, 9)
    torch.testing.assert_close(x @ matrix.T, b, atol=1e-10, rtol=0)
    assert bool((x[1] == 0).all())
    residuals = [
        float((gmres(lambda v: v @ matrix.T, b, n) @ matrix.T - b)[0].norm()) for n in range(1, 5)
    ]
    assert residuals == sorted(residuals, reverse=True)
    krylov = torch.stack([torch.linalg.matrix_power(matrix, k) @ b[0] for k in range(2)], 1)
    best = krylov @ torch.linalg.lstsq(matrix @ krylov, b[0][:, None]).solution
    torch.testing.assert_close(
        gmres(lambda v: v @ matrix.T, b, 2)[0], best[:, 0], atol=1e-10, rtol=0
    )


@dataclass(frozen=True, eq=False)
class Bent(Operator):
    """y = A x + bend (A x)²: linear for bend = 0, which it does not tell."""

    bend: float = 0.0

    def _forward(self, x: Tensor) -> Tensor:
        y = x @ A.T
        return y + self.bend * y**2


def test_mmps_sees_a_nonlinear_operator_through_its_derivative() -> None:
    level, x = SCHEDULE(8.0), X_T
    linear, same = measured(0.1), Measurement(measured(0.1).y, Bent(0.0).bind((DIM,)), 0.1)
    torch.testing.assert_close(
        predict(MMPS(), PRIOR, same, x, level).x0, predict(MMPS(), PRIOR, linear, x, level).x0
    )
    bent = Bent(0.3).bind((DIM,)).measure(PRIOR.draw(B, seed=3), sigma=0.1)
    p0 = Denoiser(NET, schedule=SCHEDULE, dtype=D)(x, level)
    gain = PRIOR._at(float(level.alpha), float(level.sigma))[2][0]
    C = level.sigma**2 / level.alpha * gain.T
    for k in range(B):
        H = (1 + 0.6 * (A @ p0.x0[k]))[:, None] * A
        dx = (
            C
            @ H.T
            @ torch.linalg.solve(
                0.01 * torch.eye(3, dtype=D) + H @ C @ H.T, bent.residual(p0.x0)[k]
            )
        )
        torch.testing.assert_close(
            predict(MMPS(), PRIOR, bent, x, level).x0[k], p0.x0[k] + dx, atol=1e-8, rtol=0
        )


# Per image, zero noise, refusals ------------------------------------------------------------------

METHODS: dict[str, Callable[[], Any]] = {
    "ddrm": DDRM,
    "ddnm": ddnm,
    "ddnm_travel": lambda: ddnm(0.85, 2, 2),
    "pigdm": pigdm,
    "mmps": MMPS,
}


@cache
def masked(*sigma: float) -> Measurement:
    mask = (rand(3, 1, 8, 8, seed=6) > 0).double()
    return Inpaint(mask=mask).measure(rand(3, 3, 8, 8, seed=2).sigmoid(), sigma=list(sigma))


def restore(name: str, m: Measurement, ids: list[int]) -> Tensor:
    denoiser = Denoiser(image_net, schedule=schedules.linear(), data_range=(-1, 1), dtype=D)
    return solve(m, denoiser, METHODS[name](), steps=8, image_ids=ids, dtype=D).x


@pytest.mark.parametrize("name", METHODS)
def test_an_image_alone_is_the_image_in_its_batch_with_masks_and_sigmas_of_its_own(
    name: str,
) -> None:
    together = restore(name, masked(0.0, 0.02, 0.3), [0, 1, 2])
    assert together.isfinite().all()
    for k, sigma in enumerate((0.0, 0.02, 0.3)):
        alone = masked(0.0, 0.02, 0.3).select([k])
        torch.testing.assert_close(restore(name, alone, [k])[0], together[k], atol=1e-9, rtol=0)
        number = Measurement(
            alone.y, alone.operator, sigma
        )  # a plain 0 takes the ways of measurements without noise
        torch.testing.assert_close(restore(name, number, [k])[0], together[k], atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", ["ddrm", "ddnm", "ddnm_travel"])
def test_without_noise_the_image_fits_the_measurement(name: str) -> None:
    m = masked(0.0, 0.0, 0.0)
    torch.testing.assert_close(m.operator(restore(name, m, [0, 1, 2])), m.y, atol=1e-9, rtol=0)


def test_without_noise_ddnm_needs_no_svd_and_any_transition_follows() -> None:
    operator = blur(kernel="motion", kernel_size=5, border="reflect").bind((1, 8, 8))
    m = operator.measure(rand(2, 1, 8, 8, seed=2).sigmoid(), sigma=0.0)
    denoiser = Denoiser(
        image_net, schedule=schedules.linear(), data_range=(-1, 1), dtype=D, clip=False
    )
    for options in ({}, {"transition": DPMSolver()}):
        x = solve(m, denoiser, ddnm(), steps=3, dtype=D, **options).x
        assert float(m.norm(x).max()) < 0.05 * float(
            m.norm(torch.full_like(x, 0.5)).min()
        )  # A† by conjugate gradients
    noisy = operator.measure(rand(2, 1, 8, 8, seed=2).sigmoid(), sigma=0.1)
    with pytest.raises(
        ValueError,
        match="DDNM requires a SpectralOperator where the measurement has noise, but Blur is not "
        "one",
    ):
        solve(noisy, denoiser, ddnm())
    with pytest.raises(ValueError, match="DDRM requires a SpectralOperator, but Blur is not one"):
        solve(m, denoiser, DDRM())


@pytest.mark.parametrize("method", ["ddrm", "ddnm", "diffpir", "pigdm", "mcgdiff", "tds"])
def test_a_sigma_per_pixel_of_what_does_not_mix_pixels_is_each_pixel_on_its_own(
    method: str,
) -> None:
    """A prior of independent pixels under a mask: where sigma has two values, each pixel comes out
    as in the run in which its value is everywhere. Particles are weighed as a whole, so theirs are
    only finite."""
    prior = Gaussian(rand(12, seed=2), torch.linspace(0.3, 2.0, 12, dtype=D))
    denoiser = Denoiser(prior.network("eps", SCHEDULE), schedule=SCHEDULE, dtype=D)
    mask = (rand(1, 1, 12, seed=6) > -0.5).double()
    y = mask * rand(1, 1, 1, 12, seed=3)
    few = (rand(1, 1, 1, 12, seed=8) > 0).double()

    def run(sigma: Any) -> Tensor:
        flat = Denoiser(
            lambda x, t: denoiser.net(x.flatten(1), t).view_as(x), schedule=SCHEDULE, dtype=D
        )
        m = Measurement(y, Inpaint(mask).bind((1, 1, 12)), sigma)
        return solve(m, flat, method, steps=8, num_samples=2, seed=1, dtype=D).samples

    low, high, mixed = run(0.1), run(0.9), run(0.9 - 0.8 * few)
    assert bool(mixed.isfinite().all())
    if method not in ("mcgdiff", "tds"):
        torch.testing.assert_close(mixed, torch.where(few > 0, low, high), atol=1e-9, rtol=0)
        assert float((low - high).abs().max()) > 0.05


def test_poisson_noise_of_what_mixes_pixels() -> None:
    """DDRM and DDNM need the components of W A, which a blur does not have: both sides are named;
    the others restore, without a word about sigma."""
    x = rand(2, 1, 8, 8, seed=2).sigmoid()
    m = blur(sigma=1.0).bind((1, 8, 8)).measure(x, sigma=0.05, gain=0.05)
    denoiser = Denoiser(image_net, schedule=SCHEDULE, data_range=(-1, 1))
    for name, refused in (("DDRM", DDRM()), ("DDNM", ddnm())):
        with pytest.raises(ValueError, match=f"{name} requires .* with a sigma for each pixel"):
            solve(m, denoiser, refused, steps=2)
    for taken in ("pigdm", "diffpir", "mmps"):
        assert solve(m, denoiser, taken, steps=2).x.isfinite().all()


@pytest.mark.parametrize("kind", SIGMAS)
def test_a_whitened_measurement_has_the_same_posterior(kind: str) -> None:
    m = measured(SIGMAS[kind])
    white = m.whitened("a test")
    assert isinstance(white.sigma, float) or white.sigma[0].numel() == 1
    x = rand(B, DIM, seed=1)
    difference = white.log_likelihood(x) - m.log_likelihood(x)
    other = white.log_likelihood(x + 1) - m.log_likelihood(x + 1)
    torch.testing.assert_close(difference, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: DDRM(eta=1.1),
        lambda: DDRM(eta_b=-0.1),
        lambda: ddnm(eta=2.0),
        lambda: DDNM(-1.0),
        lambda: NullSpaceNoise(1.5),
        lambda: ddnm(travel_length=0),
        lambda: ddnm(travel_repeat=0),
        lambda: pigdm(eta=-0.5),
        lambda: MMPS(iterations=0),
    ],
)
def test_wrong_parameters_are_refused(wrong: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        wrong()


@pytest.mark.parametrize("sigma", [0.0, 0.3, [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]])
def test_a_shift_of_x0_shifts_the_next_state_by_alpha_s_times_it_or_in_the_null_space(
    sigma: Any,
) -> None:
    m, t, s, dx = measured(sigma), SCHEDULE(15.0), SCHEDULE(10.0), rand(B, DIM, seed=8)
    null = torch.eye(DIM, dtype=D) - torch.linalg.pinv(A) @ A
    for transition, seen in ((NullSpaceNoise(), torch.eye(DIM, dtype=D)), (DDRM(), null)):
        states = []
        for shift in (0 * dx, dx @ null):

            def p(x_t: Tensor, level: Level, shift: Tensor = shift) -> Prediction:
                return Prediction(x_t, level, 0.3 * x_t + shift, x_t)

            states.append(transition(p, X_T, step_of(SCHEDULE, t, s, OneStream()), m))
        torch.testing.assert_close(
            (states[1] - states[0]) @ seen, s.alpha * dx @ null @ seen, atol=1e-9, rtol=0
        )


def test_time_travel_goes_back_from_x0_and_not_from_x_t() -> None:
    t, s = SCHEDULE(10.0), SCHEDULE(15.0)
    x0 = rand(B, DIM, seed=2)
    step = Step(3, t, s, SCHEDULE, OneStream(2), last=Prediction(X_T, s, x0, X_T))
    z = OneStream(2).randn_like(X_T)
    climbed = NullSpaceNoise()(
        lambda *_, **__: pytest.fail("a climb predicts nothing"), X_T, step, None
    )  # type: ignore[arg-type]
    torch.testing.assert_close(climbed, s.alpha * x0 + s.sigma * z)


def test_a_method_that_is_a_transition_is_not_replaced_silently() -> None:
    with pytest.raises(ValueError, match="DDRM is itself the transition that uses the measurement"):
        complete("ddrm", DDIM())
    for chain in (["ddrm"], ["dps", "ddrm"]):
        config = compose("sr", chain, "photo64")
        assert build_method(config).transition == DDRM(config["guidance"][-1]["eta"])
        with pytest.raises(ValueError, match="DDRM is itself"):
            build_method(config | {"transition": {"name": "ddim"}})
    assert complete("ddnm", DDIM()).transition == DDIM()  # its guidance knows the measurement


@pytest.mark.parametrize("method", ["ddrm", "ddnm"])
def test_what_the_measurement_alone_decides_is_made_once(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    real = Measurement.component_sigma

    def counted(self: Measurement, who: str) -> Tensor:
        made.append(who)
        return real(self, who)

    monkeypatch.setattr(Measurement, "component_sigma", counted)
    m = measured(0.1)
    for eta in (0.85, 0.5):  # one measurement, two methods
        solve(m, Denoiser(NET, schedule=SCHEDULE), make_method(method, eta=eta), steps=8, dtype=D)
    assert len(made) == 2


def test_the_noise_of_components_is_no_larger_than_it_must_be() -> None:
    x = torch.rand(2, 3, 8, 10, generator=torch.Generator().manual_seed(0))
    for operator, shape in ((Inpaint("box"), (1, 8, 10)), (blur(sigma=1.0), (1, 8, 10))):
        m = operator.measure(x, sigma=0.1)
        s, sigma = m.spectral.singular_values, m.component_sigma("a test")
        assert sigma.shape == shape
        expected = torch.where(m.spectral.measured, 0.1 / s, 0.0)
        torch.testing.assert_close(sigma.expand(s.shape).double(), expected.double())
    each = Inpaint("box").measure(x, sigma=[0.1, 0.2])
    assert each.component_sigma("a test").shape == (2, 1, 8, 10)
