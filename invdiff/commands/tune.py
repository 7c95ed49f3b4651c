"""``invdiff tune``: the values of a method's parameters for one's own network and operator."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from invdiff.benchmarks import tuning
from invdiff.benchmarks.tables import markdown
from invdiff.commands.choice import MODEL
from invdiff.commands.common import (
    check_numbers,
    configure,
    load_models,
    place_label,
)
from invdiff.commands.folder import check_paths
from invdiff.commands.jobs import Job, find_jobs, measure
from invdiff.config import build_method, build_operator
from invdiff.config.conditions import condition
from invdiff.files import write_atomically
from invdiff.network import Denoiser
from invdiff.problem import Operator
from invdiff.solving import solve

PROBE = 2
"""Steps of the run that tells how many evaluations a step costs."""


def run(args: argparse.Namespace) -> None:
    """Searches each method and writes ``METHOD.yaml``, the preset, and ``results.md``.

    Raises:
        ValueError: what does not exist or does not fit.
    """
    _check_installed()
    check_paths(args, ("input", "measurement", "output", "mask"))
    if not args.method:
        raise ValueError("say whose values are searched: --method NAME")
    if args.trials < 1 or args.limit < 1:
        raise ValueError(
            f"--trials and --limit must be at least 1, got {args.trials}, {args.limit}"
        )
    if args.input is None and args.measurement is None:
        raise ValueError("give images: --input FOLDER, or --measurement FOLDER of degraded ones")
    args = argparse.Namespace(**vars(args) | {"image_id": None, "upscale": None})
    args.model = args.model or MODEL
    objective = args.objective or ("lpips" if args.measurement is None else "measurement")
    folder = Path(args.output or f"invdiff-tune-{args.operator}").expanduser()
    rows = []
    for method in args.method:
        config = configure(args, args.operator, [*args.after, method], "auto")
        if args.mask is not None:
            config["operator"]["mask"] = args.mask
        check_numbers(config, {"steps": (int,), "seed": (int,), "sigma": (int, float)})
        denoiser, _ = load_models(args, config)
        jobs = find_jobs(args, denoiser, None)[: args.limit]
        operator = build_operator(config)
        measured = [measure(job, operator, config, denoiser) for job in jobs]
        over = tuning.problems(measured, [job.id for job in jobs], objective, config["seed"])
        placed = condition(place_label(config, denoiser, args.label), denoiser)
        start, steps = _values(config["guidance"][-1]), config["steps"]
        if args.budget is not None:
            steps = _steps_of(args.budget, over[0], denoiser, placed)
        storage = folder / "search.log"
        found = _search(over, denoiser, placed, objective, args.trials, steps, args.quiet, storage)
        write_preset(folder, found, start, steps, args, len(jobs))
        rows.append(
            {
                "method": method,
                "values": ", ".join(f"{k} {v:.4g}" for k, v in found.values.items()),
                f"{objective}": f"{found.score:.4g}",
                "with the values before": f"{found.general:.4g}",
                "trials": str(found.trials),
                "preset": f"{folder}/{method}.yaml",
            }
        )
    text = markdown(rows)
    write_atomically(folder / "results.md", text + "\n")
    if not args.quiet:
        print(text)
        preset = rows[0]["preset"]
        print(
            f"invdiff solve --operator {args.operator} --method {args.method[0]} --preset {preset}",
            file=sys.stderr,
        )


def _check_installed() -> None:
    if find_spec("optuna") is None:
        raise ValueError("tune needs Optuna: pip install 'invdiff[tune]'")


def tuned(
    args: argparse.Namespace,
    config: dict[str, Any],
    job: Job,
    operator: Operator,
    denoiser: Denoiser,
) -> dict[str, Any]:
    """Values of the last method of a configuration that were found on one picture, whose truth is
    not used.

    Raises:
        ValueError: a method without declared ranges.
    """
    _check_installed()
    if args.tune < 1:
        raise ValueError(f"--tune is of at least one run, got {args.tune}")
    measurement, _ = measure(job, operator, config, denoiser)
    over = tuning.problems([(measurement, None)], [job.id], "measurement", config["seed"])
    steps = config["steps"]
    found = _search(over, denoiser, config, "measurement", args.tune, steps, args.quiet)
    values = {k: v if isinstance(v, int) else float(f"{v:.4g}") for k, v in found.values.items()}
    if not args.quiet:
        said = ", ".join(f"{k} {v:.4g}" for k, v in values.items())
        print(
            f"tuned on {job.name}: {said}; predicts what was held out to {found.score:.4g} "
            f"({found.general:.4g} with the values before)",
            file=sys.stderr,
        )
    return values


def with_values(config: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with values of its last method."""
    *before, node = config["guidance"]
    return config | {"guidance": [*before, node | values]}


def _search(
    over: Sequence[tuning.Problem],
    denoiser: Denoiser,
    config: dict[str, Any],
    objective: str,
    trials: int,
    steps: int,
    quiet: bool,
    storage: Path | None = None,
) -> tuning.Tuned:
    """Searches the last method of a configuration, in its chain and with its other pieces."""
    node = config["guidance"][-1]
    return tuning.tune(
        over,
        denoiser,
        node["name"],
        objective,
        trials=trials,
        steps=steps,
        seed=config["seed"],
        start=_values(node),
        storage=storage,
        progress=not quiet,
        build=lambda values: build_method(with_values(config, values)),
        cond=config["cond"],
    )


def _values(node: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in node.items() if k != "name"}


def _steps_of(
    budget: float, problem: tuning.Problem, denoiser: Denoiser, config: dict[str, Any]
) -> int:
    """The steps that a number of evaluations affords."""
    given, ids, method = problem.given.select([0]), problem.ids[:1], build_method(config)
    result = solve(given, denoiser, method, steps=PROBE, image_ids=ids, **config["cond"])
    return max(1, round(budget / (result.nfe + result.nbe) * PROBE))


def write_preset(
    folder: Path,
    found: tuning.Tuned,
    start: dict[str, Any],
    steps: int,
    args: argparse.Namespace,
    images: int,
) -> None:
    """Writes the preset, and in a comment what it was chosen from."""
    from omegaconf import OmegaConf

    node: dict[str, Any] = {"name": found.method}
    node |= {k: v for k, v in start.items() if v is not None}
    node |= {k: v if isinstance(v, int) else float(f"{v:.4g}") for k, v in found.values.items()}
    said = (
        f"# {' after '.join([found.method, *reversed(args.after)])} for {args.operator} with "
        f"{args.model}, {steps} steps: best of {found.trials} trials on {images} images "
        f"by {found.objective}, {found.score:.4g} "
        f"({found.general:.4g} with the values before).\n"
    )
    text = said + OmegaConf.to_yaml(OmegaConf.create({"steps": steps, "guidance": node}))
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"{found.method}.yaml", text)
