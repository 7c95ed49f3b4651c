"""Shared by the commands that sample: their configuration, the folder they write to, what is
watched and recorded."""

from __future__ import annotations

import argparse
import inspect
import platform
import re
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from invdiff.config import PROMPTS, compose, protocols
from invdiff.device import choose_device, peak_memory_mb
from invdiff.loading.model import is_registered, load_model
from invdiff.network import Denoiser
from invdiff.network.selfcheck import self_check
from invdiff.plugins.registry import UnknownNameError, call, list_plugins, load
from invdiff.sampling import Progress
from invdiff.solving import Restoration
from invdiff.solving.cascade import Upscaler, make_upscaler
from invdiff.solving.ranges import from_range
from invdiff.solving.run import MOST

GIF_FRAMES = 60
HINT_AFTER = 2.0
"""Seconds after which a self-check says that it is running."""
READING = {"predicts", "schedule", "data_range"}


def sides(text: str | None) -> tuple[int, int] | None:
    """Height and width by ``--size``, ``64`` or ``96x64``."""
    if text is None:
        return None
    found = text.split("x")
    if len(found) > 2 or not all(re.fullmatch("0*[1-9][0-9]{0,4}", side) for side in found):
        raise ValueError(
            "--size is a number of pixels, 64, or HEIGHTxWIDTH, 96x64, each below 100,000; got "
            f"{text[:40]!r}"
        )
    return int(found[0]), int(found[-1])


def place_label(
    config: dict[str, Any], denoiser: Denoiser, label: int | list[int] | None
) -> dict[str, Any]:
    """The configuration with a label, or one for each image, at every method that takes one; where
    none does, as a condition of the network itself, under ``cond``."""
    if label is None:
        return config
    for key in ("prompt", "image_prompt"):
        if config[key] is not None:
            flag = f"--{key.replace('_', '-')}"
            raise ValueError(f"{flag} and --label both say what the images show; give one of them")
    takes = [
        "label" in inspect.signature(load("guidance", node["name"])).parameters
        for node in config["guidance"]
    ]
    if any(takes):
        guidance = [
            g | {"label": label} if t else g for g, t in zip(config["guidance"], takes, strict=True)
        ]
        return config | {"guidance": guidance}
    denoiser.labels(label, len(label) if isinstance(label, list) else 1)  # raises
    return config | {"cond": config["cond"] | {"label": label}}


def configure(
    args: argparse.Namespace, operator: str | None, methods: Sequence[str], preset: str
) -> dict[str, Any]:
    """The composed configuration of a command: presets, overrides and, above them, flags.

    Raises:
        ValueError: unknown names, and what :func:`~invdiff.config.compose` refuses.
    """
    for kind, name in [("operators", n) for n in [operator] if n] + [
        ("guidance", n) for n in methods
    ]:
        others = protocols() if kind == "operators" else {}
        if name not in (*list_plugins(kind), *others):
            try:
                load(kind, name)  # raises, with the names that are known
            except UnknownNameError as error:
                raise UnknownNameError(
                    f"{error}{' Protocols: ' + ', '.join(others) + '.' if others else ''}"
                ) from None
    flags = {
        key: getattr(args, key, None)
        for key in ("steps", "sigma", "seed", "num_samples", "batch_size")
    }
    config = compose(
        operator,
        methods,
        args.model,
        preset,
        args.overrides + [f"{k}={v}" for k, v in flags.items() if v is not None],
    )
    shown = {key: getattr(args, key, None) for key in PROMPTS}
    config |= {key: value for key, value in shown.items() if value is not None}
    if args.upscale is not None:
        config["upscale"] = {"name": args.upscale} | (config["upscale"] or {})
    elif config["upscale"] is not None:
        raise ValueError(
            f"upscale.{next(iter(config['upscale']))}=... says how to upscale, but nothing "
            "is upscaled; add --upscale sr3"
        )
    return config


def check_numbers(config: dict[str, Any], kinds: dict[str, tuple[type, ...]]) -> None:
    """Refuses values that are not of the types asked for, and a batch size that is neither a number
    nor auto."""
    sigma = config.get("sigma")
    if isinstance(sigma, int | float) and not isinstance(sigma, bool) and 2 < sigma <= 255:
        raise ValueError(
            f"sigma is in units of [0, 1], got {sigma:g}; did you mean {sigma:g}/255 = "
            f"{sigma / 255:.3f}?"
        )
    for key, types in kinds.items():
        if not isinstance(config[key], types) or isinstance(config[key], bool):
            raise ValueError(
                f"{key} must be a{' whole' if float not in types else ''} number, got "
                f"{config[key]!r}"
            )
    if config["num_samples"] > MOST:
        raise ValueError(f"num_samples must be at most {MOST:,}, got {config['num_samples']:.3g}")
    if config["batch_size"] != "auto" and (
        not isinstance(config["batch_size"], int) or config["batch_size"] < 1
    ):
        raise ValueError(
            f"batch_size must be a whole number of at least 1 or auto, got {config['batch_size']!r}"
        )


def batch_size(config: dict[str, Any]) -> int | None:
    """As :func:`invdiff.solve` takes it."""
    return None if config["batch_size"] == "auto" else config["batch_size"]


