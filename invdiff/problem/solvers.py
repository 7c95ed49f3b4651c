"""Iterative solvers of linear systems, each image of a batch on its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    pass


def conjugate_gradients(
    normal: Callable[[Tensor], Tensor], b: Tensor, iterations: int = 100, tolerance: float = 1e-6
) -> Tensor:
    """Solves ``normal(x) = b`` from zero, per image, ``normal`` being self-adjoint and positive
    semi-definite.

    A fixed number of iterations runs without looking at the data; an image whose residual fell
    below ``tolerance`` times ‖b‖ is frozen. From zero the iterates stay in the range of A*, so the
    result is the least-norm solution.
    """
    dims = tuple(range(1, b.ndim))

    def dot(u: Tensor, v: Tensor) -> Tensor:
        return (u.conj() * v).real.sum(dims, keepdim=True)

    x, r, p = torch.zeros_like(b), b, b
    rr = dot(r, r)
    floor = tolerance**2 * rr
    for _ in range(
        1 if b.is_meta else iterations
    ):  # where nothing is computed, one tells the shapes
        q = normal(p)
        active = rr > floor
        step = torch.where(active, rr / torch.where(active, dot(p, q), 1.0), 0.0)
        x, r = x + step * p, r - step * q
        rr_new = torch.where(active, dot(r, r), rr)
        p = r + torch.where(active, rr_new / torch.where(active, rr, 1.0), 0.0) * p
        rr = rr_new
    return x
