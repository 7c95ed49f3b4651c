"""``invdiff bench --log``: figures of records arrive as they are written."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import launched
import pytest
from recorded import record

from invdiff.benchmarks import harness
from invdiff.benchmarks.launchers import make_launcher
from invdiff.benchmarks.trackers import figures, make_tracker
from invdiff.commands.main import main
from invdiff.plugins.registry import list_plugins

QUICK = ["bench", "--method", "dps", "--operator", "inpaint", "--quiet"]
SMALL = ["images.names=[astronaut]", "images.size=32", "metrics=[psnr]", "methods.dps.steps=2"]


def test_figures_of_a_record() -> None:
    row, values = figures(record(25.0))  # type: ignore[arg-type]
    assert row == "inpaint/dps/photo64"
    assert (values["psnr"], values["seconds"], values["nfe"]) == (25.0, 2.0, 100.0)
    assert "psnr" not in figures(record(None))[1]  # type: ignore[arg-type]
    assert figures(record(instead={"result": {"refused": "no"}}))[1] == {}  # type: ignore[arg-type]


def test_each_record_is_told_once_it_is_written(tmp_path: Path) -> None:
    seen: list[tuple[int, bool]] = []

    def written(step: int, found: Any) -> None:
        seen.append((step, (tmp_path / f"{harness.key(found['cell'])}.json").is_file()))

    tasks, launcher = launched.tasks("noise", "noise"), make_launcher()
    for _ in range(2):  # what is finished is not told again
        harness.run(launched.LAUNCHED, tasks, {}, tmp_path, launcher, False, written)
    assert seen == [(1, True), (2, True), (3, True), (4, True)]


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="needs tensorboard")
def test_tensorboard_has_the_figures_of_a_run(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert main([*QUICK, "--log", "tensorboard", "--output", str(tmp_path), *SMALL]) == 0
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (record_file,) = tmp_path.glob("*.json")
    found = events.Scalars("inpaint/dps/photo64/psnr")
    assert [e.step for e in found] == [1] and f"{found[0].value:.3f}" in _psnr(record_file)


def _psnr(file: Path) -> str:
    import json

    return f"{json.loads(file.read_text())['result']['metrics']['psnr']:.3f}"


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="needs mlflow")
def test_mlflow_has_the_figures_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    run = tmp_path / "run"
    assert main([*QUICK, "--log", "mlflow", "--output", str(run), *SMALL]) == 0
    (found,) = mlflow.search_runs(experiment_names=["invdiff"], output_format="list")
    (record_file,) = run.glob("*.json")
    assert found.info.run_name == "run" and found.info.status == "FINISHED"
    assert f"{found.data.metrics['inpaint/dps/photo64/psnr']:.3f}" in _psnr(record_file)


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="needs wandb")
def test_wandb_keeps_a_run_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert main([*QUICK, "--log", "wandb", "--output", str(tmp_path), *SMALL]) == 0
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb")) and list(tmp_path.glob("*.json"))


def test_a_tracker_that_cannot_begin_says_so_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Closed:
        def __init__(self, run: str, folder: Path) -> None:
            raise ConnectionError("no server at http://tracker\nfor many reasons")

    monkeypatch.setattr("invdiff.benchmarks.trackers.base.load", lambda kind, name: Closed)
    assert main([*QUICK, "--log", "tensorboard", "--output", str(tmp_path), *SMALL]) == 2
    said = capsys.readouterr().err
    assert "--log tensorboard cannot begin: no server at http://tracker" in said
    assert "reasons" not in said and not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize(
    "name", [n for n in ("mlflow", "wandb") if not importlib.util.find_spec(n)]
)
def test_a_missing_package_is_named(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*QUICK, "--log", name, "--output", str(tmp_path), *SMALL]) == 2
    assert f"pip install 'invdiff[{name}]'" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.json"))


def test_an_unknown_tracker_is_refused(tmp_path: Path) -> None:
    assert {"mlflow", "tensorboard", "wandb"} <= set(list_plugins("trackers"))
    with pytest.raises(
        ValueError, match="unknown tracker 'tensorbord'. Did you mean 'tensorboard'"
    ):
        make_tracker("tensorbord", "run", tmp_path)
