"""Arguments of ``invdiff cite``."""

from __future__ import annotations

import argparse


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to the subparsers."""
    parser = commands.add_parser(
        "cite",
        help="print what to cite of a result",
        description="Prints the BibTeX of every method, operator and metric that results were made "
        "with.",
    )
    parser.add_argument(
        "results", nargs="+", metavar="FILE", help="result.json of solve, or a record of bench"
    )
