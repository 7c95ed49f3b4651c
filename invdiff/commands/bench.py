"""``invdiff bench``: a suite of measurements, cell by cell, and its table."""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from invdiff.benchmarks import harness
from invdiff.benchmarks.launchers.base import pinned
from invdiff.benchmarks.records import finished_files, flaws
from invdiff.benchmarks.schema import Record
from invdiff.benchmarks.suite import make_suite
from invdiff.benchmarks.tables import markdown
from invdiff.benchmarks.trackers import Tracker, figures, make_tracker
from invdiff.commands.folder import check_paths
from invdiff.commands.workers import launcher_of
from invdiff.config import compose_suite, config_files, override_value
from invdiff.files import write_atomically
from invdiff.plugins.registry import check_names, list_plugins

CHOICES = {"operator": "operators", "method": "methods", "baseline": "baselines", "model": "models"}
"""Flags that choose among a suite's entries, or add one that it does not have."""
VALUES = ("sigma", "steps", "num_samples", "batch_size", "dtype", "device")
"""Flags that set a suite's key of that name."""
OWN = {"steps": ("methods", "baselines"), "num_samples": ("methods",), "dtype": ("models",)}
"""Where entries of a suite may have a value of their own."""
LEAST = {"seeds": 1, "steps": 1, "num_samples": 1, "batch_size": 1, "sigma": 0}
"""The least number that each flag takes."""
SAMPLE = 5
"""Records of a folder that are reproduced where --sample says nothing else."""
DIGITS = 4
"""To which figures of a reproduced cell agree where they are not equal to the bit."""

MOST_SEEDS = 10_000


def run(args: argparse.Namespace) -> None:
    """Evaluates the cells that are not finished yet, then writes ``results.md`` and prints it.

    Raises:
        ValueError: a suite, name or override that does not exist; cells that failed, once all
            others are done; a record that was not reproduced.
    """
    check_paths(args, ("output", "input", "reproduce"))
    if args.sample is not None and not (args.reproduce and Path(args.reproduce).is_dir()):
        raise ValueError("--sample is of --reproduce FOLDER")
    if args.reproduce is not None:
        if Path(args.reproduce).is_dir():
            return reproduce_some(Path(args.reproduce), args)
        return reproduce(Path(args.reproduce), args)
    launcher = launcher_of(args)
    config = configure(args)
    folder = Path(args.output or f"invdiff-bench-{args.suite}")
    suite = make_suite(config["kind"])
    tasks = suite.tasks(config)
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as trackers:
        logs = [trackers.enter_context(closing(made)) for made in _trackers(args, folder)]

        def log_record(step: int, record: Record) -> None:
            row, values = figures(record)
            for log in logs if values else ():
                log.log(step, row, values)

        context, quiet = suite.context(config), args.quiet
        records = harness.run(suite, tasks, context, folder, launcher, not quiet, log_record)
    table = suite.report(config, records)
    if not args.quiet:
        print(table)
    written = True
    try:
        write_atomically(folder / "results.md", table + "\n")
    except OSError as error:  # a finished folder may be one that others own
        written = False
        warnings.warn(f"{folder}/results.md was not written: {error}", stacklevel=2)
    harness.check(records, folder)
    if written and not args.quiet:
        print(f"{len(records)} cells -> {folder}/results.md", file=sys.stderr)


def _trackers(args: argparse.Namespace, folder: Path) -> list[Tracker]:
    """What --log asks for."""
    return [make_tracker(name, folder.absolute().name, folder) for name in args.log or ()]


def configure(args: argparse.Namespace) -> dict[str, Any]:
    """The suite's configuration with the flags' choices.

    Raises:
        ValueError: what :func:`~invdiff.config.compose_suite` refuses, flags that the suite
            has no use for, numbers below their least.
    """
    for flag, least in LEAST.items():
        if (value := getattr(args, flag)) is not None and not value >= least:
            raise ValueError(f"--{flag.replace('_', '-')} must be at least {least}, got {value}")
    chosen = {key: getattr(args, flag) for flag, key in CHOICES.items() if getattr(args, flag)}
    # What a flag adds may be given values as well: methods.NAME.key=value.
    added = tuple(f"{key}.{name}." for key, names in chosen.items() for name in names)
    overrides = [
        f"++{override}" if override.startswith(added) else override for override in args.overrides
    ]
    if args.input is not None:  # before the suite is read, which may ask for it
        overrides.append(f"images.source={override_value(args.input)}")
        if _has_images(args.suite) and not any(o.startswith("images.names=") for o in overrides):
            overrides.append("images.names=null")  # the suite's are names of its own images
    config = _composed(args.suite, overrides)
    flags = {
        **CHOICES,
        "seeds": "seeds",
        "allow_pickle": "allow_pickle",
        **{key: key for key in VALUES},
    }
    for flag, key in flags.items():
        value = getattr(args, flag)
        if value is None or value is False:
            continue
        if key not in config:
            parts = [k for k, v in config.items() if isinstance(v, dict) and key in v]
            instead = f"; give {' or '.join(f'{k}.{key}={value}' for k in parts)}" if parts else ""
            raise ValueError(
                f"the suite {args.suite!r} has no {key}, so --{flag.replace('_', '-')} has no "
                f"effect{instead}"
            )
        if flag == "seeds" and value > MOST_SEEDS:
            raise ValueError(f"--seeds must be at most {MOST_SEEDS:,}, got {value:.3g}")
        if flag not in CHOICES:
            config[key] = list(range(value)) if flag == "seeds" else value
            for kind in OWN.get(
                flag, ()
            ):  # what is said here goes before what the suite says of one
                for own in filter(None, (config.get(kind) or {}).values()):
                    own |= {key: value} if key in own else {}
        else:
            entries = config[key] or {}
            if config["kind"] != "grid":
                check_names(f"suite {args.suite!r} (--{flag})", value, list(entries))
            # Where the suite restricts one to some operators, asking for it by name goes before
            # that: a refusal is told in the table.
            config[key] = {
                name: {k: v for k, v in (entries.get(name) or {}).items() if k != "operators"}
                for name in value
            }
    if bool(args.method) != bool(args.baseline) and "baselines" in config:
        config["baselines" if args.method else "methods"] = {}  # only what was asked for
    return config


