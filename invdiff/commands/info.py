"""``invdiff info MODEL``: what was recognised in a checkpoint."""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch

from invdiff.commands.common import checked, model_options
from invdiff.config.compose import compose
from invdiff.loading.model import is_registered, load_model
from invdiff.network import Denoiser
from invdiff.network.selfcheck import why_unchecked
from invdiff.schedules import Discrete


def describe_model(denoiser: Denoiser) -> dict[str, Any]:
    """The facts about a Denoiser, as plain data."""
    schedule = denoiser.schedule
    parameters = (
        (sum(p.numel() for p in denoiser.net.parameters()) or None)
        if isinstance(denoiser.net, torch.nn.Module)
        else None
    )
    source = denoiser.source
    return {
        "name": denoiser.name,
        **{k: v for k, v in source.items() if k not in ("needs", "storage")},
        "predicts": denoiser.predicts,
        "schedule": type(schedule).__name__
        + (f", {schedule.T} levels" if isinstance(schedule, Discrete) else ""),
        "spacing": schedule.spacing,
        "sigma/alpha": [
            round(float(schedule(t).ratio), 5) for t in (schedule.t_min, schedule.t_max)
        ],
        "data range": denoiser.image_range,
        "clips x0": denoiser.clip,
        "learned variance": denoiser.learned_variance,
        "channels": denoiser.channels,
        "trained at": denoiser.image_size,
        "sides are padded to multiples of": denoiser.multiple,
        "classes": denoiser.num_classes,
        "null label": denoiser.null_label,
        "classifier": None
        if denoiser.classifier is None
        else "noise-aware, for classifier guidance",
        "image condition": _image_condition(denoiser),
        "conditions it needs": source.get("needs"),
        "parameters": parameters,
        "stored as": source.get("storage"),
        "SHA-256 of the weights": denoiser.hash,
    }


def _image_condition(denoiser: Denoiser) -> str | None:
    if denoiser.cond_channels is None:
        return None
    last = getattr(denoiser.net, "cond_last", 0) or getattr(denoiser.net, "image_last", 0)
    return f"{denoiser.cond_channels} channels {'after' if last else 'before'} the state's"


def run(args: argparse.Namespace) -> None:
    """Prints the description as lines or JSON, and what the self-check finds."""
    if other := [o for o in args.overrides if not o.startswith("model.")]:
        raise ValueError(
            f"info takes what concerns the model only, model.key=value, got {other[0]!r}"
        )
    config = (
        compose(None, ["none"], args.model, "none", args.overrides)
        if args.overrides
        else {"model": {}}
    )
    denoiser = load_model(args.model, allow_pickle=args.allow_pickle, **model_options(config))
    facts = describe_model(denoiser)
    if args.no_check:
        facts["reading"] = "not checked (--no-check)"
    elif is_registered(args.model) and not args.overrides:
        facts["reading"] = "as its package registers it"
    elif why := why_unchecked(denoiser):
        facts["reading"] = f"not checked: {why}"
    else:
        facts["reading"] = (
            "; ".join(f"WARNING: {found}" for found in checked(denoiser))
            or "OK: the self-check found nothing wrong"
        )
    if args.json:
        print(json.dumps(facts, indent=2))
        return
    width = max(map(len, facts))
    for key, value in facts.items():
        print(f"{key:{width}}  {value}")
