"""Numbers that a network is conditioned on, on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import invdiff
from invdiff.commands.main import main
from invdiff.images import read_image, write_image

CODE = """
import invdiff

def net(x, t, height, tint):
    return (0 * x + height.view(-1, 1, 1, 1)) * tint.view(-1, 3, 1, 1)

def make():
    return invdiff.Denoiser(
        net, predicts="x0", schedule="linear", data_range=(0, 1), channels=3, image_size=8
    )
"""
TINT = "cond.tint=[1,0.5,0]"


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A network that sees a flat image of one height and colour, whatever the state."""
    monkeypatch.chdir(tmp_path)
    Path("flat.py").write_text(CODE)
    return "flat.py:make"


def expected(height: float) -> torch.Tensor:
    return (height * torch.tensor([1.0, 0.5, 0.0])).view(1, 3, 1, 1).expand(1, 3, 8, 8)


def test_generate(model: str) -> None:
    command = ["generate", "--model", model, "--no-check", "--num-samples", "2", "--steps", "2"]
    assert main([*command, "--output", "out", "cond.height=0.25", TINT]) == 0
    for k in range(2):
        made = read_image(Path(f"out/sample_00{k}.png"))
        torch.testing.assert_close(made, expected(0.25), atol=0.51 / 255, rtol=0)
    config = json.loads(Path("out/result.json").read_text())["config"]
    assert config["cond"] == {"height": 0.25, "tint": [1, 0.5, 0]}


def test_solve_takes_them_for_every_image_of_a_batch(model: str) -> None:
    Path("in").mkdir()
    for name in "ab":
        write_image(Path("in") / f"{name}.png", torch.rand(3, 8, 8))
    command = ["solve", "--model", model, "--no-check", "--input", "in", "--operator", "denoise"]
    command += ["--method", "none", "--steps", "2", "--output"]
    assert main([*command, "out", "cond.height=1", TINT]) == 0
    for name in "ab":
        restored = read_image(Path("out") / name / "restored.png")
        torch.testing.assert_close(restored, expected(1.0), atol=0.51 / 255, rtol=0)
    assert main([*command, "other", "cond.height=0", TINT]) == 0
    assert float(read_image(Path("other/a/restored.png")).max()) == 0


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "cannot run without height, tint; give each as a keyword argument"),
        ([TINT, "cond.height=0.5", "cond.hight=1"], "takes no condition of that name"),
        ([TINT, "cond.height=high"], "cond.height is a number, or a list of numbers, got 'high'"),
        ([TINT, "cond.height=true"], "cond.height is a number, or a list of numbers, got True"),
        ([TINT, "cond.height=nan"], "cond.height is a number, or a list of numbers, got nan"),
        ([TINT, "cond.height=[]"], "cond.height is a number, or a list of numbers, got []"),
        ([TINT, "cond.height=1", "image_prompt=5"], "image_prompt is the file of an image, got 5"),
        (
            [TINT, "cond.height=1", "image_prompt=a.png", "--label", "3"],
            "--image-prompt and --label",
        ),
        (["cond=3"], "a condition has a name: cond.NAME=3"),
        (["~cond"], "'~cond' would delete what every run has"),
        (["~seed"], "'~seed' would delete what every run has"),
        ([TINT, "cond.height=1", "cond.label=3"], "network is not class-conditional"),
    ],
)
def test_what_cannot_be_is_refused(
    given: list[str], says: str, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image(Path("a.png"), torch.rand(3, 8, 8))
    restore = ["solve", "--input", "a.png", "--operator", "denoise", "--method", "none"]
    for command in (["generate"], restore):
        shared = ["--model", model, "--no-check", "--steps", "2", "--output", "out", "--quiet"]
        assert main([*command, *shared, *given]) == 2
        lines = [x for x in capsys.readouterr().err.splitlines() if "the code of" not in x]
        assert len(lines) == 1 and says in lines[0]
        assert not Path("out").exists()


def test_one_entry_is_for_all_images() -> None:
    denoiser = invdiff.Denoiser(
        lambda x, t, height: 0 * x + height.view(-1, 1, 1, 1),
        predicts="x0",
        schedule="linear",
    )
    shape, heights = (3, 1, 4, 4), torch.tensor([0.5])
    one = invdiff.generate(denoiser, shape, steps=2, height=heights).x
    assert torch.equal(one, invdiff.generate(denoiser, shape, steps=2, height=heights.repeat(3)).x)
    with pytest.raises(ValueError, match="one entry for each of the 3 images, or one for all"):
        invdiff.generate(denoiser, shape, steps=2, height=torch.rand(2))
