"""The measurement of blind deblurring: what its table says, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from invdiff.benchmarks.blind import main, table
from invdiff.images import sample_photo, write_image


def records(known: float, wrong: float, blind: float) -> list[dict[str, object]]:
    runs = {"known": known, "wrong": wrong, "unknown": blind}
    return [
        {
            "method": "ddrm",
            "blur": "box",
            "run": run,
            "kernel_error": 0.5,
            "lpips": lpips,
            "psnr": 20.0,
        }
        for run, lpips in runs.items()
    ]


def test_a_gap_is_closed_only_where_there_is_one() -> None:
    assert "| 75 % |" in table(records(0.1, 0.5, 0.2))
    # The wrong kernel restores better than the true one: worse than both is not 200 % of the way.
    text = table(records(0.5, 0.4, 0.6))
    assert "| none |" in text and "%" not in text.splitlines()[-1]


def test_what_cannot_be_run_is_said_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image(tmp_path / "small.png", sample_photo(64)[0])
    photo = tmp_path / "large" / "photo.png"
    photo.parent.mkdir()
    write_image(photo, sample_photo(128)[0])
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "blind.json").write_text(json.dumps([]))
    for given, output, said in (
        (["--input", str(tmp_path / "none")], "out", "matches nothing"),
        (["--input", str(tmp_path / "small.png")], "out", "must have 128 pixels"),
        (["--input", str(tmp_path), "--method", "dsp"], "out", "unknown method 'dsp'"),
        (["--input", str(photo), "--prior", "none"], "out", "unknown model 'none'"),
        (["--input", str(tmp_path)], "old", "is of another run"),
    ):
        with pytest.raises(SystemExit):
            main([*given, "--output", str(tmp_path / output)])
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
