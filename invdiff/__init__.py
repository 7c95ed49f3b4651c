"""invdiff: any diffusion network, any forward operator, any guidance method.

Everything is loaded on use, so that importing the package and asking the command line for help stay
fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOME = {
    "Denoiser": "network.denoiser",
    "Prediction": "network.prediction",
    "Level": "schedules",
    "Schedule": "schedules",
    "Operator": "problem.operator",
    "LinearOperator": "problem.linear",
    "SpectralOperator": "problem.spectral",
    "Measurement": "problem.measurement",
    "make_operator": "problem.make",
    "Guidance": "sampling",
    "Transition": "sampling",
    "Itinerary": "sampling",
    "Step": "sampling",
    "Method": "sampling",
    "make_method": "sampling",
    "Restoration": "solving",
    "recommend": "solving.recommend",
    "solve": "solving",
    "generate": "solving",
    "invert": "solving",
    "interpolate": "solving",
    "log_likelihood": "solving",
    "upscale": "solving.cascade",
    "list_plugins": "plugins.registry",
    "load_model": "loading.model",
    "self_check": "network.selfcheck",
}
_MODULES = (
    "benchmarks",
    "guidance",
    "images",
    "itineraries",
    "operators",
    "sampling",
    "schedules",
    "transitions",
)

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
    from invdiff import (
        benchmarks,
        guidance,
        images,
        itineraries,
        operators,
        sampling,
        schedules,
        transitions,
    )
    from invdiff.loading.model import load_model
    from invdiff.network import Denoiser, Prediction
    from invdiff.network.selfcheck import self_check
    from invdiff.plugins.registry import list_plugins
    from invdiff.problem import (
        LinearOperator,
        Measurement,
        Operator,
        SpectralOperator,
        make_operator,
    )
    from invdiff.sampling import Guidance, Itinerary, Method, Step, Transition, make_method
    from invdiff.schedules import Level, Schedule
    from invdiff.solving import Restoration, generate, interpolate, invert, log_likelihood, solve
    from invdiff.solving.cascade import upscale
    from invdiff.solving.recommend import recommend

    __version__: str
