"""Everything that touches deepinv (https://deepinv.github.io, 0.5.*): its physics as operators, its
motion kernels.

    Physics              -> PhysicsOperator          y = A(x)
    LinearPhysics        -> LinearPhysicsOperator    with A* from ``A_adjoint``; A† and prox by our
                                                     conjugate gradients
    DecomposablePhysics  -> SpectralPhysicsOperator  A = U diag(mask) V*, once bound, where its
                                                     parts are an SVD in our sense

Noise and sensor model of the physics are not part of A: give the noise to the measurement as sigma.
The physics is copied and called without keyword arguments, which in deepinv would change it for
good. Images and measurements that are no real tensors are seen as one tensor each, see
:mod:`invdiff.problem.views`. A physics that says it is linear is tested when it is bound: with
random u and y, <A u, y> = <u, A* y>.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Protocol, Self

import deepinv
import torch
from deepinv.physics import BlurFFT, DecomposablePhysics, LinearPhysics, Physics
from torch import Tensor

from invdiff.noise import generator_of, seed_of
from invdiff.problem.linear import LinearOperator
from invdiff.problem.operator import Operator, Shape
from invdiff.problem.spectral import SpectralOperator
from invdiff.problem.views import SAME, View, views

DOT = 1e-3
"""Of ‖A u‖ ‖y‖: by how much <A u, y> and <u, A* y> may differ, a hundred times what float32
makes of them."""


class Recipe(Protocol):
    """How a physics that is known by name is made for images of one shape."""

    @property
    def name(self) -> str:
        """The name that it is registered by."""

    @property
    def parameters(self) -> dict[str, Any]:
        """What makes this recipe again."""

    def __call__(self, shape: Shape) -> Iterator[Physics]:
        """The physics, with what is not said about the image's size filled in, in each way that
        the size may be meant."""

    def misfit(self, shape: Shape) -> str:
        """What among the arguments is for images of another size; empty where nothing is."""


class UnsuitableError(ValueError):
    """A physics does not take images of a shape."""


def motion_kernel(size: int, intensity: float, seed: int) -> Tensor:
    """The kernel (size, size) of a random camera path, a pure function of its arguments, float64.

    The path is a Gaussian process of standard deviation ``intensity / 2`` in units of half the
    kernel (deepinv's ``MotionBlurGenerator``, after Schuler et al. 2015).
    """
    generator = deepinv.physics.generator.MotionBlurGenerator(
        (size, size),
        rng=torch.Generator("cpu").manual_seed(seed_of("motion", seed)),
        dtype=torch.float64,
        sigma=intensity / 2,
    )
    kernel = generator.step(1)["filter"][0, 0].to(torch.float64)
    if not bool(kernel.sum() > 0):
        raise ValueError(
            f"the camera path of seed {seed} leaves the kernel of {size} pixels; take "
            "another seed or less intensity"
        )
    return kernel / kernel.sum()


def edm_network(kind: str, config: dict[str, Any]) -> torch.nn.Module:
    """deepinv's ``NCSNpp`` (``"ncsn"`` or ``"ddpm"``) or ``ADMUNet`` (``"adm"``), without weights
    worth having. Nothing is downloaded, and the global random numbers stay as they were."""
    with torch.random.fork_rng(devices=[]):
        if kind == "adm":
            return deepinv.models.ADMUNet(pretrained=None, **config)
        return deepinv.models.NCSNpp(model_type=kind, pretrained=None, **config)


def from_physics(physics: Physics, check: bool = True, complex_images: bool = False) -> Operator:
    """A ``deepinv.physics.Physics`` as an operator. The object given is copied, never changed.

    Args:
        check: whether a linear one is tested when it is bound.
        complex_images: whether images are complex, which A* then gives; else they are real, also
            where the physics itself wants complex ones.
    """
    if not isinstance(physics, Physics):
        raise TypeError(
            f"from_physics takes a deepinv.physics.Physics, got {type(physics).__name__}"
        )
    kind = LinearPhysicsOperator if isinstance(physics, LinearPhysics) else PhysicsOperator
    return kind(_copy(physics), state=_tensors(physics), check=check, complex_images=complex_images)


def by_recipe(
    recipe: Recipe,
    linear: bool,
    check: bool,
    complex_images: bool,
    shape: Shape | None,
    state: Mapping[str, Tensor],
) -> Operator:
    """A physics by name, which is made when it is bound; with a shape it is bound, to the tensors
    in ``state``."""
    kind = LinearPhysicsOperator if linear else PhysicsOperator
    made = kind(
        recipe=recipe, check=check, complex_images=complex_images, registered_as=recipe.name
    )
    if shape is None:
        return made
    bound = made.bind(shape)
    if set(state) != set(bound.state):
        raise ValueError(
            f"{made.kind} of deepinv {version('deepinv')} has the tensors "
            f"{', '.join(bound.state) or '(none)'}, but {', '.join(state) or '(none)'} were given"
        )
    return bound._with_state(state) if state else bound


def _copy(physics: Physics) -> Physics:
    try:
        return copy.deepcopy(physics)
    except (TypeError, RuntimeError):  # torch.Generator objects inside
        return physics.clone()


def _tensors(physics: Physics) -> dict[str, Tensor]:
    named = dict(physics.named_parameters()) | dict(physics.named_buffers())
    return {
        name: tensor.detach()
        for name, tensor in named.items()
        if not name.startswith("noise_model.") and not name.endswith("initial_random_state")
    }


@dataclass(frozen=True, eq=False)
class PhysicsOperator(Operator):
    """Any ``deepinv.physics.Physics``, of an object (:func:`from_physics`), which cannot be written
    to a file, or by name (:func:`by_recipe`).

    Attributes:
        physics: the copy; None by name and not bound.
        recipe: how it is made, by name.
        check: whether a linear one is tested when it is bound.
        complex_images: whether images are complex.
        output_shape: shape of a measurement, once bound.
        images: how many images the physics holds parameters for; 1 where they are shared.
        view: how its images and measurements are seen as one tensor, once bound.
        alone: whether images are given to it one by one, since it mixes those of a batch.
        registered_as: the name that it is recorded by; None of an object.
    """

    physics: Any = None
    recipe: Recipe | None = dataclasses.field(default=None, kw_only=True, repr=False)
    check: bool = dataclasses.field(default=True, kw_only=True, repr=False)
    complex_images: bool = dataclasses.field(default=False, kw_only=True, repr=False)
    output_shape: Shape | None = dataclasses.field(default=None, kw_only=True, repr=False)
    images: int = dataclasses.field(default=1, kw_only=True, repr=False)
    view: View = dataclasses.field(default=SAME, kw_only=True, repr=False)
    alone: bool = dataclasses.field(default=False, kw_only=True, repr=False)
    registered_as: str | None = dataclasses.field(default=None, kw_only=True, repr=False)

    @property
    def versions(self) -> dict[str, str]:
        return {"deepinv": version("deepinv")}

    @property
    def kind(self) -> str:
        return f"deepinv's {type(self.physics).__name__}" if self.recipe is None else self._name

    @property
    def _name(self) -> str:
        return type(self.physics).__name__ if self.recipe is None else self.recipe.name

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(f"{self._name}: {note}" for note in self.view.notes)

    @property
    def parameters(self) -> dict[str, Any]:
        if self.recipe is None:
            return {"physics": self._name}
        options = {"check": (self.check, True), "complex_images": (self.complex_images, False)}
        changed = {name: value for name, (value, usual) in options.items() if value != usual}
        return self.recipe.parameters | changed

    def of_complex_images(self) -> Self:
        if self.complex_images:
            return self
        if self.shape is not None:
            raise ValueError(
                f"{self.kind} is bound to real images of shape {self.shape}, whose imaginary part "
                "A* drops, and x is complex; make it with complex_images=True, or give x to one "
                "that is not bound"
            )
        return dataclasses.replace(self, complex_images=True)

    def bind(self, shape: Shape) -> Self:
        if self.shape is not None:
            return super().bind(shape)
        shape = tuple(int(n) for n in shape)
        memo = self._memo
        if shape not in memo:
            try:
                memo[shape] = self._settled(shape)
            except UnsuitableError as error:
                raise UnsuitableError(f"{error}{self._works_on(shape)}") from error
        return memo[shape]

    def _works_on(self, shape: Shape) -> str:
        """The numbers of channels with which images of this size suit it, as a remark."""
        others = []
        for channels in (1, 2, 3):
            if channels != shape[0]:
                with contextlib.suppress(ValueError):
                    self._settled((channels, *shape[1:]))
                    others.append(str(channels))
        return f"; images of {' or '.join(others)} channels suit it" if others else ""

    def _settled(self, shape: Shape) -> Self:
        """Bound and tested, the physics made for this shape where it is known by name.

        Raises:
            ValueError: it does not work on such images, or is not what it says.
        """
        errors = []
        for physics in [self.physics] if self.recipe is None else self.recipe(shape):
            own = dataclasses.replace(self, physics=physics, state=_tensors(physics))
            if self.recipe is None:
                own = self
            try:
                bound = own._viewed(shape)
                if bound.check:
                    bound._check(bound)
                return bound
            except ValueError as error:
                errors.append(error)
        raise errors[0]

    def _viewed(self, shape: Shape) -> Self:
        """Bound under the first view in which A takes an image; parameters held for several images
        make one several measurements."""
        errors = []
        for view in views(shape, self.complex_images):
            try:
                given = self.physics.A(view.given(self._zeros(shape)))
                seen = view.of(given)
                y = seen.measured(given)
                self._check_view(shape, seen, y)
            except Exception as error:
                errors.append(error)
            else:
                viewed = dataclasses.replace(self, view=seen)
                if len(y) == 1:
                    viewed = dataclasses.replace(viewed, alone=not viewed._batches(shape))
                return viewed._bound(shape, tuple(y.shape[1:]), len(y))
        misfit = "" if self.recipe is None else self.recipe.misfit(shape)
        raise UnsuitableError(
            f"{self.kind} does not work on images of shape {shape}: {misfit or _said(errors[0])}"
        ) from errors[0]

    def _batches(self, shape: Shape) -> bool:
        """Whether it takes two images at once, and neither changes what the other gives."""
        like = self._zeros(shape)
        if like.is_meta:
            return True
        draw = generator_of("batches")
        x = torch.rand(2, *shape, generator=draw, dtype=like.real.dtype).to(like)
        with torch.no_grad():
            alone = torch.cat([self._forward(x[:1]), self._forward(x[1:])])
            try:
                both = self._forward(x)
            except Exception:  # whatever a class raises that was written for one image
                return False
        return both.shape == alone.shape and bool((both - alone).norm() <= 1e-3 * alone.norm())

    def _bound(self, shape: Shape, output_shape: Shape, images: int) -> Self:
        return dataclasses.replace(self, shape=shape, output_shape=output_shape, images=images)

    def _check_view(self, shape: Shape, view: View, y: Tensor) -> None:
        """Refuses a view in which images only broadcast; nothing tells it of a nonlinear one."""

    def _check(self, bound: PhysicsOperator) -> None:
        """Tests what it says of itself, once bound; nothing of a nonlinear one."""

    def _zeros(self, shape: Shape) -> Tensor:
        like = next(
            (v for v in self.state.values() if v.is_floating_point() or v.is_complex()),
            torch.zeros(()),
        )
        zeros = torch.zeros(1, *shape, dtype=like.real.dtype, device=like.device)
        return torch.complex(zeros, zeros) if self.complex_images else zeros

    def image_shape(self, measurement_shape: Shape) -> Shape:
        for shape in self._candidates(measurement_shape):
            with contextlib.suppress(ValueError):  # not this one; what remains is tried
                if self._settled(shape).measurement_shape == measurement_shape:
                    return shape
        how = (
            f"invdiff.make_operator({self.recipe.name!r}, ...).bind((C, H, W)), or img_size=[C,H,W]"
            if self.recipe is not None
            else "invdiff.make_operator(physics).bind((C, H, W))"
        )
        raise ValueError(
            f"{self.kind} does not tell which images give measurements of shape "
            f"{measurement_shape}; say it: {how}"
        )

    def _candidates(self, measurement_shape: Shape) -> Iterator[Shape]:
        given = {} if self.recipe is None else self.recipe.parameters
        size = given.get("img_size", getattr(self.physics, "img_size", None))
        if isinstance(size, tuple | list | torch.Size) and len(size) > 0:
            yield tuple(int(n) for n in size)
        if isinstance(self.physics, LinearPhysics):
            with contextlib.suppress(Exception):  # a candidate less
                zeros = self._zeros(measurement_shape)
                yield tuple(self.physics.A_adjoint(zeros).shape[1:])
        yield measurement_shape

    @property
    def measurement_shape(self) -> Shape:
        assert self.output_shape is not None
        return self.output_shape

    @property
    def per_image(self) -> frozenset[str]:
        return frozenset(
            k
            for k, v in self.state.items()
            if self.images > 1 and v.ndim > 0 and len(v) == self.images
        )

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Self:
        moved = super().to(device, dtype)
        return moved._with_state(moved.state) if self.physics is not None else moved

    def select(self, images: Tensor) -> Self:
        selected = super().select(images)
        return (
            selected
            if selected is self
            else dataclasses.replace(selected._with_state(selected.state), images=len(images))
        )

    def _with_state(self, state: Any) -> Self:
        """A copy whose physics holds the tensors of ``state``."""
        physics = _copy(self.physics)
        for name, tensor in state.items():
            path, _, last = name.rpartition(".")
            owner = physics.get_submodule(path)
            held = owner._parameters if last in owner._parameters else owner._buffers
            held[last] = (
                torch.nn.Parameter(tensor, requires_grad=False)
                if held is owner._parameters
                else tensor
            )
        return dataclasses.replace(self, physics=physics, state=state)

    def _forward(self, x: Tensor) -> Tensor:
        return self._each(lambda own: self.view.measured(self.physics.A(self.view.given(own))), x)

    def _each(self, do: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
        """What ``do`` makes of a batch, image by image where it must."""
        if not self.alone or len(batch) < 2:
            return do(batch)
        return torch.cat([do(own) for own in batch.split(1)])


@dataclass(frozen=True, eq=False)
class LinearPhysicsOperator(PhysicsOperator, LinearOperator):
    """A ``deepinv.physics.LinearPhysics``. Bound, it becomes a :class:`SpectralPhysicsOperator`
    where that is exact."""

    def _bound(self, shape: Shape, output_shape: Shape, images: int) -> Self:
        bound = super()._bound(shape, output_shape, images)
        if not isinstance(self.physics, DecomposablePhysics) or not self.view.plain:
            return bound
        fields = {f.name: getattr(bound, f.name) for f in dataclasses.fields(bound)}
        spectral = SpectralPhysicsOperator(**fields)
        return spectral if spectral.is_exact() else bound  # type: ignore[return-value]

    def _check_view(self, shape: Shape, view: View, y: Tensor) -> None:
        try:
            back = tuple(view.image(self.physics.A_adjoint(view.parts_of(y))).shape[1:])
        except Exception:  # an adjoint that does not work is for the dot test to tell
            return
        if back != shape:
            raise ValueError(f"its adjoint gives images of shape {back}")

    def _check(self, bound: PhysicsOperator) -> None:
        """The dot test: <A u, y> = <u, A* y> for a random u, and a y that is half A u.

        Raises:
            ValueError: they differ, or A* does not work.
        """
        assert isinstance(bound, LinearPhysicsOperator)
        assert bound.shape is not None
        like = bound._zeros(bound.shape)
        if like.is_meta:
            return
        draw = generator_of("dot_test")
        u = torch.randn(bound.images, *bound.shape, generator=draw, dtype=like.dtype)
        u = u.to(like.device)
        try:
            with torch.no_grad():
                au = bound._forward(u)
                w = torch.randn(au.shape, generator=draw, dtype=au.dtype).to(au)
                size = float(au.norm())
                y = w / w.norm() + (au / size if size > 0 else 0.0)
                left, right = _dot(au, y), _dot(u, bound._adjoint(y))
        except Exception as error:
            raise ValueError(
                f"the adjoint of {self.kind} does not work for images of shape {bound.shape}: "
                f"{_said(error)}; check=False (operator.check=false) takes A alone"
            ) from error
        scale = max(size * float(y.norm()), 1e-12)
        if not abs(left - right) <= DOT * scale:
            raise ValueError(
                f"{self.kind} is wrong on images of shape {bound.shape}: <A u, y> = {left:.4g}, "
                f"but <u, A* y> = {right:.4g}, so A* is not the adjoint of A (or A not linear); "
                "check=False (operator.check=false) takes it all the same, for methods that "
                "differentiate A and have no use for A*, such as dps"
            )

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._each(
            lambda own: self.view.image(self.physics.A_adjoint(self.view.parts_of(own))), y
        )


def _dot(a: Tensor, b: Tensor) -> float:
    """The real inner product, in float64."""
    wide = torch.complex128 if a.is_complex() or b.is_complex() else torch.float64
    return float((a.to(wide).conj() * b.to(wide)).sum().real)


def _said(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


@dataclass(frozen=True, eq=False)
class SpectralPhysicsOperator(LinearPhysicsOperator, SpectralOperator):
    """A ``deepinv.physics.DecomposablePhysics`` whose U, mask and V are a singular value
    decomposition of our layout."""

    def is_exact(self) -> bool:
        """Checks on random arrays that V is orthogonal, U isometric where it matters, s >= 0 and U
        s V* = A."""
        assert self.shape is not None and self.output_shape is not None
        like = self._zeros(self.shape)
        if like.device.type == "meta":
            return False
        draw = generator_of("deepinv_adapter")
        x, y = (
            torch.randn(self.images, *n, generator=draw, dtype=like.dtype).to(like.device)
            for n in (self.shape, self.output_shape)
        )

        def close(a: Tensor, b: Tensor) -> bool:
            return a.shape == b.shape and bool((a - b).norm() <= 1e-4 * b.norm())

        try:
            s, z, w = self._singular_values(), self._vt(x), self._ut(y)
            if (
                s.is_complex()
                or not bool((s >= 0).all())
                or not (s * z).shape == z.shape == w.shape
            ):
                return False
            return (
                math.isclose(float(z.norm()), float(x.norm()), rel_tol=1e-4)
                and close(self._v(z), x)
                and close(self._ut(self._u(s * z)), s * z)
                and close(self._u(s * z), self._forward(x))
                and close(self._v(s * w), self._adjoint(y))
            )
        except (
            Exception
        ):  # parts that do not fit together are no SVD of ours; the physics stays linear
            return False

    def _weights(self) -> Tensor | float:
        """BlurFFT keeps half of the frequencies: those that stand for two weigh sqrt(2), which
        makes V orthogonal."""
        if not isinstance(self.physics, BlurFFT):
            return 1.0
        assert self.shape is not None
        width = self.shape[-1]
        mask = self.physics.mask
        weights = mask.new_full((width // 2 + 1, 1), math.sqrt(2))
        weights[0] = 1.0
        if width % 2 == 0:
            weights[-1] = 1.0
        return weights

    def _singular_values(self) -> Tensor:
        assert self.shape is not None
        s = self.physics.mask
        shape = tuple(s.shape[1:]) if isinstance(self.physics, BlurFFT) else self.shape
        return s.expand(self.images, *shape) if self.images > 1 else s.expand(1, *shape)[0]

    # SpectralOperator's come first otherwise.
    _forward = PhysicsOperator._forward
    _adjoint = LinearPhysicsOperator._adjoint

    def _vt(self, x: Tensor) -> Tensor:
        return self._weights() * self.physics.V_adjoint(x)

    def _v(self, z: Tensor) -> Tensor:
        return self.physics.V(z / self._weights())

    def _ut(self, y: Tensor) -> Tensor:
        return self._weights() * self.physics.U_adjoint(y)

    def _u(self, z: Tensor) -> Tensor:
        return self.physics.U(z / self._weights())
