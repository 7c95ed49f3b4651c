"""The further operators: equality with independent definitions, gradients, composites and their
files, the literature's protocols."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import scipy.fft
import scipy.ndimage
import torch
import torch.nn.functional as F
from torch import Tensor

import invdiff
from invdiff.config import build_operator, compose, protocols
from invdiff.operators.blur import FourierBlur, blur
from invdiff.operators.colorize import Colorize
from invdiff.operators.compressed_sensing import CompressedSensing
from invdiff.operators.denoise import Denoise
from invdiff.operators.hdr import HighDynamicRange
from invdiff.operators.inpaint import Inpaint
from invdiff.operators.jpeg import JPEG
from invdiff.operators.nonlinear_blur import NonlinearBlur, light, response
from invdiff.operators.phase_retrieval import PhaseRetrieval
from invdiff.operators.quantize import Quantize
from invdiff.operators.sr import SuperResolution
from invdiff.operators.stack import Stack, stack
from invdiff.operators.varying_blur import VaryingBlur
from invdiff.problem import LinearOperator, Measurement, Operator, SpectralOperator, make_operator


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


SHAPE = (3, 17, 24)
KERNEL = torch.tensor(
    [[0.0, 0.1, 0.0, 0.02], [0.05, 0.0, 0.6, 0.1], [0.0, 0.08, 0.05, 0.0]], dtype=torch.float64
)


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(a: Tensor, b: Tensor, tol: float = 1e-12) -> bool:
    return a.shape == b.shape and bool((a - b).norm() <= tol * max(float(b.norm()), 1e-8))


def kernels() -> Tensor:
    """Six kernels without symmetry that each sum to one."""
    made = rand(2, 3, 3, 4, seed=3)
    return made / made.sum((-2, -1), keepdim=True)


def masked() -> Operator:
    """A composition and, inside a stack, tensors as parameters: what a file must find again."""
    mask = (rand(17, 24, seed=5) > 0.4).double()
    return stack(
        [
            Inpaint(mask) @ blur(KERNEL),
            {"name": "compose", "parts": ["denoise", {"name": "inpaint", "mask": "half"}]},
        ]
    )


CASES: dict[str, Callable[[], Operator]] = {
    "phase": PhaseRetrieval,
    "phase-signed": lambda: PhaseRetrieval(1.3, (-1.0, 1.0)),
    "jpeg": JPEG,
    "jpeg-444": lambda: JPEG(50, "4:4:4"),
    "hdr": HighDynamicRange,
    "hdr-overexposed": lambda: HighDynamicRange(3.0, 0.0),
    "quantize": Quantize,
    "compressed-sensing": CompressedSensing,
    "nonlinear-blur": lambda: NonlinearBlur(9, exposure=1.4),
    "nonlinear-blur-circular": lambda: NonlinearBlur(9, border="circular"),
    "varying": lambda: VaryingBlur(sigma=(0.5, 1.5)),
    "varying-motion": lambda: VaryingBlur("motion", (2, 1), kernel_size=9, border="circular"),
    "varying-tensor": lambda: VaryingBlur(kernels(), border="replicate"),
    "composition": lambda: Colorize() @ blur(sigma=0.7, border="reflect"),
    "composition-nonlinear": lambda: Quantize(8) @ HighDynamicRange() @ blur(KERNEL),
    "stack": lambda: stack([Inpaint(fraction=0.5), Colorize(), blur(KERNEL)]),
    "stack-nested": masked,
    "stack-nonlinear": lambda: stack([Colorize(), PhaseRetrieval()]),
}
LINEAR = [name for name, make in CASES.items() if isinstance(make(), LinearOperator)]


# What every operator promises ---------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_deterministic_per_image_and_unchanged(name: str) -> None:
    a, x, random_state = CASES[name](), rand(3, *SHAPE), torch.random.get_rng_state()
    y = a(x)
    assert tuple(y.shape[1:]) == a.bind(SHAPE).measurement_shape and bool(y.isfinite().all())
    assert torch.equal(CASES[name]()(x), y) and torch.equal(a(x), y)
    assert close(a(x[1:2])[0], y[1])
    single = a(x.float())
    assert single.dtype == torch.float32
    assert (
        float((single - y).abs().mean()) < 1e-3
    )  # a value at the edge of a quantisation step may fall to the other side
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert a.fit(SHAPE) == SHAPE


@pytest.mark.parametrize("name", CASES)
def test_meta(name: str) -> None:
    a, x = (
        CASES[name]().bind(SHAPE).to("meta"),
        torch.empty(2, *SHAPE, device="meta", requires_grad=True),
    )
    y = a(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert (
        y.device.type == gradient.device.type == "meta"
        and tuple(y.shape[1:]) == a.measurement_shape
    )
    if isinstance(a, LinearOperator):
        for made in (a.adjoint(y), a.pinv(y), a.prox(x, y, 0.5)):
            assert tuple(made.shape) == (2, *SHAPE) and made.device.type == "meta"


@pytest.mark.parametrize("name", CASES)
def test_a_measurement_survives_its_file(name: str, tmp_path: Path) -> None:
    x = rand(2, *SHAPE).float()
    for sigma in (0.05, [0.1, 0.2]):
        measured = CASES[name]().measure(x, sigma=sigma, seed=3)
        measured.save(tmp_path / "m.safetensors")
        read = Measurement.load(tmp_path / "m.safetensors")
        assert type(read.operator) is type(measured.operator) and read.hash == measured.hash
        assert torch.equal(read.y, measured.y) and torch.equal(
            read.operator(x), measured.operator(x)
        )
        json.dumps(measured.describe())
    part = measured.select([1])
    assert torch.allclose(part.norm(x[1:]), measured.norm(x)[1:], atol=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_a_measurement_knows_its_range(name: str) -> None:
    x = rand(2, *SHAPE)
    m = CASES[name]().measure(x, sigma=0.1, seed=2)
    ranged = m.to_range(-1.0, 1.0)
    scale = 2 if name in LINEAR else 1
    assert (
        close(ranged.residual(2 * x - 1), scale * m.residual(x), 1e-9)
        and ranged.sigma == scale * m.sigma
    )
    assert torch.allclose(ranged.log_likelihood(2 * x - 1).diff(), m.log_likelihood(x).diff())
    ones = torch.ones_like(m.y)
    assert torch.equal(ranged.operator._observed(ones), m.operator._observed(ones))


@pytest.mark.parametrize("name", LINEAR)
class TestLinear:
    def test_adjoint(self, name: str) -> None:
        a = CASES[name]().bind(SHAPE)
        assert isinstance(a, LinearOperator)
        x, y = rand(2, *SHAPE) - 0.5, rand(2, *a.measurement_shape, seed=1) - 0.5
        ax = a(x)
        assert abs(float((ax * y).sum() - (x * a.adjoint(y)).sum())) < 1e-12 * float(
            ax.norm() * y.norm()
        )

    def test_pseudo_inverse_and_prox(self, name: str) -> None:
        a = CASES[name]().bind(SHAPE)
        assert isinstance(a, LinearOperator)
        x, y = rand(2, *SHAPE), rand(2, *a.measurement_shape, seed=1)
        ax, tol = (
            a(x),
            1e-12 if isinstance(a, SpectralOperator) else 1e-3,
        )  # of conjugate gradients that are ill-conditioned
        assert close(a(a.pinv(ax)), ax, tol)
        ridge = torch.tensor([0.5, 3.0], dtype=torch.float64)
        z = a.pinv(y, ridge)
        assert close(a.adjoint(a(z)) + ridge.view(-1, 1, 1, 1) * z, a.adjoint(y), 1e-5)
        p = a.prox(x, y, ridge)
        gradient = ridge.view(-1, 1, 1, 1) * a.adjoint(a(p) - y) + p - x
        assert float(gradient.norm()) < 1e-5 * float(x.norm() + y.norm())


SMOOTH: dict[str, Callable[[], Operator]] = {
    "phase": PhaseRetrieval,
    "nonlinear-blur": lambda: NonlinearBlur(3, exposure=1.2),
    "varying": lambda: VaryingBlur(kernels()),
    "composition": lambda: PhaseRetrieval() @ blur(KERNEL),
    "stack": lambda: stack([PhaseRetrieval(), Denoise()]),
    "hdr": HighDynamicRange,
}


@pytest.mark.parametrize("name", SMOOTH)
def test_gradients(name: str) -> None:
    x = rand(1, 1, 5, 6, seed=8).requires_grad_()
    assert torch.autograd.gradcheck(SMOOTH[name](), (x,))


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_finite_everywhere(name: str) -> None:
    for value in (-0.2, 0.0, 0.5, 1.0, 1.3):
        x = torch.full((1, *SHAPE), value, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(CASES[name]()(x).sum(), x)
        assert bool(gradient.isfinite().all())


# Equality with independent definitions ------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 16, 24), (1, 15, 9)])
def test_phase_retrieval_is_the_literatures(shape: tuple[int, int, int]) -> None:
    x = rand(2, *shape)

    def magnitudes(image: np.ndarray) -> np.ndarray:
        h, w = (int(2.0 / 8 * n) for n in shape[1:])
        padded = np.pad(image, ((0, 0), (0, 0), (h, h), (w, w)))
        centred = np.fft.fftn(np.fft.ifftshift(padded, axes=(-2, -1)), axes=(-2, -1), norm="ortho")
        return np.abs(np.fft.fftshift(centred, axes=(-2, -1)))

    assert close(PhaseRetrieval()(x), torch.from_numpy(magnitudes(x.numpy())))
    assert close(
        PhaseRetrieval(data_range=(-1.0, 1.0))(x), torch.from_numpy(magnitudes(2 * x.numpy() - 1))
    )
    for side in range(1, 70):
        bound = PhaseRetrieval(1.7).bind((3, side, 8))
        assert bound.image_shape(bound.measurement_shape) == (3, side, 8)
    assert PhaseRetrieval().bind((3, 256, 256)).measurement_shape == (3, 384, 384)


def pillow(image: np.ndarray, quality: int, subsampling: int) -> np.ndarray:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling=subsampling)
    return np.asarray(Image.open(file)).astype(np.float64) / 255


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(((a - b) ** 2).mean() + 1e-12))


@pytest.mark.parametrize("quality", [5, 10, 50, 90])
def test_jpeg_is_pillows(quality: int) -> None:
    import skimage.data

    photo = skimage.data.astronaut()[60:187, 90:191]  # odd sides
    x = torch.from_numpy(photo).permute(2, 0, 1)[None].double() / 255
    for name, subsampling in (("4:2:0", 2), ("4:4:4", 0)):
        theirs, ours = (
            pillow(photo, quality, subsampling),
            JPEG(quality, name)(x)[0].permute(1, 2, 0).numpy(),
        )
        assert (
            psnr(ours, theirs) > 39
            and abs(psnr(ours, photo / 255) - psnr(theirs, photo / 255)) < 0.3
        )
    grey = photo[..., 1]
    ours = JPEG(quality)(x[:, 1:2])[0, 0].numpy()
    assert psnr(ours, pillow(grey, quality, 0)) > 45  # no colours that are rounded between


def test_jpeg_quantises_and_lets_gradients_through() -> None:
    x = (0.3 + 0.4 * rand(1, 1, 16, 24)).requires_grad_()  # so that nothing clips
    y = JPEG(20)(x)
    assert close(JPEG(20)(y).detach(), y.detach()) and not close(y.detach(), x.detach(), 0.01)
    weights = rand(1, 1, 16, 24, seed=1)
    (gradient,) = torch.autograd.grad((y * weights).sum(), x)
    assert close(gradient, weights)  # straight through: the transforms cancel


def test_hdr_is_daps_clipping() -> None:
    x = 3 * rand(2, *SHAPE) - 1
    signed = torch.clip((2 * x - 1) * 2, -1, 1)
    assert close(HighDynamicRange()(x), (signed + 1) / 2)
    assert close(HighDynamicRange(1.5, 0.0)(x), (1.5 * x).clip(0, 1))


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_quantisation(bits: int) -> None:
    x = rand(2, *SHAPE).requires_grad_()
    y = Quantize(bits)(x)
    expected = np.round(x.detach().numpy() * (2**bits - 1)) / (2**bits - 1)
    assert torch.equal(y, torch.from_numpy(expected)) and len(y.unique()) <= 2**bits
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert close(gradient, torch.ones_like(x))
    assert set(Quantize(1)(torch.tensor([[-3.0, 0.2, 0.7, 9.0]])).flatten().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("shape", [(3, 17, 24), (1, 8, 8)])
def test_compressed_sensing_is_a_randomised_cosine_transform(shape: tuple[int, int, int]) -> None:
    a, x = CompressedSensing(0.3, seed=4).bind(shape), rand(2, *shape)
    signs, mask = a.state["signs"], a.state["mask"]
    assert (
        signs.abs().eq(1).all()
        and abs(float(signs.mean())) < 0.3
        and int(mask.sum()) == round(0.3 * mask.numel())
    )
    transformed = scipy.fft.dctn((signs * x).numpy(), axes=(-2, -1), norm="ortho")
    assert close(a(x), mask * torch.from_numpy(transformed))
    y = a(x)
    assert (
        isinstance(a, SpectralOperator)
        and close(a.pinv(y), a.adjoint(y))
        and close(a(a.adjoint(y)), y)
    )
    assert (
        close(a.V(a.Vt(x)), x)
        and close(a.U(a.singular_values * a.Vt(x)), y)
        and a.singular_values.ndim == 3
    )
    noisy = a.measure(x, sigma=0.5)
    assert bool((noisy.y[:, mask == 0] == 0).all()) and bool((noisy.y[:, mask == 1] != 0).all())
    assert not torch.equal(CompressedSensing(0.3, seed=5).bind(shape).state["mask"], mask)


def test_nonlinear_blur_averages_light() -> None:
    import kornia

    x = rand(2, *SHAPE)
    assert close(light(x), kornia.color.rgb_to_linear_rgb(x), 1e-6) and close(
        response(light(x)), x, 1e-12
    )
    a = NonlinearBlur(9, seed=2, exposure=1.3)
    kernel = blur("motion", kernel_size=9, seed=2).make_kernel().numpy()
    blurred = np.stack(
        [scipy.ndimage.convolve(c, kernel, mode="mirror") for c in light(x)[0].numpy()]
    )
    assert close(a(x)[0], response(torch.from_numpy(1.3 * blurred).clamp(max=1)), 1e-10)
    grey = torch.full((1, *SHAPE), 0.4, dtype=torch.float64)
    assert close(NonlinearBlur(9)(grey), grey, 1e-10)
    bright = x.clone()
    bright[..., 8, 12] = (
        1.0  # a highlight outweighs dark pixels more than a blur of values makes it
    )
    assert (
        float(
            (
                NonlinearBlur(9)(bright) - blur("motion", kernel_size=9, border="reflect")(bright)
            ).mean()
        )
        > 0
    )


@pytest.mark.parametrize(
    "border, mode", [("circular", "wrap"), ("reflect", "mirror"), ("replicate", "nearest")]
)
def test_varying_blur_interpolates_blurs(border: str, mode: str) -> None:
    x, w = rand(1, *SHAPE), kernels()
    expected = np.zeros(SHAPE)
    for i in range(2):
        for j in range(3):
            blurred = np.stack(
                [scipy.ndimage.convolve(c, w[i, j].numpy(), mode=mode) for c in x[0].numpy()]
            )
            rows = np.interp(np.arange(17), [0, 16], [1 - i, i])
            columns = np.interp(np.arange(24), [0, 11.5, 23], np.eye(3)[j])
            expected += rows[:, None] * columns * blurred
    assert close(VaryingBlur(w, border=border)(x)[0], torch.from_numpy(expected))
    same = KERNEL.expand(2, 2, 3, 4)
    assert close(VaryingBlur(same, border=border)(x), blur(KERNEL, border=border)(x))
    assert close(
        VaryingBlur(border=border, sigma=(0.5, 1.0))(torch.ones_like(x)), torch.ones_like(x)
    )


def test_kernels_of_the_varying_blur() -> None:
    made = VaryingBlur(sigma=(0.5, 2.0)).make_kernels()
    widths = made.amax((-2, -1))
    assert widths[1, 1] > widths[0, 1] > widths[0, 0] == widths[2, 2] and made.shape == (
        3,
        3,
        17,
        17,
    )
    moved = VaryingBlur("motion", seed=1).make_kernels()
    assert not torch.equal(moved[0, 0], moved[0, 1]) and torch.equal(
        moved, VaryingBlur("motion", seed=1).make_kernels()
    )


# Composition and stack ----------------------------------------------------------------------------


def test_composition() -> None:
    blurred, sr = blur(sigma=1.0), SuperResolution(4)
    a, x = sr @ blurred, rand(2, 3, 16, 24)
    assert (
        isinstance(a, LinearOperator)
        and close(a(x), sr(blurred(x)))
        and a.measure(x).operator.shape == (3, 16, 24)
    )
    y = rand(2, 3, 4, 6, seed=1)
    assert close(a.adjoint(y), blurred.adjoint(sr.adjoint(y))) and a.image_shape((3, 4, 6)) == (
        3,
        16,
        24,
    )
    assert a.fit((3, 19, 27)) == (3, 16, 24) and (SuperResolution(3) @ SuperResolution(2)).fit(
        (3, 100, 50)
    ) == (3, 96, 48)
    made = make_operator(
        "compose", parts=[{"name": "blur", "sigma": 1.0}, {"name": "sr", "factor": 4}]
    )
    assert (
        close(made(x), a(x))
        and made.kind == "SuperResolution @ Blur"
        or a.bind((3, 16, 24)).kind == "SuperResolution @ FourierBlur"
    )
    assert not isinstance(HighDynamicRange() @ blurred, LinearOperator)
    assert isinstance(a.bind((3, 16, 24)).parts[0], FourierBlur)  # type: ignore[attr-defined]
    dense = torch.stack(
        [
            a(e.view(1, 3, 16, 24)).flatten()
            for e in torch.eye(3 * 16 * 24, dtype=torch.float64)[:40]
        ],
        1,
    )
    assert close(
        dense,
        torch.stack(
            [
                sr(blurred(e.view(1, 3, 16, 24))).flatten()
                for e in torch.eye(1152, dtype=torch.float64)[:40]
            ],
            1,
        ),
    )


def test_stack_joins_measurements_with_noise_of_their_own() -> None:
    parts = [Inpaint(fraction=0.5), SuperResolution(2)]
    both, x = stack(parts).bind((3, 16, 24)), rand(2, 3, 16, 24)
    assert isinstance(both, Stack) and isinstance(both, LinearOperator)
    first, second = both.split(both(x))
    assert close(first, parts[0](x)) and close(second, parts[1](x))
    measured = both.measure(x, sigma=both.per_part([0.01, 0.3]), seed=1)
    noise = [a - b for a, b in zip(both.split(measured.y), both.split(both(x)), strict=True)]
    assert float(noise[0].std()) < 0.02 and float(noise[1].std()) == pytest.approx(0.3, rel=0.1)
    missing = (
        both.split(torch.ones(1, *both.measurement_shape))[0]
        - both.split(both._observed(torch.ones(1, *both.measurement_shape)))[0]
    )
    assert (
        bool((both.split(measured.y)[0][:, missing[0] == 1] == 0).all())
        and int(missing.sum()) == 3 * 192
    )
    expected = sum(
        torch.distributions.Normal(0.0, s).log_prob(n).flatten(1)[:, keep].sum(1)
        for s, n, keep in (
            (0.01, noise[0], (missing[0] == 0).flatten()),
            (0.3, noise[1], slice(None)),
        )
    )
    assert close(measured.log_likelihood(x), torch.as_tensor(expected), 1e-6)
    with pytest.raises(ValueError, match="one sigma per image"):
        measured.image_sigma("DDRM")
    assert stack([SuperResolution(2), SuperResolution(3)]).fit((3, 25, 29)) == (3, 24, 24)
    assert Measurement(measured.y, stack([p.bind((3, 16, 24)) for p in parts])).image_shape == (
        3,
        16,
        24,
    )


def test_parts_with_masks_per_image(tmp_path: Path) -> None:
    masks, x = (rand(3, 1, *SHAPE[1:]) > 0.4).double(), rand(3, *SHAPE)
    for operator in (
        Denoise() @ Inpaint(masks),
        stack([Inpaint(masks), Denoise()]),
        HighDynamicRange() @ Inpaint(masks),
    ):
        measured = operator.measure(x, sigma=[0.1, 0.2, 0.3])
        part = measured.select([2, 0])
        assert torch.equal(part.residual(x[[2, 0]]), measured.residual(x)[[2, 0]])
        assert torch.equal(
            part.to_range(-1, 1).norm(x[[2, 0]]), measured.to_range(-1, 1).norm(x)[[2, 0]]
        )
        part.save(tmp_path / "m.safetensors")
        assert Measurement.load(tmp_path / "m.safetensors").hash == part.hash


def test_a_part_carries_its_mask_file(tmp_path: Path) -> None:
    np.save(tmp_path / "mask.npy", (rand(17, 24) > 0.5).numpy())
    measured = (Denoise() @ Inpaint(tmp_path / "mask.npy")).measure(rand(1, *SHAPE))
    measured.save(tmp_path / "m.safetensors")
    (tmp_path / "mask.npy").unlink()
    assert float(Measurement.load(tmp_path / "m.safetensors").norm(rand(1, *SHAPE))) == 0


def test_deepinv_physics_as_parts() -> None:
    import deepinv

    x = rand(2, *SHAPE)
    a = blur(KERNEL) @ invdiff.make_operator(
        deepinv.physics.Inpainting(SHAPE, mask=0.5, rng=torch.Generator().manual_seed(0))
    )
    assert (
        isinstance(a, LinearOperator)
        and a(x.float()).dtype == torch.float32
        and a(x).dtype == torch.float64
    )
    with pytest.raises(ValueError, match="not registered"):
        a.measure(x).describe()


# Solving, by name ---------------------------------------------------------------------------------


def tiny() -> invdiff.Denoiser:
    return invdiff.Denoiser(
        lambda x, t: 0.9 * x + 0.01 * torch.roll(x, 1, -1),
        schedule=invdiff.schedules.linear(100),
        data_range=(-1.0, 1.0),
    )


NEW = [
    "phase_retrieval",
    "jpeg",
    "hdr",
    "quantize",
    "compressed_sensing",
    "nonlinear_blur",
    "varying_blur",
    "compose",
    "stack",
]


@pytest.mark.parametrize("name", NEW)
def test_every_operator_is_solved_by_dps(name: str) -> None:
    small = {"nonlinear_blur": {"kernel_size": 9}, "varying_blur": {"sigma": (0.5, 1.5)}}
    x = rand(2, 3, 16, 20).float()
    m = make_operator(name, **small.get(name, {})).measure(x, sigma=[0.02, 0.05])
    result = invdiff.solve(m, tiny(), "dps", steps=4, seed=1)
    alone = invdiff.solve(m.select([1]), tiny(), "dps", steps=4, seed=1, image_ids=[1])
    assert result.x.shape == x.shape and bool(result.x.isfinite().all())
    assert torch.allclose(alone.x, result.x[1:], atol=1e-4)
    plain = invdiff.solve(m, tiny(), "none", steps=4, seed=1)
    assert not torch.equal(plain.x, result.x)


PROTOCOLS = [
    f"dps_{t}"
    for t in (
        "box",
        "random",
        "gaussian_blur",
        "motion_blur",
        "sr",
        "phase_retrieval",
        "nonlinear_blur",
    )
]
PROTOCOLS += [p.replace("dps_", "daps_") for p in PROTOCOLS] + ["daps_hdr"]


@cache
def protocol(name: str, **more: str | tuple[str, ...]) -> tuple[Operator, dict]:
    config = compose(name, ["dps"], "photo64", **more)  # type: ignore[arg-type]
    return build_operator(config), config


def test_the_literatures_protocols_are_there() -> None:
    assert set(PROTOCOLS) <= set(protocols()) and not set(protocols()) & set(
        invdiff.list_plugins("operators")
    )
    for name in PROTOCOLS:
        operator, config = protocol(name)
        assert (
            config["sigma"] == (0.05 if "phase" in name else 0.025) and config["protocol"] == name
        )
        assert set(operator.parameters) >= set(config["operator"]) - {"name"}
        bound = operator.bind((3, 64, 64) if name != "daps_box" else (3, 128, 128))
        assert bound.measurement_shape


def test_protocols_are_the_literatures() -> None:
    x = rand(1, 3, 64, 68)
    for source, margin in (("dps", 16), ("daps", 32)):
        missing = (protocol(f"{source}_box")[0].bind((3, 256, 256)).state["mask"][0] == 0).nonzero()
        assert len(missing) == 128**2 and (missing.amax(0) - missing.amin(0)).tolist() == [127, 127]
        assert missing.min() >= margin and missing.max() < 256 - margin
    for name, share in (("dps_random", 0.92), ("daps_random", 0.7)):
        mask = protocol(name)[0].bind((3, 256, 256)).state["mask"]
        assert mask.shape == (1, 256, 256) and int((mask == 0).sum()) == round(share * 256**2)
    # Their code: a unit pulse through scipy's gaussian filter in 61x61, then a convolution after
    # reflection padding.
    pulse = np.zeros((61, 61))
    pulse[30, 30] = 1
    kernel = torch.from_numpy(scipy.ndimage.gaussian_filter(pulse, sigma=3.0))
    theirs = F.conv2d(
        F.pad(x, (30,) * 4, mode="reflect").transpose(0, 1), kernel[None, None]
    ).transpose(0, 1)
    assert close(protocol("dps_gaussian_blur")[0](x), theirs, 1e-12)
    motion = protocol("dps_motion_blur")[0]
    assert (
        motion.make_kernel().shape == (61, 61)
        and motion.border == "reflect"
        and motion.intensity == 0.5
    )  # type: ignore[attr-defined]
    small = F.interpolate(x, scale_factor=0.25, mode="bicubic", antialias=True)
    assert close(protocol("dps_sr")[0](x), small, 1e-12)
    assert protocol("dps_phase_retrieval")[0].bind((3, 256, 256)).measurement_shape == (
        3,
        *(256 + 2 * int(2.0 / 8 * 256),) * 2,
    )
    assert close(protocol("daps_hdr")[0](x), (torch.clip(2 * (2 * x - 1), -1, 1) + 1) / 2)


def test_presets_do_not_change_a_protocol() -> None:
    operator, config = protocol("dps_box", preset="paper")
    assert (
        config["preset"] == "paper_dps_inpaint"
        and config["steps"] == 1000
        and config["operator"]["mask"] == "box"
    )
    operator, config = protocol("dps_random", overrides=("operator.fraction=0.5", "sigma=0.1"))
    assert operator.fraction == 0.5 and config["sigma"] == 0.1  # type: ignore[attr-defined]


@pytest.mark.slow
def test_solve_by_the_name_of_a_protocol(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from invdiff.commands.main import main

    assert (
        main(
            ["solve", "--operator", "dps_sr", "--steps", "2", "--output", str(tmp_path), "--quiet"]
        )
        == 0
    )
    record = json.loads((tmp_path / "result.json").read_text())
    assert record["config"]["protocol"] == "dps_sr" and record["config"]["operator"]["name"] == "sr"
    assert main(["solve", "--operator", "dps_blurr", "--steps", "2"]) == 2
    assert "Protocols: daps_box" in capsys.readouterr().err
    assert main(["list", "protocols"]) == 0 and "dps_motion_blur" in capsys.readouterr().out
    parts = "operator.parts=[{name: blur, sigma: 1}, {name: sr, factor: 2}]"
    assert (
        main(
            [
                "solve",
                "--operator",
                "compose",
                "--steps",
                "2",
                "--output",
                str(tmp_path / "c"),
                "--quiet",
                parts,
            ]
        )
        == 0
    )
    saved = Measurement.load(tmp_path / "c" / "measurement.safetensors")
    assert saved.operator.parts[0].sigma == 1 and saved.y.shape[-1] == 64  # type: ignore[attr-defined]
    again = [
        "solve",
        "--measurement",
        str(tmp_path / "c" / "measurement.safetensors"),
        "--steps",
        "2",
        "--quiet",
    ]
    assert main([*again, "--output", str(tmp_path / "d")]) == 0


# Errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: PhaseRetrieval(-1), "oversample must be.*-1"),
        (lambda: PhaseRetrieval(data_range=(1.0, 0.0)), "low < high"),
        (lambda: PhaseRetrieval().bind((16,)), r"\(C, H, W\)"),
        (
            lambda: PhaseRetrieval(8.0).image_shape((3, 16, 16)),
            "no image side gives measurements of 16 pixels",
        ),
        (lambda: JPEG(0), "quality must be a whole number from 1 to 100, got 0"),
        (
            lambda: JPEG(subsampling="4:1:1"),
            "subsampling must be one of 4:2:0, 4:2:2, 4:4:0, 4:4:4",
        ),
        (lambda: JPEG().bind((4, 8, 8)), r"grey \(1, H, W\) or RGB \(3, H, W\)"),
        (lambda: HighDynamicRange(0.0), "scale must be positive"),
        (lambda: HighDynamicRange(pivot=2.0), r"pivot must be in \[0, 1\]"),
        (lambda: Quantize(0), "bits must be a whole number from 1 to 16, got 0"),
        (lambda: CompressedSensing(0.0), r"fraction.*\(0, 1\], got 0.0"),
        (lambda: NonlinearBlur(4), "odd number of pixels"),
        (lambda: NonlinearBlur(exposure=0.0), "exposure must be positive"),
        (lambda: NonlinearBlur(61).bind((3, 16, 16)), "reaches beyond an image of 16x16"),
        (lambda: VaryingBlur("disc"), "kernel must be one of gaussian, motion or a tensor"),
        (lambda: VaryingBlur(torch.ones(3, 3)), r"\(rows, columns, k, l\)"),
        (lambda: VaryingBlur(grid=(0, 3)), "at least one node"),
        (lambda: VaryingBlur(grid=3), "grid must be a pair"),  # type: ignore[arg-type]
        (lambda: VaryingBlur(border="zeros"), "border must be one of"),
        (lambda: VaryingBlur().bind((3, 8, 8)), "reaches beyond an image of 8x8"),
        (lambda: make_operator("compose", parts=[]), "parts must be a list of operators"),
        (lambda: make_operator("compose", parts=["blurr"]), "Did you mean 'blur'"),
        (lambda: make_operator("compose", parts=[{"sigma": 2}]), r"got \{'sigma': 2\}"),
        (
            lambda: make_operator("compose", parts=[{"name": "blur", "sgma": 2}]),
            "no parameter 'sgma'",
        ),
        (lambda: Measurement(torch.zeros(1, 99), stack(["denoise"])), "bind it first"),
        (lambda: stack(["denoise", "sr"]).per_part([1, 2]), "bind this stack"),
        (lambda: stack(["denoise", "colorize"]).bind(SHAPE).per_part([1.0]), "each of the 2 parts"),  # type: ignore[attr-defined]
        (
            lambda: (SuperResolution(4) @ Denoise())(torch.zeros(1, 3, 18, 24)),
            "not divisible by the factor 4",
        ),
        (lambda: Inpaint("box", margin=0.7), "share of the side below 0.5"),
    ],
)
def test_errors_say_what_is_wrong(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
