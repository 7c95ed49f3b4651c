"""Networks of diffusers' own classes, complete, from their folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from invdiff.loading.folder_files import weights_in
from invdiff.loading.state_dict import check_finite

OLD = "Transformer2DModel"
"""The name that older configurations give to every transformer."""


def read_network(
    place: Path,
    config: dict[str, Any],
    allowed: tuple[str, ...],
    allow_pickle: bool,
    cls: Any = None,
) -> tuple[torch.nn.Module, str]:
    """A network of one of the allowed classes in float32, complete, and the name of its weight
    file.

    Args:
        cls: the class, where it is not one of diffusers' own names.

    Raises:
        ValueError: another class; weights that cannot be read, are not complete or not finite.
    """
    import diffusers

    name = str(config.get("_class_name"))
    cls = cls or getattr(diffusers, name, None)
    if cls is None or name not in (*allowed, OLD):
        raise ValueError(
            f"{place} holds a {name}; of diffusers' networks these are read from a "
            f"folder: {', '.join(allowed)}. Load it with its own "
            "package and wrap it: invdiff.Denoiser(lambda x, t, **cond: ..., predicts=..., "
            "schedule=...)"
        )
    weights, variant = weights_in(place, allow_pickle)
    net, info = _from_pretrained(cls, place, weights, variant)
    for kind in ("missing_keys", "unexpected_keys"):
        if info[kind]:
            names = sorted(info[kind])
            raise ValueError(
                f"{weights} in {place} has {len(names)} {kind.replace('_', ' ')}, nothing "
                f"was loaded: {', '.join(names[:8])}"
            )
    try:
        check_finite(net.state_dict())
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    if type(net).__name__ not in allowed:
        raise ValueError(
            f"{place} holds a {type(net).__name__}, which is not one of {', '.join(allowed)}"
        )
    return net, weights


def _from_pretrained(
    cls: Any, place: Path, weights: str, variant: str | None
) -> tuple[torch.nn.Module, dict[str, Any]]:
    """The network, and what diffusers says of its parameters. Storage in fp16 is for size; the
    network runs in float32 unless a dtype is asked for."""
    try:
        return cls.from_pretrained(
            place,
            torch_dtype=torch.float32,
            local_files_only=True,
            low_cpu_mem_usage=False,
            use_safetensors=weights.endswith(".safetensors"),
            variant=variant,
            output_loading_info=True,
        )
    except (OSError, RuntimeError, ValueError, ImportError) as error:
        said = " ".join(line.strip() for line in str(error).strip().splitlines()[:2])  # of hundreds
        raise ValueError(
            f"the weights in {place} cannot be read, do they fit its config.json? {said}"
        ) from error
