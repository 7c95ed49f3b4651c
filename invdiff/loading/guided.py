"""Networks that were distilled with classifier-free guidance and take its scale as a condition:
Flux-dev (``guidance``), latent consistency networks (``timestep_cond``)."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invdiff.loading.folder_files import read_json


def scale_of(folder: Path, config: Mapping[str, Any], given: float | None) -> float | None:
    """The scale that such a network takes: the one given, or what the call of its pipeline takes by
    default; None of a network that takes none."""
    if given is not None or not config.get("guidance_embeds"):
        return given
    import diffusers

    index = folder / "model_index.json"
    name = str(read_json(index).get("_class_name")) if index.is_file() else "FluxPipeline"
    call = getattr(diffusers, name, diffusers.FluxPipeline).__call__
    return float(inspect.signature(call).parameters["guidance_scale"].default)


def scale_condition(
    config: Mapping[str, Any], scale: float | None
) -> Callable[[Tensor], dict[str, Any]] | None:
    """The condition that says a guidance scale to a network, for states of (B, ...); None of a
    network that takes none, or where no scale is given.

    Raises:
        ValueError: a scale for a network that takes none.
    """
    width = config.get("time_cond_proj_dim")
    if scale is not None and not (config.get("guidance_embeds") or width):
        raise ValueError(
            f"guidance_scale={scale} is of networks that were distilled with it and take it as a "
            "condition (Flux-dev, LCM), which this one is not; use the method cfg and guidance.w"
        )
    if scale is None:
        return None
    if not width:
        return lambda x: {"guidance": x.new_full((len(x),), scale)}
    return lambda x: {"timestep_cond": _waves(scale - 1, int(width), x)}


def _waves(w: float, width: int, like: Tensor) -> Tensor:
    """1000 w at frequencies from 1 to 1/10000, sines before cosines (Luo et al. 2023,
    arXiv:2310.04378, as in diffusers); w counts from 0, which is no guidance."""
    steps = torch.arange(width // 2, dtype=torch.float64)
    angles = 1000 * w * torch.exp(-math.log(10_000) * steps / (width // 2 - 1))
    both = torch.cat([angles.sin(), angles.cos()])
    both = torch.nn.functional.pad(both, (0, width % 2))
    return both.to(like).expand(len(like), -1)
