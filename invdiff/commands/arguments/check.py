"""Arguments of ``invdiff check``."""

from __future__ import annotations

import argparse


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to the subparsers."""
    parser = commands.add_parser(
        "check",
        help="check plug-ins",
        description="Runs the plug-in kit on an installed plug-in, or on all those of a package, "
        "and prints what each check saw.",
    )
    parser.add_argument("name", help="of a plug-in of any kind, or of a package")
    parser.add_argument("--json", action="store_true", help="print the reports as JSON on stdout")
