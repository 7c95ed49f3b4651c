"""Iterative solvers of linear systems, each image of a batch on its own."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar

import torch
from torch import Tensor

TOLERANCE = 1e-6
"""Relative residual ‖b − M x‖ / ‖b‖ at which an image is solved."""

MISSED = 1e-4
"""Relative residual above which a solve that ran out of iterations is reported."""

LIMIT = 100
"""Most iterations of a solve. Where nothing regularises a system they do, as every early stop."""

_missed: ContextVar[list[Tensor] | None] = ContextVar("invdiff_missed", default=None)


def conjugate_gradients(
    normal: Callable[[Tensor], Tensor],
    b: Tensor,
    iterations: int = LIMIT,
    tolerance: float = TOLERANCE,
) -> Tensor:
    """Solves ``normal(x) = b`` from zero, per image, ``normal`` being self-adjoint and positive
    semi-definite.

    An image whose residual fell below ``tolerance`` times ‖b‖ is frozen. Where reading the data
    costs nothing, on the CPU, the iterations end with the last image, which changes no result;
    elsewhere their number is fixed and the data is not looked at. From zero the iterates stay in
    the range of A*, so the result is the least-norm solution.

    Warns where a residual stays above ``MISSED`` (a hundred times ``TOLERANCE``).
    """
    dims, free = tuple(range(1, b.ndim)), b.device.type == "cpu"

    def dot(u: Tensor, v: Tensor) -> Tensor:
        return (u.conj() * v).real.sum(dims, keepdim=True)

    x, r, p = torch.zeros_like(b), b, b
    rr = bb = dot(r, r)
    floor = tolerance**2 * bb
    for _ in range(1 if b.is_meta else iterations):  # one tells the shapes
        active = rr > floor
        if free and not bool(active.any()):
            break
        q = normal(p)
        step = torch.where(active, rr / torch.where(active, dot(p, q), 1.0), 0.0)
        x, r = torch.addcmul(x, step, p), torch.addcmul(r, step, q, value=-1)
        rr_new = torch.where(active, dot(r, r), rr)
        p = torch.addcmul(r, torch.where(active, rr_new / torch.where(active, rr, 1.0), 0.0), p)
        rr = rr_new
    if iterations > 0 and len(b) and not b.is_meta:
        _report((rr.detach() / torch.where(bb > 0, bb, 1.0).detach()).max())
    return x


def rounds(largest: float | None, ridge: Tensor | float, tolerance: float = TOLERANCE) -> int:
    """How many iterations bring conjugate gradients on A*A + ridge to the tolerance.

    From the classical bound 2 ((sqrt(kappa) − 1) / (sqrt(kappa) + 1))^k on the error in the
    energy norm, with kappa = (largest² + ridge) / ridge, and one more factor sqrt(kappa) for the
    residual; at most ``LIMIT``.

    Args:
        largest: the largest singular value of A; None where it is not known.
        ridge: a number, on the host; of a tensor on a device nothing is read.
    """
    if isinstance(ridge, Tensor) and ridge.ndim == 0 and ridge.device.type == "cpu":
        ridge = float(ridge)
    if largest is None or isinstance(ridge, Tensor) or ridge <= 0:
        return LIMIT
    root = math.sqrt((largest**2 + ridge) / ridge)
    return min(LIMIT, math.ceil(0.5 * root * math.log(2 * root / tolerance)) + 1)


@contextlib.contextmanager
def collected() -> Iterator[list[Tensor]]:
    """Within it, the squared relative residuals of solves on devices are collected and not read,
    so that nothing waits; hand them to :func:`report` later."""
    found: list[Tensor] = []
    token = _missed.set(found)
    try:
        yield found
    finally:
        _missed.reset(token)


def report(squares: list[Tensor]) -> None:
    """Reads collected residuals, empties the list, and warns where the worst is above
    ``MISSED``."""
    if not squares:
        return
    worst = math.sqrt(float(torch.stack(squares).max()))
    squares.clear()
    if worst > MISSED:
        # One call site, so that Python's default filter shows it once.
        warnings.warn(
            f"conjugate gradients stopped at a relative residual above {MISSED:g} (tolerance "
            f"{TOLERANCE:g}): the system is too ill-conditioned for {LIMIT} iterations, and this "
            "stop regularises what the measurement hardly determines. A larger sigma or ridge, or "
            "an operator with a singular value decomposition (for a blur border='circular'), is "
            "solved exactly",
            stacklevel=2,
        )


def _report(square: Tensor) -> None:
    later = _missed.get()
    if later is None or square.device.type == "cpu":
        report([square])
    else:
        later.append(square)
