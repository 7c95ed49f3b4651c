"""Restoration in windows around what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from invdiff import Denoiser, Measurement, load_model, make_operator, schedules, solve
from invdiff.commands.main import main
from invdiff.images import read_image, sample_photo, write_image
from invdiff.network import Facts, count_evaluations
from invdiff.solving.windows import find_windows, solve_windows


def scratched(height: int = 220, width: int = 300) -> tuple[Tensor, Tensor]:
    """A photograph and what is known of it: a scratch longer than a window, and a spot."""
    x = torch.nn.functional.interpolate(sample_photo(128)[0], (height, width), mode="bicubic")
    known = torch.ones(height, width, dtype=torch.bool)
    for column in range(20, 190):
        known[20 + column // 2 : 23 + column // 2, column] = False
    known[200:205, 280:290] = False
    return x.clamp(0, 1), known


def measured(x: Tensor, known: Tensor, sigma: float = 0.02) -> Measurement:
    operator = make_operator("inpaint", mask=known.double())
    return Measurement(torch.where(known, x, 0.7), operator, sigma)


@pytest.mark.slow
def test_known_pixels_stay_and_missing_ones_are_restored() -> None:
    x, known = scratched()
    measurement, denoiser = measured(x, known), load_model("photo64")
    found = find_windows(measurement, denoiser)
    assert len(found) > 1
    with count_evaluations() as evaluations:
        result = solve_windows(measurement, denoiser, "ddnm", found, num_samples=2, steps=4)
    assert result.samples.shape == (2, 1, *x.shape[1:])
    assert torch.equal(result.samples[..., known], x.expand(2, 1, -1, -1, -1)[..., known])
    error = (result.x - x).abs()[..., ~known].mean()
    assert error < 0.5 * (0.7 - x).abs()[..., ~known].mean()
    first, second = (sample[..., ~known] for sample in result.samples)
    assert not torch.equal(first, second)
    assert result.nfe == 4 * len(found) and evaluations.forward == 2 * 4 * len(found)
    assert result.config["windows"] == [[w.top, w.left, w.height, w.width] for w in found]
    again = solve_windows(measurement, denoiser, "ddnm", found, num_samples=1, steps=4)
    torch.testing.assert_close(again.x, result.x, atol=1e-4, rtol=0)


def test_what_one_window_restored_is_known_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    from invdiff.solving import windows as module

    x, known = scratched()
    measurement, denoiser = measured(x, known), load_model("photo64")
    found = find_windows(measurement, denoiser)
    parts: list[Measurement] = []

    def watched(part: Measurement, *rest: object, **options: object) -> object:
        parts.append(part)
        return solve(part, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "solve", watched)
    result = solve_windows(measurement, denoiser, "ddnm", found, steps=2)
    done = known.clone()
    for window, part in zip(found, parts, strict=True):
        mask = part.spectral.singular_values[0] > 0
        assert torch.equal(mask, window.crop(done))
        assert torch.equal(part.y[..., mask], window.crop(result.x)[..., mask])
        window.crop(done)[window.take] = True
    assert bool(done.all())
    assert any(
        (window.crop(known) != (part.spectral.singular_values[0] > 0)).any()
        for window, part in zip(found, parts, strict=True)
    ), "windows overlap"


@pytest.mark.parametrize("why", ["soft", "blur", "large", "two"])
def test_other_measurements_have_no_windows(why: str) -> None:
    x, known = scratched()
    denoiser = load_model("photo64")
    if why == "soft":
        operator = make_operator("inpaint", mask=known.double().clamp(0.5))
        assert find_windows(Measurement(x, operator, 0.02), denoiser) == []
    elif why == "blur":
        assert find_windows(make_operator("blur").measure(x), denoiser) == []
    elif why == "large":
        known[::20] = False
        assert find_windows(measured(x, known), denoiser) == []
    else:
        assert find_windows(measured(x.repeat(2, 1, 1, 1), known), denoiser) == []


def test_a_network_of_one_size_gets_windows_of_that_size() -> None:
    class Fixed:
        facts = Facts(fixed_size=(32, 32))

        def __call__(self, x: Tensor, t: Tensor) -> Tensor:
            assert x.shape[-2:] == (32, 32)
            return x

    denoiser = Denoiser(Fixed(), schedule=schedules.linear(), data_range=(-1, 1), channels=3)
    x, known = sample_photo(100)[0], torch.ones(100, 100, dtype=torch.bool)
    known[40:44, 50:60] = False
    measurement = measured(x, known)
    (window,) = find_windows(measurement, denoiser)
    assert (window.height, window.width) == (32, 32)
    solve_windows(measurement, denoiser, "ddnm", [window], steps=2)


def test_a_scratched_photograph_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    x, known = scratched()
    write_image(tmp_path / "photo.png", torch.where(known, x, 1.0)[0])
    write_image(tmp_path / "mask.png", known[None].float())
    command = ["solve", "--measurement", "photo.png", "--mask", "mask.png", "--method", "ddnm"]
    assert main([*command, "--steps", "2", "--output", "windows"]) == 0
    assert "windows of 128x128 around what is missing" in capsys.readouterr().err
    assert main([*command, "--steps", "1", "--output", "whole", "--sigma", "0.05"]) == 0
    assert "windows" not in capsys.readouterr().err
    photo, kept, whole = (
        read_image(Path(p)) for p in ("photo.png", "windows/restored.png", "whole/restored.png")
    )
    assert torch.equal(kept[..., known], photo[..., known])
    assert not torch.equal(whole[..., known], photo[..., known])
    assert not torch.equal(kept[..., ~known], photo[..., ~known])


def test_known_pixels_stay_where_the_whole_is_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A photograph that is no larger than a window; with its noise said, by flag or override, or
    by the file of a measurement, they change."""
    monkeypatch.chdir(tmp_path)
    x, known = sample_photo(64)[0], torch.ones(64, 64, dtype=torch.bool)
    known[30:33, 4:60] = False
    write_image(tmp_path / "photo.png", torch.where(known, x, 1.0)[0])
    write_image(tmp_path / "mask.png", known[None].float())
    photo = read_image(Path("photo.png"))
    command = ["solve", "--method", "ddnm", "--steps", "3", "--num-samples", "2", "--output"]
    given = ["--measurement", "photo.png", "--mask", "mask.png"]
    saved = ["--measurement", "kept/measurement.safetensors"]
    for name, more in {
        "kept": given,
        "flag": [*given, "--sigma", "0.05"],
        "override": [*given, "sigma=0.05"],
        "file": saved,
    }.items():
        assert main([*command, name, *more]) == 0
        said = "known pixels stay as they are" in capsys.readouterr().err
        restored = read_image(Path(name) / "sample_1.png")
        same = torch.equal(restored[..., known], photo[..., known])
        assert same == said == (name == "kept")
