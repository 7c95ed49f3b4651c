"""Arguments of ``invdiff generate``."""

from __future__ import annotations

import argparse

from invdiff.commands.arguments import groups


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to the subparsers."""
    parser = commands.add_parser(
        "generate",
        help="sample new images",
        description="Samples images from a network's prior, of a class if --label names one.",
        epilog=groups.EPILOG.format("guidance.w=4"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("what")
    groups.what(
        what,
        "how samples are guided (default: cfg with --label or --prompt, else none)",
        model="digits32",
    )
    what.add_argument(
        "--label",
        help="a class, several (3,5,7) or all: a row of the grid for each, the samples of a "
        "column share their noise",
    )
    groups.prompt(what)
    images = parser.add_argument_group("images")
    images.add_argument("--num-samples", type=int, help="how many, of each label (default: 16)")
    images.add_argument(
        "--size",
        metavar="HxW",
        help="64, or HEIGHTxWIDTH (default: what the network was trained on)",
    )
    images.add_argument(
        "--interpolate",
        type=int,
        metavar="SEED",
        help="walk from the noise of --seed to that of SEED in --num-samples images; "
        "deterministic transitions only (default: ddim)",
    )
    groups.output(images, "invdiff-generate-METHOD")
    run = parser.add_argument_group("run")
    groups.run(run, steps="100", seed="of the sampling")
    groups.launching(run, "samples", "all in this process; with --launcher local, one for each GPU")
    show = groups.show(
        parser,
        gif="also write trajectory.gif, of the first sample; with --interpolate, the walk as "
        "interpolation.gif",
    )
    show.add_argument(
        "--trajectory",
        action="store_true",
        help="also write trajectory.png: how the first samples came about",
    )
