"""The output folder of a run: one of its own, taken up again where it was stopped, and complete
whenever its record is there."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from invdiff.files import write_atomically

REQUEST = "run.json"
"""The file with the request; the same request goes on in the same folder."""
OURS = re.compile(
    r"(restored|measurement|truth|comparison|mean|std|kernel|upscaled|grid|upscaled_grid|trajectory"
    r"|(sample|upscaled)_\d+)\.png|(trajectory|interpolation)\.gif"
    r"|(restored|mean|std|kernel|kernel_std|\.values-\d+)\.npy|measurement\.safetensors|result\.json"
)
"""The files that `solve` and `generate` write into the folder of a result."""


def check_paths(args: argparse.Namespace, flags: Sequence[str]) -> None:
    """Refuses paths that are empty, as an unset variable of a shell makes them."""
    for flag in flags:
        if getattr(args, flag) == "":
            raise ValueError(f"--{flag} is empty; leave it out or give a path")


def digest(request: dict[str, Any]) -> str:
    """A short name that changes with anything that was asked for."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:16]


def choose_folder(
    output: str | None,
    default: str,
    request: dict[str, Any],
    overwrite: bool,
    inputs: Sequence[Path],
) -> Path:
    """The folder that a run is to write to; nothing is written yet.

    A folder that holds the same request is taken up again. Without ``output`` another run's folder
    is left alone: the run gets ``default-2``, and so on.

    Raises:
        ValueError: a folder that cannot be written, that holds something else, or in which an
            input lies.
    """
    wanted = Path(output or default).expanduser()
    others = [] if output else [Path(f"{default}-{n}") for n in range(2, 1000)]
    candidates = [wanted, *others]
    for folder in candidates:
        there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
        if not there.is_dir():
            raise ValueError(
                f"{there} is a file, so {folder} cannot be the output folder; choose another "
                "--output"
            )
        if not os.access(there, os.W_OK):
            raise ValueError(f"{there} is not writable; choose another --output")
        empty = not folder.exists() or not any(folder.iterdir())
        if empty or overwrite or _asked(folder) == request:
            break
    else:
        folder = wanted
        kept = "the results of another run" if _asked(folder) is not None else "other files"
        raise ValueError(
            f"{folder} holds {kept}; choose another --output or add --overwrite. The command that "
            "began a run goes on with it"
        )
    for path in inputs:
        if path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(
                f"{path} lies in the output folder {folder} and could be overwritten; choose "
                "another --output"
            )
    return folder


def claim(folder: Path, request: dict[str, Any]) -> None:
    """Makes the folder that of a request, before the first result is written to it."""
    folder.mkdir(parents=True, exist_ok=True)
    # What says that an earlier run is complete goes first.
    (folder / "summary.json").unlink(missing_ok=True)
    if _asked(folder) != request:
        (folder / REQUEST).unlink(missing_ok=True)
        write_atomically(folder / REQUEST, json.dumps(request, indent=2) + "\n")


def _asked(folder: Path) -> Any:
    try:
        return json.loads((folder / REQUEST).read_text())
    except (OSError, ValueError):
        return None


def finished(folder: Path, request: str) -> dict[str, Any] | None:
    """The record of an image that a run with the digest ``request`` has finished, with all its
    files; else None."""
    try:
        record = json.loads((folder / "result.json").read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict) or record.get("request") != request:
        return None
    return record if all((folder / name).is_file() for name in record.get("files", [])) else None


def clear(folder: Path) -> None:
    """Removes what an earlier run wrote, the record first, which says that the rest is there."""
    (folder / "result.json").unlink(missing_ok=True)
    for old in folder.iterdir():
        if OURS.fullmatch(old.name):
            old.unlink()


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A folder beside the image's to write its files to. In the end they take the place of what an
    earlier run wrote, the record last; if writing fails, the earlier files stay."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=folder, prefix=".new-"))
    try:
        yield made
        clear(folder)
        for new in sorted(made.iterdir(), key=lambda path: path.name == "result.json"):
            new.replace(folder / new.name)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def warn_of_others(output: Path, names: Sequence[str]) -> None:
    """Names folders of images that this run does not have."""
    stale = sorted(
        path.parent.name for path in output.glob("*/result.json") if path.parent.name not in names
    )
    if stale:
        warnings.warn(
            f"{output} also holds images of an earlier run, which stay: {', '.join(stale[:5])}"
            f"{f' and {len(stale) - 5} more' if len(stale) > 5 else ''}",
            stacklevel=2,
        )
