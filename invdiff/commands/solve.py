"""``invdiff solve``: photographs in, restored photographs and their record out."""

from __future__ import annotations

import argparse
import json
import math
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invdiff import images
from invdiff.commands.common import (
    Watch,
    batch_size,
    check_numbers,
    check_paths,
    check_reading,
    configure,
    load_models,
    place_label,
    place_prompt,
    record_of,
)
from invdiff.commands.folder import (
    OURS,
    choose_folder,
    claim,
    digest,
    finished,
    replaced,
    warn_of_others,
)
from invdiff.config.advice import misfit, untuned
from invdiff.config.compose import build_method, build_operator
from invdiff.device import out_of_memory
from invdiff.files import sha256, write_atomically
from invdiff.network import Denoiser
from invdiff.noise import seed_of
from invdiff.plugins.registry import list_plugins, load, name_of
from invdiff.problem import Measurement, Operator
from invdiff.sampling import Method
from invdiff.solving import Restoration, solve
from invdiff.solving.cascade import Upscaler
from invdiff.solving.solve import check_solve

METRICS = ("psnr", "ssim", "lpips")


@dataclass(frozen=True)
class Job:
    """One image to restore: its name, where it came from, how to get the truth or the measurement
    when its turn comes, and the k that its noise is derived from."""

    name: str
    source: dict[str, Any]
    read: Callable[[], Tensor | Measurement]
    degraded: bool = False
    id: int = 0


def run(args: argparse.Namespace) -> None:
    """Restores every input; each result is complete on disk before the next image is read.

    Raises:
        ValueError: anything about the request that cannot work. Of several images one that fails is
            recorded and does not stop the others.
    """
    check_paths(args, ("input", "measurement", "output", "mask"))
    saved = _saved_measurement(args)
    config = _configure(args, saved)
    operator = build_operator(config) if saved is None else saved.operator
    denoiser, upscaler = load_models(args, config)
    config = place_label(config, denoiser, args.label)
    prompted = place_prompt(config, denoiser, args)
    method = build_method(prompted)
    config |= {"prompt": args.prompt, "negative_prompt": args.negative_prompt}
    jobs = _jobs(args, denoiser, saved)
    if args.image_id is not None:
        jobs = [replace(job, id=args.image_id + k) for k, job in enumerate(jobs)]
    check_reading(args, config, denoiser)
    request = _request(args, config, denoiser, jobs)
    problem = config["protocol"] or config["operator"]["name"]
    default = f"invdiff-{problem}-{'-'.join(args.method or ['dps'])}"
    inputs = [Path(job.source["path"]) for job in jobs if "path" in job.source]
    output = choose_folder(args.output, default, request, args.overwrite, inputs)
    if len(jobs) > 1:
        warn_of_others(output, [job.name for job in jobs])

    records: list[dict[str, Any]] = []
    for k, job in enumerate(jobs):
        folder = output if len(jobs) == 1 else output / job.name
        if len(jobs) > 1 and not args.quiet:
            print(f"{k + 1}/{len(jobs)} {job.name}", file=sys.stderr)
        try:
            record = None if args.overwrite else finished(folder, digest(request))
            if record is not None and not args.quiet:
                print(f"{job.name}: finished before; --overwrite runs it again", file=sys.stderr)
            if record is None:
                record = _restore(
                    args,
                    config,
                    operator,
                    method,
                    prompted["cond"],
                    denoiser,
                    upscaler,
                    job,
                    k,
                    folder,
                    request,
                    output,
                )
        except (ValueError, OSError, RuntimeError) as error:
            said = _said(error)
            if len(jobs) == 1:
                raise ValueError(said) from error
            record = {"name": job.name, "input": job.source, "error": said}
            print(f"{job.name}: error: {record['error']}", file=sys.stderr)
        records.append(record)
        if not args.quiet and not args.json and "error" not in record:
            print(_summary(job.name, record, folder))
    failed = [r["name"] for r in records if "error" in r]
    if len(jobs) > 1 and len(failed) < len(jobs):
        scored = [r["metrics"] for r in records if "metrics" in r]
        means = {
            m: sum(s[m] for s in scored) / len(scored)
            for m in (scored[0] if scored else ())
            if all(isinstance(s[m], float) for s in scored)
        }
        write_atomically(
            output / "summary.json",
            json.dumps({"mean": means, "results": records}, indent=2) + "\n",
        )
    if args.json:
        print(json.dumps(records if len(jobs) > 1 else records[0], indent=2))
    if failed:
        raise ValueError(f"{len(failed)} of {len(jobs)} images failed: {', '.join(failed)}")


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


