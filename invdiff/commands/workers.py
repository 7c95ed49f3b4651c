"""Images restored by several processes, through the launchers of ``invdiff bench``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from invdiff.benchmarks.harness import Launcher
from invdiff.benchmarks.launchers import make_launcher
from invdiff.benchmarks.schema import Cell, Result, Task
from invdiff.benchmarks.suite import Work
from invdiff.commands.common import load_models, place_prompt
from invdiff.commands.forecast import Forecast
from invdiff.commands.jobs import Job, find_jobs, saved_measurement
from invdiff.commands.session import Session
from invdiff.config import build_method, build_operator

SHARES = 4
"""Tasks of each worker, when all are equally fast."""


def launcher_of(args: argparse.Namespace) -> Launcher:
    """The launcher that the arguments ask for.

    Raises:
        ValueError: no such launcher or option, or fewer than one worker.
    """
    from omegaconf import OmegaConf

    options: Any = OmegaConf.to_container(OmegaConf.from_dotlist(args.launcher_option))
    return make_launcher(args.launcher or "local", args.workers, **options)


class Images(Work):
    """Some images of a run; a worker restores those of a task as ``solve`` does alone."""

    def evaluate(self, task: Task, folder: Path, context: Mapping[str, Any]) -> Sequence[Result]:
        """The records of images, each complete on disk, by their names."""
        session, jobs = _session(context["run"], folder)
        wanted = {cell["image"] for cell in task}
        found = {job.name: record for job, record in session([j for j in jobs if j.name in wanted])}
        return [found[cell["image"]] for cell in task]


@lru_cache(1)
def _session(run: str, output: Path) -> tuple[Session, list[Job]]:
    """The run that a worker belongs to, made ready once."""
    given = json.loads(run)
    args, config, request = argparse.Namespace(**given["args"]), given["config"], given["request"]
    args.range = args.range and tuple(args.range)
    denoiser, upscaler = load_models(args, config)
    saved = saved_measurement(args)
    operator = build_operator(config) if saved is None else saved.operator
    prompted = place_prompt(config, denoiser, args)
    method, jobs = build_method(prompted), find_jobs(args, denoiser, saved)
    return Session(
        args,
        config,
        operator,
        method,
        prompted["cond"],
        denoiser,
        upscaler,
        request,
        output,
        len(jobs),
        Forecast(len(jobs), show=False),
        introduces=False,
    ), jobs


def spread(session: Session, jobs: Sequence[Job]) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Restores images in several processes; each result is complete on disk when it is yielded.

    Args:
        session: with the number of workers, the launcher and its options among the arguments.
        jobs: in any order, which the results need not keep.

    Raises:
        ValueError: no such launcher; a request that cannot work.
    """
    from tqdm.auto import tqdm

    args = session.args
    launcher = launcher_of(args)
    by_name, waiting = {job.name: job for job in jobs}, list[Job]()
    for job in jobs:
        if (record := session.finished(job)) is not None:
            yield job, record
        else:
            waiting.append(job)
    for job in waiting[:1]:
        with suppress(ValueError, OSError, RuntimeError):  # its record says why
            session.introduce(session.measured(job))
    device = session.denoiser.device
    session.denoiser.to("cpu")  # the workers need what it holds of a GPU
    model = {"device": device.type if device is not None else "cpu"}
    cells: list[Cell] = [{"image": job.name, "model": model} for job in waiting]
    size = max(1, len(cells) // (SHARES * (args.workers or 1)))
    tasks = [cells[k : k + size] for k in range(0, len(cells), size)]
    given = {
        "args": vars(args) | {"quiet": True},
        "config": session.config,
        "request": session.request,
    }
    context = {"run": json.dumps(given, default=str)}
    bar = tqdm(total=len(jobs), initial=len(jobs) - len(waiting), disable=args.quiet, unit="image")
    with bar, closing(launcher(Images("solve"), tasks, session.output, context)) as done:
        for task, found in done:
            bar.update(len(task))
            for cell, outcome in zip(task, found, strict=True):
                job, failed = by_name[cell["image"]], outcome.get("failure")
                yield job, session.failure(job, failed["error"]) if failed else outcome["result"]
