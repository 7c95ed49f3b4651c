"""Arguments of ``invdiff tune``."""

from __future__ import annotations

import argparse

from invdiff.commands.arguments import groups


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to the subparsers."""
    parser = commands.add_parser(
        "tune",
        help="find a method's values for your network and operator",
        description="Searches the parameters of a method on a few images, by Optuna, and writes a "
        "preset, which solve --preset FILE and bench preset=FILE take. The same command goes on "
        "with the search.",
        epilog=groups.EPILOG.format("operator.sigma=1.5"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("what")
    what.add_argument("--operator", required=True, help="how the images are degraded")
    repeated = "repeat for several, one after the other"
    groups.what(what, "whose values are searched", repeated=repeated)
    what.add_argument(
        "--after",
        action="append",
        default=[],
        metavar="METHOD",
        help="a method that is nearer to the network in a chain, e.g. cfg; it keeps its values",
    )
    what.add_argument("--label", type=int, help="the class of the images")
    groups.prompt(what)
    what.add_argument("--trials", type=int, default=30, help="of each method (default: 30)")
    what.add_argument(
        "--objective",
        help="lpips or psnr, against the truth, or measurement, which needs none: what was held "
        "out of it is predicted (default: lpips for --input, measurement for --measurement)",
    )
    what.add_argument(
        "--budget", type=float, metavar="N", help="evaluations per image, instead of --steps"
    )
    data = parser.add_argument_group("images")
    data.add_argument("--input", help="clean image, folder or glob, to degrade and restore")
    data.add_argument("--measurement", help="images that ARE degraded, a folder or glob")
    data.add_argument("--mask", help="inpaint: mask file")
    groups.scans(data)
    groups.size(data)
    data.add_argument("--limit", type=int, default=8, help="use the first so many (default: 8)")
    data.add_argument("--output", help="folder of the presets (default: invdiff-tune-OPERATOR)")
    run = parser.add_argument_group("run")
    run.add_argument("--sigma", type=float, help="noise of the measurements, in units of [0, 1]")
    groups.run(run, steps="the preset's, else 100", seed="of the noise and of the search")
    parser.add_argument("--quiet", action="store_true", help="no progress and no summary")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="Hydra overrides")
