"""``invdiff generate``: samples of a network's prior and their record."""

from __future__ import annotations

import argparse
import json
import sys
import time
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
    check_reading,
    configure,
    is_spread,
    load_models,
    record_of,
)
from invdiff.commands.folder import check_paths, choose_folder, claim, clear, digest
from invdiff.commands.folder import finished as finished_before
from invdiff.commands.request import files_in
from invdiff.commands.samples import Layout, Sampling, panel
from invdiff.device import peak_memory_mb
from invdiff.files import write_atomically
from invdiff.network import Denoiser
from invdiff.solving.cascade import Upscaler

SHOWN, COLUMNS = 3, 9  # samples and moments of trajectory.png


def run(args: argparse.Namespace) -> None:
    """Samples all images; each batch is on disk as soon as it is finished.

    Raises:
        ValueError: anything about the request that cannot work, before sampling starts and before
            anything is written.
    """
    check_paths(args, ("output",))
    spreads = is_spread(args)
    if spreads and (args.trajectory or args.gif and args.interpolate is None):
        raise ValueError(
            "--trajectory and --gif show how samples come about, which several processes do not "
            "hand on; leave out --workers and --launcher, or the pictures"
        )
    methods = args.method or ["none" if args.label is None else "cfg"]
    config = configure(args, None, methods, "none")
    if not args.method and any(config[key] is not None for key in ("prompt", "image_prompt")):
        methods = ["cfg"]
        config = configure(args, None, methods, "none")
    check_numbers(config, {key: (int,) for key in ("steps", "seed", "num_samples")})
    if config["num_samples"] < 1:
        raise ValueError(f"num_samples must be at least 1, got {config['num_samples']}")
    denoiser, upscaler = load_models(args, config)
    if not args.method and denoiser.facts.guided and config["negative_prompt"] is None:
        config = configure(args, None, ["none"], "none")  # one branch is all that it takes
    sampling = Sampling.prepare(args, config, denoiser)
    layout = sampling.layout
    config |= {
        "label": args.label,
        "size": list(sampling.run.shape[2:]),
        "interpolate": args.interpolate,
    }
    check_reading(args, config, denoiser)
    request = _request(args, config, denoiser)
    default = f"invdiff-generate-{'-'.join(methods)}"
    output = choose_folder(args.output, default, request, args.overwrite, [])
    if not args.overwrite and (record := finished_before(output, digest(request))) is not None:
        if not args.quiet:
            print(f"{output}: finished before; --overwrite runs it again", file=sys.stderr)
        if args.json:
            print(json.dumps(record, indent=2))
        return

    names = [f"sample_{k:03d}.png" for k in range(layout.count)]
    written: list[str] = []

    def begin() -> None:
        claim(output, request)
        clear(output)

    def finished(x: Tensor, first: int) -> None:
        if not written:
            begin()
        written.extend(_write(output, x, names[first : first + len(x)]))

    shown = [k * (layout.columns if len(layout.labels) > 1 else 1) for k in range(SHOWN)]
    shown = [k for k in shown if k < layout.count] if args.trajectory or args.gif else []
    watch = Watch(denoiser, shown, with_states=args.trajectory, finished=finished)
    if spreads:
        from invdiff.commands import workers  # the launchers are no part of a quick start

        launcher = workers.launcher_of(args)
        begin()
        result, peak = workers.sample(
            sampling,
            launcher,
            args,
            config,
            output,
            lambda x, k: _write(output, x, [names[k]]),
        )
        written += names
    else:
        result = sampling(watch, progress=not args.quiet)
        peak = peak_memory_mb(denoiser.device)
    x = result.x.cpu()
    pictures = {"grid.png": layout.grid(x)}
    if args.trajectory:
        pictures["trajectory.png"] = _trajectory(watch, layout, x)
    written += _write(output, pictures.values(), pictures)
    if args.gif:
        frames = [*x[: layout.columns]] if layout.walk else [*watch.estimates[0].values(), x[0]]
        written.append("interpolation.gif" if layout.walk else "trajectory.gif")
        images.write_gif(output / written[-1], frames)
    record = record_of(result, config, denoiser, denoiser.hash) | {
        "peak_memory_mb": peak,
        "labels": layout.labels if args.label is not None else None,
        "seeds": [config["seed"], *([args.interpolate] if layout.walk else [])],
        "samples": [
            {"file": name, "label": label, "image_id": k}
            for name, label, k in zip(names, layout.label_of, layout.ids, strict=True)
        ],
    }
    if upscaler is not None:
        record["upscale"] = _upscale(args, upscaler, result.x, config, layout, output, written)
    record["request"], record["files"] = digest(request), [*written, "result.json"]
    write_atomically(output / "result.json", json.dumps(record, indent=2) + "\n")
    if args.json:
        print(json.dumps(record, indent=2))
    elif not args.quiet:
        of = "" if args.label is None else f" (label {args.label})"
        of = of if config["prompt"] is None else f" ({config['prompt']!r})"
        print(
            f"{layout.count} images{of}: {result.nfe:g} evaluations each, "
            f"{result.seconds:.1f} s -> {output}/grid.png"
        )
        if upscaler is not None:
            print(
                f"enlarged by {upscaler.factor}, {record['upscale']['seconds']:.1f} s -> "
                f"{output}/upscaled_grid.png"
            )


