"""A run of ``invdiff solve``: images restored in batches, each complete on disk as it is done."""

from __future__ import annotations

import argparse
import math
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from invdiff import images
from invdiff.commands.common import Watch, batch_size, record_of
from invdiff.commands.folder import claim, digest, finished, replaced
from invdiff.commands.forecast import Forecast
from invdiff.commands.jobs import Job, measure
from invdiff.commands.results import (
    check_worth,
    metrics,
    write_pictures,
    write_record,
)
from invdiff.commands.scans import write_arrays
from invdiff.commands.unknown import known, write_estimates
from invdiff.config.advice import misfit, untuned
from invdiff.device import out_of_memory
from invdiff.images.windows import Window
from invdiff.network import Denoiser
from invdiff.problem import Measurement, Operator
from invdiff.sampling import Method, Progress
from invdiff.solving import Restoration, solve
from invdiff.solving.cascade import Upscaler
from invdiff.solving.plan import complete
from invdiff.solving.solve import check_solve
from invdiff.solving.windows import (
    find_windows,
    keep_known,
    known_pixels,
    solve_windows,
)

AT_ONCE = 2**18
"""Pixels of equal-sized images that are restored as one batch: 64 of 64x64, one of 512x512. A run
that is killed loses no more than those."""


@dataclass(frozen=True)
class Todo:
    """An image that waits for its batch: the job, its measurement, and the truth where it is
    known."""

    job: Job
    measurement: Measurement
    truth: Tensor | None


