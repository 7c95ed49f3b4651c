"""PnP-Flow and FlowChef on exact flows, PSLD, ReSample, STSL, LATINO, FlowDPS and FLAIR behind
linear and real autoencoders: equal to their papers' algorithms, written out here with plain
matrices."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from oracles import Calls, D, Gaussian, Mixture, OneStream, built, correlated, rand, step_of
from torch import Tensor

import invdiff
from invdiff import schedules
from invdiff.guidance.dps import DPS
from invdiff.guidance.flowchef import FlowChef
from invdiff.guidance.pnpflow import PnPFlow
from invdiff.guidance.psld import PSLD
from invdiff.guidance.resample import ReSample, fitted
from invdiff.guidance.stsl import STSL
from invdiff.itineraries import Jumps, Straight
from invdiff.loading.autoencoder import from_diffusers
from invdiff.network import Autoencoder, Denoiser
from invdiff.problem import LinearOperator, Measurement, Operator
from invdiff.problem.wrapped import Decoded
from invdiff.sampling import Method, Setting, data_gradient, make_method, sample
from invdiff.schedules import Schedule
from invdiff.solving import solve
from invdiff.solving.plan import complete
from invdiff.transitions import DDIM, Heun

pytestmark = pytest.mark.usefixtures("one_thread")

DIM, ROWS, BATCH = 6, 3, 3
PRIOR = correlated(DIM)
A = rand(ROWS, DIM, seed=8) / 3
VP = schedules.linear()
BAR = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=D), 0)
FRAMES: dict[str, tuple[str, Schedule]] = {
    "flow": ("velocity", schedules.flow()),
    "vp": ("eps", VP),
    "ve": ("score", schedules.ve()),
    "edm": ("edm", schedules.edm()),
}


@dataclass(frozen=True, eq=False)
class Dense(LinearOperator):
    """y = A x for vectors, A a matrix."""

    matrix: Tensor = field(default_factory=lambda: A)

    def _forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix.to(x).T

    def _adjoint(self, y: Tensor) -> Tensor:
        return y @ self.matrix.to(y)


@dataclass(frozen=True, eq=False)
class Cubes(Operator):
    """y = x³ of the first half."""

    def _forward(self, x: Tensor) -> Tensor:
        return x[:, :ROWS] ** 3


def run(
    method: Any,
    denoiser: Denoiser,
    x: Tensor,
    measurement: Measurement,
    steps: int,
    schedule: Schedule | None = None,
) -> Tensor:
    """The engine from a given state, with one stream of noise as the references below draw it."""
    schedule = schedule or denoiser.schedule
    made = complete(method)
    bound = made.bind(Setting(denoiser, tuple(x.shape), measurement, {}, x.device, x.dtype))
    assert bound.transition is not None and bound.itinerary is not None
    return sample(
        denoiser,
        x,
        bound.itinerary(schedule, steps),
        schedule=schedule,
        noise=OneStream(7),
        transition=bound.transition,
        guidance=bound.chain,
        measurement=measurement,
    )


def exact(frame: str) -> Denoiser:
    predicts, schedule = FRAMES[frame]
    return Denoiser(PRIOR.network(predicts, schedule), predicts=predicts, schedule=schedule)


def observed(operator: Operator | None = None) -> Measurement:
    operator = (operator or Dense()).bind((DIM,))
    return Measurement(
        operator(PRIOR.draw(BATCH, seed=3)) + 0.05 * rand(BATCH, ROWS, seed=4), operator, 0.05
    )


def first(frame: str, steps: int) -> Tensor:
    """The first state: noise of that level's standard deviation."""
    schedule = FRAMES[frame][1]
    return float(Straight()(schedule, steps)[0].sigma) * rand(BATCH, DIM, seed=1)


def shares(frame: str, steps: int) -> list[float]:
    """The levels of a run as times of a flow, 1 = noise: the share of sigma in alpha + sigma, which
    rescaling the state keeps."""
    return [
        float(level.sigma / (level.alpha + level.sigma))
        for level in Straight()(FRAMES[frame][1], steps)
    ]


def assert_same(ours: Tensor, theirs: Tensor, tolerance: float = 1e-9) -> None:
    assert bool(theirs.isfinite().all())
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


# On flows -----------------------------------------------------------------------------------------


def pnp_flow_of_the_paper(
    y: Tensor, noise: Tensor, times: list[float], lr: float, alpha: float, draws: int
) -> Tensor:
    """Algorithm 3 with t = 1 at the data, for the straight flow between noise and data."""
    stream, x = OneStream(7), torch.zeros_like(noise)
    for n, t in enumerate(times):
        z = x - lr * (1 - t) ** alpha * (x @ A.T - y) @ A if n else x
        x = torch.zeros_like(x)
        for _ in range(draws if n else 1):
            eps = stream.randn_like(z) if n else noise
            z_tilde = t * z + (1 - t) * eps
            x += PRIOR.posterior_mean(z_tilde, t, 1 - t) / (draws if n else 1)
    return x


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("draws", [1, 4])
def test_pnpflow_is_its_paper_on_every_schedule(frame: str, draws: int) -> None:
    steps, lr, alpha = 9, 1.3, 0.4
    measurement, x = observed(), first(frame, steps)
    ours = run(
        invdiff.make_method("pnpflow", lr=lr, alpha=alpha, draws=draws),
        exact(frame),
        x,
        measurement,
        steps,
    )
    times = [1 - share for share in shares(frame, steps)[:-1]]
    level = Straight()(FRAMES[frame][1], steps)[0]
    # The reference starts at alpha z + sigma eps with z = 0, in the flow's scale.
    noise = x / float(level.alpha + level.sigma) / (1 - times[0])
    assert_same(
        ours,
        pnp_flow_of_the_paper(measurement.y, noise, times, lr, alpha, draws),
        1e-8 if frame == "flow" else 1e-9,
    )


