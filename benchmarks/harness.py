"""Runs the cells of a suite: each one's record is written when it is finished, and what is there
already is not run again.

A cell is plain data that says all that its result depends on. A task is a list of cells that are
evaluated together, such as the images of one batch. A suite is a :class:`Suite`.

A cell that fails is recorded with its failure and runs again the next time; it does not stop the
others. Where tasks run is up to a launcher (:mod:`invdiff.benchmarks.launchers`); this process
alone writes records.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import platform
import subprocess
import traceback
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from invdiff.files import write_atomically
from invdiff.plugins.registry import load

Cell = dict[str, Any]
Task = list[Cell]
Result = dict[str, Any]
Record = dict[str, Any]
Launcher = Callable[
    [str, Sequence[Task], Path, Mapping[str, Any]], Generator[tuple[Task, list[Record]], None, None]
]
"""Evaluates tasks of a suite (as :func:`suite_of` takes it) somewhere, with :func:`evaluate`, and
yields each as it is done, in any order."""

FORMAT = 2
"""Of the records; it is part of what makes a record that of a cell."""


class Suite(ABC):
    """Which cells there are, how one is evaluated, and what their records say together.

    Registered in the entry-point group ``invdiff.suites``; ``kind`` of a suite's configuration is
    that name.
    """

    @abstractmethod
    def tasks(self, config: Mapping[str, Any]) -> list[Task]:
        """The grid of a configuration; what is wrong with it is a ValueError."""

    @abstractmethod
    def context(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Whatever else evaluating needs, such as where files are, as plain data."""

    @abstractmethod
    def context_of(
        self, cell: Cell, source: str | None, network: str | None, allow_pickle: bool
    ) -> dict[str, Any]:
        """The same for one cell of a record, whose images are in ``source`` and whose network is
        ``network``."""

    @abstractmethod
    def evaluate(self, task: Task, folder: Path, context: Mapping[str, Any]) -> list[Result]:
        """The result of each cell of a task; pictures and the like go into the folder."""

    @abstractmethod
    def report(self, config: Mapping[str, Any], records: Sequence[Record]) -> str:
        """The records as Markdown."""


def suite_of(reference: str) -> Suite:
    """A suite by its registered name, or by ``module:Class`` where none is registered.

    Raises:
        ValueError: an unknown name; says which there are.
    """
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)() if name else load("suites", module)()


def key(cell: Cell) -> str:
    """A short name that changes with anything in the cell."""
    return digest({"format": FORMAT, "cell": cell})[:16]


