"""``invdiff new-plugin NAME --kind KIND``: a package with one plug-in that installs, and passes its
own tests."""

from __future__ import annotations

import argparse
import keyword
import re
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from string import Template

from invdiff.plugins.registry import list_plugins

GROUPS = {
    "operator": "operators",
    "guidance": "guidance",
    "transition": "transitions",
    "itinerary": "itineraries",
    "schedule": "schedules",
    "model": "models",
    "loader": "loaders",
    "metric": "metrics",
    "baseline": "baselines",
    "launcher": "launchers",
    "suite": "suites",
    "tracker": "trackers",
    "format": "formats",
}
"""Kind -> entry-point group."""
FUNCTIONS = ("model", "metric", "launcher")
"""Kinds whose object is a function of the plug-in's name."""
MODULES = ("loader", "format")
"""Kinds whose object is the module; that of the others is a class."""


def run(args: argparse.Namespace) -> None:
    """Writes the package and says what to do with it.

    Raises:
        ValueError: a name that cannot be a module's or is taken; a folder that exists.
    """
    folder = write(args.name, args.kind, Path(args.output) if args.output else None)
    print(
        f"{folder}: a package with the {args.kind} {args.name!r}. Next:\n  pip install -e "
        f"{folder}\n  pytest {folder}\n  invdiff check {args.name}"
    )


def write(name: str, kind: str, output: Path | None = None) -> Path:
    """Writes the package into ``output``, by default ``invdiff-NAME`` here, and returns the
    folder."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise ValueError(
            f"a plug-in's name is lower-case letters, digits and _, such as my_{kind}, got {name!r}"
        )
    if name.capitalize() in ("True", "False", "None"):
        raise ValueError(
            f"a plug-in cannot be called {name!r}, which Python and YAML read as a value"
        )
    if name in (taken := list_plugins(GROUPS[kind])):
        raise ValueError(
            f"the {kind} {name!r} exists already, from {taken[name]}; choose another name"
        )
    folder = output or Path(f"invdiff-{name.replace('_', '-')}")
    if folder.exists():
        raise ValueError(f"{folder} exists; choose another --output")
    values = {
        "name": name,
        "kind": kind,
        "group": GROUPS[kind],
        "module": f"invdiff_{name}",
        "distribution": f"invdiff-{name.replace('_', '-')}",
        "Class": "".join(part.capitalize() for part in name.split("_")),
        "invdiff_version": version("invdiff"),
    }
    values["KIND"] = kind.upper()
    made = name if kind in FUNCTIONS else values["Class"]
    values["object"] = values["module"] + ("" if kind in MODULES else f":{made}")
    contents = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        f"{values['module']}/__init__.py": f"{kind}.py",
        f"tests/test_{name}.py": "test.py",
    }
    for target, template in contents.items():
        path = folder / target
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(filled(template, values))
    return folder


def filled(template: str, values: dict[str, str]) -> str:
    """One of the files of ``invdiff/templates``, its ``$names`` replaced."""
    return Template(
        files("invdiff").joinpath("templates", f"{template}.in").read_text()
    ).substitute(values)
