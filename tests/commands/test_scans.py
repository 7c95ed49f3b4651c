"""``invdiff solve`` on files of science: slice by slice, in their units and their format."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from invdiff.commands.main import main
from invdiff.images.formats import read_volume

FAST = ["--steps", "2", "--method", "ddnm", "--operator", "denoise", "--quiet", "--output", "out"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def scan(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 3000, (24, 20, 3)).astype(np.int16)


def test_a_volume_comes_back_in_its_format(capsys: pytest.CaptureFixture[str]) -> None:
    nibabel = pytest.importorskip("nibabel")
    affine = np.diag([0.5, 0.5, 2.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(scan(), affine), "head.nii.gz")
    assert main(["solve", "--measurement", "head.nii.gz", "--range=-1000,3000", *FAST]) == 0
    restored = nibabel.load("out/head_restored.nii.gz")
    np.testing.assert_array_equal(restored.affine, affine)
    assert restored.shape == (24, 20, 3) and restored.get_data_dtype() == np.int16
    # Each slice is what its folder says it is, in units.
    for k in range(3):
        record = json.loads(Path(f"out/head_00{k}/result.json").read_text())
        assert record["input"]["slice"] == k and record["input"]["range"] == [-1000, 3000]
        x = np.load(f"out/head_00{k}/restored.npy").mean(0) * 4000 - 1000
        np.testing.assert_allclose(restored.get_fdata()[..., k].T, x.round(), atol=1)
    # A slice that is lost is restored again, alone.
    kept = Path("out/head_000/restored.npy").stat().st_mtime_ns
    Path("out/head_001/restored.npy").unlink()
    Path("out/head_restored.nii.gz").unlink()
    assert main(["solve", "--measurement", "head.nii.gz", "--range=-1000,3000", *FAST]) == 0
    assert Path("out/head_restored.nii.gz").exists()
    assert Path("out/head_000/restored.npy").stat().st_mtime_ns == kept


def test_a_measurement_is_restored_in_its_units() -> None:
    """y = A(x) in the units of x: black, A(low), is taken away before the range is."""
    level = np.full((32, 32), 700.0, np.float32)
    np.save("flat.npy", level + np.random.default_rng(1).normal(0, 20, (32, 32)).astype("f4"))
    steps = ["--steps", "10", "--method", "diffpir", "--quiet", "--output", "out"]
    arguments = ["--measurement", "flat.npy", "--range", "500,1000", "--sigma", "0.04"]
    assert main(["solve", *arguments, "--operator", "denoise", *steps]) == 0
    restored = read_volume("out/flat_restored.npy").array
    assert abs(restored.mean() - 700) < 3 and restored.std() < 20


def test_what_is_not_known_of_a_scan_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    np.save("x.npy", scan().astype(np.float32))
    for arguments, said in (
        (["--measurement", "x.npy"], "--range LOW,HIGH: its values go from -999 to 2998"),
        (["--measurement", "x.npy", "--range=0,1", "--axes", "XX"], "axes must name each"),
        (
            ["--measurement", "x.npy", "--range=-1,1", "gain=0.1"],
            "needs a --range that begins at 0",
        ),
    ):
        assert main(["solve", *arguments, *FAST]) == 2
        assert said in capsys.readouterr().err.replace("\n", " ")
    assert not Path("out").exists()


def test_a_slice_that_fails_keeps_the_whole_from_being_written(
    capsys: pytest.CaptureFixture[str],
) -> None:
    stack = scan().astype(np.float32).transpose(2, 0, 1)
    stack[1, 3, 4] = np.nan
    np.save("x.npy", stack)
    loud = [flag for flag in FAST if flag != "--quiet"]
    arguments = ["--measurement", "x.npy", "--axes", "ZYX", "--range=-1000,3000"]
    assert main(["solve", *arguments, *loud]) == 2
    assert "x: 1 of 3 slices are not restored" in capsys.readouterr().err
    assert Path("out/x_002/restored.npy").exists() and not Path("out/x_restored.npy").exists()


def test_scans_of_one_name_are_written_beside_each_other() -> None:
    for k in (1, 2):
        Path(f"day{k}").mkdir()
        np.save(f"day{k}/x.npy", scan(k).astype(np.float32))
    given = ["--measurement", "day*/x.npy", "--axes", "YXZ", "--range=-1000,3000"]
    assert main(["solve", *given, "--num-samples", "2", *FAST]) == 0
    for what in ("restored", "mean", "std"):
        first, second = (np.load(f"out/00{k}_x.npy_{what}.npy") for k in (0, 1))
        assert np.abs(first - second).max() > 1


def test_pictures_have_no_range_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    from invdiff.images import sample_photo, write_image

    write_image("photo.png", sample_photo(32)[0])
    assert main(["solve", "--input", "photo.png", "--range=0,255", *FAST]) == 2
    assert "--range is for files of science" in capsys.readouterr().err


def test_poisson_noise_of_a_measurement_is_its_sigma() -> None:
    y = np.random.default_rng(0).poisson(40, (16, 16)).astype(np.float32)
    np.save("counts.npy", y)
    arguments = ["--measurement", "counts.npy", "--range", "0,100", "--sigma", "0", "gain=0.01"]
    dps = ["--method", "dps", "guidance.likelihood=true", "--steps", "2", "--quiet"]
    assert main(["solve", *arguments, "--operator", "denoise", *dps, "--output", "out"]) == 0
    from invdiff import Measurement

    measurement = Measurement.load("out/measurement.safetensors")
    expected = np.sqrt(0.01 * np.maximum(y / 100, 0.01))
    np.testing.assert_allclose(measurement.sigma[0, 0].numpy(), expected, rtol=1e-5)


def test_kspace_and_sinograms_are_measurements(tmp_path: Path) -> None:
    """Complex numbers where the operator gives two channels; an image whose size is given."""
    pytest.importorskip("deepinv")
    import torch

    import invdiff
    from invdiff.images import sample_photo

    x = sample_photo(32)[0][:, 1:2]
    mask = torch.zeros(32, 32)
    mask[:, ::2] = mask[:, 13:19] = 1
    np.save("mask.npy", mask.numpy())
    y = invdiff.make_operator("deepinv:MRI", mask=mask).measure(x, sigma=0.0).y
    np.savez("k.npz", kspace=torch.complex(y[0, 0], y[0, 1]).mul(100).numpy())
    radon = {"angles": 12, "normalize": True}
    sinogram = invdiff.make_operator("deepinv:Tomography", **radon).measure(x, sigma=0.0).y
    np.save("sinogram.npy", 100 * sinogram[0, 0].numpy())
    common = ["--range", "0,100", "--sigma", "0.01", "--model", "digits32", "--method", "diffpir"]
    common += ["--steps", "5", "--quiet"]
    for file, operator in (
        ("k.npz:kspace", ["deepinv:MRI", "operator.mask=mask.npy"]),
        (
            "sinogram.npy",
            ["deepinv:Tomography", "operator.angles=12", "operator.normalize=true", "--size", "32"],
        ),
    ):
        out = operator[0].replace(":", "-")
        arguments = ["--measurement", file, "--operator", *operator, *common, "--output", out]
        assert main(["solve", *arguments]) == 0
        restored = torch.from_numpy(np.load(f"{out}/restored.npy"))
        assert restored.shape == (1, 32, 32)
        # The prior is of digits: what counts is that the measurement is fitted in its units.
        assert float((restored - x[0]).square().mean().sqrt()) < 0.2
