"""TIFF of any number of pages, channels and axes, ImageJ's and OME's among them (tifffile).

Of whole numbers up to 16 bits the range is that of their type. ImageJ's properties, the resolution
and OME's axes are written again.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from invdiff.images.formats.volume import Volume, check_count, native
from invdiff.images.read import ImageError, quiet

RESOLUTION = ("XResolution", "YResolution", "ResolutionUnit")


def read(path: Path, part: str | None) -> Volume:
    with quiet(), tifffile.TiffFile(path) as tif:
        number = int(part) if part is not None and part.isdecimal() else 0
        if number >= len(tif.series) or (part is not None and not part.isdecimal()):
            raise ImageError(f"{path} has the series 0 to {len(tif.series) - 1}, got {part!r}")
        series = tif.series[number]
        check_count(path, series.shape)
        kind = "imagej" if tif.is_imagej else "ome" if tif.is_ome else "plain"
        page = series.keyframe
        metadata: dict[str, Any] = {
            "kind": kind,
            "imagej": dict(tif.imagej_metadata or {}),
            "photometric": page.photometric,
            "resolution": [page.tags.valueof(name) for name in RESOLUTION],
        }
        array = native(series.asarray())
        axes = series.axes
        several = len(tif.series) > 1
        pages, promised = array.size // page.size, metadata["imagej"].get("images", 1)
        if pages < promised:
            raise ImageError(f"{path} holds {pages} of the {promised} pages it declares: truncated")
    whole = array.dtype.kind == "u" and array.dtype.itemsize <= 2
    note = f"series {number} of several is read" if several and part is None else None
    return Volume(
        array,
        axes,
        data_range=(0.0, float(np.iinfo(array.dtype).max)) if whole else None,
        metadata=metadata,
        format=sys.modules[__name__],
        notes=(note,) if note else (),
    )


def encode(volume: Volume, path: Path) -> bytes:
    kept = volume.metadata or {"kind": "plain", "imagej": {}, "resolution": [None] * 3}
    across, down, unit = kept["resolution"]
    colour = kept.get("photometric") == tifffile.PHOTOMETRIC.RGB
    options: dict[str, Any] = {
        "photometric": "rgb" if colour else "minisblack",
        "compression": "zlib",
    }
    if across and down:
        options |= {"resolution": (across, down), "resolutionunit": unit or 1}
    if kept["kind"] == "imagej":
        derived = ("axes", "shape", "ImageJ", "images", "hyperstack", "mode")
        extra = {k: v for k, v in kept["imagej"].items() if k not in derived}
        options |= {"imagej": True, "compression": None, "metadata": {"axes": volume.axes, **extra}}
    else:
        options |= {"ome": kept["kind"] == "ome", "metadata": {"axes": volume.axes}}
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, volume.array, **options)
    return buffer.getvalue()
