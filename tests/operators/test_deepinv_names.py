"""deepinv's physics by name: every class runs or is refused with the reason; what runs is saved and
read back, and a wrong adjoint is found out."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import invdiff
from invdiff.benchmarks.digest import operator_version
from invdiff.operators.deepinv import members
from invdiff.plugins.registry import UnknownNameError, list_plugins, name_of
from invdiff.plugins.registry import members as members_of
from invdiff.problem import LinearOperator, Measurement, SpectralOperator, make_operator
from invdiff.problem.views import View

RGB, GREY, PAIR, VIDEO = (3, 16, 16), (1, 16, 16), (2, 16, 16), (2, 4, 16, 16)
KERNEL = torch.ones(1, 1, 3, 3) / 9
COLUMNS = torch.zeros(16, 16).index_fill(1, torch.tensor([0, 3, 7, 8, 12]), 1.0)
HALF: dict[str, Any] = {"name": "deepinv:Inpainting", "mask": 0.5}
MATRIX: dict[str, Any] = {"name": "deepinv:CompressedSensing", "m": 40, "dtype": "complex64"}
COILS = torch.complex(torch.rand(1, 2, 16, 16), torch.rand(1, 2, 16, 16))
RUNS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "Blur": (RGB, {"filter": KERNEL, "padding": "circular"}),
    "BlurFFT": (RGB, {"filter": KERNEL}),
    "BlurFFTMultiScaler": (RGB, {"physics": {"name": "deepinv:BlurFFT", "filter": KERNEL}}),
    "BlurMultiScaler": (RGB, {"physics": {"name": "deepinv:Blur", "filter": KERNEL}}),
    "CompressedSensing": (RGB, {"m": 40}),
    "Decolorize": (RGB, {}),
    "DecomposablePhysics": (RGB, {}),
    "Demosaicing": (RGB, {}),
    "Denoising": (RGB, {}),
    "Downsampling": (RGB, {"filter": "bicubic", "factor": 4}),
    "DownsamplingMatlab": (RGB, {"factor": 4}),
    "DynamicMRI": (VIDEO, {"mask": COLUMNS}),
    "HyperSpectralUnmixing": (RGB, {"M": torch.rand(3, 5), "E": 3, "C": 5}),
    "Inpainting": (RGB, {"mask": 0.5}),
    "InpaintingMultiScaler": (RGB, {"physics": HALF}),
    "LinearPhysics": (RGB, {}),
    "LinearPhysicsMultiScaler": (RGB, {"physics": HALF}),
    "MRI": (PAIR, {"mask": COLUMNS}),
    "MultiCoilMRI": (PAIR, {"mask": COLUMNS, "coil_maps": COILS}),
    "Pansharpen": (RGB, {}),
    "PhaseRetrieval": (GREY, {"B": MATRIX}),
    "Physics": (RGB, {}),
    "PhysicsCropper": (RGB, {"physics": {"name": "deepinv:Denoising"}, "crop": [2, 2]}),
    "PhysicsMultiScaler": (RGB, {"physics": HALF}),
    "Ptychography": (GREY, {}),
    "PtychographyLinearOperator": (GREY, {}),
    "RandomPhaseRetrieval": (GREY, {"m": 60}),
    "Scattering": (
        GREY,
        {"receivers": 2 * torch.rand(2, 6), "transmitters": 2 + torch.rand(2, 3)},
    ),
    "SequentialMRI": (PAIR, {}),
    "SinglePhotonLidar": (RGB, {"bins": 8}),
    "SinglePixelCamera": (RGB, {"m": 50}),
    "SpaceVaryingBlur": (
        RGB,
        {"filters": KERNEL.expand(1, 1, 2, 3, 3), "multipliers": torch.rand(1, 1, 2, 16, 16)},
    ),
    "SpatialUnwrapping": (RGB, {}),
    "StackedLinearPhysics": (RGB, {"physics_list": [{"name": "deepinv:Denoising"}, HALF]}),
    "StackedPhysics": (RGB, {"physics_list": [{"name": "deepinv:SpatialUnwrapping"}, HALF]}),
    "StructuredRandom": (GREY, {"output_size": [1, 16, 16]}),
    "StructuredRandomPhaseRetrieval": (GREY, {"output_size": [1, 16, 16], "n_layers": 2}),
    "TiledSpaceVaryingBlur": (
        RGB,
        {"filters": KERNEL.expand(1, 1, 9, 3, 3), "patch_size": 8, "stride": 4},
    ),
    "Tomography": (RGB, {"angles": 12, "normalize": True}),
    "UltrasoundPlaneWave": (
        GREY,
        {
            "angles": [0.0, 0.1],
            "element_positions": torch.stack([torch.linspace(-1, 1, 8), torch.zeros(8)], 1) / 100,
            "n_samples": 64,
            "sampling_frequency": 1e6,
            "pixel_size": [1e-3, 1e-3],
            "pixel_origin": [1e-2, -8e-3],
        },
    ),
    "Upsampling": (RGB, {"filter": "bilinear", "img_size": [3, 32, 32]}),
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "ComposedLinearPhysics": ({}, "cannot be given by name; use the operator compose"),
    "ComposedPhysics": ({}, "cannot be given by name; use the operator compose"),
    "CompressiveSpectralImaging": ({"mask": 0.5}, "A u, y> = .* is not the adjoint"),
    "Haze": ({}, "does not work on images of shape"),  # an image, a depth and a light at once
    "VirtualLinearPhysics": ({}, "needs physics .*, transform .*, g_params"),
}
NEEDS = {
    "NonCartesianMRI": ({}, "mrinufft"),
    "PET": ({}, "parallelproj"),
    "RadioInterferometry": ({"samples_loc": torch.rand(2, 10)}, "torchkbnufft"),
    "TomographyWithAstra": ({}, "astra"),
}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """deepinv warns of defaults, PyTorch of complex modules."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def made(name: str, **changed: Any) -> Any:
    return make_operator(f"deepinv:{name}", **(RUNS[name][1] | changed))


