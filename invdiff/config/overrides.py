"""Overrides, ``key=value`` in Hydra's grammar: each is parsed once, and what cannot be read is
refused with what to write instead."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from invdiff.plugins.registry import list_plugins

_shortened = reprlib.Repr()
_shortened.maxstring = 80


@dataclass(frozen=True)
class Override:
    """One override.

    Attributes:
        text: as it was written, for messages.
        sign: Hydra's ``+``, ``++`` or ``~``; empty as a rule.
        path: the parts of its key.
        value: as it was written; None of ``~key``.
        method: the method that it is for; None: any of the run.
    """

    text: str
    sign: str
    path: tuple[str, ...]
    value: str | None
    method: str | None = None

    @property
    def key(self) -> str:
        return ".".join(self.path)

    @property
    def parameter(self) -> str:
        """The key below its group."""
        return ".".join(self.path[1:])

    def __repr__(self) -> str:
        return _shortened.repr(self.text)

    def hydra(self, sign: str | None = None) -> str:
        """As Hydra takes it, with another sign if one is given."""
        sign = self.sign if sign is None else sign
        return f"{sign}{self.key}" + ("" if self.value is None else f"={self.value}")


def parse(text: str) -> Override:
    """An override as it was written.

    Raises:
        ValueError: it is none, or none that stands for one value.
    """
    key, equals, value = text.strip().partition("=")
    name = key.strip().lstrip("+~")
    sign = key.strip()[: len(key.strip()) - len(name)]
    if not name or not (equals or sign == "~"):
        hint = "; for an image use --input" if Path(text).exists() else ""
        spaces = ", without spaces" if name and text == key else ""
        raise ValueError(
            f"{_shortened.repr(text)} is not an override; write key=value{spaces}, e.g. "
            f"guidance.zeta=0.5{hint}"
        )
    override = Override(text, sign, tuple(name.split(".")), value.strip() if equals else None)
    if override.value == "":
        raise ValueError(
            f"{override!r} has no value; write {_shortened.repr(name)[1:-1]}=null for none"
        )
    if override.value is not None:
        _check_value(override, override.value)
    return override


def _check_value(override: Override, value: str) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    inner = value[1:-1] if re.fullmatch(r"\([^()]*\)", value) else value
    as_list = f"a list is written {override.key}=[{inner}]"
    problem = f"{override!r} cannot be read"
    try:
        if not OverridesParser.create().parse_override(override.hydra()).is_sweep_override():
            return
        problem = f"{override!r} means several runs in Hydra's words"
        hint = as_list
        if decimal := re.fullmatch(r"(\d+),(\d+)", value):
            hint += f", a decimal number {override.key}={decimal[1]}.{decimal[2]}"
    except (HydraException, RecursionError):
        quoted = value.replace("\\", "\\\\").replace("'", "\\'")
        hint = as_list if inner != value else f"a text is quoted: \"{override.key}='{quoted}'\""
    raise ValueError(f"{problem}; {hint if len(hint) < 200 else 'a text is quoted'}")


def addressed(override: Override, methods: Sequence[str]) -> Override:
    """``guidance.METHOD.key`` as ``guidance.key`` for that method alone, and ``transition=NAME`` as
    ``transition.name=NAME``, so that parameters may stand beside the name.

    Raises:
        ValueError: it is for a method that the run does not have.
    """
    path, value = override.path, override.value
    if (
        path in (("transition",), ("itinerary",))
        and (value or "").isidentifier()
        and value != "null"
    ):
        return replace(override, path=(*path, "name"))
    if path[0] != "guidance" or len(path) < 3 or path[1] not in list_plugins("guidance"):
        return override
    if path[1] not in methods:
        raise ValueError(
            f"{override!r} is for the method {path[1]}, but this run has {', '.join(methods)}"
        )
    return replace(override, path=(path[0], *path[2:]), method=path[1])


def override_value(value: Any) -> str:
    """A value in the grammar of Hydra's overrides."""
    match value:
        case dict():
            return "{" + ",".join(f"{k}:{override_value(v)}" for k, v in value.items()) + "}"
        case list() | tuple():
            return "[" + ",".join(map(override_value, value)) + "]"
        case str():
            escaped = value.replace("\\", "\\\\").replace("'", "\\'")
            return f"'{escaped}'"
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    )
