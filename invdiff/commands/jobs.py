"""The images of a run of ``solve``: where they come from, and how each becomes a measurement."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invdiff import images
from invdiff.commands.common import sides
from invdiff.files import sha256
from invdiff.images.formats import split_part
from invdiff.images.formats.scan import Scan, find_files, is_scan
from invdiff.network import Denoiser
from invdiff.noise import seed_of
from invdiff.plugins.registry import name_of
from invdiff.problem import LinearOperator, Measurement, Operator
from invdiff.problem.simulate import poisson_sigma


@dataclass(frozen=True)
class Job:
    """One image to restore: its name, where it came from, how to get the truth or the measurement
    when its turn comes, and the k that its noise is derived from."""

    name: str
    source: dict[str, Any]
    read: Callable[[], Tensor | Measurement]
    degraded: bool = False
    id: int = 0
    scan: Scan | None = None
    """The file of science that the image is a slice of."""
    whole: str = ""
    """The name of that file in the output, unlike that of every other."""
    size: tuple[int, int] | None = None
    """Height and width of the image, where its measurement does not tell."""

    @property
    def saved(self) -> bool:
        """Whether it is a measurement that was saved, which says its noise."""
        return str(self.source.get("path", "")).endswith(".safetensors")


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
    """The images of a run, with the k that is asked for or that of their names."""
    jobs = _found(args, denoiser, saved)
    if args.image_id is None:
        return jobs
    return [replace(job, id=args.image_id + k) for k, job in enumerate(jobs)]


def _found(args: argparse.Namespace, denoiser: Denoiser, saved: Measurement | None) -> list[Job]:
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
        degraded = args.measurement is not None
        found = find_files(args.measurement if degraded else args.input)
        channels = None if degraded else denoiser.channels
        size = sides(args.size)
        jobs: list[Job] = []
        for name, source in zip(_unique_names(found), found, strict=True):
            if is_scan(source, args.range):
                scan = Scan(source, args.range, args.axes)
                jobs += _slices(name, scan, degraded, channels, size)
                continue
            file = Path(source)
            for flag in ("range", "axes", "size"):
                if getattr(args, flag) is not None:
                    raise ValueError(
                        f"--{flag} is for files of science, and {file.name} is a picture in [0, 1]"
                    )
            read = partial(images.read_image, file, channels)
            jobs.append(Job(name, _source(file), read, degraded, image_id(file.name)))
        return jobs
    truth, name = images.sample_photo(128)
    return [Job(name, {"file": f"scikit-image: {name}"}, lambda: truth)]


def image_id(file: str) -> int:
    """The k of an image, which its noise is derived from: of the name of its file, so that it does
    not depend on what stands beside it."""
    return seed_of("image", file) % 2**48


def _slices(
    name: str,
    scan: Scan,
    degraded: bool,
    channels: int | None,
    size: tuple[int, int] | None,
) -> list[Job]:
    """The slices of a file of science; those that are degraded are read in its units."""
    file, part = split_part(scan.path)
    low, high = scan.range
    source: dict[str, Any] = {**_source(file), "part": part, "axes": scan.volume.axes}
    source |= {"range": [low, high], "unit": scan.volume.unit, "size": size}
    first = image_id(file.name)
    return [
        Job(
            name + scan.names[k].removeprefix(scan.stem),
            source | {"slice": k},
            partial(scan.slices.__getitem__, [k]) if degraded else partial(scan.image, k, channels),
            degraded,
            first + k,
            scan,
            name,
            size,
        )
        for k in range(len(scan))
    ]


def _source(path: Path) -> dict[str, str]:
    return {"file": path.name, "path": str(path), "sha256": sha256(path)}


def _unique_names(paths: Sequence[str | Path]) -> list[str]:
    """A folder name for each file: its stem where that tells them apart, else more of the path."""
    files = [split_part(path)[0] for path in paths]
    stems = [
        Scan(p).stem if is_scan(p) else file.stem for p, file in zip(paths, files, strict=True)
    ]
    for candidate in (stems, [file.name for file in files]):
        if len(set(candidate)) == len(paths):
            return candidate
    return [f"{k:03d}_{file.name}" for k, file in enumerate(files)]


def measure(
    job: Job, operator: Operator, config: dict[str, Any], denoiser: Denoiser
) -> tuple[Measurement, Tensor | None]:
    """The measurement of an image, and the truth where it is known."""
    x = job.read()
    if isinstance(x, Measurement):
        return x, None
    if job.degraded:
        operator = operator.of_file(Path(job.source["path"]))
        if job.scan is not None:
            x, operator = _fitted(x, operator, denoiser.channels, job.size)
            x = _in_unit_range(x, operator, job.scan.range, config["gain"])
        elif (
            x.shape[1] == 1
            and denoiser.channels == 3
            and operator.image_shape(tuple(x.shape[1:]))[0] == 1
        ):
            x = x.expand(-1, 3, -1, -1)  # a grey photograph for a prior of colour ones
        return _with_noise(x, operator, config["sigma"], config["gain"]), None
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


def _fitted(
    y: Tensor, operator: Operator, channels: int | None, size: tuple[int, int] | None
) -> tuple[Tensor, Operator]:
    """A slice as the measurement of an image of the network's channels, and the operator bound to
    that image: complex numbers are given as real and imaginary part where the operator gives those,
    and one channel is repeated where it acts on each.

    Raises:
        ValueError: the operator gives nothing of that shape.
    """
    seen = [y]
    if y.is_complex():
        seen.append(torch.cat([y.real, y.imag], dim=1))
    elif y.shape[1] == 1 and channels is not None:
        seen.append(y.expand(-1, channels, -1, -1))
    said = ""
    for measured in seen:
        found = tuple(measured.shape[1:])
        try:
            shape = operator.image_shape(found) if size is None else (found[0], *size)
            bound = operator.bind((channels or shape[0], *shape[1:]))
        except ValueError as error:
            said = f"{error}; --size HEIGHTxWIDTH says how large the image is"
            continue
        if bound.measurement_shape == found:
            return measured, bound
        said = (
            f"{bound.kind} gives measurements of shape {bound.measurement_shape} for images of "
            f"shape {bound.shape}, but a slice has the shape {tuple(y.shape[1:])}"
        )
    raise ValueError(said)


def _in_unit_range(
    y: Tensor, operator: Operator, data_range: tuple[float, float], gain: float
) -> Tensor:
    """The measurement of an image whose range is [0, 1], from y, that of one in ``data_range``.

    Raises:
        ValueError: a range that does not begin at 0, with an operator that is not linear or with
            Poisson noise.
    """
    low, high = data_range
    if low != 0:
        if not isinstance(operator, LinearOperator) or gain > 0:
            kind = "Poisson noise" if gain > 0 else f"{operator.kind}, which is not linear,"
            raise ValueError(f"{kind} needs a --range that begins at 0, got {low:g},{high:g}")
        assert operator.shape is not None
        black = torch.full((1, *operator.shape), low, dtype=y.real.dtype)
        y = y - operator(black)
    return y / (high - low)


def _with_noise(y: Tensor, operator: Operator, sigma: float | str, gain: float) -> Measurement:
    if sigma == "auto":
        known = Measurement(torch.ones_like(y), operator).y
        sigma = images.estimate_sigma(y, known)[0]
    return Measurement(y, operator, poisson_sigma(y, float(sigma), gain) if gain > 0 else sigma)
