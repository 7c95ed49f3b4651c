"""Files of science in ``solve``: what is written of each slice, and of the whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from invdiff.commands.jobs import Job
from invdiff.files import write_array
from invdiff.images import ImageError
from invdiff.images.formats import Volume, split_part, suffix_of, write_volume
from invdiff.images.formats.scan import Scan
from invdiff.solving import Restoration


def write_arrays(folder: Path, result: Restoration) -> None:
    """Writes restored.npy, (C, H, W) in [0, 1] without loss; of several samples mean.npy and
    std.npy as well."""
    arrays = {"restored": result.x[0]}
    if len(result.samples) > 1:
        arrays |= {"mean": result.mean[0], "std": result.std[0]}
    for name, x in arrays.items():
        write_array(folder / f"{name}.npy", x.float())


def write_scans(done: Mapping[Path, Job], output: Path) -> list[str]:
    """Writes every file whose slices are all restored: ``NAME_restored`` in the format and units
    of what was read, ``NAME_mean`` and, as an array in its units, ``NAME_std.npy``.

    Args:
        done: the jobs that are finished, by their folders.

    Returns:
        What was written, a line for each file.
    """
    scans: dict[tuple[Scan, str], dict[int, Path]] = {}
    for folder, job in done.items():
        if job.scan is not None:
            scans.setdefault((job.scan, job.whole), {})[job.source["slice"]] = folder
    lines: list[str] = []
    for (scan, name), found in scans.items():
        parts = [found[k] for k in sorted(found)]
        if len(parts) < len(scan):
            lines.append(
                f"{name}: {len(scan) - len(parts)} of {len(scan)} slices are not restored, so "
                "the whole is not written; the same command goes on with them"
            )
            continue
        suffix = suffix_of(split_part(scan.path)[0])
        for what in ("restored", "mean", "std"):
            files = [part / f"{what}.npy" for part in parts]
            if not all(file.is_file() for file in files):
                continue
            slices = [torch.from_numpy(np.load(file)) for file in files]
            path, said = _write(scan, slices, output / f"{name}_{what}", what, suffix)
            unit = f" in {scan.volume.unit}" if scan.volume.unit else ""
            lines.append(f"{name}: {len(scan)} slices{unit} -> {path}{said}")
    return lines


def _write(
    scan: Scan, slices: Sequence[Tensor], stem: Path, what: str, suffix: str
) -> tuple[Path, str]:
    """Writes one file; returns its path and what there is to say about it."""
    array = stem.with_name(f"{stem.name}.npy")
    if what == "std":
        low, high = scan.range
        plain = torch.stack(list(slices)).mul(high - low)
        write_volume(array, Volume(plain.numpy(), "ZCYX"))
        return array, ""
    path = stem.with_name(f"{stem.name}.{suffix}")
    try:
        write_volume(path, scan.restored(slices))
    except ImageError as error:
        write_volume(array, scan.plain(slices))
        return array, f" ({error})"
    return path, ""
