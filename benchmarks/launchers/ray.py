"""Tasks of Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from invdiff.benchmarks import harness
from invdiff.benchmarks.harness import Launcher, Task
from invdiff.benchmarks.launchers.base import ATTEMPTS, Done, on_cuda, package

# Ray ----------------------------------------------------------------------------------------------


def on_ray(workers: int | None = None, address: str | None = None) -> Launcher:
    """Tasks of Ray, each with one CPU, and one GPU where it uses CUDA.

    Args:
        workers: tasks at the same time, at most; None is as many as the cluster has room for.
        address: of an existing cluster, ``"auto"`` for the one of this machine; None starts one
            here, with ``workers`` CPUs, for as long as the run takes. Where this process is
            connected to a cluster already, that one is used.
    """
    ray: Any = package("ray")

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
