"""Baselines: classical restorations against independent formulas, deepinv's samplers against
deepinv called by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import deepinv
import numpy as np
import pytest
import torch
from oracles import rand
from PIL import Image
from scipy.fft import idctn
from skimage.restoration import denoise_tv_chambolle
from torch import Tensor

from invdiff import schedules
from invdiff.benchmarks.baselines import TotalVariation, Wiener, make_baseline
from invdiff.benchmarks.peers import AsDenoiser, Spectral
from invdiff.network import Autoencoder, Denoiser, count_evaluations
from invdiff.noise import seed_of
from invdiff.operators.blur import FourierBlur
from invdiff.plugins.registry import UnknownNameError, list_plugins
from invdiff.problem import Measurement, SpectralOperator, make_operator
from invdiff.sampling import NonFiniteError

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSICAL = ["pinv", "bicubic", "biharmonic", "tv", "wiener"]
PEERS = ["deepinv_dps", "deepinv_ddrm", "deepinv_diffpir"]
SIDE = 16


def images(
    count: int = 2, channels: int = 3, height: int = SIDE, width: int = SIDE, seed: int = 0
) -> Tensor:
    """Smooth images well inside [0, 1]."""
    coarse = rand(count, channels, 4, 4, seed=seed)
    smooth = torch.nn.functional.interpolate(
        coarse, size=(height, width), mode="bicubic", align_corners=True
    )
    return (0.5 + 0.1 * smooth).clamp(0.1, 0.9).float()


def measured(
    name: str, x: Tensor, noise: Any = 0.025, gain: float = 0.0, **parameters: Any
) -> Measurement:
    return make_operator(name, **parameters).measure(x, sigma=noise, seed=1, gain=gain)


# A pixel's prior N(1/2, S²) on [0, 1], by its exact eps on [-1, 1].
S = 0.2
SCHEDULE = schedules.linear(1000)


def eps(x: Tensor, t: Tensor) -> Tensor:
    level = SCHEDULE(t.double())
    alpha, sigma = (v.to(x).view(-1, 1, 1, 1) for v in (level.alpha, level.sigma))
    return sigma * x / (alpha**2 * (2 * S) ** 2 + sigma**2)


PRIOR = Denoiser(
    eps, predicts="eps", schedule=SCHEDULE, data_range=(-1.0, 1.0), channels=3, name="gaussian"
)


class ByHand(deepinv.models.Denoiser):  # type: ignore[misc, name-defined]
    """The same prior in deepinv's convention, from its formula."""

    def forward(self, x: Tensor, sigma: Any, *args: Any, **kwargs: Any) -> Tensor:
        variance = float(sigma) ** 2
        return ((S**2 * x + variance * 0.5) / (S**2 + variance)).clamp(0, 1)


def restored(
    name: str,
    measurement: Measurement,
    denoiser: Denoiser | None = PRIOR,
    *,
    seed: int = 0,
    image_ids: Any = None,
    **p: Any,
) -> Tensor:
    small = {"steps": 8} if name in PEERS else {"iterations": 50} if name == "tv" else {}
    return make_baseline(name, **(small | p))(measurement, denoiser, seed=seed, image_ids=image_ids)


# All ----------------------------------------------------------------------------------------------


