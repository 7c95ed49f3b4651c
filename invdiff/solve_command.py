"""``invdiff solve``: photographs in, restored photographs and their record out."""

from __future__ import annotations

import argparse
import inspect
import json
import platform
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invdiff import images, itineraries, transitions
from invdiff.config import compose
from invdiff.denoiser import Denoiser
from invdiff.files import sha256, write_atomically
from invdiff.measurement import Measurement
from invdiff.method import Method, make_method
from invdiff.operator import Operator
from invdiff.registry import UnknownNameError, call, list_plugins, load, load_model, make_operator
from invdiff.restoration import Restoration, solve
from invdiff.sampling import Progress

METRICS = ("psnr", "ssim", "lpips")
GIF_FRAMES = 60


@dataclass
class Job:
    """One image to restore: its name, where it came from, and the truth or the measurement."""

    name: str
    source: dict[str, Any]
    truth: Tensor | None = None
    measured: Measurement | Tensor | None = None


def run(args: argparse.Namespace) -> None:
    """Restores every input; each result is complete on disk before the next image starts.

    Raises:
        ValueError: anything about the request that cannot work, before anything is written.
    """
    names = args.method or ["dps"]
    config, method = _configure(args, names)
    operator = None
    if not (args.measurement and args.measurement.endswith(".safetensors")):
        operator = _operator(args, config)
    device = _device(args.device)
    options = {k: v for k, v in config["model"].items() if k != "name"}
    denoiser = load_model(args.model, dtype=getattr(torch, args.dtype), **options).to(device)
    jobs = list(_jobs(args, denoiser))
    output = Path(args.output or f"invdiff-{config['operator']['name']}-{'-'.join(names)}")
    if output.exists() and (not output.is_dir() or any(output.iterdir())) and not args.overwrite:
        raise ValueError(f"{output} exists and is not empty; choose another --output or add --overwrite")

    records = []
    for k, job in enumerate(jobs):
        measurement = _measure(job, operator, config, k)
        folder = output if len(jobs) == 1 else output / job.name
        record = _restore(
            args, config, method, denoiser, job, measurement, k, folder, f"{k + 1}/{len(jobs)} {job.name}" if len(jobs) > 1 else ""
        )
        records.append(record)
        if not args.quiet and not args.json:
            print(_summary(job.name, record, folder))
    if len(jobs) > 1:
        means = {
            m: sum(r["metrics"][m] for r in records) / len(records) for m in METRICS if all(m in r.get("metrics", {}) for r in records)
        }
        write_atomically(output / "summary.json", json.dumps({"mean": means, "results": records}, indent=2) + "\n")
    if args.json:
        print(json.dumps(records if len(jobs) > 1 else records[0], indent=2))


def _configure(args: argparse.Namespace, names: list[str]) -> tuple[dict[str, Any], Method]:
    """The composed configuration and the chain of methods; an override below guidance. goes to those that have it."""
    for kind, name in [("operators", args.operator)] + [("guidance", n) for n in names]:
        if name not in list_plugins(kind):
            load(kind, name)  # raises, with the names that are known
    flags = {"steps": args.steps, "sigma": args.sigma, "seed": args.seed, "num_samples": args.num_samples, "batch_size": args.batch_size}
    overrides = args.overrides + [f"{k}={v}" for k, v in flags.items() if v is not None]
    for override in overrides:
        if "=" not in override:
            raise ValueError(f"{override!r} is not an override; write key=value, e.g. guidance.zeta=0.5")
    chain, taken = [], set()
    config: dict[str, Any] = {}
    mine = [o for o in overrides if o.startswith("guidance.")]
    for name in names:
        allowed = inspect.signature(load("guidance", name)).parameters
        own = [o for o in mine if o.split("=")[0].removeprefix("guidance.") in allowed] if len(names) > 1 else mine
        taken.update(own)
        config = compose(args.operator, name, args.model, args.preset, [o for o in overrides if o not in mine] + own)
        parameters = {k: v for k, v in config["guidance"].items() if k != "name"}
        chain.append(make_method(name, **parameters))
    if left := [o for o in mine if o not in taken]:
        raise ValueError(f"none of the methods {', '.join(names)} has the parameter of {left[0]!r}")
    config["method"] = names
    for key, kinds in (("steps", (int,)), ("seed", (int,)), ("num_samples", (int,)), ("sigma", (int, float)), ("gain", (int, float))):
        if not isinstance(config[key], kinds) or isinstance(config[key], bool):
            raise ValueError(f"{key} must be a number, got {config[key]!r}")
    if config["batch_size"] != "auto" and not isinstance(config["batch_size"], int):
        raise ValueError(f"batch_size must be a whole number or auto, got {config['batch_size']!r}")
    method = make_method(chain) if len(chain) > 1 else chain[0]
    transition = _piece(config["transition"], transitions.BY_NAME, "transition")
    itinerary = _piece(config["itinerary"], itineraries.BY_NAME, "itinerary")
    return config, method.override(transition, itinerary)


