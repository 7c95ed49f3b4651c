"""Plug-ins by name. Built-ins are declared in our own pyproject.toml through the same entry-point
groups.

Loading is lazy: names are read from package metadata, and a plug-in's module is imported when it is
asked for.
"""

from __future__ import annotations

import difflib
import inspect
import numbers
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib.metadata import Distribution, EntryPoint, entry_points
from typing import Any

KINDS = (
    "operators",
    "guidance",
    "transitions",
    "itineraries",
    "schedules",
    "models",
    "loaders",
    "metrics",
    "metric_families",
    "operator_families",
    "baselines",
    "launchers",
    "suites",
    "trackers",
    "configs",
    "formats",
)

FAMILIES = {"operators": "operator_families", "metrics": "metric_families"}
"""Kinds of which a package may register a family: ``FAMILY:MEMBER`` is what the family, called with
the member's name, gives. A family may list its members: ``members()``, name -> one line."""


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
    """Name -> where it comes from, e.g. ``{"dps": "invdiff (invdiff.guidance.dps:DPS)"}``. Imports
    nothing.

    Examples:
        >>> import invdiff
        >>> invdiff.list_plugins("guidance")["dps"]
        'invdiff (invdiff.guidance.dps:DPS)'
    """
    return {
        name: "; ".join(f"{package_of(p)} ({p.value})" for p in points)
        for name, points in _found(kind).items()
    }


def find(target: str) -> list[tuple[str, EntryPoint]]:
    """Kind and entry point of the plug-ins of that name, and of all those of the package of that
    name. Imports nothing.

    Raises:
        UnknownNameError: there are none; lists the packages that have some, and the nearest name.
    """
    every = [
        (kind, point) for kind in KINDS for points in _found(kind).values() for point in points
    ]
    found = [
        (kind, point)
        for kind, point in every
        if target == point.name or _normal(target) == _normal(package_of(point))
    ]
    if not found:
        packages = sorted({package_of(point) for _, point in every})
        near = difflib.get_close_matches(
            target, [*packages, *(point.name for _, point in every)], n=1
        )
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UnknownNameError(
            f"no plug-in and no package with plug-ins is called {target!r}.{hint} Packages: "
            f"{', '.join(packages)}."
        )
    return found


def _normal(package: str) -> str:
    """A package's name as pip compares it."""
    return re.sub(r"[-_.]+", "-", package).lower()


def load(kind: str, name: str) -> Any:
    """The object registered as ``name``, or the member of a registered family, ``FAMILY:MEMBER``.

    Raises:
        UnknownNameError: nobody registers it; lists the known names and the nearest.
        PluginError: two packages claim it, or importing it failed.
    """
    point = _point(kind, name)
    family, member = family_of(kind, name)
    try:
        loaded = point.load()
    except Exception as error:
        raise PluginError(
            f"{_SINGULAR[kind]} {name!r} of package {package_of(point)} cannot be loaded: "
            f"{type(error).__name__}: {error}"
        ) from error
    return loaded if family is None else loaded(member)


def family_of(kind: str, name: str) -> tuple[str | None, str]:
    """The kind that the family of ``FAMILY:MEMBER`` is registered in, and the member; of any other
    name None and the name itself."""
    _, colon, member = name.partition(":")
    return (FAMILIES[kind], member) if colon and kind in FAMILIES else (None, name)


def members(kind: str) -> dict[str, str]:
    """``FAMILY:MEMBER`` -> one line, of the families of a kind that list their members; a family
    that is broken lists none."""
    found = dict[str, str]()
    for family in _found(FAMILIES[kind]) if kind in FAMILIES else ():
        try:
            listed: dict[str, str] = getattr(load(FAMILIES[kind], family), "members", dict)()
        except PluginError:
            continue
        found |= {f"{family}:{name}": line for name, line in listed.items()}
    return found


def value_of(kind: str, name: str) -> str:
    """Where the object registered as ``name`` is, ``module`` or ``module:object``, which is not
    imported; of a member of a family, where the family is. Raises as :func:`load`."""
    return _point(kind, name).value


