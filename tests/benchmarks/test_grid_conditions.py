"""What a network is conditioned on, in a grid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from invdiff.commands.main import main
from invdiff.images import write_image


@pytest.fixture
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    write_image(Path("photo.png"), torch.rand(3, 32, 32))
    return "photo.png"


def records(folder: str) -> list[dict[str, Any]]:
    files = sorted(Path(folder).glob("*.json"))
    return [r for r in map(json.loads, (f.read_text() for f in files)) if "cell" in r]


def test_a_prompt_is_part_of_a_row(
    photo: str, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["bench", "--model", str(folders["sd"]), "--input", photo, "--operator", "sr"]
    command += ["--method", "cfg", "--steps", "2", "--quiet", "operators.sr.factor=2"]
    command += ["metrics=[psnr]", "images.crop=null", "images.size=null", "--output"]
    assert main([*command, "without"]) == 0
    (refused,) = records("without")
    assert "cannot run without encoder_hidden_states" in refused["result"]["refused"]
    given = ['prompt=[a cat,"the dog, on"]', "methods.cfg.negative_prompt=blurry"]
    assert main([*command, "with", f"methods.cfg.{given[0]}", given[1]]) == 0
    found = {r["cell"]["run"]["prompt"]: r["result"] for r in records("with")}
    assert set(found) == {"a cat", "the dog, on"}
    one, other = (result["restoration"] for result in found.values())
    assert one != other
    assert main([*command, "all", "prompt=a cat", given[1]]) == 0
    (same,) = records("all")
    assert same["cell"]["run"]["prompt"] == "a cat"
    assert same["result"]["restoration"] == found["a cat"]["restoration"]
    capsys.readouterr()
    again = ["bench", "--reproduce", "all", "--input", photo, "--model", str(folders["sd"])]
    assert main(again) == 0


def test_rows_without_conditions_are_what_they_were(photo: str) -> None:
    """No key of theirs says so: their records stay those of their cells."""
    command = ["bench", "--input", photo, "--operator", "denoise", "--method", "none"]
    assert (
        main(
            [
                *command,
                "--steps",
                "2",
                "metrics=[psnr]",
                "images.crop=32",
                "images.size=32",
                "--quiet",
                "--output",
                "out",
            ]
        )
        == 0
    )
    (record,) = records("out")
    assert not {"cond", "prompt", "negative_prompt"} & set(record["cell"]["run"])