@pytest.mark.parametrize("frame", FRAMES)
def test_flowchef_is_its_paper_on_every_schedule(frame: str) -> None:
    """Euler steps of the flow, the state moved by the gradient at x0, not at the last step."""
    steps, eta = 9, 2.0
    measurement, z = observed(), first(frame, steps)
    ours = run(invdiff.make_method("flowchef", eta=eta), exact(frame), z, measurement, steps)
    level, times = Straight()(FRAMES[frame][1], steps)[0], shares(frame, steps)
    z = z / float(level.alpha + level.sigma)
    for i, (t, t_next) in enumerate(zip(times, times[1:], strict=False)):
        x0 = PRIOR.posterior_mean(z, 1 - t, t)
        v = (z - x0) / t
        if i < steps - 1:
            loss_grad = 2 * (x0 @ A.T - measurement.y) @ A / ROWS
            z = z - eta * loss_grad
        z = z + v * (t_next - t)
    assert_same(ours, z, 1e-8 if frame == "flow" else 1e-9)


@pytest.mark.parametrize(("name", "nfe"), [("pnpflow", 1 + 5 * 7), ("flowchef", 8)])
def test_networks_on_flows_are_not_differentiated(name: str, nfe: int) -> None:
    def net(x: Tensor, t: Tensor) -> Tensor:
        assert not torch.is_grad_enabled() and not x.requires_grad
        return torch.tanh(x)

    measurement = invdiff.make_operator("blur").measure(
        torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)), sigma=0.02
    )
    result = solve(
        measurement,
        Denoiser(net, predicts="velocity", schedule="flow", data_range=(-1, 1)),
        name,
        steps=8,
    )
    assert (result.nfe, result.nbe) == (nfe, 0)


def test_the_gradient_on_the_data_reaches_any_operator() -> None:
    x = rand(BATCH, DIM, seed=5)
    linear, cubes = observed(), observed(Cubes())
    assert_same(data_gradient(linear, x), 2 * (x @ A.T - linear.y) @ A)
    expected = torch.zeros_like(x)
    expected[:, :ROWS] = 2 * (x[:, :ROWS] ** 3 - cubes.y) * 3 * x[:, :ROWS] ** 2
    assert_same(data_gradient(cubes, x), expected)
    for name in ("pnpflow", "flowchef"):
        options = {"lr": 0.01} if name == "pnpflow" else {"eta": 0.01}
        assert (
            run(make_method(name, **options), exact("flow"), first("flow", 5), cubes, 5)
            .isfinite()
            .all()
        )


def test_pnpflow_draws_around_its_own_estimate_after_a_climb() -> None:
    """The memory follows the run: each level's extra draws surround the z that the state was drawn
    around."""
    seen: list[tuple[Tensor, float]] = []
    net = PRIOR.network("velocity", schedules.flow())

    def watched(x: Tensor, t: Tensor) -> Tensor:
        seen.append((x, float(t[0])))
        return net(x, t)

    class Silent(OneStream):
        def randn_like(self, x: Tensor) -> Tensor:
            return torch.zeros_like(x)

    method = complete(make_method("pnpflow", draws=2), itinerary=Jumps(2, 2))
    denoiser, schedule = Denoiser(watched, predicts="velocity", schedule="flow"), schedules.flow()
    levels = method.itinerary(schedule, 8)
    x = first("flow", 8)
    sample(
        denoiser,
        x,
        levels,
        schedule=schedule,
        noise=Silent(),
        transition=method.transition,
        guidance=method.chain,
        measurement=observed(),
    )
    pairs = list(zip(seen[1::2], seen[2::2], strict=True))
    assert len(pairs) > 8
    for (state, t), (draw, u) in pairs:
        assert t == u
        assert_same(state, draw)


def test_pnpflow_with_one_draw_of_no_data_samples_its_prior_in_many_steps() -> None:
    """Without data it is multistep sampling with fresh noise, whose mean is the prior's."""
    many = Gaussian(PRIOR.mean, PRIOR.covariance)
    denoiser = Denoiser(
        many.network("velocity", schedules.flow()), predicts="velocity", schedule="flow"
    )
    operator = Dense().bind((DIM,))
    measurement = Measurement(torch.zeros(2000, ROWS, dtype=D), operator, 0.05)
    x = run(
        make_method("pnpflow", lr=0.0, draws=1), denoiser, rand(2000, DIM, seed=1), measurement, 40
    )
    assert float((x.mean(0) - PRIOR.mean).norm() / PRIOR.covariance.trace().sqrt()) < 0.05


