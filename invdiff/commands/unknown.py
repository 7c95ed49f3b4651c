"""What ``solve`` estimates of an operator along with the image, and candidates for a parameter of
it."""

from __future__ import annotations

import argparse
import inspect
import itertools
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from invdiff import images
from invdiff.benchmarks import tuning
from invdiff.commands.common import place_label
from invdiff.commands.jobs import Job, measure
from invdiff.config import build_method, build_operator, override_value
from invdiff.config.conditions import condition
from invdiff.files import write_array
from invdiff.network import Denoiser
from invdiff.plugins.registry import load
from invdiff.problem import Measurement
from invdiff.solving import Restoration, solve

SIDE = 120
"""Pixels that the picture of a kernel has at least."""


def known(measurement: Measurement, result: Restoration) -> Measurement:
    """The measurement of one image with the operator that was estimated along with it."""
    operator = measurement.operator
    values = {name: result.estimate(name)[0][0] for name in operator.unknown}
    return replace(measurement, operator=operator.estimated(values))


def write_estimates(folder: Path, result: Restoration) -> dict[str, Any]:
    """Writes NAME.npy, NAME_std.npy and, of what is a picture, NAME.png for everything that was
    estimated; returns what the record says of it."""
    said = {}
    for name in result.unknown:
        mean, std = (v[0].squeeze().cpu().double() for v in result.estimate(name))
        write_array(folder / f"{name}.npy", mean)
        write_array(folder / f"{name}_std.npy", std)
        if mean.ndim == 2:
            images.write_image(folder / f"{name}.png", picture(mean))
        said[name] = {
            "shape": list(mean.shape),
            "relative_std": round(float(std.norm() / mean.norm()), 4),
            "late_steps": len(result.unknown[name]),
            "samples": result.unknown[name].shape[1],
        }
    return said


def picture(kernel: Tensor) -> Tensor:
    """A kernel (k, l) as a picture (1, H, W), its largest value white."""
    factor = -(-SIDE // max(kernel.shape))
    shown = (kernel / kernel.max()).clamp(0, 1).float()[None, None]
    return F.interpolate(shown, scale_factor=factor, mode="nearest")[0]


def of_operator_file(args: argparse.Namespace) -> argparse.Namespace:
    """The arguments with what a file given as ``--operator FILE`` says, such as ``invdiff
    calibrate`` writes, in its place; overrides come after it.

    Raises:
        ValueError: the file names no operator.
    """
    if args.operator is None or not args.operator.endswith((".yaml", ".yml")):
        return args
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        node: Any = OmegaConf.to_container(OmegaConf.load(args.operator), resolve=True)
    except (OSError, YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"{args.operator} cannot be read as an operator: {error}") from error
    if not isinstance(node, dict) or not isinstance(node.get("name"), str):
        raise ValueError(f"{args.operator} names no operator: it needs a line such as name: blur")
    said = [f"operator.{k}={override_value(v)}" for k, v in node.items() if k != "name"]
    given = {"operator": node["name"], "overrides": said + args.overrides}
    return argparse.Namespace(**vars(args) | given)


def candidates(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The operators of a configuration in which numbers are lists, such as ``operator.sigma=[1, 2,
    3]``, with one value of each; none where no number is."""
    node = config["operator"]
    defaults = inspect.signature(load("operators", node["name"])).parameters
    listed = [
        name
        for name, value in node.items()
        if isinstance(value, list)
        and name in defaults
        and isinstance(defaults[name].default, int | float)
    ]
    if any(not node[name] for name in listed):
        raise ValueError(f"operator.{listed[0]}=[] lists no value to try")
    values = itertools.product(*(node[name] for name in listed))
    return [node | dict(zip(listed, v, strict=True)) for v in values] if listed else []


def fitting(
    args: argparse.Namespace, config: dict[str, Any], job: Job, denoiser: Denoiser
) -> dict[str, Any]:
    """The configuration with the candidate whose restoration of the first image predicts best what
    is held out of the measurement.

    Raises:
        ValueError: the image is not a measurement, so that nothing is to be found out.
    """
    tried = candidates(config)
    if not tried:
        return config
    if not job.degraded:
        raise ValueError(
            "several values of the operator are tried on what was measured: give --measurement "
            "FILE, or one value to simulate with"
        )
    names = [n for n in tried[0] if any(t[n] != tried[0][n] for t in tried)] or ["sigma"]
    losses = []
    conditioned = condition(place_label(config, denoiser, args.label), denoiser)
    for node in tried:
        made = conditioned | {"operator": node}
        operator = build_operator(made)
        measurement, _ = measure(job, operator, made, denoiser)
        (problem,) = tuning.problems([(measurement, None)], [job.id], "measurement", config["seed"])
        result = solve(
            problem.given,
            denoiser,
            build_method(made),
            steps=config["steps"],
            seed=config["seed"],
            image_ids=problem.ids,
            **made["cond"],
        )
        losses.append(float(problem.loss(result.x)[0]))
    best = min(range(len(tried)), key=losses.__getitem__)
    if not args.quiet:
        for node, loss in zip(tried, losses, strict=True):
            said = ", ".join(f"operator.{n}={node[n]}" for n in names)
            mark = "  <- fits best" if node is tried[best] else ""
            print(f"{said}: predicts what is held out to {loss:.6g}{mark}", file=sys.stderr)
    return config | {"operator": tried[best]}
