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
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from invdiff.network import Denoiser
    from invdiff.problem.measurement import Measurement

Shape = tuple[int, ...]


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
        from invdiff.problem.simulate import simulated

        return simulated(self, x, sigma, seed, gain, image_ids)

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
