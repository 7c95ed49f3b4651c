"""Metrics, speed and quality measurements."""

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

if __name__ != "invdiff.benchmarks":
    raise ImportError("this folder is the package invdiff.benchmarks; import it under that name")


def __getattr__(name: str) -> ModuleType:
    """Modules are loaded on use: ``invdiff.benchmarks.metrics.psnr(x, reference)``."""
    if name.startswith("_") or find_spec(f"{__name__}.{name}") is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")
