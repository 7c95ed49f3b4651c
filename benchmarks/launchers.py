"""Where the tasks of a benchmark run: on this machine, in a Ray cluster, as jobs of SLURM.

Workers get plain data (the suite's name, tasks, folder and context) and import the suite
themselves. A task whose worker dies, as when memory runs out or a node is lost, is evaluated once
more; the second time it is recorded as failed, and the others go on. When a run ends or is
interrupted, so do its workers.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from invdiff.benchmarks import harness
from invdiff.benchmarks.harness import Launcher, Record, Task
from invdiff.files import write_atomically
from invdiff.plugins.registry import check_names, load

Done = Generator[tuple[Task, list[Record]], None, None]

ATTEMPTS = 2
"""How often a task is begun: the first worker may have died of something else."""
GRACE = 5.0
"""Seconds that a worker has to end by itself."""
POLL = 0.5
"""Seconds between looks at what jobs have written."""
TAIL = 40
"""Lines of what a job said last that its failure keeps."""


def make_launcher(name: str = "local", workers: int | None = None, **options: Any) -> Launcher:
    """A launcher by name.

    Args:
        name: ``"local"`` (:func:`local`), ``"ray"`` (:func:`on_ray`) or ``"submitit"``
            (:func:`by_submitit`).
        workers: how many tasks are evaluated at the same time, at most; None leaves it to the
            launcher.
        options: what the launcher takes besides.

    Raises:
        ValueError: no such launcher or option, fewer than one worker, or a package that is not
            installed.
    """
    make = load("launchers", name)
    if workers is not None and workers < 1:
        raise ValueError(f"--workers must be at least 1, got {workers}")
    takes = inspect.signature(make).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
        check_names(f"launcher {name!r}", options, [k for k in takes if k != "workers"])
    return make(workers, **options)


def on_cuda(task: Task) -> bool:
    """Whether the network of a task's cells is to run on a CUDA device."""
    models = [cell.get("model") for cell in task]
    return any(isinstance(model, Mapping) and model.get("device") == "cuda" for model in models)


def _package(name: str) -> ModuleType:
    """A package that comes with the extra of its name."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f"--launcher {name} needs a package that is not here: pip install "
            f"'invdiff[{name}]' ({error})"
        ) from error


# This machine -------------------------------------------------------------------------------------


def local(workers: int | None = None) -> Launcher:
    """Processes of this machine, one thread each; where tasks use CUDA each process sees one
    device, in turn.

    Args:
        workers: how many; None is one for each CUDA device that the tasks can use, else one. A
            single one is this process itself.
    """

    def launch(suite: str, tasks: Sequence[Task], folder: Path, context: Mapping[str, Any]) -> Done:
        devices = cuda_devices() if any(map(on_cuda, tasks)) else []
        count = workers or len(devices) or 1
        if count == 1:
            for task in tasks:
                yield task, harness.evaluate(suite, task, folder, context)
            return
        places = [
            {"CUDA_VISIBLE_DEVICES": devices[i % len(devices)]} if devices else {}
            for i in range(min(count, len(tasks)))
        ]
        waiting = deque((task, 1) for task in tasks)
        crew: list[_Worker] = []
        try:
            for place in places:
                crew.append(_Worker(place, suite, folder, context))
                crew[-1].begin(*waiting.popleft())
            while busy := {worker.connection: worker for worker in crew if worker.task}:
                for connection in wait(list(busy)):
                    worker = busy[connection]  # type: ignore[index]
                    task, attempt, found = worker.task, worker.attempt, []
                    try:
                        found = worker.records()
                    except ChildProcessError as error:
                        crew.remove(worker)
                        crew.append(worker := _Worker(worker.place, suite, folder, context))
                        if attempt < ATTEMPTS:
                            waiting.append((task, attempt + 1))
                        else:
                            found = harness.failed(
                                suite,
                                task,
                                f"a worker died at it {ATTEMPTS} times, the last time with {error}",
                            )
                    if waiting:
                        worker.begin(*waiting.popleft())
                    if found:
                        yield task, found
        finally:
            for worker in crew:
                worker.process.terminate()
            for worker in crew:
                worker.process.join(GRACE)
                worker.process.kill()
                worker.process.join()

    return launch


def cuda_devices() -> list[str]:
    """What this process may use, as ``CUDA_VISIBLE_DEVICES`` names it."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (
        [str(k) for k in range(torch.cuda.device_count())]
        if given is None
        else [d for d in given.split(",") if d]
    )


class _Worker:
    """A process that evaluates one task at a time, so that one that dies tells which task it
    was."""

    def __init__(
        self, place: Mapping[str, str], suite: str, folder: Path, context: Mapping[str, Any]
    ) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.place = place
        self.task: Task = []
        self.attempt = 0
        self.connection, theirs = spawn.Pipe()
        self.process = spawn.Process(
            target=_serve, args=(theirs, suite, folder, dict(context)), daemon=True
        )
        with _environment(
            {"OMP_NUM_THREADS": "1"} | dict(place)
        ):  # it is there before the process imports anything
            self.process.start()
        theirs.close()  # so that the end of the process is the end of the connection

    def begin(self, task: Task, attempt: int) -> None:
        """Sends a task."""
        self.task, self.attempt = task, attempt
        with suppress(OSError):  # the process died meanwhile: records() tells
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


def _serve(connection: Connection, suite: str, folder: Path, context: Mapping[str, Any]) -> None:
    """Evaluates what comes, as long as somebody is there to send it."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches all processes; the one that started this one decides
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


# Ray ----------------------------------------------------------------------------------------------


def on_ray(workers: int | None = None, address: str | None = None) -> Launcher:
    """Tasks of Ray, each with one CPU, and one GPU where it uses CUDA.

    Args:
        workers: tasks at the same time, at most; None is as many as the cluster has room for.
        address: of an existing cluster, ``"auto"`` for the one of this machine; None starts one
            here, with ``workers`` CPUs, for as long as the run takes. Where this process is
            connected to a cluster already, that one is used.
    """
    ray: Any = _package("ray")

    def launch(suite: str, tasks: Sequence[Task], folder: Path, context: Mapping[str, Any]) -> Done:
        if not tasks:
            return
        if mine := not ray.is_initialized():
            own = (
                {}
                if address
                else {"num_cpus": workers, "include_dashboard": False, "object_store_memory": 2**27}
            )  # records are small
            ray.init(
                address=address or "local", log_to_driver=False, logging_level="ERROR", **own
            )  # its log breaks the progress bar
        evaluate = ray.remote(num_cpus=1, max_retries=ATTEMPTS - 1)(harness.evaluate)
        waiting = iter(tasks)
        flying: dict[Any, Task] = {}
        try:
            while True:
                for task in islice(waiting, (workers or len(tasks)) - len(flying)):
                    reference = evaluate.options(num_gpus=int(on_cuda(task))).remote(
                        suite, task, folder.absolute(), dict(context)
                    )
                    flying[reference] = task
                if not flying:
                    return
                for reference in ray.wait(list(flying))[0]:
                    task = flying.pop(reference)
                    try:
                        found = ray.get(reference)
                    except ray.exceptions.RayError as error:  # after the retries
                        found = harness.failed(
                            suite,
                            task,
                            f"{type(error).__name__}: {str(error).splitlines()[0]}",
                            str(error),
                        )
                    yield task, found
        finally:
            for reference in flying:
                ray.cancel(reference, force=True)
            if mine:
                ray.shutdown()

    return launch


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
    submitit: Any = _package("submitit")

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
        return _package("submitit").helpers.DelayedSubmission(self)

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