# Behind an autoencoder ----------------------------------------------------------------------------

PIXELS = 8
DECODE = rand(DIM, PIXELS, seed=11) / 2  # z D
ENCODE = torch.linalg.pinv(DECODE) + 0.1 * rand(
    PIXELS, DIM, seed=12
)  # x E: not quite an inverse, so that gluing has work to do
A_PIXELS = rand(ROWS, PIXELS, seed=13) / 3


def linear_coder(decode: Tensor = DECODE, encode: Tensor = ENCODE) -> Autoencoder:
    return Autoencoder(
        lambda x: x @ encode,
        lambda z: z @ decode,
        len(decode),
        1,
        decode.shape[1],
        data_range=(0.0, 1.0),
    )


def decoded(
    matrix: Tensor = A_PIXELS, coder: Autoencoder | None = None, sigma: float = 0.05
) -> Measurement:
    coder = coder or linear_coder()
    y = coder.decode(PRIOR.draw(BATCH, seed=3)) @ matrix.T + sigma * rand(
        BATCH, len(matrix), seed=4
    )
    inner = Dense(matrix).bind((matrix.shape[1],))
    return Measurement(y, Decoded(inner, coder, shape=(DIM,)), sigma)


def vp_steps(steps: int) -> list[tuple[int, float, float]]:
    """(t, alpha_bar_t, alpha_bar_s) of a run, from the definition of DDPM alone."""
    times = [int(t) for t in VP.times(steps)]
    bars = [float(BAR[t]) for t in times] + [1.0]
    return list(zip(times, bars, bars[1:], strict=False))


def eps_of(z: Tensor, a_t: float) -> Tensor:
    return (z - a_t**0.5 * PRIOR.posterior_mean(z, a_t**0.5, (1 - a_t) ** 0.5)) / (1 - a_t) ** 0.5


def test_psld_is_its_paper() -> None:
    """Algorithm 2 as the official code weighs it, with the Jacobians written out."""
    steps, omega, gamma = 8, 0.7, 0.3
    measurement, z = decoded(), rand(BATCH, DIM, seed=1)
    ours = run(
        make_method("psld", omega=omega, gamma=gamma),
        exact("vp"),
        math.sqrt(1 - vp_steps(steps)[0][1]) * z,
        measurement,
        steps,
    )

    y, eye = measurement.y, torch.eye(PIXELS, dtype=D)
    z = (1 - vp_steps(steps)[0][1]) ** 0.5 * z
    for _, a_t, a_s in vp_steps(steps):
        eps = eps_of(z, a_t)
        z0 = (z - (1 - a_t) ** 0.5 * eps) / a_t**0.5
        jacobian = (
            a_t**0.5
            * PRIOR.covariance
            @ torch.linalg.inv(a_t * PRIOR.covariance + (1 - a_t) * torch.eye(DIM, dtype=D))
        )
        glue = (A_PIXELS.T @ y.T).T + z0 @ DECODE @ (eye - A_PIXELS.T @ A_PIXELS)
        r, g = y - z0 @ DECODE @ A_PIXELS.T, z0 - glue @ ENCODE
        grad_r = -r / r.norm(dim=1, keepdim=True) @ (DECODE @ A_PIXELS.T).T
        grad_g = (
            g
            / g.norm(dim=1, keepdim=True)
            @ (torch.eye(DIM, dtype=D) - DECODE @ (eye - A_PIXELS.T @ A_PIXELS) @ ENCODE).T
        )
        z = a_s**0.5 * z0 + (1 - a_s) ** 0.5 * eps - (omega * grad_r + gamma * grad_g) @ jacobian
    assert_same(ours, z)


def test_psld_is_dps_behind_a_perfect_autoencoder() -> None:
    """With E = D^-1 orthogonal and A A* = I the gluing term is the norm of the residual again;
    without gluing it always is DPS."""
    q = torch.linalg.qr(rand(DIM, DIM, seed=14))[0]
    mask = torch.eye(DIM, dtype=D)[:ROWS]
    measurement, z = decoded(mask, linear_coder(q, q.T)), rand(BATCH, DIM, seed=1)
    glued = run(make_method("psld", omega=0.3, gamma=0.2), exact("vp"), z, measurement, 8)
    assert_same(glued, run(Method(DPS(0.5), DDIM()), exact("vp"), z, measurement, 8))
    without = run(make_method("psld", omega=0.5, gamma=0.0), exact("vp"), z, decoded(), 8)
    assert_same(without, run(Method(DPS(0.5), DDIM()), exact("vp"), z, decoded(), 8))


def adam(
    A: Callable[[Tensor], Tensor], y: Tensor, x: Tensor, iterations: int, lr: float, tau: float
) -> Tensor:
    """One image, until its mean squared residual is small."""
    x, mean, square = x.clone(), torch.zeros_like(x), torch.zeros_like(x)
    for k in range(1, iterations + 1):
        leaf = x.requires_grad_()
        loss = F.mse_loss(A(leaf), y)
        if loss < tau**2:
            break
        (grad,) = torch.autograd.grad(loss, leaf)
        mean, square = 0.9 * mean + 0.1 * grad, 0.999 * square + 0.001 * grad**2
        x = (x - lr * (mean / (1 - 0.9**k)) / ((square / (1 - 0.999**k)).sqrt() + 1e-8)).detach()
    return x.detach()


