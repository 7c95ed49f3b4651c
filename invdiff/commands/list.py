"""``invdiff list``: what is installed, and what one of it is and takes. The standard library
answers until one is asked for."""

from __future__ import annotations

import argparse
import inspect
import json
import math
import re
import shutil
import textwrap
from typing import Any

from invdiff.config import config_files, protocols
from invdiff.plugins.purpose import first_sentence, purpose
from invdiff.plugins.registry import (
    KINDS,
    PluginError,
    UnknownNameError,
    did_you_mean,
    family_of,
    list_plugins,
    load,
    members,
    value_of,
)

FILES = {"protocols": "operator", "presets": "preset", "suites": "suite"}
"""The config groups that are listed."""
LISTED = (*KINDS, *FILES)
LINE = 110
"""Columns of a line of the list."""
PREFIX = {
    "operators": "operator",
    "guidance": "guidance",
    "models": "model",
    "transitions": "transition",
    "itineraries": "itinerary",
}
"""The prefix of a parameter on the command line."""


def run(args: argparse.Namespace) -> None:
    """Prints names and where they come from; with a name, what it is and takes.

    Raises:
        ValueError: an unknown name, or one that cannot be loaded.
    """
    if args.name is not None:
        described = describe(args.kind, args.name)
        print(json.dumps(described, indent=2) if args.json else _page(described))
        return
    found = (
        {args.kind: names(args.kind) | members(args.kind)}
        if args.kind
        else {kind: names(kind) for kind in LISTED}
    )
    if args.json:
        print(json.dumps(found, indent=2))
        return
    for kind, origins in found.items():
        print(f"{kind}:")
        width = max(map(len, origins), default=0)
        for name, origin in origins.items():
            text = f"  {name:{width}}  {_in_short(kind, name) or origin}"
            print(text if len(text) <= LINE else f"{text[: LINE - 4]} ...")


def _in_short(kind: str, name: str) -> str:
    """The purpose of a plug-in or configuration in one line; empty where none is given."""
    if kind in FILES:
        text = config_files(FILES[kind])[name][1].read_text(encoding="utf-8")
        comments = [line.lstrip("# ") for line in text.splitlines() if line.startswith("# ")]
        return first_sentence(" ".join(c for c in comments if not c.startswith("@package")))
    if family_of(kind, name)[0] is not None:
        return ""  # the line is in place of its origin
    try:
        return purpose(kind, name)
    except PluginError:  # the name is claimed twice; the origin says by whom
        return ""


def names(kind: str) -> dict[str, str]:
    """Name -> where it comes from, of one of :data:`LISTED`."""
    if kind == "protocols":
        return protocols()
    return (
        {name: origin for name, (origin, _) in config_files(FILES[kind]).items()}
        if kind in FILES
        else list_plugins(kind)
    )


def describe(kind: str, name: str) -> dict[str, Any]:
    """The description of a name as plain data: ``summary``, ``formulas`` of its update,
    ``facts`` about what it is and needs, and ``parameters`` (name -> ``default`` where it has one,
    and ``text``); of files their ``text``.

    Raises:
        UnknownNameError: there is none; lists those there are and the nearest.
    """
    known = names(kind)
    if family_of(kind, name)[0] is not None:
        known[name] = value_of(kind, name)
    if name not in known and kind not in KINDS:
        raise UnknownNameError(
            f"{name!r} is not among the {kind}.{did_you_mean(name, known)} See invdiff list {kind}."
        )
    made = None if kind in FILES else load(kind, name)
    described = {"kind": kind, "name": name, "from": known[name]}
    if made is None:
        return described | {"text": config_files(FILES[kind])[name][1].read_text(encoding="utf-8")}
    documented = kind in ("operators", "guidance") and family_of(kind, name)[0] is None
    module = (
        inspect.getdoc(inspect.getmodule(made)) or "" if documented else ""
    )  # there it is the documentation
    paragraphs = (module or inspect.getdoc(made) or "").split("\n\n")
    return described | {
        "summary": _plain(paragraphs[0]),
        "formulas": _formulas(paragraphs),
        "facts": _facts(kind, name, made),
        "parameters": _parameters(made),
    }


