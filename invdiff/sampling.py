"""The one sampling loop, and what a step knows.

    for i, (t, s) in enumerate(pairwise(levels)):
        x = transition(predict, x, Step(i, t, s, ...), measurement)

Nothing in it knows a method's name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from itertools import pairwise
from types import MappingProxyType
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from invdiff.denoiser import Denoiser, Prediction
from invdiff.measurement import Measurement
from invdiff.noise import NoiseSource
from invdiff.operator import Operator
from invdiff.schedules import Level, Schedule

Denoise = Callable[..., Prediction]
"""``denoise(x_t, level, **cond) -> Prediction``: a network, or a network under guidance. Among the keywords ``clip_x0=False`` asks for
predictions that are not clipped yet, see :class:`~invdiff.denoiser.Denoiser`."""


@dataclass(frozen=True)
class Step:
    """One step of the loop, from level t to level s.

    Attributes:
        index: 0, 1, ... ; count: how many steps the run has.
        t, s: the level of the state, and the next level; s may be noisier than t (a climb).
        schedule: the schedule that is sampled.
        noise: where all randomness comes from.
        last: the prediction of the step before; None at the start and after a climb.
        memory: a dict of this guidance (or transition) alone, kept through the run.
        particles: how many consecutive rows of the state are samples of one image: the particle system of pieces that say so
            (:attr:`Piece.particles`), 1 for all others.
    """

    index: int
    t: Level
    s: Level
    schedule: Schedule
    noise: NoiseSource
    count: int = 1
    last: Prediction | None = None
    memory: dict[str, Any] = field(default_factory=dict)
    particles: int = 1

    def randn_like(self, x: Tensor) -> Tensor:
        """Standard normal noise shaped as x; image k's comes from its own stream."""
        return self.noise.randn_like(x)

    @property
    def climbs(self) -> bool:
        """Whether s is noisier than t."""
        return float(self.s.sigma) * float(self.t.alpha) > float(self.t.sigma) * float(self.s.alpha)


@dataclass(frozen=True)
class Setting:
    """What a run is made of, as its pieces see it once, before sampling starts.

    Attributes:
        denoiser: the network.
        shape: (B, C, H, W) of the images, all of them.
        measurement: of these images, in the network's range; None when generating.
        cond: what the run gives to the network.
        device, dtype: of the state.
    """

    denoiser: Denoiser
    shape: tuple[int, ...]
    measurement: Measurement | None
    cond: Mapping[str, Any]
    device: torch.device
    dtype: torch.dtype


class Piece:
    """Base of guidance and transitions.

    Attributes:
        requires: the kind of operator it needs, checked before sampling; None where it needs no measurement.
        one_sigma: whether it needs one noise level per image and none per pixel, checked before sampling.
        per_image: fields that hold, once bound, a tensor of one entry per image (or a mapping of such tensors).
        particles: whether the samples of an image are one particle system, weighed against each other: they then share a batch.
    """

    requires: ClassVar[type[Operator] | None] = None
    one_sigma: ClassVar[bool] = False
    per_image: ClassVar[tuple[str, ...]] = ()
    particles: ClassVar[bool] = False

    def bind(self, setting: Setting) -> Self:
        """This piece made ready for a run: its fields checked and on the run's device. Called once, before sampling.

        Raises:
            ValueError: what cannot work, with both sides named.
        """
        name = type(self).__name__
        if self.requires is not None and setting.measurement is None:
            raise ValueError(f"{name} restores a measurement, but there is none: use it with solve, or generate with another method")
        if self.requires is not None and not isinstance(operator := setting.measurement.operator, self.requires):  # type: ignore[union-attr]
            raise ValueError(f"{name} requires {self.requires.wanted()}, but {operator.kind} is not one; choose another method or operator")
        if self.one_sigma and setting.measurement is not None:
            setting.measurement.image_sigma(name)
        return self._with(lambda piece: piece.bind(setting))

    def select(self, images: Sequence[int]) -> Self:
        """A bound piece for some of the images."""
        return self._with(lambda piece: piece.select(images), {name: _pick(getattr(self, name), images) for name in self.per_image})

    def _with(self, change: Callable[[Piece], Piece], fields: Mapping[str, Any] = MappingProxyType({})) -> Self:
        """This piece with other fields, the pieces that it wraps changed."""
        if not is_dataclass(self):
            return self
        wrapped = {name: change(value) for name, value in vars(self).items() if isinstance(value, Piece)}
        changed = {**wrapped, **fields}
        return replace(self, **changed) if changed else self  # type: ignore[type-var, return-value]


def _pick(value: Any, images: Sequence[int]) -> Any:
    if isinstance(value, Mapping):
        return {k: _pick(v, images) for k, v in value.items()}
    return value[list(images)] if isinstance(value, Tensor) else value