def test_resample_is_its_paper() -> None:
    """Algorithm 1, image by image, with all three stages."""
    steps, every, gamma, tau = 12, 2, 40.0, 0.08
    options = {
        "every": every,
        "gamma": gamma,
        "tau": tau,
        "image_iterations": 40,
        "latent_iterations": 25,
    }
    measurement, z = decoded(), rand(BATCH, DIM, seed=1)
    ours = run(make_method("resample", **options), exact("vp"), z, measurement, steps)

    y, stream = measurement.y, OneStream(7)
    a_d = DECODE @ A_PIXELS.T
    for i, (_, a_t, a_s) in enumerate(vp_steps(steps)):
        index = steps - 1 - i
        eps = eps_of(z, a_t)
        z0 = (z - (1 - a_t) ** 0.5 * eps) / a_t**0.5
        z = a_s**0.5 * z0 + (1 - a_s) ** 0.5 * eps
        if index % every or index > steps - steps // 3 or index == 0:
            continue
        if index >= steps // 3:
            rows = [
                adam(lambda x: x @ A_PIXELS.T, y[k], z0[k] @ DECODE, 40, 1e-2, tau) @ ENCODE
                for k in range(BATCH)
            ]
        else:
            rows = [adam(lambda x: x @ a_d, y[k], z0[k], 25, 5e-3, tau) for k in range(BATCH)]
        z0_y = torch.stack(rows)
        sigma = gamma * (1 - a_s) / (1 - a_t) * (1 - a_t / a_s)
        z = (sigma * a_s**0.5 * z0_y + (1 - a_s) * z) / (sigma + 1 - a_s) + stream.randn_like(z) * (
            1 / (1 / sigma + 1 / (1 - a_s))
        ) ** 0.5
    z = torch.stack([adam(lambda x: x @ a_d, y[k], z[k], 25, 5e-3, tau) for k in range(BATCH)])
    assert_same(ours, z)


def consistency(prior: Gaussian) -> Denoiser:
    """The exact consistency function of N(m, C): where the probability flow takes a state."""
    values, basis = torch.linalg.eigh(prior.covariance)

    def net(z: Tensor, t: Tensor) -> Tensor:
        level = VP(float(t[0]))
        alpha, sigma = float(level.alpha), float(level.sigma)
        gain = (values / (alpha**2 * values + sigma**2)).sqrt()
        return prior.mean + (z - alpha * prior.mean) @ basis * gain @ basis.T

    return Denoiser(net, predicts="x0", schedule=VP)


def test_latino_is_its_paper() -> None:
    """With the clipped images and the proximal step of plain matrices, at its published times."""
    steps, delta, late, sigma = 8, 0.8, 0.3, 0.05
    measurement, z = decoded(), rand(BATCH, DIM, seed=1)
    net, y, stream = consistency(PRIOR), measurement.y, OneStream(7)
    ours = run(make_method("latino", delta=delta, late=late), net, z, measurement, steps)
    for k, (t, a_t, a_s) in enumerate(vp_steps(steps)):
        x = (net.net(z, torch.tensor([t])) @ DECODE).clamp(0, 1)
        gamma = (delta if k < 4 else late) * (1 - a_t) / sigma**2
        system = torch.eye(PIXELS, dtype=D) + gamma * A_PIXELS.T @ A_PIXELS
        u = torch.linalg.solve(system, (x + gamma * y @ A_PIXELS).T).T
        z = a_s**0.5 * u.clamp(0, 1) @ ENCODE
        if a_s < 1:
            z = z + (1 - a_s) ** 0.5 * stream.randn_like(z)
    assert_same(ours, z, 1e-6)  # its system is solved by conjugate gradients


def test_latino_starts_from_what_was_measured() -> None:
    measurement = Measurement(torch.full((1, 3, 8, 8), 0.7), invdiff.make_operator("denoise"), 0.05)
    coder = Autoencoder(lambda x: 2 * x, lambda z: z / 2, 3, 1, 3, data_range=(-1.0, 1.0))
    seen: list[Tensor] = []

    def net(z: Tensor, t: Tensor) -> Tensor:
        seen.append(z)
        return z

    denoiser = Denoiser(net, predicts="x0", schedule=VP, autoencoder=coder)
    result = solve(measurement, denoiser, "latino", steps=8)
    assert result.nfe == 8
    noise = (seen[0] - float(BAR[-1]) ** 0.5 * 2 * 0.4) / (1 - float(BAR[-1])) ** 0.5
    assert abs(float(noise.mean())) < 0.3
    assert abs(float(noise.std()) - 1) < 0.2


