"""Versions of plug-ins: digests that change when the code or the parameters that make them up do,
and not with comments, docstrings or code that they do not use."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import packages_distributions, version
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from invdiff.benchmarks.definitions import Target, source_of
from invdiff.files import sha256
from invdiff.plugins.registry import name_of
from invdiff.problem import Operator

FRAMEWORK = tuple(
    f"invdiff.{name}"
    for name in (
        "loading",
        "network",
        "plugins",
        "problem.composite",
        "problem.linear",
        "problem.make",
        "problem.measurement",
        "problem.operator",
        "problem.simulate",
        "problem.spectral",
        "sampling",
        "schedules",
        "solving",
    )
)
"""The frame that plug-ins are made with; it does not count."""
FORMULAS = ("invdiff.sampling.ancestral",)
"""Modules of the frame that hold what plug-ins compute; they do."""
GROUND = {*sys.stdlib_module_names, "torch", "numpy"}
"""Packages whose versions do not count."""


def of_code(what: Any) -> str:
    """A digest of the code of a class or function, 12 hex digits.

    It covers :func:`used_by`: the definitions that it uses, wherever they stand, and the versions
    of other packages that these use.

    Raises:
        ValueError: it was not read from a file, such as a class of a notebook.
    """
    found = used_by(what)
    return _digest(sorted([name.rpartition(":")[2], said] for name, said in found.items()))


def used_by(what: Any) -> dict[str, str]:
    """The definitions that a class or function uses.

    Returns:
        ``"module:name"`` -> digest, of its own definition and of every definition that it uses,
        directly or through others, as far as they belong to its own package or to invdiff, whose
        :data:`FRAMEWORK` does not count; and ``"package"`` -> version, of other packages that these
        definitions use, those of :data:`GROUND` excepted. Code that is found by a name in a text,
        such as a plug-in, is not seen.

    Raises:
        ValueError: code that was not read from a file.
    """
    search = _Search(what.__module__.partition(".")[0])
    name = what.__qualname__.partition(".")[0]
    if name not in source_of(what.__module__).definitions:
        raise ValueError(
            f"{what.__module__} does not define {name} at its top, so it has no version; define "
            "it there by a class or def statement"
        )
    search.follow((what.__module__, (name,)))
    return search.found


class _Search:
    """Follows names to their definitions.

    Args:
        home: the package whose definitions count, beside invdiff's.
    """

    def __init__(self, home: str) -> None:
        self.home = home
        self.found: dict[str, str] = {}
        self.seen: set[Target] = set()

    def follow(self, target: Target) -> None:
        """Adds a name's definition and all that it uses."""
        pending = [target]
        while pending:
            if (target := pending.pop()) in self.seen:
                continue
            self.seen.add(target)
            module, path = target
            package = module.partition(".")[0]
            if package in GROUND or _in_framework(module):
                continue
            if package not in (self.home, "invdiff") and package in _distributions():
                self.found[package] = version(_distributions()[package][0])
            else:
                pending += self._step(module, path)

    def _step(self, module: str, path: tuple[str, ...]) -> set[Target]:
        """Adds the definition that a name of a module has there, and returns where to go on."""
        source = source_of(module)
        if not path:  # the module is used as a value: any of its names may be
            return {(module, (name,)) for name in source.definitions}
        name, *rest = path
        if name in source.definitions:
            text, used = source.read(name)
            self.found[f"{module}:{name}"] = _digest(text)
            return used
        if name in source.imports:
            origin, above = source.imports[name]
            return {(origin, (*above, *rest))}
        return _elsewhere(module, name, tuple(rest))


def _elsewhere(module: str, name: str, rest: tuple[str, ...]) -> set[Target]:
    """A name that a module's source does not define: a module below it, or one that it has without
    saying from where; what Python has built in is nowhere."""
    if module in sys.modules and isinstance(sys.modules[module], ModuleType):
        value: Any = vars(sys.modules[module]).get(name)
        if isinstance(value, ModuleType):
            return {(value.__name__, rest)}
        origin = getattr(value, "__module__", None)
        if isinstance(origin, str) and origin != module and hasattr(value, "__qualname__"):
            return {(origin, (value.__qualname__.partition(".")[0],))}
    try:
        below = importlib.util.find_spec(f"{module}.{name}")
    except (ImportError, ValueError):
        below = None
    return {(f"{module}.{name}", rest)} if below is not None else set()


def _in_framework(module: str) -> bool:
    below = any(module == part or module.startswith(f"{part}.") for part in FRAMEWORK)
    return below and module not in FORMULAS


def operator_version(operator: Operator) -> str:
    """A digest of all that an operator does, 12 hex digits: its name, its code and its parameters,
    operators among them included.

    Of files among the parameters, such as masks, the content counts.
    """
    try:
        name = name_of("operators", operator)
    except ValueError:  # a deepinv Physics has no name
        name = type(operator).__qualname__
    made_by = {"versions": operator.versions} if operator.versions else {}
    code, parameters = of_code(type(operator)), _plain(operator.parameters)
    return _digest({"name": name, "code": code, "parameters": parameters, **made_by})


def _plain(value: Any) -> Any:
    """A parameter as plain data that says all of it."""
    if isinstance(value, Operator):
        return operator_version(value)
    if isinstance(value, Tensor):
        content = value.detach().cpu().resolve_conj().contiguous()
        return [
            str(content.dtype),
            list(content.shape),
            hashlib.sha256(content.numpy().tobytes()).hexdigest(),
        ]
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, str | Path):
        return sha256(Path(value)) if Path(value).is_file() else str(value)
    return value


def _digest(plain: Any) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]


@cache
def _distributions() -> Mapping[str, list[str]]:
    return packages_distributions()
