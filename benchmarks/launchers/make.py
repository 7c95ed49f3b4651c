"""A launcher by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from invdiff.benchmarks.harness import Launcher
from invdiff.benchmarks.launchers.local import local
from invdiff.benchmarks.launchers.ray import on_ray
from invdiff.benchmarks.launchers.slurm import by_submitit
from invdiff.plugins.registry import check_names


def make_launcher(name: str = "local", workers: int | None = None, **options: Any) -> Launcher:
    """A launcher by name.

    Args:
        name: ``"local"`` (:func:`local`), ``"ray"`` (:func:`on_ray`) or ``"submitit"``
            (:func:`by_submitit`).
        workers: how many tasks are evaluated at the same time, at most; None leaves it to the
            launcher.
        options: what the launcher takes besides.

    Raises:
        ValueError: no such launcher or option, fewer than one worker, or a package that is not
            installed.
    """
    if name not in LAUNCHERS:
        raise ValueError(f"unknown launcher {name!r}; known: {', '.join(LAUNCHERS)}")
    if workers is not None and workers < 1:
        raise ValueError(f"--workers must be at least 1, got {workers}")
    takes = inspect.signature(LAUNCHERS[name]).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
        check_names(f"launcher {name!r}", options, [k for k in takes if k != "workers"])
    return LAUNCHERS[name](workers, **options)


LAUNCHERS: dict[str, Callable[..., Launcher]] = {
    "local": local,
    "ray": on_ray,
    "submitit": by_submitit,
}