def digest(plain: Any) -> str:
    """SHA-256 of plain data."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def task_of(cell: Cell) -> Task:
    """The cells that are evaluated together with this one: those of its batch of images, if it says
    one."""
    return [cell | {"image": image} for image in cell["batch"]] if "batch" in cell else [cell]


def run(
    suite: str,
    tasks: Sequence[Task],
    context: Mapping[str, Any],
    folder: Path,
    launcher: Launcher,
    progress: bool = True,
) -> list[Record]:
    """The record of every cell, in order; tasks that the folder does not hold whole are evaluated.

    Args:
        suite: as :func:`suite_of` takes it, e.g. ``"exact"``.
        tasks, context: of the suite.
        folder: where the records are, one JSON file each.
        launcher: where tasks run.
        progress: show a bar over all cells with the time left and the current cell.
    """
    from tqdm.auto import tqdm

    folder.mkdir(parents=True, exist_ok=True)
    cells = [cell for task in tasks for cell in task]
    records = {
        k: record
        for k, record in ((key(cell), read(folder, cell)) for cell in cells)
        if record is not None
    }
    if old := sum(r.get("environment", {}).get("code") != code() for r in records.values()):
        warnings.warn(
            f"{old} of the records in {folder} were made by another version of the code; "
            "remove them to measure again",
            stacklevel=2,
        )
    # A task runs as a whole, so that what is missing of a batch is computed in the same batch
    # again.
    pending = [
        task
        for task in {key(t[0]): t for t in tasks}.values()
        if not all(key(cell) in records for cell in task)
    ]
    bar = tqdm(
        total=len(cells),
        initial=len(cells) - sum(map(len, pending)),
        disable=not progress,
        unit="cell",
    )
    with (
        bar,
        closing(launcher(suite, pending, folder, context)) as done,
    ):  # however this ends, so do the workers
        waiting = {key(task[0]): task for task in pending}
        bar.set_postfix_str(_shown(pending[0]) if pending else "")
        for task, found in done:
            for cell, record in zip(task, found, strict=True):
                if key(cell) not in records:
                    write_atomically(
                        folder / f"{key(cell)}.json", json.dumps(record, indent=2) + "\n"
                    )
                    records[key(cell)] = record
            waiting.pop(key(task[0]))
            bar.set_postfix_str(_shown(next(iter(waiting.values()), task)), refresh=False)
            bar.update(len(task))
    return [records[key(cell)] for cell in cells]


def _shown(task: Task) -> str:
    """What tells people which cells these are: the names, texts and numbers of the first, and how
    many more there are."""
    parts = [v.get("name") if isinstance(v, dict) else v for v in task[0].values()]
    return " ".join(str(v) for v in parts if isinstance(v, str | int)) + (
        f" +{len(task) - 1}" if len(task) > 1 else ""
    )


def check(records: Sequence[Record], folder: Path) -> None:
    """Raises a ValueError if cells failed, which says how many and the first reason."""
    if failed := [r["failure"]["error"] for r in records if "failure" in r]:
        raise ValueError(
            f"{len(failed)} of {len(records)} cells failed, the first with {failed[0]}; "
            f"their records in {folder} say why, and the same "
            "command tries again"
        )


def read(folder: Path, cell: Cell) -> Record | None:
    """The finished record of a cell, if the folder holds one; failures are not finished."""
    try:
        record = json.loads((folder / f"{key(cell)}.json").read_text())
    except (OSError, json.JSONDecodeError):
        return None
    return record if record.get("cell") == cell and "failure" not in record else None


def evaluate(suite: str, task: Task, folder: Path, context: Mapping[str, Any]) -> list[Record]:
    """The record of each cell of a task; what is raised is recorded as their failure."""
    try:
        results = suite_of(suite).evaluate(task, folder, context)
        json.dumps(results)  # what is no plain data fails here, and not where records are written
        return [
            record(suite, cell) | {"result": result}
            for cell, result in zip(task, results, strict=True)
        ]
    except Exception as error:
        return failed(suite, task, f"{type(error).__name__}: {error}", traceback.format_exc())


def failed(suite: str, task: Task, error: str, trace: str = "") -> list[Record]:
    """Records of cells that have no result."""
    return [
        record(suite, cell) | {"failure": {"error": error, "traceback": trace}} for cell in task
    ]


def record(suite: str, cell: Cell) -> Record:
    """What every record of a cell says."""
    return {"format": FORMAT, "suite": suite, "cell": cell, "environment": environment()}


def environment() -> dict[str, Any]:
    """What the figures of a record were made with; seconds compare only under one processor and
    number of threads."""
    versions = {p: version(p) for p in ("invdiff", "torch", "deepinv")} | {
        "python": platform.python_version()
    }
    made = {
        "code": code(),
        "git": git(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
    }
    return versions | made


@cache
def processor() -> str:
    """The processor's model where the system tells, else its kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


@cache
def git() -> str | None:
    """The commit of the checkout that this code runs from, with ``+dirty`` if it was edited since;
    None where it was installed."""
    here = Path(__file__).resolve().parent

    def ask(*command: str) -> str:
        return subprocess.run(
            ["git", *command], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        ask(
            "ls-files", "--error-unmatch", Path(__file__).name
        )  # an environment within some other checkout is not ours
        return ask("rev-parse", "HEAD") + (
            "+dirty" if ask("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return None


@cache
def code() -> str:
    """A digest of the package's modules: records made by other code are told."""
    import invdiff.benchmarks
    import invdiff.guidance
    import invdiff.operators

    content = hashlib.sha256()
    for package in (invdiff, invdiff.benchmarks, invdiff.guidance, invdiff.operators):
        for folder in package.__path__:
            for file in sorted(Path(folder).rglob("*.py")):
                content.update(file.read_bytes())
    return content.hexdigest()[:16]


def mean_and_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half of its 95 % interval by the normal approximation, 1.96 sd/sqrt(n); zero for
    one value."""
    x = torch.tensor(values, dtype=torch.float64)
    return float(x.mean()), float(1.96 * x.std() / len(x) ** 0.5) if len(x) > 1 else 0.0
