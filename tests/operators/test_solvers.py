"""Conjugate gradients: they end with the last image, their number follows from the conditioning
where the data is not read, and a missed tolerance is reported."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from oracles import D, rand
from torch import Tensor

from invdiff.operators.blur import blur
from invdiff.operators.matrix import Matrix
from invdiff.problem import solvers
from invdiff.problem.solvers import LIMIT, conjugate_gradients, rounds


class Counted:
    """A diagonal system, and how often it was applied."""

    def __init__(self, diagonal: Tensor) -> None:
        self.diagonal, self.calls = diagonal, 0

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.diagonal * x


def spectrum(n: int, low: float) -> Tensor:
    return torch.logspace(torch.tensor(low, dtype=D).log10(), 0, n, dtype=D)


def test_they_end_with_the_last_image() -> None:
    easy, hard = torch.ones(1, 40, dtype=D), spectrum(40, 0.1)[None]
    b = rand(2, 40, seed=0)
    apart = [Counted(easy), Counted(hard), Counted(torch.cat([easy, hard]))]
    x_easy, x_hard, x = (
        conjugate_gradients(normal, given)
        for normal, given in zip(apart, (b[:1], b[1:], b), strict=True)
    )
    assert apart[0].calls == 1 and 5 < apart[1].calls < LIMIT
    assert apart[2].calls == apart[1].calls
    assert torch.equal(x, torch.cat([x_easy, x_hard]))


def test_nothing_is_solved_of_nothing() -> None:
    normal = Counted(torch.ones(3, dtype=D))
    assert not conjugate_gradients(normal, torch.zeros(2, 3, dtype=D)).any()
    assert normal.calls == 0


@pytest.mark.parametrize("ridge", [1e-3, 1e-2, 0.1, 1.0, 10.0])
def test_their_number_follows_from_the_conditioning(
    ridge: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the data is not read the bound is enough, and it is not far too much."""
    monkeypatch.setattr(solvers, "LIMIT", 10_000)
    squares = spectrum(200, 1e-6)[None]
    normal, b = Counted(squares + ridge), rand(1, 200, seed=1)
    n = rounds(1.0, ridge)
    x = conjugate_gradients(normal, b, n)
    assert normal.calls < n
    assert float((normal(x) - b).norm()) <= 1e-6 * float(b.norm())
    assert n < 4 * normal.calls + 5


def test_their_number_where_nothing_is_known() -> None:
    assert rounds(None, 1.0) == rounds(1.0, 0.0) == rounds(1.0, torch.ones(2)) == LIMIT
    assert rounds(1.0, torch.tensor(1.0)) == rounds(1.0, 1.0) < 20
    assert rounds(1.0, 1e-12) == LIMIT


def test_a_solve_without_reading_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device whose data is not read runs on with every image frozen."""
    normal, b = Counted(spectrum(40, 0.1)), rand(3, 40, seed=2)
    read = conjugate_gradients(normal, b)
    calls, normal.calls = normal.calls, 0
    monkeypatch.setattr(Tensor, "any", lambda x: torch.ones((), dtype=torch.bool))
    assert torch.equal(conjugate_gradients(normal, b), read)
    assert normal.calls == LIMIT > calls


def test_the_largest_singular_value_is_estimated_on_devices_only() -> None:
    matrix = rand(6, 9, seed=3)
    exact = float(torch.linalg.matrix_norm(matrix, 2))
    assert exact <= Matrix(matrix=matrix).bind((9,)).largest() < 1.11 * exact
    motion = blur("motion", kernel_size=5, border="reflect").bind((1, 16, 16))
    motion.prepare()
    assert "largest" not in motion._memo  # on the CPU the end is seen
    motion.to("meta").prepare()


@pytest.mark.parametrize(
    "solve, missed",
    [
        (lambda a, y: a.pinv(y), True),
        (lambda a, y: a.pinv(y, ridge=0.1), False),
        (lambda a, y: a.prox(torch.zeros_like(y), y, 1.0), False),
    ],
)
def test_a_missed_tolerance_is_reported(
    solve: Callable[[object, Tensor], Tensor], missed: bool
) -> None:
    a = blur("motion", border="reflect").bind((1, 64, 64))
    y = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        for _ in range(2):
            solve(a, y)
    said = [str(w.message) for w in seen if "conjugate gradients stopped" in str(w.message)]
    assert len(said) == (1 if missed else 0)  # once
    if missed:
        assert "tolerance 1e-06" in said[0] and "border='circular'" in said[0]


def test_residuals_on_a_device_are_collected_and_read_later() -> None:
    with solvers.collected() as found:
        solvers._report(torch.empty((), device="meta"))
        assert len(found) == 1
    found[0] = torch.tensor(1e-4)
    with pytest.warns(UserWarning, match="relative residual above 0.0001"):
        solvers.report(found)
    assert found == []
