"""Plug-ins by name. Built-ins are declared in our own pyproject.toml through the same entry-point groups.

Loading is lazy: names are read from package metadata, and a plug-in's module is imported when it is asked for.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib.metadata import Distribution, EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    from invdiff.denoiser import Denoiser
    from invdiff.operator import Operator

KINDS = ("operators", "guidance", "models", "metrics", "configs")


class UnknownNameError(ValueError):
    """A name that no installed package registers."""


class PluginError(ValueError):
    """A plug-in that is registered but cannot be used."""


@cache
def _found(kind: str) -> dict[str, list[EntryPoint]]:
    if kind not in KINDS:
        raise ValueError(f"unknown kind of plug-in {kind!r}; kinds: {', '.join(KINDS)}")
    found: dict[str, dict[tuple[str, str], EntryPoint]] = defaultdict(dict)
    for point in entry_points(group=f"invdiff.{kind}"):
        found[point.name][package_of(point), point.value] = point
    return {name: list(points.values()) for name, points in sorted(found.items())}


def package_of(point: EntryPoint) -> str:
    """The package that registers an entry point."""
    return _name(point.dist) if point.dist is not None else point.module.split(".")[0]


@cache
def _name(package: Distribution) -> str:
    return package.name  # which parses its metadata every time


def list_plugins(kind: str) -> dict[str, str]:
    """Name -> where it comes from, e.g. ``{"dps": "invdiff (invdiff.guidance.dps:DPS)"}``. Imports nothing."""
    return {name: "; ".join(f"{package_of(p)} ({p.value})" for p in points) for name, points in _found(kind).items()}


def find(target: str) -> list[tuple[str, EntryPoint]]:
    """Kind and entry point of the plug-ins of that name, and of all those of the package of that name. Imports nothing.

    Raises:
        UnknownNameError: there are none; lists the packages that have some, and the nearest name.
    """
    every = [(kind, point) for kind in KINDS for points in _found(kind).values() for point in points]
    found = [(kind, point) for kind, point in every if target == point.name or _normal(target) == _normal(package_of(point))]
    if not found:
        packages = sorted({package_of(point) for _, point in every})
        near = difflib.get_close_matches(target, [*packages, *(point.name for _, point in every)], n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UnknownNameError(f"no plug-in and no package with plug-ins is called {target!r}.{hint} Packages: {', '.join(packages)}.")
    return found


def _normal(package: str) -> str:
    """A package's name as pip compares it."""
    return re.sub(r"[-_.]+", "-", package).lower()


