"""Checks of methods: guidance, transitions and itineraries as they are bundled."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from invdiff import schedules
from invdiff.network import Denoiser, Prediction, count_evaluations
from invdiff.noise import NoiseSource
from invdiff.problem import LinearOperator, Measurement, Operator, make_operator
from invdiff.problem.operator import Shape
from invdiff.problem.wrapped import Decoded
from invdiff.sampling import (
    Denoise,
    Guidance,
    Method,
    Piece,
    Progress,
    Setting,
    StatefulGuidance,
    Step,
)
from invdiff.schedules import Level
from invdiff.solving import Restoration, solve
from invdiff.solving.plan import Plan
from invdiff.testing.imports import importing
from invdiff.testing.operators import draw, photos
from invdiff.testing.priors import FACTOR, prior
from invdiff.testing.randomness import generators, moved, seed_all
from invdiff.testing.report import Skip, distance, expect, plain, within
from invdiff.transitions import DDIM

SHAPE: Shape = (3, 32, 44)
ODD: Shape = (3, 33, 47)
SIGMA = 0.05
FEW, MANY = 3, 25
LABEL = 1
NETWORKS = ("eps", "x0", "v")
EXACT = 1e-6
"""For float64 runs that differ in rounding only."""


@dataclass(frozen=True, eq=False)
class Curve(Operator):
    """A nonlinear operator: (x + x²) / 2."""

    def _forward(self, x: Tensor) -> Tensor:
        return (x + x**2) / 2


@dataclass(frozen=True, eq=False)
class Drift(LinearOperator):
    """A linear operator that knows no SVD: each pixel mixed with its neighbour."""

    def _forward(self, x: Tensor) -> Tensor:
        return 0.75 * x + 0.25 * x.roll(1, -1)

    def _adjoint(self, y: Tensor) -> Tensor:
        return 0.75 * y + 0.25 * y.roll(-1, -1)


def pieces(piece: Piece) -> Iterator[Piece]:
    """A piece and those that it wraps."""
    yield piece
    for value in vars(piece).values():
        if isinstance(value, Piece):
            yield from pieces(value)


@dataclass(frozen=True)
class Case:
    """A method under test.

    Attributes:
        plan: the method with every piece filled in.
        own_transition: whether the transition is the method's own.
        operator: what its runs restore from.
        module: whose import is tried.
    """

    plan: Plan
    own_transition: bool
    operator: Operator
    module: str

    @property
    def pieces(self) -> list[Piece]:
        """Every guidance and transition, wrapped ones as well."""
        return [p for outer in (*self.plan.chain, self.plan.transition) for p in pieces(outer)]

    @property
    def latent(self) -> bool:
        """Whether it is for latent networks."""
        return any(p.requires is not None and issubclass(p.requires, Decoded) for p in self.pieces)

    def fits(self, operator: Operator) -> bool:
        """Whether an operator is what every piece declares to require."""
        return all(
            p.requires is None
            or issubclass(p.requires, Decoded)
            or isinstance(operator, p.requires)
            for p in self.pieces
        )

    def measure(
        self, operator: Operator | None = None, shape: Shape = SHAPE, images: int = 2
    ) -> Measurement:
        """The measurement to restore, in float64."""
        operator = operator or self.operator
        if self.latent:
            shape = (shape[0], *(n // FACTOR * FACTOR for n in shape[1:]))
        return operator.measure(photos(images, *operator.fit(shape)), sigma=SIGMA)

    def network(self, measurement: Measurement, predicts: str = "eps", **options: Any) -> Denoiser:
        """The kit's prior for a measurement, with all that the method needs of it."""
        shown = measurement.y.shape[1] if any("cond" in g.sets for g in self.plan.chain) else None
        return prior(
            measurement.image_shape[0], predicts, latent=self.latent, shown=shown, **options
        )

    def run(
        self,
        measurement: Measurement | None = None,
        *,
        predicts: str = "eps",
        method: Method | None = None,
        dtype: torch.dtype = torch.float64,
        device: str = "cpu",
        cond: Mapping[str, Any] | None = None,
        denoiser: Denoiser | None = None,
        **options: Any,
    ) -> Restoration:
        """A short run; the network is told the label, which methods that need one take from
        there."""
        measurement = self.measure() if measurement is None else measurement
        denoiser = denoiser or self.network(measurement, predicts, dtype=dtype, device=device)
        cond = {"label": LABEL} if cond is None else cond
        return solve(
            measurement,
            denoiser,
            method or self.plan.method,
            **{"steps": FEW, "dtype": dtype, **options, **cond},
        )

    def setting(self, measurement: Measurement) -> Setting:
        """The setting that its pieces are bound to for a measurement."""
        denoiser = self.network(measurement, dtype=torch.float64)
        if denoiser.autoencoder is not None:
            shape = denoiser.state_shape((len(measurement), *measurement.image_shape))
            decoded = Decoded(measurement.operator, denoiser.autoencoder, shape=shape[1:])
            measurement = replace(measurement, operator=decoded)
        shape = (len(measurement), *measurement.image_shape)
        label = {"label": denoiser.labels(LABEL, len(measurement))}
        cpu = torch.device("cpu")
        return Setting(denoiser, shape, measurement, label, cpu, torch.float64)

    @cached_property
    def usual(self) -> Tensor:
        """The result of a run with nothing changed."""
        return self.run().x


