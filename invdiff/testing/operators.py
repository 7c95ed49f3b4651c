"""Checks of operators."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invdiff.plugins.registry import name_of
from invdiff.problem import LinearOperator, Measurement, Operator, SpectralOperator
from invdiff.problem.operator import Shape
from invdiff.testing.imports import importing
from invdiff.testing.randomness import generators, moved, seed_all
from invdiff.testing.report import TINY, Skip, distance, expect, within

SHAPES: tuple[Shape, ...] = ((3, 17, 24), (3, 32, 21))
"""Sizes that operators are tried with, cropped to what they take: odd and not square."""
EXACT = 1e-9
"""For what holds to rounding in float64."""
SOLVED = 1e-4
"""For pseudo-inverses and proximal maps: conjugate gradients stop at 1e-6 of the normal equations,
an SVD is cut at 1e-5."""
IMAGES = 3


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Numbers of N(0, 1); complex ones where asked for."""
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def photos(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Values in [0, 1]."""
    return torch.rand(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def inner(a: Tensor, b: Tensor) -> float:
    """Re <a, b>."""
    return float((a.conj() * b).real.sum())


@dataclass(frozen=True)
class Case:
    """An operator under test.

    Attributes:
        operator: bound or not; a bound one is tried at its own shape alone.
        shapes: of the images.
        module: whose import is tried.
    """

    operator: Operator
    shapes: tuple[Shape, ...]
    module: str

    @cached_property
    def bound(self) -> list[Operator]:
        """It at every shape."""
        if self.operator.shape is not None:
            return [self.operator]
        return [
            self.operator.bind(shape)
            for shape in dict.fromkeys(map(self.operator.fit, self.shapes))
        ]

    def linear(self) -> list[LinearOperator]:
        """It at every shape, if it is declared linear."""
        found = [a for a in self.bound if isinstance(a, LinearOperator)]
        if not found:
            raise Skip("it is not declared linear")
        return found

    def fresh(self) -> list[Operator]:
        """It made again from its parameters, at every shape."""
        if self.operator.shape is not None:
            raise Skip("it is bound already, so it is not made again")
        again = self.operator._changed()
        return [again.bind(a.shape) for a in self.bound if a.shape is not None]


def image(a: Operator, n: int = 2, **options: Any) -> Tensor:
    """Images of a bound operator."""
    assert a.shape is not None
    return photos(n, *a.shape, **options)


def like(y: Tensor, seed: int = 1) -> Tensor:
    """A random measurement."""
    return draw(*y.shape, seed=seed, dtype=y.dtype)


def shapes(case: Case) -> str:
    """A(x) has the shape it declares, its adjoint, pseudo-inverse and proximal map that of the
    image, at odd and non-square sizes."""
    for a in case.bound:
        x = image(a)
        y = a(x)
        expect(
            y.shape == (2, *a.measurement_shape),
            f"A(x) has shape {tuple(y.shape)}, declared {(2, *a.measurement_shape)}",
        )
        back = (
            {"adjoint": a.adjoint(y), "pinv": a.pinv(y), "prox": a.prox(x, y, 0.5)}
            if isinstance(a, LinearOperator)
            else {}
        )
        for name, made in back.items():
            expect(
                made.shape == x.shape,
                f"{name} returns shape {tuple(made.shape)} for images {tuple(x.shape)}",
            )
        try:
            told = case.operator.image_shape(a.measurement_shape)
        except ValueError:  # as a matrix, which does not tell
            continue
        expect(
            tuple(told) == a.shape,
            f"image_shape of {a.measurement_shape} is {told}, but the images have {a.shape}",
        )
    return ", ".join(f"{a.shape} -> {a.measurement_shape}" for a in case.bound)


def dtypes(case: Case) -> str:
    """float32 stays float32, float64 stays float64, and both agree."""
    worst = 0.0
    for a in case.bound:
        x = image(a)
        single, double = a(x.float()), a(x)
        for y, dtype in ((single, torch.float32), (double, torch.float64)):
            expect(y.real.dtype == dtype, f"images of {dtype} give a measurement of {y.dtype}")
        worst = max(worst, distance(single.to(double.dtype), double))
    return within("float32 from float64", worst, 1e-3)


def meta(case: Case) -> str:
    """It runs where tensors hold no data, so that no stray CPU tensor and no read of the data holds
    up a GPU."""
    for a in case.bound:
        x = torch.empty(2, *(a.shape or ()), device="meta")
        made = [a(x)]
        if isinstance(a, LinearOperator):
            made += [
                a.adjoint(made[0]),
                a.pinv(made[0]),
                a.prox(x, made[0], torch.empty(2, device="meta")),
            ]
        expect(
            all(v.device.type == "meta" for v in made),
            "some result lies on another device than its argument",
        )
    return "A and its inverses on meta"


def linear(case: Case) -> str:
    """A(2 x − 3 z) = 2 A x − 3 A z."""
    worst = 0.0
    for a in case.linear():
        x, z = image(a), image(a, seed=1)
        worst = max(worst, distance(a(2 * x - 3 * z), 2 * a(x) - 3 * a(z)))
    return within("|A(2x - 3z) - 2Ax + 3Az|", worst, EXACT)


def adjoint(case: Case) -> str:
    """<A x, y> = <x, A* y>."""
    worst = 0.0
    for a in case.linear():
        x = draw(2, *(a.shape or ()))
        ax = a(x)
        y = like(ax)
        worst = max(
            worst,
            abs(inner(ax, y) - inner(x, a.adjoint(y))) / max(float(ax.norm() * y.norm()), TINY),
        )
    return within("|<Ax, y> - <x, A*y>|", worst, EXACT)


def pinv(case: Case) -> str:
    """A A† A = A."""
    worst = 0.0
    for a in case.linear():
        ax = a(image(a))
        worst = max(worst, distance(a(a.pinv(ax)), ax))
    return within("|A A+ A x - A x|", worst, SOLVED)


def prox(case: Case) -> str:
    """prox(z, y) solves x − z + gamma A*(A x − y) = 0 for one gamma per image."""
    worst = 0.0
    for a in case.linear():
        z, gamma = image(a), torch.tensor([0.3, 20.0], dtype=torch.float64)
        y = a(image(a, seed=1))
        x = a.prox(z, y, gamma)
        pull = gamma.view(-1, *(1,) * (z.ndim - 1)) * a.adjoint(a(x) - y)
        worst = max(worst, distance(x + pull, z))
    return within("|x + gamma A*(Ax - y) - z|", worst, SOLVED)


def svd(case: Case) -> str:
    """V orthogonal, U diag(s) V* = A, V diag(s) U* = A*, s >= 0 in one layout with both, and A†
    that of the SVD."""
    worst = 0.0
    spectral = [a for a in case.bound if isinstance(a, SpectralOperator)]
    if not spectral:
        raise Skip("it has no SVD")
    for a in spectral:
        x = image(a)
        ax = a(x)
        y = like(ax)
        s, z, w = a.singular_values, a.Vt(x), a.Ut(y)
        expect(
            s.shape == z.shape[1:] == w.shape[1:],
            f"s, V*x and U*y differ in layout: {tuple(s.shape)}, {z.shape[1:]}, {w.shape[1:]}",
        )
        expect(
            bool((s >= 0).all()), f"a singular value is {float(s.min()):.3g}, and none is negative"
        )
        errors = {
            "V V* x - x": distance(a.V(z), x),
            "|V* x| - |x|": abs(float(z.norm() / x.norm()) - 1),
            "U s V* x - A x": distance(a.U(s * z), ax),
            "V s U* y - A* y": distance(a.V(s * w), a.adjoint(y)),
            "the SVD's pinv from pinv": distance(SpectralOperator._pinv(a, ax, 0.0), a.pinv(ax)),
        }
        name = max(errors, key=errors.__getitem__)
        expect(errors[name] <= 1e-6, f"{name} is {errors[name]:.3g}, tolerance 1e-06")
        worst = max(worst, errors[name])
    return f"U, V and s agree with A, A* and A+: {worst:.1e} <= 1e-06"


def differentiable(case: Case) -> str:
    """Gradients reach x, finite and not all zero; of a linear one they are those of a linear map:
    <grad <A x, w>, z> = <w, A z>."""
    worst = 0.0
    for a in case.bound:
        x = image(a).requires_grad_()
        y = a(x)
        expect(y.requires_grad, "A(x) does not depend on x differentiably")
        w = like(y)
        (grad,) = torch.autograd.grad((y.conj() * w).real.sum(), x)
        expect(bool(grad.isfinite().all()), "the gradient is not finite")
        expect(bool((grad != 0).any()), "the gradient is zero everywhere")
        if isinstance(a, LinearOperator):
            az = a(z := draw(*x.shape, seed=2))
            worst = max(
                worst, abs(inner(grad, z) - inner(w, az)) / max(float(w.norm() * az.norm()), TINY)
            )
    return (
        within("|<grad, z> - <w, Az>|", worst, EXACT)
        if isinstance(case.operator, LinearOperator)
        else "finite gradients"
    )


def restored(a: LinearOperator, x: Tensor) -> Tensor:
    """A† A x."""
    return a.pinv(a(x))


def nearest(a: LinearOperator, x: Tensor) -> Tensor:
    """The proximal map at x of what x gives."""
    return a.prox(x, a(x), 2.0)


def batch(case: Case) -> str:
    """An image alone gives what it gives in a batch."""
    worst = 0.0
    for a in case.bound:
        x = image(a, IMAGES)
        calls: list[Callable[[Tensor], Tensor]] = [a]
        if isinstance(a, LinearOperator):
            calls += [partial(restored, a), partial(nearest, a)]
        for call in calls:
            together = call(x)
            worst = max(
                [worst, *(distance(call(x[k : k + 1]), together[k : k + 1]) for k in range(IMAGES))]
            )
    return within("alone from in a batch", worst, 1e-6)


def unchanged(case: Case) -> str:
    """No call changes the image, the measurement or the operator."""
    for a in case.bound:
        x = image(a)
        y = a(image(a))
        before = {
            "x": x.clone(),
            "y": y.clone(),
            **{f"state {k!r}": v.clone() for k, v in a.state.items()},
        }
        a(x)
        if isinstance(a, LinearOperator):
            a.adjoint(y), a.pinv(y), a.prox(x, y, 0.5)
        for name, value in {
            "x": x,
            "y": y,
            **{f"state {k!r}": v for k, v in a.state.items()},
        }.items():
            expect(torch.equal(value, before[name]), f"a call changed {name}")
    return "x, y and state as before"


def fixed(case: Case) -> str:
    """Masks and kernels are a pure function of its parameters: made again, whatever the global
    seed, it measures the same."""
    seed_all(1)
    for a, again in zip(case.bound, case.fresh(), strict=True):
        x = image(a)
        expect(
            torch.equal(a(x), again(x)),
            "the operator made again from the same parameters measures something else",
        )
    return "made again, it gives the same y bit by bit"


def global_rng(case: Case) -> str:
    """Neither binding nor measuring draws from a global generator."""
    before = generators()
    for a in case.fresh() if case.operator.shape is None else case.bound:
        a.measure(image(a), sigma=0.1)
        if isinstance(a, LinearOperator):
            a.pinv(a(image(a)))
    expect(
        not (names := moved(before)), f"it advances the global generator of {' and '.join(names)}"
    )
    return "torch, numpy and random untouched"


def saved(case: Case) -> str:
    """A measurement's description is plain data, and the operator read from its file is the
    same."""
    try:
        name = name_of("operators", case.operator)
    except ValueError:
        raise Skip(
            "its class is not registered under invdiff.operators, so a file cannot name it"
        ) from None
    with tempfile.TemporaryDirectory() as folder:
        for a in case.bound:
            x = image(a, dtype=torch.float32)
            measurement = a.measure(x, sigma=0.05)
            json.dumps(measurement.describe())
            measurement.save(path := Path(folder) / "y.safetensors")
            read = Measurement.load(path)
            expect(
                torch.equal(read.operator(x), a(x)),
                "the operator read from a file measures something else",
            )
    return f"{name!r} and its parameters survive a file"


def imports(case: Case) -> str:
    """See :func:`~invdiff.testing.imports.importing`."""
    return importing(case.module)


CHECKS: dict[str, Callable[[Case], str]] = {
    f.__name__: f
    for f in (
        *(shapes, dtypes, meta, linear, adjoint, pinv, prox, svd),
        *(differentiable, batch, unchanged, fixed, global_rng, saved, imports),
    )
}
