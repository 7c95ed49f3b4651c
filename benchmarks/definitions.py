"""Which definitions there are in a module, and which names each of them uses, read from source.

A definition is a name at the top of a module with the statements that define or change it.
Docstrings and comments are no part of one. Annotations are part of it, but what they name is not
used by it.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import symtable
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

Target = tuple[str, tuple[str, ...]]
"""A module, and a dotted name in it as its parts; without parts the module itself is meant."""
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_BLOCKS = (ast.If, ast.Try, ast.With, ast.For, ast.While)


@dataclass(frozen=True)
class Source:
    """The content of a module.

    Attributes:
        module: its name.
        package: that its relative imports start from.
        definitions: name -> the statements that define or change it.
        imports: name -> where it is imported from.
    """

    module: str
    package: str
    definitions: dict[str, list[ast.stmt]] = field(default_factory=dict)
    imports: dict[str, Target] = field(default_factory=dict)
    _read: dict[str, tuple[str, set[Target]]] = field(default_factory=dict)

    def read(self, name: str) -> tuple[str, set[Target]]:
        """A definition as text that is the same under every version of Python, and the names that
        it uses, of this module or of those that it imports itself."""
        if name not in self._read:
            statements = self.definitions[name]
            used = set[Target]().union(*(_uses(self, statement) for statement in statements))
            self._read[name] = json.dumps([_plain(s) for s in statements]), used
        return self._read[name]


def source_of(module: str) -> Source:
    """The content of a module, which need not be imported yet.

    Raises:
        ValueError: its source cannot be read, as that of a notebook.
    """
    try:
        if (loaded := sys.modules.get(module)) is not None:
            text, is_package = inspect.getsource(loaded), hasattr(loaded, "__path__")
        else:
            spec = importlib.util.find_spec(module)
            assert spec is not None and spec.origin is not None
            with open(spec.origin, encoding="utf-8") as file:
                text = file.read()
            is_package = spec.submodule_search_locations is not None
    except (AssertionError, ImportError, OSError, TypeError, ValueError) as error:
        raise ValueError(
            f"the code of {module} cannot be read, so what it defines has no version; put it into "
            "a file"
        ) from error
    return _parsed(module, module if is_package else module.rpartition(".")[0], text)


@lru_cache(maxsize=1024)
def _parsed(module: str, package: str, text: str) -> Source:
    found = Source(module, package)
    for statement in _without_texts(ast.parse(text)).body:
        inner = list(ast.walk(statement)) if isinstance(statement, _BLOCKS) else [statement]
        for node in inner:
            if isinstance(node, ast.Import | ast.ImportFrom):
                found.imports.update(_imported(node, package))
        for name in {name for node in inner for name in _bound(node)}:
            found.definitions.setdefault(name, []).append(statement)
    return found


def _without_texts(tree: ast.Module) -> ast.Module:
    """Without docstrings, and the texts that stand below attributes."""
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED):
            node.body = [s for s in node.body if not _is_text(s)] or [ast.Pass()]
    return tree


def _is_text(statement: ast.stmt) -> bool:
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def _bound(node: ast.AST) -> Iterator[str]:
    """The names that a statement of a module defines or, as ``TABLE.update(...)`` does, changes."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield node.name
    elif isinstance(node, ast.Expr | ast.Assign | ast.AnnAssign | ast.AugAssign | ast.For):
        if isinstance(node, ast.Expr):
            targets: Sequence[ast.expr] = [node.value]
        else:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        yield from (n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name))


def _imported(node: ast.Import | ast.ImportFrom, package: str) -> dict[str, Target]:
    """The names that an import statement binds."""
    if isinstance(node, ast.Import):
        names = {a.asname: a.name for a in node.names if a.asname}
        names |= {(root := a.name.partition(".")[0]): root for a in node.names if not a.asname}
        return {name: (module, ()) for name, module in names.items()}
    above = package.split(".")[: 1 - node.level or None] if node.level else []
    module = ".".join([*above, *([node.module] if node.module else [])])
    return {a.asname or a.name: (module, (a.name,)) for a in node.names}


def _uses(source: Source, statement: ast.stmt) -> set[Target]:
    tree = _without_annotations(statement)
    inner = {
        name: target
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name, target in _imported(node, source.package).items()
    }
    outer = set(_global_names(symtable.symtable(ast.unparse(tree), source.module, "exec")))
    found: set[Target] = set()
    for path in _dotted(tree):
        if path[0] in inner:
            origin, above = inner[path[0]]
            found.add((origin, (*above, *path[1:])))
        elif path[0] in outer:
            found.add((source.module, path))
    return found


class _Unannotated(ast.NodeTransformer):
    def visit_arg(self, node: ast.arg) -> ast.arg:
        return ast.arg(node.arg)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)


def _without_annotations(statement: ast.stmt) -> ast.stmt:
    copied = ast.parse(ast.unparse(statement)).body[0]
    return ast.fix_missing_locations(_Unannotated().visit(copied))


def _global_names(table: symtable.SymbolTable) -> Iterator[str]:
    """The names that a piece of code reads from its module."""
    top = table.get_type() == "module"
    for symbol in table.get_symbols():
        if symbol.is_referenced() and (top or symbol.is_global()):
            yield symbol.get_name()
    for child in table.get_children():
        yield from _global_names(child)


def _dotted(node: ast.AST) -> Iterator[tuple[str, ...]]:
    """Every name that is read, with the attributes that are read of it: ``("F", "pad")``."""
    below: Any = node
    attributes: list[str] = []
    while isinstance(below, ast.Attribute):
        attributes.insert(0, below.attr)
        below = below.value
    if isinstance(below, ast.Name):
        yield (below.id, *attributes)
    else:
        for child in ast.iter_child_nodes(below):
            yield from _dotted(child)


def _plain(node: Any) -> Any:
    """A syntax tree as plain data, without the empty fields that versions of Python add."""
    if isinstance(node, ast.Constant):
        return ["Constant", repr(node.value)]
    if isinstance(node, ast.AST):
        kept = {
            name: _plain(value)
            for name, value in ast.iter_fields(node)
            if value not in (None, [], "") and name not in ("ctx", "type_comment")
        }
        return [type(node).__name__, kept]
    return [_plain(value) for value in node] if isinstance(node, list) else node
