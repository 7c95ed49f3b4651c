"""Jobs of SLURM, by way of submitit."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from invdiff.benchmarks import harness
from invdiff.benchmarks.harness import Launcher, Record, Task
from invdiff.benchmarks.launchers.base import ATTEMPTS, Done, on_cuda, package
from invdiff.files import write_atomically

POLL = 0.5
"""Seconds between looks at what jobs have written."""


TAIL = 40
"""Lines of what a job said last that its failure keeps."""


# SLURM --------------------------------------------------------------------------------------------


def by_submitit(
    workers: int | None = None, cluster: str | None = None, **parameters: Any
) -> Launcher:
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
    submitit: Any = package("submitit")

    def launch(suite: str, tasks: Sequence[Task], folder: Path, context: Mapping[str, Any]) -> Done:
        if not tasks:
            return
        # Of this run alone: jobs of one that was killed may still be writing to theirs.
        (folder / "jobs").mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix="run-", dir=folder.absolute() / "jobs"))
        wanted: dict[str, Any] = {
            "name": "invdiff",
            "timeout_min": 240,
            "cpus_per_task": 1,
        } | parameters
        if any(map(on_cuda, tasks)):
            wanted = {"gpus_per_node": 1} | wanted
        with _refusals():
            executor = submitit.AutoExecutor(place, cluster=cluster)
            executor.update_parameters(**wanted)
        running: dict[Any, Share] = {}
        told: set[int] = set()
        deaths: Counter[int] = Counter()

        def submit(*shares: dict[int, Task]) -> None:
            made = [
                Share(
                    suite, share, folder.absolute(), dict(context), place, wanted["cpus_per_task"]
                )
                for share in shares
            ]
            with _refusals(), executor.batch():
                jobs = [executor.submit(share) for share in made]
            running.update(zip(jobs, made, strict=True))

        try:
            count = min(workers or 1, len(tasks))
            submit(*(dict(islice(enumerate(tasks), k, None, count)) for k in range(count)))
            while running:
                time.sleep(POLL)
                for job, share in list(running.items()):
                    # Asking for the exception also waits until a shared disk shows what the job
                    # wrote.
                    said = str(job.exception()) if (over := job.done()) else ""
                    left = {i: task for i, task in share.tasks.items() if i not in told}
                    for i, found in share.found(left):
                        told.add(i)
                        yield left.pop(i), found
                    if over:
                        del running[job]
                    if over and left:
                        first, lost = next(iter(left)), {}
                        deaths[first] += 1
                        if not share.begun(
                            first
                        ).exists():  # then no task is to blame, and another job would do no better
                            lost, left = left, {}
                        elif deaths[first] == ATTEMPTS:
                            lost = {first: left.pop(first)}
                        for task in lost.values():
                            yield (
                                task,
                                harness.failed(
                                    suite,
                                    task,
                                    "its job ended without a result",
                                    "\n".join(said.splitlines()[-TAIL:]),
                                ),
                            )
                        if left:
                            submit(left)
        finally:
            for job in running:
                job.cancel(check=False)
            shutil.rmtree(place, ignore_errors=True)
            with contextlib.suppress(OSError):  # another run's are there
                place.parent.rmdir()

    return launch


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
    """What one job evaluates. The records of every task are a file, so that they are told as they
    come and a job that is queued again goes on where it was.

    Args:
        suite, folder, context: of the run.
        tasks: by number.
        place: where files go that are exchanged with jobs.
        threads: that a job uses.
    """

    suite: str
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
        """What submitit queues when the job is preempted."""
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
