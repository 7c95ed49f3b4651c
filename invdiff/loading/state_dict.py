"""Filling a network with the parameters of a state dict: all of them or none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn


def filled(make: Callable[[], nn.Module], tensors: Mapping[str, Tensor]) -> nn.Module:
    """The network that ``make`` builds, with these parameters in float32; nothing is initialised at
    random.

    Raises:
        ValueError: parameters that are missing, left over or of another shape, listed.
    """
    with torch.device("meta"):
        net = make()
    check_names(net.state_dict(), tensors)
    net.load_state_dict({k: v.float() for k, v in tensors.items()}, assign=True)
    return net


def check_names(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Refuses parameters that are missing, left over or of another shape, listed."""
    problems = {
        "missing": sorted(expected.keys() - given.keys()),
        "unexpected": sorted(given.keys() - expected.keys()),
        "of another shape": [
            f"{k} {tuple(given[k].shape)} instead of {tuple(v.shape)}"
            for k, v in expected.items()
            if k in given and given[k].shape != v.shape
        ],
    }
    if any(problems.values()):
        said = "; ".join(f"{what}: {listed(names)}" for what, names in problems.items() if names)
        raise ValueError(
            f"the parameters do not fit the network they seem to belong to. {said}. Nothing "
            "was loaded"
        )


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Refuses parameters that are NaN or infinite, listed."""
    if broken := [
        name
        for name, t in tensors.items()
        if t.is_floating_point() and not bool(t.isfinite().all())
    ]:
        raise ValueError(
            "parameters are not finite, so the training diverged or the file is damaged: "
            f"{listed(broken)}"
        )


def dtypes(tensors: Mapping[str, Tensor]) -> str:
    """The dtypes of the parameters, e.g. ``"float16"``."""
    return ", ".join(sorted({str(t.dtype).removeprefix("torch.") for t in tensors.values()}))


def listed(names: Iterable[str], most: int = 8) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
