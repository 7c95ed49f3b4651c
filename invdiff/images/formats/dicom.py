"""DICOM (pydicom): one file, of one frame or several.

Numbers are in the modality's units (rescale slope and intercept, or its lookup table, applied): HU
where it is computed tomography. The range is that of the stored bits. What is written is a derived
image: a new instance UID, uncompressed, with the rest of the data set as it was.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np

from invdiff.images.formats.volume import Volume, check_count, native, package
from invdiff.images.read import ImageError


def read(path: Path, part: str | None) -> Volume:
    pydicom = package("pydicom", path)
    data = pydicom.dcmread(path)
    if "PixelData" not in data:
        raise ImageError(f"{path} holds no pixels (PixelData)")
    frames, samples = int(data.get("NumberOfFrames", 1) or 1), int(data.SamplesPerPixel)
    check_count(path, (frames, data.Rows, data.Columns, samples))
    stored = data.pixel_array
    low, high = np.float64(0), np.float64(2**data.BitsStored - 1)
    if data.PixelRepresentation:
        low, high = (
            np.float64(-(2 ** (data.BitsStored - 1))),
            np.float64(2 ** (data.BitsStored - 1) - 1),
        )
    slope, intercept = _rescale(data)
    array = native(stored)
    if (slope, intercept) != (1.0, 0.0):
        array = array * slope + intercept
    unit = str(data.get("RescaleType", "")) or ("HU" if data.get("Modality") == "CT" else "")
    ends = sorted((float(low * slope + intercept), float(high * slope + intercept)))
    return Volume(
        array,
        ("Z" if frames > 1 else "") + "YX" + ("S" if samples > 1 else ""),
        unit="" if unit == "US" else unit,  # US: unspecified
        data_range=(ends[0], ends[1]),
        metadata=data,
        format=sys.modules[__name__],
    )


def encode(volume: Volume, path: Path) -> bytes:
    pydicom = package("pydicom", path)
    if volume.metadata is None:
        raise ImageError(
            f"{path}: a DICOM file needs the data set of one, and the volume was read from another "
            "format; write .npy, .tif or .nii.gz"
        )
    data = _copy(volume.metadata)
    slope, intercept = _rescale(data)
    dtype = np.dtype(f"{'i' if data.PixelRepresentation else 'u'}{data.BitsAllocated // 8}")
    bits = data.BitsStored - bool(data.PixelRepresentation)
    limits = (-(2**bits) if data.PixelRepresentation else 0, 2**bits - 1)
    stored = ((volume.array - intercept) / slope).round().clip(*limits).astype(dtype)
    data.PixelData = stored.astype(dtype.newbyteorder("<")).tobytes()
    if len(data.PixelData) % 2:
        data.PixelData += b"\0"
    data["PixelData"].VR = "OW" if dtype.itemsize > 1 else "OB"
    data["PixelData"].is_undefined_length = False
    if data.SamplesPerPixel > 1:
        data.PhotometricInterpretation, data.PlanarConfiguration = "RGB", 0
    data.ImageType = ["DERIVED", "SECONDARY", *list(data.get("ImageType", []))[2:]]
    data.DerivationDescription = "restored by invdiff"
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, data, enforce_file_format=True, little_endian=True, implicit_vr=False)
    return buffer.getvalue()


def _rescale(data: Any) -> tuple[float, float]:
    if "ModalityLUTSequence" in data:
        raise ImageError(
            "a DICOM file with a modality lookup table is not read: its numbers have no linear unit"
        )
    return float(data.get("RescaleSlope", 1) or 1), float(data.get("RescaleIntercept", 0) or 0)


def _copy(data: Any) -> Any:
    import copy

    return copy.deepcopy(data)