def _composed(suite: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The configuration of a file, else the defaults of a registered suite of this name."""
    if suite in config_files("suite") or suite not in list_plugins("suites"):
        return compose_suite(suite, overrides)
    config = OmegaConf.create({"kind": suite, **make_suite(suite).defaults})
    OmegaConf.set_struct(config, True)
    try:
        config.merge_with_dotlist([override.lstrip("+") for override in overrides])
    except (OmegaConfBaseException, ValueError) as error:
        raise ValueError(f"suite {suite!r}: {str(error).splitlines()[0]}") from error
    found: Any = OmegaConf.to_container(config)
    return found


def _has_images(suite: str) -> bool:
    """Whether a suite says which images it is about, and needs no --input."""
    try:
        compose_suite(suite)
    except ValueError:
        return False
    return True


def reproduce_some(folder: Path, args: argparse.Namespace) -> None:
    """Reproduces some of the records of a folder, chosen so that nobody can foresee which.

    Raises:
        ValueError: there are none; some were not reproduced, each with the reason.
    """
    if (n := SAMPLE if args.sample is None else args.sample) < 1:
        raise ValueError(f"--sample must be at least 1, got {n}")
    if not (files := finished_files(folder)):
        raise ValueError(f"no records with results in {folder}")
    chosen, failures = random.SystemRandom().sample(files, min(n, len(files))), []
    for file in chosen:
        if not args.quiet:
            print(f"{file}:", file=sys.stderr)
        try:
            reproduce(file, args)
        except ValueError as error:
            failures.append(f"{file}: {error}")
    if failures:
        raise ValueError(
            f"{len(failures)} of {len(chosen)} records were not reproduced: {'; '.join(failures)}"
        )


def reproduce(file: Path, args: argparse.Namespace) -> None:
    """Evaluates the cell of a record again, with the images that shared its batch, and compares.

    Raises:
        ValueError: metrics that do not agree to the digits of a table.
    """
    if not file.is_file():
        raise ValueError(f"{file} is no record of invdiff bench: there is no such file")
    try:
        old: Record = json.loads(file.read_bytes())
        cell, kind = old["cell"], str(old["suite"])
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} is no record of invdiff bench: {type(error).__name__}: {error}"
        ) from error
    suite = make_suite(kind)
    if "benchmark" in cell and (wrong := flaws(old)):
        raise ValueError(f"{file} is no valid record: {wrong[0]}")
    if args.model and len(args.model) > 1:
        raise ValueError(
            f"--reproduce is of one network, got --model {' --model '.join(args.model)}"
        )
    network, task = args.model[0] if args.model else None, harness.task_of(cell)
    threads = old.get("environment", {}).get("threads", 1)
    with tempfile.TemporaryDirectory() as folder, pinned(threads):
        found = harness.evaluate(
            suite,
            task,
            Path(folder),
            suite.context_of(cell, args.input, network, args.allow_pickle),
        )
    new = found[task.index(cell)]
    if "failure" in new:
        raise ValueError(f"the cell failed: {new['failure']['error']}")
    rows = [
        {"": path, "recorded": was, "again": now}
        for path, was, now in compare(old.get("result", {}), new["result"])
    ]
    if not args.quiet:
        print(markdown(rows))
        for name, was in old["environment"].items():
            if (now := new["environment"].get(name)) != was:
                print(f"{name}: {was} then, {now} now", file=sys.stderr)
    if wrong := [row[""] for row in rows if not _agree(row["recorded"], row["again"])]:
        raise ValueError(
            f"not reproduced: {', '.join(wrong)} differ{'s' if len(wrong) == 1 else ''} from {file}"
        )
    if not args.quiet:
        same = old["result"].get("restoration") == new["result"].get("restoration")
        print(
            "reproduced, equal to the bit" if same else f"reproduced to {DIGITS} digits",
            file=sys.stderr,
        )


COSTS = (
    "seconds",
    "peak_memory_mb",
    "files",
    "hashes",
    "values",
    "warnings",
    "restoration",
    "measurement",
)
"""The parts of a result that may differ between machines, or are names."""


def compare(
    old: Mapping[str, Any], new: Mapping[str, Any], path: str = ""
) -> list[tuple[str, Any, Any]]:
    """The figures of two results side by side."""
    found = []
    for name in dict.fromkeys([*old, *new]):
        was, now = old.get(name), new.get(name)
        if isinstance(was, dict) and isinstance(now, dict) and name not in COSTS:
            found += compare(was, now, f"{path}{name}.")
        elif name not in COSTS:
            found.append((f"{path}{name}", was, now))
    return found


def _agree(a: Any, b: Any) -> bool:
    if isinstance(a, float | int) and isinstance(b, float | int):
        return abs(a - b) <= 0.5 * 10 ** (1 - DIGITS) * max(1e-2, abs(a))
    return bool(a == b)
