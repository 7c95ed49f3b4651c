"""DPS in all its forms, MCG, ILVR, SDEdit and LGD against the papers' algorithms written out, from
the same noise."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import D, Gaussian, OneStream, correlated, rand
from PIL import Image
from torch import Tensor

import invdiff
from invdiff import schedules
from invdiff.commands.main import main
from invdiff.guidance.classifier import ClassifierGuidance
from invdiff.guidance.dps import DPS
from invdiff.guidance.ilvr import ILVR, ilvr
from invdiff.guidance.lgd import LGD
from invdiff.guidance.mcg import MCG, mcg
from invdiff.guidance.sdedit import sdedit
from invdiff.images import write_image
from invdiff.itineraries import Jumps, LateStart, Straight
from invdiff.network import Denoiser
from invdiff.noise import NoiseSource, seed_of
from invdiff.problem import LinearOperator, Measurement, Operator, make_operator
from invdiff.sampling import Step, make_method, sample
from invdiff.sampling.method import describe
from invdiff.schedules import Level
from invdiff.solving import generate, solve
from invdiff.solving.plan import complete
from invdiff.solving.solve import check_solve
from invdiff.transitions import DDIM, DDPM, Heun, forward_variance

pytestmark = pytest.mark.usefixtures("one_thread")

T = 12
BETA = torch.linspace(1e-2, 0.4, T, dtype=D)
BAR = torch.cat(
    [torch.cumprod(1 - BETA, 0), torch.ones(1, dtype=D)]
)  # alpha_bar_t; BAR[-1] is the clean image's
SCHEDULE = schedules.linear(T, 1e-2, 0.4)
PRIOR = correlated(5)
A = rand(3, 5, seed=8)
SAMPLES, SEED = 3, 4


class Dense(LinearOperator):
    """y = A x."""

    def _forward(self, x: Tensor) -> Tensor:
        return x @ A.to(x).T

    def _adjoint(self, y: Tensor) -> Tensor:
        return y @ A.to(y)

    def _pinv(self, y: Tensor, ridge: Tensor | float) -> Tensor:
        inverse = torch.linalg.inv(
            A @ A.T + torch.as_tensor(ridge, dtype=D)[..., None] * torch.eye(3, dtype=D)
        )
        return (
            torch.einsum("nm,...mk,bk->bn", A.T, inverse, y)
            if inverse.ndim == 2
            else torch.einsum("nm,bimk,bk->bn", A.T, inverse, y)
        )

    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (5,)


class Squares(Operator):
    """A nonlinear operator whose measurement is no image."""

    def _forward(self, x: Tensor) -> Tensor:
        return x[:, :2].square() + x[:, 2:4]

    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (5,)


def measured(sigma: Any = 0.2, operator: Operator | None = None, **more: Any) -> Measurement:
    return (operator or Dense()).measure(PRIOR.draw(2, seed=5), sigma=sigma, **more)


def denoiser(prior: Gaussian = PRIOR, **options: Any) -> Denoiser:
    return Denoiser(prior.network("eps", SCHEDULE), schedule=SCHEDULE, **options)


def solved(
    measurement: Measurement, method: Any, net: Denoiser | None = None, **options: Any
) -> Tensor:
    """(samples * images, ...), the samples of a run, in the order of :class:`Draws`."""
    return solve(
        measurement,
        net or denoiser(),
        method,
        steps=T,
        seed=SEED,
        num_samples=SAMPLES,
        dtype=D,
        **options,
    ).samples.flatten(0, 1)


class Draws:
    """The noise of every chain of such a run, stream by stream."""

    def __init__(self, shape: tuple[int, ...], images: int = 2) -> None:
        seeds = [seed_of("sampling", SEED, k, j) for j in range(SAMPLES) for k in range(images)]
        self.noise = NoiseSource(seeds)
        self.x = torch.empty(len(seeds), *shape, dtype=D)

    def __call__(self) -> Tensor:
        return self.noise.randn_like(self.x)


def x0_of(x: Tensor, t: int, prior: Gaussian = PRIOR) -> Tensor:
    """The posterior mean, as the papers write it from the network's eps."""
    eps = prior.network("eps", SCHEDULE)(x, torch.full((len(x),), float(t)))
    return (x - (1 - BAR[t]).sqrt() * eps) / BAR[t].sqrt()


