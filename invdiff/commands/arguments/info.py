"""Arguments of ``invdiff info``."""

from __future__ import annotations

import argparse

from invdiff.commands.arguments import groups


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to the subparsers."""
    parser = commands.add_parser(
        "info",
        help="what is known about a model",
        description="Prints what was recognised in a model, and whether it denoises a photograph "
        "as if it were read rightly.",
    )
    parser.add_argument("model", help=groups.MODEL)
    groups.trust(parser)
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--likelihood",
        nargs="+",
        metavar="FILE",
        help="images: how likely the network finds each, in bits per dimension (fewer is likelier)",
    )
    parser.add_argument("--probes", type=int, help="of the likelihood's estimate (default: 1)")
    parser.add_argument("--seed", type=int, help="of the likelihood (default: 0)")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="model.key=value",
        help="what the model does not say, e.g. model.predicts=v",
    )
