"""Runs the cells of a suite: each one's record is written when it is finished, and what is there
already is not run again.

A cell is plain data that says all that its result depends on; a task is a list of cells that are
evaluated together (:class:`~invdiff.benchmarks.suite.Suite`). A cell that fails is recorded with
its failure and runs again the next time; it does not stop the others. Where tasks run is up to a
launcher (:mod:`invdiff.benchmarks.launchers`); this process alone writes records.
"""

from __future__ import annotations

import json
import traceback
import warnings
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from invdiff.benchmarks.environment import code, environment
from invdiff.benchmarks.schema import (
    FORMAT,
    Cell,
    Record,
    Result,
    Task,
    alone,
    digest,
    key,
    published,
)
from invdiff.benchmarks.suite import Work
from invdiff.files import write_atomically

__all__ = [
    "FORMAT",
    "Cell",
    "Launcher",
    "Record",
    "Result",
    "Task",
    "check",
    "digest",
    "evaluate",
    "failed",
    "key",
    "read",
    "run",
    "task_of",
]

Launcher = Callable[
    [Work, Sequence[Task], Path, Mapping[str, Any]],
    Generator[tuple[Task, list[Record]], None, None],
]
"""Evaluates tasks of a suite somewhere, with :func:`evaluate`, and yields each as it is done, in
any order."""


def task_of(cell: Cell) -> Task:
    """The cells that are evaluated together with this one: those of its batch of images, if it says
    one."""
    return [{**cell, "image": image} for image in cell["batch"]] if "batch" in cell else [cell]


def run(
    suite: Work,
    tasks: Sequence[Task],
    context: Mapping[str, Any],
    folder: Path,
    launcher: Launcher,
    progress: bool = True,
    written: Callable[[int, Record], None] | None = None,
) -> list[Record]:
    """The record of every cell, in order; tasks that the folder does not hold whole are evaluated.

    Args:
        suite: whose tasks these are.
        tasks, context: of the suite.
        folder: where the records are, one JSON file each.
        launcher: where tasks run.
        progress: show a bar over all cells with the time left and the current cell.
        written: called with each record once it is written, and how many are finished.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cells = [cell for task in tasks for cell in task]
    records = {key(c): record for c in cells if (record := read(folder, c)) is not None}
    _warn_of_old(records.values(), folder)
    # A task runs as a whole, so that what is missing of a batch is computed in the same batch
    # again.
    pending = [
        task
        for task in {key(t[0]): t for t in tasks}.values()
        if not all(key(cell) in records for cell in task)
    ]
    bar = _Bar(len(cells), pending, progress)
    with bar, closing(launcher(suite, pending, folder, context)) as done:
        # However this ends, so do the workers.
        for task, found in done:
            for cell, record in zip(task, found, strict=True):
                if key(cell) not in records:
                    text = json.dumps(record, indent=2) + "\n"
                    write_atomically(folder / f"{key(cell)}.json", text)
                    records[key(cell)] = record
                    if written is not None:
                        written(len(records), record)
            bar.advance(task)
    return [records[key(cell)] for cell in cells]


def _warn_of_old(records: Iterable[Record], folder: Path) -> None:
    if old := sum(r.get("environment", {}).get("code") != code() for r in records):
        warnings.warn(
            f"{old} of the records in {folder} were made by another version of the code; "
            "remove them to measure again",
            stacklevel=3,
        )


class _Bar:
    """A progress bar over cells, beside it the first of those that are not done."""

    def __init__(self, total: int, pending: Sequence[Task], progress: bool) -> None:
        from tqdm.auto import tqdm

        done = total - sum(map(len, pending))
        self.bar = tqdm(total=total, initial=done, disable=not progress, unit="cell")
        self.waiting = {key(task[0]): task for task in pending}
        self.bar.set_postfix_str(_summary(pending[0]) if pending else "")

    def __enter__(self) -> None:
        self.bar.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.bar.__exit__(*error)

    def advance(self, task: Task) -> None:
        """Counts a task as done."""
        self.waiting.pop(key(task[0]))
        current = next(iter(self.waiting.values()), task)
        self.bar.set_postfix_str(_summary(current), refresh=False)
        self.bar.update(len(task))


def _summary(task: Task) -> str:
    """Cells in few words: the names, texts and numbers of the first, and how many more there
    are."""
    parts = [v.get("name") if isinstance(v, dict) else v for v in task[0].values()]
    more = f" +{len(task) - 1}" if len(task) > 1 else ""
    return " ".join(str(v) for v in parts if isinstance(v, str | int)) + more


def check(records: Sequence[Record], folder: Path) -> None:
    """Raises a ValueError if cells failed, which says how many and the first reason."""
    if failures := [r["failure"]["error"] for r in records if "failure" in r]:
        raise ValueError(
            f"{len(failures)} of {len(records)} cells failed, the first with {failures[0]}; "
            f"their records in {folder} say why, and the same "
            "command tries again"
        )


def read(folder: Path, cell: Cell) -> Record | None:
    """The finished record of a cell, if the folder holds one, perhaps of a run with fewer images or
    seeds; failures are not finished."""
    file = folder / f"{key(cell)}.json"
    try:
        record = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:  # of text that is no UTF-8 as well
        _warn_of_damage(file, f"{type(error).__name__}: {error}")
        return None
    known = record.get("cell") if isinstance(record, dict) else None
    if not (isinstance(known, dict) and alone(known) == alone(cell)):
        _warn_of_damage(file, "it is no record of the cell that its name stands for")
        return None
    if "failure" in record or "result" not in record:
        return None
    return {**record, "cell": cell}  # type: ignore[return-value]


def _warn_of_damage(file: Path, why: str) -> None:
    warnings.warn(f"{file} is damaged ({why}); its cell runs again", stacklevel=4)


def evaluate(suite: Work, task: Task, folder: Path, context: Mapping[str, Any]) -> list[Record]:
    """The record of each cell of a task; what is raised is recorded as their failure."""
    try:
        results = suite.evaluate(task, folder, context)
        json.dumps(results)  # what is no plain data fails here, and not where records are written
        return [
            {**_record(suite, cell), "result": result}
            for cell, result in zip(task, results, strict=True)
        ]
    except Exception as error:
        return failed(suite, task, f"{type(error).__name__}: {error}", traceback.format_exc())


def failed(suite: Work, task: Task, error: str, trace: str = "") -> list[Record]:
    """Records of cells that have no result; folders of this machine are left out of them."""
    return [
        {
            **_record(suite, cell),
            "failure": {
                "error": published(error, 2000) or "no message",
                "traceback": published(trace, 100_000),
            },
        }
        for cell in task
    ]


def _record(suite: Work, cell: Cell) -> Record:
    return {"format": FORMAT, "suite": suite.name, "cell": cell, "environment": environment()}
