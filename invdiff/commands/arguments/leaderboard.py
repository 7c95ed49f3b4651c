"""Arguments of ``invdiff leaderboard``."""

from __future__ import annotations

import argparse


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to the subparsers."""
    parser = commands.add_parser(
        "leaderboard",
        help="compare what was measured",
        usage="invdiff leaderboard [validate | merge] FOLDER ... [options]",
        description="Tables of the records that bench wrote, from one or many folders. validate "
        "checks every record against the schema, its cell and its pictures; merge "
        "copies records and pictures into the folder --output.",
    )
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="with records, in it or below")
    parser.add_argument(
        "--format",
        choices=("markdown", "csv", "json", "html"),
        help="of the tables (default: markdown)",
    )
    parser.add_argument(
        "--output", metavar="FILE|-", help="where they go (default: -, printed); of merge, a folder"
    )
    parser.add_argument(
        "--baseline", metavar="LABEL", help="compare every row with this one, image by image"
    )
    parser.add_argument(
        "--benchmark", metavar="HASH", help="only the benchmark whose hash begins so"
    )
    parser.add_argument(
        "--metric",
        action="append",
        metavar="NAME",
        help="only these metrics, in this order; repeat for several",
    )
    parser.add_argument(
        "--set-score",
        action="append",
        choices=("fid", "kid", "is"),
        help="also of the restorations as a set; needs invdiff[fid] and the weights",
    )
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="of InceptionV3, for --set-score (default: where torch-fidelity keeps them)",
    )
    parser.add_argument(
        "--pictures",
        type=int,
        metavar="N",
        help="html: images that are shown, the first N (default: 12)",
    )
