"""Everything that touches deepinv (https://deepinv.github.io, 0.5.*): its physics as operators, its
motion kernels.

    Physics              -> PhysicsOperator          y = A(x)
    LinearPhysics        -> LinearPhysicsOperator    with A* from ``A_adjoint``; A† and prox by our
                                                     conjugate gradients
    DecomposablePhysics  -> SpectralPhysicsOperator  A = U diag(mask) V*, once bound, where its
                                                     parts are an SVD in our sense

Noise and sensor model of the physics are not part of A: give the noise to the measurement as sigma.
The physics is copied and called without keyword arguments, which in deepinv would change it for
good.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Self

import deepinv
import torch
from deepinv.physics import BlurFFT, DecomposablePhysics, LinearPhysics, Physics
from torch import Tensor

from invdiff.noise import generator_of, seed_of
from invdiff.problem.operator import LinearOperator, Operator, Shape
from invdiff.problem.spectral import SpectralOperator


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


def from_physics(physics: Physics) -> Operator:
    """A ``deepinv.physics.Physics`` as an operator. The object given is copied, never changed."""
    if not isinstance(physics, Physics):
        raise TypeError(
            f"from_physics takes a deepinv.physics.Physics, got {type(physics).__name__}"
        )
    kind = LinearPhysicsOperator if isinstance(physics, LinearPhysics) else PhysicsOperator
    return kind(_copy(physics), state=_tensors(physics))


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
        if not name.startswith("noise_model.")
    }


@dataclass(frozen=True, eq=False)
class PhysicsOperator(Operator):
    """Any ``deepinv.physics.Physics``; made by :func:`from_physics`. It cannot be written to a
    file.

    Attributes:
        physics: the copy.
        output_shape: shape of a measurement, once bound.
        images: how many images the physics holds parameters for; 1 where they are shared.
    """

    physics: Any = None
    output_shape: Shape | None = dataclasses.field(default=None, kw_only=True, repr=False)
    images: int = dataclasses.field(default=1, kw_only=True, repr=False)

    @property
    def parameters(self) -> dict[str, Any]:
        return {"physics": type(self.physics).__name__}

    def bind(self, shape: Shape) -> Self:
        if self.shape is not None:
            return super().bind(shape)
        shape = tuple(int(n) for n in shape)
        memo = self._memo
        if shape not in memo:
            y = self._try(shape)
            memo[shape] = self._bound(shape, tuple(y.shape[1:]), len(y))
        return memo[shape]

    def _bound(self, shape: Shape, output_shape: Shape, images: int) -> Self:
        return dataclasses.replace(self, shape=shape, output_shape=output_shape, images=images)

    def _try(self, shape: Shape) -> Tensor:
        """A(0) for one image; parameters held for several images make it several measurements."""
        name = type(self.physics).__name__
        try:
            y = self.physics.A(self._zeros(shape))
        except Exception as error:
            raise ValueError(
                f"deepinv's {name} does not work on images of shape {shape}: "
                f"{type(error).__name__}: {error}"
            ) from error
        if not isinstance(y, Tensor):
            raise ValueError(
                f"deepinv's {name} gives a {type(y).__name__}; only physics that give one "
                "tensor are supported"
            )
        return y

    def _zeros(self, shape: Shape) -> Tensor:
        like = next(
            (v for v in self.state.values() if v.is_floating_point() or v.is_complex()),
            torch.zeros(()),
        )
        return torch.zeros(1, *shape, dtype=like.real.dtype, device=like.device)

    def image_shape(self, measurement_shape: Shape) -> Shape:
        candidates = []
        size = getattr(self.physics, "img_size", None)
        if isinstance(size, tuple | list | torch.Size) and len(size) > 0:
            candidates.append(tuple(int(n) for n in size))
        if isinstance(self.physics, LinearPhysics):
            with contextlib.suppress(
                Exception
            ):  # a candidate less; what remains is tried all the same
                candidates.append(
                    tuple(self.physics.A_adjoint(self._zeros(measurement_shape)).shape[1:])
                )
        candidates.append(measurement_shape)
        for shape in candidates:
            try:
                if tuple(self._try(shape).shape[1:]) == measurement_shape:
                    return shape
            except ValueError:
                continue
        raise ValueError(
            f"deepinv's {type(self.physics).__name__} does not tell which images give "
            f"measurements of shape {measurement_shape}; "
            "say it: invdiff.make_operator(physics).bind((C, H, W))"
        )

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
        return moved._with_state(moved.state)

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
        return self.physics.A(x)


@dataclass(frozen=True, eq=False)
class LinearPhysicsOperator(PhysicsOperator, LinearOperator):
    """A ``deepinv.physics.LinearPhysics``. Bound, it becomes a :class:`SpectralPhysicsOperator`
    where that is exact."""

    def _bound(self, shape: Shape, output_shape: Shape, images: int) -> Self:
        bound = super()._bound(shape, output_shape, images)
        if not isinstance(self.physics, DecomposablePhysics):
            return bound
        fields = {f.name: getattr(bound, f.name) for f in dataclasses.fields(bound)}
        spectral = SpectralPhysicsOperator(**fields)
        return spectral if spectral.is_exact() else bound  # type: ignore[return-value]

    def _adjoint(self, y: Tensor) -> Tensor:
        return self.physics.A_adjoint(y)


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
