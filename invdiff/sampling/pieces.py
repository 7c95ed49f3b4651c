"""The pieces of a method: guidance, transition and itinerary."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from torch import Tensor

from invdiff.network import Denoiser, Prediction
from invdiff.problem import Measurement, Operator
from invdiff.sampling.step import Denoise, Step
from invdiff.schedules import Level, Schedule

S = TypeVar("S")


@dataclass(frozen=True)
class Setting:
    """The setting of a run, which its pieces get once, before sampling starts.

    Attributes:
        denoiser: the network.
        shape: (B, C, H, W) of the images, all of them.
        observed: the measurement of these images, in the network's range; None when generating.
        cond: what the run gives to the network.
        device, dtype: of the state.
        start: (B, ...), what the first state is a noised version of, as a state without noise; None
            where a run starts from pure noise or from a state that was given.
    """

    denoiser: Denoiser
    shape: tuple[int, ...]
    observed: Measurement | None
    cond: Mapping[str, Any]
    device: torch.device
    dtype: torch.dtype
    start: Tensor | None = None

    @property
    def measurement(self) -> Measurement:
        """The measurement of these images, in the network's range.

        Raises:
            ValueError: there is none; a piece that reads it says so by ``requires``.
        """
        if self.observed is None:
            raise ValueError("this run has no measurement: it generates")
        return self.observed


class Piece:
    """Base of guidance and transitions.

    Attributes:
        requires: the kind of operator it needs, checked before sampling; None where it needs no
            measurement.
        one_sigma: whether it needs one noise level per image and none per pixel. A run whose
            measurement has one per pixel (Poisson noise) is then made on the measurement in units
            in which the noise is the same everywhere, see
            :meth:`invdiff.problem.Measurement.whitened`.
        per_image: fields that hold, once bound, a tensor of one entry per image (or a mapping of
            such tensors).
        particles: whether the samples of an image are one particle system, weighed against each
            other: they then share a batch.
        shipped: where not every network will do, the registered names of networks of the kind that
            it needs, by the operator that each was trained for.
        posterior: whether samples are meant as draws from the posterior, so that their spread says
            how uncertain an image is; False of methods that look for one image.
    """

    requires: ClassVar[type[Operator] | None] = None
    one_sigma: ClassVar[bool] = False
    per_image: ClassVar[tuple[str, ...]] = ()
    particles: ClassVar[bool] = False
    shipped: ClassVar[Mapping[str, str]] = {}
    posterior: ClassVar[bool] = True

    @classmethod
    def tried_with(cls) -> dict[str, Any]:
        """The parameters that the plug-in kit gives it, where it does not run with its defaults
        alone."""
        return {}

    def bind(self, setting: Setting) -> Self:
        """This piece made ready for a run: its fields checked and on the run's device. Called once,
        before sampling.

        Raises:
            ValueError: what cannot work, with both sides named.
        """
        name = type(self).__name__
        if self.requires is not None:
            if setting.observed is None:
                raise ValueError(
                    f"{name} restores a measurement, but there is none: use it with solve, or "
                    "generate with another method"
                )
            operator = setting.observed.operator
            if not isinstance(operator, self.requires):
                raise ValueError(
                    f"{name} requires {self.requires.wanted()}, but {operator.kind} is not one; "
                    "choose another method or operator"
                )
        if self.one_sigma and setting.observed is not None:
            setting.observed.image_sigma(name)
        return self._with(lambda piece: piece.bind(setting))

    def select(self, images: Sequence[int]) -> Self:
        """A bound piece for some of the images."""
        return self._with(
            lambda piece: piece.select(images),
            {name: _pick(getattr(self, name), images) for name in self.per_image},
        )

    def _with(
        self, change: Callable[[Piece], Piece], fields: Mapping[str, Any] = MappingProxyType({})
    ) -> Self:
        """This piece with other fields, the pieces that it wraps changed."""
        if not is_dataclass(self):
            return self
        wrapped = {
            name: change(value) for name, value in vars(self).items() if isinstance(value, Piece)
        }
        changed = {**wrapped, **fields}
        return replace(self, **changed) if changed else self  # type: ignore[type-var, return-value]


def _pick(value: Any, images: Sequence[int]) -> Any:
    if isinstance(value, Mapping):
        return {k: _pick(v, images) for k, v in value.items()}
    return value[list(images)] if isinstance(value, Tensor) else value


class Guidance(Piece, ABC):
    """Changes the prediction at t by what is known. Subclasses are frozen dataclasses of the
    paper's symbols.

    Attributes:
        requires: as in :class:`Piece`; any operator unless said otherwise.
        sets: the conditions that it gives to the network. It then stands nearer to the network than
            what works on the prediction, and no other guidance of the chain sets the same.
        scale: the fields that turn it off where all of them are 0; none where it cannot be turned
            off.

    Examples:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Nudge(Guidance):
        ...     zeta: float = 0.1
        ...     def __call__(self, denoise, x_t, step, measurement):
        ...         p = denoise(x_t, step.t)
        ...         return p.move_x0(-self.zeta * p.x0)
        >>> Nudge(zeta=0.2)
        Nudge(zeta=0.2)
    """

    requires: ClassVar[type[Operator] | None] = Operator
    scale: ClassVar[tuple[str, ...]] = ()

    @property
    def sets(self) -> tuple[str, ...]:
        return ()

    @abstractmethod
    def __call__(
        self, denoise: Denoise, x_t: Tensor, step: Step, measurement: Measurement
    ) -> Prediction:
        """The changed prediction at ``step.t``.

        Args:
            denoise: the network, or the network under the guidances nearer to it.
            x_t: (B, ...), the state.
            step: the step that is being made.
            measurement: of the B images; None where ``requires`` is None and nothing was measured.
        """


class StatefulGuidance(Guidance, Generic[S]):
    """A guidance that remembers something from step to step: a value of a type of its own, which
    the loop hands on, so that runs are re-entrant. A step may evaluate it only once."""

    @abstractmethod
    def init(self, x_T: Tensor, measurement: Measurement) -> S:
        """The state before the first step, for the B chains that start at x_T."""

    @abstractmethod
    def advance(
        self, denoise: Denoise, x_t: Tensor, step: Step, measurement: Measurement, state: S
    ) -> tuple[Prediction, S]:
        """The changed prediction at ``step.t``, and the state for the next step."""

    def __call__(
        self, denoise: Denoise, x_t: Tensor, step: Step, measurement: Measurement
    ) -> Prediction:
        """A first step."""
        return self.advance(denoise, x_t, step, measurement, self.init(x_t, measurement))[0]


class Transition(Piece, ABC):
    """Given a prediction at t, draws the state at s.

    Contract: the network is read through ``p.x0`` and ``p.eps`` only, so that shifting x0 by dx
    shifts x_s by exactly ``alpha_s * dx``.

    Examples:
        >>> from invdiff.transitions import DDIM
        >>> DDIM(eta=0.0).deterministic
        True
    """

    @property
    def predictions(self) -> int:
        """How many predictions a step down makes."""
        return 1

    @property
    def deterministic(self) -> bool:
        """Whether no noise is drawn on the way down, so that a run can be inverted."""
        return False

    def __call__(
        self, predict: Denoise, x_t: Tensor, step: Step, measurement: Measurement
    ) -> Tensor:
        """x_s: :meth:`down`, or :meth:`up` where s is noisier than t."""
        if step.climbs:
            return self.up(x_t, step)
        return self.down(predict, x_t, step, measurement)

    def around(self, chosen: Transition) -> Transition:
        """The transition of a run for which ``chosen`` is asked: that one, unless this is
        :class:`Wrapping`."""
        return chosen

    @abstractmethod
    def down(self, predict: Denoise, x_t: Tensor, step: Step, measurement: Measurement) -> Tensor:
        """x_s at a level with less noise; arguments as in :meth:`Guidance.__call__`."""

    def up(self, x_t: Tensor, step: Step) -> Tensor:
        """x_s at a noisier level: the forward process, q(x_s | x_t)."""
        return renoise(x_t, step.t, step.s, step)


class StatefulTransition(Transition, Generic[S]):
    """A transition that remembers something from step to step, as :class:`StatefulGuidance`."""

    @abstractmethod
    def init(self, x_T: Tensor, measurement: Measurement) -> S:
        """The state before the first step, for the B chains that start at x_T."""

    @abstractmethod
    def advance(
        self, predict: Denoise, x_t: Tensor, step: Step, measurement: Measurement, state: S
    ) -> tuple[Tensor, S]:
        """x_s at a level with less noise, and the state for the next step."""

    def down(self, predict: Denoise, x_t: Tensor, step: Step, measurement: Measurement) -> Tensor:
        """A first step."""
        return self.advance(predict, x_t, step, measurement, self.init(x_t, measurement))[0]


class Wrapping(Transition):
    """A transition around another one, which a run may choose.

    Attributes:
        inner: a field of the subclass; makes the step that this one changes.
    """

    inner: Transition

    @property
    def predictions(self) -> int:
        return self.inner.predictions

    def around(self, chosen: Transition) -> Transition:
        if isinstance(chosen, type(self)):
            return chosen
        return replace(self, inner=self.inner.around(chosen))  # type: ignore[type-var]

    def bind(self, setting: Setting) -> Self:
        if isinstance(self.inner, StatefulTransition):
            raise ValueError(
                f"{type(self).__name__} makes steps of another transition, and "
                f"{type(self.inner).__name__} keeps a state between steps: choose another one"
            )
        return super().bind(setting)

    def up(self, x_t: Tensor, step: Step) -> Tensor:
        return self.inner.up(x_t, step)


def renoise(x_t: Tensor, t: Level, s: Level, step: Step, scale: float = 1.0) -> Tensor:
    """q(x_s | x_t) for a noisier s: alpha_s/alpha_t x_t + sqrt(sigma_s² − (alpha_s/alpha_t)²
    sigma_t²) z, the noise times ``scale``."""
    ratio = s.alpha / t.alpha
    std = (s.sigma**2 - (ratio * t.sigma) ** 2).clamp(min=0).sqrt()
    return ratio * x_t + scale * std * step.randn_like(x_t)


class Itinerary(ABC):
    """Which noise levels are visited, in which order; it may climb back up.

    Examples:
        >>> import invdiff
        >>> from invdiff.itineraries import Straight
        >>> levels = Straight()(invdiff.schedules.linear(1000), 5)
        >>> len(levels), float(levels[-1].sigma)
        (6, 0.0)
    """

    @abstractmethod
    def __call__(self, schedule: Schedule, steps: int) -> list[Level]:
        """The levels, noisiest first and the clean one last."""

    def start(self, measurement: Measurement | None) -> Tensor | None:
        """The image that the first state is a noised version of; None where it starts from pure
        noise."""
        return None
