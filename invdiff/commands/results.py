"""The results of ``solve``: metrics, pictures, records, and what is said about them."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

from torch import Tensor

from invdiff import images
from invdiff.commands.folder import OURS
from invdiff.files import write_atomically
from invdiff.plugins.registry import list_plugins, load
from invdiff.problem import Measurement
from invdiff.solving import Restoration

METRICS = ("psnr", "ssim", "lpips")


def check_worth(
    name: str, measurement: Measurement, truth: Tensor, found: dict[str, float | str | None]
) -> None:
    """Warns where an image made from the measurement alone is nearer to the truth by PSNR and by
    LPIPS."""
    estimate = measurement.estimate()
    if estimate is None or estimate.shape != truth.shape or estimate.is_complex():
        return
    estimate = estimate.cpu().clamp(0, 1)
    try:
        psnr, lpips = (float(load("metrics", m)(estimate, truth)[0]) for m in ("psnr", "lpips"))
        ours, our_lpips = (float(found[m] or "nan") for m in ("psnr", "lpips"))
    except Exception:  # images that a metric does not take
        return
    if psnr > ours and lpips < our_lpips:
        warnings.warn(
            f"{name}: an image made from the measurement alone is better (PSNR {psnr:.2f} against "
            f"{ours:.2f}, LPIPS {lpips:.3f} against {our_lpips:.3f}): another method, or other "
            "values, suit this network and operator; without --method one is chosen",
            stacklevel=2,
        )


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Writes result.json with the names of the files beside it."""
    names = {path.name for path in folder.iterdir() if OURS.fullmatch(path.name)}
    record["files"] = sorted(names | {"result.json"})
    write_atomically(folder / "result.json", json.dumps(record, indent=2) + "\n")


def write_pictures(
    folder: Path, truth: Tensor | None, measurement: Measurement, result: Restoration, scan: bool
) -> None:
    """Writes the images and the side-by-side picture; those of a scan are windowed."""
    x = result.x[0].cpu()
    window = images.window_of(x) if scan else (0.0, 1.0)

    def picture(image: Tensor) -> Tensor:
        return images.viewable(image.cpu(), window)

    y = measurement.y
    files = {"restored.png": picture(x)}
    panels = {"restored": picture(x)}
    if len(x) == 2:
        panels["phase"] = images.phase(x)
    if y.ndim == 4 and y.shape[1] in (1, 3) and not y.is_complex():
        files["measurement.png"] = picture(y[0])
        panels = {"measurement": picture(y[0]), **panels}
    if len(result.samples) > 1:
        spread_of = images.std_map(result.std[0].cpu())
        files |= {f"sample_{i}.png": picture(sample[0]) for i, sample in enumerate(result.samples)}
        files |= {"mean.png": picture(result.mean[0]), "std.png": spread_of}
        # Methods that look for one image differ by their noise, not by what is uncertain.
        spread = "std" if result.config["posterior"] else "std (no posterior)"
        panels |= {"mean": picture(result.mean[0]), spread: spread_of}
    if truth is not None:
        files["truth.png"] = picture(truth[0])
        panels = {"truth": picture(truth[0]), **panels, "error": images.error_map(x, truth[0])}
    files["comparison.png"] = images.grid(list(panels.values()), labels=list(panels))
    for name, image in files.items():
        images.write_image(folder / name, image)


def metrics(x: Tensor, truth: Tensor) -> dict[str, float | str | None]:
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


def summary(name: str, record: dict[str, Any], folder: Path) -> str:
    metrics = "  ".join(
        f"{k.upper()} {float(v):.3f}" for k, v in record.get("metrics", {}).items() if v is not None
    )
    return (
        f"{name}: {metrics}{'  ' if metrics else ''}{record['nfe']:g} evaluations, "
        f"{record['seconds']:.1f} s -> {folder}/comparison.png"
    )
