"""Baselines, launchers and suites of somebody else's package, as an entry point declares them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest

from invdiff.benchmarks.baselines import make_baseline
from invdiff.benchmarks.launchers import make_launcher
from invdiff.benchmarks.records import read_records
from invdiff.benchmarks.suite import make_suite
from invdiff.commands.main import main
from invdiff.plugins import registry
from invdiff.plugins.registry import PluginError, list_plugins

SOURCE = '''
from dataclasses import dataclass
from typing import ClassVar

from invdiff.benchmarks import harness
from invdiff.benchmarks.baselines import Baseline
from invdiff.benchmarks.suite import Suite
from invdiff.problem import LinearOperator


@dataclass(frozen=True)
class Adjoint(Baseline):
    """A* y, made brighter."""

    gain: float = 1.0

    def restore(self, measurement, denoiser, seed, ids):
        return self.gain * measurement.operator.adjoint(measurement.y)


class Plain:
    """No baseline."""


@dataclass(frozen=True)
class Backwards:
    """Evaluates the last task first, and writes down that it did."""

    workers: int | None = None
    note: str = "note"

    def __call__(self, suite, tasks, folder, context):
        for task in reversed(tasks):
            (folder / f"{self.note}.txt").write_text(f"{self.workers}")
            yield task, harness.evaluate(suite, task, folder, context)


class Powers(Suite):
    """Powers of numbers."""

    defaults = {"numbers": [1, 2, 3], "power": 2}

    def tasks(self, config):
        return [[{"number": n, "power": config["power"]}] for n in config["numbers"]]

    def evaluate(self, task, folder, context):
        return [{"value": cell["number"] ** cell["power"]} for cell in task]

    def report(self, config, records):
        return " ".join(str(r["result"]["value"]) for r in records)
'''
INSTALLED = {
    "baselines": {"mine": "Adjoint", "wrong": "Plain"},
    "launchers": {"mine": "Backwards"},
    "suites": {"powers": "Powers", "wrong": "Plain"},
}


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package with one of each kind, installed beside everything else."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "mine_of_benchmarks.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path / "path")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))  # of worker processes

    def installed(group: str) -> list[EntryPoint]:
        own = INSTALLED.get(group.removeprefix("invdiff."), {})
        return [*entry_points(group=group)] + [
            EntryPoint(name, f"mine_of_benchmarks:{what}", group) for name, what in own.items()
        ]

    monkeypatch.setattr(registry, "entry_points", installed)
    registry._found.cache_clear()
    yield
    registry._found.cache_clear()
    sys.modules.pop("mine_of_benchmarks", None)


@pytest.mark.parametrize("workers", [[], pytest.param(["--workers", "2"], marks=pytest.mark.slow)])
def test_a_suite_without_a_configuration_runs_by_its_name(
    workers: list[str], mine: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    command = ["bench", "--suite", "powers", "--output", str(folder), "power=3", *workers]
    assert main(command) == 0
    assert "1 8 27" in capsys.readouterr().out
    records = [json.loads(file.read_text()) for file in folder.glob("*.json")]
    assert {record["suite"] for record in records} == {"powers"} and len(records) == 3
    (file,) = (f for f in folder.glob("*.json") if json.loads(f.read_text())["cell"]["number"] == 2)
    assert main(["bench", "--reproduce", str(file)]) == 0
    assert main([*command[:5], "powr=3"]) == 2
    assert "powr" in capsys.readouterr().err


def test_a_configuration_names_a_suite_by_its_kind(mine: None, tmp_path: Path) -> None:
    """As ``kind: powers`` in a file of a config package does."""
    suite = make_suite("powers")
    assert suite.name == "powers"
    assert suite.tasks({"numbers": [5], "power": 1}) == [[{"number": 5, "power": 1}]]


def test_a_baseline_and_a_launcher_are_used_as_ours_are(
    mine: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    command = ["bench", "--baseline", "mine", "--operator", "inpaint", "--output", str(folder)]
    small = ["images.limit=1", "images.size=32", "metrics=[psnr]", "+baselines.mine.gain=0.5"]
    options = ["--launcher", "mine", "--workers", "7", "--launcher-option", "note=mine"]
    assert main([*command, *options, *small]) == 0
    assert "| mine |" in capsys.readouterr().out
    (record,) = read_records([folder])
    assert record["cell"]["run"]["parameters"] == {"gain": 0.5}
    assert (folder / "mine.txt").read_text() == "7"
    with pytest.raises(ValueError, match="launcher 'mine' has no parameter 'notes'"):
        make_launcher("mine", notes="x")


@pytest.mark.parametrize("make", [make_baseline, make_suite])
def test_what_is_registered_must_be_of_its_kind(make: Callable[[str], object], mine: None) -> None:
    with pytest.raises(PluginError, match="'wrong' is .*Plain.*; register .*subclass of invdiff"):
        make("wrong")


def test_ours_are_declared_through_the_same_groups() -> None:
    assert set(list_plugins("suites")) == {"conditional", "exact", "grid"}
    assert set(list_plugins("launchers")) == {"local", "ray", "submitit"}
    assert "invdiff.benchmarks.peers:DPS" in list_plugins("baselines")["deepinv_dps"]
