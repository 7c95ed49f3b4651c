"""Arguments of ``invdiff new-plugin``."""

from __future__ import annotations

import argparse

from invdiff.commands.new_plugin import GROUPS


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to the subparsers."""
    parser = commands.add_parser(
        "new-plugin",
        help="start a package with a plug-in",
        description="Writes a package with a plug-in that works: entry point, module, "
        "configuration and a test that runs the plug-in kit.",
    )
    parser.add_argument("name", help="under which it is registered, e.g. my_method")
    parser.add_argument("--kind", required=True, choices=tuple(GROUPS))
    parser.add_argument(
        "--output",
        metavar="DIR",
        help="folder of the package, which must not exist (default: invdiff-NAME)",
    )