def shapes(case: Case) -> str:
    """Restorations have the shape of the images, at odd and non-square sizes."""
    seen = []
    for operator, shape in ((case.operator, SHAPE), (make_operator("inpaint"), ODD)):
        if case.fits(operator):
            measurement = case.measure(operator, shape)
            samples = case.run(measurement, num_samples=2).samples
            expected = (2, len(measurement), *measurement.image_shape)
            expect(
                samples.shape == expected,
                f"samples have shape {tuple(samples.shape)}, expected {expected}",
            )
            seen.append(str(tuple(measurement.image_shape)))
    return f"images of {' and '.join(seen)}"


def dtypes(case: Case) -> str:
    """A run in float32 stays in it, one in float64 too."""
    for dtype in (torch.float32, torch.float64):
        made = case.run(dtype=dtype).x.dtype
        expect(made == dtype, f"a run in {dtype} ends in {made}")
    return "float32 and float64 kept"


def meta(case: Case) -> str:
    """It runs where tensors hold no data, so that no stray CPU tensor and no read of the data makes
    a GPU wait."""
    made = case.run(dtype=torch.float32, device="meta").x
    expect(made.device.type == "meta", f"the result lies on {made.device}")
    return f"{FEW} steps on meta"


def finite(case: Case) -> str:
    """Finite at 1, 2 and many steps."""
    for steps in (1, 2, MANY):
        x = case.run(steps=steps, dtype=torch.float32).x
        expect(bool(x.isfinite().all()), f"not finite after {steps} steps")
    return f"finite after 1, 2 and {MANY} steps"


def own_noise(case: Case) -> str:
    """All noise is that of the step: the same seed gives the same bits, whatever the global
    generators hold."""
    expected = case.usual
    seed_all(1)
    expect(
        torch.equal(case.run().x, expected),
        "two runs with one seed differ, so some noise is not drawn from step.randn_like",
    )
    return "bit-equal under another global seed"


def global_rng(case: Case) -> str:
    """The global generators are not advanced."""
    before = generators()
    case.run()
    expect(
        not (names := moved(before)), f"it advances the global generator of {' and '.join(names)}"
    )
    return "torch, numpy and random untouched"


def batch(case: Case) -> str:
    """An image alone gives what it gives in a batch: no norm, draw or stopping rule couples
    images."""
    measurement = case.measure(images=3)
    together = case.run(measurement).x
    worst = max(
        distance(case.run(measurement.select([k]), image_ids=[k]).x, together[k : k + 1])
        for k in (0, 2)
    )
    return within("alone from in a batch of 3", worst, EXACT)


@dataclass(frozen=True)
class _Twice(Guidance):
    """Evaluates a guidance twice with the same noise; the two predictions must be one."""

    requires: ClassVar[type[Operator] | None] = None
    inner: Guidance

    @property
    def sets(self) -> tuple[str, ...]:
        return self.inner.sets

    def __call__(
        self, denoise: Denoise, x_t: Tensor, step: Step, measurement: Measurement
    ) -> Prediction:
        first = self.inner(
            denoise, x_t, replace(step, noise=copy.deepcopy(step.noise)), measurement
        )
        second = self.inner(denoise, x_t, step, measurement)
        for name in ("x0", "eps"):
            expect(
                torch.equal(getattr(first, name), getattr(second, name)),
                f"{type(self.inner).__name__} was evaluated twice with the same arguments, and its "
                f"two predictions differ in {name}: it remembers something by itself. Derive it "
                "from StatefulGuidance and return what it remembers",
            )
        return second