def test_flowdps_is_its_paper() -> None:
    """As the official code draws noise again, with the norm's gradient written out."""
    steps, size, times = 10, 0.4, shares("flow", 10)
    measurement, x = decoded(), rand(BATCH, DIM, seed=1)
    x = times[0] * x
    ours = run(make_method("flowdps", step=size), exact("flow"), x, measurement, steps)
    y, stream, a_d = measurement.y, OneStream(7), DECODE @ A_PIXELS.T
    for t, s in zip(times, times[1:], strict=False):
        z0 = PRIOR.posterior_mean(x, 1 - t, t)
        v = (x - z0) / t
        z1, z = x + (1 - t) * v, z0
        for _ in range(3):
            back = (y - z @ a_d) @ A_PIXELS
            grad = -back / back.norm(dim=1, keepdim=True) @ A_PIXELS.T @ a_d.T
            z = z - size * grad
        z0y = (1 - t) * z0 + t * z
        x = z0y
        if s > 0:
            noise = s**0.5 * z1 + (1 - s) ** 0.5 * stream.randn_like(x)
            x = z0y + s * (noise - z0y)
    assert_same(ours, x)


@pytest.mark.parametrize("errors", [None, (0.9, 0.4, 0.2, 0.3, 1.5)])
def test_flair_is_its_paper(errors: tuple[float, ...] | None, tmp_path: Path) -> None:
    """As the official code: the loss of flow matching by v and the drawn noise, SGD on the data
    with an early stop, the noise along the trajectory."""
    steps, lr, tau, times = 7, 0.3, 2e-3, shares("flow", 7)
    measurement, noise = decoded(), rand(BATCH, DIM, seed=1)
    options: dict[str, Any] = {"lr": lr, "tau": tau, "iterations": 6, "weight": 0.4}
    if errors is not None:
        np.save(tmp_path / "errors.npy", errors)
        options["errors"] = tmp_path / "errors.npy"
    ours = run(make_method("flair", **options), exact("flow"), noise, measurement, steps)
    y, stream, a_d = measurement.y, OneStream(7), DECODE @ A_PIXELS.T
    inner = Measurement(y, Dense(A_PIXELS).bind((PIXELS,)), 0.05)
    mu, n = inner.linear_estimate() @ ENCODE, noise
    waited = False
    for k, t in enumerate(times[:-1]):
        if k:
            n = (1 - t) * n + (1 - (1 - t) ** 2) ** 0.5 * stream.randn_like(n)
        x = t * n + (1 - t) * mu
        v = (x - PRIOR.posterior_mean(x, 1 - t, t)) / t
        if errors is None:
            w = 0.4 * t
        else:
            inverse = [1 / e for e in errors]
            nearest = min(range(5), key=lambda j: abs(1 - j / 4 - t))
            w = 0.4 * inverse[nearest] / (sum(inverse) / 5)
        mu, n = mu - w * (v - (n - mu)), x + (1 - t) * v
        for _ in range(6):
            r = mu @ a_d - y
            going = (r.square().mean(1, keepdim=True) >= tau).to(D)
            waited |= bool((going == 0).any())
            mu = mu - lr * w * going * 2 * r @ a_d.T
    assert_same(ours, mu)
    assert waited


MIXTURE = Mixture(
    torch.full((5,), 0.2, dtype=D),
    2 * rand(5, DIM, seed=40),
    (0.1 * torch.eye(DIM, dtype=D)).expand(5, -1, -1),
)


def mixed(frame: str) -> Denoiser:
    predicts, schedule = FRAMES[frame]
    return Denoiser(MIXTURE.network(predicts, schedule), predicts=predicts, schedule=schedule)


@pytest.mark.parametrize("K", [1, 3])
def test_stsl_is_its_drift(K: int) -> None:
    """With the derivatives of the whole by autograd, and DDPM's q(x_s | x_t, x0) from the last x_t
    and the x0 before it."""
    steps, zeta, eta = 7, 0.4, 0.3
    measurement, x = decoded(), rand(BATCH, DIM, seed=1)
    method = make_method("stsl", zeta=zeta, eta=eta, K=K)
    ours = run(method, mixed("vp"), x, measurement, steps)
    stream, a_d = OneStream(7), DECODE @ A_PIXELS.T

    def score(x: Tensor, a_t: float) -> Tensor:
        return (a_t**0.5 * MIXTURE.posterior_mean(x, a_t**0.5, (1 - a_t) ** 0.5) - x) / (1 - a_t)

    for _, a_t, a_s in vp_steps(steps):
        for _ in range(K):
            z, x = stream.randn_like(x), x.requires_grad_()
            x0 = (x + (1 - a_t) * score(x, a_t)) / a_t**0.5
            second = (z * score(x + z, a_t)).sum() - (z * score(x, a_t)).sum()
            first = (measurement.y - x0 @ a_d).norm(dim=1).sum()
            (grad,) = torch.autograd.grad(zeta * first + eta / DIM * second, x)
            x, x0 = (x - grad).detach(), x0.detach()
        beta = 1 - a_t / a_s
        x = ((a_t / a_s) ** 0.5 * (1 - a_s) * x + a_s**0.5 * beta * x0) / (1 - a_t)
        if a_s < 1:
            x = x + (beta * (1 - a_s) / (1 - a_t)) ** 0.5 * stream.randn_like(x)
    assert_same(ours, x)


