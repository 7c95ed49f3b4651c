"""Gradients with respect to the parameters of operators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from invdiff.operators.blur import blur
from invdiff.operators.matrix import Matrix
from invdiff.operators.varying_blur import VaryingBlur
from invdiff.problem import LinearOperator, Measurement, Operator

SHAPE = (2, 11, 14)


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class Shift(LinearOperator):
    """A third party's operator: the image moved by a shift in pixels, along its rows."""

    shift: Tensor

    def make_state(self, shape: tuple[int, ...]) -> dict[str, Tensor]:
        phase = 2 * torch.pi * torch.fft.rfftfreq(shape[-1], dtype=torch.float64) * self.shift
        return {"wave": torch.view_as_real(torch.exp(-1j * phase))}

    def _filter(self, x: Tensor, wave: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(x) * wave, n=x.shape[-1])

    def _forward(self, x: Tensor) -> Tensor:
        return self._filter(x, torch.view_as_complex(self.state["wave"]))

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._filter(y, torch.view_as_complex(self.state["wave"]).conj())


KERNEL = rand(3, 5, seed=1) / rand(3, 5, seed=1).sum()
MAKERS: dict[str, tuple[Callable[[Tensor], Operator], Tensor]] = {
    "kernel, circular": (lambda v: blur(v), KERNEL),
    "kernel, reflect": (lambda v: blur(v, border="reflect"), KERNEL),
    "kernel, valid": (lambda v: blur(v, border="valid"), KERNEL),
    "sigma, circular": (lambda v: blur(sigma=v, kernel_size=7), torch.tensor(1.3).double()),
    "sigma, replicate": (
        lambda v: blur(sigma=v, kernel_size=7, border="replicate"),
        torch.tensor(1.3).double(),
    ),
    "kernels": (lambda v: VaryingBlur(v), KERNEL.expand(2, 2, 3, 5).clone()),
    "matrix": (lambda v: Matrix(v), rand(5, 308, seed=2)),
    "shift": (lambda v: Shift(v), torch.tensor(0.7).double()),
    "gain": (lambda v: v * blur(KERNEL), torch.tensor(1.7).double()),
    "of a part": (lambda v: Shift(torch.tensor(0.5)) @ blur(v), KERNEL),
}


@pytest.mark.parametrize("name", MAKERS)
def test_gradients_of_a_parameter_are_those_of_finite_differences(name: str) -> None:
    make, value = MAKERS[name]
    x = rand(2, *SHAPE, seed=3)
    given = value.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: make(v)(x), (given,), atol=1e-6, fast_mode=True)


@pytest.mark.parametrize("border", [None, "reflect"])
def test_a_parameter_is_learned_by_one_operator_through_many_backward_passes(
    border: str | None,
) -> None:
    """Nothing that is kept from one call to the next holds an old graph or an old value."""
    x, truth = rand(1, *SHAPE, seed=4), blur(sigma=1.5, kernel_size=9, border=border)
    y = truth(x)
    sigma = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    operator = blur(sigma=sigma, kernel_size=9, border=border)
    optimiser = torch.optim.LBFGS([sigma], max_iter=30, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = (operator(x.float()) - y).square().sum()  # float32: the state is converted, too
        value.backward()
        return value

    optimiser.step(loss)
    assert abs(float(sigma.detach()) - 1.5) < 1e-3


def test_a_measurement_hands_on_the_gradient_of_its_operator() -> None:
    x, kernel = rand(2, *SHAPE, seed=5), KERNEL.clone().requires_grad_()
    y = blur("box", kernel_size=3)(x)
    Measurement(y, blur(kernel), 0.1).loss(x).sum().backward()
    assert kernel.grad is not None and float(kernel.grad.abs().min()) > 0