def model_options(config: dict[str, Any]) -> dict[str, Any]:
    """The options of the model in a configuration; that its code may run is said by a flag alone,
    never by a file or an override."""
    options = {k: v for k, v in config["model"].items() if k != "name"}
    if "allow_pickle" in options:
        raise ValueError("model.allow_pickle is not taken from a configuration; use --allow-pickle")
    return options


def check_reading(args: argparse.Namespace, config: dict[str, Any], denoiser: Denoiser) -> None:
    """Warns where a model seems to be read wrongly. Models that are registered are trusted, unless
    they are read otherwise here."""
    told = READING & config["model"].keys()
    if not args.no_check and (told or not is_registered(args.model)):
        for found in checked(denoiser, quiet=args.quiet):
            warnings.warn(f"{found} (--no-check skips this check)", stacklevel=2)


def checked(denoiser: Denoiser, quiet: bool = False) -> list[str]:
    """:func:`~invdiff.network.selfcheck.self_check`, which says on stderr what it does if that
    takes a while."""
    text = (
        f"checking how {denoiser.name} is read: about 60 evaluations of a small image "
        "(--no-check skips this)"
    )
    timer = threading.Timer(HINT_AFTER, print, (text,), {"file": sys.stderr})
    timer.daemon = True
    if not quiet:
        timer.start()
    try:
        return self_check(denoiser)
    finally:
        timer.cancel()


def load_models(
    args: argparse.Namespace, config: dict[str, Any], loaded: Denoiser | None = None
) -> tuple[Denoiser, Upscaler | None]:
    """The network, unless it was loaded already, and what enlarges its images if that is asked for;
    whether the two fit is checked."""
    device, dtype = choose_device(args.device), getattr(torch, args.dtype)
    options = model_options(config)
    if loaded is None:
        denoiser = load_model(args.model, allow_pickle=args.allow_pickle, dtype=dtype, **options)
        denoiser = denoiser.to(device)
    else:
        denoiser = loaded
    if config["upscale"] is None:
        return denoiser, None
    parameters = {k: v for k, v in config["upscale"].items() if k != "name"}
    name = config["upscale"]["name"]
    upscaler = call(
        partial(make_upscaler, name, dtype=dtype, device=device), f"upscale {name!r}", parameters
    )
    if denoiser.channels is not None:
        size = (
            denoiser.image_size or 64
        )  # any will do: channels, factor and method are what may not fit
        upscaler.check((denoiser.channels, size, size))
    return denoiser, upscaler


def is_spread(args: argparse.Namespace) -> bool:
    """Whether a command is asked to run in several processes."""
    return args.workers is not None or bool(args.launcher or args.launcher_option)


@dataclass
class Watch:
    """A callback that keeps what some of the chains went through, and hands on chains that are
    finished.

    Args:
        denoiser: whose range the states are in.
        positions: which chains are kept, counted in the order in which they are sampled.
        with_states: keep their states as well as their estimates.
        count: about how many of their steps are kept.
        finished: called with the final images (n, C, H, W) in [0, 1], on the CPU, of every batch
            and the position of the first.
        estimates, states: of each position, by step, (C, H, W) in [0, 1]: the estimate x0, and the
            state after the step.
    """

    denoiser: Denoiser
    positions: Sequence[int] = ()
    with_states: bool = False
    count: int = GIF_FRAMES
    finished: Callable[[Tensor, int], Any] | None = None
    estimates: dict[int, dict[int, Tensor]] = field(default_factory=dict)
    states: dict[int, dict[int, Tensor]] = field(default_factory=dict)
    done: int = 0

    def __call__(self, p: Progress) -> None:
        if p.x0 is not None and p.index % max(1, p.count // self.count) == 0:
            for position in self.positions:
                row = position - self.done
                if (
                    0 <= row < len(p.x)
                ):  # by step, so that one repeated after running out of memory is there once
                    self.estimates.setdefault(position, {})[p.index] = self._picture(p.x0[[row]])
                    if self.with_states:
                        self.states.setdefault(position, {})[p.index] = self._picture(p.x[[row]])
        if p.index + 1 == p.count:
            x = from_range(self.denoiser, p.x).cpu()
            if self.finished is not None and bool(
                x.isfinite().all()
            ):  # else the loop is about to say what went wrong
                self.finished(x, self.done)
            self.done += len(x)

    def _picture(self, x: Tensor) -> Tensor:
        return from_range(self.denoiser, x)[0].clamp(0, 1).cpu()


def record_of(
    result: Restoration, config: dict[str, Any], denoiser: Denoiser, weights: str | None
) -> dict[str, Any]:
    """The part that every result.json has: what was run, with what, and what it cost; ``weights``
    is the hash of the network's."""
    return {
        "config": config,
        "run": result.config,
        "nfe": result.nfe,
        "nbe": result.nbe,
        "seconds": round(result.seconds, 3),
        "peak_memory_mb": peak_memory_mb(denoiser.device),
        "device": str(denoiser.device),
        "weights": weights,
        "versions": {p: version(p) for p in ("invdiff", "torch", "diffusers", "deepinv")}
        | {"python": platform.python_version()},
    }