@pytest.mark.parametrize("frame", FRAMES)
def test_stsl_is_the_same_in_every_frame(frame: str) -> None:
    """One step at one noise-to-signal ratio, from one x0 and eps."""
    found = []
    for name in ("vp", frame):
        schedule = FRAMES[name][1]
        t, s = schedule.at(0.7), schedule.at(0.4)
        x = t.alpha * rand(BATCH, DIM, seed=1) + t.sigma * rand(BATCH, DIM, seed=2)
        p = STSL(K=2, eta=0.5)(mixed(name), x, step_of(schedule, t, s, OneStream(7)), decoded())
        found.append((p.x0, p.eps))
    for one, other in zip(*found, strict=True):
        assert_same(other, one, 1e-6 if frame == "flow" else 1e-8)


LATENT_DAPS = {
    "lr": 0.01,
    "langevin_steps": 24,
    "lr_min_ratio": 0.1,
    "tau": 0.0,
    "sigma_max": 10.0,
    "momentum": 0.86,
}


def test_latent_methods_on_a_known_posterior() -> None:
    """Error of the mean, in units of the prior's, and of the covariance, in its norm; LATINO where
    the decoder keeps distances, the others as PSLD on the toy above. The Gaussians that LatentDAPS
    draws from are wider than p(x0 | x_t), and so are its samples."""
    chains, sigma = 1000, 0.3
    q = torch.linalg.qr(rand(DIM, DIM, seed=14))[0]
    for method, matrix, (decode, encode), net, steps, most in (
        (
            make_method("latino"),
            torch.eye(DIM, dtype=D)[:ROWS],
            (q, q.T),
            consistency(PRIOR),
            8,
            (0.4, 0.25),
        ),
        (
            make_method("flowdps", step=1.0),
            A_PIXELS,
            (DECODE, torch.linalg.pinv(DECODE)),
            exact("flow"),
            28,
            (0.2, 0.4),
        ),
        (
            make_method("flair", lr=0.1, weight=1.0, tau=sigma**2),
            A_PIXELS,
            (DECODE, torch.linalg.pinv(DECODE)),
            exact("flow"),
            50,
            (0.12, 0.3),
        ),
        (
            make_method("daps", **LATENT_DAPS),
            A_PIXELS,
            (DECODE, torch.linalg.pinv(DECODE)),
            exact("vp"),
            50,
            (0.06, 0.75),
        ),
        (
            make_method("stsl", zeta=0.3, K=1),
            A_PIXELS,
            (DECODE, torch.linalg.pinv(DECODE)),
            exact("vp"),
            50,
            (0.2, 0.4),
        ),
    ):
        coder = replace(linear_coder(decode, encode), data_range=(-50.0, 50.0))
        H = (decode @ matrix.T).T
        y = PRIOR.draw(1, seed=3) @ H.T + 0.05 * rand(1, ROWS, seed=4)
        inner = Dense(matrix).bind((matrix.shape[1],))
        operator = Decoded(inner, coder, shape=(DIM,))
        precision = torch.linalg.inv(PRIOR.covariance)
        covariance = torch.linalg.inv(precision + H.T @ H / sigma**2)
        mean = covariance @ (precision @ PRIOR.mean + H.T @ y[0] / sigma**2)
        measurement = Measurement(y.expand(chains, -1), operator, sigma)
        z = run(method, net, rand(chains, DIM, seed=1), measurement, steps)
        assert float((z.mean(0) - mean).norm() / (PRIOR.mean - mean).norm()) < most[0]
        assert float((torch.cov(z.T) - covariance).norm() / covariance.norm()) < most[1]


def test_latent_methods_refuse() -> None:
    with pytest.raises(ValueError, match="two or more positive numbers"):
        make_method("flair", errors=[0.1, 0.0])
    for name in ("latino", "flowdps", "flair"):
        measurement = replace(
            decoded(), operator=Decoded(Cubes().bind((PIXELS,)), linear_coder(), shape=(DIM,))
        )
        with pytest.raises(ValueError, match="Cubes is not one"):
            run(make_method(name), exact("flow"), rand(BATCH, DIM), measurement, 3)
        with pytest.raises(ValueError, match="latent diffusion network"):
            run(make_method(name), exact("flow"), rand(BATCH, DIM), observed(), 3)
    with pytest.raises(ValueError, match="sigma"):
        run(make_method("latino"), exact("vp"), rand(BATCH, DIM), decoded(sigma=0.0), 3)


def test_fitted_images_are_frozen_while_others_go_on() -> None:
    matrix, start = rand(2, 4, seed=1), rand(3, 4, seed=2)
    y = start @ matrix.T + torch.tensor([0.0, 0.01, 30.0], dtype=D)[:, None]
    together = fitted(lambda x: x @ matrix.T, y, start, 150, 0.01, 1e-3)
    for k in range(3):
        assert_same(
            together[k : k + 1],
            fitted(lambda x: x @ matrix.T, y[k : k + 1], start[k : k + 1], 150, 0.01, 1e-3),
        )
    assert torch.equal(together[0], start[0])  # it fitted from the beginning
    assert (
        float((y - together @ matrix.T)[1].square().mean())
        < 1e-6
        < float((y - together @ matrix.T)[2].square().mean())
    )


