"""Linear operators ``y = A x``: adjoint, pseudo-inverse and proximal step."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from invdiff.noise import generator_of
from invdiff.problem.operator import Operator
from invdiff.problem.solvers import conjugate_gradients, rounds


@dataclass(frozen=True, eq=False)
class LinearOperator(Operator):
    """``y = A x``. ``pinv`` and ``prox`` are solved by conjugate gradients unless a subclass knows
    better.

    Examples:
        >>> import torch
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True, eq=False)
        ... class Twice(LinearOperator):
        ...     '''y = 2 x.'''
        ...     def _forward(self, x):
        ...         return 2 * x
        ...     def _adjoint(self, y):
        ...         return 2 * y
        >>> operator = Twice().bind((1, 1, 1))
        >>> operator.pinv(torch.full((1, 1, 1, 1), 3.0))
        tensor([[[[1.5000]]]])
    """

    @abstractmethod
    def _adjoint(self, y: Tensor) -> Tensor:
        """A* y."""

    def _pinv(self, y: Tensor, ridge: Tensor | float) -> Tensor:
        return conjugate_gradients(
            lambda x: self._adjoint(self._forward(x)) + ridge * x,
            self._adjoint(y),
            rounds(self._memo.get("largest"), ridge),
        )

    def _prox(self, z: Tensor, y: Tensor, gamma: Tensor | float) -> Tensor:
        scale = gamma if isinstance(gamma, Tensor) or gamma > 0 else 1.0
        return conjugate_gradients(
            lambda x: x + gamma * self._adjoint(self._forward(x)),
            z + gamma * self._adjoint(y),
            rounds(self._memo.get("largest"), 1 / scale),  # as of A*A + 1 / gamma
        )

    def prepare(self) -> None:
        """Makes ready for solves on a device, whose data is not read: how many iterations they
        take follows from the largest singular value. The loop calls it before it starts; the
        estimate is read once."""
        device = next((v.device for v in self.state.values()), None)
        if self.shape is None or device is None or device.type in ("cpu", "meta"):
            return
        if "largest" not in self._memo:
            self._memo["largest"] = self.largest()

    def largest(self) -> float:
        """The largest singular value, from above: ten steps of the power method on A* A and a tenth
        on top. The operator must be bound."""
        assert self.shape is not None
        like = next((v for v in self.state.values() if not v.dtype.is_complex), torch.zeros(()))
        dtype = like.dtype if like.is_floating_point() else torch.float32
        images = max([1, *(len(self.state[name]) for name in self.per_image)])
        draw = torch.randn(images, *self.shape, generator=generator_of("largest"), dtype=dtype)
        x = draw.to(like.device)
        for _ in range(10):
            x = self._adjoint(self._forward(x / torch.linalg.vector_norm(x)))
        return 1.1 * float(torch.linalg.vector_norm(x)) ** 0.5

    @property
    def H(self) -> LinearOperator:
        """A* as an operator; ``A.H.H`` is A. The operator must be bound."""
        from invdiff.problem.algebra import adjoint_of

        return adjoint_of(self)

    @property
    def gram(self) -> Operator:
        """A* A as an operator. The operator must be bound."""
        return self.H @ self

    def adjoint(self, y: Tensor) -> Tensor:
        """A* y, (B, *image shape)."""
        return self._for_measurement(y)._adjoint(y)

    def pinv(self, y: Tensor, ridge: float | Tensor = 0.0) -> Tensor:
        """The Moore-Penrose pseudo-inverse A† y: the smallest of the images that fit y best.

        With a ridge >= 0, a number or one per image, it is regularised: (A* A + ridge)^-1 A* y = A*
        (A A* + ridge)^-1 y. Both are one map whose limit at 0 is A†, so methods with noise need no
        second formula for measurements without.
        """
        return self._for_measurement(y)._pinv(
            y, broadcastable(ridge, y.ndim if self.shape is None else 1 + len(self.shape))
        )

    def prox(self, z: Tensor, y: Tensor, gamma: float | Tensor) -> Tensor:
        """argmin_x  gamma/2 ‖A x − y‖² + 1/2 ‖x − z‖², gamma a number or one per image."""
        return self._for_image(z)._prox(z, y, broadcastable(gamma, z.ndim))


def broadcastable(value: float | Tensor, ndim: int) -> float | Tensor:
    """One number per image, ready to broadcast against images."""
    return (
        value.view(-1, *(1,) * (ndim - 1))
        if isinstance(value, Tensor) and value.ndim == 1
        else value
    )
