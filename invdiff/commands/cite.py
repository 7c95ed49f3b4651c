"""``invdiff cite``: the BibTeX of everything that a result was made with.

A package that registers plug-ins keeps their entries in ``references.bib``, in any of the packages
around their modules; an
entry's field ``plugins`` names what it is of, ``guidance.dps`` or several with commas between.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from invdiff.plugins.registry import UnknownNameError, family_of, value_of

FILE = "references.bib"
OWN = """@software{{invdiff,
  title = {{invdiff: restoration of images with pretrained diffusion networks}},
  author = {{{{The invdiff authors}}}},
  version = {{{version}}}
}}"""
SAMPLING = ("guidance", "transition", "itinerary")
"""The parts of a configuration that have a name each, or a list of such."""
KINDS = {"transition": "transitions", "itinerary": "itineraries"}


def run(args: argparse.Namespace) -> None:
    """Prints the entries of a result, of ``solve``, ``generate`` or ``bench``; a line on stderr
    names what has none.

    Raises:
        ValueError: it is no such file.
    """
    used = dict.fromkeys(plugin for file in args.results for plugin in used_by(Path(file)))
    entries, without = dict[str, None](), []
    for plugin in used:
        found = list(entries_of(plugin))
        entries |= dict.fromkeys(found)
        without += [] if found else [plugin]
    print("\n\n".join([OWN.format(version=version("invdiff")), *entries]))
    if without:
        print(f"without an entry: {', '.join(without)}", file=sys.stderr)


def used_by(file: Path) -> list[str]:
    """The plug-ins of a result, ``kind.name``.

    Raises:
        ValueError: the file is no result of invdiff.
    """
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read: {type(error).__name__}: {error}") from error
    if isinstance(content, dict) and isinstance(cell := content.get("cell"), dict):
        benchmark, ran = cell.get("benchmark"), cell.get("run")
        if isinstance(benchmark, dict) and isinstance(ran, dict):
            return [
                *_named({**ran, "operator": benchmark.get("operator")}, cell.get("kind")),
                *_metrics(benchmark.get("metrics")),
            ]
    elif isinstance(content, dict) and isinstance(config := content.get("config"), dict):
        return [*_named(config, "method"), *_metrics(content.get("metrics"))]
    raise ValueError(
        f"{file} is no result of invdiff; give a result.json of `invdiff solve` or a record of "
        "`invdiff bench`"
    )


def _named(config: Mapping[str, Any], kind: Any) -> Iterator[str]:
    if kind == "baseline" and isinstance(config.get("name"), str):
        yield f"baselines.{config['name']}"
    for part in SAMPLING:
        nodes = config.get(part)
        for node in nodes if isinstance(nodes, list) else [nodes]:
            if isinstance(node, dict) and isinstance(node.get("name"), str):
                yield f"{KINDS.get(part, part)}.{node['name']}"
    operator = config.get("operator")
    if isinstance(operator, dict) and isinstance(operator.get("name"), str):
        yield _plugin("operators", operator["name"])


def _metrics(metrics: Any) -> Iterator[str]:
    for name in metrics if isinstance(metrics, dict) else ():
        yield _plugin("metrics", name)


def _plugin(kind: str, name: str) -> str:
    """``kind.name`` of a plug-in, of a member of a family that family."""
    return f"{family_of(kind, name)[0] or kind}.{name.partition(':')[0]}"


def entries_of(plugin: str) -> Iterator[str]:
    """The entries of a plug-in, in the package that registers it, without the field
    ``plugins``."""
    kind, _, name = plugin.partition(".")
    try:
        module = value_of(kind, name).partition(":")[0]
    except UnknownNameError:
        return
    for text in _files(module):
        for entry in re.findall(r"^@\w+\{.*?\}$", text, re.MULTILINE | re.DOTALL):
            of = re.search(r",\s*plugins\s*=\s*\{([^}]*)\}", entry)
            if of and plugin in re.split(r"\s*,\s*", of[1].strip()):
                yield _pretty(entry.replace(of[0], ""))


def _files(module: str) -> Iterator[str]:
    """The content of every ``references.bib`` in the packages around a module."""
    parts = module.split(".")
    for n in range(len(parts), 0, -1):
        try:
            file = files(".".join(parts[:n])).joinpath(FILE)
        except (ModuleNotFoundError, TypeError):  # a module, and no package
            continue
        if file.is_file():
            yield file.read_text(encoding="utf-8")


def _pretty(entry: str) -> str:
    """An entry with a line for each field."""
    return re.sub(r",\s+(\w+ = \{)", r",\n  \1", entry.removesuffix("}")) + "\n}"
