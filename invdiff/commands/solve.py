"""``invdiff solve``: photographs in, restored photographs and their record out."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from invdiff.commands.choice import chosen
from invdiff.commands.common import (
    check_reading,
    is_spread,
    load_models,
    place_label,
)
from invdiff.commands.folder import check_paths, choose_folder, warn_of_others
from invdiff.commands.forecast import Forecast
from invdiff.commands.jobs import Job, find_jobs, saved_measurement
from invdiff.commands.request import configuration, problem_of, request_of
from invdiff.commands.results import summary
from invdiff.commands.scans import write_scans
from invdiff.commands.session import Session
from invdiff.commands.tune import tuned, with_values
from invdiff.commands.unknown import candidates, fitting, of_operator_file
from invdiff.config import build_method, build_operator
from invdiff.config.conditions import condition
from invdiff.files import write_atomically
from invdiff.solving.recommend import BUDGETS, recorded


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
    prompted = condition(config, denoiser)
    method = build_method(prompted)
    jobs = find_jobs(args, denoiser, saved)
    check_reading(args, config, denoiser)
    if args.tune is not None:
        values = tuned(args, prompted, jobs[0], operator, denoiser)
        config, prompted = (with_values(made, values) for made in (config, prompted))
        method = build_method(prompted)
    request = request_of(args, config, denoiser, jobs)
    problem = config["protocol"] or config["operator"]["name"]
    default = f"invdiff-{problem}-{'-'.join(args.method)}"
    inputs = [Path(job.source["path"]) for job in jobs if "path" in job.source]
    output = choose_folder(args.output, default, request, args.overwrite, inputs)
    if len(jobs) > 1:
        warn_of_others(output, [job.name for job in jobs])
    spreads = is_spread(args)
    shows, cheaper = not (args.quiet or spreads), _cheaper(config, args.model)
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
        len(jobs),
        Forecast(len(jobs) * config["num_samples"], shows, cheaper),
        why,
    )
    for scan in dict.fromkeys(job.scan for job in jobs if job.scan is not None):
        for note in scan.notes:
            restore.say(note)
    found: dict[str, dict[str, Any]] = {}
    done: dict[Path, Job] = {}
    if spreads:
        from invdiff.commands.workers import spread  # the launchers are no part of a quick start
    for job, record in spread(restore, jobs) if spreads else restore(jobs):
        found[job.name] = record
        if "error" not in record:
            done[restore.folder(job)] = job
        if not args.quiet and not args.json and "error" not in record:
            print(summary(job.name, record, restore.folder(job)))
    records = [found[job.name] for job in jobs]
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
