"""A launcher by name."""

from __future__ import annotations

import inspect
from typing import Any

from invdiff.benchmarks.harness import Launcher
from invdiff.plugins.registry import check_names, load


def make_launcher(name: str = "local", workers: int | None = None, **options: Any) -> Launcher:
    """A launcher by name.

    Args:
        name: as registered, such as ``"local"``, ``"ray"`` or ``"submitit"``.
        workers: how many tasks are evaluated at the same time, at most; None leaves it to the
            launcher.
        options: what the launcher takes besides.

    Raises:
        ValueError: no such launcher or option, fewer than one worker, or a package that is not
            installed.
    """
    made = load("launchers", name)
    if workers is not None and workers < 1:
        raise ValueError(f"--workers must be at least 1, got {workers}")
    takes = inspect.signature(made).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
        check_names(f"launcher {name!r}", options, [k for k in takes if k != "workers"])
    return made(workers, **options)
