"""Versions of plug-ins: digests that change when what defines them does, and not with comments or
docstrings."""

from __future__ import annotations

import ast
import hashlib
import inspect
import io
import json
import sys
import tokenize
from collections.abc import Mapping
from functools import cache
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

from torch import Tensor

from invdiff.files import sha256
from invdiff.plugins.registry import name_of
from invdiff.problem import Operator

FRAMEWORK = tuple(
    f"invdiff.{name}"
    for name in (
        "network",
        "noise",
        "plugins",
        "problem.composite",
        "problem.make",
        "problem.measurement",
        "problem.operator",
        "problem.solvers",
        "problem.spectral",
        "sampling",
        "schedules",
    )
)
"""What plug-ins are made with, not of."""
GROUND = {*sys.stdlib_module_names, "torch", "numpy"}
"""Packages whose versions are not to matter."""


def of_code(what: Any) -> str:
    """A digest of the code of a class or function, 12 hex digits.

    It covers the modules that define it (of a class, those of its bases as well), and those of the
    functions and classes that stand in their namespaces, as far as they belong to its own package
    or to invdiff, whose framework does not count. Of other installed packages that any of these
    import, be it within a function, it covers the version, torch and numpy excepted.

    Raises:
        ValueError: it was not read from a file, such as a class of a notebook.
    """
    home = what.__module__.partition(".")[0]
    pending = [c.__module__ for c in what.__mro__] if inspect.isclass(what) else [what.__module__]
    found: dict[str, str] = {}
    while pending:
        name = pending.pop()
        package = name.partition(".")[0]
        if name in found or name.startswith(FRAMEWORK) or package in GROUND:
            continue
        if package not in (home, "invdiff") and package in _distributions():
            found[package] = version(_distributions()[package][0])
            continue
        found[name] = _code(name)
        foreign = [
            of
            for of in _imported(name)
            if of not in (home, "invdiff", *GROUND) and of in _distributions()
        ]
        found |= {of: version(_distributions()[of][0]) for of in foreign}
        pending += [
            v.__module__
            for v in vars(sys.modules[name]).values()
            if inspect.isclass(v) or inspect.isfunction(v)
        ]
    return _digest(found)


def operator_version(operator: Operator) -> str:
    """A digest of all that an operator does, 12 hex digits: its name, its code and its parameters,
    operators among them included.

    Of files among the parameters, such as masks, the content counts.
    """
    try:
        name = name_of("operators", type(operator))
    except ValueError:  # a deepinv Physics has no name
        name = type(operator).__qualname__
    return _digest(
        {"name": name, "code": of_code(type(operator)), "parameters": _plain(operator.parameters)}
    )


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


@cache
def _imported(module: str) -> set[str]:
    """The packages that a module imports anywhere in its code."""
    nodes = list(ast.walk(ast.parse(_source(module))))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [
        node.module
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.module and not node.level
    ]
    return {name.partition(".")[0] for name in names}


def _source(module: str) -> str:
    try:
        return inspect.getsource(sys.modules[module])
    except (OSError, TypeError) as error:
        raise ValueError(
            f"the code of {module} cannot be read, so what it defines has no version; put "
            "it into a file"
        ) from error


@cache
def _code(module: str) -> str:
    """A module's code without comments, docstrings and empty lines.

    It is cut out of the text: what :func:`ast.unparse` writes differs between versions of Python,
    and with it the digest would.
    """
    source = _source(module)
    lines = source.split("\n")
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    cuts = [(token.start, token.end) for token in tokens if token.type == tokenize.COMMENT]
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and ast.get_docstring(node) is not None
        ):
            first = node.body[0]
            assert first.end_lineno is not None and first.end_col_offset is not None
            last = (
                lines[first.end_lineno - 1].encode()[: first.end_col_offset].decode()
            )  # ast counts bytes
            cuts.append(((first.lineno, first.col_offset), (first.end_lineno, len(last))))
    for (row, column), (last_row, end) in sorted(cuts, reverse=True):
        lines[row - 1 : last_row] = [lines[row - 1][:column] + lines[last_row - 1][end:]]
    return "\n".join(line.rstrip() for line in lines if line.strip())