def image(shape: tuple[int, ...], images: int = 2, seed: int = 0) -> Tensor:
    return torch.rand(images, *shape, generator=torch.Generator().manual_seed(seed))


def inner(a: Tensor, b: Tensor) -> float:
    return float((a.conj() * b).sum().real)


def test_the_table_is_complete() -> None:
    assert set(members()) == {*RUNS, *REFUSED, *NEEDS}


@pytest.mark.parametrize("name", RUNS)
def test_every_physics_runs_and_is_recorded(name: str, tmp_path: Path) -> None:
    shape, _ = RUNS[name]
    before = torch.random.get_rng_state()
    operator, x = made(name), image(shape)
    measurement = operator.measure(x, sigma=0.1, seed=1)
    bound: Any = measurement.operator
    assert bound.shape == shape and measurement.y.isfinite().all()
    assert measurement.y.shape[1:] == bound.measurement_shape
    if isinstance(operator, LinearOperator):
        y = torch.randn(measurement.y.shape, generator=torch.Generator().manual_seed(1)).to(
            measurement.y
        )
        left, right = inner(bound(x), y), inner(x, bound.adjoint(y))
        assert left == pytest.approx(right, abs=1e-3 * float(bound(x).norm() * y.norm()))
        assert not bound.adjoint(y).is_complex()
    assert torch.equal(torch.random.get_rng_state(), before)
    measurement.save(tmp_path / "m.safetensors")
    again = Measurement.load(tmp_path / "m.safetensors")
    assert again.hash == measurement.hash and again.describe()["versions"].keys() == {"deepinv"}
    torch.testing.assert_close(again.operator(x), bound(x), atol=1e-4, rtol=1e-4)
    assert type(again.operator) is type(bound)
    assert name_of("operators", again.operator) == f"deepinv:{name}"
    assert operator_version(made(name)) == operator_version(operator)


@pytest.mark.parametrize("name", [*REFUSED, *NEEDS])
def test_what_does_not_run_is_refused_with_the_reason(name: str) -> None:
    given, reason = (REFUSED | NEEDS)[name]
    if name in NEEDS:
        if importlib.util.find_spec(reason):
            pytest.skip(f"{reason} is installed")
        reason = "ImportError|ModuleNotFoundError"
    with pytest.raises(ValueError, match=reason) as error:
        make_operator(f"deepinv:{name}", **given).bind(RGB)
    assert "\n" not in str(error.value) and f"deepinv:{name}" in str(error.value)


@pytest.mark.parametrize("name", ["MRI", "Tomography", "Demosaicing", "Downsampling", "Decolorize"])
def test_by_name_is_the_class_called_by_hand(name: str) -> None:
    import deepinv

    shape, given = RUNS[name]
    size = {"Tomography": {"img_width": 16}, "Decolorize": {"channels": 3}}.get(
        name, {"img_size": shape}
    )
    physics = getattr(deepinv.physics, name)(**given, **size)
    torch.testing.assert_close(made(name)(image(shape)), physics.A(image(shape)))


