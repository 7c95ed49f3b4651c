"""Runs a grid of cells: each one's record is written when it is finished, and what is there already is not run again.

A cell is plain data that says all that its result depends on. A suite is a module with four functions:

    cells(config) -> list[Cell]           the grid
    context(config) -> dict               what evaluating takes besides, such as where files are
    evaluate(cell, **context) -> dict     what was found, as plain data
    report(config, records) -> str        the records as Markdown

A cell that fails is recorded with its failure and runs again the next time; it does not stop the others.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import multiprocessing
import platform
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from invdiff.files import write_atomically

Cell = dict[str, Any]
Record = dict[str, Any]

FORMAT = 1
"""Of the records; it is part of what makes a record that of a cell."""


def key(cell: Cell) -> str:
    """A short name that changes with anything in the cell."""
    content = json.dumps({"format": FORMAT, "cell": cell}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def run(
    suite: str, cells: Sequence[Cell], context: Mapping[str, Any], folder: Path, workers: int = 1, progress: bool = True
) -> list[Record]:
    """The record of every cell, in order; those that the folder does not hold yet are evaluated.

    Args:
        suite: module of the suite, e.g. ``"invdiff.benchmarks.exact"``.
        cells, context: of the suite.
        folder: where the records are, one JSON file each.
        workers: processes that evaluate cells at the same time.
        progress: show a bar over all cells with the time left and the current cell.
    """
    from tqdm.auto import tqdm

    folder.mkdir(parents=True, exist_ok=True)
    records = {k: record for k, record in ((key(cell), read(folder, cell)) for cell in cells) if record is not None}
    pending = [cell for cell in {key(c): c for c in cells}.values() if key(cell) not in records]
    with tqdm(total=len(cells), initial=len(cells) - len(pending), disable=not progress, unit="cell") as bar:
        for cell, record in _evaluated(suite, pending, context, workers):
            write_atomically(folder / f"{key(cell)}.json", json.dumps(record, indent=2) + "\n")
            records[key(cell)] = record
            bar.set_postfix_str(" ".join(str(v) for v in cell.values() if isinstance(v, str | int)), refresh=False)
            bar.update()
    return [records[key(cell)] for cell in cells]


def read(folder: Path, cell: Cell) -> Record | None:
    """The finished record of a cell, if the folder holds one; failures are not finished."""
    try:
        record = json.loads((folder / f"{key(cell)}.json").read_text())
    except (OSError, json.JSONDecodeError):
        return None
    return None if "failure" in record else record


def _evaluated(suite: str, cells: Sequence[Cell], context: Mapping[str, Any], workers: int) -> Iterator[tuple[Cell, Record]]:
    if workers == 1:
        for cell in cells:
            yield cell, _evaluate(suite, cell, context)
        return
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,))
    try:
        waiting = {pool.submit(_evaluate, suite, cell, context): cell for cell in cells}
        for done in as_completed(waiting):
            yield waiting[done], done.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _evaluate(suite: str, cell: Cell, context: Mapping[str, Any]) -> Record:
    record: Record = {"format": FORMAT, "suite": suite, "cell": cell, "versions": versions()}
    try:
        return record | {"result": importlib.import_module(suite).evaluate(cell, **context)}
    except Exception as error:
        return record | {"failure": {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}}


def versions() -> Mapping[str, str]:
    """What the figures of a record were made with."""
    return {p: version(p) for p in ("invdiff", "torch", "deepinv")} | {"python": platform.python_version()}


def mean_and_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half of its 95 % interval by the normal approximation, 1.96 sd/sqrt(n); zero for one value."""
    x = torch.tensor(values, dtype=torch.float64)
    return float(x.mean()), float(1.96 * x.std() / len(x) ** 0.5) if len(x) > 1 else 0.0
