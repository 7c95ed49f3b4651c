"""Arguments of ``invdiff solve``."""

from __future__ import annotations

import argparse

from invdiff.commands.arguments import groups


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to the subparsers."""
    parser = commands.add_parser(
        "solve",
        help="restore images",
        description="Restores photographs: simulates a measurement of each input (or takes "
        "--measurement) and samples the posterior.",
        epilog=groups.EPILOG.format("guidance.zeta=0.5  operator.mask=box"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("what")
    what.add_argument(
        "--operator",
        help="how the image was degraded (default: inpaint); see `invdiff list operators` and, "
        "for the literature's problems, `list protocols`; or a file of invdiff calibrate",
    )
    groups.what(
        what, "how it is restored (default: what was measured to be best within the --budget)"
    )
    what.add_argument(
        "--budget",
        metavar="fast|good|best|N",
        help="without --method: about how many evaluations of the network an image may cost, "
        "20, 100, 1000 or N (default: good)",
    )
    what.add_argument(
        "--label",
        type=int,
        help="the class of the images, for networks and methods that have classes",
    )
    groups.prompt(what)
    what.add_argument(
        "--preset",
        default="auto",
        help="auto: the values tuned for this model, if any; paper: as published; none",
    )
    what.add_argument(
        "--tune",
        type=int,
        metavar="N",
        help="first search the method's values in N short runs on the first image, without its "
        "truth: what is held out of the measurement is predicted",
    )
    data = parser.add_argument_group("images")
    data.add_argument(
        "--input",
        help="clean image, folder or glob to degrade and restore; without it, a photograph of "
        "scikit-image",
    )
    data.add_argument(
        "--measurement",
        help="an image that IS degraded, or a measurement saved by invdiff (.safetensors): "
        "nothing is simulated",
    )
    data.add_argument("--mask", help="inpaint: mask file")
    data.add_argument(
        "--mask-keep",
        choices=("white", "black"),
        help="inpaint: which colour of the mask file marks known pixels (default: white)",
    )
    data.add_argument(
        "--mask-grow",
        type=int,
        metavar="N",
        help="inpaint: enlarge what is missing by N pixels, for damage beyond its mask",
    )
    groups.scans(data)
    groups.size(data)
    groups.output(data, "invdiff-OPERATOR-METHOD")
    run = parser.add_argument_group("run")
    run.add_argument(
        "--sigma",
        type=groups.number_or_auto,
        help="noise of the measurement, in units of [0, 1] (default: 0.025); auto estimates that "
        "of a --measurement",
    )
    run.add_argument(
        "--image-id",
        type=int,
        metavar="K",
        help="the number that, with the seed, the noise of the first image is derived from, K + 1 "
        "of the second, ... (default: one made from the name of each file)",
    )
    run.add_argument(
        "--num-samples",
        type=int,
        help="samples per image (default: 1); restored.png is the first, more than one adds "
        "mean and standard deviation maps",
    )
    groups.run(
        run, steps="the preset's, else 100", seed="of the measurement noise and of the sampling"
    )
    where = parser.add_argument_group("several images")
    groups.launching(where, "images", "this process alone, which restores equal sizes as one batch")
    groups.show(parser, gif="also write the estimates of the first sample as trajectory.gif")
