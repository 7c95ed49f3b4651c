"""Arguments of ``invdiff bench``."""

from __future__ import annotations

import argparse

from invdiff.commands.arguments import groups


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to the subparsers."""
    parser = commands.add_parser(
        "bench",
        help="measure methods",
        description="Runs a grid: operators x methods x models x images x seeds, of a suite of "
        "configs/suite. What is finished is kept; the same command goes on from "
        "there.",
        epilog="Hydra overrides change the suite:\n  methods.dps.zeta=[0.3,1,3]  "
        "operators.sr.factor=2  images.limit=10",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--suite",
        default="quick",
        help="what is measured (default: quick); see `invdiff list suites`",
    )
    parser.add_argument(
        "--reproduce",
        metavar="RECORD",
        help="instead: evaluate the cell of one record (.json), or of some of a folder, again and "
        "compare; --input says where the images are",
    )
    parser.add_argument(
        "--sample",
        type=int,
        metavar="N",
        help="how many records of a folder are reproduced, chosen at random (default: 5)",
    )
    grid = parser.add_argument_group(
        "grid (repeat for several; only these, of the suite or new; with --method alone no "
        "baselines, and the reverse)"
    )
    grid.add_argument("--operator", action="append", help="operator or protocol")
    grid.add_argument("--method", action="append", help="method; values by methods.NAME.key=value")
    grid.add_argument(
        "--baseline", action="append", help="classical restoration, or a peer of another package"
    )
    grid.add_argument("--model", action="append", help=groups.MODEL)
    data = parser.add_argument_group("images and values")
    data.add_argument("--input", help="the images: a folder or glob")
    data.add_argument(
        "--seeds",
        type=int,
        metavar="N",
        help="measurements and runs of each image (default: the suite's)",
    )
    data.add_argument("--sigma", type=float, help="noise of the measurements, in units of [0, 1]")
    data.add_argument(
        "--steps", type=int, help="of every method, and of baselines that have steps in the suite"
    )
    data.add_argument("--num-samples", type=int, help="samples per image")
    data.add_argument("--batch-size", type=int, help="images at once")
    data.add_argument("--device", help="auto, cpu, cuda, ...")
    data.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of the networks")
    data.add_argument(
        "--allow-pickle",
        action="store_true",
        help="open pickled checkpoints, which can run code: only from who you trust",
    )
    where = parser.add_argument_group("where")
    groups.launching(where, "cells", "the launcher's; local: one, or one for each GPU")
    where.add_argument(
        "--log",
        action="append",
        metavar="TRACKER",
        help="log the figures of each record: tensorboard, mlflow, wandb; repeat for several",
    )
    where.add_argument(
        "--output", help="folder of the records and of results.md (default: invdiff-bench-SUITE)"
    )
    where.add_argument("--quiet", action="store_true", help="no progress and no table")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="Hydra overrides")
