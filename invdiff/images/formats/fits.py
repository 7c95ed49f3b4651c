"""FITS (astropy): one image or cube of a file, ``FILE.fits:SCI`` or ``FILE.fits:1`` where it holds
several.

BSCALE, BZERO and BLANK are applied; the unit is BUNIT, the range DATAMIN and DATAMAX where both are
there. The whole file is written again, with its other extensions, its header (WCS, observation) and
a line of HISTORY.
"""

from __future__ import annotations

import gzip
import io
import sys
import warnings
from pathlib import Path
from typing import Any

from invdiff.images.formats.volume import Volume, check_count, chosen, native, package
from invdiff.images.read import ImageError

UNPACKED = 2**32
"""Bytes to which a compressed file may unpack."""


def read(path: Path, part: str | None) -> Volume:
    fits = package("astropy.io.fits", path)
    source: Any = path
    if path.suffix.lower() == ".gz":  # whole and checked, since astropy reads on in damaged ones
        with gzip.open(path) as file:
            source = io.BytesIO(file.read(UNPACKED + 1))
        if source.getbuffer().nbytes > UNPACKED:
            raise ImageError(f"{path} unpacks to more than the {UNPACKED:,} bytes allowed")
    with warnings.catch_warnings():
        for damage in ("File may have been truncated", "The HDU will be treated as corrupted"):
            warnings.filterwarnings("error", message=damage)
        opened = fits.open(source, memmap=False, lazy_load_hdus=False)
    with opened as file:
        images = [
            i
            for i, hdu in enumerate(file)
            if getattr(hdu, "is_image", False) and len(hdu.shape) >= 2
        ]
        names = {file[i].name or str(i): i for i in images} | {str(i): i for i in images}
        if part in names:
            number = names[part]
        else:
            shown = [file[i].name or str(i) for i in images]
            number = names[chosen(path, shown, part, "image extension")]
        hdu = file[number]
        check_count(path, hdu.shape)
        array = native(hdu.data)  # applies BSCALE, BZERO and BLANK, and takes them off the header
        header = hdu.header
        low, high = header.get("DATAMIN"), header.get("DATAMAX")
        hdus = fits.HDUList([other.copy() for other in file])
        colour = array.ndim == 3 and str(header.get("CTYPE3", "")).strip() == "RGB"
        return Volume(
            array,
            "CYX" if colour else ("WVUTZYX"[-array.ndim :]),
            unit=str(header.get("BUNIT", "")).strip(),
            data_range=(float(low), float(high)) if _are_numbers(low, high) else None,
            metadata=(hdus, number),
            format=sys.modules[__name__],
        )


def encode(volume: Volume, path: Path) -> bytes:
    fits = package("astropy.io.fits", path)
    if volume.metadata is None:
        hdu = fits.PrimaryHDU(volume.array)
        if volume.unit:
            hdu.header["BUNIT"] = volume.unit
        hdus = fits.HDUList([hdu])
    else:
        kept, number = volume.metadata
        hdus = fits.HDUList([hdu.copy() for hdu in kept])
        hdu = hdus[number]
        hdu.data = volume.array
        hdu.header.add_history("restored by invdiff")
        for stale in ("CHECKSUM", "DATASUM", "BLANK"):
            hdu.header.remove(stale, ignore_missing=True)
    buffer = io.BytesIO()
    hdus.writeto(buffer, output_verify="silentfix")
    if path.suffix.lower() != ".gz":
        return buffer.getvalue()
    return gzip.compress(buffer.getvalue())


def _are_numbers(low: Any, high: Any) -> bool:
    return isinstance(low, int | float) and isinstance(high, int | float) and low < high