def _request(
    args: argparse.Namespace, config: dict[str, Any], denoiser: Denoiser
) -> dict[str, Any]:
    """The request as plain data."""
    asked = {
        "invdiff": version("invdiff"),
        "config": config,
        "files": dict(files_in(config["image_prompt"])),
        "weights": denoiser.hash,
        "pictures": {"gif": args.gif, "trajectory": args.trajectory},
    }
    return json.loads(json.dumps(asked, default=str))


def _upscale(
    args: argparse.Namespace,
    upscaler: Upscaler,
    x: Tensor,
    config: dict[str, Any],
    layout: Layout,
    output: Path,
    written: list[str],
) -> dict[str, Any]:
    """Enlarges the images and writes them with a grid of their own; returns the record."""
    names = [f"upscaled_{k:03d}.png" for k in range(len(x))]
    begun = time.perf_counter()
    if not args.quiet:
        print(f"upscaling by {upscaler.factor} ({upscaler.name})", file=sys.stderr)
    watch = (
        None
        if upscaler.model is None
        else Watch(
            upscaler.model, finished=lambda y, k: _write(output, y, names[k : k + len(y)]) and None
        )
    )
    larger = upscaler(
        x,
        seed=config["seed"],
        batch_size=batch_size(config),
        image_ids=layout.ids,
        progress=not args.quiet,
        callback=watch,
    )
    seconds = time.perf_counter() - begun
    written += _write(output, [*larger, layout.grid(larger)], [*names, "upscaled_grid.png"])
    return upscaler.describe() | {"seconds": round(seconds, 3)}


def _write(folder: Path, pictures: Any, names: Any) -> list[str]:
    for name, picture in zip(names, pictures, strict=True):
        images.write_image(folder / name, picture.cpu())
    return list(names)


def _trajectory(watch: Watch, layout: Layout, x: Tensor) -> Tensor:
    """How the first samples came about: a row of states and a row of estimates for each, the image
    itself last."""
    panels, rows = [], []
    for position in watch.positions:
        steps = list(watch.estimates[position])
        chosen = [
            steps[i]
            for i in torch.linspace(0, len(steps) - 1, COLUMNS).round().long().unique().tolist()
        ]
        for name, kept in (("state", watch.states), ("estimate", watch.estimates)):
            panels += [*(kept[position][i] for i in chosen), x[position]]
            label = layout.label_of[position]
            rows.append(name if label is None else f"{label}: {name}")
    titles = [f"step {i + 1}" for i in chosen] + ["image"]
    labels = titles + [""] * (len(panels) - len(titles))
    return images.grid(panels, labels, columns=len(titles), rows=rows, height=panel(len(titles)))
