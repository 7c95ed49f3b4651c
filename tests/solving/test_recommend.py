"""The method that is taken where nobody chose one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

import invdiff
from invdiff import Denoiser, load_model, make_operator, schedules, solve
from invdiff.commands.main import main
from invdiff.images import sample_photo, write_image
from invdiff.plugins.registry import list_plugins
from invdiff.solving import recommend as module
from invdiff.solving.recommend import BUDGETS, SLACK, Measured, measured, recommend


def row(method: str | None, cost: float, lpips: float, **more: object) -> Measured:
    given = {"operator": "sr", "model": "photo64", "values": {}, "steps": int(cost)} | more
    return Measured(
        images=12, method=method, num_samples=1, evaluations=cost, lpips=lpips, psnr=20.0, **given
    )  # type: ignore[arg-type]


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = (
        row("ddrm", 20, 0.20, values={"eta": 0.5}),
        row("dps", 200, 0.10),
        row("diffpir", 100, 0.15),
        row("diffpir", 10, 0.40),
        row("mcgdiff", 100, 0.90),
        row(None, 0, 0.50),
        row("diffpir", 100, 0.20, operator="inpaint"),
        row("dps", 200, 0.30, operator="inpaint"),
        row("ddrm", 20, 0.10, operator="inpaint"),
    )
    monkeypatch.setattr(module, "measured", lambda: rows)


@pytest.mark.parametrize(
    ("budget", "name", "steps"),
    [("fast", "ddrm", 20), ("good", "diffpir", 100), ("best", "dps", 200), (10, "diffpir", 10)],
)
@pytest.mark.usefixtures("table")
def test_what_was_measured_decides(budget: str | int, name: str, steps: int) -> None:
    found = recommend(make_operator("sr"), load_model("photo64"), budget)
    assert (found.name, found.steps) == (name, steps)
    assert "measured for sr with photo64" in found.why


def test_a_budget_that_nothing_keeps_is_said() -> None:
    found = recommend(make_operator("jpeg"), load_model("photo64"), "fast")
    assert found.evaluations > SLACK * BUDGETS["fast"]
    assert "measured for jpeg with photo64 where none takes 20 evaluations or fewer" in found.why


@pytest.mark.usefixtures("table")
def test_elsewhere_the_first_that_fits_is_taken_with_general_values() -> None:
    photo64 = load_model("photo64")
    blur = recommend(make_operator("blur"), photo64)
    assert blur.name == "ddrm" and blur.values == {}
    assert "nothing was measured for blur" in blur.why
    nonlinear = recommend(make_operator("hdr"), photo64)
    assert nonlinear.name == "dps", "ddrm and diffpir need a linear operator"
    assert "none that costs less fits" in nonlinear.why


@pytest.mark.parametrize("budget", ["slow", "", 0, -3, "nan", float("inf"), None])
def test_budgets_that_are_none(budget: object) -> None:
    with pytest.raises(ValueError, match="budget must be fast, good, best or a number"):
        recommend(make_operator("sr"), load_model("photo64"), budget)  # type: ignore[arg-type]


def test_no_method_is_named_in_the_code() -> None:
    source = Path(module.__file__).read_text()
    assert not {
        n for n in list_plugins("guidance") if n != "none" and re.search(rf"\b{n}\b", source)
    }


def test_what_ships_is_what_can_run() -> None:
    assert {r.operator for r in measured()} >= {"inpaint", "sr", "blur"}
    photo64 = load_model("photo64")
    for operator in ("inpaint", "sr", "blur"):
        for budget, limit in BUDGETS.items():
            found = recommend(make_operator(operator), photo64, budget)
            assert found.evaluations <= SLACK * limit
            assert f"measured for {operator}" in found.why
            measurement = make_operator(operator).measure(torch.rand(1, 3, 16, 16), 0.025)
            x = solve(measurement, photo64, found.method, steps=2).x
            assert bool(x.isfinite().all())


def test_any_network_gets_a_method() -> None:
    net = Denoiser(lambda x, t: 0.1 * x, schedule=schedules.flow(), predicts="velocity")
    operator = make_operator("matrix", fraction=0.5)
    found = invdiff.recommend(operator.bind((8,)), net)
    assert "nothing was measured" in found.why
    solve(operator.measure(torch.rand(2, 8), 0.1), net, found.method, steps=2)


@pytest.mark.usefixtures("table")
def test_solve_takes_it_where_no_method_is_given() -> None:
    measurement = make_operator("sr").measure(torch.rand(1, 3, 16, 16), 0.025)
    photo64 = load_model("photo64")
    result = solve(measurement, photo64)
    choice = recommend(measurement, photo64)
    again = solve(measurement, photo64, choice.method, steps=choice.steps)
    assert result.nfe == 100 and torch.equal(result.x, again.x)
    assert solve(measurement, photo64, steps=2).nfe == 2


@pytest.mark.usefixtures("table")
def test_the_command_line_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_image(Path("photo.png"), sample_photo(64)[0])

    def run(*arguments: str) -> int:
        return main(["solve", "--input", "photo.png", *arguments])

    assert run("--operator", "sr", "--budget", "fast", "--output", "out") == 0
    said = capsys.readouterr().err
    assert "method: ddrm, 20 steps, 20 evaluations: best LPIPS (0.200) of 2 methods" in said
    record = json.loads(Path("out/result.json").read_text())
    assert record["nfe"] == 20 and record["config"]["guidance"][0]["eta"] == 0.5
    assert run("--operator", "sr", "--steps", "3", "--output", "few") == 0
    assert "method: diffpir, 3 steps" in capsys.readouterr().err
    assert run("--operator", "hdr", "--steps", "2", "--output", "hdr") == 0
    assert "method: dps, 2 steps" in capsys.readouterr().err
    assert run("--operator", "sr", "--method", "dps", "--budget", "fast") == 2
    assert "leave out --budget or --method" in capsys.readouterr().err
    bad = ["--operator", "sr", "--method", "mcgdiff", "--steps", "2", "--output", "bad"]
    assert run(*bad, "num_samples=2") == 0
    assert "mcgdiff was measured to be worse than the linear estimate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("operator", "model"), [("sr", "sr3x4"), ("dps_sr", "sr3x4"), ("jpeg", "palette_jpeg")]
)
def test_a_method_brings_the_network_of_its_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operator: str, model: str
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["solve", "--operator", operator, "--method", "sr3", "--steps", "2", "--quiet"]
    assert main([*command, "--output", "out"]) == 0
    assert json.loads(Path("out/result.json").read_text())["config"]["model"]["name"] == model


@pytest.mark.filterwarnings("ignore")
def test_what_a_photograph_makes_of_an_operator_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A blur without a decomposition, as that of a file is, is not given to a method of SVDs."""
    monkeypatch.chdir(tmp_path)
    invdiff.images.write_image(Path("y.png"), torch.rand(3, 48, 48))
    command = ["solve", "--measurement", "y.png", "--operator", "blur", "--steps", "1"]
    command += ["--sigma", "0.02", "--output", "out"]
    assert main([*command, "operator.kernel=motion"]) == 0
    said = capsys.readouterr()
    assert "ddrm, the best for blur with photo64, does not take this one" in said.out + said.err
    assert "ddrm" not in Path("out/result.json").read_text()
