"""The pictures of a cell, and the values that they show."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from invdiff.benchmarks.schema import Values
from invdiff.files import sha256, write_atomically
from invdiff.images import std_map, viewable, write_image
from invdiff.problem import Measurement


def write_pictures(
    folder: Path, name: str, image: str, truth: Tensor, measurement: Measurement, samples: Tensor
) -> dict[str, str]:
    """Writes PNG files for people to look at. Truth and measurement are shared between rows.

    Args:
        folder: of the records; files go into its folder ``pictures``.
        name: of the cell's own files.
        image: hash of the true image.
        truth: (C, H, W) in [0, 1].
        measurement: of this image alone.
        samples: (S, C, H, W) in [0, 1].

    Returns:
        The files' names by what they show, relative to the folder.
    """
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
            write_image(folder / files[what], viewable(picture))
    return files


def write_values(folder: Path, name: str, image: str, truth: Tensor, samples: Tensor) -> Values:
    """Writes the float32 values of an image and its samples, so that others can compute metrics
    again; arguments are those of :func:`write_pictures`."""
    (folder / "pictures").mkdir(exist_ok=True)
    files: Values = {
        "truth": f"pictures/{image[:16]}.safetensors",
        "samples": f"pictures/{name}.safetensors",
    }
    if not (folder / files["truth"]).exists():
        write_atomically(folder / files["truth"], save({"values": truth.contiguous()}))
    write_atomically(folder / files["samples"], save({"values": samples.contiguous()}))
    return files


def hashes(folder: Path, files: dict[str, str]) -> dict[str, str]:
    """SHA-256 of each of the files."""
    return {what: sha256(folder / name) for what, name in files.items()}