def ancestral(x: Tensor, x0: Tensor, t: int, draw: Callable[[], Tensor]) -> Tensor:
    """Ho et al. 2020, algorithm 2, in posterior-mean form."""
    s = t - 1
    mean = (
        BAR[s].sqrt() * BETA[t] / (1 - BAR[t]) * x0
        + (1 - BETA[t]).sqrt() * (1 - BAR[s]) / (1 - BAR[t]) * x
    )
    return mean + ((1 - BAR[s]) / (1 - BAR[t]) * BETA[t]).sqrt() * draw() if t > 0 else mean


def same(mine: Tensor, theirs: Tensor, atol: float = 1e-9) -> None:
    assert bool(theirs.isfinite().all())
    torch.testing.assert_close(mine, theirs, atol=atol, rtol=1e-9)


# DPS ----------------------------------------------------------------------------------------------

SIGMAS = {"number": 0.3, "per image": [0.3, 0.6], "per pixel": rand(2, 3, seed=9).abs() + 0.2}


@pytest.mark.parametrize("name", SIGMAS)
def test_the_likelihood_form_is_the_gaussian_algorithm_written_out(name: str) -> None:
    measurement, zeta = measured(SIGMAS[name]), 0.02
    variance = torch.as_tensor(SIGMAS[name], dtype=D).square()
    variance = (
        (variance[:, None] if variance.ndim == 1 else variance).expand(2, 3).repeat(SAMPLES, 1)
    )
    draw, y = Draws((5,)), measurement.y.repeat(SAMPLES, 1)
    x = (1 - BAR[T - 1]).sqrt() * draw()
    for t in range(T - 1, -1, -1):
        x = x.detach().requires_grad_()
        x0 = x0_of(x, t)
        (grad,) = torch.autograd.grad(((y - x0 @ A.T) ** 2 / (2 * variance)).sum(), x)
        x = ancestral(x, x0, t, draw) - zeta * grad
    same(solved(measurement, DPS(zeta, likelihood=True)), x.detach())


@pytest.mark.parametrize(
    ("name", "sigma2"), [("number", [0.09]), ("per image", [0.09, 0.36]), ("per pixel", None)]
)
def test_zeta_follows_from_the_form_of_the_step(name: str, sigma2: Any) -> None:
    measurement = measured(SIGMAS[name])
    variance = (
        torch.tensor(sigma2, dtype=D) if sigma2 else torch.as_tensor(SIGMAS[name]).square().mean(1)
    )
    for k in range(2):
        own = measurement.select([k])
        same(
            solved(own, DPS(likelihood=True)),
            solved(own, DPS(float(variance[k % len(variance)]), likelihood=True)),
        )
    same(solved(measurement, DPS()), solved(measurement, DPS(1.0)))


def test_the_likelihood_form_is_the_papers_poisson_form() -> None:
    """‖y − A x0‖²_Λ with Λ = 1/(2y), on a prior of about 50 counts and a positive A."""
    bright = Gaussian(PRIOR.mean + 50, 9 * PRIOR.covariances[0])
    counts = make_operator("matrix", matrix=A.abs()).measure(bright.draw(2, seed=5), gain=1.0)
    y, zeta = counts.y.repeat(SAMPLES, 1), 0.5
    assert float(y.min()) > 1 and torch.equal(y, y.round())
    draw = Draws((5,))
    x = (1 - BAR[T - 1]).sqrt() * draw()
    for t in range(T - 1, -1, -1):
        x = x.detach().requires_grad_()
        x0 = x0_of(x, t, bright)
        r = y - x0 @ A.abs().T
        (grad,) = torch.autograd.grad(
            sum(
                row @ torch.diag(1 / (2 * counted)) @ row for row, counted in zip(r, y, strict=True)
            ),
            x,
        )
        x = ancestral(x, x0, t, draw) - zeta * grad
    same(solved(counts, DPS(zeta, likelihood=True), denoiser(bright)), x.detach(), 1e-8)


