"""Processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from invdiff.benchmarks import harness
from invdiff.benchmarks.launchers.base import ATTEMPTS, Done, on_cuda, pinned
from invdiff.benchmarks.schema import Record, Task
from invdiff.benchmarks.suite import Work

GRACE = 5.0
"""Seconds that a worker has to end by itself."""


@dataclass(frozen=True)
class Local:
    """Processes of this machine; where tasks use CUDA each process sees one device, in turn.

    Sums are added in another order with another number of threads, so a run has the same number
    whether its processes are one or many.

    Args:
        workers: how many; None is one for each CUDA device that the tasks can use, else one. A
            single one is this process itself.
        threads: of each process.

    Raises:
        ValueError: fewer than one thread.
    """

    workers: int | None = None
    threads: int = 1

    def __post_init__(self) -> None:
        if type(self.threads) is not int or self.threads < 1:
            raise ValueError(f"threads must be a whole number, at least 1, got {self.threads!r}")

    def __call__(
        self, suite: Work, tasks: Sequence[Task], folder: Path, context: Mapping[str, Any]
    ) -> Done:
        devices = cuda_devices() if any(map(on_cuda, tasks)) else []
        count = self.workers or len(devices) or 1
        if count == 1:
            for task in tasks:
                with pinned(self.threads):  # not while others look at what is yielded
                    found = harness.evaluate(suite, task, folder, context)
                yield task, found
            return
        places = [
            {"CUDA_VISIBLE_DEVICES": devices[i % len(devices)]} if devices else {}
            for i in range(min(count, len(tasks)))
        ]
        places = [{"OMP_NUM_THREADS": str(self.threads)} | place for place in places]
        yield from _Crew(suite, folder, context).work(places, tasks)


class _Crew:
    """Processes that share tasks. One that dies is replaced."""

    def __init__(self, suite: Work, folder: Path, context: Mapping[str, Any]) -> None:
        self.suite, self.folder, self.context = suite, folder, context
        self.workers: list[_Worker] = []
        self.waiting: deque[tuple[Task, int]] = deque()

    def work(self, places: Sequence[Mapping[str, str]], tasks: Sequence[Task]) -> Done:
        """Evaluates tasks in a process for each place (its environment variables)."""
        self.waiting.extend((task, 1) for task in tasks)
        try:
            for place in places:
                self._begin(self._hire(place))
            while busy := {worker.connection: worker for worker in self.workers if worker.task}:
                for connection in wait(list(busy)):
                    worker = busy[connection]  # type: ignore[index]
                    task = worker.task
                    if found := self._records(worker):
                        yield task, found
        finally:
            self._dismiss()

    def _hire(self, place: Mapping[str, str]) -> _Worker:
        self.workers.append(_Worker(place, self.suite, self.folder, self.context))
        return self.workers[-1]

    def _begin(self, worker: _Worker) -> None:
        if self.waiting:
            worker.begin(*self.waiting.popleft())

    def _records(self, worker: _Worker) -> list[Record]:
        """The results of a worker, which then begins its next task; nothing where it died and its
        task is tried again."""
        task, attempt, found = worker.task, worker.attempt, list[Record]()
        try:
            found = worker.records()
        except ChildProcessError as error:
            self.workers.remove(worker)
            worker = self._hire(worker.place)
            if attempt < ATTEMPTS:
                self.waiting.append((task, attempt + 1))
            else:
                reason = f"a worker died at it {ATTEMPTS} times, the last time with {error}"
                found = harness.failed(self.suite, task, reason)
        self._begin(worker)
        return found

    def _dismiss(self) -> None:
        for worker in self.workers:
            worker.process.terminate()
        for worker in self.workers:
            worker.process.join(GRACE)
            worker.process.kill()
            worker.process.join()


def cuda_devices() -> list[str]:
    """The devices that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (
        [str(k) for k in range(torch.cuda.device_count())]
        if given is None
        else [d for d in given.split(",") if d]
    )


class _Worker:
    """A process that evaluates one task at a time, so that it is known at which task
    it died."""

    def __init__(
        self, place: Mapping[str, str], suite: Work, folder: Path, context: Mapping[str, Any]
    ) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.place = place
        self.task: Task = []
        self.attempt = 0
        self.connection, theirs = spawn.Pipe()
        self.process = spawn.Process(
            target=_serve, args=(theirs, suite, folder, dict(context)), daemon=True
        )
        # The environment is there before the process imports anything.
        with _environment(place):
            self.process.start()
        theirs.close()  # so that the end of the process is the end of the connection

    def begin(self, task: Task, attempt: int) -> None:
        """Sends a task."""
        self.task, self.attempt = task, attempt
        with suppress(OSError):  # the process died meanwhile, which records() reports
            self.connection.send(task)

    def records(self) -> list[Record]:
        """Of the task; raises a ChildProcessError that says how the process ended, if it did."""
        self.task = []
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode or 0
            raise ChildProcessError(
                signal.Signals(-code).name if code < 0 else f"exit code {code}"
            ) from None


def _serve(connection: Connection, suite: Work, folder: Path, context: Mapping[str, Any]) -> None:
    """Evaluates what comes, as long as somebody is there to send it."""
    # Ctrl-C reaches all processes; the one that started this one decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # nothing half-written is left behind
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError):
        while True:
            connection.send(harness.evaluate(suite, connection.recv(), folder, context))


def _end_with_parent() -> None:
    """Ends this process when the one that started it is gone, in whatever way, so that it holds no
    device in vain."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for processes that are started meanwhile."""
    before = {k: os.environ.get(k) for k in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for k, old in before.items():
            if old is None:
                del os.environ[k]
            else:
                os.environ[k] = old