def _piece(config: dict[str, Any] | None, known: dict[str, Any], kind: str) -> Any:
    if config is None:
        return None
    name = config.get("name")
    if name not in known:
        raise UnknownNameError(f"unknown {kind} {name!r}; write {kind}.name=NAME with one of {', '.join(known)}")
    return call(known[name], f"{kind} {name!r}", {k: v for k, v in config.items() if k != "name"})


def _operator(args: argparse.Namespace, config: dict[str, Any]) -> Operator:
    for flag, key in ((args.mask, "mask"), (args.mask_keep, "keep")):
        if flag is not None:
            config["operator"][key] = flag
    parameters = {k: v for k, v in config["operator"].items() if k != "name"}
    return make_operator(config["operator"]["name"], **parameters)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used here ({str(error).splitlines()[0]}); try --device cpu") from error
    return device


def _jobs(args: argparse.Namespace, denoiser: Denoiser) -> Iterator[Job]:
    if args.measurement:
        if args.input:
            raise ValueError("--measurement is already degraded and --input is clean: give one of them")
        if args.measurement.endswith(".safetensors"):
            path = Path(args.measurement)
            yield Job(path.stem, {"file": path.name, "sha256": _hash(path)}, measured=Measurement.load(path))
            return
        for path in images.find_images(args.measurement):
            yield Job(path.stem, {"file": path.name, "sha256": sha256(path)}, measured=images.read_image(path))
    elif args.input:
        paths = images.find_images(args.input)
        for path in paths:
            name = path.stem if sum(p.stem == path.stem for p in paths) == 1 else path.name
            yield Job(name, {"file": path.name, "sha256": sha256(path)}, truth=images.read_image(path, channels=denoiser.channels))
    else:
        truth, name = images.sample_photo(128)
        yield Job(name, {"file": f"scikit-image: {name}"}, truth=truth)


def _hash(path: Path) -> str:
    if not path.is_file():
        raise ValueError(f"no measurement at {path}")
    return sha256(path)