def test_resample_fits_a_measurement_without_noise() -> None:
    measurement = decoded(sigma=0.0)
    z = run(
        make_method(
            "resample",
            every=4,
            tau=1e-6,
            image_iterations=20,
            latent_iterations=600,
            latent_lr=0.03,
        ),
        exact("vp"),
        rand(BATCH, DIM, seed=1),
        measurement,
        12,
    )
    assert float(measurement.residual(z).abs().max()) < 1e-4


def test_resample_goes_around_other_samplers() -> None:
    method = complete(make_method("resample", every=3), DDIM(0.5))
    assert method.transition == ReSample(every=3, inner=DDIM(0.5))
    assert make_method(["resample", DDIM(0.5)]).transition == ReSample(inner=DDIM(0.5))
    assert ReSample(inner=Heun()).predictions == 2
    chain = make_method([DPS(0.1), "resample"])
    assert (chain.chain, chain.transition) == ((DPS(0.1),), ReSample())


# On images ----------------------------------------------------------------------------------------

SHAPE = (2, 3, 16, 16)
CODER: dict[str, Any] = {
    "block_out_channels": (8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
    "latent_channels": 4,
    "sample_size": 16,
}
UNSHUFFLE = Autoencoder(
    lambda x: F.pixel_unshuffle(x, 2) / 2,
    lambda z: F.pixel_shuffle(2 * z, 2),
    channels=12,
    factor=2,
)
QUICK = {"every": 2, "image_iterations": 4, "latent_iterations": 3}
OPTIONS: dict[str, dict[str, Any]] = {
    "pnpflow": {"draws": 2},
    "flowchef": {"eta": 100.0},
    "psld": {},
    "resample": QUICK,
}
LATENT = ("psld", "resample")


def smooth(x: Tensor, t: Tensor) -> Tensor:
    return torch.tanh(0.3 * x + torch.roll(x, 1, -1) * (1 + t.to(x).view(-1, 1, 1, 1) / 1000))


def images(seed: int = 0) -> Tensor:
    return torch.rand(SHAPE, dtype=D, generator=torch.Generator().manual_seed(seed))


def kl() -> Autoencoder:
    return from_diffusers(built(AutoencoderKL, **CODER))


def denoiser_for(name: str, coder: Autoencoder = UNSHUFFLE) -> Denoiser:
    if name in LATENT:
        return Denoiser(smooth, schedule=VP, autoencoder=coder)
    return Denoiser(smooth, predicts="velocity", schedule="flow", data_range=(-1, 1))


@pytest.mark.parametrize("sigma", [0.0, 0.05, [0.0, 0.1]])
@pytest.mark.parametrize("name", OPTIONS)
def test_an_image_alone_is_the_image_in_a_batch(name: str, sigma: Any) -> None:
    """With a mask and a sigma for each image, zero among them."""
    masks = (torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(1)) < 0.4).double()
    measurement = invdiff.make_operator("inpaint", mask=masks).measure(images(), sigma=sigma)
    denoiser, method = denoiser_for(name), make_method(name, **OPTIONS[name])
    both = solve(measurement, denoiser, method, steps=6, num_samples=2, dtype=D, seed=3)
    alone = solve(
        measurement.select([1]),
        denoiser,
        method,
        steps=6,
        num_samples=2,
        dtype=D,
        seed=3,
        image_ids=[1],
    )
    assert_same(alone.samples[:, 0], both.samples[:, 1])
    assert (
        both.samples.isfinite().all()
        and float((both.samples[0] - both.samples[1]).abs().max()) > 1e-4
    )


@pytest.mark.parametrize("name", ["pnpflow", "flowchef"])
def test_noise_of_every_pixel_is_no_obstacle(name: str) -> None:
    """Neither weighs by sigma."""
    a = invdiff.make_operator("denoise").measure(images(), sigma=0.05)
    b = Measurement(a.y, a.operator, 0.01 + 0.1 * images(5))
    one, other = (
        solve(m, denoiser_for(name), make_method(name, **OPTIONS[name]), steps=4, dtype=D).x
        for m in (a, b)
    )
    assert_same(one, other)


def test_psld_through_a_real_autoencoder() -> None:
    """From measurement to image, against DDIM and the modules of diffusers by hand, in latents."""
    net, steps, omega, gamma = built(AutoencoderKL, **CODER), 4, 0.5, 0.2
    measurement = invdiff.make_operator("sr", factor=2, kernel="box").measure(images(), sigma=0.02)
    result = solve(
        measurement,
        denoiser_for("psld", from_diffusers(net)),
        make_method("psld", omega=omega, gamma=gamma),
        steps=steps,
        dtype=D,
    )

    from invdiff.noise import NoiseSource, seed_of

    scale = net.config.scaling_factor
    y = 2 * measurement.y - 1
    z = NoiseSource([seed_of("sampling", 0, k, 0) for k in range(2)]).randn_like(
        torch.empty(2, 4, 8, 8, dtype=D)
    )
    z = (1 - vp_steps(steps)[0][1]) ** 0.5 * z
    for t, a_t, a_s in vp_steps(steps):
        z = z.requires_grad_()
        eps = smooth(z, torch.full((2,), t, dtype=D))
        z0 = (z - (1 - a_t) ** 0.5 * eps) / a_t**0.5
        image = net.decode(z0 / scale).sample
        replaced = image + F.interpolate(y - F.avg_pool2d(image, 2), scale_factor=2) / 4
        glue = z0 - net.encode(replaced).latent_dist.mode() * scale
        error = omega * (y - F.avg_pool2d(image, 2)).flatten(1).norm(dim=1) + gamma * glue.flatten(
            1
        ).norm(dim=1)
        (grad,) = torch.autograd.grad(error.sum(), z)
        z = (a_s**0.5 * z0 + (1 - a_s) ** 0.5 * eps - grad).detach()
    assert_same(result.x, (net.decode(z / scale).sample / 2 + 0.5).clamp(0, 1), 1e-8)
    assert (result.nfe, result.nbe) == (steps, steps)


