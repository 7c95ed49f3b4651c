"""What diffusers says in its log, said as the rest of this package says it, or not at all."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def as_warnings() -> Iterator[None]:
    """What diffusers logs as a warning, such as that a prompt is cut, is a warning of Python's."""

    class Raised(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            warnings.warn(record.getMessage(), stacklevel=8)

    log = logging.getLogger("diffusers")
    before, log.handlers = log.handlers, [Raised(logging.WARNING)]
    try:
        yield
    finally:
        log.handlers = before


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Only errors are logged."""
    log = logging.getLogger("diffusers")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


@contextlib.contextmanager
def no_bars() -> Iterator[None]:
    """No progress bars."""
    from diffusers.utils import logging as theirs

    shown = theirs.is_progress_bar_enabled()
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            theirs.enable_progress_bar()
