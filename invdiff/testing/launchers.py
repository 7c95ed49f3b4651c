"""Checks of launchers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from invdiff.benchmarks import harness
from invdiff.benchmarks.harness import Launcher
from invdiff.benchmarks.schema import Record, Result, Task
from invdiff.benchmarks.suite import Suite
from invdiff.testing.imports import importing
from invdiff.testing.report import expect


class Squares(Suite):
    """Squares of numbers; 3 fails."""

    def tasks(self, config: Mapping[str, Any]) -> list[Task]:
        return [[{"n": n}, {"n": -n}] for n in range(1, 6)]

    def context(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return {"power": 2}

    def evaluate(self, task: Task, folder: Path, context: Mapping[str, Any]) -> list[Result]:
        if task[0]["n"] == 3:
            raise ValueError("3 cannot be squared here")
        return [{"square": cell["n"] ** context["power"]} for cell in task]

    def report(self, config: Mapping[str, Any], records: Sequence[Record]) -> str:
        return str([r.get("result") for r in records])


@dataclass(frozen=True)
class Case:
    """A launcher under test, made for two workers, and the module whose import is tried."""

    make: Callable[..., Launcher]
    module: str


def runs(case: Case) -> str:
    """Every task is evaluated once; what fails is recorded as its failure and stops no other."""
    suite = Squares("squares")
    with tempfile.TemporaryDirectory() as folder:
        records = harness.run(
            suite,
            suite.tasks({}),
            suite.context({}),
            Path(folder),
            case.make(2),
            progress=False,
        )
    squares = [r["result"]["square"] for r in records if "result" in r]
    expect(squares == [1, 1, 4, 4, 16, 16, 25, 25], f"of -5..5 without 3 it recorded {squares}")
    failed = [r["failure"]["error"] for r in records if "failure" in r]
    expect(
        len(failed) == 2 and all("cannot be squared" in error for error in failed),
        f"the cells that fail were recorded as {failed}",
    )
    return "10 cells, 2 of which fail"


def imports(case: Case) -> str:
    """Importing its module does nothing else."""
    return importing(case.module)


CHECKS: dict[str, Callable[[Case], str]] = {f.__name__: f for f in (runs, imports)}
