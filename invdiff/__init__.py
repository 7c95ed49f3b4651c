"""invdiff: any diffusion network, any forward operator, any guidance method.

Everything is loaded on use, so that importing the package and asking the command line for help stay fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOME = {
    "Denoiser": "denoiser",
    "Prediction": "denoiser",
    "Level": "schedules",
    "Schedule": "schedules",
    "Operator": "operator",
    "LinearOperator": "operator",
    "SpectralOperator": "operator",
    "Measurement": "measurement",
    "Guidance": "sampling",
    "Transition": "sampling",
    "Itinerary": "sampling",
    "Step": "sampling",
    "Method": "method",
    "make_method": "method",
    "Restoration": "restoration",
    "solve": "restoration",
    "generate": "restoration",
    "invert": "restoration",
    "interpolate": "restoration",
    "upscale": "cascade",
    "list_plugins": "registry",
    "load_model": "registry",
    "make_operator": "registry",
    "self_check": "selfcheck",
}
_MODULES = ("benchmarks", "guidance", "itineraries", "operators", "sampling", "schedules", "transitions")

__all__ = [*_HOME, *_MODULES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"invdiff.{_HOME[name]}"), name)
    if name in _MODULES:
        return import_module(f"invdiff.{name}")
    if name == "__version__":
        from importlib.metadata import version

        return version("invdiff")
    raise AttributeError(f"module 'invdiff' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


if TYPE_CHECKING:
    from invdiff import benchmarks, guidance, itineraries, operators, sampling, schedules, transitions
    from invdiff.cascade import upscale
    from invdiff.denoiser import Denoiser, Prediction
    from invdiff.measurement import Measurement
    from invdiff.method import Method, make_method
    from invdiff.operator import LinearOperator, Operator, SpectralOperator
    from invdiff.registry import list_plugins, load_model, make_operator
    from invdiff.restoration import Restoration, generate, interpolate, invert, solve
    from invdiff.sampling import Guidance, Itinerary, Step, Transition
    from invdiff.schedules import Level, Schedule
    from invdiff.selfcheck import self_check

    __version__: str
