"""Jobs of SLURM, by way of submitit."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from invdiff.benchmarks import harness
from invdiff.benchmarks.launchers.base import ATTEMPTS, Done, on_cuda, package
from invdiff.benchmarks.schema import Record, Task
from invdiff.benchmarks.suite import Work
from invdiff.files import write_atomically

POLL = 0.5
"""Seconds between looks at what jobs have written."""
TAIL = 40
"""The last lines of a job's output that its failure keeps."""


class Slurm:
    """Jobs of SLURM by way of submitit, in one array; each evaluates its share of the tasks, one
    after another.

    A job that is preempted or reaches its time limit is queued again, up to three times, and goes
    on where it was. What jobs find comes through ``FOLDER/jobs``, so the folder must be on a disk
    that all machines share.

    Args:
        workers: how many jobs; None is one.
        cluster: ``"slurm"``, or ``"local"`` for processes of this machine; None is SLURM where
            there is one.
        parameters: of submitit's ``AutoExecutor.update_parameters``, such as ``slurm_partition``,
            ``timeout_min`` or ``mem_gb``. A job has four hours, one CPU, and one GPU if tasks use
            CUDA, unless they say otherwise.
    """

    def __init__(
        self, workers: int | None = None, cluster: str | None = None, **parameters: Any
    ) -> None:
        package("submitit")
        self.workers, self.cluster, self.parameters = workers, cluster, parameters

    def __call__(
        self, suite: Work, tasks: Sequence[Task], folder: Path, context: Mapping[str, Any]
    ) -> Done:
        if not tasks:
            return
        # Of this run alone: jobs of one that was killed may still be writing to theirs.
        (folder / "jobs").mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix="run-", dir=folder.absolute() / "jobs"))
        wanted = self._wanted(tasks)
        count = min(self.workers or 1, len(tasks))
        every = Share(suite, {}, folder.absolute(), dict(context), place, wanted["cpus_per_task"])
        shares = [
            replace(every, tasks=dict(islice(enumerate(tasks), k, None, count)))
            for k in range(count)
        ]
        jobs = _Jobs(self._executor(place, wanted))
        try:
            jobs.submit(shares)
            yield from jobs.work()
        finally:
            jobs.cancel()
            shutil.rmtree(place, ignore_errors=True)
            with suppress(OSError):  # another run's are there
                place.parent.rmdir()

    def _wanted(self, tasks: Sequence[Task]) -> dict[str, Any]:
        """The parameters of a job."""
        gpu = {"gpus_per_node": 1} if any(map(on_cuda, tasks)) else {}
        default = {"name": "invdiff", "timeout_min": 240, "cpus_per_task": 1}
        return gpu | default | self.parameters

    def _executor(self, place: Path, wanted: Mapping[str, Any]) -> Any:
        with _refusals():
            executor = package("submitit").AutoExecutor(place, cluster=self.cluster)
            executor.update_parameters(**wanted)
        return executor


class _Jobs:
    """Jobs that run, with the share of each. What a job that died leaves is submitted again."""

    def __init__(self, executor: Any) -> None:
        self.executor = executor
        self.running: dict[Any, Share] = {}
        self.yielded: set[int] = set()
        self.deaths: Counter[int] = Counter()

    def submit(self, shares: Sequence[Share]) -> None:
        """Queues a job for each share, in one array."""
        with _refusals(), self.executor.batch():
            jobs = [self.executor.submit(share) for share in shares]
        self.running.update(zip(jobs, shares, strict=True))

    def cancel(self) -> None:
        """Ends what still runs."""
        for job in self.running:
            job.cancel(check=False)

    def work(self) -> Done:
        """Yields tasks as their records appear, until all are done or given up."""
        while self.running:
            time.sleep(POLL)
            for job, share in list(self.running.items()):
                # Asking for the exception also waits until a shared disk has what the job wrote.
                output = str(job.exception()) if (over := job.done()) else ""
                left = {i: task for i, task in share.tasks.items() if i not in self.yielded}
                for i, found in share.found(left):
                    self.yielded.add(i)
                    yield left.pop(i), found
                if over:
                    del self.running[job]
                    yield from self._lost(share, left, output)

    def _lost(self, share: Share, left: dict[int, Task], output: str) -> Done:
        """Tasks that a job left and that are given up; the others are submitted again."""
        if not left:
            return
        first, lost = next(iter(left)), {}
        self.deaths[first] += 1
        if not share.begun(first).exists():
            # Then no task is to blame, and another job would do no better.
            lost, left = left, {}
        elif self.deaths[first] == ATTEMPTS:
            lost = {first: left.pop(first)}
        trace = "\n".join(output.splitlines()[-TAIL:])
        for task in lost.values():
            reason = "its job ended without a result"
            yield task, harness.failed(share.suite, task, reason, trace)
        if left:
            self.submit([replace(share, tasks=left)])


@contextmanager
def _refusals() -> Iterator[None]:
    """Parameters that do not exist, a cluster that is not here, a scheduler that takes no such job:
    for the user to mend."""
    try:
        yield
    except (AssertionError, NameError, RuntimeError, ValueError) as error:
        raise ValueError(f"submitit refuses the job: {error}") from error


@dataclass(frozen=True)
class Share:
    """The tasks that one job evaluates. The records of every task are a file, so that they arrive
    as they are made and a job that is queued again goes on where it was.

    Args:
        suite, folder, context: of the run.
        tasks: by number.
        place: where files go that are exchanged with jobs.
        threads: that a job uses.
    """

    suite: Work
    tasks: dict[int, Task]
    folder: Path
    context: dict[str, Any]
    place: Path
    threads: int

    def __call__(self) -> None:
        """Evaluates the tasks that have not been."""
        torch.set_num_threads(self.threads)
        for i, task in self.tasks.items():
            if not self.done(i).exists():
                self.begun(i).touch()
                write_atomically(
                    self.done(i),
                    json.dumps(harness.evaluate(self.suite, task, self.folder, self.context)),
                )

    def checkpoint(self) -> Any:
        """The submission that submitit queues when the job is preempted."""
        return package("submitit").helpers.DelayedSubmission(self)

    def begun(self, i: int) -> Path:
        """A file that is there once a task was begun."""
        return self.place / f"{i}.begun"

    def done(self, i: int) -> Path:
        """The file of a task's records."""
        return self.place / f"{i}.json"

    def found(self, among: Mapping[int, Task]) -> Iterator[tuple[int, list[Record]]]:
        """Tasks that are done, with their records; they are done in order."""
        for i in list(among):
            if not self.done(i).exists():
                return
            yield i, json.loads(self.done(i).read_text())
