"""The parts that trackers share."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Protocol

from invdiff.benchmarks.schema import Record, result_of
from invdiff.plugins.registry import load


class Tracker(Protocol):
    """Where the figures of records go."""

    def __init__(self, run: str, folder: Path) -> None: ...

    def log(self, step: int, row: str, values: Mapping[str, float]) -> None:
        """Logs the figures of a record.

        Args:
            step: how many records of the run are finished, this one included.
            row: operator, row and model, such as ``"inpaint/dps/photo64"``.
            values: by name.
        """

    def close(self) -> None:
        """Ends the run."""


def make_tracker(name: str, run: str, folder: Path) -> Tracker:
    """A tracker by its registered name.

    Args:
        name: such as ``"tensorboard"``.
        run: the name of the run.
        folder: of the records.

    Raises:
        ValueError: no such tracker, a package that is not installed, or what the tracker says
            where it cannot begin.
    """
    factory = load("trackers", name)
    try:
        return factory(run, folder)  # type: ignore[no-any-return]
    except ValueError:
        raise
    except Exception as error:  # servers, files and accounts fail in ways of their own
        said = str(error).strip() or type(error).__name__
        raise ValueError(f"--log {name} cannot begin: {said.splitlines()[0][:200]}") from error


def figures(record: Record) -> tuple[str, dict[str, float]]:
    """The row of a record and its figures: metrics, seconds and evaluations, those that there
    are."""
    cell, result = record["cell"], result_of(record)
    benchmark, model = cell.get("benchmark") or {}, cell.get("model") or {}
    named = (benchmark.get("name"), cell.get("label"), model.get("name"))
    values = {**result.get("metrics", {}), **{k: result.get(k) for k in ("seconds", "nfe", "nbe")}}
    row = "/".join(str(part) for part in named if part) or str(record["suite"])
    return row, {k: float(v) for k, v in values.items() if isinstance(v, int | float)}


def package(name: str) -> ModuleType:
    """A module of the package that comes with the extra of its first part's name.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        extra = name.partition(".")[0]
        raise ValueError(
            f"--log {extra} needs a package that is not here: pip install 'invdiff[{extra}]' "
            f"({error})"
        ) from error
