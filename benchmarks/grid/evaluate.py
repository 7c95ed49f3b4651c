"""Restores the images of one task and scores each."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invdiff.benchmarks.baselines import Unfit, make_baseline
from invdiff.benchmarks.dataset import Dataset, image_hash
from invdiff.benchmarks.grid.networks import network_of
from invdiff.benchmarks.grid.pictures import hashes, write_pictures, write_values
from invdiff.benchmarks.schema import (
    Benchmark,
    Cost,
    GridCell,
    Image,
    Measured,
    digest,
    key,
    published,
)
from invdiff.benchmarks.scoring import score
from invdiff.config import build_method, build_operator
from invdiff.config.advice import misfit, untuned
from invdiff.config.conditions import condition
from invdiff.device import peak_memory_mb, reset_peak_memory
from invdiff.network import Denoiser, count_evaluations
from invdiff.problem import Measurement
from invdiff.sampling import Method, NonFiniteError
from invdiff.solving import solve
from invdiff.solving.plan import complete
from invdiff.solving.solve import check_solve

Outcome = Measured | dict[str, str]
"""Of a cell: what was measured, or ``refused`` or ``diverged`` with the reason."""


def evaluate(
    cells: Sequence[GridCell],
    folder: Path,
    images: Mapping[str, Any],
    models: Mapping[str, str],
    allow_pickle: bool,
    lossless: bool,
) -> list[Outcome]:
    """Restores the images of a batch and scores each.

    Args:
        cells: of one row, seed and batch.
        folder: of the records.
        images: of :class:`~invdiff.benchmarks.dataset.Dataset`, where they are here.
        models: name -> place of networks that are not registered.
        allow_pickle: whether checkpoints may be pickles.
        lossless: whether values are kept beside the pictures.
    """
    dataset, cell = Dataset.of(images), cells[0]
    truth = torch.cat([_image(dataset, c["image"]) for c in cells])
    ids = [c["image"]["index"] for c in cells]
    measurement = _measured(cell["benchmark"], cell["seed"], cell["batch"], truth, ids, folder)
    denoiser = None if cell["model"] is None else network_of(cell["model"], models, allow_pickle)
    return _Batch(cells, folder, truth, measurement, denoiser, lossless).outcomes()


@dataclass(frozen=True)
class _Batch:
    """Images that one row restores together, and what that takes."""

    cells: Sequence[GridCell]
    folder: Path
    truth: Tensor
    measurement: Measurement
    denoiser: Denoiser | None
    lossless: bool

    @property
    def ids(self) -> list[int]:
        return [cell["image"]["index"] for cell in self.cells]

    def outcomes(self) -> list[Outcome]:
        """One for each image."""
        device = self.denoiser.device if self.denoiser else None
        resettable = reset_peak_memory(device)
        run = _by_baseline if self.cells[0]["kind"] == "baseline" else _by_method
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", UserWarning)
                samples, cost = run(self)
        except (Unfit, NonFiniteError) as error:
            if len(self.cells) > 1:  # it may be one image's doing: each is tried alone
                alone = map(self._alone, range(len(self.cells)))
                return [outcome for one in alone for outcome in one.outcomes()]
            # A scale that is too large is a finding, not a failure.
            kind = "refused" if isinstance(error, Unfit) else "diverged"
            return [{kind: published(str(error), 2000)}]
        cost["peak_memory_mb"] = peak_memory_mb(device) if resettable else None
        said = [published(str(w.message), 2000) for w in caught if w.category is UserWarning]
        return self._scored(samples, cost, list(dict.fromkeys(said)))

    def _alone(self, k: int) -> _Batch:
        one = slice(k, k + 1)
        return _Batch(
            self.cells[one],
            self.folder,
            self.truth[one],
            self.measurement.select([k]),
            self.denoiser,
            self.lossless,
        )

    def _scored(self, samples: Tensor, cost: Cost, said: Sequence[str]) -> list[Outcome]:
        names = list(self.cells[0]["benchmark"]["metrics"])
        found: list[Outcome] = []
        for k, scores in enumerate(score(self.measurement, samples, self.truth, names)):
            cell, own, values = self.cells[k], self.measurement.select([k]), samples[:, k]
            name, image, truth = key(cell), cell["image"]["hash"], self.truth[k]
            files = write_pictures(self.folder, name, image, truth, own, values)
            outcome: Measured = {
                **scores,
                **cost,
                "measurement": own.hash,
                "restoration": image_hash(values),
                "samples": len(samples),
                "files": files,
                "hashes": hashes(self.folder, files),
            }
            if advice := [*said, *self._advice(own, values)][:MOST_WARNINGS]:
                outcome["warnings"] = advice
            if self.lossless:
                outcome["values"] = write_values(self.folder, name, image, truth, values)
            found.append(outcome)
        return found

    def _advice(self, measurement: Measurement, samples: Tensor) -> list[str]:
        """What ``invdiff solve`` would say of the samples of an image."""
        run = self.cells[0]["run"]
        if self.cells[0]["kind"] == "baseline":
            return []
        every = list(samples[:, None].to(measurement.y.device, measurement.y.real.dtype))
        consistency = [float(measurement.consistency(sample)[0]) for sample in every]
        method = build_method(run)
        found = (untuned(run), misfit(measurement, every, consistency, run, method))
        return [text for text in found if text]


MOST_WARNINGS = 20
"""Of a record."""


def _measured(
    benchmark: Benchmark,
    seed: int,
    batch: Sequence[Image],
    truth: Tensor,
    ids: Sequence[int],
    folder: Path,
) -> Measurement:
    """The measurement of a batch: read if some row has asked for it before, else simulated and
    kept."""
    sigma, gain = benchmark["sigma"], benchmark["gain"]
    same = {
        "operator": benchmark["operator"],
        "operator_version": benchmark["operator_version"],
        "sigma": sigma,
        "gain": gain,
        "seed": seed,
        "batch": batch,
    }
    file = folder / "measurements" / f"{digest(same)[:16]}.safetensors"
    if file.exists():
        return Measurement.load(file)
    operator = build_operator(benchmark)  # type: ignore[arg-type]
    measurement = operator.measure(truth, sigma=sigma, seed=seed, gain=gain, image_ids=ids)
    file.parent.mkdir(exist_ok=True)
    measurement.save(file)
    return measurement


def _image(dataset: Dataset, wanted: Image) -> Tensor:
    """An image, if it is the one that is meant."""
    x = dataset[wanted["name"]]
    if image_hash(x) != wanted["hash"]:
        raise ValueError(
            f"the image {wanted['name']} in {dataset.source} is not the one of this cell "
            f"(SHA-256 {image_hash(x)[:12]}, not "
            f"{wanted['hash'][:12]}): another file, crop or size"
        )
    return x


def _by_method(batch: _Batch) -> tuple[Tensor, Cost]:
    """Samples (S, B, C, H, W), and what one of them costs."""
    measurement, denoiser, cell = batch.measurement, batch.denoiser, batch.cells[0]
    assert denoiser is not None
    ids, options = batch.ids, dict[str, Any]()
    try:
        run = condition(cell["run"], denoiser)
        method = build_method(run)
        options |= {"steps": run["steps"], "seed": cell["seed"], "image_ids": ids, **run["cond"]}
        check_solve(measurement, denoiser, method, **options)
    except ValueError as error:
        raise Unfit(str(error)) from error
    _warm_up(digest(cell["model"]), denoiser, measurement, method, run["cond"])
    n = run["num_samples"]
    result = solve(measurement, denoiser, method, num_samples=n, **options)
    # A sample of a particle system costs the whole system.
    together = n if complete(method).particles else 1
    seconds = result.seconds / (len(ids) * n)
    # An image that is scored is one: methods as published do not clip (model.clip=false).
    return result.samples.cpu().clamp(0, 1), _cost(result.nfe, result.nbe, seconds, together)


def _cost(forward: float, backward: float, seconds: float, times: float) -> Cost:
    return {
        "nfe": round(times * forward, 4),
        "nbe": round(times * backward, 4),
        "seconds": round(times * seconds, 4),
        "peak_memory_mb": None,
    }


_warm: set[tuple[Any, ...]] = set()
"""A cache of what this process has run: names of networks with shapes of images, and baselines."""


def _warm_up(
    name: str,
    denoiser: Denoiser,
    measurement: Measurement,
    method: Method,
    cond: Mapping[str, Any],
) -> None:
    """Two steps before a process's first run with a network and shape: it pays for what later ones
    have, and is not to be timed."""
    if (known := (name, measurement.image_shape, len(measurement))) not in _warm:
        _warm.add(known)
        with contextlib.suppress(ValueError):  # a method that refuses so few steps goes without
            solve(measurement, denoiser, method, steps=2, **cond)


def _by_baseline(batch: _Batch) -> tuple[Tensor, Cost]:
    """The same of a baseline, which gives one sample."""
    cell, ids, measurement = batch.cells[0], batch.ids, batch.measurement
    name = cell["run"]["name"]
    baseline = make_baseline(name, **cell["run"]["parameters"])
    if not baseline.network and (name,) not in _warm:  # likewise
        _warm.add((name,))
        baseline(measurement.select([0]))
    begun = time.perf_counter()
    with count_evaluations() as evaluations:
        x = baseline(measurement, batch.denoiser, seed=cell["seed"], image_ids=ids)
    seconds = time.perf_counter() - begun
    return x[None].cpu(), _cost(evaluations.forward, evaluations.backward, seconds, 1 / len(ids))
