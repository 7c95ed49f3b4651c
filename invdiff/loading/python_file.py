"""Networks made by a function of a Python file, ``mymodel.py:make``: one's own network on the
command line without a package. The file's code runs, as it would by importing it; modules beside it
are found."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
import warnings
from pathlib import Path
from typing import Any

from invdiff.files import sha256
from invdiff.loading.source import Source, check_options
from invdiff.network import Denoiser
from invdiff.plugins.registry import did_you_mean

CHECKS_OPTIONS = True
"""Which options there are is known once the file was read."""

_WRITTEN = re.compile(r"(?P<file>.+\.py):(?P<function>[A-Za-z_]\w*)", re.S)


def parse(given: Any) -> tuple[Path, str] | None:
    """The file and the function that are named; None where the source is of another kind."""
    found = _WRITTEN.fullmatch(given) if isinstance(given, str) else None
    return None if found is None else (Path(found["file"]).expanduser(), found["function"])


def recognises(source: Source) -> bool:
    """Whether it is written so."""
    return parse(source.given) is not None


def load(source: Source, **options: Any) -> Denoiser:
    """The Denoiser that the function returns. It is called with the options that it has parameters
    for; the others are those of :class:`~invdiff.network.Denoiser`, on top of what it said.

    Raises:
        ValueError: no such file or function, one that fails, or that returns something else.
    """
    found = parse(source.given)
    assert found is not None
    path, name = found
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    warnings.warn(f"the code of {path} runs", stacklevel=2)
    digest = sha256(path)
    module_name = f"invdiff_file_{digest[:12]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules.get(module_name)
    if module is None:
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module  # as dataclasses and pickles of it need
        beside = str(path.resolve().parent)  # its imports, as of a script; they shadow nothing
        if beside not in sys.path:
            sys.path.append(beside)
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[module_name]
            raise ValueError(f"{path} fails: {type(error).__name__}: {error}") from error
    make = getattr(module, name, None)
    if not callable(make):
        functions = [n for n, v in vars(module).items() if callable(v) and n[0] != "_"]
        raise ValueError(
            f"{path} has no function {name}.{did_you_mean(name, functions)} It has: "
            f"{', '.join(functions)[:200] or 'none'}"
        )
    takes = inspect.signature(make).parameters.values()
    every = any(p.kind is p.VAR_KEYWORD for p in takes)
    if not every:
        check_options(make, f"{name} of {path}", options)
    own = {k: v for k, v in options.items() if every or k in {p.name for p in takes}}
    try:
        made = make(**own)
    except Exception as error:
        raise ValueError(f"{name} of {path} fails: {type(error).__name__}: {error}") from error
    if not isinstance(made, Denoiser):
        raise ValueError(
            f"{name} of {path} must return an invdiff.Denoiser, got {type(made).__name__}"
        )
    if rest := {k: v for k, v in options.items() if k not in own}:
        made = made.read_as(**rest)
    made.source |= {"path": str(path), "code": digest}
    return made