def test_zeta_per_step_is_a_list_or_a_function() -> None:
    measurement, zetas = measured(), [0.05 * k for k in range(T)]
    draw, y = Draws((5,)), measurement.y.repeat(SAMPLES, 1)
    x = (1 - BAR[T - 1]).sqrt() * draw()
    for t in range(T - 1, -1, -1):
        x = x.detach().requires_grad_()
        x0 = x0_of(x, t)
        (grad,) = torch.autograd.grad((y - x0 @ A.T).norm(dim=1).sum(), x)
        x = ancestral(x, x0, t, draw) - zetas[T - 1 - t] * grad
    for zeta in (
        zetas,
        tuple(zetas),
        lambda step: zetas[step.index],
        lambda step: 0.05 * (T - 1 - step.t.t),
    ):
        same(solved(measurement, DPS(zeta)), x.detach())
    assert torch.equal(solved(measurement, DPS(0.3)), solved(measurement, DPS([0.3] * T)))
    assert torch.equal(
        solved(measurement, DPS(0.3)), solved(measurement, make_method("dps", zeta=[0.3] * T))
    )
    assert json.loads(json.dumps(describe(DPS([1, 0.5])))) == {
        "name": "DPS",
        "zeta": [1, 0.5],
        "likelihood": False,
    }


def test_zeta_of_another_number_of_steps_is_refused() -> None:
    with pytest.raises(ValueError, match=f"zeta has 3 numbers, but this run has {T} steps"):
        solved(measured(), DPS([1, 2, 3]))
    with pytest.raises(ValueError, match=r"but this run has 32 steps \(climbs count\)"):
        solved(measured(), DPS([1.0] * T), itinerary=Jumps(T - 2, 2))


@pytest.mark.parametrize("frame", ["linear", "vp", "ve", "flow"])
def test_with_the_variance_of_the_step_as_zeta_it_is_bayes_rule(frame: str) -> None:
    """The score grad log p(y | x0(x_t)) in the ancestral step, which classifier guidance puts
    there, in every frame."""

    def variance(step: Step) -> float:
        return float(step.s.alpha / step.t.alpha) * forward_variance(step.t, step.s)

    schedule, measurement = getattr(schedules, frame)(), measured([0.7, 1.5])
    net = Denoiser(PRIOR.network("x0", schedule), predicts="x0", schedule=schedule)
    levels = [level for level in Straight()(schedule, 15) if level.alpha > 0]
    score = ClassifierGuidance(log_prob=lambda x0: measurement.log_likelihood(x0), of="x0")
    x = float(levels[0].sigma) * rand(2, 5, seed=1)
    runs = [
        sample(
            net,
            x,
            levels,
            schedule=schedule,
            noise=OneStream(7),
            transition=DDPM(),
            guidance=[g],
            measurement=measurement,
        )
        for g in (DPS(variance, likelihood=True), score)
    ]
    same(runs[0], runs[1])


@pytest.mark.parametrize(
    "sigma",
    [0.0, [0.1, 0.0], torch.tensor([[0.1, 0.0, 0.1]] * 2, dtype=D)],
    ids=["number", "image", "pixel"],
)
@pytest.mark.parametrize("method", [DPS(likelihood=True), LGD()], ids=["dps", "lgd"])
def test_a_likelihood_without_noise_is_refused_before_sampling(method: Any, sigma: Any) -> None:
    with pytest.raises(ValueError, match="weighs by 1/sigma², but sigma is zero"):
        check_solve(measured(sigma), denoiser(), method, steps=T)
    assert bool(solved(measured(sigma), DPS()).isfinite().all()), "the norm needs no sigma"


def test_dps_on_repaints_jumps() -> None:
    measurement, itinerary, zeta = measured(), Jumps(2, 3), 0.4
    times = [int(level.t) for level in itinerary(SCHEDULE, T)]
    assert any(s > t for t, s in zip(times, times[1:], strict=False))
    draw, y = Draws((5,)), measurement.y.repeat(SAMPLES, 1)
    x = (1 - BAR[T - 1]).sqrt() * draw()
    for t, s in zip(times, times[1:], strict=False):
        if s > t:
            x = (BAR[s] / BAR[t]).sqrt() * x + (1 - BAR[s] / BAR[t]).sqrt() * draw()
            continue
        x = x.detach().requires_grad_()
        x0 = x0_of(x, t)
        (grad,) = torch.autograd.grad((y - x0 @ A.T).norm(dim=1).sum(), x)
        x = (ancestral(x, x0, t, draw) - zeta * grad).detach()
    same(solved(measurement, DPS(zeta), itinerary=itinerary), x)


