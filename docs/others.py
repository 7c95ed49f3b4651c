"""The page of plug-ins that have none of their own, and what a search for a name finds first."""

from __future__ import annotations

import posixpath
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from prose import cell

from invdiff import _HOME
from invdiff.plugins.purpose import purpose
from invdiff.plugins.registry import list_plugins

PAGES = ("methods", "operators", "transitions", "itineraries", "models")
"""Where a plug-in has a page of its own; of one name the first counts."""
KINDS = {  # the others: heading, and where more is said
    "schedules": ("Schedules", "api/schedules.rst"),
    "loaders": ("Loaders of networks", "loading-your-checkpoint.md"),
    "metrics": ("Metrics", "api/benchmarks.metrics.rst"),
    "metric_families": ("Families of metrics", "leaderboard.md"),
    "operator_families": ("Families of operators", "operators.md"),
    "baselines": ("Baselines", "leaderboard.md"),
    "suites": ("Suites", "leaderboard.md"),
    "launchers": ("Launchers", "scaling-out.md"),
    "trackers": ("Trackers", "leaderboard.md"),
    "formats": ("Formats of images", "science.md"),
}
OF_THE_REFERENCE = ("schedules", "metrics")
"""Kinds whose names are found as functions of the reference."""


def ours(kind: str) -> list[str]:
    """The plug-ins of invdiff itself; other packages that are installed document theirs."""
    return [name for name, source in list_plugins(kind).items() if source.startswith("invdiff (")]


def page() -> str:
    """Every plug-in of the kinds without pages, from the first sentence of its docstring."""
    parts = ["# Further plug-ins\n\nWhat else has a name; `invdiff list KIND` prints the same.\n"]
    for kind, (heading, more) in KINDS.items():
        rows = "".join(f"| `{name}` | {cell(purpose(kind, name))} |\n" for name in ours(kind))
        shown = more.rpartition("/")[2].rpartition(".")[0]
        parts.append(
            f"## {heading}\n\nKind `{kind}`; more under [{shown}]({more}).\n\n"
            f"| name | |\n| --- | --- |\n{rows.rstrip()}\n"
        )
    return "\n".join(parts)


def subjects(made: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Each name that is looked for, with the page and the heading (or none, the title) that a
    search finds first: a plug-in, else a guide, else a command."""
    taken = {*_HOME, "index"}
    found = [
        (posixpath.basename(path)[:-3], path, "")
        for kind in PAGES
        for path in made
        if path.startswith(f"{kind}/")
    ]
    found += [
        (path[:-3].replace("-", " "), path, "")
        for path in made
        if "/" not in path and path.endswith(".md")
    ]
    found += [
        (name, "plugins.md", f"## {heading}")
        for kind, (heading, _) in KINDS.items()
        for name in (() if kind in OF_THE_REFERENCE else ours(kind))
    ]
    commands = re.findall(r"^## invdiff (\S+)$", made["cli.md"], flags=re.MULTILINE)
    found += [(name, "cli.md", f"## invdiff {name}") for name in commands]
    for name, path, heading in found:
        if name not in taken:
            taken.add(name)
            yield name, path, heading


def indexed(made: Mapping[str, str]) -> dict[str, str]:
    """The pages with an entry of Sphinx's index for each of their subjects, which a search puts
    first."""
    pages = dict(made)
    for name, path, heading in subjects(made):
        text = pages[path]
        end = text.index(f"{heading}\n") + len(heading) if heading else text.index("\n")
        pages[path] = f"{text[:end]}\n\n```{{index}} ! {name}\n```\n{text[end:]}"
    return pages
