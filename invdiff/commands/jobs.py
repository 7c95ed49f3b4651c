"""The images of a run of ``solve``: where they come from, and how each becomes a measurement."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invdiff import images
from invdiff.files import sha256
from invdiff.network import Denoiser
from invdiff.noise import seed_of
from invdiff.plugins.registry import name_of
from invdiff.problem import Measurement, Operator


@dataclass(frozen=True)
class Job:
    """One image to restore: its name, where it came from, how to get the truth or the measurement
    when its turn comes, and the k that its noise is derived from."""

    name: str
    source: dict[str, Any]
    read: Callable[[], Tensor | Measurement]
    degraded: bool = False
    id: int = 0


def saved_measurement(args: argparse.Namespace) -> Measurement | None:
    """The measurement that was saved by invdiff, if one is given; flags that would contradict it
    are refused."""
    if args.measurement is None or not args.measurement.endswith(".safetensors"):
        return None
    given = [
        f
        for f, v in (
            ("--sigma", args.sigma),
            ("--mask", args.mask),
            ("--mask-keep", args.mask_keep),
            ("--mask-grow", args.mask_grow),
        )
        if v is not None
    ]
    given += [o for o in args.overrides if o.startswith(("operator.", "sigma=", "gain="))]
    if given:
        raise ValueError(
            f"{args.measurement} holds its operator and sigma already; leave out {', '.join(given)}"
        )
    if not Path(args.measurement).is_file():
        raise ValueError(f"no measurement at {args.measurement}")
    measurement = Measurement.load(args.measurement)
    name = name_of("operators", measurement.operator)
    if args.operator not in (None, name):
        raise ValueError(
            f"{args.measurement} was measured by {name!r}, not by {args.operator!r}; leave "
            "out --operator"
        )
    return measurement


def find_jobs(args: argparse.Namespace, denoiser: Denoiser, saved: Measurement | None) -> list[Job]:
    if args.measurement is not None and args.input is not None:
        raise ValueError("--measurement is already degraded and --input is clean: give one of them")
    if saved is not None:
        path = Path(args.measurement)
        names = [path.stem] if len(saved) == 1 else [f"{path.stem}_{k}" for k in range(len(saved))]
        return [
            Job(name, _source(path), partial(saved.select, [k]), True, image_id(path.name) + k)
            for k, name in enumerate(names)
        ]
    if args.measurement is not None or args.input is not None:
        paths = images.find_images(args.input if args.measurement is None else args.measurement)
        channels = denoiser.channels if args.measurement is None else None
        return [
            Job(
                name,
                _source(path),
                partial(images.read_image, path, channels),
                args.measurement is not None,
                image_id(path.name),
            )
            for name, path in zip(_unique_names(paths), paths, strict=True)
        ]
    truth, name = images.sample_photo(128)
    return [Job(name, {"file": f"scikit-image: {name}"}, lambda: truth)]


def image_id(file: str) -> int:
    """The k of an image, which its noise is derived from: of the name of its file, so that it does
    not depend on what stands beside it."""
    return seed_of("image", file) % 2**48


def _source(path: Path) -> dict[str, str]:
    return {"file": path.name, "path": str(path), "sha256": sha256(path)}


def _unique_names(paths: Sequence[Path]) -> list[str]:
    """A folder name for each file: its stem where that tells them apart, else more of the path."""
    for candidate in ([p.stem for p in paths], [p.name for p in paths]):
        if len(set(candidate)) == len(paths):
            return candidate
    return [f"{k:03d}_{p.name}" for k, p in enumerate(paths)]


def measure(
    job: Job, operator: Operator, config: dict[str, Any], denoiser: Denoiser
) -> tuple[Measurement, Tensor | None]:
    """The measurement of an image, and the truth where it is known."""
    x = job.read()
    if isinstance(x, Measurement):
        return x, None
    if job.degraded:
        operator = operator.of_file(Path(job.source["path"]))
        if (
            x.shape[1] == 1
            and denoiser.channels == 3
            and operator.image_shape(tuple(x.shape[1:]))[0] == 1
        ):
            x = x.expand(-1, 3, -1, -1)  # a grey photograph for a prior of colour ones
        return _with_noise(x, operator, config["sigma"]), None
    shape = operator.fit(tuple(x.shape[1:]))
    if shape != tuple(x.shape[1:]):
        top, left = ((n - m) // 2 for n, m in zip(x.shape[-2:], shape[-2:], strict=True))
        warnings.warn(
            f"{job.name} is cropped from {tuple(x.shape[-2:])} to {shape[-2:]}, which the "
            "operator takes",
            stacklevel=2,
        )
        x = x[..., top : top + shape[-2], left : left + shape[-1]]
    noise = {"sigma": config["sigma"], "seed": config["seed"], "gain": config["gain"]}
    return operator.measure(x, **noise, image_ids=[job.id]), x


def _with_noise(y: Tensor, operator: Operator, sigma: float | str) -> Measurement:
    if sigma != "auto":
        return Measurement(y, operator, sigma)
    known = Measurement(torch.ones_like(y), operator).y
    return Measurement(y, operator, images.estimate_sigma(y, known)[0])