def _facts(kind: str, name: str, made: Any) -> list[str]:
    from invdiff.problem import LinearOperator, Operator, SpectralOperator, make_operator
    from invdiff.sampling import StatefulGuidance, make_method

    if kind == "operators":
        makes = getattr(made, "makes", None) or type(make_operator(name))
        is_ = (
            (SpectralOperator, "linear, with a singular value decomposition"),
            (LinearOperator, "linear"),
            (Operator, "nonlinear"),
        )
        return [next(text for base, text in is_ if issubclass(makes, base))]
    if kind == "models" and any(
        p.kind is p.VAR_KEYWORD for p in inspect.signature(made).parameters.values()
    ):
        return ["takes the options of invdiff.Denoiser, such as dtype, tile and compile"]
    if kind != "guidance":
        return []
    method = make_method(name)
    facts = []
    for piece in (*method.chain, *([method.transition] if method.transition else [])):
        if piece.requires is not None:
            facts.append(
                "needs a measurement"
                if piece.requires is Operator
                else f"needs {piece.requires.wanted()}"
            )
        if piece.one_sigma:
            facts.append("weighs pixels of different sigma in the units of their noise")
        if piece.particles:
            facts.append("the samples of an image are its particles")
    for guidance in method.chain:
        facts += (
            ["keeps a state between steps: transitions that predict once a step"]
            if isinstance(guidance, StatefulGuidance)
            else []
        )
        facts += [f"gives the network its {', '.join(guidance.sets)}"] if guidance.sets else []
    facts += [f"transition: {method.transition}"] if method.transition else []
    facts += [f"itinerary: {method.itinerary}"] if method.itinerary else []
    return list(dict.fromkeys(facts))


def _parameters(made: Any) -> dict[str, dict[str, Any]]:
    from invdiff.sampling.method import describe as plain

    found = {}
    texts = {
        k: v
        for base in reversed(inspect.getmro(made) if inspect.isclass(made) else [made])
        for k, v in _arguments(base).items()
    }
    for name, parameter in (inspect.signature(made).parameters if callable(made) else {}).items():
        if name not in ("shape", "state") and parameter.kind not in (
            parameter.VAR_KEYWORD,
            parameter.VAR_POSITIONAL,
        ):
            default = (
                {}
                if parameter.default is parameter.empty
                else {"default": plain(_default(parameter.default))}
            )
            found[name] = default | {"text": texts.get(name, "")}
    return found


def _default(value: Any) -> Any:
    """A default that JSON can hold; a dataclass marks those that it makes anew by an object that
    nobody can read."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return None if type(value).__name__ == "_HAS_DEFAULT_FACTORY_CLASS" else value


def _arguments(made: Any) -> dict[str, str]:
    """The entries of the section ``Args:`` of a docstring; several names may share one."""
    section = re.search(
        r"^Args:\n((?:[ ]+.*(?:\n|$)|\n)*)", inspect.cleandoc(made.__doc__ or ""), re.MULTILINE
    )
    entries = re.findall(
        r"^    (\w+(?:, \w+)*): (.*(?:\n     +.*)*)", section[1] if section else "", re.MULTILINE
    )
    return {name: _plain(text) for names, text in entries for name in names.split(", ")}


def _formulas(paragraphs: list[str]) -> str:
    """The first indented block, which is the update, as it stands; empty where there is none."""
    found = next((p for p in paragraphs if p.startswith("    ")), "")
    return textwrap.dedent(found).replace("``", "").rstrip()


def _plain(text: str) -> str:
    """One line without the marks of reStructuredText."""
    return " ".join(re.sub(r":\w+:`~?([^`]+)`|``([^`]+)``", r"\1\2", text).split())


def _page(described: dict[str, Any]) -> str:
    lines = [f"{described['name']}: {described['from']}"]
    if "text" in described:
        return "\n".join([*lines, "", described["text"].rstrip()])
    width = shutil.get_terminal_size((120, 24)).columns
    lines += textwrap.wrap(described["summary"], width)
    if described["formulas"]:
        lines += ["", textwrap.indent(described["formulas"], "    "), ""]
    lines += [f"- {fact}" for fact in described["facts"]]
    how = f" ({PREFIX[described['kind']]}.NAME=VALUE)" if described["kind"] in PREFIX else ""
    lines += ["", f"parameters{how}:"] if described["parameters"] else []
    for name, parameter in described["parameters"].items():
        value = f"={json.dumps(parameter['default'])}" if "default" in parameter else ""
        lines.append(f"  {name}{value}")
        lines += textwrap.wrap(
            parameter["text"], width, initial_indent="      ", subsequent_indent="      "
        )
    return "\n".join(lines)
