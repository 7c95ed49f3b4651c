"""The samples of ``invdiff generate``: which there are, and how all or some of them are made."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from torch import Tensor

from invdiff import images
from invdiff.commands.common import Watch, batch_size, place_label, sides
from invdiff.config import build_method
from invdiff.config.conditions import condition
from invdiff.network import Denoiser
from invdiff.sampling import Method
from invdiff.solving import Restoration, interpolate
from invdiff.solving.run import Run
from invdiff.solving.solve import plan_of_samples
from invdiff.transitions import DDIM

GRID_WIDTH = 1200
"""Pixels that the panels of a grid fill at least, so that many small images stay visible and few do
not become huge."""


def panel(columns: int) -> int:
    """How high the panels of a picture with so many columns are at least."""
    return min(256, GRID_WIDTH // columns)


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
        return images.grid([*x.cpu()], columns=columns, rows=rows, height=panel(columns))


@dataclass(frozen=True)
class Sampling:
    """All samples of a run or some of them, known to work.

    Attributes:
        positions: of the images in the layout.
        run: that makes them.
    """

    layout: Layout
    positions: Sequence[int]
    run: Run

    @classmethod
    def prepare(
        cls,
        args: argparse.Namespace,
        config: dict[str, Any],
        denoiser: Denoiser,
        positions: Sequence[int] | None = None,
    ) -> Sampling:
        """Checks what is asked for.

        Args:
            positions: which images; by default all.

        Raises:
            ValueError: labels, a prompt, a size or a walk that cannot be.
        """
        walk = args.interpolate is not None
        layout = Layout(_labels(args.label, denoiser), config["num_samples"], walk)
        positions = range(layout.count) if positions is None else positions
        shape = _shape(sides(args.size), denoiser)
        labels: Any = None if args.label is None else [layout.label_of[k] for k in positions]
        labelled = place_label(config, denoiser, labels)
        labelled = condition(labelled, denoiser)
        method = build_method(labelled, default=DDIM() if walk else None)
        x_T = None
        if walk:
            states = _walk(args.interpolate, config, denoiser, method, shape)
            x_T = states[[k % layout.columns for k in positions]]
        run = plan_of_samples(
            denoiser,
            (len(positions), *shape),
            method,
            x_T=x_T,
            steps=config["steps"],
            seed=config["seed"],
            batch_size=batch_size(config),
            image_ids=[layout.ids[k] for k in positions],
            **labelled["cond"],
        )
        return cls(layout, positions, run)

    def __call__(self, watch: Watch | None = None, *, progress: bool = False) -> Restoration:
        """Samples these images; each is what it is in a run of all."""
        options = replace(self.run.options, callback=watch, progress=progress)
        return replace(self.run, options=options)(1)


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
