"""``invdiff solve``: photographs in, restored photographs and their record out."""

from __future__ import annotations

import argparse
import json
import math
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from invdiff import images
from invdiff.commands.choice import chosen
from invdiff.commands.common import (
    Watch,
    batch_size,
    check_reading,
    load_models,
    place_label,
    place_prompt,
    record_of,
)
from invdiff.commands.folder import (
    check_paths,
    choose_folder,
    claim,
    digest,
    finished,
    replaced,
    warn_of_others,
)
from invdiff.commands.forecast import Forecast
from invdiff.commands.jobs import Job, find_jobs, measure, saved_measurement
from invdiff.commands.request import configuration, problem_of, request_of
from invdiff.commands.results import (
    check_worth,
    metrics,
    summary,
    write_pictures,
    write_record,
)
from invdiff.commands.scans import write_arrays, write_scans
from invdiff.commands.tune import tuned
from invdiff.commands.unknown import (
    candidates,
    fitting,
    known,
    of_operator_file,
    write_estimates,
)
from invdiff.config import build_method, build_operator
from invdiff.config.advice import misfit, untuned
from invdiff.device import out_of_memory
from invdiff.files import write_atomically
from invdiff.images.windows import Window
from invdiff.network import Denoiser
from invdiff.problem import Measurement, Operator
from invdiff.sampling import Method, Progress
from invdiff.solving import Restoration, solve
from invdiff.solving.cascade import Upscaler
from invdiff.solving.plan import complete
from invdiff.solving.recommend import BUDGETS, recorded
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
    """An image that waits for its batch: the job, its folder, its measurement, and the truth where
    it is known."""

    job: Job
    folder: Path
    measurement: Measurement
    truth: Tensor | None