def remembers(case: Case) -> str:
    """Nothing is remembered from step to step but the state that its type declares, so that a
    transition that predicts twice in a step, and a run beside this one, change nothing."""
    chain = [g if isinstance(g, StatefulGuidance) else _Twice(g) for g in case.plan.chain]
    stateful = [g for g in case.plan.chain if isinstance(g, StatefulGuidance)]
    if len(chain) == len(stateful):
        raise Skip(
            f"{' and '.join(type(g).__name__ for g in stateful)} declares a state"
            if stateful
            else "it has no guidance"
        )
    case.run(method=Method(chain, case.plan.transition, case.plan.itinerary))
    return "the same prediction from the same arguments"


def fields_per_image(case: Case) -> str:
    """A field that holds one entry per image once it is bound is named in ``per_image``, so that a
    batch is divided right."""
    images = (2, 5)
    bound = []
    for n in images:
        plan = case.plan.bind(case.setting(case.measure(images=n)))
        bound.append([p for outer in (*plan.chain, plan.transition) for p in pieces(outer)])
    declared = 0
    for few, many in zip(*bound, strict=True):
        for name, value in vars(many).items():
            for a, b in zip(_tensors(getattr(few, name)), _tensors(value), strict=True):
                if a.shape[:1] != images[:1] or b.shape[:1] != images[1:]:
                    continue
                expect(
                    name in many.per_image,
                    f"{name} of {type(many).__name__} holds one entry per image once it is bound, "
                    f"{tuple(b.shape)} for {images[1]} images; add it to per_image",
                )
                declared += 1
    return f"{declared} fields with one entry per image, declared"


def _tensors(value: Any) -> list[Tensor]:
    values = list(value.values()) if isinstance(value, Mapping) else [value]
    return [v for v in values if isinstance(v, Tensor) and v.ndim > 0]


def networks(case: Case) -> str:
    """One prior that predicts eps, x0 or v gives one result."""
    worst = max(distance(case.run(predicts=predicts).x, case.usual) for predicts in NETWORKS)
    return within(f"{', '.join(NETWORKS)} from each other", worst, EXACT)


def scale(case: Case) -> str:
    """With the scale that it declares at 0 it is the run without it, under a transition that draws
    no noise, as its own draws shift others."""
    scaled = [g for g in case.plan.chain if g.scale]
    if not scaled:
        raise Skip("no guidance of it declares a scale")
    off = [replace(g, **dict.fromkeys(g.scale, 0.0)) if g.scale else g for g in case.plan.chain]  # type: ignore[type-var]
    without = [g for g in case.plan.chain if not g.scale]
    cond = (
        {} if any("label" in g.sets for g in scaled) else {"label": LABEL}
    )  # a label that it gives is gone with it
    at_zero, free = (
        case.run(method=Method(off, DDIM())).x,
        case.run(method=Method(without, DDIM()), cond=cond).x,
    )
    names = ", ".join(f"{name} = 0" for g in scaled for name in g.scale)
    return within(f"{names} from without", distance(at_zero, free), EXACT)


def refuses(case: Case) -> str:
    """An operator (for latent methods, a network of pixels) that it does not declare to take is
    refused before sampling."""
    measurement = case.measure()
    wrong: dict[str, dict[str, Any]] = {
        a.kind: {"measurement": case.measure(a)} for a in (Curve(), Drift()) if not case.fits(a)
    }
    if case.latent:
        pixels = prior(measurement.image_shape[0], dtype=torch.float64)
        wrong["a network of pixels"] = {"measurement": measurement, "denoiser": pixels}
    if not wrong:
        raise Skip("it requires no more than the kit's operators are")
    for kind, given in wrong.items():
        expect(
            not _attempt(case, kind, **given), f"it requires more than {kind} is, but runs with it"
        )
    return f"refuses {' and '.join(wrong)}"