def test_a_list_of_measurements_is_one_vector() -> None:
    import deepinv

    physics = deepinv.physics.Pansharpen((3, 16, 16))
    x = image(RGB)
    for operator in (made("Pansharpen").bind(RGB), make_operator(physics).bind(RGB)):
        y = operator(x)
        small, grey = physics.A(x)
        torch.testing.assert_close(y, torch.cat([small.flatten(1), grey.flatten(1)], 1))
        expected = physics.A_adjoint(physics.A(x))
        torch.testing.assert_close(operator.adjoint(y), expected)
        assert operator.measure(x).linear_estimate().shape == x.shape
        assert any("joined to one vector" in note for note in operator.notes)


def test_a_real_image_of_one_channel_is_a_complex_one_without_imaginary_part() -> None:
    operator = made("MRI").bind(GREY)
    x = image(GREY)
    pair = torch.cat([x, torch.zeros_like(x)], 1)
    torch.testing.assert_close(operator(x), made("MRI")(pair))
    assert not isinstance(operator, SpectralOperator) and "as real" in operator.notes[0]
    assert isinstance(made("MRI").bind(PAIR), SpectralOperator)


def test_complex_images_and_measurements_as_such(tmp_path: Path) -> None:
    x = torch.complex(image(GREY), image(GREY, seed=1))
    operator = make_operator("deepinv:CompressedSensing", m=300, dtype="complex64")
    measurement = operator.measure(x, sigma=0.01)
    bound: Any = measurement.operator
    assert measurement.y.is_complex() and bound.complex_images
    back = bound.adjoint(measurement.y)
    assert back.is_complex()
    y = torch.randn(measurement.y.shape, dtype=measurement.y.dtype)
    assert inner(bound(x), y) == pytest.approx(inner(x, bound.adjoint(y)), rel=1e-3, abs=1e-2)
    noiseless = operator.measure(x)
    torch.testing.assert_close(noiseless.operator.pinv(noiseless.y), x, atol=2e-2, rtol=0)  # type: ignore[attr-defined]
    measurement.save(tmp_path / "m.safetensors")
    again: Any = Measurement.load(tmp_path / "m.safetensors").operator
    assert again.complex_images
    torch.testing.assert_close(again.adjoint(y), bound.adjoint(y))
    with pytest.raises(ValueError, match="bound to real images.*complex_images=True"):
        operator.bind(GREY).measure(x)
    magnitudes = made("RandomPhaseRetrieval").measure(x)
    torch.testing.assert_close(
        magnitudes.y, made("RandomPhaseRetrieval").measure(1j * x).y, rtol=1e-3, atol=1e-3
    )
    # MRI's two channels are one complex one.
    pair = torch.cat([x.real, x.imag], 1)
    kspace = made("MRI").measure(x)
    torch.testing.assert_close(kspace.y, made("MRI")(pair))
    estimate = made("MRI").measure(pair).operator.adjoint(kspace.y)  # type: ignore[attr-defined]
    adjoint = kspace.operator.adjoint(kspace.y)  # type: ignore[attr-defined]
    torch.testing.assert_close(torch.cat([adjoint.real, adjoint.imag], 1), estimate)
    with pytest.raises(ValueError, match="Poisson noise is of real counts"):
        operator.measure(x, gain=0.1)


def test_the_dot_test_names_the_culprit_with_both_numbers() -> None:
    import deepinv

    class Wrong(deepinv.physics.LinearPhysics):  # type: ignore[misc, name-defined]
        def A(self, x: Tensor, **_: Any) -> Tensor:
            return 2 * x

        def A_adjoint(self, y: Tensor, **_: Any) -> Tensor:
            return 1.9 * y

    with pytest.raises(ValueError, match=r"deepinv's Wrong is wrong .*A u, y> = .*check=False"):
        make_operator(Wrong()).bind(RGB)
    taken = make_operator(Wrong(), check=False).bind(RGB)
    assert torch.equal(taken(image(RGB)), 2 * image(RGB))
    camera = make_operator("deepinv:CompressiveSpectralImaging", mask=0.5, check=False)
    assert camera.measure(image(RGB)).y.shape[1] == 1
    with pytest.raises(TypeError, match="parameters go with an operator's name"):
        make_operator(Wrong(), factor=2)