# MCG ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.0, 0.1, [0.1, 0.3]], ids=["noiseless", "number", "per image"])
def test_mcg_is_its_algorithm_written_out(sigma: Any) -> None:
    measurement, alpha = measured(sigma), 0.6
    W = torch.linalg.pinv(A)
    away = torch.eye(5, dtype=D) - W @ A
    draw, y = Draws((5,)), measurement.y.repeat(SAMPLES, 1)
    x = (1 - BAR[T - 1]).sqrt() * draw()
    for t in range(T - 1, -1, -1):
        x = x.detach().requires_grad_()
        x0, s = x0_of(x, t), t - 1
        loss = ((y - x0 @ A.T) @ W.T).square().sum(1)
        (grad,) = torch.autograd.grad(loss.sum(), x)
        moved = ancestral(x, x0, t, draw) - alpha / (2 * loss.detach().sqrt())[:, None] * grad
        noised = BAR[s].sqrt() * y + (1 - BAR[s]).sqrt() * (draw() @ A.T if t > 0 else 0)
        x = (moved @ away.T + noised @ W.T).detach()
    same(solved(measurement, mcg(alpha)), x)
    same(x @ A.T, y)


def test_mcg_for_a_mask_is_dps_and_replacement() -> None:
    """W = A† is then the identity on what is measured, as in the official inpainting."""
    x = rand(2, 3, 8, 8, seed=3).sigmoid()
    measurement = make_operator("inpaint", mask=(rand(2, 1, 8, 8, seed=4) > 0).to(D)).measure(
        x, sigma=0.05
    )
    both = [
        solve(measurement, conv(), m, steps=5, dtype=D).x for m in (mcg(0.7), [DPS(0.7), "replace"])
    ]
    same(both[0], both[1])


def test_mcg_at_its_goal_stands_still() -> None:
    """No nan where the estimate fits the measurement already."""
    net = Denoiser(lambda x, t: 0 * x + rand(1, 5, seed=2), predicts="x0", schedule=SCHEDULE)
    x = solve(Measurement(Dense()(rand(1, 5, seed=2)), Dense()), net, MCG(), steps=4, dtype=D).x
    same(x, rand(1, 5, seed=2))


# ILVR ---------------------------------------------------------------------------------------------

IMAGE = (1, 9, 12)
IMAGES = correlated(108)


def cubic(distance: Tensor) -> Tensor:
    """Keys' kernel, a = −1/2."""
    u = distance.abs()
    near, far = 1.5 * u**3 - 2.5 * u**2 + 1, -0.5 * u**3 + 2.5 * u**2 - 4 * u + 2
    return torch.where(u <= 1, near, torch.where(u < 2, far, 0.0))


def resizing(size: int, to: int) -> Tensor:
    """The matrix of a cubic resizing, antialiased where it makes smaller."""
    scale = size / to
    centre = (torch.arange(to, dtype=D) + 0.5) * scale
    weights = cubic((torch.arange(size, dtype=D) + 0.5 - centre[:, None]) / max(scale, 1.0))
    return weights / weights.sum(1, keepdim=True)