def requirement(case: Case) -> str:
    """It runs with any operator that is what it declares to require, or says before sampling what
    else it needs."""
    right = [
        operator
        for operator in (Curve(), Drift(), make_operator("sr", factor=2))
        if case.fits(operator)
    ]
    ran = [
        operator.kind
        for operator in right
        if _attempt(case, operator.kind, measurement=case.measure(operator))
    ]
    return f"runs with {', '.join(ran)}" if ran else "refuses what the kit has, before sampling"


def _attempt(case: Case, kind: str, **given: Any) -> bool:
    """Whether it runs; False where it refuses before sampling. What goes wrong later fails the
    check."""
    with count_evaluations() as evaluations:
        try:
            case.run(**given)
        except ValueError as error:
            expect(
                evaluations.forward == 0, f"with {kind} it fails in the middle of sampling: {error}"
            )
            return False
        except Exception as error:
            raise AssertionError(
                f"with {kind} it fails with {type(error).__name__}: {error}"
            ) from error
    return True


def unchanged(case: Case) -> str:
    """Network, measurement and grad mode are left as they were; after every step no gradients are
    recorded."""
    measurement = case.measure()
    denoiser = case.network(measurement, dtype=torch.float64)
    assert isinstance(denoiser.net, torch.nn.Module)
    weights, y, recorded = denoiser.hash, measurement.y.clone(), list[bool]()

    def watch(p: Progress) -> None:
        recorded.append(torch.is_grad_enabled() or p.x.requires_grad)

    case.run(measurement, denoiser=denoiser, callback=watch)
    expect(
        not any(recorded),
        "after a step gradients are still being recorded: detach, and enable them inside a "
        "with block",
    )
    expect(denoiser.hash == weights, "it changed the weights of the network")
    expect(not denoiser.net.training, "it left the network in training mode")
    expect(
        not any(p.requires_grad for p in denoiser.net.parameters()),
        "it left weights of the network requiring gradients",
    )
    expect(torch.equal(measurement.y, y), "it changed the measurement")
    return "weights, modes and measurement as before"


def described(case: Case) -> str:
    """Its record is plain data that is the same in every process."""
    return plain(case.run(dtype=torch.float32).config)


def x0_shift(case: Case) -> str:
    """Its transition shifts x_s by alpha_s dx where x0 is shifted by dx, as those do that see
    nothing but the prediction."""
    transition = case.plan.transition
    if not case.own_transition:
        raise Skip("it leaves the transition to the run")
    if any(p.requires is not None for p in pieces(transition)):
        raise Skip("its transition works on the measurement, too")
    measurement = case.measure()
    transition = transition.bind(case.setting(measurement))
    x, x0, eps, dx = (draw(2, *SHAPE, seed=k) for k in range(4))
    worst = 0.0
    for schedule in (schedules.linear(), schedules.flow()):
        before, t, s = (
            schedule(schedule.t_min + share * (schedule.t_max - schedule.t_min))
            for share in (0.8, 0.6, 0.45)
        )
        for target in (s, schedule(schedule.clean)):
            states = []
            for shift in (torch.zeros_like(dx), dx):

                def predict(
                    x_t: Tensor, level: Level, shift: Tensor = shift, **_: Any
                ) -> Prediction:
                    # eps does not depend on where x_t went: what is seen is the transition alone.
                    return Prediction(
                        x_t, level, (x_t - level.sigma * eps) / level.alpha + shift, eps
                    )

                step = Step(
                    0, t, target, schedule, NoiseSource([0, 1]), last=Prediction(x, before, x0, eps)
                )
                states.append(transition(predict, x, step, measurement))
            worst = max(worst, distance(states[1] - states[0], target.alpha * dx))
    return within("x_s shift from alpha_s dx", worst, EXACT)


def imports(case: Case) -> str:
    """See :func:`~invdiff.testing.imports.importing`."""
    return importing(case.module)


CHECKS: dict[str, Callable[[Case], str]] = {
    f.__name__: f
    for f in (
        *(shapes, dtypes, meta, finite, own_noise, global_rng, remembers, fields_per_image),
        *(batch, networks),
        *(scale, refuses, requirement, unchanged, described, x0_shift, imports),
    )
}
