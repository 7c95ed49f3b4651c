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
