"""Checks of trackers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from invdiff.testing.imports import importing

ROW = "inpaint/dps/photo64"


@dataclass(frozen=True)
class Case:
    """A tracker under test, and the module whose import is tried."""

    make: Callable[[str, Path], Any]
    module: str


def logs(case: Case) -> str:
    """It takes the figures of records as they come, and ends."""
    with tempfile.TemporaryDirectory() as folder:
        tracker = case.make("kit", Path(folder))
        for step in (1, 2):
            tracker.log(step, ROW, {"psnr": 20.0 + step, "nfe": 100.0})
        tracker.log(3, ROW, {})
        tracker.close()
        files = sum(path.is_file() for path in Path(folder).rglob("*"))
    return f"3 records, {files} files in its folder"


def imports(case: Case) -> str:
    """Importing its module does nothing else."""
    return importing(case.module)


CHECKS: dict[str, Callable[[Case], str]] = {f.__name__: f for f in (logs, imports)}
