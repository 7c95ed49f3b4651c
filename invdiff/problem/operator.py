"""Forward operators ``y = A(x)``: the contract that built-in and third-party operators fulfil.

An operator is a frozen dataclass: its fields are its parameters. What depends on the image's shape
(masks, kernels, matrices) is made by ``make_state(shape)`` when the operator is bound, as a pure
function of parameters and shape; no call changes an operator. Subclasses write ``make_state`` and
the underscored methods, which always see a bound operator whose state lies on the device and in the
dtype of their argument.

    @dataclass(frozen=True, eq=False)
    class Scale(LinearOperator):
        '''y = factor * x.'''
        factor: float = 2.0

        def _forward(self, x): return self.factor * x
        def _adjoint(self, y): return self.factor * y
"""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import torch
from torch import Tensor

from invdiff.noise import generator_of

if TYPE_CHECKING:
    from invdiff.network import Denoiser
    from invdiff.problem.measurement import Measurement
from invdiff.problem.solvers import conjugate_gradients, rounds

Shape = tuple[int, ...]
GAINS = 1e-9, 1e9
"""Of Poisson noise: counts that are numbers, and that are not all zero."""


@dataclass(frozen=True, eq=False)
class Operator(ABC):
    """Any deterministic forward operator, differentiable in x and in the tensors among its
    parameters.

    Attributes:
        shape: shape of one image, (C, H, W) or (d,), once bound.
        state: the tensors made for that shape.

    Examples:
        >>> import torch
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True, eq=False)
        ... class Square(Operator):
        ...     '''y = x².'''
        ...     def _forward(self, x):
        ...         return x**2
        >>> Square()(torch.tensor([[[[0.5]]]]))
        tensor([[[[0.2500]]]])
    """

    shape: Shape | None = field(default=None, kw_only=True, repr=False, compare=False)
    state: Mapping[str, Tensor] = field(
        default_factory=dict, kw_only=True, repr=False, compare=False
    )

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        self = super().__new__(cls)
        object.__setattr__(self, "state", {})  # for subclasses with an __init__ of their own
        return self

    def __post_init__(self) -> None:  # noqa: B027  (for super() calls of subclasses)
        """For subclasses to check their parameters in."""

    @cached_property
    def _memo(self) -> dict[Any, Any]:
        """A cache of operators made from this one: bound ones, copies elsewhere."""
        return {}

    # What subclasses write ------------------------------------------------------------------------

    def make_state(self, shape: Shape) -> dict[str, Tensor]:
        """The tensors of this operator for images of ``shape``, float64 on the CPU; a pure function
        of its parameters."""
        return {}

    @abstractmethod
    def _forward(self, x: Tensor) -> Tensor:
        """A(x) for x (B, *shape)."""

    def image_shape(self, measurement_shape: Shape) -> Shape:
        """The image shape that gives measurements of ``measurement_shape`` (both without the
        batch)."""
        return measurement_shape

    def _observed(self, y: Tensor) -> Tensor:
        """y (B, *measurement shape) with zeros where nothing is measured, such as at missing
        pixels."""
        return y

    def fit(self, shape: Shape) -> Shape:
        """The largest image shape within ``shape`` that this operator takes."""
        return shape

    @property
    def unknown(self) -> tuple[str, ...]:
        """The names of state tensors that a run estimates along with the image; none of an
        operator that is known."""
        return ()

    def learned(self, x: Tensor, y: Tensor, ratio: float = 0.0) -> Self:
        """This operator with what is unknown as estimates x (B, *shape) of the images and their
        measurements y suggest it, for each image its own; itself where nothing is unknown. A bound
        operator of these images; A of a constant image must not depend on what is unknown. The
        estimates were made from states with noise of ``ratio`` = sigma_t / alpha_t times half the
        range of the images; 0 of images that are exact."""
        return self

    @property
    def estimates(self) -> dict[str, Tensor]:
        """What :meth:`learned` put in the place of what is unknown, (B, ...) each, by the names in
        :attr:`unknown`; empty before."""
        return {name: self.state[name] for name in self.unknown if name in self.per_image}

    def unknown_prior(self) -> tuple[Denoiser, Shape] | None:
        """A diffusion network of what is unknown and the shape of one of its states, which then
        diffuse along with the image; None where :meth:`learned` estimates it."""
        return None

    def drawn(self, state: Tensor) -> Self:
        """This operator with what is unknown as states (B, *shape) of the network of
        :meth:`unknown_prior` without noise show it, scaled to [0, 1]; differentiable in them."""
        raise NotImplementedError(f"{self.kind} has no network of what is unknown")

    def estimated(self, values: Mapping[str, Tensor]) -> Operator:
        """The known operator with what was estimated of one image in the place of what is unknown:
        ``values`` by the names in :attr:`unknown`, without a batch."""
        return self

    @property
    def kind(self) -> str:
        """Its name in messages."""
        return type(self).__name__

    def of_file(self, path: Path) -> Self:
        """This operator as it made the picture in a file, where the file says so (a JPEG file holds
        its quantisation)."""
        return self

    def measured_part(self, x: Tensor) -> Tensor:
        """The part of images x (B, *shape) that the picture of a measurement shows; all of them
        unless nothing is assumed beyond a border."""
        return x

    def of_complex_images(self) -> Operator:
        """This operator for complex images; the same unless it tells them from real ones."""
        return self

    @property
    def versions(self) -> dict[str, str]:
        """Package -> version, of what this operator is made by besides this package; recorded
        with a measurement."""
        return {}

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences, for the user, about what a bound operator assumes of the measurement."""
        return ()

    @classmethod
    def wanted(cls) -> str:
        """The name of the class in messages about what a method requires."""
        return f"a {cls.__name__}"

    # What users call ------------------------------------------------------------------------------

    def __call__(self, x: Tensor) -> Tensor:
        """A(x), for x (B, *shape)."""
        check_tensor(x, "x")
        return self._for_image(x)._forward(x)

    def __matmul__(self, other: Operator) -> Operator:
        """``A2 @ A1``: first A1, then A2; linear if both are."""
        from invdiff.problem.composite import composed

        return composed([other, self])

    def __add__(self, other: Operator) -> Operator:
        """``A + B``: x -> A(x) + B(x); linear if both are."""
        from invdiff.problem.algebra import added

        return added([self, other]) if isinstance(other, Operator) else NotImplemented

    def __mul__(self, factor: float | Tensor) -> Operator:
        """``factor * A``: x -> factor A(x); linear if A is. The factor is a number, or a tensor
        that holds one."""
        from invdiff.problem.algebra import multiplied

        number = isinstance(factor, int | float) or (
            isinstance(factor, Tensor) and factor.ndim == 0
        )
        return multiplied(self, factor) if number else NotImplemented

    __rmul__ = __mul__

    def __neg__(self) -> Operator:
        return -1 * self

    def __sub__(self, other: Operator) -> Operator:
        return self + -other if isinstance(other, Operator) else NotImplemented

    def measure(
        self,
        x: Tensor,
        sigma: float | Sequence[float] | Tensor = 0.0,
        seed: int = 0,
        gain: float = 0.0,
        image_ids: Sequence[int] | None = None,
    ) -> Measurement:
        """Simulates ``y = A(x) + sigma * n``, with Poisson noise of the given gain before it.

        Args:
            x: (B, C, H, W) images in [0, 1], or any (B, ...), complex ones too. Warns of what
                looks like images in another range.
            sigma: standard deviation of the Gaussian noise, in the units of y; a number or one per
                image.
            seed: of the noise; image k draws its own stream.
            gain: y is ``gain * Poisson(A(x) / gain)`` before the Gaussian noise; 0 is none. The
                measurement's sigma is then estimated per pixel, ``sqrt(sigma^2 + gain * y)``, as in
                the Gaussian approximation.
            image_ids: the k of each image; by default 0..B-1.
        """
        from invdiff.problem.measurement import Measurement, per_image

        if self.unknown:
            raise ValueError(
                f"the {' and '.join(self.unknown)} of this {self.kind} is unknown, so that nothing "
                "can be simulated with it: give what was measured (--measurement FILE, or "
                "Measurement(y, operator, sigma)), or say what it is"
            )
        check_tensor(x, "x")
        if not x.is_floating_point() and not x.is_complex():
            raise TypeError(
                f"x must be a float tensor, images in [0, 1]; got {x.dtype} (divide 8-bit "
                "values by 255)"
            )
        if gain != 0 and not GAINS[0] <= gain <= GAINS[1]:
            raise ValueError(
                f"gain must be 0, for no Poisson noise, or between {GAINS[0]:g} and {GAINS[1]:g}, "
                f"got {gain:.6g}"
            )
        _check_range(x)
        operator = (self.of_complex_images() if x.is_complex() else self).bind(tuple(x.shape[1:]))
        y = operator(x)
        if gain > 0 and y.is_complex():
            raise ValueError(f"Poisson noise is of real counts, but {self.kind} gives complex y")
        std = per_image(sigma, y)
        generators = [generator_of("measurement", seed, k) for k in (image_ids or range(len(y)))]
        if gain > 0:
            counts = [
                torch.poisson(row.clamp(min=0).cpu() / gain, generator=g)
                for row, g in zip(y, generators, strict=True)
            ]
            y = gain * torch.stack(counts).to(y)
        noise = torch.stack(
            [
                torch.randn(row.shape, dtype=row.dtype, generator=g)
                for row, g in zip(y, generators, strict=True)
            ]
        )
        y = y + std * noise.to(y.device)  # Measurement drops it where nothing is measured
        if gain > 0:
            std = poisson_sigma(y, std, gain)
        return Measurement(y, operator, std)

    @property
    def parameters(self) -> dict[str, Any]:
        """The fields a subclass declares: what ``make_operator`` needs to make it again."""
        maker = next(c for c in type(self).__mro__ if "__init__" in vars(c))
        if "__dataclass_fields__" in vars(maker):
            names = [f.name for f in dataclasses.fields(self)]
        else:  # it has an __init__ of its own, whose arguments are attributes of the same names
            names = list(inspect.signature(type(self)).parameters)
        return {name: getattr(self, name) for name in names if name not in ("shape", "state")}

    def bind(self, shape: Shape) -> Self:
        """This operator for images of one shape, with its tensors made."""
        shape = tuple(int(n) for n in shape)
        if self.shape is None and self.traced:
            return self._changed(shape=shape, state=self.make_state(shape))
        if self.shape is None:
            if shape not in self._memo:
                self._memo[shape] = self._changed(shape=shape, state=self.make_state(shape))
            return self._memo[shape]
        if self.shape != shape:
            raise ValueError(
                f"this {type(self).__name__} is bound to images of shape {self.shape}, got {shape}"
            )
        return self

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Self:
        """A copy whose floating-point state lies on ``device`` in ``dtype``."""

        def move(v: Tensor) -> Tensor:
            return (
                v.to(device, _complex_of(dtype) if v.is_complex() else dtype)
                if v.is_floating_point() or v.is_complex()
                else v.to(device)
            )

        return self._changed(state={k: move(v) for k, v in self.state.items()})

    def select(self, images: Tensor) -> Self:
        """The operator of some images of the batch. State with a batch dimension (named in
        ``per_image``) is indexed."""
        batched = {k: v[images.to(v.device)] for k, v in self.state.items() if k in self.per_image}
        return self._changed(state={**self.state, **batched}) if batched else self

    @property
    def traced(self) -> bool:
        """Whether a tensor among its parameters or its state requires a gradient. What is made of
        it is then made anew each time: a graph serves one backward pass, and an optimiser changes
        the parameter in place."""
        given = (*self.parameters.values(), *self.state.values())
        return any(v.requires_grad for v in given if isinstance(v, Tensor))

    @property
    def per_image(self) -> frozenset[str]:
        """Names of state tensors whose first dimension is the batch."""
        return frozenset()

    @property
    def measurement_shape(self) -> Shape:
        """Shape of one measurement, once bound."""
        assert self.shape is not None
        memo = self._memo
        if "measurement_shape" in memo:
            return memo["measurement_shape"]
        # On an image of zeros: the meta device, which would do without one, makes torch import its
        # compiler, two seconds.
        state = {k: v[:1] if k in self.per_image else v for k, v in self.state.items()}
        probe = self._changed(state=state)
        held = next((v for v in state.values() if v.is_floating_point() or v.is_complex()), None)
        real = torch.float32 if held is None else held.real.dtype
        zeros = torch.zeros(
            1, *self.shape, dtype=real, device=None if held is None else held.device
        )
        with torch.no_grad():
            try:
                y = probe._forward(zeros)
            except RuntimeError:  # constants that are no state may be in another precision
                y = probe._forward(zeros.double() if real != torch.float64 else zeros.float())
        memo["measurement_shape"] = tuple(y.shape[1:])
        return memo["measurement_shape"]

    def _changed(self, **changes: Any) -> Self:
        """A copy with another shape or state; its parameters stay."""
        changed = object.__new__(type(self))
        vars(changed).update({k: v for k, v in vars(self).items() if k != "_memo"} | changes)
        return changed

    def _for_image(self, x: Tensor) -> Self:
        return self.bind(tuple(x.shape[1:]))._like(x)

    def _for_measurement(self, y: Tensor) -> Self:
        shape = self.image_shape(tuple(y.shape[1:])) if self.shape is None else self.shape
        bound = self.bind(shape)
        if tuple(y.shape[1:]) != bound.measurement_shape:
            raise ValueError(
                f"{type(self).__name__} gives measurements of shape "
                f"{bound.measurement_shape} for images of shape {shape}, got "
                f"{tuple(y.shape[1:])}"
            )
        return bound._like(y)

    def _like(self, x: Tensor) -> Self:
        real = x.real.dtype if x.is_complex() else x.dtype
        if all(
            v.device == x.device and _real_of(v.dtype) == real
            for v in self.state.values()
            if v.is_floating_point() or v.is_complex()
        ):
            return self
        if self.traced:
            return self.to(x.device, real)
        memo, key = self._memo, (x.device, real)
        if key not in memo:
            memo[key] = self.to(x.device, real)
        return memo[key]


def _complex_of(dtype: torch.dtype | None) -> torch.dtype | None:
    return (
        None if dtype is None else torch.complex128 if dtype == torch.float64 else torch.complex64
    )


def _real_of(dtype: torch.dtype) -> torch.dtype:
    return {torch.complex128: torch.float64, torch.complex64: torch.float32}.get(dtype, dtype)


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


def poisson_sigma(y: Tensor, sigma: float | Tensor, gain: float) -> Tensor:
    """The standard deviation of ``y = gain * Poisson(A(x) / gain) + sigma * n`` at each pixel, as
    estimated from y itself: ``sqrt(sigma^2 + gain * y)``, with at least one count."""
    return torch.sqrt(torch.as_tensor(sigma) ** 2 + gain * y.clamp(min=gain))


def check_tensor(x: object, what: str) -> None:
    """Refuses what is no tensor, and half precision, which is too coarse for a measurement.

    Raises:
        TypeError: says how to convert it.
    """
    if not isinstance(x, Tensor):
        how = f"; torch.from_numpy({what}) makes one" if hasattr(x, "__array__") else ""
        raise TypeError(f"{what} must be a tensor (B, ...), got {type(x).__name__}{how}")
    if x.dtype in (torch.float16, torch.bfloat16):
        raise TypeError(f"{what} is {x.dtype}, too coarse for a measurement; give {what}.float()")


def _check_range(x: Tensor) -> None:
    """Warns where x looks like images, but not like images in [0, 1]: latents, vectors and toys of
    a few pixels are as they are."""
    if x.ndim != 4 or x.shape[1] not in (1, 3) or min(x.shape[2:]) < 16 or x.is_meta or len(x) == 0:
        return
    if x.is_complex():
        return
    low, high = (float(v) for v in x.detach().aminmax())
    if low < -0.5 or high > 1.5:
        range_, how = ("[0, 255]", "x / 255") if high > 2 else ("[-1, 1]", "(x + 1) / 2")
        warnings.warn(
            f"x has values from {low:.3g} to {high:.3g}, but images are in [0, 1] here, "
            "whatever the network's own range; "
            f"if these are in {range_}, give {how}",
            stacklevel=3,
        )


def broadcastable(value: float | Tensor, ndim: int) -> float | Tensor:
    """One number per image, ready to broadcast against images."""
    return (
        value.view(-1, *(1,) * (ndim - 1))
        if isinstance(value, Tensor) and value.ndim == 1
        else value
    )


Kind = TypeVar("Kind", bound=Operator)


def of_kind(operator: Operator, kind: type[Kind]) -> Kind:
    """The operator, typed as the kind that a piece declares to require.

    Raises:
        TypeError: it is of another kind.
    """
    if not isinstance(operator, kind):
        raise TypeError(
            f"{operator.kind} is not {kind.wanted()}; a piece that needs one declares "
            f"requires = {kind.__name__}"
        )
    return operator