def test_names_and_parameters_are_checked() -> None:
    with pytest.raises(
        UnknownNameError,
        match=r"unknown baseline 'weiner'\. Did you mean 'wiener'\? Known: bicubic, biharmonic",
    ):
        make_baseline("weiner")
    with pytest.raises(
        ValueError, match=r"baseline 'tv' has no parameter 'wieght'\. Did you mean 'weight'\?"
    ):
        make_baseline("tv", wieght=2.0)
    with pytest.raises(ValueError, match="steps of baseline 'deepinv_ddrm' is a number"):
        make_baseline("deepinv_ddrm", steps="many")
    refused: list[tuple[str, str, Any]] = [
        ("tv", "weight", 0.0),
        ("tv", "iterations", 0),
        ("wiener", "power", -1.0),
        ("wiener", "iterations", 0),
        ("deepinv_dps", "guidance", "both"),
        ("deepinv_dps", "weight", -1.0),
        ("deepinv_diffpir", "steps", 1),
        ("deepinv_diffpir", "zeta", 1.1),
        ("deepinv_diffpir", "lambda_", 0.0),
    ]
    for name, parameter, value in refused:
        with pytest.raises(ValueError, match=f"^{parameter} must be .*got {value!r}"):
            make_baseline(name, **{parameter: value})
    networks = {name for name in list_plugins("baselines") if make_baseline(name).network}
    assert networks == set(PEERS)


FITTING = {"bicubic": ("sr", {"factor": 2})}


@pytest.mark.parametrize("name", list_plugins("baselines"))
@pytest.mark.parametrize("sigma", [0.05, [0.05, 0.1, 0.02]], ids=["one sigma", "a sigma each"])
def test_an_image_alone_is_the_image_in_a_batch(name: str, sigma: Any) -> None:
    operator, parameters = FITTING.get(
        name, ("inpaint", {"mask": (rand(3, 1, SIDE, SIDE, seed=5) > 0).double()})
    )
    measurement = measured(operator, images(3), sigma, **parameters)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index, union-attr]
    x = restored(name, measurement, seed=3)
    assert torch.equal(torch.get_rng_state(), before) and np.array_equal(
        np.random.get_state()[1], numpy_before
    )  # type: ignore[index]
    assert (
        x.shape == (3, 3, SIDE, SIDE)
        and x.dtype == torch.float32
        and bool((x >= 0).all() & (x <= 1).all())
    )
    alone = restored(name, measurement.select([2]), seed=3, image_ids=[2])
    torch.testing.assert_close(alone, x[2:], atol=1e-5, rtol=0)
    if name in PEERS:
        assert torch.equal(alone, x[2:])
        assert not torch.allclose(
            restored(name, measurement.select([2]), seed=3), alone, atol=1e-3
        )  # image 0's noise
        assert not torch.allclose(
            restored(name, measurement.select([2]), seed=4, image_ids=[2]), alone, atol=1e-3
        )


