"""Noise that is estimated from the image itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import data
from torch import Tensor

import invdiff
from invdiff.images import estimate_sigma, read_image, write_image


def crop(name: str, side: int = 128) -> Tensor:
    photo = getattr(data, name)()
    top, left = ((n - side) // 2 for n in photo.shape[:2])
    part = photo[top : top + side, left : left + side].copy()
    return torch.from_numpy(part).permute(2, 0, 1).float()[None] / 255


def noisy(x: Tensor, sigma: float, seed: int = 0) -> Tensor:
    return x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sigma", [0.02, 0.05, 0.1, 0.2])
@pytest.mark.parametrize("name", ["chelsea", "astronaut", "coffee", "rocket"])
def test_within_ten_per_cent_on_photographs(name: str, sigma: float) -> None:
    for side in (128, 64):
        (found,) = estimate_sigma(noisy(crop(name, side), sigma))
        assert found == pytest.approx(sigma, rel=0.1)


@pytest.mark.parametrize("sigma", [0.02, 0.05, 0.1])
@pytest.mark.parametrize("name", ["chelsea", "astronaut", "rocket"])
def test_files_of_8_bits(tmp_path: Path, name: str, sigma: float) -> None:
    write_image(tmp_path / "y.png", noisy(crop(name), sigma))
    assert estimate_sigma(read_image(tmp_path / "y.png"))[0] == pytest.approx(sigma, rel=0.1)


@pytest.mark.parametrize("sigma", [0.05, 0.1, 0.2])
@pytest.mark.parametrize("name", ["chelsea", "astronaut", "coffee", "rocket"])
def test_grey(name: str, sigma: float) -> None:
    grey = crop(name).mean(1, keepdim=True)
    assert estimate_sigma(noisy(grey, sigma))[0] == pytest.approx(sigma, rel=0.12)


def test_nearer_than_scikit_image() -> None:
    pytest.importorskip("pywt")
    from skimage.restoration import estimate_sigma as of_scikit_image

    y = noisy(crop("chelsea"), 0.02)
    theirs = float(np.mean(of_scikit_image(y[0].numpy(), channel_axis=0)))
    assert theirs > 1.2 * 0.02 and abs(estimate_sigma(y)[0] - 0.02) < 0.1 * (theirs - 0.02)


def test_only_what_is_known_counts() -> None:
    y = noisy(crop("chelsea"), 0.05)
    known = torch.ones(1, 1, 128, 128)
    known[..., 20:90, 30:80] = 0
    damaged = torch.where(known == 1, y, noisy(y, 0.5))
    assert estimate_sigma(damaged, known)[0] == pytest.approx(0.05, rel=0.1)
    assert estimate_sigma(damaged)[0] > 0.055
    with pytest.raises(ValueError, match="known entirely, .* give sigma"):
        estimate_sigma(y, (torch.rand(y.shape) > 0.7).float())


def test_every_image_has_its_own() -> None:
    batch = torch.cat([noisy(crop("chelsea"), 0.03), noisy(crop("rocket"), 0.1)])
    apart = [estimate_sigma(y)[0] for y in batch]
    assert estimate_sigma(batch) == apart and apart == pytest.approx([0.03, 0.1], rel=0.1)


@pytest.mark.parametrize(
    ("y", "says"),
    [
        (torch.zeros(3, 8, 8), "16x16"),
        (torch.zeros(4), "images"),
        (torch.zeros(3, 20, 20).int(), "floats"),
    ],
)
def test_what_cannot_be_estimated(y: Tensor, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        estimate_sigma(y)


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from invdiff.__main__ import main

    write_image(tmp_path / "y.png", noisy(crop("chelsea", 64), 0.1))
    run = ["--sigma", "auto", "--steps", "2", "--operator", "denoise", "--method", "ddnm"]
    given = ["solve", "--measurement", str(tmp_path / "y.png"), *run]
    assert main([*given, "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().err
    measurement = invdiff.Measurement.load(tmp_path / "out" / "measurement.safetensors")
    assert measurement.sigma == pytest.approx(0.1, rel=0.1)
    assert f"sigma: {measurement.sigma:.4f}, estimated from y" in said
    given[1:3] = ["--input", str(tmp_path / "y.png")]
    assert main([*given, "--output", str(tmp_path / "two")]) != 0
    assert "--sigma auto estimates the noise of a --measurement" in capsys.readouterr().err