def _point(kind: str, name: str) -> EntryPoint:
    family, _ = family_of(kind, name)
    if family is not None:
        return _point(family, name.partition(":")[0])
    found = _found(kind)
    if name not in found:
        others = [_SINGULAR[k] for k in KINDS if k != kind and name in _found(k)]
        hint = (
            f" There is the {others[0]} of that name."
            if others
            else did_you_mean(name, [*found, *members(kind)])
        )
        raise UnknownNameError(
            f"unknown {_SINGULAR[kind]} {name!r}.{hint} Known: {', '.join(found) or 'none'}."
        )
    points = found[name]
    if len(points) > 1:
        claims = " and ".join(f"{package_of(p)} ({p.value})" for p in points)
        raise PluginError(
            f"{_SINGULAR[kind]} {name!r} is claimed by {claims}; uninstall one of them"
        )
    return points[0]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The nearest of the known names as a sentence to add to a message; empty where none is near.
    ``FAMILY:MEMBER`` is found by its member as well."""
    known = list(known)
    lower = {other.rpartition(":")[2].lower(): other for other in known}
    lower |= {other.lower(): other for other in known}
    wanted = name.lower()
    # Of equally close names one of the same letters: with many short ones the likeliest slip is
    # their order. A short name for a long one, such as tomo, is close to none.
    near = sorted(
        difflib.get_close_matches(wanted, list(lower)),
        key=lambda other: (other != wanted, sorted(other) != sorted(wanted)),
    ) or sorted((other for other in lower if len(wanted) > 2 and wanted in other), key=len)
    return f" Did you mean {lower[near[0]]!r}?" if near else ""


_SINGULAR = {
    "operators": "operator",
    "operator_families": "family of operators",
    "guidance": "method",
    "transitions": "transition",
    "itineraries": "itinerary",
    "schedules": "schedule",
    "models": "model",
    "loaders": "loader",
    "metrics": "metric",
    "metric_families": "family of metrics",
    "trackers": "tracker",
    "baselines": "baseline",
    "launchers": "launcher",
    "suites": "suite",
    "configs": "config package",
    "formats": "file format",
}


def name_of(kind: str, factory: Any) -> str:
    """The name under which a class or function is registered, or the class of an object.

    A class that a registered factory returns states that factory's name as ``registered_as``, for
    itself alone; an object whose name its class does not tell has it as an attribute.
    """
    stated = getattr(factory, "__dict__", {}).get("registered_as")
    if stated is not None:
        return str(stated)
    if not callable(factory) or not hasattr(factory, "__qualname__"):
        return name_of(kind, type(factory))
    value = f"{factory.__module__}:{factory.__qualname__}"
    for name, points in _found(kind).items():
        if any(p.value == value for p in points):
            return name
    raise ValueError(
        f"{value} is not registered in the entry-point group invdiff.{kind}, so it cannot "
        "be recorded by name"
    )


def call(factory: Callable[..., Any], what: str, parameters: dict[str, Any]) -> Any:
    """Calls a registered factory; a parameter it does not have, or a text for a number, is an error
    that says what it takes."""
    takes = {
        n: p
        for n, p in inspect.signature(factory).parameters.items()
        if n not in ("shape", "state")
    }
    check_names(what, parameters, list(takes))
    for name, value in parameters.items():
        default = takes[name].default
        if isinstance(default, int | float) and (value is None or isinstance(value, str)):
            raise ValueError(
                f"{name} of {what} is "
                f"{'true or false' if isinstance(default, bool) else 'a number'} (default "
                f"{default}), got {value!r}"
            )
        annotation = takes[name].annotation
        if annotation in ("int", int) and not _is_whole(value):
            raise ValueError(f"{name} of {what} is a whole number, got {value!r}")
        if annotation in ("float", float) and isinstance(value, bool):
            raise ValueError(f"{name} of {what} is a number, got {value!r}")
    return factory(**parameters)


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def check_names(what: str, given: Iterable[str], allowed: Sequence[str]) -> None:
    """Refuses the first unknown parameter, with the nearest and all that exist."""
    for name in given:
        if name not in allowed:
            raise ValueError(
                f"{what} has no parameter {name!r}.{did_you_mean(name, allowed)} It has: "
                f"{', '.join(allowed) or 'none'}."
            )
