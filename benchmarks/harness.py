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
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import cache
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
    if old := sum(r.get("environment", {}).get("code") != code() for r in records.values()):
        warnings.warn(
            f"{old} of the records in {folder} were made by another version of the code; remove them to measure again", stacklevel=2
        )
    pending = [cell for cell in {key(c): c for c in cells}.values() if key(cell) not in records]
    with tqdm(total=len(cells), initial=len(cells) - len(pending), disable=not progress, unit="cell") as bar:
        for cell, record in _evaluated(suite, pending, context, workers):
            write_atomically(folder / f"{key(cell)}.json", json.dumps(record, indent=2) + "\n")
            records[key(cell)] = record
            bar.set_postfix_str(" ".join(str(v) for v in cell.values() if isinstance(v, str | int)), refresh=False)
            bar.update()
    return [records[key(cell)] for cell in cells]


def check(records: Sequence[Record], folder: Path) -> None:
    """Raises a ValueError if cells failed, which says how many and the first reason."""
    if failed := [r["failure"]["error"] for r in records if "failure" in r]:
        raise ValueError(
            f"{len(failed)} of {len(records)} cells failed, the first with {failed[0]}; their records in {folder} say why, and the same "
            "command tries again"
        )


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
            try:
                yield waiting[done], done.result()
            except BrokenProcessPool as error:  # a worker was killed, and takes those that wait with it
                yield waiting[done], _record(suite, waiting[done]) | {"failure": {"error": f"a worker died: {error}", "traceback": ""}}
    finally:
        pool.shutdown(cancel_futures=True)


def _evaluate(suite: str, cell: Cell, context: Mapping[str, Any]) -> Record:
    record = _record(suite, cell)
    try:
        return record | {"result": importlib.import_module(suite).evaluate(cell, **context)}
    except Exception as error:
        return record | {"failure": {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}}


def _record(suite: str, cell: Cell) -> Record:
    return {"format": FORMAT, "suite": suite, "cell": cell, "environment": environment()}


def environment() -> dict[str, Any]:
    """What the figures of a record were made with; seconds compare only under one processor and number of threads."""
    versions = {p: version(p) for p in ("invdiff", "torch", "deepinv")} | {"python": platform.python_version()}
    return versions | {"code": code(), "processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}


@cache
def code() -> str:
    """A digest of the package's modules: records made by other code are told."""
    import invdiff.benchmarks
    import invdiff.guidance
    import invdiff.operators

    digest = hashlib.sha256()
    for package in (invdiff, invdiff.benchmarks, invdiff.guidance, invdiff.operators):
        for folder in package.__path__:
            for file in sorted(Path(folder).rglob("*.py")):
                digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def mean_and_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half of its 95 % interval by the normal approximation, 1.96 sd/sqrt(n); zero for one value."""
    x = torch.tensor(values, dtype=torch.float64)
    return float(x.mean()), float(1.96 * x.std() / len(x) ** 0.5) if len(x) > 1 else 0.0