@pytest.mark.parametrize(
    ("name", "operator", "parameters", "why"),
    [
        (
            "bicubic",
            "inpaint",
            {},
            r"enlarges a smaller image by a whole factor; this measurement has shape \(3, 16, 16\)",
        ),
        ("bicubic", "compressed_sensing", {}, "enlarges a smaller image"),
        ("bicubic", "stack", {}, "enlarges a smaller image"),
        (
            "biharmonic",
            "sr",
            {"factor": 2},
            "restores from a DiagonalOperator; SuperResolution is none",
        ),
        ("biharmonic", "denoise", {}, "none is missing here"),
        *(
            (name, "jpeg", {}, "restores from a LinearOperator; JPEG is none")
            for name in ("pinv", "tv", "wiener", "deepinv_diffpir")
        ),
        (
            "deepinv_ddrm",
            "stack",
            {},
            "restores from a SpectralOperator; stack of Inpaint, SuperResolution is none",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    name: str, operator: str, parameters: dict[str, Any], why: str
) -> None:
    with pytest.raises(ValueError, match=why):
        restored(name, measured(operator, images(), **parameters))


def test_what_is_no_image_is_refused() -> None:
    measurement = measured("matrix", rand(2, 12).float())
    for name in list_plugins("baselines"):
        with pytest.raises(ValueError, match=r"images of shape \(C, H, W\), got \(12,\)"):
            restored(name, measurement)
    with pytest.raises(ValueError, match="image_ids must name each of the 2 images, got 1"):
        restored("pinv", measured("denoise", images()), image_ids=[0])


# Classical ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operator", "parameters"), [("inpaint", {}), ("sr", {"factor": 2}), ("blur", {"sigma": 0.5})]
)
def test_pinv_fits_the_measurement(operator: str, parameters: dict[str, Any]) -> None:
    measurement = measured(operator, images(), 0.0, **parameters)
    torch.testing.assert_close(
        measurement.operator(restored("pinv", measurement)), measurement.y, atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_bicubic_is_pillows(channels: int) -> None:
    measurement = measured("sr", images(channels=channels), factor=4)
    expected = [
        [
            np.asarray(Image.fromarray(c.numpy()).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
            for c in y
        ]
        for y in measurement.y
    ]
    torch.testing.assert_close(
        restored("bicubic", measurement),
        torch.tensor(np.array(expected)).clamp(0, 1),
        atol=1e-5,
        rtol=0,
    )


def test_bicubic_makes_a_grey_image_of_a_grey_measurement() -> None:
    x = restored(
        "bicubic", measured("compose", images(), parts=["colorize", {"name": "sr", "factor": 2}])
    )
    assert x.shape == (2, 3, SIDE, SIDE) and torch.equal(x[:, 0], x[:, 2])


@pytest.mark.parametrize("channels", [1, 3])
def test_biharmonic_keeps_what_is_known_and_continues_straight_lines(channels: int) -> None:
    rows, columns = torch.arange(SIDE)[:, None] / SIDE, torch.arange(SIDE) / SIDE
    ramp = (0.2 + 0.3 * rows + 0.2 * columns).expand(2, 3, SIDE, SIDE)
    mask = torch.ones(channels, SIDE, SIDE)
    mask[..., 3:-3, 3:-3] = (
        rand(channels, SIDE - 6, SIDE - 6) > 0
    ).float()  # scikit-image has another stencil at the border
    measurement = measured("inpaint", ramp, 0.0, mask=mask)
    torch.testing.assert_close(restored("biharmonic", measurement), ramp, atol=1e-5, rtol=0)
    noisy = measured("inpaint", ramp, 0.05, mask=mask)
    known = mask.expand(ramp.shape) > 0
    torch.testing.assert_close(
        restored("biharmonic", noisy)[known], noisy.y[known], atol=1e-6, rtol=0
    )


def test_biharmonic_undoes_the_mask_of_pixels_seen_in_part() -> None:
    mask = torch.ones(SIDE, SIDE)
    mask[::2] = 0.5
    mask[5:7, 5:7] = 0
    x = images()
    restoration = restored("biharmonic", measured("inpaint", x, 0.0, mask=mask))
    torch.testing.assert_close(restoration[..., mask > 0], x[..., mask > 0], atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="an image has none"):
        restored("biharmonic", measured("inpaint", x, mask=torch.zeros(SIDE, SIDE)))


def energy(measurement: Measurement, x: Tensor, strength: Tensor) -> Tensor:
    """½ ‖A x − y‖² + lambda TV(x) of every image, written out."""
    down = torch.nn.functional.pad(x[..., 1:, :] - x[..., :-1, :], (0, 0, 0, 1))
    right = torch.nn.functional.pad(x[..., :, 1:] - x[..., :, :-1], (0, 1))
    return 0.5 * measurement.loss(x) + strength.flatten() * (down**2 + right**2).sqrt().flatten(
        1
    ).sum(1)


@pytest.mark.parametrize(
    ("operator", "parameters"), [("inpaint", {}), ("sr", {"factor": 2}), ("blur", {"sigma": 1.0})]
)
def test_tv_converges(operator: str, parameters: dict[str, Any]) -> None:
    measurement = measured(operator, images(), [0.02, 0.06], **parameters)
    tv = TotalVariation()
    strength = tv.strength(measurement)
    assert strength.flatten().tolist() == pytest.approx([1.5 * 0.02**1.5, 1.5 * 0.06**1.5])
    start, x = (
        energy(measurement, v, strength) for v in (measurement.linear_estimate(), tv(measurement))
    )
    best = energy(measurement, TotalVariation(iterations=2000)(measurement), strength)
    assert bool((x < 0.9 * start).all())
    torch.testing.assert_close(x, best, rtol=2e-3, atol=0)


def test_tv_needs_no_decomposition() -> None:
    blur = make_operator("blur", kernel="disk", kernel_size=3, border="reflect").bind((1, 8, 8))
    assert not isinstance(blur, SpectralOperator)
    columns = blur(torch.eye(64).view(64, 1, 8, 8)).flatten(1)
    measurement = blur.measure(images(2, 1, 8, 8), sigma=[0.02, 0.06])
    dense = Measurement(
        measurement.y.flatten(1),
        make_operator("matrix", matrix=columns.T).bind((1, 8, 8)),
        [0.02, 0.06],
    )
    x, expected = (restored("tv", m) for m in (measurement, dense))
    torch.testing.assert_close(x, expected, atol=1e-3, rtol=0)


def test_tv_denoising_is_scikit_images() -> None:
    measurement = measured("denoise", images(), 0.1)
    weight = float(TotalVariation().strength(measurement)[0])
    for y, x in zip(measurement.y, TotalVariation(iterations=1000)(measurement), strict=True):
        expected = [
            denoise_tv_chambolle(c.double().numpy(), weight=weight, eps=1e-10, max_num_iter=5000)
            for c in y
        ]
        torch.testing.assert_close(x, torch.tensor(np.array(expected)).float(), atol=2e-3, rtol=0)


def test_tv_fits_a_measurement_without_noise() -> None:
    measurement = measured("inpaint", images(), 0.0, fraction=0.5)
    x = TotalVariation()(measurement)
    assert float(measurement.residual(x).abs().max()) < 1e-3
    assert float((x - images()).abs().mean()) < 0.02


@pytest.mark.parametrize(
    ("operator", "parameters"),
    [
        ("inpaint", {}),
        ("sr", {"factor": 2}),
        ("blur", {"sigma": 1.0}),
        ("compressed_sensing", {}),
        ("stack", {"parts": ["inpaint", "blur"]}),
    ],
)
def test_wiener_is_the_dense_solution(operator: str, parameters: dict[str, Any]) -> None:
    sigma = torch.tensor([0.03, 0.1], dtype=torch.float64)
    measurement = measured(operator, images(2, 1, 6, 8).double(), sigma, **parameters)
    units = torch.eye(48, dtype=torch.float64).view(48, 1, 6, 8)
    a = measurement.operator(units).flatten(1).T
    waves = (
        torch.tensor(idctn(units.numpy(), axes=(2, 3), norm="ortho")).flatten(1).T
    )  # columns: D^-1 of unit vectors
    rows, columns = np.arange(6) / 12, np.arange(8) / 16
    squared = rows[:, None] ** 2 + columns**2
    squared[0, 0] = 1 / 32**2
    c = waves @ torch.diag(torch.tensor(2e-3 / squared).flatten()) @ waves.T
    half = torch.full((48,), 0.5, dtype=torch.float64)
    for y, s, x in zip(
        measurement.y.flatten(1), sigma, Wiener(power=2e-3)(measurement), strict=True
    ):
        expected = half + c @ a.T @ torch.linalg.solve(
            a @ c @ a.T + s**2 * torch.eye(len(a), dtype=torch.float64), y - a @ half
        )
        torch.testing.assert_close(x.flatten().double(), expected.clamp(0, 1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["pinv", "biharmonic", "tv", "wiener"])
def test_noise_that_differs_between_pixels_counts_by_its_mean_square(name: str) -> None:
    measurement = measured("inpaint", images(), 0.01, gain=0.01)
    flat = Measurement(
        measurement.y, measurement.operator, measurement.sigma.square().flatten(1).mean(1).sqrt()
    )
    torch.testing.assert_close(restored(name, measurement), restored(name, flat), atol=1e-5, rtol=0)


# Peers --------------------------------------------------------------------------------------------

BY_HAND: dict[str, Callable[[], Any]] = {
    "deepinv_dps": lambda: deepinv.sampling.DPS(
        ByHand(), weight=2.0, guidance="annealed", num_steps=9
    ),
    "deepinv_ddrm": lambda: deepinv.sampling.DDRM(
        ByHand(), sigmas=np.linspace(1, 0, 8), eta=0.7, etab=0.9
    ),
    "deepinv_diffpir": lambda: deepinv.sampling.DiffPIR(
        ByHand(), deepinv.optim.data_fidelity.L2(), sigma=0.05, max_iter=8, zeta=0.4, lambda_=5.0
    ),
}
SAME: dict[str, dict[str, Any]] = {
    "deepinv_dps": {"weight": 2.0, "guidance": "annealed"},
    "deepinv_ddrm": {"eta": 0.7, "etab": 0.9},
    "deepinv_diffpir": {"zeta": 0.4, "lambda_": 5.0},
}


@pytest.mark.parametrize("name", PEERS)
def test_peers_are_deepinv_called_by_hand(name: str) -> None:
    measurement = measured("inpaint", images(), 0.05, fraction=0.5)
    mask = measurement.operator.state["mask"].float().expand(3, SIDE, SIDE)
    physics = deepinv.physics.Inpainting(
        (3, SIDE, SIDE), mask=mask, noise_model=deepinv.physics.GaussianNoise(0.05)
    )
    with count_evaluations() as evaluations:
        x = restored(name, measurement, seed=3, image_ids=[4, 5], **SAME[name])
    for k in (0, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of("sampling", 3, 4 + k))
            expected = BY_HAND[name]()(measurement.y[k : k + 1], physics)
        torch.testing.assert_close(x[k : k + 1], expected.float().clamp(0, 1), atol=2e-3, rtol=0)
    assert (evaluations.forward, evaluations.backward) == (16, 16 if name == "deepinv_dps" else 0)


@pytest.mark.parametrize(
    ("operator", "parameters"),
    [
        ("inpaint", {}),
        ("sr", {"factor": 2}),
        ("blur", {"sigma": 1.0}),
        ("colorize", {}),
        ("denoise", {}),
    ],
)
def test_a_decomposition_stays_one(operator: str, parameters: dict[str, Any]) -> None:
    ours = (
        make_operator(operator, **parameters)
        .bind((3, 6, 9 if operator != "sr" else 8))
        .to(dtype=torch.float64)
    )
    assert isinstance(ours, SpectralOperator) and ours.shape is not None
    physics, theirs = Spectral(ours, 0.1), deepinv.physics.DecomposablePhysics
    x, w = rand(2, *ours.shape), rand(2, *ours.shape, seed=2)
    z, y = physics.V_adjoint(x), ours(x)
    assert not z.is_complex() and float(physics.noise_model.sigma) == pytest.approx(0.1)
    for got, expected in (
        (physics.V(z), x),
        (physics.U_adjoint(physics.U(physics.mask * z)), physics.mask * z),
        (theirs.A(physics, x), y),
        (theirs.A_adjoint(physics, y), ours.adjoint(y)),
        (theirs.prox_l2(physics, w, y, 3.0), physics.prox_l2(w, y, 3.0)),
    ):
        torch.testing.assert_close(got, expected, atol=1e-8, rtol=0)


def test_ddrm_has_the_noise_of_deepinvs_fourier_blur() -> None:
    measurement = measured("blur", images(1), 0.05, sigma=1.0)
    kernel = measurement.operator.make_kernel().float()[None, None]  # type: ignore[attr-defined]
    physics = deepinv.physics.BlurFFT(
        (3, SIDE, SIDE), filter=kernel, noise_model=deepinv.physics.GaussianNoise(0.05)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("sampling", 0, 0))
        expected = BY_HAND["deepinv_ddrm"]()(measurement.y, physics)
    torch.testing.assert_close(
        restored("deepinv_ddrm", measurement, **SAME["deepinv_ddrm"]),
        expected.clamp(0, 1),
        atol=2e-3,
        rtol=0,
    )


@dataclass(frozen=True, eq=False)
class Shuffled(FourierBlur):
    """Complex singular vectors in another order than those of a Fourier transform."""

    def _vt(self, x: Tensor) -> Tensor:
        return super()._vt(x).roll(3, -1)

    def _v(self, z: Tensor) -> Tensor:
        return super()._v(z.roll(-3, -1))


def test_other_complex_decompositions_are_refused() -> None:
    x = images(1)
    blur = Shuffled(sigma=1.0).bind(tuple(x.shape[1:]))
    Spectral(FourierBlur(sigma=1.0).bind(tuple(x.shape[1:])), 0.1)
    with pytest.raises(ValueError, match="which are no Fourier transform"):
        Spectral(blur, 0.1)


def test_the_network_is_asked_in_deepinvs_units() -> None:
    net, hand = AsDenoiser(PRIOR), ByHand()
    x = rand(2, 3, 4, 4).float()
    for sigma in (0.02, 0.3, torch.tensor(5.0)):
        torch.testing.assert_close(net(x, sigma), hand(x, sigma), atol=2e-3, rtol=0)
    torch.testing.assert_close(
        net(x, 0.0), hand(x, float(SCHEDULE(0).ratio) / 2), atol=2e-3, rtol=0
    )


@pytest.mark.parametrize(
    ("name", "measurement", "why"),
    [
        ("deepinv_diffpir", lambda: measured("inpaint", images(), 0.0), "weighs by 1/sigma²"),
        (
            "deepinv_diffpir",
            lambda: measured("inpaint", images(), gain=0.01),
            "one sigma per image",
        ),
        ("deepinv_ddrm", lambda: measured("inpaint", images(), gain=0.01), "one sigma per image"),
    ],
)
def test_noise_that_deepinv_cannot_take_is_refused(
    name: str, measurement: Callable[[], Measurement], why: str
) -> None:
    with count_evaluations() as evaluations, pytest.raises(ValueError, match=why):
        restored(name, measurement())
    assert evaluations.forward == 0


def test_networks_that_deepinv_cannot_take_are_refused() -> None:
    measurement = measured("inpaint", images())
    with pytest.raises(ValueError, match="samples with a network; give it a denoiser"):
        restored("deepinv_ddrm", measurement, None)
    with pytest.raises(ValueError, match="works on images with 1 channels, got 3"):
        restored("deepinv_ddrm", measurement, PRIOR.read_as(channels=1))
    with pytest.raises(ValueError, match="is conditioned on an image"):
        restored("deepinv_ddrm", measurement, PRIOR.read_as(cond_channels=3))
    latent = PRIOR.read_as(
        autoencoder=Autoencoder(
            lambda x: x[..., ::2, ::2], lambda z: z.repeat(1, 1, 2, 2), factor=2, channels=3
        )
    )
    with pytest.raises(ValueError, match="works on images; gaussian is a latent network"):
        restored("deepinv_ddrm", measurement, latent)


def test_peers_restore_from_a_nonlinear_operator_and_without_noise() -> None:
    x = images()
    for name, measurement in {
        "deepinv_dps": measured("quantize", x),
        "deepinv_ddrm": measured("inpaint", x, 0.0),
    }.items():
        assert bool(restored(name, measurement).isfinite().all())


def test_what_diverges_says_so() -> None:
    with pytest.raises(
        NonFiniteError,
        match=r"DPS turned non-finite; other parameters may hold it, of DPS\(steps=8, "
        r"weight=1e\+300",
    ):
        restored("deepinv_dps", measured("inpaint", images(1)), weight=1e300)
