"""Sums, multiples, adjoints and Gram operators, and operators written in any form of class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from oracles import D, rand
from torch import Tensor

from invdiff import LinearOperator, Measurement, Operator, list_plugins, make_operator, solve
from invdiff.testing import check_operator
from invdiff.testing.priors import prior

SHAPE = (3, 16, 24)
BLUR = make_operator("blur", sigma=1.5).bind(SHAPE)
MASK = make_operator("inpaint", fraction=0.4).bind(SHAPE)
SMALL = make_operator("sr", factor=4).bind(SHAPE)
BENT = make_operator("hdr").bind(SHAPE)
X = rand(2, *SHAPE, seed=1)


def dot_test(A: LinearOperator) -> None:
    x = rand(2, *A.bind(A.shape or SHAPE).shape, seed=2)
    y = rand(*A(x).shape, seed=3)
    left, right = (A(x) * y).sum(), (x * A.adjoint(y)).sum()
    torch.testing.assert_close(left, right, atol=1e-9 * x.numel(), rtol=0)


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (BLUR + MASK, lambda x: BLUR(x) + MASK(x)),
        (BLUR - MASK, lambda x: BLUR(x) - MASK(x)),
        (2 * BLUR, lambda x: 2 * BLUR(x)),
        (SMALL * -0.5, lambda x: -0.5 * SMALL(x)),
        (-MASK, lambda x: -MASK(x)),
        (BLUR.gram, lambda x: BLUR.adjoint(BLUR(x))),
        (SMALL @ (BLUR + 0.5 * MASK), lambda x: SMALL(BLUR(x) + 0.5 * MASK(x))),
        (make_operator("blur") + make_operator("denoise"), lambda x: make_operator("blur")(x) + x),
    ],
    ids=lambda a: a.kind if isinstance(a, Operator) else "",
)
def test_linear_results_are_linear_operators(
    made: LinearOperator, expected: Callable[[Tensor], Tensor]
) -> None:
    assert isinstance(made, LinearOperator)
    torch.testing.assert_close(made(X), expected(X), atol=1e-12, rtol=0)
    dot_test(made)
    assert made.bind(SHAPE).measurement_shape == tuple(expected(X).shape[1:])


def test_the_adjoint_as_an_operator() -> None:
    assert SMALL.H.H is SMALL
    y = rand(2, 3, 4, 6, seed=4)
    torch.testing.assert_close(SMALL.H(y), SMALL.adjoint(y))
    assert SMALL.H.measurement_shape == SHAPE
    dot_test(SMALL.H)
    with pytest.raises(ValueError, match="bind SuperResolution to a shape of images first"):
        _ = make_operator("sr").H


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_a_multiple_has_the_inverses_of_its_operator(ridge: float) -> None:
    A, y = 3 * SMALL, rand(2, 3, 4, 6, seed=5)
    x = A.pinv(y, ridge)
    left = A.adjoint(A(x)) + ridge * x
    torch.testing.assert_close(left, A.adjoint(y), atol=1e-9, rtol=0)
    z, gamma = rand(2, *SHAPE, seed=6), 0.7
    p = A.prox(z, y, gamma)
    gradient = gamma * A.adjoint(A(p) - y) + p - z
    torch.testing.assert_close(gradient, 0 * z, atol=1e-9, rtol=0)


def test_what_is_not_linear_stays_so() -> None:
    for made, expected in (
        (BENT + BLUR, BENT(X) + BLUR(X)),
        (2 * BENT, 2 * BENT(X)),
    ):
        assert not isinstance(made, LinearOperator)
        torch.testing.assert_close(made(X), expected)


def test_what_cannot_be_added_names_both_sides() -> None:
    with pytest.raises(ValueError, match=r"\(3, 16, 24\) and \(3, 4, 6\)"):
        (BLUR + SMALL)(X)
    with pytest.raises(TypeError):
        BLUR + 1
    with pytest.raises(TypeError):
        BLUR * BLUR


def test_a_measurement_of_a_sum_is_restored_but_not_recorded_by_name() -> None:
    m = (BLUR + 0.5 * MASK).measure(X.sigmoid(), sigma=0.05)
    x = solve(m, prior(3, dtype=D), "diffpir", steps=4, label=1, dtype=D).x
    assert bool(x.isfinite().all())
    with pytest.raises(ValueError, match="is not registered"):
        m.describe()


# Any form of class --------------------------------------------------------------------------------


class Times:
    def _forward(self, x: Tensor) -> Tensor:
        return self.factor * x  # type: ignore[attr-defined]

    def _adjoint(self, y: Tensor) -> Tensor:
        return self.factor * y  # type: ignore[attr-defined]


@dataclass(frozen=True, eq=False)
class Usual(Times, LinearOperator):
    factor: float = 2.0


@dataclass(frozen=True)
class ComparesByValue(Times, LinearOperator):
    factor: float = 2.0


@dataclass(frozen=True, eq=False)
class ChecksWithoutSuper(Times, LinearOperator):
    factor: float = 2.0

    def __post_init__(self) -> None:
        if self.factor == 0:
            raise ValueError("factor must not be 0")


class PlainInit(Times, LinearOperator):
    def __init__(self, factor: float = 2.0) -> None:
        self.factor = factor


FORMS: list[Any] = [Usual, ComparesByValue, ChecksWithoutSuper, PlainInit]


@pytest.mark.parametrize("form", FORMS)
def test_any_form_of_class_is_an_operator(form: Any) -> None:
    assert check_operator(form).ok
    operator = form(3.0)
    assert operator.parameters == {"factor": 3.0}
    m = operator.measure(X.sigmoid(), sigma=0.05)
    assert isinstance(m, Measurement) and m.operator.parameters == {"factor": 3.0}
    assert len({m.operator, operator}) <= 2  # it can be a member of sets and a key
    x = solve(m, prior(3, dtype=D), "dps", steps=3, label=1, dtype=D).x
    assert bool(x.isfinite().all())


# Whatever torch's default dtype is ----------------------------------------------------------------


@pytest.fixture
def in_double() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("in_double")
@pytest.mark.parametrize("name", list_plugins("operators"))
def test_operators_when_torchs_default_is_double(name: str) -> None:
    operator = make_operator(name)
    for dtype in (torch.float32, torch.float64):
        x = torch.rand(2, 3, 32, 32, dtype=dtype)
        m = operator.measure(x, sigma=0.05)
        assert m.y.real.dtype == dtype
        if isinstance(m.operator, LinearOperator):
            for made in (m.operator.pinv(m.y, 0.1), m.operator.prox(x, m.y, 0.3)):
                assert made.dtype == dtype
    assert solve(m, prior(3), "none", steps=2, label=1).x.dtype == torch.float32
