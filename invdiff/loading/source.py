"""Loaders of kinds of models: how they are asked, and which one reads a source.

A loader is registered in the entry-point group ``invdiff.loaders`` and has two functions, see
:class:`Loader`; a module with both is one. Every kind that is read here is such a module.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

from invdiff.network import Denoiser
from invdiff.plugins.registry import PluginError, check_names, list_plugins, load

T = TypeVar("T")
HUB = "https://huggingface.co/"


class Source:
    """The source that a model is loaded from.

    Args:
        given: as the user gave it: a path, a hub id, or an object.
        allow_pickle: whether files may be read that can run code.
    """

    def __init__(self, given: Any, allow_pickle: bool = False) -> None:
        self.given: Any = given.removeprefix(HUB) if isinstance(given, str) else given
        self.allow_pickle = allow_pickle
        self._results: dict[Callable[[Source], Any], tuple[Any, Exception | None]] = {}

    def __str__(self) -> str:
        return str(self.given) if isinstance(self.given, str | Path) else type(self.given).__name__

    @cached_property
    def path(self) -> Path | None:
        """The folder or file that it names; None where there is none."""
        if not isinstance(self.given, str | Path):
            return None
        path = Path(self.given).expanduser()
        return path if os.path.exists(path) else None  # False of names that no file can have

    @property
    def file(self) -> Path | None:
        """The file that it names; None where there is none."""
        return self.path if self.path is not None and self.path.is_file() else None

    def once(self, read: Callable[[Source], T]) -> T:
        """``read(source)``, which is called once however many loaders ask for it; an error is
        raised again."""
        if read not in self._results:
            try:
                self._results[read] = read(self), None
            except Exception as error:
                self._results[read] = None, error
        result, problem = self._results[read]
        if problem is not None:
            raise problem
        return result


def check_options(factory: Callable[..., Any], what: str, options: Iterable[str]) -> None:
    """Refuses options that neither a loader nor a :class:`~invdiff.network.Denoiser` has."""
    own = [
        n
        for n, p in inspect.signature(factory).parameters.items()
        if p.kind is not p.VAR_KEYWORD and n != "source"
    ]
    general = [n for n in inspect.signature(Denoiser).parameters if n not in ("net", "name")]
    check_names(what, options, list(dict.fromkeys(own + general)))


class Loader(Protocol):
    """Reads models of one kind. Options that neither ``load`` nor a Denoiser has are refused before
    it is called, unless its module says ``CHECKS_OPTIONS = True``."""

    def recognises(self, source: Source) -> bool:
        """Whether the source is of this kind, found out without running anything of it.

        Raises:
            ValueError: it may be, but cannot be read; the message is the user's if no loader
                recognises the source.
        """

    def load(self, source: Source, **options: Any) -> Denoiser:
        """The Denoiser. Options that are not its own are those of
        :class:`~invdiff.network.Denoiser`, on top of what the source says.

        Raises:
            ValueError: it is not complete or not understood; nothing is loaded by half.
        """


def loader_of(source: Source, name: str | None = None) -> Loader:
    """The loader that recognises a source, or the one of that name.

    Raises:
        ValueError: no loader recognises it, or several do; an unknown name.
    """
    if name is not None:
        return load("loaders", name)
    found, problems = {}, []
    for each in list_plugins("loaders"):
        try:
            loader: Loader = load("loaders", each)
            if loader.recognises(source):
                found[each] = loader
        except PluginError as error:  # a broken package keeps no other from loading
            problems.append(f"{error}")
        except ValueError as error:
            problems.insert(0, f"{error}")
    if len(found) > 1:
        claims = " and ".join(f"{n!r} of {list_plugins('loaders')[n]}" for n in found)
        raise ValueError(f"{source} is recognised by the loaders {claims}; choose one, loader=")
    if not found:
        raise ValueError(problems[0] if problems else _unknown(source))
    return next(iter(found.values()))


def _unknown(source: Source) -> str:
    if source.path is None and isinstance(source.given, str | Path):
        return (
            f"there is no folder or file {source}, and it is not a model of the hub either, "
            "which is written owner/name[@revision][:subfolder]"
        )
    if source.file is not None and source.file.suffix == ".py":
        return (
            f"{source} is of no kind that is read here without a function: {source}:make, where "
            "make returns an invdiff.Denoiser"
        )
    return (
        f"{source} is of no kind that is read here; the installed loaders are "
        f"{', '.join(list_plugins('loaders'))}. Any network works as a callable: "
        "invdiff.Denoiser(net, predicts=..., schedule=..., data_range=...)"
    )
