"""The output folders of runs: repeated, stopped, overwritten, and what they leave alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from invdiff import Measurement
from invdiff.commands.main import main
from invdiff.images import read_image, sample_photo, write_image

FAST = ["--steps", "2", "--method", "none", "--quiet"]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of three photographs; the working directory is beside it."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "in"
    folder.mkdir()
    photo = sample_photo(64)[0]
    for k, name in enumerate("abc"):
        write_image(folder / f"{name}.png", photo[..., k : k + 48, :40])
    return folder


def solve(*arguments: str, method: str = "none") -> int:
    return main(["solve", "--steps", "2", "--quiet", "--method", method, *arguments])


def stamps(folder: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*.png")}


def test_the_same_command_again_has_nothing_to_do(photos: Path) -> None:
    assert solve("--input", "in") == 0
    (out,) = Path().glob("invdiff-*")
    before = stamps(out)
    assert solve("--input", "in") == 0
    assert stamps(out) == before and [*Path().glob("invdiff-*")] == [out]
    assert solve("--input", "in", "--overwrite") == 0
    after = stamps(out)
    assert after.keys() == before.keys() and all(after[k] > before[k] for k in before)


def test_another_run_gets_a_folder_of_its_own(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert solve("--input", "in/a.png") == 0
    assert solve("--input", "in/a.png", "--seed", "1") == 0
    assert sorted(p.name for p in Path().glob("invdiff-*")) == [
        "invdiff-inpaint-none",
        "invdiff-inpaint-none-2",
    ]
    assert solve("--input", "in/a.png", "--seed", "2", "--output", "invdiff-inpaint-none") == 2
    assert "holds the results of another run; choose another --output" in capsys.readouterr().err


@pytest.mark.parametrize(
    "stop", [pytest.param(signal.SIGKILL, marks=pytest.mark.slow), signal.SIGTERM]
)
def test_a_stopped_run_goes_on_where_it_was(stop: signal.Signals, photos: Path) -> None:
    command = [sys.executable, "-m", "invdiff", "solve", "--input", "in", "--output", "out"]
    command += ["--operator", "denoise", "--method", "dps", "--steps", "8", "--quiet"]
    command += ["--batch-size", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not Path("out/a/result.json").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(stop)
    said = process.communicate(timeout=60)[1]
    if stop == signal.SIGTERM:
        assert process.returncode == 130
        assert said.strip().splitlines()[-1] == "interrupted; what was finished is kept"
    assert not Path("out/summary.json").exists()
    stamp = Path("out/a/result.json").stat().st_mtime_ns
    assert main(command[3:]) == 0
    assert Path("out/a/result.json").stat().st_mtime_ns == stamp
    summary = json.loads(Path("out/summary.json").read_text())
    assert [r["name"] for r in summary["results"]] == ["a", "b", "c"]
    assert not [*Path("out").rglob(".new-*")] or stop == signal.SIGKILL


def test_a_run_that_was_stopped_before_it_enlarged_goes_on(photos: Path) -> None:
    command = ["--input", "in/a.png", "--output", "out", "--upscale", "bicubic"]
    assert solve(*command) == 0
    whole = json.loads(Path("out/result.json").read_text())
    assert "upscaled.png" in whole["files"]
    stopped = {k: v for k, v in whole.items() if k != "upscale"}
    stopped["files"] = [name for name in whole["files"] if name != "upscaled.png"]
    Path("out/result.json").write_text(json.dumps(stopped))
    Path("out/upscaled.png").unlink()
    assert solve(*command) == 0
    assert Path("out/upscaled.png").is_file()
    assert json.loads(Path("out/result.json").read_text())["upscale"] == whole["upscale"]


def test_a_picture_of_a_folder_can_be_made_again_alone(photos: Path) -> None:
    assert solve("--input", "in", "--output", "all") == 0
    assert solve("--input", "in/c.png", "--output", "alone") == 0
    together, alone = (read_image(Path(p) / "restored.png") for p in ("all/c", "alone"))
    # A batch is computed in another order: equal to rounding.
    assert (together - alone).abs().max() < 1.5 / 255
    assert solve("--input", "in", "--output", "each", "--batch-size", "1") == 0
    assert torch.equal(read_image(Path("each/c/restored.png")), alone)
    record = json.loads(Path("alone/result.json").read_text())
    more = ["--image-id", str(record["image_id"]), "--output", "by_id"]
    Path("in/c.png").rename("in/renamed.png")
    assert solve("--input", "in/renamed.png", *more) == 0
    assert torch.equal(alone, read_image(Path("by_id/restored.png")))


def test_what_is_not_ours_is_left_alone(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = Path("out")
    out.mkdir()
    (out / "thesis.tex").write_text("precious")
    (out / "result.json").write_text(json.dumps({"files": ["thesis.tex"]}))
    assert solve("--input", "in/a.png", "--output", "out") == 2
    assert "holds other files" in capsys.readouterr().err
    assert solve("--input", "in/a.png", "--output", "out", "--overwrite") == 0
    assert (out / "thesis.tex").read_text() == "precious"
    (out / "result.json").write_text("{ broken")
    assert solve("--input", "in/a.png", "--output", "out") == 0, "a broken record is made again"


def test_overwriting_with_fewer_images_names_the_others(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert solve("--input", "in", "--output", "out") == 0
    (photos / "b.png").unlink()
    assert solve("--input", "in", "--output", "out", "--overwrite") == 0
    assert "images of an earlier run, which stay: b" in capsys.readouterr().err
    summary = json.loads(Path("out/summary.json").read_text())
    assert [r["name"] for r in summary["results"]] == ["a", "c"]


def test_what_is_degraded_needs_to_be_said(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert solve("--measurement", "in/a.png") == 2
    assert "say what is wrong with in/a.png: --mask FILE" in capsys.readouterr().err
    assert solve("--input", "in/a.png", "--sigma", "25") == 2
    assert "did you mean 25/255 = 0.098?" in capsys.readouterr().err
    assert not [*Path().glob("invdiff-*")]


def test_files_honour_the_umask(photos: Path) -> None:
    before = os.umask(0o077)
    try:
        assert solve("--input", "in/a.png", "--output", "out") == 0
    finally:
        os.umask(before)
    assert Path("out/result.json").stat().st_mode & 0o777 == 0o600


def test_an_image_that_memory_does_not_suffice_for_takes_no_other_with_it(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from invdiff.commands import session as command

    real, calls = command.solve, []

    def short(*arguments: object, **options: object) -> object:
        calls.append(1)
        if len(calls) in (1, 3):  # the batch, and b alone
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*arguments, **options)

    monkeypatch.setattr(command, "solve", short)
    assert solve("--input", "in", "--output", "out") == 2
    said = capsys.readouterr().err
    assert "b: error: memory ran out for one image alone; model.tile=256" in said
    summary = json.loads(Path("out/summary.json").read_text())
    assert ["error" in r for r in summary["results"]] == [False, True, False]
    assert solve("--input", "in", "--output", "out") == 0, "the same command tries b again"
    assert len(calls) == 5


def test_images_of_one_size_are_one_batch(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from invdiff.commands import session as command

    real, batches = command.solve, []

    def watched(measurement: object, *rest: object, **options: object) -> object:
        batches.append(len(measurement))  # type: ignore[arg-type]
        return real(measurement, *rest, **options)

    monkeypatch.setattr(command, "solve", watched)
    write_image(photos / "d.png", sample_photo(64)[0])
    assert solve("--input", "in", "--output", "out") == 0
    assert batches == [3, 1]
    assert solve("--input", "in", "--output", "two", "--batch-size", "2") == 0
    assert batches[2:] == [2, 1, 1]
    assert solve("--input", "in", "--output", "many", "--num-samples", "2") == 0
    record = json.loads(Path("many/b/result.json").read_text())
    assert record["run"]["num_samples"] == 2 and "metrics_of_mean" in record
    blurred = [
        "--measurement",
        "in",
        "--operator",
        "blur",
        "--sigma",
        "auto",
        "--output",
        "blurred",
    ]
    assert solve(*blurred) == 0
    assert batches[-2:] == [3, 1]
    sigmas = {
        json.loads(p.read_text())["measurement"]["sigma"]
        for p in Path("blurred").glob("*/result.json")
    }
    assert len(sigmas) == 4, "each photograph has its own"


def test_a_blurred_photograph_goes_on_beyond_its_border(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["solve", "--operator", "blur", "--steps", "2", "--method", "none"]
    assert main([*command, "--measurement", "in/a.png", "--output", "file"]) == 0
    assert "border valid" in capsys.readouterr().err
    assert read_image(Path("file/restored.png")).shape == read_image(Path("in/a.png")).shape
    assert Measurement.load("file/measurement.safetensors").image_shape == (3, 64, 56)
    assert main([*command, "--input", "in/a.png", "--output", "simulated"]) == 0
    assert "border circular" in capsys.readouterr().err
    chosen = ["--measurement", "in/a.png", "operator.border=reflect", "--output", "chosen"]
    assert main([*command, *chosen]) == 0
    assert "border reflect" in capsys.readouterr().err


def test_a_long_run_says_what_takes_less(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from invdiff.commands import forecast

    command = ["solve", "--input", "in", "--method", "none", "--steps", "8", "--operator", "hdr"]
    assert main([*command, "--output", "short"]) == 0
    assert "in all" not in capsys.readouterr().err
    monkeypatch.setattr(forecast, "LONG", 0.0)
    assert main([*command, "--output", "long", "--batch-size", "1"]) == 0
    said = capsys.readouterr().err
    assert said.count(" s in all; --steps 2 takes a quarter") == 1, said


def test_a_spread_that_is_no_posteriors_is_called_so(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["solve", "--input", "in/a.png", "--operator", "denoise", "--steps", "2"]
    for method, meant in (("diffpir", False), ("ddrm", True)):
        many = ["--method", method, "--num-samples", "2", "--output", method]
        assert main([*command, *many]) == 0
        assert ("not meant as draws" in capsys.readouterr().err) != meant
        record = json.loads(Path(method, "result.json").read_text())
        assert record["run"]["posterior"] == meant


def test_images_that_are_scored_are_clipped(photos: Path) -> None:
    command = ["solve", "--input", "in/a.png", "--operator", "sr", "--method", "dps"]
    more = ["--steps", "2", "guidance.zeta=30", "model.clip=false", "--quiet", "--output", "out"]
    assert main([*command, *more]) == 0
    metrics = json.loads(Path("out/result.json").read_text())["metrics"]
    assert all(isinstance(value, float) for value in metrics.values())


def test_a_file_that_changed_is_another_request(photos: Path) -> None:
    """A mask of the same name with other pixels, and the axes of a scan, are asked for, too."""
    mask = torch.ones(1, 48, 40)
    write_image("mask.png", mask)
    masked = ["--input", "in/a.png", "--operator", "inpaint", "operator.mask=mask.png"]
    assert solve(*masked, "--output", "out") == 0
    before = stamps(Path("out"))
    assert solve(*masked, "--output", "out") == 0 and stamps(Path("out")) == before
    mask[:, 20:30] = 0
    write_image("mask.png", mask)
    assert solve(*masked, "--output", "out") == 2  # the folder holds another run
    assert solve(*masked, "--output", "again") == 0
    write_image("map.png", torch.ones(1, 48, 40))
    mapped = ["--input", "in/a.png", "--operator", "denoise", "--output", "mapped"]
    mapped += ["guidance.strength_map=map.png"]
    assert solve(*mapped, method="sdedit") == 0
    write_image("map.png", mask)
    assert solve(*mapped, method="sdedit") == 2  # of a method's file as well
    np.save("x.npy", np.random.default_rng(0).random((8, 8, 8), np.float32))
    scan = ["--input", "x.npy", "--range", "0,1", "--operator", "denoise", "--output", "scan"]
    assert solve(*scan, "--axes", "ZYX") == 0
    assert solve(*scan, "--axes", "YXZ") == 2


@pytest.mark.slow
def test_several_processes_restore_what_one_does(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By name of a launcher; what is finished stays, one that fails takes no other with it."""
    (photos / "d.png").write_bytes(b"no picture")
    (photos / "0.png").write_bytes(b"nor the first")
    one, two = ("--input", "in", "--output", "one"), ("--input", "in", "--output", "two")
    alone = [*one, "--batch-size", "1"]
    assert solve(*alone) == 2 and solve(*two, "--batch-size", "1", "--workers", "2") == 2
    assert "2 of 5 images failed: 0, d" in capsys.readouterr().err
    for name in ("a", "b", "c"):
        x, y = (read_image(Path(run) / name / "restored.png") for run in ("one", "two"))
        assert (x - y).abs().max() < 1.5 / 255  # the numbers of threads differ
    summaries = [json.loads(Path(run, "summary.json").read_text()) for run in ("one", "two")]
    assert [[r["name"] for r in s["results"]] for s in summaries] == [["0", "a", "b", "c", "d"]] * 2
    before = stamps(Path("two"))
    (Path("two") / "b" / "result.json").unlink()
    assert solve(*two, "--batch-size", "1", "--launcher", "local") == 2  # d is no picture still
    after = stamps(Path("two"))
    assert {p for p in before if after[p] != before[p]} == {p for p in before if "/b/" in p}
    assert solve(*two, "--batch-size", "1", "--workers", "0") == 2
    assert "--workers must be at least 1" in capsys.readouterr().err