def load(kind: str, name: str) -> Any:
    """The object registered as ``name``.

    Raises:
        UnknownNameError: nobody registers it; lists the known names and the nearest.
        PluginError: two packages claim it, or importing it failed.
    """
    found = _found(kind)
    if name not in found:
        raise UnknownNameError(f"unknown {_SINGULAR[kind]} {name!r}.{did_you_mean(name, found)} Known: {', '.join(found) or 'none'}.")
    points = found[name]
    if len(points) > 1:
        claims = " and ".join(f"{package_of(p)} ({p.value})" for p in points)
        raise PluginError(f"{_SINGULAR[kind]} {name!r} is claimed by {claims}; uninstall one of them")
    try:
        return points[0].load()
    except Exception as error:
        raise PluginError(
            f"{_SINGULAR[kind]} {name!r} of package {package_of(points[0])} cannot be loaded: {type(error).__name__}: {error}"
        ) from error


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The nearest of the known names as a sentence to add to a message; empty where none is near."""
    # Of equally close names one of the same letters: with many short ones the likeliest slip is their order.
    near = sorted(difflib.get_close_matches(name, list(known)), key=lambda other: sorted(other) != sorted(name))
    return f" Did you mean {near[0]!r}?" if near else ""


_SINGULAR = {"operators": "operator", "guidance": "method", "models": "model", "metrics": "metric", "configs": "config package"}


def name_of(kind: str, factory: Any) -> str:
    """The name under which a class or function is registered.

    A class that a registered class returns in its own place names that one as ``registered_as``, for itself alone.
    """
    factory = getattr(factory, "__dict__", {}).get("registered_as", factory)
    value = f"{factory.__module__}:{factory.__qualname__}"
    for name, points in _found(kind).items():
        if any(p.value == value for p in points):
            return name
    raise ValueError(f"{value} is not registered in the entry-point group invdiff.{kind}, so it cannot be recorded by name")


def call(factory: Callable[..., Any], what: str, parameters: dict[str, Any]) -> Any:
    """Calls a registered factory; a parameter it does not have, or a text for a number, is an error that says what it takes."""
    takes = {n: p for n, p in inspect.signature(factory).parameters.items() if n not in ("shape", "state")}
    check_names(what, parameters, list(takes))
    for name, value in parameters.items():
        default = takes[name].default
        if isinstance(default, int | float) and (value is None or isinstance(value, str)):
            raise ValueError(
                f"{name} of {what} is {'true or false' if isinstance(default, bool) else 'a number'} (default {default}), got {value!r}"
            )
    return factory(**parameters)


def check_names(what: str, given: Iterable[str], allowed: Sequence[str]) -> None:
    """Refuses the first unknown parameter, with the nearest and all that exist."""
    for name in given:
        if name not in allowed:
            raise ValueError(f"{what} has no parameter {name!r}.{did_you_mean(name, allowed)} It has: {', '.join(allowed) or 'none'}.")


def make_operator(operator: str | Any, **parameters: Any) -> Operator:
    """An operator by registered name with its parameters, or from a ``deepinv.physics.Physics`` object."""
    if isinstance(operator, str):
        return call(load("operators", operator), f"operator {operator!r}", parameters)
    if parameters:
        raise TypeError(f"parameters go with an operator's name; {type(operator).__name__} is an object already")
    return as_operator(operator)


def as_operator(operator: Any) -> Operator:
    """Passes an Operator through and adapts a ``deepinv.physics.Physics``."""
    from invdiff.operator import Operator

    if isinstance(operator, Operator):
        return operator
    if any(base.__module__.startswith("deepinv.physics") for base in type(operator).__mro__):
        from invdiff.deepinv_adapter import from_physics

        return from_physics(operator)
    raise TypeError(f"an operator is a registered name, an invdiff Operator or a deepinv Physics, got {type(operator).__name__}")


def check_options(factory: Callable[..., Any], what: str, options: Iterable[str]) -> None:
    """Refuses options that neither a loader nor a :class:`~invdiff.denoiser.Denoiser` has."""
    from invdiff.denoiser import Denoiser

    own = [n for n, p in inspect.signature(factory).parameters.items() if p.kind is not p.VAR_KEYWORD]
    general = [n for n in inspect.signature(Denoiser).parameters if n not in ("net", "name")]
    check_names(what, options, list(dict.fromkeys(own + general)))


def is_registered(model: str | Path) -> TypeGuard[str]:
    """Whether a model is meant by its registered name, and not by a path or a hub id. A folder of the same name is ``"./photo64"``."""
    if isinstance(model, Path) or "/" in model or "\\" in model:
        return False
    return model in _found("models") or not Path(model).exists()


def load_model(model: str | Path, *, allow_pickle: bool = False, **options: Any) -> Denoiser:
    """A Denoiser by registered name (``"photo64"``), from a diffusers folder, a checkpoint file, or a model of the Hugging Face hub.

    Args:
        model: registered name; path of a folder or file; or hub id, ``owner/name[@revision][:subfolder]``, the only thing that is
            ever downloaded.
        allow_pickle: read checkpoints that are pickles, TorchScript or torch.export programs, which can run code.
        options: passed to :class:`~invdiff.denoiser.Denoiser` on top of what the checkpoint says, e.g. ``dtype``.
    """
    if not is_registered(model):
        from invdiff.models import open_model

        return open_model(model, allow_pickle=allow_pickle, **options)
    try:
        factory = load("models", model)
    except UnknownNameError as error:
        raise UnknownNameError(f"{error} Nor is there a file or folder {model!r} here.") from None
    check_options(factory, f"model {model!r}", options)
    denoiser = factory(**options)
    denoiser.source |= {"kind": f"registered by {list_plugins('models')[model]}"}
    return denoiser
