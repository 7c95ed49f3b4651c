"""The mean absolute error."""

from __future__ import annotations

from torch import Tensor


def mae(x: Tensor, reference: Tensor) -> Tensor:
    """Mean absolute difference of (B, C, H, W) images, (B,), lower is better."""
    if x.shape != reference.shape:
        raise ValueError(
            f"x and reference must have one shape, got {tuple(x.shape)} and "
            f"{tuple(reference.shape)}"
        )
    return (x - reference).detach().abs().flatten(1).mean(1).cpu()


mae.better = "lower"
