"""The parts that launchers share."""

from __future__ import annotations

import importlib
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType

import torch

from invdiff.benchmarks.schema import Record, Task

Done = Generator[tuple[Task, list[Record]], None, None]

ATTEMPTS = 2
"""How often a task is begun: the first worker may have died of something else."""


def on_cuda(task: Task) -> bool:
    """Whether the network of a task's cells is to run on a CUDA device."""
    models = [cell.get("model") for cell in task]
    return any(isinstance(model, Mapping) and model.get("device") == "cuda" for model in models)


def package(name: str) -> ModuleType:
    """A package that comes with the extra of its name.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f"--launcher {name} needs a package that is not here: pip install "
            f"'invdiff[{name}]' ({error})"
        ) from error


@contextmanager
def pinned(threads: int) -> Iterator[None]:
    """This process with a number of threads, for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
