"""Every physics of deepinv (https://deepinv.github.io, 0.5) by name: ``deepinv:MRI``,
``deepinv:Tomography``, ...

    invdiff solve --operator deepinv:Tomography operator.angles=30 --method diffpir
    invdiff solve --operator deepinv:MRI operator.mask=mask.npy

    invdiff.make_operator("deepinv:MRI", mask=mask)

Arguments are those of the class, but for devices, noise and random generators (``seed`` stands for
one). What is not said about the image's size (``img_size``, ``img_width``, ``channels``) is filled
in when the operator is bound. A tensor may be a file: .npy, .pt or a picture. A physics among the
arguments is a mapping of its ``name`` and arguments: ``operator.B={name: deepinv:CompressedSensing,
m: 100}``.

A measurement is recorded with class, arguments, tensors and the version of deepinv.

Symbols: x image, y measurement; a list of measurements is joined to one vector.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from invdiff.plugins.purpose import first_sentence

if TYPE_CHECKING:
    from invdiff.problem import Operator


OBJECTS = ("A", "U", "g_params")
"""Arguments that are functions which make up A, or go with one."""


def deepinv(member: str) -> Callable[..., Operator]:
    """What makes the operator of a physics.

    Args:
        member: the class's name in ``deepinv.physics``.

    Raises:
        UnknownNameError: there is no such class; names the nearest.
    """
    from invdiff.operators.deepinv_recipe import factory_of

    return factory_of(member, members())


def members() -> dict[str, str]:
    """Every physics that a name and arguments make, and its purpose in one line, read from
    deepinv's source: nothing is imported. Those that are given a part of A as a function, such as
    the parent class ``LinearPhysics``, or any number of physics are for Python alone."""
    return dict(_listed())


deepinv.members = members  # type: ignore[attr-defined]  # as the registry asks a family


@cache
def _listed() -> tuple[tuple[str, str], ...]:
    spec = importlib.util.find_spec("deepinv")
    roots = [] if spec is None else spec.submodule_search_locations or []
    folder = next((path for root in roots if (path := Path(root) / "physics").is_dir()), None)
    if folder is None:
        return ()
    classes = {
        node.name: node
        for file in folder.glob("*.py")
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    }
    public = {
        alias.asname or alias.name
        for node in ast.parse((folder / "__init__.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    def is_physics(name: str) -> bool:
        return name == "Physics" or (
            name in classes
            and any(isinstance(b, ast.Name) and is_physics(b.id) for b in classes[name].bases)
        )

    return tuple(
        (name, first_sentence(ast.get_docstring(node) or ""))
        for name, node in sorted(classes.items())
        if name in public and is_physics(name) and not _needs_python(node)
    )


def _needs_python(node: ast.ClassDef) -> bool:
    """Whether the constructor of a class takes what no configuration can hold."""
    for method in node.body:
        if isinstance(method, ast.FunctionDef) and method.name == "__init__":
            taken = method.args
            names = {argument.arg for argument in (*taken.args, *taken.kwonlyargs)}
            return taken.vararg is not None or not names.isdisjoint(OBJECTS)
    return False
