"""Operators: adjoints, pseudo-inverses, proximal maps and SVDs in float64, oracles, seeds, files,
errors, deepinv's physics."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F
from torch import Tensor

from invdiff.operators.blur import Blur, FourierBlur, SeparableBlur, blur, disk
from invdiff.operators.colorize import REC601, Colorize
from invdiff.operators.compressed_sensing import CompressedSensing
from invdiff.operators.denoise import Denoise
from invdiff.operators.inpaint import Inpaint
from invdiff.operators.sr import SuperResolution
from invdiff.operators.stack import LinearStack, stack
from invdiff.operators.varying_blur import VaryingBlur
from invdiff.problem import LinearOperator, Measurement, Operator, SpectralOperator, make_operator
from invdiff.problem.composite import LinearComposition
from invdiff.problem.make import as_operator
from invdiff.problem.simulate import check_range


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Threads cost more than they bring on images this small, a hundred times more on a busy
    machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


SIZES = [(3, 17, 24), (3, 32, 20)]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# A kernel of no symmetry, with an even side, whose transform has no zeros.
SKEW = torch.tensor(
    [[0.0, 0.1, 0.0, 0.02], [0.05, 0.0, 0.6, 0.1], [0.0, 0.08, 0.05, 0.0]], dtype=torch.float64
)

OPERATORS: dict[str, Callable[[], LinearOperator]] = {
    "denoise": Denoise,
    "colorize": Colorize,
    "inpaint-random": lambda: Inpaint(),
    "inpaint-channels": lambda: Inpaint(per_channel=True),
    "inpaint-box": lambda: Inpaint("box", position="random", margin=2),
    "inpaint-soft": lambda: SoftMask(),
    "blur-circular": lambda: blur(sigma=0.6),
    "blur-wide": lambda: blur(sigma=2.0),  # ill-conditioned, and wider than the image is high
    "blur-skew": lambda: blur(SKEW),
    "blur-motion": lambda: blur("motion", kernel_size=9, seed=1),
    "blur-disk": lambda: blur("disk", kernel_size=5),
    "blur-reflect": lambda: blur(sigma=0.7, border="reflect"),
    "blur-box-replicate": lambda: blur("box", kernel_size=3, border="replicate"),
    "blur-skew-reflect": lambda: blur(SKEW, border="reflect"),
    "blur-skew-replicate": lambda: blur(SKEW, border="replicate"),
    "blur-varying": lambda: VaryingBlur(SKEW.expand(2, 3, 3, 4)),
    "compressed-sensing": CompressedSensing,
    "composition": lambda: Colorize() @ blur(SKEW, border="reflect"),  # type: ignore[dict-item, return-value]
    "stack": lambda: stack([Inpaint(), Colorize()]),  # type: ignore[dict-item, return-value]
}


def SoftMask() -> Inpaint:
    mask = rand(17, 24, seed=5)
    mask[:3] = 0
    return Inpaint(mask)


def cases() -> list:
    found = []
    for name, make in OPERATORS.items():
        sizes = SIZES[:1] if name == "inpaint-soft" else SIZES
        found += [pytest.param(make, size, id=f"{name}-{size[1]}x{size[2]}") for size in sizes]
    for kernel in ("bicubic", "box", "nearest"):
        for factor, size in (
            (2, (3, 18, 32)),
            (3, (3, 21, 15)),
            (4, (1, 20, 36)),
            (8, (3, 16, 40)),
        ):
            if kernel == "bicubic" or factor == 3:
                found.append(
                    pytest.param(
                        lambda f=factor, k=kernel: SuperResolution(f, k),
                        size,
                        id=f"sr-{kernel}-{factor}",
                    )
                )
    return found


def tolerance(operator: LinearOperator) -> float:
    """Conjugate gradients stop at 1e-6 of the normal equations; a pseudo-inverse that cuts at 1e-5
    leaves as much behind."""
    if not isinstance(operator, SpectralOperator):
        return 1e-4
    cut = isinstance(operator, Blur) and isinstance(operator, SpectralOperator)
    return 3e-5 if cut else 1e-10


def close(a: Tensor, b: Tensor, tol: float = 1e-10) -> bool:
    return a.shape == b.shape and bool((a - b).norm() <= tol * max(float(b.norm()), 1e-8))


@pytest.mark.parametrize("make, shape", cases())
class TestLinear:
    def test_adjoint_is_exact(
        self, make: Callable[[], LinearOperator], shape: tuple[int, ...]
    ) -> None:
        a = make().bind(shape)
        x, y = randn(2, *shape), randn(2, *a.measurement_shape, seed=1)
        ax = a(x)
        assert abs(float((ax * y).sum() - (x * a.adjoint(y)).sum())) < 1e-12 * float(
            ax.norm() * y.norm() + 1
        )
        assert ax.shape[1:] == a.measurement_shape
        assert a.image_shape(a.measurement_shape) == shape

    def test_pseudo_inverse(
        self, make: Callable[[], LinearOperator], shape: tuple[int, ...]
    ) -> None:
        a = make().bind(shape)
        x, y, tol = randn(2, *shape), randn(2, *a.measurement_shape, seed=1), tolerance(a)
        ax = a(x)
        assert close(a(a.pinv(ax)), ax, tol)  # A A† A = A
        if isinstance(
            a, SpectralOperator
        ):  # CG's error in A† y grows with the conditioning; it is no identity to check there
            p = a.pinv(y)
            assert close(a.pinv(a(p)), p, 1e-6)  # A† A A† = A†
            q = randn(2, *shape, seed=2)
            left, right = (a.pinv(a(q)) * x).sum(), (q * a.pinv(ax)).sum()
            assert abs(float(left - right)) < 1e-6 * float(
                q.norm() * x.norm()
            )  # A† A is self-adjoint

    def test_prox_solves_its_optimality_equation(
        self, make: Callable[[], LinearOperator], shape: tuple[int, ...]
    ) -> None:
        a = make().bind(shape)
        z, y = randn(3, *shape), randn(3, *a.measurement_shape, seed=1)
        for gamma in (0.0, 0.7, torch.tensor([0.1, 3.0, 50.0], dtype=torch.float64)):
            x = a.prox(z, y, gamma)
            g = gamma.view(-1, 1, 1, 1) if isinstance(gamma, Tensor) else gamma
            gradient = g * a.adjoint(a(x) - y) + x - z
            assert float(gradient.norm()) < (
                1e-9 if isinstance(a, SpectralOperator) else 1e-4
            ) * float(z.norm() + y.norm())

    def test_a_ridge_regularises_the_pseudo_inverse_of_each_image(
        self, make: Callable[[], LinearOperator], shape: tuple[int, ...]
    ) -> None:
        a = make().bind(shape)
        y, ridge = (
            randn(3, *a.measurement_shape, seed=1),
            torch.tensor([0.5, 0.02, 3.0], dtype=torch.float64),
        )
        x = a.pinv(y, ridge)
        normal = a.adjoint(a(x)) + ridge.view(-1, 1, 1, 1) * x
        assert close(normal, a.adjoint(y), max(tolerance(a), 1e-9))
        assert close(
            a.pinv(y, torch.tensor([0.0, 0.3, 0.3], dtype=torch.float64))[:1], a.pinv(y)[:1]
        )

    def test_svd(self, make: Callable[[], LinearOperator], shape: tuple[int, ...]) -> None:
        a = make().bind(shape)
        if type(a) in (Blur, VaryingBlur, LinearComposition, LinearStack):
            assert not isinstance(a, SpectralOperator)  # so methods that need an SVD refuse it
            return
        assert isinstance(a, SpectralOperator)
        x, y = randn(2, *shape), randn(2, *a.measurement_shape, seed=1)
        s, z, w = a.singular_values, a.Vt(x), a.Ut(y)
        assert bool((s >= 0).all()) and tuple(s.shape) == tuple(z.shape[1:]) == tuple(w.shape[1:])
        assert abs(float(z.norm() / x.norm()) - 1) < 1e-10 and close(a.V(z), x)  # V orthogonal
        assert abs(float(w.norm() / y.norm()) - 1) < 1e-10 and close(
            a.U(w), y
        )  # U orthogonal on measurements
        assert close(a.U(s * z), a(x)) and close(a.V(s * w), a.adjoint(y))
        assert close(a.Ut(a(x)), s * z)
        assert close(SpectralOperator._pinv(a, y, 0.0), a.pinv(y), 1e-6) and close(
            SpectralOperator._prox(a, x, y, 0.5), a.prox(x, y, 0.5)
        )

    def test_meta_device(self, make: Callable[[], LinearOperator], shape: tuple[int, ...]) -> None:
        a = make().bind(shape).to("meta")
        x = torch.empty(2, *shape, device="meta")
        y = a(x)
        for made, expected in (
            (y, a.measurement_shape),
            (a.adjoint(y), shape),
            (a.pinv(y), shape),
            (a.prox(x, y, 0.5), shape),
        ):
            assert made.device.type == "meta" and tuple(made.shape) == (2, *expected)

    def test_images_do_not_depend_on_each_other_and_nothing_changes(
        self, make: Callable[[], LinearOperator], shape: tuple[int, ...]
    ) -> None:
        a = make().bind(shape)
        x, random_state = randn(3, *shape).float(), torch.random.get_rng_state()
        y = a(x)
        before = {k: v.clone() for k, v in a.bind(shape).state.items()}
        for f in (
            a.__call__,
            lambda x: a.adjoint(a(x)),
            lambda x: a.pinv(a(x)),
            lambda x: a.prox(x, a(x), 2.0),
        ):
            together, alone = f(x), f(x[1:2])[0]
            assert together.dtype == torch.float32 and torch.allclose(
                together[1], alone, atol=1e-4, rtol=1e-3
            )
        assert torch.equal(a(x), y)
        assert torch.equal(make()(x), y)  # a pure function of the parameters
        assert all(torch.equal(v, before[k]) for k, v in a.bind(shape).state.items())
        assert torch.equal(torch.random.get_rng_state(), random_state)

    def test_a_measurement_survives_its_file(
        self, make: Callable[[], LinearOperator], shape: tuple[int, ...], tmp_path: Path
    ) -> None:
        x = rand(2, *shape).float()
        for sigma in (0.05, [0.1, 0.2]):
            measured = make().measure(x, sigma=sigma, seed=3)
            measured.save(tmp_path / "m.safetensors")
            read = Measurement.load(tmp_path / "m.safetensors")
            assert type(read.operator) is type(measured.operator) and read.hash == measured.hash
            assert torch.equal(read.y, measured.y) and torch.equal(
                read.operator(x), measured.operator(x)
            )
            assert torch.equal(read.residual(x), measured.residual(x))
            assert torch.equal(torch.as_tensor(read.sigma), torch.as_tensor(measured.sigma))


# Equality with other implementations --------------------------------------------------------------


@pytest.mark.parametrize("factor", [2, 3, 4, 8])
def test_bicubic_is_torchs(factor: int) -> None:
    x = rand(2, 3, 48, 24 * factor).float()
    expected = F.interpolate(
        x, size=(48 // factor, 24), mode="bicubic", antialias=True, align_corners=False
    )
    assert float((SuperResolution(factor)(x) - expected).abs().max()) < 1e-5
    by_factor = F.interpolate(
        x, scale_factor=1 / factor, mode="bicubic", antialias=True, align_corners=False
    )
    if by_factor.shape == expected.shape:
        assert float((SuperResolution(factor)(x) - by_factor).abs().max()) < 1e-5


def test_box_and_nearest() -> None:
    x = rand(1, 3, 12, 18)
    assert close(SuperResolution(3, "box")(x), F.avg_pool2d(x, 3))
    assert torch.equal(SuperResolution(3, "nearest")(x), x[..., ::3, ::3])


@pytest.mark.parametrize(
    "border, mode", [("circular", "wrap"), ("reflect", "mirror"), ("replicate", "nearest")]
)
@pytest.mark.parametrize("kernel", ["gaussian", "box", "disk", "motion", "skew"])
def test_blur_is_scipys_convolution(border: str, mode: str, kernel: str) -> None:
    operator = (
        blur(SKEW, border=border)
        if kernel == "skew"
        else blur(kernel, kernel_size=None if kernel == "gaussian" else 9, sigma=1.3, border=border)
    )
    x = rand(1, 2, 17, 24)
    expected = np.stack(
        [
            scipy.ndimage.convolve(channel, operator.make_kernel().numpy(), mode=mode)
            for channel in x[0].numpy()
        ]
    )
    assert close(operator(x)[0], torch.from_numpy(expected), 1e-12)
    if kernel == "gaussian":
        assert close(
            operator(x)[0, 0],
            torch.from_numpy(scipy.ndimage.gaussian_filter(x[0, 0].numpy(), 1.3, mode=mode)),
            1e-12,
        )


@pytest.mark.parametrize("border, mode", [("circular", "wrap"), ("reflect", "mirror")])
def test_a_gaussian_may_be_wider_along_a_row(border: str, mode: str) -> None:
    operator, x = blur(sigma=0.8, sigma_x=2.1, border=border), rand(1, 1, 17, 24)
    expected = scipy.ndimage.gaussian_filter(x[0, 0].numpy(), (0.8, 2.1), mode=mode)
    assert close(operator(x)[0, 0], torch.from_numpy(expected), 1e-12)
    with pytest.raises(ValueError, match="sigma_x, the kernel's standard deviation"):
        blur(sigma_x=0.0)
    with pytest.raises(ValueError, match="the gaussian kernel alone"):
        blur("disk", sigma_x=2.0)


def test_kernels() -> None:
    for kernel in ("gaussian", "motion", "box", "disk"):
        w = blur(kernel).make_kernel()
        assert (
            w.shape[0] == w.shape[1]
            and w.shape[0] % 2 == 1
            and bool((w >= 0).all())
            and abs(float(w.sum()) - 1) < 1e-12
        )
    assert 0 < float(disk(5)[0, 1]) < float(disk(5)[2, 2])  # the edge counts by the share it covers
    w = blur("gaussian", sigma=2.5).make_kernel()
    j = torch.arange(len(w)) - len(w) // 2
    assert abs(float((w.sum(0) * j**2).sum()) ** 0.5 - 2.5) < 0.01
    narrow, wide = (blur("motion", intensity=i, seed=2).make_kernel() for i in (0.2, 0.8))
    assert int((narrow > 0).sum()) < int((wide > 0).sum())


def test_the_class_follows_kernel_and_border() -> None:
    assert type(blur()) is type(blur("motion")) is FourierBlur
    assert (
        type(blur("box", border="reflect"))
        is type(make_operator("blur", border="replicate"))
        is SeparableBlur
    )
    assert type(blur("disk", border="reflect")) is Blur
    with pytest.raises(ValueError, match="no parameter 'sigmas'. Did you mean 'sigma'"):
        make_operator("blur", sigmas=2.0)


def test_colorize_weights_are_rec601() -> None:
    import kornia

    x = rand(2, 3, 5, 7)
    assert close(Colorize()(x), kornia.color.rgb_to_grayscale(x), 1e-7)
    assert sum(REC601) == pytest.approx(1)
    assert Colorize().image_shape((1, 5, 7)) == (3, 5, 7)


# Masks --------------------------------------------------------------------------------------------


def mask_of(shape: tuple[int, int, int] = (3, 17, 24), **parameters: object) -> Tensor:
    return Inpaint(**parameters).bind(shape).state["mask"]  # type: ignore[arg-type]


@pytest.mark.parametrize("fraction", [0.0, 0.5, 0.7, 0.92])
def test_random_masks_miss_exactly_their_fraction(fraction: float) -> None:
    expected = round(fraction * 17 * 24)
    assert int((mask_of(fraction=fraction) == 0).sum()) == expected
    per_channel = mask_of(fraction=fraction, per_channel=True)
    assert (per_channel == 0).sum((1, 2)).tolist() == [expected] * 3
    assert fraction == 0 or not torch.equal(per_channel[0], per_channel[1])


def test_random_masks_depend_on_seed_and_shape_alone() -> None:
    assert torch.equal(mask_of(seed=1), mask_of(seed=1)) and not torch.equal(
        mask_of(seed=1), mask_of(seed=2)
    )
    one, other = Inpaint(), Inpaint()
    (
        one(randn(1, 3, 8, 8)),
        one.measure(rand(5, 3, 17, 24), sigma=0.1, seed=4),
    )  # what came before does not matter
    assert torch.equal(one.bind((3, 17, 24)).state["mask"], other.bind((3, 17, 24)).state["mask"])
    with torch.random.fork_rng():
        torch.random.manual_seed(99)
        assert torch.equal(mask_of(), other.bind((3, 17, 24)).state["mask"])
    a = blur("motion", seed=3).make_kernel()
    assert torch.equal(a, blur("motion", seed=3).make_kernel()) and not torch.equal(
        a, blur("motion", seed=4).make_kernel()
    )


def test_named_masks() -> None:
    box = mask_of(mask="box", size=(5, 0.5), position=(1, 2))[0]
    assert int((box == 0).sum()) == 5 * 12 and not bool(box[1:6, 2:14].any())
    assert int((mask_of((3, 16, 24), mask="box") == 0).sum()) == 8 * 12
    assert not bool(mask_of((3, 16, 24), mask="box")[0, 4:12, 6:18].any())
    assert (
        bool(mask_of((3, 16, 24), mask="outpaint", size=6)[0, 5:11, 9:15].all())
        and int(mask_of((3, 16, 24), mask="outpaint", size=6).sum()) == 36
    )
    for seed in range(8):
        rows, columns = (
            (mask_of(mask="box", size=6, position="random", margin=3, seed=seed)[0] == 0)
            .nonzero()
            .T
        )
        assert (
            rows.min() >= 3
            and rows.max() < 14
            and columns.min() >= 3
            and columns.max() < 21
            and len(rows) == 36
        )
    assert (
        mask_of(mask="stripes", width=2, period=5, direction="horizontal")[0, :, 0].tolist()[:10]
        == [1, 1, 1, 0, 0] * 2
    )
    assert mask_of(mask="stripes", width=1, period=2)[0, 0].tolist() == [1, 0] * 12
    for side, known in (
        ("left", (slice(None), slice(12, None))),
        ("right", (slice(None), slice(12))),
        ("top", (slice(8, None), slice(None))),
    ):
        half = mask_of((3, 16, 24), mask="half", side=side)[0]
        assert bool(half[known].all()) and float(half.mean()) == 0.5


def test_mask_files(tmp_path: Path) -> None:
    from PIL import Image

    grey = (rand(17, 24) > 0.5).numpy()
    Image.fromarray((grey * 255).astype(np.uint8)).save(tmp_path / "m.png")
    white = mask_of(mask=tmp_path / "m.png")
    assert torch.equal(white[0], torch.from_numpy(grey).to(torch.float64))
    assert torch.equal(mask_of(mask=str(tmp_path / "m.png"), keep="black"), 1 - white)
    assert torch.equal(
        mask_of((3, 34, 48), mask=tmp_path / "m.png")[0],
        white[0].repeat_interleave(2, 0).repeat_interleave(2, 1),
    )
    np.save(tmp_path / "m.npy", grey)
    torch.save(torch.from_numpy(grey), tmp_path / "m.pt")
    assert torch.equal(mask_of(mask=tmp_path / "m.npy"), white) and torch.equal(
        mask_of(mask=tmp_path / "m.pt"), white
    )
    with pytest.raises(ValueError, match="17x24, the image 17x17: another aspect ratio"):
        mask_of((3, 17, 17), mask=tmp_path / "m.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="cannot be read as a mask"):
        mask_of(mask=tmp_path / "bad.png")

    measured = Inpaint(tmp_path / "m.png").measure(rand(1, 3, 17, 24))
    measured.save(tmp_path / "m.safetensors")
    (tmp_path / "m.png").unlink()  # the measurement carries its mask
    assert torch.equal(Measurement.load(tmp_path / "m.safetensors").operator.state["mask"], white)


def test_soft_masks() -> None:
    soft = SoftMask()
    x = rand(1, 3, 17, 24)
    m = soft.bind((3, 17, 24)).state["mask"]
    assert close(soft(x), m * x) and close(soft.pinv(soft(x)), torch.where(m > 1e-5, x, 0.0))


def test_masks_per_image(tmp_path: Path) -> None:
    masks = (rand(3, 1, 9, 8) > 0.4).double()
    operator, x = Inpaint(masks), rand(3, 3, 9, 8)
    assert torch.equal(operator(x), masks * x) and operator.bind((3, 9, 8)).per_image == {"mask"}
    measured = operator.measure(x, sigma=[0.1, 0.2, 0.3], seed=1)
    part = measured.select([2, 0])
    assert torch.equal(part.y, measured.y[[2, 0]]) and torch.equal(
        part.residual(x[[2, 0]]), measured.residual(x)[[2, 0]]
    )
    assert part.sigma.flatten().tolist() == pytest.approx([0.3, 0.1])
    z = operator.prox(x, measured.y, 2.0)
    assert torch.equal(part.operator.prox(x[[2, 0]], part.y, 2.0), z[[2, 0]])  # type: ignore[attr-defined]
    single = measured.select([1])
    assert torch.equal(single.operator(x[1:2]), masks[1:2] * x[1:2])
    for m in (measured, part, single):
        m.save(tmp_path / "m.safetensors")
        read = Measurement.load(tmp_path / "m.safetensors")
        assert (
            torch.equal(read.operator.state["mask"], m.operator.state["mask"])
            and read.hash == m.hash
        )
    with pytest.raises(ValueError, match="for 3 images, got a batch of 2"):
        operator(x[:2])


# Measurements -------------------------------------------------------------------------------------


def test_noise_belongs_to_the_image() -> None:
    x = rand(3, 3, 17, 24)
    sigma = [0.0, 0.1, 0.4]
    m = Denoise().measure(x, sigma=sigma, seed=5)
    assert torch.equal(m.y[0], x[0])
    for k in (1, 2):
        assert float((m.y - x)[k].std()) == pytest.approx(sigma[k], rel=0.06)
    assert torch.equal(
        Denoise().measure(x[:1], sigma=0.1, seed=5).y, Denoise().measure(x, sigma=0.1, seed=5).y[:1]
    )
    assert not torch.equal(m.y, Denoise().measure(x, sigma=sigma, seed=6).y)
    with pytest.raises(ValueError, match="one per image"):
        Denoise().measure(x, sigma=[0.1, 0.2])


def test_poisson_noise() -> None:
    gain, level = 0.02, 0.5
    m = Denoise().measure(
        torch.full((2, 1, 200, 200), level, dtype=torch.float64), sigma=0.05, gain=gain, seed=1
    )
    assert float(m.y.mean()) == pytest.approx(level, abs=2e-3)
    assert float(m.y.var()) == pytest.approx(0.05**2 + gain * level, rel=0.03)
    assert m.sigma.shape == m.y.shape and float(m.sigma.square().mean()) == pytest.approx(
        0.05**2 + gain * level, rel=0.03
    )
    pure = Denoise().measure(torch.full((1, 1, 50, 50), level, dtype=torch.float64), gain=gain)
    assert torch.allclose(pure.y / gain, (pure.y / gain).round())
    assert torch.equal(m.select([1]).sigma, m.sigma[1:])
    with pytest.raises(ValueError, match="gain"):
        Denoise().measure(torch.ones(1, 1, 4, 4), gain=-1)


def test_a_tampered_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    Inpaint(fraction=0.0).measure(rand(1, 3, 8, 8).float(), sigma=0.1).save(path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged or was edited"):
        Measurement.load(path)
    path.write_bytes(content[:100])
    with pytest.raises(ValueError, match="cannot be read"):
        Measurement.load(path)


def test_a_measurement_knows_its_range() -> None:
    x = rand(2, 3, 18, 24)
    for operator in (SuperResolution(2), Inpaint(), Colorize(), blur(border="reflect", sigma=1.0)):
        m = operator.measure(x, sigma=0.1, seed=2)
        assert close(m.to_range(-1.0, 1.0).residual(2 * x - 1), 2 * m.residual(x), 1e-9)


# Errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Inpaint("rnadom"), "mask must be one of random, box.*'rnadom'"),
        (lambda: Inpaint(fraction=1.2), "fraction.*1.2"),
        (lambda: Inpaint("box", size=1.5), "size must be pixels.*1.5"),
        (lambda: Inpaint("box", size=(3, 4, 5)), "size must be pixels"),  # type: ignore[arg-type]
        (lambda: Inpaint("box", position=(1, -2)), "position must be"),
        (lambda: Inpaint("box", margin=-1), "margin"),
        (lambda: Inpaint("stripes", width=8, period=8), "0 < width < period"),
        (
            lambda: Inpaint("half", side="up"),
            "side must be one of left, right, top, bottom, got 'up'",
        ),
        (lambda: Inpaint(keep="grey"), "keep must be one of"),
        (lambda: Inpaint(torch.full((4, 4), 255.0)), r"values in \[0, 1\].*255"),
        (lambda: Inpaint(torch.ones(4)), "mask tensor is"),
        (
            lambda: Inpaint(torch.ones(4, 5)).bind((3, 5, 4)),
            r"\(1, 4, 5\), but images are \(3, 5, 4\)",
        ),
        (lambda: Inpaint(torch.ones(2, 4, 5)).bind((3, 4, 5)), "1 or 3 channels"),
        (lambda: Inpaint("box", size=30).bind((3, 17, 24)), "larger than the image of 17x24"),
        (lambda: Inpaint("box", size=10, position=(10, 0)).bind((3, 17, 24)), "leaves the image"),
        (
            lambda: Inpaint("box", size=10, position="random", margin=4).bind((3, 17, 24)),
            "does not fit",
        ),
        (lambda: Inpaint().bind((17, 24)), r"\(C, H, W\)"),
        (lambda: blur("gausian"), "kernel must be one of gaussian, motion, box, disk.*'gausian'"),
        (
            lambda: blur(border="zeros"),
            "border must be one of circular, reflect, replicate, valid, got 'zeros'",
        ),
        (lambda: blur(sigma=0.0), "sigma.*positive, got 0.0"),
        (lambda: blur("box", kernel_size=4), "odd number of pixels, e.g. 9, got 4"),
        (lambda: blur("motion", intensity=2.0), "intensity"),
        (lambda: blur(torch.zeros(3, 3)), "not all zeros"),
        (lambda: blur(torch.ones(2, 3, 3)), "two dimensions"),
        (
            lambda: blur(border="reflect", sigma=3.0)(torch.zeros(1, 3, 8, 40)),
            "25x25 pixels reaches beyond an image of 8x40",
        ),
        (lambda: SuperResolution(1), "factor must be a whole number"),
        (lambda: SuperResolution(2.5), "factor must be a whole number"),  # type: ignore[arg-type]
        (
            lambda: SuperResolution(4, "lanczos"),
            "kernel must be one of bicubic, box, nearest, got 'lanczos'",
        ),
        (
            lambda: SuperResolution(4)(torch.zeros(1, 3, 18, 24)),
            "18x24 is not divisible by the factor 4: crop the image to 16x24 or pad it to 20x24",
        ),
        (lambda: Colorize()(torch.zeros(1, 1, 8, 8)), r"RGB images.*\(1, 8, 8\)"),
        (lambda: Colorize().pinv(torch.zeros(1, 3, 8, 8)), "measures one channel"),
        (lambda: SuperResolution(2).bind((3, 8, 8)).pinv(torch.zeros(1, 3, 8, 8)), r"\(3, 4, 4\)"),
        (lambda: Inpaint().bind((3, 8, 8))(torch.zeros(1, 3, 8, 9)), "bound to images"),
        (lambda: Denoise().singular_values, "bind this"),
    ],
)
def test_errors_say_what_is_wrong(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_kernel_files(tmp_path: Path) -> None:
    from PIL import Image

    np.save(tmp_path / "k.npy", SKEW.numpy())
    torch.save(SKEW, tmp_path / "k.pt")
    Image.fromarray((SKEW.numpy() * 255).astype(np.uint8)).save(tmp_path / "k.png")
    for name in ("k.npy", "k.pt"):
        assert torch.equal(blur(tmp_path / name).make_kernel(), SKEW)
    assert float(blur(tmp_path / "k.png").make_kernel().sum()) == pytest.approx(1)
    measured = blur(tmp_path / "k.npy", border="reflect").measure(rand(1, 1, 9, 10))
    measured.save(tmp_path / "m.safetensors")
    (tmp_path / "k.npy").unlink()
    assert close(
        Measurement.load(tmp_path / "m.safetensors").operator(rand(1, 1, 9, 10)), measured.y
    )


# deepinv ------------------------------------------------------------------------------------------


def physics_cases() -> dict[str, Callable[[], object]]:
    import deepinv

    from invdiff.problem.physics import motion_kernel

    physics, filters = deepinv.physics, motion_kernel(7, 0.5, 0).float()[None, None]
    generator = torch.Generator().manual_seed(0)
    return {
        "inpainting": lambda: physics.Inpainting(
            (3, 16, 20), mask=0.5, rng=generator, noise_model=physics.GaussianNoise(0.1)
        ),
        "decolorize": physics.Decolorize,
        "denoising": lambda: physics.Denoising(),
        "blurfft": lambda: physics.BlurFFT((3, 16, 20), filter=filters),
        "blurfft-odd": lambda: physics.BlurFFT((3, 16, 21), filter=filters),
        "blur": lambda: physics.Blur(filter=filters, padding="reflect"),
        "downsampling": lambda: physics.Downsampling(
            img_size=(3, 16, 20), factor=2, filter="bicubic"
        ),
    }


@pytest.mark.parametrize(
    "name",
    ["inpainting", "decolorize", "denoising", "blurfft", "blurfft-odd", "blur", "downsampling"],
)
def test_deepinv_physics_become_operators(name: str) -> None:
    physics = physics_cases()[name]()
    shape = (3, 16, 21) if name == "blurfft-odd" else (3, 16, 20)
    before = {k: v.clone() for k, v in physics.state_dict().items()}  # type: ignore[attr-defined]
    operator, random_state = as_operator(physics), torch.random.get_rng_state()
    assert isinstance(operator, LinearOperator)
    bound = operator.bind(shape)
    assert isinstance(bound, SpectralOperator) == (
        name in ("inpainting", "denoising", "blurfft", "blurfft-odd")
    )
    x = randn(2, *shape)
    y = randn(2, *bound.measurement_shape, seed=1)
    assert torch.allclose(operator(x.float()), physics.A(x.float()), atol=1e-5)  # type: ignore[attr-defined]
    ax = operator(x)
    assert ax.dtype == torch.float64
    assert abs(float((ax * y).sum() - (x * operator.adjoint(y)).sum())) < 1e-5 * float(
        ax.norm() * y.norm()
    )
    assert close(
        operator(operator.pinv(ax)), ax, 5e-3 if name == "blur" else 1e-3
    )  # conjugate gradients, ill-conditioned
    z = operator.prox(x, y, 0.5)
    assert float((0.5 * operator.adjoint(operator(z) - y) + z - x).norm()) < 1e-4 * float(
        x.norm() + y.norm()
    )
    if isinstance(bound, SpectralOperator):
        assert float(bound.Vt(x).norm()) == pytest.approx(float(x.norm()), rel=1e-6) and close(
            bound.V(bound.Vt(x)), x, 1e-6
        )
        assert close(bound.U(bound._like(x).singular_values * bound.Vt(x)), ax, 1e-6)  # type: ignore[attr-defined]
    if name != "decolorize":
        assert operator.image_shape(bound.measurement_shape) == shape
    m = Measurement(ax, operator.bind(shape), 0.1)
    assert float(m.loss(x).max()) == 0 and m.image_shape == shape
    assert bound.to("meta").measurement_shape == bound.measurement_shape
    assert all(torch.equal(v, before[k]) for k, v in physics.state_dict().items())  # type: ignore[attr-defined]
    assert torch.equal(torch.random.get_rng_state(), random_state)


def test_ours_agree_with_deepinvs() -> None:
    import deepinv

    x = rand(2, 3, 16, 20).float()
    mask = mask_of((3, 16, 20)).float()
    pairs: list[tuple[LinearOperator, object, float]] = [
        (Inpaint(mask), deepinv.physics.Inpainting((3, 16, 20), mask=mask), 1e-6),
        (Colorize(), deepinv.physics.Decolorize(), 3e-4),  # its weights are rounded
    ]
    for k in (SKEW[:, :3], SKEW):
        pairs.append(
            (blur(k), deepinv.physics.BlurFFT((3, 16, 20), filter=k.float()[None, None]), 1e-5)
        )
    for ours, theirs, tol in pairs:
        y = ours(x)
        assert close(y, theirs.A(x), tol)  # type: ignore[attr-defined]
        assert close(ours.adjoint(y), theirs.A_adjoint(y), tol) and close(
            ours.pinv(y), theirs.A_dagger(y), 10 * tol
        )  # type: ignore[attr-defined]


def test_deepinv_masks_per_image() -> None:
    import deepinv

    masks = (rand(3, 1, 8, 10) > 0.4).float()
    operator, x = (
        as_operator(deepinv.physics.Inpainting((3, 8, 10), mask=masks)),
        rand(3, 3, 8, 10).float(),
    )
    m = operator.measure(x)
    assert torch.equal(m.y, masks * x) and isinstance(m.operator, SpectralOperator)
    part = m.select([2, 1])
    assert float(part.loss(x[[2, 1]]).max()) == 0
    assert torch.equal(part.operator.pinv(part.y), m.operator.pinv(m.y)[[2, 1]])  # type: ignore[attr-defined]


def test_nonlinear_deepinv_physics_and_unknown_sizes() -> None:
    import deepinv

    square = deepinv.physics.Physics(A=lambda x, **_: x**2)
    operator = as_operator(square)
    assert isinstance(operator, Operator) and not isinstance(operator, LinearOperator)
    x = rand(2, 3, 8, 8)
    assert torch.equal(operator.measure(x).y, x**2)
    pool = deepinv.physics.Physics(A=lambda x, **_: F.max_pool2d(x, 2))
    with pytest.raises(ValueError, match="does not tell which images.*bind"):
        Measurement(rand(1, 3, 4, 4), pool)
    assert Measurement(rand(1, 3, 4, 4), as_operator(pool).bind((3, 8, 8))).image_shape == (3, 8, 8)
    with pytest.raises(ValueError, match="does not work on images"):
        as_operator(deepinv.physics.Decolorize()).bind((1, 8, 8))
    with pytest.raises(TypeError, match="deepinv Physics"):
        as_operator(object())


def test_an_operator_of_ones_own_is_ten_lines() -> None:
    @dataclasses.dataclass(frozen=True, eq=False)
    class Scale(LinearOperator):
        factor: float = 2.0

        def _forward(self, x: Tensor) -> Tensor:
            return self.factor * x

        def _adjoint(self, y: Tensor) -> Tensor:
            return self.factor * y

    x = randn(2, 5)
    assert close(Scale(3.0).pinv(Scale(3.0)(x)), x, 1e-6)
    with pytest.raises(ValueError, match="not registered"):
        Scale().measure(x).save("unused.safetensors")


def test_log_likelihood_is_the_density() -> None:
    x, std = rand(3, 3, 8, 6), rand(3, 3, 8, 6).abs() + 0.1
    for operator, sigma in ((Denoise(), 0.3), (Denoise(), [0.1, 0.2, 0.3]), (Denoise(), std)):
        m = operator.measure(x, sigma=sigma, seed=1)
        scale = torch.as_tensor(m.sigma, dtype=torch.float64).expand(x.shape)
        expected = torch.distributions.Normal(x, scale).log_prob(m.y).flatten(1).sum(1)
        assert close(m.log_likelihood(x), expected, 1e-9)
    mask = (rand(8, 6) > 0).double()
    m = Inpaint(mask=mask).measure(x, sigma=0.3)
    density = torch.distributions.Normal(mask * x, 0.3).log_prob(m.y)
    assert close(
        m.log_likelihood(x), (mask * density).flatten(1).sum(1), 1e-9
    )  # over what was measured only


def test_consistency_is_the_misfit_in_units_of_the_noise() -> None:
    x = rand(3, 3, 40, 40)
    per_image, per_pixel = [0.1, 0.2, 0.3], rand(3, 3, 40, 40).abs() + 0.1
    for operator in (
        Denoise(),
        Inpaint(fraction=0.6),
        stack(["inpaint", "blur"]),
        CompressedSensing(),
    ):
        for sigma in (
            0.3,
            per_image,
            *([per_pixel] if isinstance(operator, (Denoise, Inpaint)) else []),
        ):
            m = operator.measure(x, sigma=sigma, seed=1)
            assert bool(((m.consistency(x) - 1).abs() < 0.04).all()), (
                "the truth is away by the noise, complex noise included"
            )
    mask = (rand(40, 40) > 0).double()
    m, other = Inpaint(mask=mask).measure(x, sigma=per_image), rand(3, 3, 40, 40)
    expected = (mask * (other - m.y)).flatten(1).norm(dim=1) / (
        torch.tensor(per_image, dtype=torch.float64) * (3 * mask.sum()).sqrt()
    )
    assert close(m.consistency(other), expected, 1e-9)  # over the m values that were measured
    assert close(m.to_range(-1, 1).consistency(2 * other - 1), expected, 1e-9), (
        "the same in a network's range"
    )


def test_consistency_is_undefined_without_noise() -> None:
    x, mask = rand(2, 3, 4, 4), torch.ones(4, 4, dtype=torch.float64)
    assert bool(Denoise().measure(x).consistency(x).isnan().all())
    assert Denoise().measure(x, sigma=[0.0, 0.1]).consistency(x).isnan().tolist() == [True, False]
    mask[0] = 0
    silent = 0.1 * mask.expand(1, 3, 4, 4)
    assert bool(Inpaint(mask=mask).measure(x, sigma=silent).consistency(x).isfinite().all()), (
        "where nothing is measured sigma says nothing"
    )
    assert bool(Denoise().measure(x, sigma=silent).consistency(x).isnan().all())


def test_nothing_is_measured_under_the_mask() -> None:
    """Neither noise nor what stood there: y is zero, and the residual of the truth is that of the
    known pixels."""
    mask = (rand(8, 6) > 0).double()
    x = rand(2, 3, 8, 6)
    assert bool((Inpaint(mask=mask).measure(x, sigma=0.5).y[..., mask == 0] == 0).all())
    assert close(
        Measurement(x, Inpaint(mask=mask), 0.1).norm(x), torch.zeros(2, dtype=torch.float64), 1e-12
    )


@pytest.mark.parametrize(
    ("x", "how"),
    [
        (torch.linspace(-1, 1, 768).view(1, 3, 16, 16), r"from -1 to 1, .* give \(x \+ 1\) / 2"),
        (torch.linspace(0, 255, 256).view(1, 1, 16, 16), "from 0 to 255, .* give x / 255"),
    ],
)
def test_images_in_another_range_are_told(x: torch.Tensor, how: str) -> None:
    with pytest.warns(UserWarning, match=how):
        make_operator("denoise").measure(x)


@pytest.mark.parametrize(
    "x",
    [
        torch.linspace(-0.3, 1.3, 768).view(1, 3, 16, 16),  # noisy images
        torch.linspace(-5, 5, 1024).view(1, 4, 16, 16),  # latents
        torch.linspace(-5, 5, 48).view(1, 3, 4, 4),  # a toy
        torch.empty(1, 3, 16, 16, device="meta"),
    ],
    ids=["noisy", "latent", "toy", "meta"],
)
@pytest.mark.filterwarnings("error")
def test_what_is_no_image_has_any_range(x: torch.Tensor) -> None:
    if x.is_meta:
        check_range(x)
    else:
        make_operator("denoise").measure(x)