def low_pass(x: Tensor, N: int) -> Tensor:
    """phi_N written out."""
    for dim in (2, 3):
        size = x.shape[dim]
        both = resizing(size // N, size) @ resizing(size, size // N)
        x = torch.tensordot(x, both, dims=([dim], [1])).movedim(-1, dim)
    return x


@pytest.mark.parametrize("last", [-1, 0, 4], ids=["all", "official default", "stops early"])
def test_ilvr_is_its_algorithm_written_out(last: int) -> None:
    """``last`` is the official range_t: the last index that is not conditioned."""
    y = rand(2, *IMAGE, seed=6)
    measurement = Measurement(y, make_operator("denoise"))
    draw = Draws(IMAGE)
    x = (1 - BAR[T - 1]).sqrt() * draw()
    reference = y.repeat(SAMPLES, 1, 1, 1)
    for t in range(T - 1, -1, -1):
        s = t - 1
        x = ancestral(x, x0_of(x, t, IMAGES), t, draw)
        if t > last:
            y_s = BAR[s].sqrt() * reference + (1 - BAR[s]).sqrt() * (draw() if t > 0 else 0)
            x = low_pass(y_s, 3) + x - low_pass(x, 3)
    ratio = 0.0 if last < 0 else float(((1 - BAR[last]) / BAR[last]).sqrt()) * (1 + 1e-9)
    same(solved(measurement, ilvr(3, ratio), denoiser(IMAGES)), x)


def test_ilvr_takes_its_factor_and_its_image_from_the_measurement() -> None:
    operator = make_operator("sr", factor=3).bind(IMAGE)
    measurement = Measurement(operator(rand(2, *IMAGE, seed=6)), operator)
    upsampled = torch.einsum("ij,bcjk,lk->bcil", resizing(3, 9), measurement.y, resizing(4, 12))
    same(low_pass(operator.pinv(measurement.y), 3), upsampled)
    assert torch.equal(
        solved(measurement, "ilvr", denoiser(IMAGES)),
        solved(measurement, ilvr(3), denoiser(IMAGES)),
    )
    assert not torch.equal(
        solved(measurement, "ilvr", denoiser(IMAGES)),
        solved(measurement, ilvr(2), denoiser(IMAGES)),
    )
    other = Measurement(rand(2, 1, 8, 9), make_operator("denoise"))
    assert torch.equal(*(solve(other, conv(1), m, steps=3).x for m in ("ilvr", ilvr(8))))


def test_ilvr_needs_an_image_of_its_factor() -> None:
    with pytest.raises(ValueError, match="at least 8x8 pixels"):
        check_solve(measured(), denoiser(), "ilvr", steps=T)
    with pytest.raises(ValueError, match="at least 10x10 pixels"):
        check_solve(
            Measurement(rand(2, *IMAGE), make_operator("denoise")),
            denoiser(IMAGES),
            ilvr(10),
            steps=T,
        )


# SDEdit -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("K", [1, 3])
def test_sdedit_is_its_algorithm_written_out(K: int) -> None:
    measurement, t0 = measured(0.0), T // 2
    draw = Draws((5,))
    x = (measurement.y @ torch.linalg.pinv(A).T).repeat(SAMPLES, 1)
    for _ in range(K):
        x = BAR[t0 - 1].sqrt() * x + (1 - BAR[t0 - 1]).sqrt() * draw()
        for t in range(t0 - 1, -1, -1):
            x = ancestral(x, x0_of(x, t), t, draw)
    same(solved(measurement, sdedit(0.5, repeats=K)), x)


def test_differential_diffusion_is_its_algorithm_written_out(tmp_path: Path) -> None:
    """As the authors' code: the noise of the start at every level, pixels that wait set back before
    each step, here under DDIM; a pixel of strength 0 stays."""
    m = torch.tensor([[0.0, 0.3, 0.5], [0.75, 0.9, 1.0]], dtype=D)
    image, steps = rand(2, 1, 2, 3).sigmoid(), 8
    denoiser = Denoiser(lambda x, t: torch.tanh(2 * x), schedule=SCHEDULE, dtype=D)
    measurement = make_operator("denoise").measure(image, sigma=0.0)
    levels = complete(sdedit(0.75), None, None).itinerary(SCHEDULE, steps)
    n = len(levels) - 1
    assert n == 6
    given: dict[str, Any] = {"steps": steps, "transition": DDIM(), "dtype": D, "seed": SEED}
    z = NoiseSource([seed_of("sampling", SEED, k, 0) for k in range(2)]).randn_like(image)
    x = levels[0].alpha * image + levels[0].sigma * z
    for i, (t, s) in enumerate(pairwise(levels)):
        kept = (1 - m > i / n).to(D)
        x = (t.alpha * image + t.sigma * z) * kept + x * (1 - kept)
        p = denoiser(x, t)
        x = s.alpha * p.x0 + s.sigma * p.eps
    made = solve(measurement, denoiser, sdedit(0.75, strength_map=m), **given).x
    same(made[..., 1:], x[..., 1:])
    same(made[:, :, 0, 0], image[:, :, 0, 0])
    everywhere = solve(measurement, denoiser, sdedit(0.75, strength_map=torch.ones(2, 3)), **given)
    same(everywhere.x, solve(measurement, denoiser, sdedit(0.75), **given).x)
    assert float((everywhere.x - made).abs().max()) > 0.05
    write_image(tmp_path / "map.png", m[None])
    read = solve(measurement, denoiser, sdedit(0.75, strength_map=tmp_path / "map.png"), **given)
    same(read.x, made)
    method = sdedit(0.75, strength_map=m)
    same(solve(measurement.select([1]), denoiser, method, image_ids=[1], **given).x, made[1:])


def test_differential_diffusion_refuses() -> None:
    denoiser = Denoiser(lambda x, t: x, schedule=SCHEDULE, dtype=D)
    measurement = make_operator("denoise").measure(torch.zeros(2, 1, 2, 3), sigma=0.0)
    for method, message in (
        (sdedit(strength_map=torch.ones(3, 3)), "the images' size, 2x3"),
        (sdedit(strength_map=2 * torch.ones(2, 3)), r"in \[0, 1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            solve(measurement, denoiser, method, steps=4)
    with pytest.raises(ValueError, match="run once"):
        sdedit(strength_map=torch.ones(2, 3), repeats=2)
    with pytest.raises(ValueError, match="an image that the run starts from"):
        given = rand(2, 1, 2, 3)
        generate(denoiser, (2, 1, 2, 3), sdedit(strength_map=torch.ones(2, 3)), x_T=given, steps=4)


def test_the_guide_of_a_noisy_blur_is_not_the_noise_amplified() -> None:
    x = torch.linspace(0.2, 0.8, 32, dtype=D).expand(2, 1, 32, 32)
    measurement = make_operator("blur").measure(x, sigma=[0.0, 0.02])
    start = LateStart().start(measurement)
    assert start is not None
    amplified = measurement.operator.pinv(measurement.y)  # type: ignore[attr-defined]
    same(start[0], amplified[0])
    assert float((start[1] - x[1]).square().mean().sqrt()) < 0.2
    assert float((amplified[1] - x[1]).square().mean().sqrt()) > 10
    # A sigma that differs between pixels counts by its mean square.
    varying = torch.linspace(0.0, 0.1, 32, dtype=D).expand(2, 1, 32, 32)
    mean = float(varying[0].square().mean().sqrt())
    same(
        *(
            Measurement(measurement.y, measurement.operator, sigma).linear_estimate()
            for sigma in (varying, mean)
        )
    )


def test_sdedit_without_an_image_to_start_from_is_refused() -> None:
    with pytest.raises(ValueError, match="Squares gives none; pass start=image"):
        check_solve(measured(operator=Squares()), denoiser(), "sdedit", steps=T)
    with pytest.raises(ValueError, match="without a measurement there is none"):
        generate(denoiser(), (2, 5), "sdedit", steps=2)


# LGD ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operator", [Dense(), Squares()], ids=["linear", "nonlinear"])
@pytest.mark.parametrize("n", [1, 4])
def test_lgd_is_its_algorithm_written_out(n: int, operator: Operator) -> None:
    measurement, zeta = measured([1.5, 3.0], operator), 0.2
    sigma = torch.tensor([1.5, 3.0] * SAMPLES, dtype=D)
    draw, y = Draws((5,)), measurement.y.repeat(SAMPLES, 1)
    x = (1 - BAR[T - 1]).sqrt() * draw()
    for t in range(T - 1, -1, -1):
        x = x.detach().requires_grad_()
        x0, r = x0_of(x, t), (1 - BAR[t]).sqrt()
        losses = torch.stack(
            [(y - operator(x0 + r * draw())).square().sum(1) / (2 * sigma**2) for _ in range(n)]
        )
        (grad,) = torch.autograd.grad(torch.log(torch.exp(-losses).mean(0)).sum(), x)
        eps_hat = (x - BAR[t].sqrt() * x0) / r - zeta * r * grad
        x = ancestral(x, (x - r * eps_hat) / BAR[t].sqrt(), t, draw).detach()
    same(solved(measurement, LGD(n, zeta)), x)


def test_lgd_is_the_same_in_every_frame() -> None:
    """Levels of one signal-to-noise ratio, seen as VP, VE and flow: the state only scales."""
    measurement, vp = measured(1.0), Straight()(SCHEDULE, T)
    out = []
    for frame in (
        lambda v: v,
        lambda v: Level(v.t, v.alpha / v.alpha, v.ratio),
        lambda v: Level(v.t, 1 / (1 + v.ratio), v.ratio / (1 + v.ratio)),
    ):
        levels = [frame(level) for level in vp]
        x = levels[0].sigma * rand(2, 5, seed=1)
        out.append(
            sample(
                denoiser(),
                x / levels[0].sigma * vp[0].ratio * levels[0].alpha,
                levels,
                schedule=SCHEDULE,
                noise=OneStream(7),
                transition=DDPM(),
                guidance=[LGD(3)],
                measurement=measurement,
            )
        )
    same(out[1], out[0])
    same(out[2], out[0])


def test_lgd_samples_the_posterior_of_the_prior_it_assumes() -> None:
    """Under N(0, I) the r_t of the paper is exact, so what is left are the draws and the steps; a
    point estimate (DPS) is far off."""
    prior, a = (
        Gaussian(torch.zeros(2, dtype=D), torch.ones(2, dtype=D)),
        torch.tensor([[1.0, 0.5]], dtype=D),
    )
    y, sigma, chains = torch.tensor([[1.5]], dtype=D), 0.5, 1500
    exact = prior.posterior(a, y[0], sigma)
    schedule = schedules.linear(100, 1e-3, 0.1)
    net = Denoiser(prior.network("x0", schedule), predicts="x0", schedule=schedule)
    measurement = Measurement(
        y.expand(chains, 1), make_operator("matrix", matrix=a).bind((2,)), sigma
    )

    def error(guidance: Any) -> float:
        x = sample(
            net,
            rand(chains, 2, seed=3),
            Straight()(schedule, 100),
            schedule=schedule,
            noise=OneStream(1),
            transition=DDPM(),
            guidance=[guidance],
            measurement=measurement,
        )
        return float((x.mean(0) - exact.mean).norm() + (torch.cov(x.T) - exact.covariance).norm())

    point = ClassifierGuidance(log_prob=measurement.log_likelihood, of="x0")
    errors = {"point": error(point), 1: error(LGD(1)), 30: error(LGD(30))}
    assert errors[30] < 0.5 * min(errors["point"], errors[1]), errors


# Every one of them --------------------------------------------------------------------------------

METHODS: dict[str, Any] = {
    "dps_likelihood": DPS(1e-3, likelihood=True),
    "dps_steps": DPS([0.1 * k for k in range(6)]),
    "mcg": mcg(0.4),
    "ilvr": ilvr(2),
    "sdedit": sdedit(0.7, repeats=2),
    "lgd": LGD(3, 0.01),
}


class Conv(torch.nn.Module):
    """A small convolution network with fixed random weights."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (
            torch.nn.Conv2d(a, b, 3, padding=1) for a, b in ((channels, 8), (8, channels))
        )
        generator = torch.Generator().manual_seed(0)
        for p in self.parameters():
            p.data.normal_(0, 0.2, generator=generator)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x + self.second(torch.tanh(self.first(x)) * (1 + t / 1000).view(-1, 1, 1, 1))


def conv(channels: int = 3, **options: Any) -> Denoiser:
    return Denoiser(
        Conv(channels), schedule=schedules.linear(), data_range=(-1, 1), dtype=D, **options
    )


@pytest.mark.parametrize("name", METHODS)
def test_an_image_alone_is_the_image_in_its_batch(name: str) -> None:
    """With a mask and a sigma of its own, through micro-batches."""
    x = rand(3, 3, 8, 8, seed=3).sigmoid()
    measurement = make_operator("inpaint", mask=(rand(3, 1, 8, 8, seed=4) > 0).to(D)).measure(
        x, sigma=[0.02, 0.05, 0.3]
    )
    together = solve(
        measurement, conv(), METHODS[name], steps=6, num_samples=2, batch_size=4, seed=5, dtype=D
    )
    for k in range(3):
        alone = solve(
            measurement.select([k]),
            conv(),
            METHODS[name],
            steps=6,
            num_samples=2,
            seed=5,
            image_ids=[k],
            dtype=D,
        )
        torch.testing.assert_close(alone.samples[:, 0], together.samples[:, k], atol=1e-12, rtol=0)


@pytest.mark.parametrize("transition", [DDIM(), Heun()], ids=["ddim", "heun"])
@pytest.mark.parametrize("schedule", ["ve", "edm", "flow"])
@pytest.mark.parametrize("name", ["mcg", "ilvr", "lgd", "sdedit"])
def test_every_frame_and_other_transitions_run(name: str, schedule: str, transition: Any) -> None:
    """Flow starts at alpha = 0, all end at sigma = 0."""
    x = rand(2, 3, 8, 8, seed=3).sigmoid()
    measurement = make_operator("sr", factor=2).measure(x, sigma=0.05)
    net = Denoiser(
        lambda x, t: 0.5 * torch.tanh(x),
        predicts="x0",
        schedule=getattr(schedules, schedule)(),
        data_range=(-1, 1),
    )
    method = make_method(METHODS[name])
    result = solve(
        measurement,
        net,
        method.guidance or method,
        steps=5,
        transition=complete(method, transition).transition,
        dtype=D,
    )
    assert bool(result.x.isfinite().all())


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: DPS(-1), "zeta must be a finite number"),
        (lambda: DPS(float("inf")), "zeta must be a finite number"),
        (lambda: DPS([1, float("nan")]), "or one for each step"),
        (lambda: DPS([]), "or one for each step"),
        (lambda: MCG(-1), "alpha must be a finite number"),
        (lambda: MCG(float("nan")), "alpha must be a finite number"),
        (lambda: ILVR(factor=1), "factor must be at least 2"),
        (lambda: ILVR(range_t=-1), "range_t must be a level"),
        (lambda: sdedit(0.0), "strength must be in"),
        (lambda: sdedit(repeats=0), "repeats must be at least 1"),
        (lambda: LGD(0), "n must be at least 1"),
        (lambda: LGD(zeta=-1), "zeta must be a finite number"),
    ],
)
def test_wrong_parameters_are_refused(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


@pytest.mark.parametrize("method", ["mcg", "ilvr"])
def test_linear_methods_refuse_a_nonlinear_operator(method: str) -> None:
    with pytest.raises(ValueError, match="requires a.* but Squares"):
        check_solve(measured(operator=Squares()), denoiser(), method, steps=T)


def test_a_chosen_transition_stands_inside() -> None:
    assert complete(make_method("ilvr", factor=3), DDIM(0.5)).transition == ILVR(DDIM(0.5), 3)
    assert make_method(["ilvr", "dps"]).transition == ILVR()


# The command line ---------------------------------------------------------------------------------


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.fromarray((rand(24, 24, 3).sigmoid() * 255).numpy().astype(np.uint8)).save(
        tmp_path / "photo.png"
    )
    return tmp_path / "photo.png"


def test_dps_on_jumps_from_the_command_line(photo: Path, tmp_path: Path) -> None:
    jumps = [
        "itinerary.name=jumps",
        "itinerary.length=1",
        "itinerary.resamplings=2",
        "guidance.zeta=[1,0,0.5,0.5,1]",
    ]
    args = [
        "--input",
        str(photo),
        "--output",
        str(tmp_path / "out"),
        "--steps",
        "3",
        "--quiet",
        "guidance.likelihood=false",
    ]
    assert (
        main(["solve", "--method", "dps", *args, *jumps, "guidance.zeta=[1,0,0.5,0.5,1,1,1]"]) == 0
    )
    record = json.loads((tmp_path / "out" / "result.json").read_text())
    assert record["run"]["method"]["itinerary"]["name"] == "Jumps"
    assert record["run"]["method"]["guidance"] == [
        {"name": "DPS", "zeta": [1, 0, 0.5, 0.5, 1, 1, 1], "likelihood": False}
    ]
    assert (record["nfe"], record["nbe"]) == (5, 5)


@pytest.mark.parametrize(
    "operator", [name for name in ("inpaint", "sr", "blur", "colorize", "denoise")]
)
def test_sdedit_from_the_command_line(operator: str, photo: Path, tmp_path: Path) -> None:
    args = [
        "--input",
        str(photo),
        "--output",
        str(tmp_path / "out"),
        "--steps",
        "4",
        "--quiet",
        "guidance.strength=0.5",
    ]
    assert main(["solve", "--method", "sdedit", "--operator", operator, *args]) == 0
    assert json.loads((tmp_path / "out" / "result.json").read_text())["nfe"] == 2


def test_all_of_them_are_registered() -> None:
    assert {"dps", "mcg", "ilvr", "sdedit", "lgd"} <= set(invdiff.list_plugins("guidance"))
