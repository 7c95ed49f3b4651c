"""Checks of suites."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from invdiff.benchmarks.schema import key
from invdiff.benchmarks.suite import Suite
from invdiff.testing.imports import importing
from invdiff.testing.report import Skip, expect


@dataclass(frozen=True)
class Case:
    """A suite under test.

    Attributes:
        suite: made with its name.
        config: one that takes seconds; the class's ``defaults``, where it states some.
        module: whose import is tried.
    """

    suite: Suite
    config: Mapping[str, Any]
    module: str

    def example(self) -> Mapping[str, Any]:
        """The configuration to try."""
        if not self.config:
            raise Skip("it states no defaults, a configuration to try")
        return self.config


def plain(case: Case) -> str:
    """Tasks and context are plain data, the same every time, and no two cells are equal."""
    config = case.example()
    tasks, again = case.suite.tasks(config), case.suite.tasks(config)
    expect(json.dumps(tasks) == json.dumps(again), "it makes other tasks the second time")
    json.dumps(case.suite.context(config))
    cells = [key(cell) for task in tasks for cell in task]
    expect(bool(cells), "its defaults have no cells")
    expect(len(set(cells)) == len(cells), "two cells are equal, so that one record serves both")
    return f"{len(cells)} cells"


def evaluates(case: Case) -> str:
    """A task gives a result of plain data for each of its cells, and their records a report."""
    config = case.example()
    task = case.suite.tasks(config)[0]
    with tempfile.TemporaryDirectory() as folder:
        results = case.suite.evaluate(task, Path(folder), case.suite.context(config))
    expect(len(results) == len(task), f"of {len(task)} cells it gives {len(results)} results")
    records: list[Any] = [
        {"cell": cell, "result": json.loads(json.dumps(result))}
        for cell, result in zip(task, results, strict=True)
    ]
    expect(isinstance(case.suite.report(config, records), str), "its report is no text")
    return f"{len(results)} results"


def imports(case: Case) -> str:
    """Importing its module does nothing else."""
    return importing(case.module)


CHECKS: dict[str, Callable[[Case], str]] = {f.__name__: f for f in (plain, evaluates, imports)}
