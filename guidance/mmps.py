"""Moment matching posterior sampling, MMPS (Rozet et al., NeurIPS 2024, arXiv:2405.13712, section
4.2).

p(x0 | x_t) is taken as Gaussian with both of its moments, the covariance by Tweedie's second
formula from the network's Jacobian:

    C = Cov[x0 | x_t] = sigma_t² / alpha_t J^T,    J = d x0 / d x_t
    (Sigma_y + A C A^T) v = y − A x0               by a few iterations of GMRES
    x0 <- x0 + C A^T v,                            that is score + J^T A^T v, eps re-derived

C is never formed: each iteration multiplies by it, one vector-Jacobian product of the network.
Where the prior is Gaussian the score is exact. A nonlinear A is replaced by its derivative at x0.

Symbols: v, the solution of the linear system; Sigma_y = sigma² I, sigma per image or per pixel;
iterations of the solver. Published: 1 iteration and 256 steps (CIFAR-10), 3 and 64 (MRI), ancestral
sampling. Without noise the system is A C A^T v = y − A x0, which is consistent and solved as it is.

The paper's conjugate gradients presume that J is symmetric and positive. A network's is not quite,
and from the second iteration on they diverge; GMRES cannot, and is the same from the same subspace
where J is what it should be. The authors' later code for images has GMRES too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from invdiff.network import Prediction
from invdiff.problem import LinearOperator, Measurement, Operator
from invdiff.sampling import Between, Denoise, Guidance, Step, traced

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class MMPS(Guidance):
    """See the module's docstring.

    Args:
        iterations: of GMRES at every step; each costs one backward pass, and the result one more.
    """

    iterations: Annotated[int, Between(1, 6)] = 3

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {self.iterations}")

    def __call__(
        self, denoise: Denoise, x_t: Tensor, step: Step, measurement: Measurement
    ) -> Prediction:
        _, alpha, sigma = step.t
        if alpha == 0:  # pure noise: x0 does not depend on it
            return denoise(x_t, step.t)
        with torch.enable_grad():
            x_t, p = traced(denoise, x_t, step.t, "MMPS")
        x0 = p.x0.detach()
        A, At = linearised(measurement.operator, x0)

        def C(u: Tensor) -> Tensor:
            return sigma**2 / alpha * torch.autograd.grad(p.x0, x_t, u, retain_graph=True)[0]

        v = gmres(
            lambda v: measurement.sigma**2 * v + A(C(At(v))),
            measurement.residual(x0),
            self.iterations,
        )
        return p.detach().move(C(At(v)))


def linearised(operator: Operator, x0: Tensor) -> tuple[Map, Map]:
    """The derivative of A at x0 and its adjoint; A and A* themselves where it is linear."""
    if isinstance(operator, LinearOperator):
        return operator, operator.adjoint
    with torch.enable_grad():
        x0 = x0.requires_grad_()
        y = operator(x0)
        w = torch.zeros_like(y, requires_grad=True)
        (pulled,) = torch.autograd.grad(
            y, x0, w, create_graph=True
        )  # A* w: its derivative in w is A, so backward passes suffice
    return (
        lambda u: torch.autograd.grad(pulled, w, u, retain_graph=True)[0],
        lambda v: torch.autograd.grad(y, x0, v, retain_graph=True)[0],
    )


def gmres(matrix: Map, b: Tensor, iterations: int) -> Tensor:
    """The x of the Krylov space of b whose residual ‖matrix(x) − b‖ is smallest, per image;
    Eisenstat et al. 1983's form (GCR).

    An image that is solved, or whose next direction is none, stays as it is.
    """

    def dot(u: Tensor, v: Tensor) -> Tensor:
        return (u.conj() * v).real.sum(tuple(range(1, b.ndim)), keepdim=True)

    x, r = torch.zeros_like(b), b
    basis: list[
        tuple[Tensor, Tensor]
    ] = []  # directions, and what the matrix makes of them: orthonormal
    for _ in range(iterations):
        p, q = r, matrix(r)
        size = dot(q, q)
        for p_k, q_k in basis:
            along = dot(q_k, q)
            p, q = p - along * p_k, q - along * q_k
        left = dot(q, q)
        scale = torch.where(
            left > 1e-10 * size, left.clamp(min=torch.finfo(left.dtype).tiny).rsqrt(), 0.0
        )
        p, q = scale * p, scale * q
        basis.append((p, q))
        step = dot(q, r)
        x, r = x + step * p, r - step * q
    return x