def _saved_measurement(args: argparse.Namespace) -> Measurement | None:
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
    name = name_of("operators", type(measurement.operator))
    if args.operator not in (None, name):
        raise ValueError(
            f"{args.measurement} was measured by {name!r}, not by {args.operator!r}; leave "
            "out --operator"
        )
    return measurement


def _configure(args: argparse.Namespace, saved: Measurement | None) -> dict[str, Any]:
    """The composed configuration: presets, flags and overrides."""
    methods = args.method or ["dps"]
    operator = _problem(args) if saved is None else name_of("operators", type(saved.operator))
    config = configure(args, operator, methods, args.preset)
    for flag, key in (
        (args.mask, "mask"),
        (args.mask_keep, "keep"),
        (args.mask_grow, "grow"),
    ):
        if flag is not None:
            config["operator"][key] = flag
    if saved is not None:
        described = saved.describe()
        config |= {
            "operator": {"name": operator, **described["parameters"]},
            "sigma": described["sigma"],
            "gain": None,
        }
    kinds: dict[str, tuple[type, ...]] = {"steps": (int,), "seed": (int,), "num_samples": (int,)}
    kinds |= {} if saved else {"sigma": (int, float), "gain": (int, float)}
    if config["sigma"] == "auto":
        if args.measurement is None:
            raise ValueError("--sigma auto estimates the noise of a --measurement; give a number")
        del kinds["sigma"]
    check_numbers(config, kinds)
    return config


def _problem(args: argparse.Namespace) -> str:
    """The operator that is asked for, inpainting where there is a mask or where nothing is asked.

    Raises:
        ValueError: what is degraded already, but not how.
    """
    if args.operator is not None:
        return str(args.operator)
    if args.measurement is not None and args.mask is None:
        raise ValueError(
            f"say what is wrong with {args.measurement}: --mask FILE for damage or missing parts, "
            "or --operator blur, sr (too small), denoise, jpeg, colorize (grey), ...; invdiff list "
            "operators has them all"
        )
    return "inpaint"


def _request(
    args: argparse.Namespace, config: dict[str, Any], denoiser: Denoiser, jobs: Sequence[Job]
) -> dict[str, Any]:
    """What is asked for, as plain data; the same again goes on where it was stopped."""
    asked = {
        "invdiff": version("invdiff"),
        "config": config,
        "weights": denoiser.hash,
        "inputs": {job.name: job.source | {"id": job.id} for job in jobs},
        "gif": args.gif,
    }
    return json.loads(json.dumps(asked, default=str))


def _jobs(args: argparse.Namespace, denoiser: Denoiser, saved: Measurement | None) -> list[Job]:
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


