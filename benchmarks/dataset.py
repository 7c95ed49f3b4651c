"""The images of a benchmark: which files, how they are cropped and made smaller, and what
identifies them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from invdiff.benchmarks.schema import Image, Images, digest
from invdiff.images import read_image
from invdiff.images.formats.scan import Scan, find_files, is_scan

SCIKIT_IMAGE = "scikit-image"


@dataclass(frozen=True)
class Dataset:
    """Images from files, as they are used.

    Args:
        source: a file, folder or glob; ``"scikit-image"`` are the images in that package's wheel.
            Every slice of a file of science is an image.
        names: file names without suffix, for slices with ``_000`` and so on, in this order; None
            takes all, sorted.
        limit: only the first so many.
        crop: pixels a side of the centre square that is taken; None takes the whole.
        size: pixels a side that this is reduced to, by averaging over areas; None leaves it.
        channels: 1 turns colour into luma, 3 repeats grey; 2 are the real and imaginary part of
            complex slices.
        data_range: (low, high) of files of science, in their units; None takes what they declare.
        axes: their axes, one letter each, where the files do not say.

    Raises:
        ValueError: nothing is there, a name that is missing or that two files bear, an image that
            is smaller than asked for.
    """

    source: str
    names: tuple[str, ...] | None = None
    limit: int | None = None
    crop: int | None = None
    size: int | None = None
    channels: int = 3
    data_range: tuple[float, float] | None = None
    axes: str | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Dataset:
        """From a suite's ``images``."""
        names, data_range = config.get("names"), config.get("data_range")
        return cls(
            **{
                **config,
                "names": None if names is None else tuple(map(str, names)),
                "data_range": None if data_range is None else (data_range[0], data_range[1]),
            }
        )

    def __post_init__(self) -> None:
        for name in ("limit", "crop", "size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"images.{name} must be at least 1, got {value}")

    @cached_property
    def _found(self) -> dict[str, tuple[str, Callable[[], Tensor]]]:
        """The file and what reads it, by the name of the image, in order."""
        source: str | Path = self.source
        if self.source == SCIKIT_IMAGE:
            from skimage import data

            source = Path(data.__file__).parent
        found: dict[str, tuple[str, Callable[[], Tensor]]] = {}
        for path in find_files(source):
            for name, read in self._images_of(path):
                if name in found and (self.names is None or name in self.names):
                    raise ValueError(
                        f"two images are called {name}: {found[name][0]} and "
                        f"{Path(path).name}; rename one of them"
                    )
                found[name] = Path(path).name, read
        names = tuple(found) if self.names is None else self.names
        if missing := [name for name in names if name not in found]:
            raise ValueError(
                f"no image {missing[0]} in {self.source}; there are "
                f"{', '.join(sorted(found)[:20])}{' ...' * (len(found) > 20)}"
            )
        return {name: found[name] for name in names[: self.limit]}

    def _images_of(self, path: str | Path) -> Iterator[tuple[str, Callable[[], Tensor]]]:
        if not is_scan(path, self.data_range):
            yield Path(path).stem, partial(read_image, path, channels=self.channels)
            return
        scan = Scan(path, self.data_range, self.axes)
        for k, name in enumerate(scan.names):
            yield name, partial(scan.image, k, self.channels)

    def __len__(self) -> int:
        return len(self._found)

    def __getitem__(self, name: str) -> Tensor:
        """The image of that name, (1, C, H, W) in [0, 1]."""
        file, read = self._found[name]
        x = read()
        for what, side in (("crop", self.crop), ("size", self.size)):
            if side is not None and min(x.shape[-2:]) < side:
                raise ValueError(
                    f"{file} has {x.shape[-1]}x{x.shape[-2]} pixels, fewer than "
                    f"images.{what}={side}"
                )
            if what == "crop" and side is not None:
                top, left = ((n - side) // 2 for n in x.shape[-2:])
                x = x[..., top : top + side, left : left + side]
            elif side is not None:
                x = F.adaptive_avg_pool2d(x, side)
        return x.contiguous()

    def identities(self) -> list[Image]:
        """Index, name, shape and SHA-256 of the values of every image."""
        found: list[Image] = []
        for k, name in enumerate(self._found):
            x = self[name]
            found.append(
                {"index": k, "name": name, "shape": list(x.shape[1:]), "hash": image_hash(x)}
            )
        return found


def image_hash(x: Tensor) -> str:
    """SHA-256 of the values of an image."""
    return hashlib.sha256(x.contiguous().numpy().tobytes()).hexdigest()


def summary(images: Sequence[Image]) -> Images:
    """How many images and a hash of all, which changes with any of them and with their order."""
    return {"count": len(images), "hash": digest([image["hash"] for image in images])}
