"""What a run of ``solve`` is asked for: the problem, the configuration, and all of it as plain
data."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from invdiff.commands.common import check_numbers, configure
from invdiff.commands.jobs import Job
from invdiff.files import sha256
from invdiff.network import Denoiser
from invdiff.plugins.registry import name_of
from invdiff.problem import Measurement


def problem_of(args: argparse.Namespace, saved: Measurement | None) -> str:
    """The operator that is asked for or that a saved measurement has; inpainting where there is a
    mask or where nothing is asked.

    Raises:
        ValueError: what is degraded already, but not how.
    """
    if saved is not None:
        return name_of("operators", saved.operator)
    if args.operator is not None:
        return str(args.operator)
    if args.measurement is not None and args.mask is None:
        raise ValueError(
            f"say what is wrong with {args.measurement}: --mask FILE for damage or missing parts, "
            "or --operator blur, sr (too small), denoise, jpeg, colorize (grey), ...; invdiff list "
            "operators has them all"
        )
    return "inpaint"


def configuration(args: argparse.Namespace, saved: Measurement | None) -> dict[str, Any]:
    """The composed configuration: presets, flags and overrides."""
    operator = problem_of(args, saved)
    config = configure(args, operator, args.method, args.preset)
    for flag, key in (
        (args.mask, "mask"),
        (args.mask_keep, "keep"),
        (args.mask_grow, "grow"),
    ):
        if flag is not None:
            config["operator"][key] = flag
    if saved is not None:
        described = saved.describe()
        config |= {
            "operator": {"name": operator, **described["parameters"]},
            "sigma": described["sigma"],
            "gain": None,
        }
    kinds: dict[str, tuple[type, ...]] = {"steps": (int,), "seed": (int,), "num_samples": (int,)}
    kinds |= {} if saved else {"sigma": (int, float), "gain": (int, float)}
    if config["sigma"] == "auto":
        if args.measurement is None:
            raise ValueError("--sigma auto estimates the noise of a --measurement; give a number")
        del kinds["sigma"]
    check_numbers(config, kinds)
    return config


def request_of(
    args: argparse.Namespace, config: dict[str, Any], denoiser: Denoiser, jobs: Sequence[Job]
) -> dict[str, Any]:
    """The request as plain data; the same again goes on where it was stopped. Of files that the
    operator and the methods are made from, such as masks and kernels, the content counts."""
    made_from = [config[key] for key in ("operator", "guidance")] + [config["image_prompt"]]
    asked = {
        "invdiff": version("invdiff"),
        "config": config,
        "files": dict(files_in(made_from)),
        "weights": denoiser.hash,
        "inputs": {job.name: job.source | {"id": job.id} for job in jobs},
        "gif": args.gif,
    }
    return json.loads(json.dumps(asked, default=str))


def files_in(node: Any) -> Iterator[tuple[str, str]]:
    """Every file that is named in a configuration, and its SHA-256."""
    if isinstance(node, Mapping | list):
        for value in node.values() if isinstance(node, Mapping) else node:
            yield from files_in(value)
    elif isinstance(node, str | Path) and os.path.isfile(path := os.path.expanduser(node)):
        yield str(node), sha256(Path(path))  # a text too long for a name is no file, and no error
