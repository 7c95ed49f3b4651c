"""The purpose of a plug-in in one line, read from its source: nothing is imported."""

from __future__ import annotations

import ast
import importlib.util
import re
from functools import cache
from pathlib import Path

from invdiff.plugins.registry import value_of

OF_THE_MODULE = ("operators", "guidance", "transitions", "itineraries")
"""Kinds whose module's docstring is their documentation."""


def purpose(kind: str, name: str) -> str:
    """The first sentence of a plug-in's docstring; empty where its source is not found.

    Raises:
        PluginError: two packages claim the name.
    """
    module, _, member = value_of(kind, name).partition(":")
    tree = _parsed(module)
    if tree is None:
        return ""
    nodes = {n.name: n for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef)}
    own = nodes.get(member.partition(".")[0])
    if kind in OF_THE_MODULE or own is None:
        return first_sentence(ast.get_docstring(tree) or "")
    return first_sentence(ast.get_docstring(own) or "")


def first_sentence(text: str) -> str:
    """The first sentence of a docstring in one line, without the marks of reStructuredText."""
    line = " ".join(text.split("\n\n")[0].split())
    line = re.sub(r":\w+:`~?([^`]+)`|``([^`]+)``", r"\1\2", line)
    return re.split(r"(?<!\bal)(?<!\beq)(?<!\bfig)\.\s(?=[A-Z\W])", line)[0].rstrip(".:")


@cache
def _parsed(module: str) -> ast.Module | None:
    top, *parts = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not parts:
        files = [Path(spec.origin)] if spec.origin else []
    else:
        roots = [Path(p).joinpath(*parts) for p in spec.submodule_search_locations or ()]
        files = [f for root in roots for f in (root.with_suffix(".py"), root / "__init__.py")]
    for file in files:
        if file.is_file():
            try:
                return ast.parse(file.read_text(encoding="utf-8"))
            except (OSError, SyntaxError, UnicodeDecodeError):
                return None
    return None
