"""The one sampling loop, and what a step knows.

    for i, (t, s) in enumerate(pairwise(levels)):
        x = transition(predict, x, Step(i, t, s, ...), measurement)

Nothing in it knows a method's name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor

from invdiff.network import Denoiser, Prediction
from invdiff.noise import NoiseSource
from invdiff.problem import LinearOperator, Measurement
from invdiff.problem.solvers import collected, report
from invdiff.sampling.pieces import (
    Guidance,
    StatefulGuidance,
    StatefulTransition,
    Transition,
)
from invdiff.sampling.step import Denoise, Step, tiled_all
from invdiff.sampling.unknown import Belief
from invdiff.schedules import Level, Schedule


def guide(
    denoise: Denoise,
    guidance: Sequence[Guidance],
    step: Step,
    states: list[Any],
    measurement: Measurement | None,
) -> Denoise:
    """The network under a chain of guidances, the first nearest to the network: ordinary function
    wrapping. The states of those that keep one are replaced as they are evaluated."""
    # A guidance that reads the measurement requires one, which was checked when it was bound.
    measured = cast(Measurement, measurement)
    for k, g in enumerate(guidance):
        denoise = _wrap(denoise, g, step, states, k, measured)
    return denoise


def _wrap(
    denoise: Denoise,
    guidance: Guidance,
    step: Step,
    states: list[Any],
    k: int,
    measurement: Measurement,
) -> Denoise:
    advanced = False

    def guided(x_t: Tensor, level: Level, **cond: Any) -> Prediction:
        def inner(x: Tensor, at: Level, **more: Any) -> Prediction:
            return denoise(x, at, **{**tiled_all(cond, x), **more})

        nonlocal advanced
        here = step if level is step.t else replace(step, t=level)
        if not isinstance(guidance, StatefulGuidance):
            return guidance(inner, x_t, here, measurement)
        if advanced:
            raise ValueError(
                f"{type(guidance).__name__} keeps a state from step to step, but was evaluated "
                "twice in one; put it last in the chain, under a transition that predicts once"
            )
        advanced = True
        p, states[k] = guidance.advance(inner, x_t, here, measurement, states[k])
        return p

    return guided


@dataclass(frozen=True)
class Progress:
    """The state of a run after a step, for callbacks.

    Attributes:
        index, count: this step and how many there are.
        x: the state at ``level``, in the network's range.
        x0: the (guided) estimate the step was made from; None in a climb.
        level: the level of ``x``.
        chains: (sample, image id) of each row of the batch, from :func:`invdiff.solve`.
        unknown: what is estimated of an unknown operator, (B, ...) each, by name.
    """

    index: int
    count: int
    x: Tensor
    x0: Tensor | None
    level: Level
    chains: tuple[tuple[int, int], ...] = ()
    unknown: Mapping[str, Tensor] = field(default_factory=dict)


Callback = Callable[[Progress], None]


def _noting(denoise: Denoise, made: list[Prediction]) -> Denoise:
    """The network, whose first prediction is noted while nothing is."""

    def noting(x_t: Tensor, level: Level, **cond: Any) -> Prediction:
        prediction = denoise(x_t, level, **cond)
        if not made:
            made.append(prediction.detach())
        return prediction

    return noting


class NonFiniteError(ValueError):
    """Sampling turned non-finite."""


class _Watch:
    """Collects on the device what tells whether each state was finite, and reads it every so often:
    a GPU is not made to wait."""

    def __init__(self, count: int, residuals: list[Tensor], every: int = 16) -> None:
        self.count, self.residuals, self.every = count, residuals, every
        self.seen: list[
            tuple[int, Level, Level, Tensor]
        ] = []  # not the steps: their predictions would stay alive

    def __call__(self, step: Step, x: Tensor) -> None:
        if x.device.type == "meta":
            return
        self.seen.append((step.index, step.t, step.s, x.sum()))
        if len(self.seen) >= self.every:
            self.read()

    def read(self) -> None:
        report(self.residuals)
        if not self.seen:
            return
        finite = torch.stack([total for *_, total in self.seen]).isfinite().tolist()
        for (index, t, s, _), good in zip(self.seen, finite, strict=True):
            if not good:
                raise NonFiniteError(
                    f"sampling turned non-finite in step {index + 1} of {self.count}, from "
                    f"sigma/alpha = {float(t.ratio):.4g} to {float(s.ratio):.4g}. "
                    "Likely causes: a guidance scale that is too large for this network "
                    "and number of steps (make zeta smaller), "
                    "a network in float16 that overflows (use bfloat16 or float32), or a "
                    "wrong `predicts` or schedule"
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
    """Runs the loop on a state x (B, ...) at ``levels[0]``, in the network's own range; returns the
    state at ``levels[-1]``.

    This is the engine below :func:`invdiff.solve`, for experiments that bring their own state and
    noise. Guidance that knows labels or images, and transitions, are bound first:
    ``guidance.bind(Setting(...))``.
    """
    last: Prediction | None = None
    count = len(levels) - 1

    def conditioned(x_t: Tensor, level: Level, **more: Any) -> Prediction:
        return denoiser(x_t, level, **{**tiled_all(cond or {}, x_t), **more})

    network = conditioned if cond else denoiser
    bounds = denoiser.data_range if isinstance(denoiser, Denoiser) else None
    unit = 1.0 if bounds is None else (bounds[1] - bounds[0]) / 2
    belief, own = Belief.at_first(measurement, levels[0], noise, unit), list[Prediction]()
    if belief.learns:  # from what the network says, not from what the method makes of it
        network = _noting(network, own)

    measured = cast(Measurement, belief.measurement)
    if measurement is not None and isinstance(measurement.operator, LinearOperator):
        measurement.operator.prepare()
    with torch.no_grad(), collected() as residuals:
        watch = _Watch(count, residuals)
        states = [
            g.init(x, measured) if isinstance(g, StatefulGuidance) else None for g in guidance
        ]
        state = transition.init(x, measured) if isinstance(transition, StatefulTransition) else None
        for index, (t, s) in enumerate(pairwise(levels)):
            step = Step(index, t, s, schedule, noise, count, last, particles)
            guided = guide(network, guidance, step, states, measured)
            made: list[Prediction] = []

            def predict(
                x_t: Tensor,
                level: Level,
                guided: Denoise = guided,
                made: list[Prediction] = made,
                **more: Any,
            ) -> Prediction:
                prediction = guided(x_t, level, **more)
                made.append(prediction.detach())  # what outlives the step has no graph
                return prediction

            if isinstance(transition, StatefulTransition) and not step.climbs:
                x, state = transition.advance(predict, x, step, measured, state)
            else:
                x = transition(predict, x, step, measured)
            last = made[0] if made else last
            belief = belief.learned(own[0] if own else None, s, noise, step.moved)
            own.clear()
            measured = cast(Measurement, belief.measurement)
            watch(step, x)
            if callback is not None:
                x0 = made[0].x0 if made else None
                callback(Progress(index, count, x, x0, s, unknown=belief.estimates))
        watch.read()
    return x
