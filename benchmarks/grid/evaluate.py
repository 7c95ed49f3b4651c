"""Restores the images of one task and scores each."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from invdiff.benchmarks.baselines import Unfit, make_baseline
from invdiff.benchmarks.dataset import Dataset, image_hash
from invdiff.benchmarks.grid.networks import network_of
from invdiff.benchmarks.grid.pictures import write_pictures
from invdiff.benchmarks.harness import Cell, Result, Task, digest, key
from invdiff.benchmarks.scoring import score
from invdiff.config.compose import build_method, build_operator
from invdiff.device import peak_memory_mb, reset_peak_memory
from invdiff.network import Denoiser, count_evaluations
from invdiff.problem import Measurement
from invdiff.sampling import Method, NonFiniteError
from invdiff.solving import solve
from invdiff.solving.plan import complete
from invdiff.solving.solve import check_solve


def evaluate(
    task: Task,
    folder: Path,
    images: Mapping[str, Any],
    models: Mapping[str, str] = MappingProxyType({}),
    allow_pickle: bool = False,
) -> list[Result]:
    """Restores the images of a batch and scores each."""
    dataset, cell = Dataset.of(images), task[0]
    truth = torch.cat([_image(dataset, c["image"]) for c in task])
    measurement = measured(cell, truth, [c["image"]["index"] for c in task], folder)
    denoiser = None if cell["model"] is None else network_of(cell["model"], models, allow_pickle)
    return _results(task, folder, truth, measurement, denoiser)


def _results(
    task: Task, folder: Path, truth: Tensor, measurement: Measurement, denoiser: Denoiser | None
) -> list[Result]:
    cell, device = task[0], denoiser.device if denoiser else None
    resettable = reset_peak_memory(device)
    try:
        samples, cost = (_by_baseline if cell["kind"] == "baseline" else _by_method)(
            task, measurement, denoiser
        )
    except (Unfit, NonFiniteError) as error:
        if len(task) > 1:  # it may be one image's doing: each is tried alone
            alone = [
                (task[k : k + 1], folder, truth[k : k + 1], measurement.select([k]), denoiser)
                for k in range(len(task))
            ]
            return [result for arguments in alone for result in _results(*arguments)]
        # A scale that is too large is a finding, not a failure.
        return [{"refused" if isinstance(error, Unfit) else "diverged": str(error)}]
    shared = (
        {"samples": len(samples)}
        | cost
        | {"peak_memory_mb": peak_memory_mb(device) if resettable else None}
    )
    found = []
    for k, (one, scores) in enumerate(
        zip(
            task,
            score(measurement, samples, truth, list(cell["benchmark"]["metrics"])),
            strict=True,
        )
    ):
        own = measurement.select([k])
        result = (
            {"measurement": own.hash, "restoration": image_hash(samples[:, k])} | scores | shared
        )
        found.append(
            result
            | {
                "files": write_pictures(
                    folder, key(one), one["image"]["hash"], truth[k], own, samples[:, k]
                )
            }
        )
    return found


def measured(cell: Cell, truth: Tensor, ids: Sequence[int], folder: Path) -> Measurement:
    """The measurement of a batch: read if some row has asked for it before, else simulated and
    kept."""
    benchmark = cell["benchmark"]
    same = {k: benchmark[k] for k in ("operator", "operator_version", "sigma", "gain")} | {
        "seed": cell["seed"],
        "batch": cell["batch"],
    }
    file = folder / "measurements" / f"{digest(same)[:16]}.safetensors"
    if file.exists():
        return Measurement.load(file)
    operator = build_operator(benchmark)
    measurement = operator.measure(
        truth, sigma=benchmark["sigma"], seed=cell["seed"], gain=benchmark["gain"], image_ids=ids
    )
    file.parent.mkdir(exist_ok=True)
    measurement.save(file)
    return measurement


def _image(dataset: Dataset, wanted: Mapping[str, Any]) -> Tensor:
    """An image, if it is the one that is meant."""
    x = dataset[wanted["name"]]
    if image_hash(x) != wanted["hash"]:
        raise ValueError(
            f"the image {wanted['name']} in {dataset.source} is not the one of this cell "
            f"(SHA-256 {image_hash(x)[:12]}, not "
            f"{wanted['hash'][:12]}): another file, crop or size"
        )
    return x


def _by_method(
    task: Task, measurement: Measurement, denoiser: Denoiser | None
) -> tuple[Tensor, dict[str, float]]:
    """Samples (S, B, C, H, W), and what one of them costs."""
    assert denoiser is not None
    cell, ids = task[0], [c["image"]["index"] for c in task]
    run, method = cell["run"], build_method(cell["run"])
    options: dict[str, Any] = {"steps": run["steps"], "seed": cell["seed"], "image_ids": ids}
    try:
        check_solve(measurement, denoiser, method, **options)
    except ValueError as error:
        raise Unfit(str(error)) from error
    _warm_up(denoiser, measurement, method)
    n = run["num_samples"]
    result = solve(measurement, denoiser, method, num_samples=n, **options)
    together = (
        n if complete(method).particles else 1
    )  # a sample of a particle system costs the whole system
    cost = {"nfe": result.nfe, "nbe": result.nbe, "seconds": result.seconds / (len(ids) * n)}
    return result.samples.cpu(), {k: round(together * v, 4) for k, v in cost.items()}


def _warm_up(denoiser: Denoiser, measurement: Measurement, method: Method) -> None:
    """Two steps before a process's first run with a network and shape: it pays for what later ones
    have, and is not to be timed."""
    if (known := (id(denoiser), measurement.image_shape, len(measurement))) not in _warm:
        _warm.add(known)
        with contextlib.suppress(ValueError):  # a method that refuses so few steps goes without
            solve(measurement, denoiser, method, steps=2)


_warm: set[Any] = set()


def _by_baseline(
    task: Task, measurement: Measurement, denoiser: Denoiser | None
) -> tuple[Tensor, dict[str, float]]:
    """The same of a baseline, which gives one sample."""
    cell, ids = task[0], [c["image"]["index"] for c in task]
    baseline = make_baseline(cell["run"]["name"], **cell["run"]["parameters"])
    if not baseline.network and (name := cell["run"]["name"]) not in _warm:  # likewise
        _warm.add(name)
        baseline(measurement.select([0]))
    begun = time.perf_counter()
    with count_evaluations() as evaluations:
        x = baseline(measurement, denoiser, seed=cell["seed"], image_ids=ids)
    cost = {
        "nfe": evaluations.forward,
        "nbe": evaluations.backward,
        "seconds": time.perf_counter() - begun,
    }
    return x[None].cpu(), {k: round(v / len(ids), 4) for k, v in cost.items()}
