"""Kernels that are unknown: their estimation, and runs in which it goes along with the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import invdiff
from invdiff import schedules
from invdiff.guidance.cfg import CFG
from invdiff.network import Autoencoder, Denoiser
from invdiff.noise import NoiseSource
from invdiff.operators import kernel_estimate
from invdiff.operators.blur import blur
from invdiff.problem import Measurement
from invdiff.sampling import Denoise, Step
from invdiff.sampling.particles import resample
from invdiff.sampling.unknown import Belief
from invdiff.testing.priors import prior
from invdiff.transitions import DDIM


def edges(count: int = 2, side: int = 40) -> Tensor:
    """Images of overlapping rectangles, which have edges in both directions."""
    draw = torch.Generator().manual_seed(0)
    x = torch.full((count, 3, side, side), 0.5, dtype=torch.float64)
    for k in range(count):
        for _ in range(25):
            top, left, h, w = torch.randint(2, side - 10, (4,), generator=draw).tolist()
            x[k, :, top : top + h // 3 + 2, left : left + w // 3 + 2] = torch.rand(
                3, 1, 1, generator=draw, dtype=torch.float64
            )
    return x


def test_noise_in_the_estimate_adds_the_roughness_of_the_kernel() -> None:
    """The expectation of the quadratic over white errors of the image, from many draws."""
    x, std = edges(1), 0.3
    draw = torch.Generator().manual_seed(2)
    noisy = x.mean(1) + std * torch.randn(3000, 40, 40, generator=draw, dtype=torch.float64)
    y = x.mean(1, keepdim=True)
    G, b = kernel_estimate.equations(x, y, (3, 4), "circular")
    pairs = noisy[:, None].split(500)
    means = [
        sum(v.mean(0) for v in values) / len(pairs)
        for values in zip(
            *(kernel_estimate.equations(n, y.expand_as(n), (3, 4), "circular") for n in pairs),
            strict=True,
        )
    ]
    added = std**2 * kernel_estimate.roughness(torch.zeros(3, 4, dtype=torch.float64))
    assert (means[0] - G[0] - added).norm() < 0.01 * added.norm()
    assert (means[1] - b[0]).norm() < 0.03 * b.norm()


@pytest.mark.parametrize("prior_", ["smooth", "sparse", "gaussian"])
def test_a_smooth_estimate_of_the_image_makes_no_point_of_the_kernel(prior_: str) -> None:
    """A posterior mean has lost what is fine: without its spread the kernel is too sharp."""
    x = edges(2)
    true = blur("gaussian", sigma=1.5, kernel_size=9)
    y, mean = true(x), blur("gaussian", sigma=1.0, kernel_size=9)(x)
    start = blur("unknown", kernel_size=9).make_kernel().expand(2, 1, 9, 9)
    errors = [
        error(
            kernel_estimate.estimated(mean, y, start, "circular", prior_, ratio)[:, 0],
            true.make_kernel().expand(2, 9, 9),
        )
        for ratio in (0.0, 0.3)
    ]
    assert errors[1] < 0.85 * errors[0]


def skewed(height: int, width: int) -> Tensor:
    w = torch.rand(height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    w = w**4
    return w / w.sum()


def error(found: Tensor, truth: Tensor) -> float:
    return float((found - truth).norm() / truth.norm())


@pytest.mark.parametrize("border", ["circular", "reflect", "replicate", "valid"])
@pytest.mark.parametrize("size", [(5, 5), (4, 7)])
def test_the_equations_are_those_of_the_blur(border: str, size: tuple[int, int]) -> None:
    """wᵀ G w − 2 bᵀ w + const is the loss of the blur itself, for a kernel that is none of its
    minimisers, so that orientation, centre and border agree."""
    x, true, other = edges(), skewed(*size), torch.rand(*size, dtype=torch.float64)
    operator = blur(true, border=border)
    y = operator(x)
    G, b = kernel_estimate.equations(x, y, size, border)
    losses = []
    for w in (true, other):
        r = (y - blur(w, border=border)(x)).mean(1)
        own = sum(r.diff(dim=d).square().flatten(1).mean(1) for d in (-2, -1))
        losses.append((kernel_estimate.quadratic(G, b, w.view(1, 1, -1))[:, 0], own))
    (q1, l1), (q2, l2) = losses
    assert torch.allclose(q2 - q1, l2 - l1, rtol=1e-6)


def test_the_projection_onto_the_simplex_is_the_nearest_point() -> None:
    v = torch.randn(50, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    w = kernel_estimate.onto_simplex(v)
    assert (w >= 0).all() and torch.allclose(w.sum(1), torch.ones(50).double())
    # v − w has one value where w > 0 and none above it elsewhere: the conditions of optimality.
    gap = v - w
    most = gap.amax(1, keepdim=True)
    assert torch.allclose(torch.where(w > 0, gap, most), most.expand_as(gap))


@pytest.mark.parametrize("name, share", [("unknown", 0.75), ("unknown_sparse", 0.5)])
def test_a_kernel_is_found_from_the_true_image(name: str, share: float) -> None:
    x, true = edges(), blur("motion", kernel_size=9, intensity=0.8, seed=1).make_kernel()
    y = blur(true).measure(x, sigma=0.005, seed=0).y
    start = blur(name, kernel_size=9)
    found = start.bind(tuple(x.shape[1:])).learned(x, y).state["kernel"]
    before = error(start.make_kernel(), true)
    assert found.shape == (2, 1, 9, 9)
    assert torch.allclose(found.flatten(1).sum(1), torch.ones(2).double()) and (found >= 0).all()
    assert all(error(w[0], true) < share * before for w in found)


def test_a_gaussian_kernel_is_found_with_its_axes() -> None:
    theta = torch.tensor([[0.2, 0.7, 0.3]], dtype=torch.float64)
    true = kernel_estimate.shape_of(theta, (13, 13)).view(13, 13)
    x = edges()
    y = blur(true).measure(x, sigma=0.005, seed=0).y
    operator = blur("unknown_gaussian", kernel_size=13).bind(tuple(x.shape[1:]))
    found = operator.learned(x, y).state["kernel"]
    assert all(error(w[0], true) < 0.05 for w in found)


@pytest.mark.parametrize("border", ["circular", "reflect"])
def test_each_image_has_its_own_kernel(border: str) -> None:
    """With a kernel for every image, all that a blur can is what a blur of that kernel can."""
    x = edges()
    first, second = skewed(5, 5), skewed(5, 5).flip(0)
    both = blur("unknown", kernel_size=5, border=border).bind(tuple(x.shape[1:]))
    both = both._changed(state=both.state_of(torch.stack([first, second])[:, None], both.shape))
    y = both(x)
    z = torch.rand(x.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for k, kernel in enumerate((first, second)):
        one, own = blur(kernel, border=border), both.select(torch.tensor([k]))
        rows = slice(k, k + 1)
        assert torch.allclose(y[rows], one(x[rows]))
        for part in (both.adjoint(y)[rows], own.adjoint(y[rows])):
            assert torch.allclose(part, one.bind(x.shape[1:]).adjoint(y[rows]))
        assert torch.allclose(
            both.pinv(y, ridge=0.1)[rows], one.bind(x.shape[1:]).pinv(y[rows], ridge=0.1), atol=1e-5
        )
        assert torch.allclose(
            both.prox(z, y, 2.0)[rows], one.prox(z[rows], y[rows], 2.0), atol=1e-5
        )


def exact_of(truth: Tensor) -> Denoiser:
    """The network of a prior that is nearly sure of the image: independent pixels of
    standard deviation 0.05."""

    def net(x: Tensor, t: Tensor) -> Tensor:
        level = schedule(float(t[0]))
        alpha, sigma = float(level.alpha), float(level.sigma)
        gain = alpha * 0.01 / (alpha**2 * 0.01 + sigma**2)
        return 2 * truth - 1 + gain * (x - alpha * (2 * truth - 1))

    schedule = schedules.linear(1000)
    return Denoiser(net, predicts="x0", schedule=schedule, data_range=(-1.0, 1.0))


@pytest.mark.parametrize("method", ["ddrm", "diffpir", "dps", "reddiff"])
def test_any_method_finds_the_kernel_along_with_the_image(method: str) -> None:
    """Under a prior that knows the image, the kernel is found, by methods of every kind."""
    truth = edges(1)
    true = blur("motion", kernel_size=7, intensity=0.8, seed=1).make_kernel()
    y = blur(true).measure(truth, sigma=0.01, seed=0).y
    unknown = blur("unknown_sparse", kernel_size=7)
    result = invdiff.solve(
        Measurement(y.float(), unknown, 0.01), exact_of(truth.float()), method, steps=12
    )
    found, std = result.estimate("kernel")
    assert found.shape == std.shape == (1, 1, 7, 7) and float(std.max()) > 0
    assert error(found[0, 0].double(), true) < 0.6 * error(unknown.make_kernel(), true)
    assert result.unknown["kernel"].shape[1:3] == (1, 1) and len(result.unknown["kernel"]) >= 2


def test_an_image_has_in_a_batch_the_kernel_that_it_has_alone() -> None:
    x = edges(3)
    y = blur("box", kernel_size=3).measure(x, sigma=0.02).y
    network = prior(3, dtype=torch.float64)
    options = {"steps": 6, "dtype": torch.float64, "label": 1}

    def run(part: Tensor, ids: list[int]) -> invdiff.Restoration:
        given = Measurement(part, blur("unknown", kernel_size=5), 0.02)
        return invdiff.solve(given, network, "ddrm", image_ids=ids, num_samples=2, **options)

    together, alone = run(y, [0, 1, 2]), run(y[1:2], [1])
    assert torch.allclose(together.samples[:, 1:2], alone.samples, atol=1e-6)
    assert torch.allclose(together.unknown["kernel"][:, :, 1:2], alone.unknown["kernel"], atol=1e-6)


@pytest.mark.parametrize("images", [1, 2])
def test_branches_stacked_for_one_call_give_the_kernel_of_the_condition(images: int) -> None:
    y = blur("box", kernel_size=3).measure(edges(images), sigma=0.02).y
    given = Measurement(y, blur("unknown", kernel_size=5), 0.02)
    network, options = prior(3, dtype=torch.float64), {"steps": 4, "dtype": torch.float64}
    together, apart = (
        invdiff.solve(given, network, [CFG(1, 2.0, batched=batched), "dps"], **options)
        for batched in (True, False)
    )
    assert torch.allclose(together.unknown["kernel"], apart.unknown["kernel"], atol=1e-6)
    assert torch.allclose(together.samples, apart.samples, atol=1e-6)


def test_a_particle_takes_its_kernel_with_it() -> None:
    """One particle has all the weight, so that all rows go on from it, with its kernel."""

    @dataclass(frozen=True)
    class Favourite(invdiff.Transition):
        particles: ClassVar[bool] = True

        def down(
            self, predict: Denoise, x_t: Tensor, step: Step, measurement: Measurement | None
        ) -> Tensor:
            p = predict(x_t, step.t)
            rows, _ = resample(torch.tensor([0.0, 0.0, 50.0, 0.0]), step)
            assert rows.tolist() == [2] * 4
            return DDIM().kernel(p, step.t, step.s)[0][rows]

    y = blur("box", kernel_size=3).measure(edges(1), sigma=0.02).y
    given, network = (
        Measurement(y, blur("unknown", kernel_size=5), 0.02),
        prior(3, dtype=torch.float64),
    )
    options = {"num_samples": 4, "steps": 1, "dtype": torch.float64}
    kernels = invdiff.solve(given, network, "none", transition=Favourite(), **options).unknown
    assert torch.equal(kernels["kernel"], kernels["kernel"][:, 2:3].expand_as(kernels["kernel"]))


def test_a_single_step_leaves_an_estimate() -> None:
    y = blur("box", kernel_size=3).measure(edges(1), sigma=0.02).y
    given = Measurement(y, blur("unknown", kernel_size=5), 0.02)
    result = invdiff.solve(given, prior(3, dtype=torch.float64), "dps", steps=1, label=1)
    assert result.estimate("kernel")[0].shape == (1, 1, 5, 5)


def test_a_sigma_for_each_pixel_leaves_the_kernel_unknown() -> None:
    """In units of the noise, as PiGDM takes such a measurement, the kernel is still estimated,
    and as without that where all pixels have one sigma."""
    y = blur("box", kernel_size=3).measure(edges(2), sigma=0.02).y
    network, options = prior(3, dtype=torch.float64), {"steps": 6, "dtype": torch.float64}
    found = []
    same = torch.full_like(y, 0.1)
    for sigma in (0.1, same, same.index_fill(3, torch.arange(20), 0.5)):
        given = Measurement(y, blur("unknown", kernel_size=5), sigma)
        result = invdiff.solve(given, network, "pigdm", label=1, **options)
        found.append(result.unknown["kernel"])
    assert torch.allclose(found[0], found[1], atol=1e-3)
    assert found[2].isfinite().all() and not torch.allclose(found[0], found[2], atol=5e-3)


def test_the_kernel_of_a_decoded_latent_is_estimated() -> None:
    coder = Autoencoder(
        lambda x: F.avg_pool2d(x, 2), lambda z: F.interpolate(z, scale_factor=2.0), 3, 2
    )
    schedule = schedules.linear(1000)
    network = Denoiser(lambda x, t: 0.9 * x, schedule=schedule, autoencoder=coder, channels=3)
    given = Measurement(edges(2), blur("unknown", kernel_size=3), 0.02)
    result = invdiff.solve(given, network, "dps", steps=4, dtype=torch.float64)
    assert result.estimate("kernel")[0].shape == (2, 1, 3, 3)


@pytest.mark.parametrize("prior_", ["smooth", "sparse", "gaussian"])
def test_an_image_without_edges_keeps_its_kernel_and_spoils_no_other(prior_: str) -> None:
    x, start = edges(2), blur("unknown", kernel_size=5).make_kernel().expand(2, 1, 5, 5)
    y = blur("box", kernel_size=3)(x)
    alone = kernel_estimate.estimated(x[1:], y[1:], start[1:], "circular", prior_)
    x[0] = y[0] = 0.25
    found = kernel_estimate.estimated(x, y, start, "circular", prior_)
    assert torch.allclose(found[1:], alone) and found.isfinite().all()
    assert prior_ == "gaussian" or torch.allclose(found[0], start[0], atol=0.02)


def test_the_kernel_does_not_depend_on_the_range_of_the_network() -> None:
    """The same network in [-1, 1] and in [0, 1], where noise is half as wide. The noise of y is
    that of no level: at a tie rounding decides which of its formulas DDRM takes."""
    y = blur("box", kernel_size=3).measure(edges(1), sigma=0.023).y
    found = []
    for low, width in ((-1.0, 2.0), (0.0, 1.0)):
        schedule = schedules.ve(0.02 * width, 50 * width)

        def x0(x: Tensor, t: Tensor, low: float = low, width: float = width) -> Tensor:
            sigma = schedule(t).sigma.view(-1, 1, 1, 1).to(x) / width  # noqa: B023
            return low + width * (((x - low) / width - 0.5) / (1 + sigma**2) + 0.5)

        network = Denoiser(x0, predicts="x0", schedule=schedule, data_range=(low, low + width))
        given = Measurement(y, blur("unknown", kernel_size=5), 0.023)
        method = invdiff.make_method("ddrm", sigma_max=width)
        result = invdiff.solve(given, network, method, steps=10, dtype=torch.float64)
        found.append(result.unknown["kernel"])
    assert torch.allclose(*found, atol=1e-6)


def test_after_a_climb_the_measurement_has_the_noise_of_the_level() -> None:
    schedule = schedules.linear(1000)
    low, high = schedule(torch.tensor(100)), schedule(torch.tensor(600))
    measurement = Measurement(edges(1), blur("unknown", kernel_size=5).bind((3, 40, 40)), 0.02)
    noise = NoiseSource([0, 1])
    belief = Belief.at_first(measurement, low, noise)
    climbed = belief.learned(None, high, noise)  # no prediction was made
    assert climbed.measurement is not None and belief.measurement is not None
    assert climbed.measurement.sigma > belief.measurement.sigma


def test_a_known_operator_leaves_no_estimate_and_no_other_noise() -> None:
    y = blur("box", kernel_size=3).measure(edges(1), sigma=0.02).y
    given = Measurement(y, blur("box", kernel_size=3), 0.02)
    result = invdiff.solve(given, prior(3, dtype=torch.float64), "ddrm", steps=3, label=1)
    assert result.unknown == {}


def test_what_is_unknown_simulates_nothing_and_stands_alone() -> None:
    with pytest.raises(ValueError, match="kernel of this FourierBlur is unknown.*--measurement"):
        blur("unknown").measure(edges(1), sigma=0.1)
    with pytest.raises(ValueError, match="kernel of a part"):
        (blur("box") @ blur("unknown"))(edges(1))
    with pytest.raises(ValueError, match="at most 63, got 301"):
        blur("unknown", kernel_size=301)


def test_the_estimate_is_an_operator_that_is_known() -> None:
    kernel = skewed(5, 5)
    operator = blur("unknown", kernel_size=5, border="reflect").bind((3, 40, 40))
    known = operator.estimated({"kernel": kernel[None]})
    assert known.unknown == () and torch.allclose(
        known(edges(1)), blur(kernel, border="reflect")(edges(1))
    )