def _measure(job: Job, operator: Operator | None, config: dict[str, Any], k: int) -> Measurement:
    if isinstance(job.measured, Measurement):
        return job.measured
    assert operator is not None
    if job.measured is not None:
        return Measurement(job.measured, operator, config["sigma"])
    assert job.truth is not None
    shape = operator.fit(tuple(job.truth.shape[1:]))
    if shape != tuple(job.truth.shape[1:]):
        top, left = ((n - m) // 2 for n, m in zip(job.truth.shape[-2:], shape[-2:], strict=True))
        warnings.warn(f"{job.name} is cropped from {tuple(job.truth.shape[-2:])} to {shape[-2:]}, which the operator takes", stacklevel=2)
        job.truth = job.truth[..., top : top + shape[-2], left : left + shape[-1]]
    return operator.measure(job.truth, sigma=config["sigma"], seed=config["seed"], gain=config["gain"], image_ids=[k])


def _restore(
    args: argparse.Namespace,
    config: dict[str, Any],
    method: Method,
    denoiser: Denoiser,
    job: Job,
    measurement: Measurement,
    k: int,
    folder: Path,
    title: str,
) -> dict[str, Any]:
    """Restores one image and writes its folder, result.json last; returns the record."""
    frames: list[Tensor] = []

    def collect(p: Progress) -> None:
        if args.gif and p.x0 is not None and p.index % max(1, p.count // GIF_FRAMES) == 0:
            low, high = denoiser.data_range or (0.0, 1.0)
            frames.append(((p.x0[0] - low) / (high - low)).clamp(0, 1).cpu())

    if title and not args.quiet:
        print(title, file=sys.stderr)
    size = config["batch_size"]
    result = solve(
        measurement,
        denoiser,
        method,
        steps=config["steps"],
        seed=config["seed"],
        num_samples=config["num_samples"],
        batch_size=None if size == "auto" else size,
        image_ids=[k],
        callback=collect,
        progress=not args.quiet,
    )
    folder.mkdir(parents=True, exist_ok=True)
    written = _pictures(folder, job, measurement, result)
    if frames:
        images.write_gif(folder / "trajectory.gif", [*frames, result.x[0].cpu()])
        written.append("trajectory.gif")
    measurement.save(folder / "measurement.safetensors")
    record: dict[str, Any] = {
        "name": job.name,
        "input": job.source,
        "config": config,
        "run": result.config,
        "measurement": {"hash": measurement.hash, "sigma": measurement.sigma if isinstance(measurement.sigma, float) else "per pixel"},
        "nfe": result.nfe,
        "nbe": result.nbe,
        "seconds": round(result.seconds, 3),
        "peak_memory_mb": _peak_memory_mb(),
        "device": str(denoiser.device),
        "weights": denoiser.hash,
        "versions": {p: version(p) for p in ("invdiff", "torch", "diffusers", "deepinv")} | {"python": platform.python_version()},
        "files": [*written, "measurement.safetensors", "result.json"],
    }
    if job.truth is not None:
        record["metrics"] = _metrics(result.x.cpu(), job.truth)
        if len(result.samples) > 1:
            record["metrics_of_mean"] = _metrics(result.mean.cpu(), job.truth)
    write_atomically(folder / "result.json", json.dumps(record, indent=2) + "\n")
    return record


def _pictures(folder: Path, job: Job, measurement: Measurement, result: Restoration) -> list[str]:
    """Writes the images and the side-by-side picture; returns their names."""
    files = {"restored.png": result.x[0]}
    panels = {"restored": result.x[0]}
    if measurement.y.ndim == 4 and measurement.y.shape[1] in (1, 3) and not measurement.y.is_complex():
        files["measurement.png"] = measurement.y[0]
        panels = {"measurement": measurement.y[0], **panels}
    if len(result.samples) > 1:
        files |= {f"sample_{i}.png": sample[0] for i, sample in enumerate(result.samples)}
        files |= {"mean.png": result.mean[0], "std.png": images.std_map(result.std[0].cpu())}
        panels |= {"mean": result.mean[0], "std": images.std_map(result.std[0].cpu())}
    if job.truth is not None:
        files["truth.png"] = job.truth[0]
        panels = {"truth": job.truth[0], **panels}
    files["comparison.png"] = images.grid([p.cpu() for p in panels.values()], labels=list(panels))
    for name, picture in files.items():
        images.write_image(folder / name, picture.cpu())
    return list(files)


def _metrics(x: Tensor, truth: Tensor) -> dict[str, float | None]:
    """Every metric of one image; None where the image is too small for it."""
    values: dict[str, float | None] = {}
    for name in METRICS:
        try:
            values[name] = round(float(load("metrics", name)(x, truth)[0]), 5)
        except ValueError as error:
            warnings.warn(f"{name} was not computed: {error}", stacklevel=2)
            values[name] = None
    return values


def _peak_memory_mb() -> float | None:
    """Peak memory so far: of the GPU where there is one, else of the process (None where the system does not tell)."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)


def _summary(name: str, record: dict[str, Any], folder: Path) -> str:
    metrics = "  ".join(f"{k.upper()} {v:.3f}" for k, v in record.get("metrics", {}).items() if v is not None)
    return f"{name}: {metrics}{'  ' if metrics else ''}{record['nfe']:g} evaluations, {record['seconds']:.1f} s -> {folder}/comparison.png"
