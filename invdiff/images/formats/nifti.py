"""NIfTI (nibabel), .nii and .nii.gz: arrays (x, y, z, t, ...), slices along z and what follows.

The scaling of stored numbers is applied; cal_min and cal_max are the range where they differ. The
affine, the header and its extensions are written again. NIfTI has no unit for its numbers.
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np

from invdiff.images.formats.volume import Volume, check_count, native, package
from invdiff.images.read import ImageError


def read(path: Path, part: str | None) -> Volume:
    nibabel = package("nibabel", path)
    image = nibabel.load(path)
    check_count(path, image.shape)
    if image.get_data_dtype().kind not in "biufc" or len(image.shape) < 2:
        raise ImageError(
            f"{path} holds {image.get_data_dtype()} of shape {image.shape}; an image of numbers is "
            "needed"
        )
    array = native(np.asanyarray(image.dataobj))
    low, high = float(image.header["cal_min"]), float(image.header["cal_max"])
    return Volume(
        array,
        "XYZTCUV"[: array.ndim],
        data_range=(low, high) if low < high else None,
        metadata=image.header.copy(),
        format=sys.modules[__name__],
    )


def encode(volume: Volume, path: Path) -> bytes:
    nibabel = package("nibabel", path)
    array = volume.array
    if volume.metadata is None:  # NIfTI's order, whatever the array's is
        order = [volume.axes.index(a) for a in "XY"]
        array = array.transpose(order + [i for i in range(array.ndim) if i not in order])
    header = volume.metadata or nibabel.Nifti1Header()
    affine = header.get_best_affine() if volume.metadata is not None else np.eye(4)
    made = nibabel.Nifti2Image if isinstance(header, nibabel.Nifti2Header) else nibabel.Nifti1Image
    image = made(array, affine, header.copy(), dtype=array.dtype)
    content = image.to_bytes()
    return gzip.compress(content, mtime=0) if path.suffix.lower() == ".gz" else content
