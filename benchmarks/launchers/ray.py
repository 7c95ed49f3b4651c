"""Tasks of Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from invdiff.benchmarks import harness
from invdiff.benchmarks.launchers.base import ATTEMPTS, Done, on_cuda, package
from invdiff.benchmarks.schema import Record, Task
from invdiff.benchmarks.suite import Work


class Ray:
    """Tasks of Ray, each with one CPU, and one GPU where it uses CUDA.

    Args:
        workers: tasks at the same time, at most; None is as many as the cluster has room for.
        address: of an existing cluster, ``"auto"`` for the one of this machine; None starts one
            here, with ``workers`` CPUs, for as long as the run takes. Where this process is
            connected to a cluster already, that one is used.
    """

    def __init__(self, workers: int | None = None, address: str | None = None) -> None:
        self.workers, self.address = workers, address
        self.ray: Any = package("ray")

    def __call__(
        self, suite: Work, tasks: Sequence[Task], folder: Path, context: Mapping[str, Any]
    ) -> Done:
        if not tasks:
            return
        mine = not self.ray.is_initialized()
        if mine:
            self._start()
        evaluate = self.ray.remote(num_cpus=1, max_retries=ATTEMPTS - 1)(harness.evaluate)
        waiting, flying = iter(tasks), dict[Any, Task]()
        try:
            while True:
                for task in islice(waiting, (self.workers or len(tasks)) - len(flying)):
                    begin = evaluate.options(num_gpus=int(on_cuda(task))).remote
                    flying[begin(suite, task, folder.absolute(), dict(context))] = task
                if not flying:
                    return
                for reference in self.ray.wait(list(flying))[0]:
                    task = flying.pop(reference)
                    yield task, self._records(reference, suite, task)
        finally:
            for reference in flying:
                self.ray.cancel(reference, force=True)
            if mine:
                self.ray.shutdown()

    def _start(self) -> None:
        own: dict[str, Any] = {}
        if not self.address:  # records are small
            own = {"num_cpus": self.workers, "object_store_memory": 2**27}
            own |= {"include_dashboard": False}
        # Its log would break the progress bar.
        address = self.address or "local"
        self.ray.init(address=address, log_to_driver=False, logging_level="ERROR", **own)

    def _records(self, reference: Any, suite: Work, task: Task) -> list[Record]:
        try:
            return self.ray.get(reference)
        except self.ray.exceptions.RayError as error:  # after the retries
            reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            return harness.failed(suite, task, reason, str(error))
