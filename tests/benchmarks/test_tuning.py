"""Tuning: objectives with and without truth, the search, and the preset that it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from invdiff import Measurement, generate, load_model, make_operator, solve
from invdiff.benchmarks import tuning
from invdiff.commands.main import main
from invdiff.config import compose, method_of_preset
from invdiff.images import sample_photo, write_image
from invdiff.plugins.registry import list_plugins, load
from invdiff.sampling import make_method, searched

pytest.importorskip("optuna")


@pytest.mark.parametrize("name", list_plugins("guidance"))
def test_declared_ranges_hold_what_a_method_takes(name: str) -> None:
    for parameter, (r, whole) in searched(load("guidance", name)).items():
        assert r.low < r.high and (r.low > 0 or not r.log)
        kind = int if whole else float
        needed = {"label": 0} if name == "classifier" else {}
        for value in (r.low, r.high):
            make_method(name, **{parameter: kind(value)}, **needed)


def test_the_coupled_bootstrap_finds_the_best_shrinkage_without_truth() -> None:
    """x ~ N(0, 1), y = x + sigma n: of the estimates c y1, the loss that sees y alone is smallest
    at the c of least error, 1 / (1 + sigma1²)."""
    generator, sigma = torch.Generator().manual_seed(0), 0.5
    x = torch.randn(200, 1, 16, 16, generator=generator)
    operator = make_operator("denoise")
    y = x + sigma * torch.randn(x.shape, generator=generator)
    problem = tuning._held_out(Measurement(y, operator, sigma), range(200), seed=0)
    c = torch.linspace(0.4, 1.2, 81)
    blind = torch.stack([problem.loss(k * problem.given.y).mean() for k in c])
    error = torch.stack([(k * problem.given.y - x).square().mean() for k in c])
    right = 1 / (1 + problem.given.sigma**2)
    assert abs(float(c[blind.argmin()]) - right) < 0.02
    assert abs(float(c[error.argmin()]) - right) < 0.02
    # Up to a constant the loss IS the error.
    gap = blind - error
    assert float(gap.std()) < 0.02 * float(error.max())


def test_of_a_mask_known_pixels_are_held_out() -> None:
    known = torch.rand(32, 32, generator=torch.Generator().manual_seed(1)) > 0.3
    x = sample_photo(32)[0]
    measurement = Measurement(x, make_operator("inpaint", mask=known.double()), 0.0)
    problem = tuning._held_out(measurement, [0], seed=0)
    left = problem.given.spectral.singular_values[0] > 0
    held = known & ~left
    assert not bool((left & ~known).any())
    assert 0.05 < float(held.sum() / known.sum()) < 0.15
    assert float(problem.loss(x)) == 0
    moved = x.clone()
    moved[..., left] += 1  # what was given is not asked
    moved[..., ~known] += 1
    assert float(problem.loss(moved)) == 0
    moved[..., held] += 0.5
    assert float(problem.loss(moved)) == pytest.approx(0.25)


@pytest.fixture(scope="module")
def measured() -> list[tuple[Measurement, torch.Tensor]]:
    operator = make_operator("inpaint", fraction=0.5)
    photos = [sample_photo(64)[0][..., k : k + 32, k : k + 32] for k in (0, 16)]
    return [(operator.measure(x, 0.05, image_ids=[k]), x) for k, x in enumerate(photos)]


@pytest.mark.parametrize("objective", [pytest.param("psnr", marks=pytest.mark.slow), "measurement"])
def test_the_values_found_are_no_worse_than_those_before(
    objective: str, measured: list[tuple[Measurement, torch.Tensor]], tmp_path: Path
) -> None:
    denoiser = load_model("photo64")
    over = tuning.problems(measured, [0, 1], objective)
    options = {"steps": 4, "storage": tmp_path / "search.log", "start": {"zeta": 0.1}}
    found = tuning.tune(over, denoiser, "dps", objective, trials=4, **options)
    sign = tuning.OBJECTIVES[objective]
    assert found.trials == 4 and sign * found.score <= sign * found.general
    truths = torch.cat([x for _, x in measured])
    batch = Measurement.concatenate([m for m, _ in measured])
    if objective == "psnr":
        again = solve(batch, denoiser, make_method("dps", **found.values), steps=4).x
        psnr = load("metrics", "psnr")(again.clamp(0, 1), truths).mean()
        assert float(psnr) == pytest.approx(found.score, abs=1e-3)
    more = tuning.tune(over, denoiser, "dps", objective, trials=4, **options)
    assert more == found, "what was tried is not tried again"
    other = tuning.problems(measured[:1], [0], objective)
    new = tuning.tune(other, denoiser, "dps", objective, trials=1, **options)
    assert new.trials == 1, "a search on other images is another one"


def test_what_cannot_be_tuned_is_refused(
    measured: list[tuple[Measurement, torch.Tensor]],
) -> None:
    without = [(m, None) for m, _ in measured]
    with pytest.raises(ValueError, match="--objective measurement"):
        tuning.problems(without, [0, 1], "lpips")
    with pytest.raises(ValueError, match="must be one of lpips, psnr, measurement"):
        tuning.problems(measured, [0, 1], "fid")
    sharp = [(make_operator("blur").measure(measured[0][1]), None)]
    with pytest.raises(ValueError, match="needs sigma > 0"):
        tuning.problems(sharp, [0], "measurement")
    over = tuning.problems(measured, [0, 1], "psnr")
    with pytest.raises(ValueError, match="no parameters with a range"):
        tuning.tune(over, load_model("photo64"), "repaint", "psnr", trials=1)


def test_from_the_command_line_to_a_preset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for k in range(2):
        write_image(Path("in") / f"{k}.png", sample_photo(64)[0][..., k : k + 32, :32])
    command = ["tune", "--operator", "sr", "--method", "ddrm", "--input", "in", "--trials", "3"]
    assert main([*command, "--budget", "4", "--objective", "psnr", "--output", "found"]) == 0
    assert "with the values before" in capsys.readouterr().out
    method, steps = method_of_preset("found/ddrm.yaml")
    assert steps == 4
    config = compose("sr", ["ddrm"], "photo64", "found/ddrm.yaml")
    assert config["steps"] == 4 and config["preset"] == "found/ddrm.yaml"
    assert config["guidance"][0]["eta"] == method.transition.eta  # type: ignore[union-attr]
    run = ["solve", "--operator", "sr", "--input", "in", "--preset", "found/ddrm.yaml", "--quiet"]
    assert main([*run, "--method", "ddrm", "--output", "out"]) == 0
    assert main([*run, "--method", "dps", "--output", "other"]) == 2
    assert "is for the method ddrm" in capsys.readouterr().err
    blind = ["--measurement", "in", "--trials", "2", "--steps", "2", "--output", "blind", "--quiet"]
    assert main([*command[:5], *blind]) == 0
    assert "by measurement" in Path("blind/ddrm.yaml").read_text()


def test_solve_tunes_on_the_picture_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_image(Path("p.png"), sample_photo(32)[0])
    command = ["solve", "--measurement", "p.png", "--operator", "denoise", "--method", "ddrm"]
    command += ["--sigma", "0.1", "--steps", "3", "--tune", "3", "--output", "out"]
    assert main(command) == 0
    said = capsys.readouterr().err
    assert "tuned on p: eta" in said
    record = json.loads(Path("out/result.json").read_text())
    eta = record["config"]["guidance"][0]["eta"]
    assert f"eta {eta:.4g}" in said and record["run"]["method"]["transition"]["eta"] == eta


def test_a_method_is_tuned_where_it_will_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After another in a chain, with a label, under a transition that is asked for: the score of
    the values before is that of the same request to `solve`."""
    monkeypatch.chdir(tmp_path)
    three = generate(load_model("digits32"), (1, 1, 32, 32), "cfg", steps=10, label=3)
    write_image(Path("3.png"), three.x)
    asked = ["--operator", "inpaint", "--model", "digits32", "--input", "3.png", "--label", "3"]
    asked += ["--steps", "5", "transition=ddim", "guidance.cfg.w=3", "guidance.dps.zeta=0.4"]
    tune = ["tune", *asked, "--method", "dps", "--after", "cfg", "--trials", "2"]
    assert main([*tune, "--objective", "psnr", "--output", "found"]) == 0
    row = capsys.readouterr().out
    chain = ["--method", "cfg", "--method", "dps"]
    assert main(["solve", *asked, *chain, "--quiet", "--json", "--output", "out"]) == 0
    psnr = json.loads(capsys.readouterr().out)["metrics"]["psnr"]
    assert f"{psnr:.4g}" in row
    again = ["solve", *asked[:-1], *chain, "--preset", "found/dps.yaml", "--quiet"]
    assert main([*again, "--output", "tuned"]) == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- a", "no guidance with the name"),
        ("guidance: {zeta: 1}", "no guidance with the name"),
        ("guidance: {name: dps}\nsigma: 3", "it has sigma"),
        ("a: [", "cannot be read as a preset"),
        ("\0", "cannot be read as a preset"),
    ],
)
def test_files_that_are_no_preset(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=says):
        compose("sr", ["dps"], "photo64", str(path))
    with pytest.raises(ValueError, match="cannot be read"):
        method_of_preset(tmp_path / "none.yaml")
