"""Arguments of ``invdiff calibrate``."""

from __future__ import annotations

import argparse

from invdiff.commands.arguments import groups


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to the subparsers."""
    parser = commands.add_parser(
        "calibrate",
        help="find an operator's parameter from sharp images and their measurements",
        description="Finds a parameter of an operator by least squares from pairs of an image and "
        "its measurement, with its error, and writes a file that solve takes as --operator FILE.",
        epilog=groups.EPILOG.format("operator.kernel_size=15"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--operator", required=True, help="what was measured with, e.g. blur")
    parser.add_argument(
        "--input", required=True, help="the true image, a folder or glob of them, or a stack"
    )
    parser.add_argument(
        "--measurement", required=True, help="what was measured of them, in the same order"
    )
    parser.add_argument(
        "--parameter",
        help="what is sought: a parameter that is a number, such as sigma, whose value in the "
        "configuration the search starts from (default: the kernel of a blur)",
    )
    groups.scans(parser)
    parser.add_argument("--output", help="the file (default: OPERATOR.yaml)")
    parser.add_argument("--overwrite", action="store_true", help="replace the file")
    parser.add_argument("--quiet", action="store_true", help="no summary")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="Hydra overrides")
