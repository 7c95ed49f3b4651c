"""Arguments that several commands have."""

from __future__ import annotations

import argparse

EPILOG = """
Everything else is set by Hydra overrides, key=value:
  {}  transition=heun  itinerary=jumps  model.tile=256
What there is to set: invdiff list guidance dps, list operators inpaint, list transitions heun;
in a chain guidance.dps.zeta=0.5.
"""

MODEL = (
    "a registered name, a diffusers folder, a file (.safetensors, .pt, .onnx, ...), a model of the "
    "hub, owner/name, or a function of your own, mymodel.py:make, whose code runs"
)


def number_or_auto(text: str) -> float | str:
    """The type of ``--sigma``."""
    try:
        return text if text == "auto" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a number or auto, got {text[:40]!r}") from None


def numbers(text: str) -> tuple[float, float]:
    """The type of ``--range``."""
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"two numbers LOW,HIGH, got {text[:40]!r}") from None
    if not -1e30 < low < high < 1e30:
        raise argparse.ArgumentTypeError(f"LOW must be below HIGH, got {text[:40]!r}")
    return low, high


def what(
    group: argparse._ArgumentGroup,
    method: str,
    model: str | None = None,
    repeated: str = "repeat for a chain, the first nearest to the network",
) -> None:
    """Methods and the model."""
    group.add_argument("--method", action="append", help=f"{method}; {repeated}")
    default = model or "photo64, or the one that ships for a method that needs another kind"
    group.add_argument("--model", default=model, help=f"the prior: {MODEL} (default: {default})")
    trust(group)


def trust(group: argparse._ActionsContainer) -> None:
    """Whether files that can run code are read, and whether a model is checked."""
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


def prompt(group: argparse._ArgumentGroup) -> None:
    """Prompts."""
    group.add_argument(
        "--prompt", help="what the images show, for networks that come with a text encoder"
    )
    group.add_argument(
        "--negative-prompt",
        help="what they do not show, for the method cfg (default: the empty prompt)",
    )
    group.add_argument(
        "--image-prompt",
        metavar="FILE",
        help="an image of what they show, for networks with an IP-Adapter "
        "(model.ip_adapter=FILE); beside a --prompt or alone",
    )


def scans(group: argparse._ActionsContainer) -> None:
    """How files of science are read."""
    group.add_argument(
        "--range",
        type=numbers,
        metavar="LOW,HIGH",
        help="values of a file of science (.npy, .tif, .fits, .nii, .dcm, .h5, .mat) that are 0 "
        "and 1 for the network; --range=-1000,3000 (default: what the file declares)",
    )
    group.add_argument(
        "--axes",
        metavar="ZYX",
        help="one letter for each of its dimensions: Y, X, C for channels, others for slices",
    )


def size(group: argparse._ActionsContainer) -> None:
    """How large the image is."""
    group.add_argument(
        "--size",
        metavar="HxW",
        help="of the image, where a --measurement of science does not tell: 256, 320x256",
    )


def output(group: argparse._ArgumentGroup, default: str) -> None:
    """Where results go."""
    group.add_argument(
        "--upscale",
        metavar="HOW",
        help="then enlarge by 4: sr3 (a second network), bicubic or lanczos; upscale.factor=...",
    )
    group.add_argument("--output", help=f"folder of the results (default: {default})")
    group.add_argument(
        "--overwrite", action="store_true", help="write into an output folder that is not empty"
    )


def run(group: argparse._ArgumentGroup, steps: str, seed: str) -> None:
    """The run."""
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


def launching(group: argparse._ArgumentGroup, what: str, default: str) -> None:
    """Where it runs."""
    group.add_argument(
        "--launcher",
        help=f"where {what} run, e.g. ray or submitit; see `invdiff list launchers` (default: "
        "local)",
    )
    group.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help=f"how many at the same time (default: {default})",
    )
    group.add_argument(
        "--launcher-option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of the launcher, e.g. threads=4, address=auto or slurm_partition=gpu",
    )


def show(parser: argparse.ArgumentParser, gif: str) -> argparse._ArgumentGroup:
    """Progress, pictures and output; and the overrides."""
    group = parser.add_argument_group("showing")
    group.add_argument("--gif", action="store_true", help=gif)
    group.add_argument("--quiet", action="store_true", help="no progress and no summary")
    group.add_argument("--json", action="store_true", help="print the results as JSON on stdout")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="Hydra overrides")
    return group