@dataclass(frozen=True)
class Session:
    """A run of the command: what is asked for, and what it is done with.

    Attributes:
        cond: conditions of the network.
        why: the reason for the method, where nobody chose it.
        request: what is asked for, as plain data; the same again goes on where it was stopped.
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
    why: str
    forecast: Forecast

    def say(self, text: str) -> None:
        """A line on stderr, unless the run is quiet."""
        if not self.args.quiet:
            print(text, file=sys.stderr)

    def folder(self, job: Job, jobs: Sequence[Job]) -> Path:
        """Where the result of one of the jobs is written."""
        return self.output if len(jobs) == 1 else self.output / job.name

    def __call__(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, dict[str, Any]]]:
        """Restores every image; each result is complete on disk when it is yielded."""
        waiting: list[Todo] = []
        for k, job in enumerate(jobs):
            folder = self.folder(job, jobs)
            record = None if self.args.overwrite else finished(folder, digest(self.request))
            # One that was stopped before it was enlarged is made again.
            if record is not None and (self.upscaler is None or "upscale" in record):
                self.say(f"{job.name}: finished before; --overwrite runs it again")
                yield job, record
                continue
            try:
                todo = Todo(job, folder, *measure(job, self.operator, self.config, self.denoiser))
                if k == 0:
                    self._introduce(todo)
            except (ValueError, OSError, RuntimeError) as error:
                yield job, self._failed(job, error, len(jobs))
                continue
            if waiting and not self._fits(waiting, todo):
                yield from self._batch(waiting, len(jobs))
                waiting = []
            waiting.append(todo)
        if waiting:
            yield from self._batch(waiting, len(jobs))

    def _introduce(self, todo: Todo) -> None:
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
            and self.args.prompt is None
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

    def _batch(self, batch: Sequence[Todo], count: int) -> Iterator[tuple[Job, dict[str, Any]]]:
        """Restores a batch, one after the other where it fails as a whole."""
        names = ", ".join(todo.job.name for todo in batch)
        if count > 1:
            self.say(names)
        try:
            results = self._solve(batch)
        except (ValueError, OSError, RuntimeError) as error:
            if len(batch) > 1:
                for todo in batch:
                    yield from self._batch([todo], count)
            else:
                yield batch[0].job, self._failed(batch[0].job, error, count)
            return
        for todo, (result, watch) in zip(batch, results, strict=True):
            try:
                yield todo.job, self._write(todo, result, watch)
            except (ValueError, OSError, RuntimeError) as error:
                yield todo.job, self._failed(todo.job, error, count)

    def _failed(self, job: Job, error: Exception, count: int) -> dict[str, Any]:
        """The record of an image that failed; of a single one it is the error of the run."""
        said = _said(error)
        if count == 1:
            raise ValueError(said) from error
        print(f"{job.name}: error: {said}", file=sys.stderr)
        return {"name": job.name, "input": job.source, "error": said}

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
        with replaced(todo.folder) as made:
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
            images.write_image(todo.folder / "upscaled.png", larger[0].cpu())
            record["upscale"] = self.upscaler.describe()
            write_record(todo.folder, record)
        return record


def run(args: argparse.Namespace) -> None:
    """Restores every input; the results of a batch are complete on disk before the next is read.

    Raises:
        ValueError: anything about the request that cannot work. Of several images one that fails is
            recorded and does not stop the others.
    """
    check_paths(args, ("input", "measurement", "output", "mask"))
    args = of_operator_file(args)
    saved = saved_measurement(args)
    args, why, loaded = chosen(args, problem_of(args, saved), saved)
    config = configuration(args, saved)
    denoiser, upscaler = load_models(args, config, loaded)
    if saved is None and candidates(config):
        config = fitting(args, config, find_jobs(args, denoiser, saved)[0], denoiser)
    operator = build_operator(config) if saved is None else saved.operator
    config = place_label(config, denoiser, args.label)
    prompted = place_prompt(config, denoiser, args)
    method = build_method(prompted)
    config |= {"prompt": args.prompt, "negative_prompt": args.negative_prompt}
    jobs = find_jobs(args, denoiser, saved)
    if args.image_id is not None:
        jobs = [replace(job, id=args.image_id + k) for k, job in enumerate(jobs)]
    check_reading(args, config, denoiser)
    if args.tune is not None:
        config = tuned(args, config, jobs[0], operator, denoiser)
        prompted = place_prompt(config, denoiser, args)
        method = build_method(prompted)
    request = request_of(args, config, denoiser, jobs)
    problem = config["protocol"] or config["operator"]["name"]
    default = f"invdiff-{problem}-{'-'.join(args.method)}"
    inputs = [Path(job.source["path"]) for job in jobs if "path" in job.source]
    output = choose_folder(args.output, default, request, args.overwrite, inputs)
    if len(jobs) > 1:
        warn_of_others(output, [job.name for job in jobs])
    restore = Session(
        args,
        config,
        operator,
        method,
        prompted["cond"],
        denoiser,
        upscaler,
        request,
        output,
        why,
        Forecast(len(jobs) * config["num_samples"], not args.quiet, _cheaper(config, args.model)),
    )
    for scan in dict.fromkeys(job.scan for job in jobs if job.scan is not None):
        for note in scan.notes:
            restore.say(note)
    records: list[dict[str, Any]] = []
    done: dict[Path, Job] = {}
    for job, record in restore(jobs):
        records.append(record)
        if "error" not in record:
            done[restore.folder(job, jobs)] = job
        if not args.quiet and not args.json and "error" not in record:
            print(summary(job.name, record, restore.folder(job, jobs)))
    for line in write_scans(done, output):
        restore.say(line)
    failed = [r["name"] for r in records if "error" in r]
    if len(jobs) > 1 and len(failed) < len(jobs):
        _write_summary(output, records)
    if args.json:
        print(json.dumps(records if len(jobs) > 1 else records[0], indent=2))
    if failed:
        raise ValueError(f"{len(failed)} of {len(jobs)} images failed: {', '.join(failed)}")


def _cheaper(config: dict[str, Any], model: str) -> str:
    """A hint where a run takes too long."""
    fast, steps = recorded(config["operator"]["name"], model, BUDGETS["fast"]), config["steps"]
    if fast is not None and fast.steps * 2 <= steps:
        return f"--budget fast, without --method, takes {fast.steps} steps of {fast.name}"
    return f"--steps {steps // 4} takes a quarter" if steps >= 8 else ""


def _write_summary(output: Path, records: Sequence[dict[str, Any]]) -> None:
    """Writes summary.json: every record, and the means of the metrics that every image has."""
    scored = [r["metrics"] for r in records if "metrics" in r]
    means = {
        m: sum(s[m] for s in scored) / len(scored)
        for m in (scored[0] if scored else ())
        if all(isinstance(s[m], float) for s in scored)
    }
    text = json.dumps({"mean": means, "results": list(records)}, indent=2) + "\n"
    write_atomically(output / "summary.json", text)


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
