"""Networks made by a function of a Python file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from invdiff import load_model
from invdiff.commands.main import main
from invdiff.images import sample_photo, write_image

CODE = """
from dataclasses import dataclass
import torch
from invdiff import Denoiser, schedules

@dataclass
class Config:
    factor: float = 0.1

class Net(torch.nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(factor))
    def forward(self, x, t):
        return self.factor * x

def make(factor=0.1):
    net = Net(Config(factor).factor)
    return Denoiser(net, schedule=schedules.linear(), data_range=(-1, 1), channels=3, name="mine")

def number(**options):
    return 3

word = "no function"
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("own").mkdir()
    path = Path("own/mymodel.py")
    path.write_text(CODE)
    write_image(Path("p.png"), sample_photo(32)[0])
    return path


def test_in_python(file: Path) -> None:
    with pytest.warns(UserWarning, match="the code of own/mymodel.py runs"):
        denoiser = load_model("own/mymodel.py:make", dtype=torch.float64, clip=False)
    assert denoiser.name == "mine" and denoiser.dtype == torch.float64 and not denoiser.clip
    assert len(denoiser.source["code"]) == 64


def test_options_have_the_names_of_the_functions_parameters(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also those that no Denoiser has, in Python and on the command line."""
    file.write_text(CODE.replace("factor=0.1", "weights='none'").replace("(factor)", "(0.1)"))
    with pytest.warns(UserWarning, match="runs"):
        assert load_model(f"{file}:make", weights="mine.pt", clip=False).name == "mine"
    with (
        pytest.warns(UserWarning, match="runs"),
        pytest.raises(ValueError, match="has no parameter 'weight'. Did you mean 'weights'"),
    ):
        load_model(f"{file}:make", weight="mine.pt")
    command = ["solve", "--model", f"{file}:make", "model.weights=mine.pt", "--no-check"]
    assert main([*command, "--input", "p.png", "--method", "none", "--steps", "1", "--quiet"]) == 0


def test_modules_beside_the_file_are_found_and_failures_are_a_line(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.path", [*sys.path])
    Path("own/beside_it.py").write_text("SCALE = 0.5")
    file.write_text(
        "import beside_it\n"
        + CODE.replace("factor=0.1", "gain=0.1").replace("Config(factor)", "Config(1 / gain)")
    )
    with pytest.warns(UserWarning, match="runs"):
        assert load_model(f"{file}:make", gain=2.0).name == "mine"
    with (
        pytest.warns(UserWarning, match="runs"),
        pytest.raises(ValueError, match="make of own/mymodel.py fails: ZeroDivisionError"),
    ):
        load_model(f"{file}:make", gain=0.0)


def test_on_the_command_line(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ["--model", "own/mymodel.py:make", "--steps", "2", "--input", "p.png"]
    assert main(["solve", "--operator", "inpaint", "--method", "ddnm", *model, "--no-check"]) == 0
    assert "the code of own/mymodel.py runs" in capsys.readouterr().err
    small = ["images.crop=32", "images.size=32", "--output", "b"]
    assert main(["bench", *model, "--operator", "inpaint", "--method", "ddnm", *small]) == 0
    (record,) = [json.loads(p.read_text()) for p in Path("b").glob("*.json")]
    assert record["cell"]["model"]["name"] == "mymodel.py:make", "without its folder"
    assert main(["info", "own/mymodel.py:make"]) == 0


@pytest.mark.filterwarnings("ignore:the code of")
def test_a_file_of_the_working_directory(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("own")
    assert load_model("mymodel.py:make").name == "mine"
    assert main(["info", "mymodel.py:make"]) == 0
    small = ["images.crop=32", "images.size=32", "--steps", "2", "--output", "b", "--quiet"]
    grid = ["--operator", "inpaint", "--method", "ddnm", "--input", "../p.png"]
    assert main(["bench", "--model", "mymodel.py:make", *grid, *small]) == 0


@pytest.mark.filterwarnings("ignore:the code of")
@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("none.py:make", "there is no file none.py"),
        ("own/none.py:make", "there is no file own/none.py"),
        ("own/mymodel.py:mke", "has no function mke. Did you mean 'make'"),
        ("own/mymodel.py:word", "has no function word"),
        ("own/mymodel.py:number", "must return an invdiff.Denoiser, got int"),
        ("own/broken.py:make", "own/broken.py fails: ZeroDivisionError"),
        ("own/mymodel.py", "without a function: own/mymodel.py:make"),
    ],
)
def test_what_is_wrong_is_said(source: str, says: str, file: Path) -> None:
    Path("own/broken.py").write_text("1 / 0")
    with pytest.raises(ValueError, match=says):
        load_model(source)


def test_an_option_that_it_does_not_have(file: Path) -> None:
    with pytest.raises(ValueError, match="has no parameter 'colour'"):
        load_model("own/mymodel.py:make", colour=1)
