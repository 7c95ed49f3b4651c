"""What a network is conditioned on, from a configuration."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch

from invdiff.config.run import PROMPTS
from invdiff.images import read_image
from invdiff.network import Denoiser
from invdiff.plugins.registry import load


def condition(config: dict[str, Any], denoiser: Denoiser) -> dict[str, Any]:
    """The configuration with what the network is given, under ``cond``: numbers as tensors with one
    entry for all images, and what it is shown of a prompt and an image. The negative prompt (else
    the null prompt) stands at the methods that compare with one.

    Raises:
        ValueError: numbers that are none, a prompt that the network or the methods do not take.
    """
    config = config | {"cond": {k: _numbers(k, v) for k, v in config.get("cond", {}).items()}}
    prompt, negative, image = (config.get(key) for key in PROMPTS)
    shown: dict[str, Any] = {}
    if image is not None and not isinstance(image, str):
        raise ValueError(f"image_prompt is the file of an image, got {image!r}")
    if image is not None:
        shown = denoiser.conditions_of_image(read_image(image, 3))
        prompt = prompt or ""
    if prompt is None and negative is None:
        return config
    if prompt is None:
        raise ValueError(
            "--negative-prompt says what to move away from, so there must be a --prompt to move to"
        )
    takes = [
        "negative" in inspect.signature(load("guidance", node["name"])).parameters
        for node in config["guidance"]
    ]
    if negative is not None and not any(takes):
        raise ValueError(
            "--negative-prompt is what the method cfg compares with; add --method cfg, "
            "before the other methods"
        )
    if classes := [
        node["negative"] for node in config["guidance"] if node.get("negative") is not None
    ]:
        raise ValueError(
            f"guidance.negative={classes[0]} is a class; with --prompt use --negative-prompt"
        )
    given = denoiser.conditions_of(prompt) | shown
    other = denoiser.negative_of(negative) if any(takes) else None
    if shown:
        other = other and other | denoiser.negative_of_image()
    guidance = [
        g | {"negative": other} if t else g for g, t in zip(config["guidance"], takes, strict=True)
    ]
    return config | {"guidance": guidance, "cond": config["cond"] | given}


def _numbers(name: str, value: Any) -> Any:
    """A condition with one entry; a label, which is a whole number for all images or a list with
    one for each, as it is."""
    if name == "label":
        return value
    numbers = value if isinstance(value, list) else [value]
    if not numbers or not all(
        isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in numbers
    ):
        raise ValueError(f"cond.{name} is a number, or a list of numbers, got {value!r}")
    return torch.tensor([value], dtype=torch.float32)