def test_tensors_from_files(tmp_path: Path) -> None:
    from invdiff.images import write_image

    np.save(tmp_path / "mask.npy", COLUMNS.numpy())
    torch.save(COLUMNS, tmp_path / "mask.pt")
    write_image(tmp_path / "mask.png", COLUMNS[None])
    expected, x = made("MRI"), image(PAIR)
    version = operator_version(expected)
    for name in ("mask.npy", "mask.pt", "mask.png"):
        operator = made("MRI", mask=str(tmp_path / name))
        torch.testing.assert_close(operator(x), expected(x))
        assert operator_version(operator) == version
    measured = made("MRI", mask=str(tmp_path / "mask.npy")).measure(x)
    measured.save(tmp_path / "m.safetensors")
    (tmp_path / "mask.npy").unlink()
    again = Measurement.load(tmp_path / "m.safetensors")
    assert again.hash == expected.measure(x).hash and float(again.loss(x).max()) == 0
    torch.save({"not": "a tensor"}, tmp_path / "mask.pt")
    with pytest.raises(ValueError, match="holds a dict, not one tensor"):
        made("MRI", mask=str(tmp_path / "mask.pt"))


def test_what_is_wrong_is_said_in_one_line() -> None:
    for wrong, message in (
        (lambda: make_operator("deepinv:MIR"), "no physics 'MIR'. Did you mean 'MRI'"),
        (lambda: make_operator("depinv:MRI"), "Did you mean 'deepinv'"),
        (lambda: made("MRI", maks=1), "has no parameter 'maks'. Did you mean 'mask'"),
        (lambda: made("MRI", mask="nope.npy"), "is a tensor .* no file of that name"),
        (lambda: make_operator("deepinv:Tomography"), "needs angles"),
        (lambda: made("Downsampling", factor="many"), "factor .* is a number"),
        (lambda: made("CompressedSensing", m=2.5), "m of .* is a whole number"),
        (lambda: made("CompressedSensing", dtype="float"), "m|dtype"),
        (lambda: made("PhaseRetrieval", B=print), "cannot be given by name"),
        (lambda: made("MRI").bind(RGB), "deepinv:MRI does not work on images of shape"),
        (
            lambda: Measurement(torch.zeros(1, 3, 23, 12), made("Tomography")),
            "does not tell which images",
        ),
    ):
        with pytest.raises((ValueError, UnknownNameError), match=message) as error:
            wrong()
            if "dtype" in message:
                raise ValueError("dtype")
        assert "\n" not in str(error.value)


def test_random_physics_follow_their_seed() -> None:
    x = image(GREY)
    for name in ("CompressedSensing", "StructuredRandomPhaseRetrieval", "Inpainting"):
        given = RUNS[name][1]
        first, again, other = (
            make_operator(f"deepinv:{name}", **given, seed=seed)(x) for seed in (0, 0, 1)
        )
        assert torch.equal(first, again) and not torch.equal(first, other), name


def test_an_older_version_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from invdiff.problem.physics import PhysicsOperator

    versions = property(lambda self: {"deepinv": "0.4.1"})
    with monkeypatch.context() as patched:
        patched.setattr(PhysicsOperator, "versions", versions)
        made("MRI").measure(image(PAIR)).save(tmp_path / "m.safetensors")
    with pytest.warns(UserWarning, match="measured by deepinv 0.4.1, here is 0.5"):
        Measurement.load(tmp_path / "m.safetensors")


def test_an_object_stays_allowed_and_is_not_recorded() -> None:
    import deepinv

    mask = (image(RGB, 1) > 0.5).float()
    measured = make_operator(deepinv.physics.Inpainting(RGB, mask=mask)).measure(image(RGB))
    with pytest.raises(ValueError, match="cannot be recorded by name"):
        measured.describe()
    part = invdiff.make_operator("compose", parts=["denoise", {"name": "deepinv:Demosaicing"}])
    assert part.measure(image(RGB)).describe()["parameters"]["parts"][1] == {
        "name": "deepinv:Demosaicing"
    }


def test_listing_imports_neither_deepinv_nor_torch() -> None:
    code = (
        "import sys; from invdiff.commands.main import main; main(['list', 'guidance']); "
        "assert not {'deepinv', 'torch'} & set(sys.modules); main(['list', 'operators']); "
        "assert 'deepinv' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    line = next(line for line in done.stdout.splitlines() if "deepinv:MRI" in line)
    assert "magnetic resonance" in line
    assert set(members_of("operators")) == {f"deepinv:{name}" for name in members()}
    assert "deepinv" in list_plugins("operator_families")


def test_a_view_and_its_way_back_are_adjoint() -> None:
    for view in (View("pair"), View("pair", True), View("complex"), View("complex", True)):
        x = image(GREY, seed=2)
        x = torch.complex(x, image(GREY, seed=3)) if view.complex_images else x
        given = view.given(x)
        other = torch.randn(given.shape, dtype=given.dtype)
        assert inner(given, other) == pytest.approx(inner(x, view.image(other)), rel=1e-4, abs=1e-3)
