"""``invdiff generate``: samples of a network's prior and their record."""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
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
    load_models,
    place_label,
    place_prompt,
    record_of,
    sides,
)
from invdiff.commands.folder import check_paths, choose_folder, claim, clear, digest
from invdiff.commands.folder import finished as finished_before
from invdiff.commands.request import files_in
from invdiff.config import build_method
from invdiff.files import write_atomically
from invdiff.network import Denoiser
from invdiff.sampling import Method
from invdiff.solving import generate, interpolate
from invdiff.solving.cascade import Upscaler
from invdiff.transitions import DDIM

GRID_WIDTH = 1200
"""Pixels that the panels of a grid fill at least, so that many small images stay visible and few do
not become huge."""
SHOWN, COLUMNS = 3, 9  # samples and moments of trajectory.png


@dataclass(frozen=True)
class Layout:
    """Which image stands where: a row for each label (None: no label), the same image ids in
    each."""

    labels: list[int] | list[None]
    columns: int
    walk: bool  # the columns are on the way from one seed to another, and belong to one image

    @property
    def count(self) -> int:
        return len(self.labels) * self.columns

    @property
    def label_of(self) -> list[int] | list[None]:
        """The label of each image, row by row."""
        return [label for label in self.labels for _ in range(self.columns)]  # type: ignore[return-value]

    @property
    def ids(self) -> list[int]:
        """The image id of each: a row is what its label alone would give, and a column shares its
        noise."""
        return [0 if self.walk else k for _ in self.labels for k in range(self.columns)]

    def grid(self, x: Tensor) -> Tensor:
        """The images (B, C, H, W) as one picture: a row per label, or about a square."""
        square = len(self.labels) == 1 and not self.walk
        columns = math.ceil(math.sqrt(self.columns)) if square else self.columns
        rows = None if self.labels[0] is None or square else [str(label) for label in self.labels]
        return images.grid([*x.cpu()], columns=columns, rows=rows, height=_panel(columns))


def run(args: argparse.Namespace) -> None:
    """Samples all images; each batch is on disk as soon as it is finished.

    Raises:
        ValueError: anything about the request that cannot work, before sampling starts and before
            anything is written.
    """
    check_paths(args, ("output",))
    asked = (args.label, args.prompt, args.image_prompt)
    methods = args.method or ["none" if asked == (None, None, None) else "cfg"]
    config = configure(args, None, methods, "none")
    check_numbers(config, {key: (int,) for key in ("steps", "seed", "num_samples")})
    if config["num_samples"] < 1:
        raise ValueError(f"num_samples must be at least 1, got {config['num_samples']}")
    denoiser, upscaler = load_models(args, config)
    if not args.method and denoiser.facts.guided and args.negative_prompt is None:
        config = configure(args, None, ["none"], "none")  # one branch is all that it takes
    layout = Layout(
        _labels(args.label, denoiser), config["num_samples"], args.interpolate is not None
    )
    shape = _shape(sides(args.size), denoiser)
    labelled = place_label(config, denoiser, None if args.label is None else layout.label_of)  # type: ignore[arg-type]
    labelled = place_prompt(labelled, denoiser, args, layout.count)
    method = build_method(labelled, default=DDIM() if layout.walk else None)
    config |= {
        "label": args.label,
        "prompt": args.prompt,
        "negative_prompt": args.negative_prompt,
        "image_prompt": args.image_prompt,
        "size": list(shape[1:]),
        "interpolate": args.interpolate,
    }
    x_T = (
        _walk(args.interpolate, config, denoiser, method, shape).repeat(len(layout.labels), 1, 1, 1)
        if layout.walk
        else None
    )
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

    def finished(x: Tensor, first: int) -> None:
        if not written:
            claim(output, request)
            clear(output)
        written.extend(_write(output, x, names[first : first + len(x)]))

    shown = [k * (layout.columns if len(layout.labels) > 1 else 1) for k in range(SHOWN)]
    shown = [k for k in shown if k < layout.count] if args.trajectory or args.gif else []
    watch = Watch(denoiser, shown, with_states=args.trajectory, finished=finished)
    result = generate(
        denoiser,
        (layout.count, *shape),
        method,
        x_T=x_T,
        steps=config["steps"],
        seed=config["seed"],
        batch_size=batch_size(config),
        image_ids=layout.ids,
        callback=watch,
        progress=not args.quiet,
        **labelled["cond"],
    )
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
        of = of if args.prompt is None else f" ({args.prompt!r})"
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


def _labels(text: str | None, denoiser: Denoiser) -> list[int] | list[None]:
    if text is None:
        return [None]
    if text == "all":
        if denoiser.num_classes is None:
            raise ValueError(
                f"--label all needs a network that has classes, and {denoiser.name} is not "
                "class-conditional"
            )
        return list(range(denoiser.num_classes))
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise ValueError(f"--label is a class, several of them (3,5,7) or all, got {text!r}")
    return [int(label) for label in text.split(",")]


def _shape(size: tuple[int, int] | None, denoiser: Denoiser) -> tuple[int, int, int]:
    """(C, H, W) of the images."""
    if denoiser.channels is None:
        raise ValueError(
            f"it is not known how many channels the images of {denoiser.name} have; say "
            "model.channels=3"
        )
    if denoiser.channels not in (1, 3):
        raise ValueError(
            f"{denoiser.name} works on {denoiser.channels} channels, which are no images "
            "but latents; give model.autoencoder=FOLDER, or use "
            "invdiff.generate in Python"
        )
    if size is None:
        if denoiser.image_size is None:
            raise ValueError(
                f"it is not known what size {denoiser.name} was trained on; say --size 64 "
                "or --size 96x64"
            )
        return (denoiser.channels, denoiser.image_size, denoiser.image_size)
    return (denoiser.channels, *size)


def _walk(
    seed: int,
    config: dict[str, Any],
    denoiser: Denoiser,
    method: Method,
    shape: tuple[int, int, int],
) -> Tensor:
    """The states x_T of an interpolation, for a method that draws no noise on its way."""
    assert method.transition is not None and method.itinerary is not None
    levels = method.itinerary(denoiser.schedule, config["steps"])
    climbs = any(float(s.ratio) > float(t.ratio) for t, s in pairwise(levels))
    if not method.transition.deterministic or climbs:
        piece = method.itinerary if method.transition.deterministic else method.transition
        raise ValueError(
            "--interpolate needs a run that draws no noise, e.g. transition.name=ddim "
            f"transition.eta=0; {piece} draws some"
        )
    return interpolate(
        denoiser,
        shape,
        (config["seed"], seed),
        config["num_samples"],
        steps=config["steps"],
        itinerary=method.itinerary,
    )


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
    return images.grid(panels, labels, columns=len(titles), rows=rows, height=_panel(len(titles)))


def _panel(columns: int) -> int:
    """How high the panels of a picture with so many columns are at least."""
    return min(256, GRID_WIDTH // columns)