def _measure(
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


def _restore(
    args: argparse.Namespace,
    config: dict[str, Any],
    operator: Operator,
    method: Method,
    cond: dict[str, Any],
    denoiser: Denoiser,
    upscaler: Upscaler | None,
    job: Job,
    k: int,
    folder: Path,
    request: dict[str, Any],
    output: Path,
) -> dict[str, Any]:
    """Restores image k and writes its folder, result.json last; returns the record."""
    measurement, truth = _measure(job, operator, config, denoiser)
    if k == 0 and not args.quiet:
        general = "none for this model, method and operator; these are general values"
        print(f"preset: {config['preset'] or general}", file=sys.stderr)
        for note in measurement.operator.notes:
            print(note, file=sys.stderr)
        if job.degraded and config["sigma"] != "auto":
            known = isinstance(measurement.sigma, float)
            print(f"sigma: {measurement.sigma if known else 'per pixel'}", file=sys.stderr)
    if config["sigma"] == "auto":
        config = config | {"sigma": measurement.sigma}
        if not args.quiet:
            print(f"sigma: {measurement.sigma:.4f}, estimated from {job.name}", file=sys.stderr)
    if k == 0 and (warning := untuned(config)):
        check_solve(
            measurement, denoiser, method, steps=config["steps"], **cond
        )  # what cannot run is refused, and nothing else said
        warnings.warn(warning, stacklevel=2)
    watch = Watch(denoiser, positions=(0,) if args.gif else ())
    result = solve(
        measurement,
        denoiser,
        method,
        steps=config["steps"],
        seed=config["seed"],
        num_samples=config["num_samples"],
        batch_size=batch_size(config),
        image_ids=[job.id],
        callback=watch,
        progress=not args.quiet,
        **cond,
    )
    samples = list(result.samples.to(measurement.y.device, measurement.y.real.dtype))
    consistency = [float(measurement.consistency(sample)[0]) for sample in samples]
    if warning := misfit(measurement, samples, consistency, config, method):
        warnings.warn(f"{job.name}: {warning}", stacklevel=2)
    record: dict[str, Any] = {
        "name": job.name,
        "input": job.source,
        "image_id": job.id,
        "measurement": {
            "hash": measurement.hash,
            "sigma": measurement.sigma if isinstance(measurement.sigma, float) else "per pixel",
        },
        "consistency": round(mean, 4)
        if math.isfinite(mean := sum(consistency) / len(consistency))
        else None,
        **record_of(result, config, denoiser, request["weights"]),
    }
    if truth is not None:
        record["metrics"] = _metrics(result.x.cpu(), truth)
        if len(result.samples) > 1:
            record["metrics_of_mean"] = _metrics(result.mean.cpu(), truth)
    claim(output, request)
    record["request"] = digest(request)
    with replaced(folder) as made:
        _pictures(made, truth, measurement, result)
        if args.gif:
            frames = [*watch.estimates[0].values(), result.x[0].cpu()]
            images.write_gif(made / "trajectory.gif", frames)
        measurement.save(made / "measurement.safetensors")
        _write_record(made, record)
    if upscaler is not None:  # after the record: the restoration is finished without it
        larger = upscaler(
            result.x, seed=config["seed"], image_ids=[job.id], progress=not args.quiet
        )
        images.write_image(folder / "upscaled.png", larger[0].cpu())
        record["upscale"] = upscaler.describe()
        _write_record(folder, record)
    return record


def _write_record(folder: Path, record: dict[str, Any]) -> None:
    """Writes result.json with the names of the files beside it."""
    names = {path.name for path in folder.iterdir() if OURS.fullmatch(path.name)}
    record["files"] = sorted(names | {"result.json"})
    write_atomically(folder / "result.json", json.dumps(record, indent=2) + "\n")


def _pictures(
    folder: Path, truth: Tensor | None, measurement: Measurement, result: Restoration
) -> None:
    """Writes the images and the side-by-side picture."""
    files = {"restored.png": result.x[0]}
    panels = {"restored": result.x[0]}
    if (
        measurement.y.ndim == 4
        and measurement.y.shape[1] in (1, 3)
        and not measurement.y.is_complex()
    ):
        files["measurement.png"] = measurement.y[0]
        panels = {"measurement": measurement.y[0], **panels}
    if len(result.samples) > 1:
        files |= {f"sample_{i}.png": sample[0] for i, sample in enumerate(result.samples)}
        files |= {"mean.png": result.mean[0], "std.png": images.std_map(result.std[0].cpu())}
        panels |= {"mean": result.mean[0], "std": images.std_map(result.std[0].cpu())}
    if truth is not None:
        files["truth.png"] = truth[0]
        panels = {
            "truth": truth[0],
            **panels,
            "error": images.error_map(result.x[0].cpu(), truth[0]),
        }
    files["comparison.png"] = images.grid([p.cpu() for p in panels.values()], labels=list(panels))
    for name, picture in files.items():
        images.write_image(folder / name, picture.cpu())


def _metrics(x: Tensor, truth: Tensor) -> dict[str, float | str | None]:
    """Every installed metric of one image, our own first; None where the image is too small, "inf"
    where it is infinite (JSON has no such number)."""
    values: dict[str, float | str | None] = {}
    for name in dict.fromkeys([*METRICS, *list_plugins("metrics")]):
        try:
            value = round(float(load("metrics", name)(x, truth)[0]), 5)
            values[name] = value if math.isfinite(value) else str(value)
        except Exception as error:  # whatever a plug-in raises: the restoration is not lost
            warnings.warn(f"{name} was not computed: {error}", stacklevel=2)
            values[name] = None
    return values


def _summary(name: str, record: dict[str, Any], folder: Path) -> str:
    metrics = "  ".join(
        f"{k.upper()} {float(v):.3f}" for k, v in record.get("metrics", {}).items() if v is not None
    )
    return (
        f"{name}: {metrics}{'  ' if metrics else ''}{record['nfe']:g} evaluations, "
        f"{record['seconds']:.1f} s -> {folder}/comparison.png"
    )
