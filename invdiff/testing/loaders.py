"""Checks of loaders of file kinds."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from invdiff.loading.source import Loader, Source
from invdiff.testing.imports import importing
from invdiff.testing.report import expect

FOREIGN = {
    "notes.txt": b"a few words\n",
    "empty.bin": b"",
    "page.html": b"<!doctype html><title>404</title>",
    "picture.png": b"\x89PNG\r\n\x1a\n",
}
"""Files that hold no network."""


@dataclass(frozen=True)
class Case:
    """A loader under test, and the module whose import is tried."""

    loader: Loader
    module: str


def recognises(case: Case) -> str:
    """It is asked of every source, so that it says yes or no of any file or object (or raises the
    ValueError that names what is wrong with a file), and not yes of what holds no network."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in FOREIGN.items():
            path = Path(folder) / name
            path.write_bytes(content)
            try:
                answer = case.loader.recognises(Source(path))
            except ValueError:  # the error of a file that is not read here
                continue
            expect(isinstance(answer, bool), f"of {name} it says {answer!r}, not True or False")
            expect(not answer or path.suffix == ".bin", f"it recognises {name}")
        answer = case.loader.recognises(Source(object()))
        expect(answer is False, f"of an object() it says {answer!r}, not False")
    return f"refuses {', '.join(FOREIGN)} and an object()"


def options(case: Case) -> str:
    """It takes the source and passes on the options of a Denoiser."""
    parameters = inspect.signature(case.loader.load).parameters
    expect(
        any(p.kind is p.VAR_KEYWORD for p in parameters.values()),
        "load takes no **options, so that no option of a Denoiser reaches it",
    )
    return f"load({', '.join(parameters)})"


def imports(case: Case) -> str:
    """Importing its module does nothing else."""
    return importing(case.module)


CHECKS: dict[str, Callable[[Case], str]] = {f.__name__: f for f in (recognises, options, imports)}
