"""Checks of formats of files of science."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from invdiff.images.formats import Volume
from invdiff.images.read import ImageError
from invdiff.testing.imports import importing
from invdiff.testing.report import expect


@dataclass(frozen=True)
class Case:
    """A format under test, the suffix of its files, and the module whose import is tried."""

    format: Any
    suffix: str
    module: str


def round_trip(case: Case) -> str:
    """A picture of whole numbers is read as it was written; a format that cannot be written without
    a file of its own to begin from says so."""
    written = Volume(np.arange(30, dtype=np.uint16).reshape(6, 5), "YX")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"picture.{case.suffix}"
        try:
            path.write_bytes(case.format.encode(written, path))
        except ImageError as error:
            return f"refuses: {str(error).replace(folder, '')[:60]}"
        found = case.format.read(path, None)
    expect(isinstance(found, Volume), f"read returns {type(found).__name__}, not a Volume")
    same = found.slices.shape == written.slices.shape
    same = same and bool((found.slices.double() == written.slices.double()).all())
    expect(same, f"read returns slices {tuple(found.slices.shape)} with other numbers")
    return f"{tuple(found.slices.shape)}, {found.array.dtype}, axes {found.axes}"


def rubbish(case: Case) -> str:
    """A file that is none is refused with an exception, which becomes one line."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"picture.{case.suffix}"
        path.write_bytes(b"no picture of any kind")
        try:
            found = case.format.read(path, None)
        except Exception as error:
            return f"{type(error).__name__}"
    expect(False, f"reads rubbish as {found!r}")
    return ""


def imports(case: Case) -> str:
    """Importing its module does nothing else."""
    return importing(case.module)


CHECKS: dict[str, Callable[[Case], str]] = {f.__name__: f for f in (round_trip, rubbish, imports)}