def tiled(value: Tensor, x: Tensor) -> Tensor:
    """One entry per image repeated for a state that stacks several copies of the batch, as one call for two conditions does."""
    return value if len(value) == len(x) else value.repeat(len(x) // len(value), *(1,) * (value.ndim - 1))


def tiled_all(cond: Mapping[str, Any], x: Tensor) -> dict[str, Any]:
    """Conditions for a state that may stack several copies of the batch."""
    return {k: tiled(v, x) if isinstance(v, Tensor) and v.ndim else v for k, v in cond.items()}


def out_of_memory(error: BaseException) -> bool:
    """CUDA has an exception of its own; the CPU's allocator raises a RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error) or "out of memory" in str(error)


class Guidance(Piece, ABC):
    """Changes the prediction at t by what is known. Subclasses are frozen dataclasses of the paper's symbols.

    Attributes:
        requires: as in :class:`Piece`; any operator unless said otherwise.
        stateful: whether it keeps memory between steps, so that a transition may predict only once a step.
        sets: the conditions it gives to the network. It then stands nearer to the network than what works on the
            prediction, and no other guidance of the chain sets the same.
        scale: the fields that turn it off where all of them are 0; none where it cannot be turned off.
    """

    requires: ClassVar[type[Operator] | None] = Operator
    stateful: ClassVar[bool] = False
    scale: ClassVar[tuple[str, ...]] = ()

    @property
    def sets(self) -> tuple[str, ...]:
        return ()

    @abstractmethod
    def __call__(self, denoise: Denoise, x_t: Tensor, step: Step, measurement: Measurement | None) -> Prediction: ...


class Transition(Piece, ABC):
    """Given a prediction at t, draws the state at s.

    Contract: the network is read through ``p.x0`` and ``p.eps`` only, so that shifting x0 by dx shifts x_s by exactly
    ``alpha_s * dx``.
    """

    @property
    def predictions(self) -> int:
        """How many predictions a step down makes."""
        return 1

    def __call__(self, predict: Denoise, x_t: Tensor, step: Step, measurement: Measurement | None) -> Tensor:
        if step.climbs:
            return self.up(x_t, step)
        return self.down(predict, x_t, step, measurement)

    def around(self, inner: Transition) -> Transition | None:
        """What becomes of this transition when ``inner`` is asked for: itself around it; None for one that wraps none."""
        return None

    @property
    def deterministic(self) -> bool:
        """Whether no noise is drawn on the way down, so that a run can be inverted."""
        return False

    @abstractmethod
    def down(self, predict: Denoise, x_t: Tensor, step: Step, measurement: Measurement | None) -> Tensor:
        """x_s at a level with less noise."""

    def up(self, x_t: Tensor, step: Step) -> Tensor:
        """x_s at a noisier level: the forward process, q(x_s | x_t)."""
        return renoise(x_t, step.t, step.s, step)


def renoise(x_t: Tensor, t: Level, s: Level, step: Step, scale: float = 1.0) -> Tensor:
    """q(x_s | x_t) for a noisier s: alpha_s/alpha_t x_t + sqrt(sigma_s² − (alpha_s/alpha_t)² sigma_t²) z, the noise times ``scale``."""
    ratio = s.alpha / t.alpha
    std = (s.sigma**2 - (ratio * t.sigma) ** 2).clamp(min=0).sqrt()
    return ratio * x_t + scale * std * step.randn_like(x_t)


class Itinerary(ABC):
    """Which noise levels are visited, in which order; it may climb back up."""

    @abstractmethod
    def __call__(self, schedule: Schedule, steps: int) -> list[Level]:
        """The levels, noisiest first and the clean one last."""

    def start(self, measurement: Measurement | None) -> Tensor | None:
        """The image that the first state is a noised version of; None where it starts from pure noise."""
        return None


def traced(denoise: Denoise, x_t: Tensor, level: Level, who: str) -> tuple[Tensor, Prediction]:
    """x_t as a leaf of a graph, and the prediction made from it, for ``torch.autograd.grad``. Call it with gradients enabled.

    Raises:
        ValueError: the prediction does not depend on x_t differentiably; ``who`` needs it.
    """
    x_t = x_t.detach().requires_grad_()
    p = denoise(x_t, level)
    if not p.x0.requires_grad:
        raise ValueError(f"{who} needs the gradient through the network, but what it wraps gives none; put it nearest to the network")
    return x_t, p


def data_gradient(measurement: Measurement, x: Tensor) -> Tensor:
    """grad_x ‖y − A(x)‖² of every image at an estimate x itself, (B, ...): through A alone, the network is not differentiated."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        loss = measurement.loss(x).sum()  # one value per image; the sum keeps their gradients apart
    return torch.autograd.grad(loss, x)[0]


def guide(
    denoise: Denoise, guidance: Sequence[Guidance], step: Step, memory: list[dict[str, Any]], measurement: Measurement | None
) -> Denoise:
    """The network under a chain of guidances, the first nearest to the network: ordinary function wrapping."""
    for g, own in zip(guidance, memory, strict=True):
        denoise = _wrap(denoise, g, replace(step, memory=own), measurement)
    return denoise


def _wrap(denoise: Denoise, guidance: Guidance, step: Step, measurement: Measurement | None) -> Denoise:
    def guided(x_t: Tensor, level: Level, **cond: Any) -> Prediction:
        def inner(x: Tensor, at: Level, **more: Any) -> Prediction:
            return denoise(x, at, **{**tiled_all(cond, x), **more})

        return guidance(inner, x_t, step if level is step.t else replace(step, t=level), measurement)

    return guided


@dataclass(frozen=True)
class Progress:
    """What a callback sees after each step.

    Attributes:
        index, count: this step and how many there are.
        x: the state at ``level``, in the network's range.
        x0: the (guided) estimate the step was made from; None in a climb.
        level: the level of ``x``.
        chains: (sample, image id) of each row of the batch, from :func:`invdiff.solve`.
    """

    index: int
    count: int
    x: Tensor
    x0: Tensor | None
    level: Level
    chains: tuple[tuple[int, int], ...] = ()


Callback = Callable[[Progress], None]


class NonFiniteError(ValueError):
    """Sampling turned non-finite."""


class _Watch:
    """Collects on the device what tells whether each state was finite, and reads it every so often: a GPU is not made to wait."""

    def __init__(self, count: int, every: int = 16) -> None:
        self.count, self.every = count, every
        self.seen: list[tuple[int, Level, Level, Tensor]] = []  # not the steps: their predictions would stay alive

    def __call__(self, step: Step, x: Tensor) -> None:
        if x.device.type == "meta":
            return
        self.seen.append((step.index, step.t, step.s, x.sum()))
        if len(self.seen) >= self.every:
            self.read()

    def read(self) -> None:
        if not self.seen:
            return
        finite = torch.stack([total for *_, total in self.seen]).isfinite().tolist()
        for (index, t, s, _), good in zip(self.seen, finite, strict=True):
            if not good:
                raise NonFiniteError(
                    f"sampling turned non-finite in step {index + 1} of {self.count}, from sigma/alpha = {float(t.ratio):.4g} to {float(s.ratio):.4g}. "
                    "Likely causes: a guidance scale that is too large for this network and number of steps (make zeta smaller), "
                    "a network in float16 that overflows (use bfloat16 or float32), or a wrong `predicts` or schedule"
                )
        self.seen.clear()


def sample(
    denoiser: Denoiser | Denoise,
    x: Tensor,
    levels: Sequence[Level],
    *,
    schedule: Schedule,
    noise: NoiseSource,
    transition: Transition,
    guidance: Sequence[Guidance] = (),
    measurement: Measurement | None = None,
    callback: Callback | None = None,
    cond: dict[str, Any] | None = None,
    particles: int = 1,
) -> Tensor:
    """Runs the loop on a state x (B, ...) at ``levels[0]``, in the network's own range; returns the state at ``levels[-1]``.

    This is the engine below :func:`invdiff.solve`, for experiments that bring their own state and noise. Guidance that knows labels or
    images, and transitions, are bound first: ``guidance.bind(Setting(...))``.
    """
    memory: list[dict[str, Any]] = [{} for _ in guidance]
    own: dict[str, Any] = {}
    last: Prediction | None = None
    count = len(levels) - 1
    watch = _Watch(count)

    def network(x_t: Tensor, level: Level, **more: Any) -> Prediction:
        return denoiser(x_t, level, **{**tiled_all(cond or {}, x_t), **more})

    with torch.no_grad():
        for index, (t, s) in enumerate(pairwise(levels)):
            step = Step(index, t, s, schedule, noise, count, last, own, particles)
            guided = guide(network, guidance, step, memory, measurement)
            made: list[Prediction] = []

            def predict(x_t: Tensor, level: Level, guided: Denoise = guided, made: list[Prediction] = made, **more: Any) -> Prediction:
                prediction = guided(x_t, level, **more)
                made.append(prediction.detach())  # what outlives the step has no graph
                return prediction

            x = transition(predict, x, step, measurement)
            last = made[0] if made else None  # a climb predicts nothing, so no history outlives it
            watch(step, x)
            if callback is not None:
                callback(Progress(index, count, x, made[-1].x0 if made else None, s))
        watch.read()
    return x
