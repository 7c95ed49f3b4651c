"""Arguments of ``invdiff list``."""

from __future__ import annotations

import argparse

from invdiff.commands.list import LISTED


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to the subparsers."""
    parser = commands.add_parser(
        "list",
        help="list what is installed, and the parameters of one",
        description="Lists what is installed and where it comes from; with a name, what that is, "
        "needs and takes: invdiff list guidance dps",
    )
    parser.add_argument(
        "kind",
        nargs="?",
        choices=LISTED,
        metavar="KIND",
        help=f"one of {', '.join(LISTED)}; guidance are the methods",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="of one of that kind")
    parser.add_argument("--json", action="store_true")
