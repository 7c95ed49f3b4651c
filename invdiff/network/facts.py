"""The facts about a Denoiser, as plain data."""

from __future__ import annotations

from typing import Any

import torch

from invdiff.network.denoiser import Denoiser
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
    side = "after" if denoiser.cond_last or denoiser.facts.cond_last else "before"
    return f"{denoiser.cond_channels} channels {side} the state's"
