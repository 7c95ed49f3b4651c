"""The pictures of a cell."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from invdiff.images import std_map, write_image
from invdiff.problem import Measurement


def write_pictures(
    folder: Path, name: str, image: str, truth: Tensor, measurement: Measurement, samples: Tensor
) -> dict[str, str]:
    """Writes what people look at; returns the files' names. Truth and measurement are shared
    between rows."""
    pictures = {"truth": (image[:16], truth), "restoration": (name, samples[0])}
    y = measurement.y
    if y.shape[1] in (1, 3) and y.ndim == 4 and not y.is_complex():
        pictures["measurement"] = (measurement.hash[:16], y[0])
    if len(samples) > 1:
        pictures |= {
            "mean": (f"{name}-mean", samples.mean(0)),
            "std": (f"{name}-std", std_map(samples.std(0))),
        }
    (folder / "pictures").mkdir(exist_ok=True)
    files = {what: f"pictures/{stem}.png" for what, (stem, _) in pictures.items()}
    for what, (_, picture) in pictures.items():
        if what not in ("truth", "measurement") or not (folder / files[what]).exists():
            write_image(folder / files[what], picture)
    return files
