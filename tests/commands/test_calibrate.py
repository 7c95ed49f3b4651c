"""``invdiff calibrate``, what it writes, and values of an operator that are tried."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from invdiff.commands.main import main
from invdiff.images import sample_photo, write_image
from invdiff.operators.blur import blur

SIDE = 64


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sharp photograph, and as a camera has blurred it with a gaussian of 1.5 pixels."""
    folder = tmp_path_factory.mktemp("pair")
    x = sample_photo(SIDE)[0]
    y = blur(sigma=1.5, kernel_size=9, border="valid").measure(x, sigma=0.005, seed=0).y
    write_image(folder / "sharp.png", x[0])
    write_image(folder / "blurred.png", y[0].clamp(0, 1))
    return folder


def calibrate(pair: Path, output: Path, *more: str) -> int:
    given = ["--input", str(pair / "sharp.png"), "--measurement", str(pair / "blurred.png")]
    border = ["operator.border=valid", "operator.kernel_size=9"]
    return main(
        ["calibrate", "--operator", "blur", *given, "--output", str(output), *more, *border]
    )


def test_a_number_is_found_with_its_error(
    pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert calibrate(pair, tmp_path / "camera.yaml", "--parameter", "sigma") == 0
    said = capsys.readouterr().out
    value, error = (float(v) for v in said.removeprefix("sigma: ").split(",")[0].split(" ± "))
    assert abs(value - 1.5) < 0.02 and 0 < error < 0.05
    assert calibrate(pair, tmp_path / "camera.yaml") == 2  # it is there already


def test_a_kernel_is_found_and_goes_into_solve(pair: Path, tmp_path: Path) -> None:
    assert calibrate(pair, tmp_path / "camera.yaml", "--quiet") == 0
    true = blur(sigma=1.5, kernel_size=9).make_kernel().numpy()
    found = np.load(tmp_path / "camera.npy")
    assert np.linalg.norm(found - true) < 0.3 * np.linalg.norm(true)
    assert abs(found.sum() - 1) < 1e-6 and found.min() >= 0
    argv = ["solve", "--measurement", str(pair / "blurred.png"), "--sigma", "0.01", "--quiet"]
    argv += ["--operator", str(tmp_path / "camera.yaml"), "--method", "diffpir", "--steps", "2"]
    assert main([*argv, "--output", str(tmp_path / "out")]) == 0
    record = json.loads((tmp_path / "out/result.json").read_text())
    assert record["config"]["operator"]["kernel"] == str(tmp_path / "camera.npy")


def test_what_cannot_be_sought_is_refused(
    pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert calibrate(pair, tmp_path / "a.yaml", "--parameter", "border") == 2
    assert "no parameter 'border' that is a number" in capsys.readouterr().err
    assert calibrate(pair, tmp_path / "a.yaml", "--parameter", "intensity") == 2
    assert "does not change smoothly with intensity" in capsys.readouterr().err


def test_no_file_that_is_there_is_lost(
    pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor by the array and the picture that are written beside the operator."""
    before = (pair / "blurred.png").read_bytes()
    assert calibrate(pair, pair / "blurred.yaml", "--overwrite") == 2
    assert "blurred.png is an input" in capsys.readouterr().err
    assert (pair / "blurred.png").read_bytes() == before
    (tmp_path / "camera.npy").write_text("of somebody else")
    assert calibrate(pair, tmp_path / "camera.yaml") == 2
    assert "camera.npy exists" in capsys.readouterr().err
    assert calibrate(pair, tmp_path / "kernel.npy") == 2
    assert "NAME.yaml" in capsys.readouterr().err


def test_a_number_that_must_be_positive_stays_so(pair: Path, tmp_path: Path) -> None:
    """Two images that are the same: the search for the width of a blur goes towards zero."""
    given = ["--input", str(pair / "sharp.png"), "--measurement", str(pair / "sharp.png")]
    argv = ["calibrate", "--operator", "blur", "--parameter", "sigma", *given]
    assert main([*argv, "--output", str(tmp_path / "none.yaml"), "--quiet"]) == 0
    sigma = re.search(r"sigma: ([\d.]+)", (tmp_path / "none.yaml").read_text().split("\n", 1)[1])
    assert sigma is not None and 0 < float(sigma[1]) < 0.4


def test_an_unknown_kernel_is_written_beside_the_restoration(pair: Path, tmp_path: Path) -> None:
    argv = ["solve", "--measurement", str(pair / "blurred.png"), "--sigma", "0.01", "--quiet"]
    argv += ["--operator", "blur", "operator.kernel=unknown", "operator.kernel_size=9"]
    argv += ["--method", "diffpir", "--steps", "5", "--num-samples", "2"]
    assert main([*argv, "--output", str(tmp_path / "out")]) == 0
    record = json.loads((tmp_path / "out/result.json").read_text())
    kernel = np.load(tmp_path / "out/kernel.npy")
    assert kernel.shape == (9, 9) and abs(kernel.sum() - 1) < 1e-5
    assert {"kernel.png", "kernel.npy", "kernel_std.npy"} <= set(record["files"])
    assert record["unknown"]["kernel"]["samples"] == 2
    # The measurement that is kept knows the kernel.
    from invdiff.problem import Measurement

    kept = Measurement.load(tmp_path / "out/measurement.safetensors")
    assert kept.operator.unknown == ()
    assert torch.allclose(kept.operator.make_kernel(), torch.from_numpy(kernel).double())


def test_values_are_tried_on_a_measurement(
    pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["solve", "--operator", "blur", "operator.sigma=[0.5,1.5,4]", "--steps", "6"]
    argv += ["--sigma", "0.01", "--method", "ddrm", "operator.border=valid"]
    given = ["--measurement", str(pair / "blurred.png")]
    assert main([*argv, *given, "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().err
    assert said.count("predicts what is held out") == 3 and said.count("fits best") == 1
    record = json.loads((tmp_path / "out/result.json").read_text())
    assert record["config"]["operator"]["sigma"] == 1.5
    argv += ["--input", str(pair / "sharp.png"), "--output", str(tmp_path / "no")]
    assert main(argv) == 2 and "give --measurement" in capsys.readouterr().err


def test_values_are_tried_under_the_label_that_is_given(tmp_path: Path) -> None:
    write_image(tmp_path / "digit.png", torch.rand(1, 28, 28).round())
    argv = ["solve", "--measurement", str(tmp_path / "digit.png"), "--sigma", "0.1", "--quiet"]
    argv += ["--operator", "blur", "operator.sigma=[0.5,1]", "operator.kernel_size=5"]
    argv += ["--model", "digits32", "--method", "cfg", "--method", "dps", "--steps", "2"]
    assert main([*argv, "--label", "3", "--output", str(tmp_path / "out")]) == 0


def test_values_are_not_tuned_on_a_kernel_that_is_unknown(
    pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["solve", "--measurement", str(pair / "blurred.png"), "--sigma", "0.01", "--quiet"]
    argv += ["--operator", "blur", "operator.kernel=unknown", "--method", "diffpir", "--steps", "2"]
    assert main([*argv, "--tune", "2", "--output", str(tmp_path / "out")]) == 2
    assert "kernel is unknown; give one, such as the kernel.npy" in capsys.readouterr().err


def test_nothing_is_assumed_beyond_the_border_of_a_photograph(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A blur by another program, with a border rule of its own, is found all the same."""
    from scipy.ndimage import gaussian_filter

    x = sample_photo(96)[0]
    y = torch.from_numpy(gaussian_filter(x.numpy(), (0, 0, 1.5, 1.5)))
    write_image(tmp_path / "sharp.png", x)
    write_image(tmp_path / "blurred.png", y)
    pair = ["--input", str(tmp_path / "sharp.png"), "--measurement", str(tmp_path / "blurred.png")]
    out = str(tmp_path / "camera.yaml")
    sought = ["--operator", "blur", "--parameter", "sigma", "--output", out]
    assert main(["calibrate", *pair, *sought]) == 0
    found = re.search(r"sigma: ([\d.]+)", capsys.readouterr().out)
    assert found is not None and abs(float(found[1]) - 1.5) < 0.02


def test_a_stack_gives_one_estimate_with_its_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten slices in counts, one of them empty, blurred by another program, with noise."""
    from scipy.ndimage import gaussian_filter

    draw = np.random.default_rng(0)
    sharp = gaussian_filter(draw.uniform(0, 4095, (10, 24, 24)), (0, 0.7, 0.7))
    sharp[4] = 500.0
    blurred = gaussian_filter(sharp, (0, 1.2, 1.2)) + draw.normal(0, 8, sharp.shape)
    np.save(tmp_path / "sharp.npy", sharp)
    np.save(tmp_path / "blurred.npy", blurred)
    argv = ["calibrate", "--operator", "blur", "--parameter", "sigma", "operator.kernel_size=9"]
    argv += ["--input", str(tmp_path / "sharp.npy"), "--axes", "ZYX"]
    argv += ["--measurement", str(tmp_path / "blurred.npy"), "--output", str(tmp_path / "b.yaml")]
    assert main(argv) == 2 and "does not say its range" in capsys.readouterr().err
    assert main([*argv, "--range", "100,4100"]) == 0
    said = capsys.readouterr().out
    found = re.search(r"sigma: ([\d.]+) ± ([\d.e-]+), from 9 pairs; .* y by ([\d.]+)", said)
    assert found is not None and "left out for want of contrast: 1" in said
    value, error, misfit = map(float, found.groups())
    assert abs(value - 1.2) < 4 * error < 0.08
    assert misfit == pytest.approx(8 / 4000, rel=0.2)
    np.save(tmp_path / "blurred.npy", blurred[:5])
    assert main([*argv, "--range", "100,4100", "--overwrite"]) == 2
    assert "10 slices and" in capsys.readouterr().err


def test_of_many_slices_some_are_used(tmp_path: Path) -> None:
    from argparse import Namespace

    from invdiff.commands.pairs import MOST, read_pairs

    stack = np.random.default_rng(0).random((50, 8, 8))
    np.save(tmp_path / "x.npy", stack)
    np.save(tmp_path / "y.npy", 2 * stack)
    given = Namespace(
        input=str(tmp_path / "x.npy"), measurement=str(tmp_path / "y.npy"), range=(0, 2), axes="ZYX"
    )
    pairs, notes = read_pairs(given, blur(sigma=1.0, kernel_size=3, border="circular"))
    assert len(pairs) == MOST and notes == ["x: 32 of 50 slices are used, evenly spaced"]
    assert all(torch.equal(y, 2 * x) for x, y in pairs)
    assert torch.equal(pairs[-1][0][0, 0], torch.from_numpy(stack[-1] / 2))