@dataclass(frozen=True)
class Session:
    """A run of the command: what is asked for, and what it is done with.

    Attributes:
        cond: conditions of the network.
        request: what is asked for, as plain data; the same again goes on where it was stopped.
        count: how many images the run has.
        why: the reason for the method, where nobody chose it.
        introduces: the first image that is restored is preceded by what is assumed of all.
    """

    args: argparse.Namespace
    config: dict[str, Any]
    operator: Operator
    method: Method
    cond: dict[str, Any]
    denoiser: Denoiser
    upscaler: Upscaler | None
    request: dict[str, Any]
    output: Path
    count: int
    forecast: Forecast
    why: str = ""
    introduces: bool = True

    def say(self, text: str) -> None:
        """A line on stderr, unless the run is quiet."""
        if not self.args.quiet:
            print(text, file=sys.stderr)

    def folder(self, job: Job) -> Path:
        """Where the result of an image is written."""
        return self.output if self.count == 1 else self.output / job.name

    def finished(self, job: Job) -> dict[str, Any] | None:
        """The record of an image that the same run has finished before."""
        if self.args.overwrite:
            return None
        record = finished(self.folder(job), digest(self.request))
        if record is not None and self.upscaler is not None and "upscale" not in record:
            return None  # it was stopped before it was enlarged
        if record is not None:
            self.say(f"{job.name}: finished before; --overwrite runs it again")
        return record

    def __call__(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, dict[str, Any]]]:
        """Restores images; each result is complete on disk when it is yielded."""
        waiting: list[Todo] = []
        for k, job in enumerate(jobs):
            if (record := self.finished(job)) is not None:
                yield job, record
                continue
            try:
                todo = self.measured(job)
                if k == 0 and self.introduces:
                    self.introduce(todo)
            except (ValueError, OSError, RuntimeError) as error:
                yield job, self._failed(job, error)
                continue
            if waiting and not self._fits(waiting, todo):
                yield from self._batch(waiting)
                waiting = []
            waiting.append(todo)
        if waiting:
            yield from self._batch(waiting)

    def measured(self, job: Job) -> Todo:
        """An image with its measurement."""
        return Todo(job, *measure(job, self.operator, self.config, self.denoiser))

    def introduce(self, todo: Todo) -> None:
        """Says what is assumed, once; raises what cannot run."""
        general = "none for this model, method and operator; these are general values"
        if self.why:
            self.say(self.why)
        self.say(f"preset: {self.config['preset'] or general}")
        for note in todo.measurement.operator.notes:
            self.say(note)
        if todo.job.degraded and self.config["sigma"] != "auto":
            known = isinstance(todo.measurement.sigma, float)
            self.say(f"sigma: {todo.measurement.sigma if known else 'per pixel'}")
        if self._keeps(todo.job) and known_pixels(todo.measurement) is not None:
            self.say("known pixels stay as they are; --sigma 0.025 removes their noise, too")
        plan = complete(self.method)
        if self.config["num_samples"] > 1 and not plan.posterior:
            self.say(
                "the samples of this method are not meant as draws from the posterior: std.png "
                "shows how they differ, not how uncertain the image is"
            )
        operator = self.config["operator"]["name"]
        if weakness := self.denoiser.source.get("weak at", {}).get(operator):
            warnings.warn(f"{self.denoiser.name} and {operator}: {weakness}", stacklevel=2)
        if warning := untuned(self.config):
            steps = self.config["steps"]
            check_solve(todo.measurement, self.denoiser, self.method, steps=steps, **self.cond)
            warnings.warn(warning, stacklevel=2)

    def _fits(self, waiting: Sequence[Todo], todo: Todo) -> bool:
        """Whether an image joins a batch."""
        first, asked = waiting[0].measurement, batch_size(self.config)
        chains = (len(waiting) + 1) * self.config["num_samples"]
        pixels = chains * math.prod(first.image_shape[-2:])
        return (
            todo.measurement.operator is first.operator
            and todo.measurement.y.shape == first.y.shape
            and not self.args.gif
            and (pixels <= AT_ONCE if asked is None else chains <= asked)
            and not self._windows(todo)
        )

    def _windows(self, todo: Todo) -> list[Window]:
        """The windows around what is missing; none for a picture that moves, which shows the
        whole."""
        if self.args.gif or not self._keeps(todo.job):
            return []
        return find_windows(todo.measurement, self.denoiser)

    def _keeps(self, job: Job) -> bool:
        """Whether known pixels stay as they are: of a file of which nobody said that there is
        noise in it, which would be removed."""
        said = self.args.sigma is not None or any(
            override.startswith("sigma=") for override in self.args.overrides
        )
        return job.degraded and not job.saved and not said

    def _batch(self, batch: Sequence[Todo]) -> Iterator[tuple[Job, dict[str, Any]]]:
        """Restores a batch, one after the other where it fails as a whole."""
        names = ", ".join(todo.job.name for todo in batch)
        if self.count > 1:
            self.say(names)
        try:
            results = self._solve(batch)
        except (ValueError, OSError, RuntimeError) as error:
            if len(batch) > 1:
                for todo in batch:
                    yield from self._batch([todo])
            else:
                yield batch[0].job, self._failed(batch[0].job, error)
            return
        for todo, (result, watch) in zip(batch, results, strict=True):
            try:
                yield todo.job, self._write(todo, result, watch)
            except (ValueError, OSError, RuntimeError) as error:
                yield todo.job, self._failed(todo.job, error)

    def _failed(self, job: Job, error: Exception) -> dict[str, Any]:
        """The record of an image that failed; of a single one it is the error of the run."""
        said = _said(error)
        if self.count == 1:
            raise ValueError(said) from error
        return self.failure(job, said)

    def failure(self, job: Job, why: str) -> dict[str, Any]:
        """The record of an image that has no result."""
        print(f"{job.name}: error: {why}", file=sys.stderr)
        return {"name": job.name, "input": job.source, "error": why}

    def _solve(self, batch: Sequence[Todo]) -> list[tuple[Restoration, Watch]]:
        """The result of every image of a batch."""
        config, watch = self.config, Watch(self.denoiser, positions=(0,) if self.args.gif else ())

        def callback(p: Progress) -> None:
            watch(p)
            self.forecast(p)

        options: dict[str, Any] = {
            "steps": config["steps"],
            "seed": config["seed"],
            "num_samples": config["num_samples"],
            "batch_size": batch_size(config),
            "image_ids": [todo.job.id for todo in batch],
            "callback": callback,
            "progress": not self.args.quiet,
            **self.cond,
        }
        measurement = Measurement.concatenate([todo.measurement for todo in batch])
        found = self._windows(batch[0]) if len(batch) == 1 else []
        if found:
            side = f"{found[0].height}x{found[0].width}"
            self.say(f"{batch[0].job.name}: {len(found)} windows of {side} around what is missing")
            result = solve_windows(measurement, self.denoiser, self.method, found, **options)
        else:
            result = solve(measurement, self.denoiser, self.method, **options)
        # Images that are scored and written are clipped, whatever model.clip says of estimates.
        samples = result.samples
        samples = samples if self.denoiser.image_range is None else samples.clamp(0, 1)
        if self._keeps(batch[0].job):
            samples = keep_known(measurement, samples)
        seconds = result.seconds / len(batch)
        own = [{n: v[:, :, [k]] for n, v in result.unknown.items()} for k in range(len(batch))]
        return [
            (replace(result, samples=samples[:, [k]], seconds=seconds, unknown=own[k]), watch)
            for k in range(len(batch))
        ]

    def _write(self, todo: Todo, result: Restoration, watch: Watch) -> dict[str, Any]:
        """Writes the folder of one image, result.json last; returns the record."""
        job, measurement, truth, config = todo.job, todo.measurement, todo.truth, self.config
        if measurement.operator.unknown:
            measurement = known(measurement, result)
        sigma = measurement.sigma if isinstance(measurement.sigma, float) else "per pixel"
        if config["sigma"] == "auto":
            config = config | {"sigma": sigma}
            self.say(f"sigma: {sigma:.4f}, estimated from {job.name}")
        samples = list(result.samples.to(measurement.y.device, measurement.y.real.dtype))
        consistency = [float(measurement.consistency(sample)[0]) for sample in samples]
        if warning := misfit(measurement, samples, consistency, config, self.method):
            warnings.warn(f"{job.name}: {warning}", stacklevel=2)
        mean = sum(consistency) / len(consistency)
        record: dict[str, Any] = {
            "name": job.name,
            "input": job.source,
            "image_id": job.id,
            "measurement": {"hash": measurement.hash, "sigma": sigma},
            "consistency": round(mean, 4) if math.isfinite(mean) else None,
            **record_of(result, config, self.denoiser, self.request["weights"]),
        }
        if truth is not None:
            record["metrics"] = metrics(result.x.cpu(), truth)
            check_worth(job.name, measurement, truth, record["metrics"])
            if len(result.samples) > 1:
                record["metrics_of_mean"] = metrics(result.mean.cpu(), truth)
        if job.degraded:
            result = replace(result, samples=measurement.operator.measured_part(result.samples))
        claim(self.output, self.request)
        record["request"] = digest(self.request)
        folder = self.folder(job)
        with replaced(folder) as made:
            write_pictures(made, truth, measurement, result, job.scan is not None)
            if job.scan is not None:
                write_arrays(made, result)
            if result.unknown:
                record["unknown"] = write_estimates(made, result)
            if self.args.gif:
                frames = [*watch.estimates[0].values(), result.x[0].cpu()]
                images.write_gif(made / "trajectory.gif", frames)
            measurement.save(made / "measurement.safetensors")
            write_record(made, record)
        if self.upscaler is not None:  # after the record: the restoration is finished without it
            larger = self.upscaler(
                result.x, seed=config["seed"], image_ids=[job.id], progress=not self.args.quiet
            )
            images.write_image(folder / "upscaled.png", larger[0].cpu())
            record["upscale"] = self.upscaler.describe()
            write_record(folder, record)
        return record


def _said(error: Exception) -> str:
    """An error of one image in one line; an error of the program itself is raised again."""
    if out_of_memory(error):
        return (
            "memory ran out for one image alone; model.tile=256 denoises it in windows, and "
            "--dtype bfloat16 halves the network's share"
        )
    if isinstance(error, RuntimeError):
        raise error
    return " ".join(str(error).split())
