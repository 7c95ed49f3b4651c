"""Arguments of ``invdiff leaderboard``."""

from __future__ import annotations

import argparse


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to the subparsers."""
    parser = commands.add_parser(
        "leaderboard",
        help="compare what was measured",
        usage="invdiff leaderboard [validate | merge | publish | diff] FOLDER ... [options]",
        description="Tables of the records that bench wrote, from one or many folders. validate "
        "checks every record against the schema, its cell and its pictures; merge "
        "copies records and pictures into the folder --output; publish writes a static site of a "
        "board for each folder; diff compares every row of two folders, A and B, and fails where "
        "B is worse.",
    )
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="with records, in it or below")
    parser.add_argument(
        "--format",
        choices=("markdown", "csv", "json", "latex", "html"),
        help="of the tables (default: by the suffix of --output, else markdown)",
    )
    parser.add_argument(
        "--output",
        metavar="FILE|-",
        help="where they go (default: -, printed); of merge and publish, a folder",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a file that no leaderboard wrote"
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
        help="html, publish and --figure: images that are shown, the first N (default: 12, all, 4)",
    )
    parser.add_argument(
        "--figure",
        metavar="FILE.pdf",
        help="draw pictures with insets, and quality against cost; needs invdiff[plot]",
    )
