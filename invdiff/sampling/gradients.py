"""Gradients that guidance takes: through the network, and of the data alone."""

from __future__ import annotations

import torch
from torch import Tensor

from invdiff.network import Prediction
from invdiff.problem import Measurement
from invdiff.sampling.step import Denoise
from invdiff.schedules import Level


def traced(denoise: Denoise, x_t: Tensor, level: Level, who: str) -> tuple[Tensor, Prediction]:
    """x_t as a leaf of a graph, and the prediction made from it, for ``torch.autograd.grad``. Call
    it with gradients enabled.

    Raises:
        ValueError: the prediction does not depend on x_t differentiably; ``who`` needs it.
    """
    x_t = x_t.detach().requires_grad_()
    p = denoise(x_t, level)
    if not p.x0.requires_grad:
        raise ValueError(
            f"{who} needs the gradient through the network, but what it wraps gives none; "
            "put it nearest to the network"
        )
    return x_t, p


def gradient(values: Tensor, x: Tensor, create_graph: bool = False) -> Tensor:
    """The gradient in x (B, ...) of one value per image, values (B,): image k's is that of
    values[k] alone, since no value depends on another image."""
    return torch.autograd.grad(values.sum(), x, create_graph=create_graph)[0]


def data_gradient(measurement: Measurement, x: Tensor) -> Tensor:
    """grad_x ‖y − A(x)‖² of every image at an estimate x itself, (B, ...): through A alone, the
    network is not differentiated."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return gradient(measurement.loss(x), x)