def test_resample_through_a_real_autoencoder() -> None:
    coder = kl()
    truth = (coder.decode(0.5 * rand(2, 4, 8, 8)) + 1) / 2  # within reach of the decoder
    measurement = invdiff.make_operator("inpaint", fraction=0.5).measure(truth.detach(), sigma=0.0)
    denoiser = denoiser_for("resample", coder)
    options = {"every": 2, "image_iterations": 10, "latent_iterations": 60, "latent_lr": 0.05}
    plain, result = (
        solve(measurement, denoiser, m, transition=DDIM(), steps=6, dtype=D)
        for m in ("none", make_method("resample", **options))
    )
    assert bool((measurement.loss(result.x) < 0.5 * measurement.loss(plain.x)).all())
    assert (result.nfe, result.nbe) == (6, 0)


@pytest.mark.parametrize("name", LATENT)
@pytest.mark.parametrize("operator", ["inpaint", "sr", "blur"])
def test_latent_methods_never_look_at_the_data(name: str, operator: str) -> None:
    """On the device meta, where a read of the data fails; tests/test_meta.py has pixel networks
    alone."""

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Conv2d(12, 12, 3, padding=1, device="meta")

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.layer(x)

    measurement = invdiff.make_operator(operator).measure(images().float(), sigma=[0.0, 0.05])
    denoiser = Denoiser(Net(), schedule=VP, autoencoder=UNSHUFFLE)
    assert (
        solve(measurement, denoiser, make_method(name, **OPTIONS[name]), steps=6).x.device.type
        == "meta"
    )


# What cannot work ---------------------------------------------------------------------------------


def never(x: Tensor, t: Tensor) -> Tensor:
    raise AssertionError("the network was called")


@pytest.mark.parametrize("name", LATENT)
def test_pixel_networks_are_refused_before_sampling(name: str) -> None:
    measurement = invdiff.make_operator("inpaint").measure(images(), sigma=0.02)
    message = (
        "requires an operator seen through the autoencoder of a latent diffusion network, but "
        "Inpaint is not one"
    )
    with pytest.raises(ValueError, match=message):
        solve(measurement, Denoiser(never, schedule=VP, data_range=(-1, 1)), name, steps=3)


def test_psld_refuses_what_is_not_linear() -> None:
    @dataclass(frozen=True, eq=False)
    class Squares(Operator):
        def _forward(self, x: Tensor) -> Tensor:
            return x**2

    denoiser = Denoiser(never, schedule=VP, autoencoder=UNSHUFFLE)
    with pytest.raises(
        ValueError,
        match="PSLD requires a LinearOperator of the decoded image, but Squares is not one; use "
        "dps or resample",
    ):
        solve(Squares().measure(images(), sigma=0.02), denoiser, "psld", steps=3)
    calls = Calls.of(smooth)
    solve(
        Squares().measure(images(), sigma=0.02),
        Denoiser(calls, schedule=VP, autoencoder=UNSHUFFLE),
        make_method("resample", **QUICK),
        steps=3,
    )
    assert len(calls.times) == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PnPFlow(lr=-1), "lr must be a finite number, at least 0, got -1"),
        (lambda: PnPFlow(alpha=math.inf), "alpha must be a finite number, at least 0, got inf"),
        (lambda: PnPFlow(draws=0), "draws must be at least 1, got 0"),
        (lambda: FlowChef(eta=math.nan), "eta must be a finite number, at least 0, got nan"),
        (lambda: STSL(K=0), "K must be at least 1, got 0"),
        (lambda: STSL(eta=-1), "eta must be a finite number, at least 0, got -1"),
        (lambda: PSLD(omega=-0.1), "omega must be a finite number, at least 0, got -0.1"),
        (lambda: PSLD(gamma=math.nan), "gamma must be a finite number, at least 0, got nan"),
        (lambda: ReSample(gamma=0), "gamma must be a finite positive number, got 0"),
        (lambda: ReSample(latent_lr=-1), "latent_lr must be a finite positive number, got -1"),
        (lambda: ReSample(every=0), "every must be at least 1, got 0"),
        (lambda: ReSample(image_iterations=0), "image_iterations must be at least 1, got 0"),
        (lambda: ReSample(tau=-1), "tau must be a finite number, at least 0, got -1"),
    ],
)
def test_wrong_parameters_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
