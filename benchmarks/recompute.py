"""Whether a record's figures are those of the values that it keeps.

A record of a grid may keep the float32 values of the true image and of the samples. Their hashes
are in the record, so the metrics of the samples can be computed again, and of the pictures it can
be said whether they are of these values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from invdiff.benchmarks.dataset import image_hash
from invdiff.benchmarks.schema import Figures, Measured, Metric, Record, brief, result_of
from invdiff.benchmarks.scoring import identity, metrics_of
from invdiff.images import read_image

TOLERANCE = 1e-3
"""Relative, and absolute for figures below 1: metrics differ between machines by less."""
HEADER = 100_000
"""Bytes of a file of values beside the values themselves, at most."""


def recompute(record: Record) -> list[str] | None:
    """Where a valid record differs from the values that it keeps, each as ``JSON path: what``;
    None where it keeps none, so that only its form can be checked."""
    if "values" not in result_of(record):
        return None
    result: Measured = record["result"]
    cell, folder = record["cell"], Path(record["file"]).parent
    shape = tuple(cell["image"]["shape"])
    try:
        truth = _read(folder / result["values"]["truth"], shape)
        samples = _read(folder / result["values"]["samples"], (result["samples"], *shape))
    except ValueError as error:
        return [f"$.result.values: {brief(str(error))}"]
    if image_hash(truth) != cell["image"]["hash"]:
        return ["$.result.values.truth: is not the image whose hash is in the record"]
    if image_hash(samples) != result["restoration"]:
        return ["$.result.values.samples: are not the samples whose hash is in the record"]
    return [*_figures(result, cell["benchmark"]["metrics"], truth, samples)] + [
        *_pictures(result, folder, truth, samples)
    ]


def _read(file: Path, shape: tuple[int, ...]) -> Tensor:
    """The values of a file, which comes from a stranger.

    Raises:
        ValueError: it does not hold float32 values of this shape.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    if not file.is_file() or not file.resolve().is_relative_to(file.parent.parent.resolve()):
        raise ValueError(f"there is no {file.name} in the folder")
    if file.stat().st_size > 4 * prod(shape) + HEADER:
        raise ValueError(f"{file.name} is larger than values of shape {shape}")
    try:
        found = load(file.read_bytes()).get("values")
    except (SafetensorError, OSError, KeyError) as error:
        raise ValueError(f"{file.name} cannot be read: {error}") from error
    if found is None or found.dtype != torch.float32 or found.shape != shape:
        raise ValueError(f"{file.name} does not hold float32 values of shape {shape}")
    return found


def _figures(
    result: Measured, metrics: Mapping[str, Mapping[str, object]], truth: Tensor, samples: Tensor
) -> Iterator[str]:
    """Metrics that this installation computes in the same way, again."""
    same = [name for name in metrics if _identity(name) == metrics[name]]
    again = {"metrics": metrics_of(samples, truth, same)}
    if len(samples) > 1:
        again["mean"] = metrics_of(samples.mean(0, keepdim=True), truth, same)
    for part, found in again.items():
        recorded: Figures = result[part]  # type: ignore[literal-required]
        for name, value in found.items():
            if not _agree(recorded.get(name), value):
                yield f"$.result.{part}.{name}: {recorded.get(name)}, but the values give {value}"


def _identity(name: str) -> Metric | None:
    """Of a metric, where it can be computed here."""
    try:
        return identity(name)
    except ValueError:
        return None


def _agree(a: float | None, b: float | None) -> bool:
    if a is None or b is None:
        return a is b
    return abs(a - b) <= TOLERANCE * max(1.0, abs(a))


def _pictures(result: Measured, folder: Path, truth: Tensor, samples: Tensor) -> Iterator[str]:
    """Pictures that are not of these values, to half a step of 8 bits."""
    for what, values in {"truth": truth, "restoration": samples[0]}.items():
        picture = read_image(folder / result["files"][what], channels=len(values))[0]
        if picture.shape != values.shape or bool(
            ((picture - values.clamp(0, 1)).abs() > 0.51 / 255).any()
        ):
            yield f"$.result.files.{what}: does not show the values that the record keeps"
