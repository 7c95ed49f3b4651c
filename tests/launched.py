"""A suite for the tests of launchers: what a cell says happens to the worker that evaluates it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from invdiff.benchmarks.schema import Cell, Record, Result, Task, digest
from invdiff.benchmarks.suite import Suite
from invdiff.noise import generator_of


def tasks(*does: str) -> list[Task]:
    """Tasks of two cells each."""
    return [
        [{"does": what, "number": number, "image": k} for k in range(2)]
        for number, what in enumerate(does)
    ]


class Launched(Suite):
    """Noise, unless something else is asked for."""

    def tasks(self, config: Mapping[str, Any]) -> list[Task]:
        return tasks(*config["does"])

    def evaluate(self, task: Task, folder: Path, context: Mapping[str, Any]) -> list[Result]:
        return evaluate(task, folder, **context)

    def report(self, config: Mapping[str, Any], records: Sequence[Record]) -> str:
        """A line for each cell."""
        return "\n".join(
            f"{r['cell']} {r.get('result', r.get('failure', {}).get('error'))}" for r in records
        )


LAUNCHED = Launched("launched")


def evaluate(task: Task, folder: Path, scale: float = 1.0) -> list[Result]:
    does, number = task[0]["does"], task[0]["number"]
    begun = folder / f"{number}.pid"
    first = not begun.exists()
    if does != "noise":
        temporary = folder / f"{number}.part"
        temporary.write_text(str(os.getpid()))
        temporary.rename(begun)
    match does:
        case "raise":
            raise RuntimeError(f"task {number} is wrong")
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "wait":
            tqdm.get_lock()  # a semaphore of the system, which somebody has to remove
            time.sleep(120)
        case "wait once" if first:
            time.sleep(120)
        case "tensor":
            return [{"noise": torch.zeros(2)} for _ in task]
        case "one":
            return [{}]
    return [_noise(cell, scale) for cell in task]


def _noise(cell: Cell, scale: float) -> Result:
    x = scale * torch.randn(
        64, 64, generator=generator_of("launched", cell["number"], cell["image"])
    )
    seen = (
        {k: os.environ.get(k) for k in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")}
        if cell["does"] == "look"
        else {}
    )
    return {"noise": digest(x.tolist()), "norm": float((x @ x).norm())} | seen
