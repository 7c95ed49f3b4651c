"""The command line. Only the standard library is imported here, so help and listings answer at
once."""

from __future__ import annotations

import argparse
import errno
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from invdiff.commands.list import LISTED
from invdiff.commands.new_plugin import GROUPS

EPILOG = """
Everything else is set by Hydra overrides, key=value:
  {}  transition=heun  itinerary=jumps  model.channels_last=true
What there is to set: invdiff list guidance dps, list operators inpaint, list transitions heun;
in a chain guidance.dps.zeta=0.5.
"""

MODEL = (
    "a registered name, a diffusers folder, a file (.safetensors, .pt, .onnx, ...) or a model "
    "of the hub, owner/name"
)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def number_or_auto(text: str) -> float | str:
    return text if text == "auto" else float(text)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="invdiff",
        description="Any diffusion network, any forward operator, any guidance method.",
    )
    parser.add_argument("--version", action="store_true", help="print the version and stop")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    solve = commands.add_parser(
        "solve",
        help="restore images",
        description="Restores photographs: simulates a measurement of each input (or takes "
        "--measurement) and samples the posterior.",
        epilog=EPILOG.format("guidance.zeta=0.5  operator.mask=box"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = solve.add_argument_group("what")
    what.add_argument(
        "--operator",
        help="how the image was degraded (default: inpaint); see `invdiff list operators` and, "
        "for the literature's problems, `list protocols`",
    )
    _what(what, "how it is restored (default: dps)", model="photo64")
    what.add_argument(
        "--label",
        type=int,
        help="the class of the images, for networks and methods that have classes",
    )
    _prompt(what)
    what.add_argument(
        "--preset",
        default="auto",
        help="auto: the values tuned for this model, if any; paper: as published; none",
    )
    data = solve.add_argument_group("images")
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
    _output(data, "invdiff-OPERATOR-METHOD")
    run = solve.add_argument_group("run")
    run.add_argument(
        "--sigma",
        type=number_or_auto,
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
    _run(run, steps="the preset's, else 100", seed="of the measurement noise and of the sampling")
    _show(solve, gif="also write the estimates of the first sample as trajectory.gif")

    generate = commands.add_parser(
        "generate",
        help="sample new images",
        description="Samples images from a network's prior, of a class if --label names one.",
        epilog=EPILOG.format("guidance.w=4"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = generate.add_argument_group("what")
    _what(
        what,
        "how samples are guided (default: cfg with --label or --prompt, else none)",
        model="digits32",
    )
    what.add_argument(
        "--label",
        help="a class, several (3,5,7) or all: a row of the grid for each, the samples of a "
        "column share their noise",
    )
    _prompt(what)
    images = generate.add_argument_group("images")
    images.add_argument("--num-samples", type=int, help="how many, of each label (default: 16)")
    images.add_argument(
        "--size", help="64, or HEIGHTxWIDTH (default: what the network was trained on)"
    )
    images.add_argument(
        "--interpolate",
        type=int,
        metavar="SEED",
        help="walk from the noise of --seed to that of SEED in --num-samples images; "
        "deterministic transitions only (default: ddim)",
    )
    _output(images, "invdiff-generate-METHOD")
    _run(generate.add_argument_group("run"), steps="100", seed="of the sampling")
    show = _show(
        generate,
        gif="also write trajectory.gif, of the first sample; with --interpolate, the walk as "
        "interpolation.gif",
    )
    show.add_argument(
        "--trajectory",
        action="store_true",
        help="also write trajectory.png: how the first samples came about",
    )

    bench = commands.add_parser(
        "bench",
        help="measure methods",
        description="Runs a grid: operators x methods x models x images x seeds, of a suite of "
        "configs/suite. What is finished is kept; the same command goes on from "
        "there.",
        epilog="Hydra overrides change the suite:\n  methods.dps.zeta=[0.3,1,3]  "
        "operators.sr.factor=2  images.limit=10",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    bench.add_argument(
        "--suite",
        default="quick",
        help="what is measured (default: quick); see `invdiff list suites`",
    )
    bench.add_argument(
        "--reproduce",
        metavar="RECORD",
        help="instead: evaluate the cell of one record (.json), or of some of a folder, again and "
        "compare; --input says where the images are",
    )
    bench.add_argument(
        "--sample",
        type=int,
        metavar="N",
        help="how many records of a folder are reproduced, chosen at random (default: 5)",
    )
    grid = bench.add_argument_group(
        "grid (repeat for several; only these, of the suite or new; with --method alone no "
        "baselines, and the reverse)"
    )
    grid.add_argument("--operator", action="append", help="operator or protocol")
    grid.add_argument("--method", action="append", help="method; values by methods.NAME.key=value")
    grid.add_argument(
        "--baseline", action="append", help="classical restoration, or a peer of another package"
    )
    grid.add_argument("--model", action="append", help=MODEL)
    data = bench.add_argument_group("images and values")
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
    where = bench.add_argument_group("where")
    where.add_argument(
        "--launcher",
        default="local",
        help="where cells run, e.g. ray or submitit; see `invdiff list launchers` (default: local)",
    )
    where.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="how many at the same time (default: the launcher's; local: one, or one for each GPU)",
    )
    where.add_argument(
        "--launcher-option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of the launcher, e.g. threads=4, address=auto or slurm_partition=gpu",
    )
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
    bench.add_argument("overrides", nargs="*", metavar="key=value", help="Hydra overrides")

    board = commands.add_parser(
        "leaderboard",
        help="compare what was measured",
        usage="invdiff leaderboard [validate | merge | publish | diff] FOLDER ... [options]",
        description="Tables of the records that bench wrote, from one or many folders. validate "
        "checks every record against the schema, its cell and its pictures; merge "
        "copies records and pictures into the folder --output; publish writes a static site of a "
        "board for each folder; diff compares every row of two folders, A and B, and fails where "
        "B is worse.",
    )
    board.add_argument("folders", nargs="+", metavar="FOLDER", help="with records, in it or below")
    board.add_argument(
        "--format",
        choices=("markdown", "csv", "json", "latex", "html"),
        help="of the tables (default: markdown)",
    )
    board.add_argument(
        "--output",
        metavar="FILE|-",
        help="where they go (default: -, printed); of merge and publish, a folder",
    )
    board.add_argument(
        "--overwrite", action="store_true", help="replace a file that no leaderboard wrote"
    )
    board.add_argument(
        "--baseline", metavar="LABEL", help="compare every row with this one, image by image"
    )
    board.add_argument(
        "--benchmark", metavar="HASH", help="only the benchmark whose hash begins so"
    )
    board.add_argument(
        "--metric",
        action="append",
        metavar="NAME",
        help="only these metrics, in this order; repeat for several",
    )
    board.add_argument(
        "--set-score",
        action="append",
        choices=("fid", "kid", "is"),
        help="also of the restorations as a set; needs invdiff[fid] and the weights",
    )
    board.add_argument(
        "--weights",
        metavar="FILE",
        help="of InceptionV3, for --set-score (default: where torch-fidelity keeps them)",
    )
    board.add_argument(
        "--pictures",
        type=int,
        metavar="N",
        help="html, publish and --figure: images that are shown, the first N (default: 12, all, 4)",
    )
    board.add_argument(
        "--figure",
        metavar="FILE.pdf",
        help="draw pictures with insets, and quality against cost; needs invdiff[plot]",
    )

    listing = commands.add_parser(
        "list",
        help="list what is installed, and the parameters of one",
        description="Lists what is installed and where it comes from; with a name, what that is, "
        "needs and takes: invdiff list guidance dps",
    )
    listing.add_argument(
        "kind",
        nargs="?",
        choices=LISTED,
        metavar="KIND",
        help=f"one of {', '.join(LISTED)}; guidance are the methods",
    )
    listing.add_argument("name", nargs="?", metavar="NAME", help="of one of that kind")
    listing.add_argument("--json", action="store_true")

    info = commands.add_parser(
        "info",
        help="what is known about a model",
        description="Prints what was recognised in a model, and whether it denoises a photograph "
        "as if it were read rightly.",
    )
    info.add_argument("model", help=MODEL)
    _trust(info)
    info.add_argument("--json", action="store_true")
    info.add_argument(
        "overrides",
        nargs="*",
        metavar="model.key=value",
        help="what the model does not say, e.g. model.predicts=v",
    )

    cite = commands.add_parser(
        "cite",
        help="print what to cite of a result",
        description="Prints the BibTeX of every method, operator and metric that results were made "
        "with.",
    )
    cite.add_argument(
        "results", nargs="+", metavar="FILE", help="result.json of solve, or a record of bench"
    )

    check = commands.add_parser(
        "check",
        help="check plug-ins",
        description="Runs the plug-in kit on an installed plug-in, or on all those of a package, "
        "and prints what each check saw.",
    )
    check.add_argument("name", help="of a plug-in of any kind, or of a package")
    check.add_argument("--json", action="store_true", help="print the reports as JSON on stdout")

    new = commands.add_parser(
        "new-plugin",
        help="start a package with a plug-in",
        description="Writes a package with a plug-in that works: entry point, module, "
        "configuration and a test that runs the plug-in kit.",
    )
    new.add_argument("name", help="under which it is registered, e.g. my_method")
    new.add_argument("--kind", required=True, choices=tuple(GROUPS))
    new.add_argument(
        "--output",
        metavar="DIR",
        help="folder of the package, which must not exist (default: invdiff-NAME)",
    )
    return parser


def _what(group: argparse._ArgumentGroup, method: str, model: str) -> None:
    group.add_argument(
        "--method",
        action="append",
        help=f"{method}; repeat for a chain, the first nearest to the network",
    )
    group.add_argument("--model", default=model, help=f"the prior: {MODEL} (default: {model})")
    _trust(group)


def _trust(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--allow-pickle",
        action="store_true",
        help="read pickles, TorchScript and .pt2 files, which can run code: only from who you "
        "trust",
    )
    group.add_argument(
        "--no-check",
        action="store_true",
        help="skip the self-check of a model that is not registered: some 60 evaluations of a "
        "64x64 image",
    )


def _prompt(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--prompt", help="what the images show, for networks that come with a text encoder"
    )
    group.add_argument(
        "--negative-prompt",
        help="what they do not show, for the method cfg (default: the empty prompt)",
    )


def _output(group: argparse._ArgumentGroup, default: str) -> None:
    group.add_argument(
        "--upscale",
        metavar="HOW",
        help="then enlarge by 4: sr3 (a second network), bicubic or lanczos; upscale.factor=...",
    )
    group.add_argument("--output", help=f"folder of the results (default: {default})")
    group.add_argument(
        "--overwrite", action="store_true", help="write into an output folder that is not empty"
    )


def _run(group: argparse._ArgumentGroup, steps: str, seed: str) -> None:
    group.add_argument("--steps", type=int, help=f"levels that are visited (default: {steps})")
    group.add_argument("--seed", type=int, help=f"{seed} (default: 0)")
    group.add_argument(
        "--batch-size", help="chains at once, or auto: all, halved when memory runs out"
    )
    group.add_argument(
        "--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, ... (default: auto)"
    )
    group.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "bfloat16", "float16"),
        help="of the network; states stay in float32",
    )


def _show(parser: argparse.ArgumentParser, gif: str) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("showing")
    group.add_argument("--gif", action="store_true", help=gif)
    group.add_argument("--quiet", action="store_true", help="no progress and no summary")
    group.add_argument("--json", action="store_true", help="print the results as JSON on stdout")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="Hydra overrides")
    return group


def _list(args: argparse.Namespace) -> None:
    from invdiff.commands.list import run

    run(args)


def _solve(args: argparse.Namespace) -> None:
    from invdiff.commands.solve import run

    run(args)


def _generate(args: argparse.Namespace) -> None:
    from invdiff.commands.generate import run

    run(args)


def _bench(args: argparse.Namespace) -> None:
    from invdiff.commands.bench import run

    run(args)


def _leaderboard(args: argparse.Namespace) -> None:
    from invdiff.commands.leaderboard import run

    run(args)


def _cite(args: argparse.Namespace) -> None:
    from invdiff.commands.cite import run

    run(args)


def _info(args: argparse.Namespace) -> None:
    from invdiff.commands.info import run

    run(args)


def _check(args: argparse.Namespace) -> None:
    from invdiff.commands.check import run

    run(args)


def _new_plugin(args: argparse.Namespace) -> None:
    from invdiff.commands.new_plugin import run

    run(args)


COMMANDS = {
    "solve": _solve,
    "generate": _generate,
    "bench": _bench,
    "leaderboard": _leaderboard,
    "list": _list,
    "info": _info,
    "cite": _cite,
    "check": _check,
    "new-plugin": _new_plugin,
}


LONGEST = 600
"""Characters of a message."""


def _said(error: Exception) -> str:
    """An error in one line."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = Path(error.filename).parent if error.filename else Path.cwd()
        return f"no space is left for {where}; what was finished is kept"
    text = " ".join(str(error).split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 5]} ..."


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Returns 0; 2 for what the user can mend, said in one line on stderr; 130 when
    interrupted."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if rest and hasattr(args, "overrides") and not any(r.startswith("-") for r in rest):
        args.overrides += rest  # argparse stops collecting key=value at the first option
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if args.version:
        from importlib.metadata import version

        print(f"invdiff {version('invdiff')}")
        return 0
    if args.command is None:
        parser.print_help()
        return 0
    warnings.simplefilter("ignore", FutureWarning)  # what other packages tell their developers
    warnings.showwarning = lambda message, *_, **__: print(
        f"invdiff: warning: {message}", file=sys.stderr
    )
    for name in ("SIGTERM", "SIGHUP"):  # they end a run as an interrupt does
        if hasattr(signal, name) and threading.current_thread() is threading.main_thread():
            signal.signal(getattr(signal, name), signal.default_int_handler)
    try:
        COMMANDS[args.command](args)
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
    except (ValueError, TypeError, OSError) as error:
        print(f"invdiff {args.command}: error: {_said(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
