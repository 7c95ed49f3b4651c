"""The plug-in kit: every check fails for a plug-in that is broken in just that way, and for no
other."""

from __future__ import annotations

import itertools
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from invdiff import schedules
from invdiff.commands.main import main
from invdiff.itineraries import Straight
from invdiff.network import Denoiser, Prediction
from invdiff.plugins import registry
from invdiff.problem import DiagonalOperator, LinearOperator, Measurement, Operator
from invdiff.problem.operator import Shape
from invdiff.sampling import (
    Denoise,
    Guidance,
    Itinerary,
    Method,
    Setting,
    Step,
    Transition,
    data_gradient,
)
from invdiff.schedules import Level, Schedule
from invdiff.testing import (
    GUIDANCE_CHECKS,
    ITINERARY_CHECKS,
    METRIC_CHECKS,
    MODEL_CHECKS,
    OPERATOR_CHECKS,
    SCHEDULE_CHECKS,
    CheckFailed,
    Report,
    check_guidance,
    check_itinerary,
    check_launcher,
    check_metric,
    check_model,
    check_operator,
    check_schedule,
    check_suite,
    check_transition,
    imports,
    plans,
)
from invdiff.testing.launchers import Squares
from invdiff.testing.report import Skip

pytestmark = pytest.mark.usefixtures("one_thread", "imported")


@pytest.fixture(scope="module")
def imported() -> Iterator[None]:
    """Modules whose import is known to do no harm; what importing does is tried below, once."""
    known: dict[str, list[str] | None] = {__name__: [], "invdiff.operators.denoise": []}
    imports._seen.update(known)
    yield
    for name in known:
        del imports._seen[name]


def failures(check: Callable[..., Report], plugin: Any) -> set[str]:
    """The checks that fail."""
    try:
        check(plugin)
    except CheckFailed as error:
        return {outcome.check for outcome in error.report.of("failed")}
    return set()


# Operators ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Half(LinearOperator):
    """As it should be."""

    def _forward(self, x: Tensor) -> Tensor:
        return 0.5 * x

    def _adjoint(self, y: Tensor) -> Tensor:
        return 0.5 * y


class ForgetsAColumn(Half):
    def image_shape(self, measurement_shape: Shape) -> Shape:
        return (*measurement_shape[:-1], measurement_shape[-1] + 1)


class AlwaysDouble(Half):
    def _forward(self, x: Tensor) -> Tensor:
        return 0.5 * x.double()


class ReadsTheData(Half):
    def _adjoint(self, y: Tensor) -> Tensor:
        return 0.5 * y if bool(y.isfinite().all()) else y


class BendsDarkImages(Half):
    def _forward(self, x: Tensor) -> Tensor:
        return 0.5 * x + (-0.3 - x.flatten(1).mean(1)).relu().view(-1, 1, 1, 1)


class AdjointIsOff(Half):
    def _adjoint(self, y: Tensor) -> Tensor:
        return 0.5 * (1 + 1e-6) * y


class PinvIsAdjoint(Half):
    def _pinv(self, y: Tensor, ridge: Tensor | float) -> Tensor:
        return self._adjoint(y)


class ProxIsIdentity(Half):
    def _prox(self, z: Tensor, y: Tensor, gamma: Tensor | float) -> Tensor:
        return z


class WrongBasis(DiagonalOperator):
    """Half with an SVD whose U is not orthogonal; nothing else is made from it."""

    def _forward(self, x: Tensor) -> Tensor:
        return 0.5 * x

    _adjoint = _forward

    def _pinv(self, y: Tensor, ridge: Tensor | float) -> Tensor:
        return 2 * y

    def _prox(self, z: Tensor, y: Tensor, gamma: Tensor | float) -> Tensor:
        return (z + 0.5 * gamma * y) / (1 + 0.25 * gamma)

    def _singular_values(self) -> Tensor:
        assert self.shape is not None
        return torch.full(self.shape, 0.5, dtype=torch.float64)

    def _ut(self, y: Tensor) -> Tensor:
        return 2 * y


class Detached(Half):
    def _forward(self, x: Tensor) -> Tensor:
        return 0.5 * x.detach()


class CountsTheBatch(Half):
    def _forward(self, x: Tensor) -> Tensor:
        return (0.5 if len(x) < 3 else 0.6) * x


class Counts(Half):
    def make_state(self, shape: Shape) -> dict[str, Tensor]:
        return {"calls": torch.zeros(1, dtype=torch.float64)}

    def _forward(self, x: Tensor) -> Tensor:
        self.state["calls"].add_(1)
        return 0.5 * x


class AnotherMaskEachTime(Half):
    made = itertools.count(2)

    def make_state(self, shape: Shape) -> dict[str, Tensor]:
        return {"factor": torch.full((1,), 1 / next(self.made), dtype=torch.float64)}

    def _forward(self, x: Tensor) -> Tensor:
        return self.state["factor"] * x

    _adjoint = _forward


class DrawsGlobally(Half):
    def make_state(self, shape: Shape) -> dict[str, Tensor]:
        torch.rand(1)
        return {}


@dataclass(frozen=True, eq=False)
class KeepsAFunction(Half):
    response: Callable[[Tensor], Tensor] = torch.sqrt


BROKEN_OPERATORS: dict[str, type[Operator]] = {
    "shapes": ForgetsAColumn,
    "dtypes": AlwaysDouble,
    "meta": ReadsTheData,
    "linear": BendsDarkImages,
    "adjoint": AdjointIsOff,
    "pinv": PinvIsAdjoint,
    "prox": ProxIsIdentity,
    "svd": WrongBasis,
    "differentiable": Detached,
    "batch": CountsTheBatch,
    "unchanged": Counts,
    "fixed": AnotherMaskEachTime,
    "global_rng": DrawsGlobally,
    "saved": KeepsAFunction,
}

# Methods ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pull(Guidance):
    """As it should be: a gradient step on the data. Subclasses break what becomes of the
    prediction."""

    zeta: float = 0.1

    def __call__(
        self, denoise: Denoise, x_t: Tensor, step: Step, measurement: Measurement
    ) -> Prediction:
        p = denoise(x_t, step.t)
        return self.broken(
            p.move_x0(-self.zeta * data_gradient(measurement, p.x0)), step, measurement
        )

    def broken(self, p: Prediction, step: Step, measurement: Measurement) -> Prediction:
        return p


class EvenSidesOnly(Pull):
    def broken(self, p: Prediction, step: Step, measurement: Measurement) -> Prediction:
        return replace(p, x0=F.interpolate(F.avg_pool2d(p.x0, 2), scale_factor=2))


class MakesDoubles(Pull):
    def broken(self, p: Prediction, step: Step, measurement: Measurement) -> Prediction:
        return replace(p, x0=p.x0.double())


class WaitsForTheDevice(Pull):
    def broken(self, p: Prediction, step: Step, measurement: Measurement) -> Prediction:
        return p if bool(p.x0.isfinite().all()) else p.move_x0(-p.x0)


class DividesByStepsLessOne(Pull):
    def broken(self, p: Prediction, step: Step, measurement: Measurement) -> Prediction:
        return p.move_x0(p.x0 * (0.1 * step.index / (step.count - 1)))


class LooksAtTheGlobalSeed(Pull):
    def broken(self, p: Prediction, step: Step, measurement: Measurement) -> Prediction:
        return p.move_x0(p.x0 * (0.01 * (torch.initial_seed() % 7)))


class WastesGlobalNoise(Pull):
    def broken(self, p: Prediction, step: Step, measurement: Measurement) -> Prediction:
        torch.rand(1)
        return p


class RemembersByItself(Pull):
    """The last estimate, on the class: undeclared, and forgotten when a run begins."""

    last: ClassVar[list[Tensor]] = []

    def broken(self, p: Prediction, step: Step, measurement: Measurement) -> Prediction:
        if step.index == 0:
            self.last.clear()
        self.last.append(p.x0)
        return p.move_x0(0.1 * (self.last[0] - p.x0) * len(self.last))


@dataclass(frozen=True)
class ForgetsToSayPerImage(Pull):
    weight: Tensor | None = None

    def bind(self, setting: Setting) -> ForgetsToSayPerImage:
        ones = torch.ones(setting.shape[0], 1, 1, 1, dtype=setting.dtype, device=setting.device)
        return replace(self, weight=ones)


class NormOfTheBatch(Pull):
    def broken(self, p: Prediction, step: Step, measurement: Measurement) -> Prediction:
        return p.move_x0(p.x0 / p.x0.norm())


@dataclass(frozen=True)
class TakesOutputsForEps(Pull):
    trusted: float = 1.0

    def bind(self, setting: Setting) -> TakesOutputsForEps:
        return replace(self, trusted=1.0 if setting.denoiser.predicts == "eps" else 0.5)

    def broken(self, p: Prediction, step: Step, measurement: Measurement) -> Prediction:
        return p.move_x0((self.trusted - 1) * p.x0)


class IsNeverOff(Pull):
    scale: ClassVar[tuple[str, ...]] = ("zeta",)

    def broken(self, p: Prediction, step: Step, measurement: Measurement) -> Prediction:
        return p.move_x0(-0.1 * p.x0)


class DoesNotAsk(Pull):
    requires: ClassVar[type[Operator] | None] = LinearOperator

    def bind(self, setting: Setting) -> DoesNotAsk:
        return self


class DoesNotSay(Pull):
    def broken(self, p: Prediction, step: Step, measurement: Measurement) -> Prediction:
        return p.move_x0(0.1 * measurement.operator.adjoint(measurement.residual(p.x0)))  # type: ignore[attr-defined]


class LeavesGradientsOn(Pull):
    def broken(self, p: Prediction, step: Step, measurement: Measurement) -> Prediction:
        torch.set_grad_enabled(True)
        return p


@dataclass(frozen=True)
class HoldsAnObject(Pull):
    helper: object = field(default_factory=object)


@dataclass(frozen=True)
class ForgetsX0(Transition):
    def down(
        self, predict: Denoise, x_t: Tensor, step: Step, measurement: Measurement | None
    ) -> Tensor:
        p = predict(x_t, step.t)
        return step.s.alpha * (p.x_t - p.level.sigma * p.eps) / p.level.alpha + step.s.sigma * p.eps


BROKEN_METHODS: dict[str, Callable[[], Any]] = {
    "shapes": EvenSidesOnly,
    "dtypes": MakesDoubles,
    "meta": WaitsForTheDevice,
    "finite": DividesByStepsLessOne,
    "own_noise": LooksAtTheGlobalSeed,
    "global_rng": WastesGlobalNoise,
    "remembers": RemembersByItself,
    "fields_per_image": ForgetsToSayPerImage,
    "batch": NormOfTheBatch,
    "networks": TakesOutputsForEps,
    "scale": IsNeverOff,
    "refuses": DoesNotAsk,
    "requirement": DoesNotSay,
    "unchanged": LeavesGradientsOn,
    "described": HoldsAnObject,
    "x0_shift": lambda: Method(transition=ForgetsX0()),
}

# Itineraries and schedules ------------------------------------------------------------------------


@dataclass(frozen=True)
class EverySecond(Itinerary):
    """As it should be: every second level of a straight run."""

    def __call__(self, schedule: Schedule, steps: int) -> list[Level]:
        return self.broken(Straight()(schedule, 2 * steps)[::-2][::-1], schedule)

    def broken(self, levels: list[Level], schedule: Schedule) -> list[Level]:
        return levels


class EndsNoisy(EverySecond):
    def broken(self, levels: list[Level], schedule: Schedule) -> list[Level]:
        return levels[:-1] + [schedule(schedule.t_min)]


class AnotherWayEachTime(EverySecond):
    made = itertools.count()

    def broken(self, levels: list[Level], schedule: Schedule) -> list[Level]:
        return levels[next(self.made) % 2 :]


class RefusesMany(EverySecond):
    def __call__(self, schedule: Schedule, steps: int) -> list[Level]:
        if steps == 20:
            raise ValueError("steps must not be 20")
        return super().__call__(schedule, steps)


class StartsFromNothing(EverySecond):
    def start(self, measurement: Measurement | None) -> Tensor | None:
        return None if measurement is None else measurement.y * torch.nan


@dataclass(frozen=True)
class KeepsAnObject(EverySecond):
    helper: object = field(default_factory=object)


BROKEN_ITINERARIES: dict[str, Callable[[], Any]] = {
    "levels": EndsNoisy,
    "repeatable": AnotherWayEachTime,
    "steps": RefusesMany,
    "runs": StartsFromNothing,
    "described": KeepsAnObject,
}


@dataclass(frozen=True)
class Straightforward(Schedule):
    """As it should be: alpha = 1 - t, sigma = t (1 + t) / 2."""

    t_max: float = 0.99
    t_min: float = 0.01

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - t, t * (1 + t) / 2

    def time(self, ratio: Tensor) -> Tensor:
        b = 1 + 2 * ratio
        return (-b + torch.sqrt(b**2 + 8 * ratio)) / 2


class AddsADimension(Straightforward):
    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = super().coefficients(t)
        return torch.atleast_1d(alpha), torch.atleast_1d(sigma)


class Pauses(Straightforward):
    """Its levels stay the same from 0.5 to 0.55."""

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return super().coefficients(torch.where(t <= 0.5, t, (t - 0.05).clamp(min=0.5)))

    def time(self, ratio: Tensor) -> Tensor:
        t = super().time(ratio)
        return torch.where(t <= 0.5, t, t + 0.05)


class WrongInverse(Straightforward):
    def time(self, ratio: Tensor) -> Tensor:
        return super().time(ratio * 1.001)


class NotClean(Straightforward):
    clean = 0.005


class VisitsNoTime(Straightforward):
    def times(self, steps: int, spacing: Any = None) -> Tensor:
        return super().times(steps, spacing) * torch.nan


@dataclass(frozen=True)
class DescribesAnObject(Straightforward):
    helper: object = field(default_factory=object)


BROKEN_SCHEDULES: dict[str, Callable[[], Any]] = {
    "levels": AddsADimension,
    "monotone": Pauses,
    "runs": VisitsNoTime,
    "described": DescribesAnObject,
    "inverse": WrongInverse,
    "clean": NotClean,
}

# Models -------------------------------------------------------------------------------------------


SCHEDULE = schedules.linear(1000)


class Net(torch.nn.Module):
    """As it should be for pixels of N(0, 1), whose noise is sigma x_t. Subclasses break what it
    returns."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3, 1, 1))
        self.table = torch.ones(3, 1, 1)

    def forward(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        return self.broken(self.weight * sigma.view(-1, 1, 1, 1) * x)

    def broken(self, eps: Tensor) -> Tensor:
        return eps


class NetOfEvenSides(Net):
    def broken(self, eps: Tensor) -> Tensor:
        return F.interpolate(F.avg_pool2d(eps, 2), scale_factor=2) * 0 + eps


class StrayTensor(Net):
    def broken(self, eps: Tensor) -> Tensor:
        return self.table * eps


class ZeroByZero(Net):
    """Told the time, it divides by what is left to the noisiest."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("sigmas", SCHEDULE(torch.arange(1000)).sigma.float())

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        left = (SCHEDULE.t_max - t).view(-1, 1, 1, 1)
        return left / left * super().forward(x, self.sigmas[t.long()])


class SeededGlobally(Net):
    def broken(self, eps: Tensor) -> Tensor:
        return eps * (1 + 0.01 * (torch.initial_seed() % 7))


class DropsOut(Net):
    def broken(self, eps: Tensor) -> Tensor:
        torch.rand(1)
        return eps


class NormalisesTheBatch(Net):
    def broken(self, eps: Tensor) -> Tensor:
        return eps * (1 + 0.1 * len(eps))


class Cut(Net):
    def broken(self, eps: Tensor) -> Tensor:
        return eps.detach()


class TurnsToTraining(Net):
    def broken(self, eps: Tensor) -> Tensor:
        self.train()
        return eps


def denoiser(net: Callable[..., Tensor], **options: Any) -> Denoiser:
    defaults = {
        "schedule": SCHEDULE,
        "time": lambda t: SCHEDULE(t).sigma,
        "data_range": (-1.0, 1.0),
        "channels": 3,
    }
    return Denoiser(net, **{**defaults, **options})


def single_only(x: Tensor, sigma: Tensor) -> Tensor:
    return sigma.view(-1, 1, 1, 1) * F.conv2d(x, torch.eye(3).view(3, 3, 1, 1))


def with_a_path(**options: Any) -> Denoiser:
    made = denoiser(Net(), **options)
    made.source["path"] = Path("weights.pt")
    return made


BROKEN_MODELS: dict[str, Callable[..., Denoiser]] = {
    "shapes": lambda **o: denoiser(NetOfEvenSides(), **o),
    "dtypes": lambda **o: denoiser(single_only, **o),
    "meta": lambda **o: denoiser(StrayTensor(), **o),
    "finite": lambda **o: denoiser(ZeroByZero(), **{"time": None, **o}),
    "reading": lambda **o: denoiser(
        Net(), **{"predicts": "score", "time": lambda t: SCHEDULE(t).sigma, **o}
    ),
    "repeatable": lambda **o: denoiser(SeededGlobally(), **o),
    "global_rng": lambda **o: denoiser(DropsOut(), **o),
    "batch": lambda **o: denoiser(NormalisesTheBatch(), **o),
    "gradient": lambda **o: denoiser(Cut(), **o),
    "unchanged": lambda **o: denoiser(TurnsToTraining(), **o),
    "conditions": lambda **o: denoiser(Net(), **{"num_classes": 3, **o}),
    "options": lambda **options: denoiser(Net()),
    "described": with_a_path,
}

# Metrics ------------------------------------------------------------------------------------------


def mae(x: Tensor, reference: Tensor) -> Tensor:
    """As it should be."""
    if x.shape != reference.shape:
        raise ValueError("shapes differ")
    return (x - reference).detach().abs().flatten(1).mean(1)


def refuses_doubles(x: Tensor, reference: Tensor) -> Tensor:
    if x.dtype == torch.float64:
        raise TypeError("only float32")
    return mae(x, reference)


def draws(x: Tensor, reference: Tensor) -> Tensor:
    torch.rand(1)
    return mae(x, reference)


BROKEN_METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "shapes": lambda x, reference: mae(x, reference)[:, None],
    "dtypes": refuses_doubles,
    "order": lambda x, reference: mae(x, reference) * 0,
    "batch": lambda x, reference: mae(x, reference) / len(x),
    "repeatable": lambda x, reference: mae(x, reference) * (1 + torch.initial_seed() % 7),
    "global_rng": draws,
    "unchanged": lambda x, reference: mae(x, reference) + 0 * x.flatten(1).sum(1),
    "refuses": lambda x, reference: (x - reference).detach().abs().flatten(1).mean(1),
}

# --------------------------------------------------------------------------------------------------


KINDS: dict[str, tuple[Callable[..., Report], Any, tuple[str, ...], Mapping[str, Any]]] = {
    "operator": (check_operator, Half, OPERATOR_CHECKS, BROKEN_OPERATORS),
    "guidance": (check_guidance, Pull, GUIDANCE_CHECKS, BROKEN_METHODS),
    "model": (
        check_model,
        lambda **options: denoiser(Net(), **options),
        MODEL_CHECKS,
        BROKEN_MODELS,
    ),
    "metric": (check_metric, mae, METRIC_CHECKS, BROKEN_METRICS),
    "itinerary": (check_itinerary, EverySecond, ITINERARY_CHECKS, BROKEN_ITINERARIES),
    "schedule": (check_schedule, Straightforward, SCHEDULE_CHECKS, BROKEN_SCHEDULES),
}


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a function that registers one object, as an installed package would."""

    def register(kind: str, name: str, value: str) -> None:
        point = EntryPoint(name, value, f"invdiff.{kind}")
        others = registry.entry_points
        monkeypatch.setattr(
            registry,
            "entry_points",
            lambda group: [*others(group=group), *([point] if group == point.group else [])],
        )
        registry._found.cache_clear()

    yield register
    monkeypatch.undo()
    registry._found.cache_clear()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_right_passes_and_every_check_has_a_plugin_that_breaks_it(kind: str) -> None:
    check, good, checks, broken = KINDS[kind]
    assert not failures(check, good)
    assert {*broken, "imports"} == set(checks)


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, (*_, broken) in KINDS.items() for name in broken]
)
def test_a_broken_plugin_fails_its_own_check_alone(kind: str, name: str, registered: Any) -> None:
    check, _, _, broken = KINDS[kind]
    if name == "saved":  # only what a file can name is saved
        registered(
            "operators",
            "keeps_a_function",
            f"{KeepsAFunction.__module__}:{KeepsAFunction.__qualname__}",
        )
    assert failures(check, broken[name]) == {name}


EFFECTS = {
    "kit_prints": ("print('hello')", "prints 'hello'"),
    "kit_seeds": ("import torch; torch.manual_seed(0)", "changes torch's global generator"),
    "kit_doubles": (
        "import torch; torch.set_default_dtype(torch.float64)",
        "changes torch's default dtype",
    ),
    "kit_silences": (
        "import warnings; warnings.simplefilter('ignore')",
        "changes the warnings filters",
    ),
    "kit_threads": ("import torch; torch.set_num_threads(7)", "changes torch's threads"),
}


def test_modules_with_side_effects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, (code, _) in EFFECTS.items():
        (tmp_path / f"{name}.py").write_text(code)
    (tmp_path / "kit_harmless.py").write_text("import torch")
    monkeypatch.syspath_prepend(tmp_path)
    imports.examine([*EFFECTS, "kit_harmless", "kit_absent"])
    for name, (_, says) in EFFECTS.items():
        with pytest.raises(AssertionError, match=f"importing {name} {says}$"):
            imports.importing(name)
    assert imports.importing("kit_harmless") == "kit_harmless changes nothing"
    with pytest.raises(Skip, match="kit_absent is not importable by its name"):
        imports.importing("kit_absent")


def test_every_kind_tries_the_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(imports._seen, __name__, ["prints 'hello'"])
    for check, good, *_ in KINDS.values():
        with pytest.raises(CheckFailed, match="imports +FAILED +importing .* prints 'hello'"):
            check(good, only=["imports"])


def test_expected_failures() -> None:
    reason = {"pinv": "only its adjoint is known"}
    report = check_operator(PinvIsAdjoint, expected_failures=reason, only=["pinv", "adjoint"])
    assert [(o.check, o.status, o.reason) for o in report.outcomes] == [
        ("adjoint", "passed", ""),
        ("pinv", "expected", reason["pinv"]),
    ]
    declared = type("Declared", (PinvIsAdjoint,), {"expected_failures": reason})
    assert check_operator(declared, only=["pinv"]).of("expected")
    with pytest.warns(UserWarning, match="operator Half: pinv passes; its expected failure can go"):
        assert check_operator(Half, expected_failures=reason, only=["pinv"]).ok
    with pytest.raises(ValueError, match=r"has no parameter 'pniv'\. Did you mean 'pinv'"):
        check_operator(Half, expected_failures={"pniv": "misspelt"})


def test_a_report_reads_well_and_is_plain_data() -> None:
    with pytest.raises(
        CheckFailed, match=r"operator AdjointIsOff: 1 failed\n  adjoint +FAILED +.* tolerance 1e-09"
    ) as error:
        check_operator(AdjointIsOff, only=["adjoint"])
    assert json.loads(json.dumps(error.value.report.as_dict()))["checks"][0]["status"] == "failed"


def test_the_kit_leaves_no_trace() -> None:
    before = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_operator("denoise", only=["fixed", "batch"])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_transition_is_checked_as_the_method_of_it_alone() -> None:
    assert failures(check_transition, ForgetsX0) == {"x0_shift"}


EVERY = {
    kind: sorted(name for name in registry.list_plugins(kind) if kind != "launchers")
    for kind in plans.KINDS
}
QUICK = ("itineraries", "schedules", "formats", "loaders", "metrics", "models")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param(kind, name, marks=[] if kind in QUICK else pytest.mark.slow)
        for kind, names in EVERY.items()
        for name in names
    ],
)
def test_every_registered_plugin_passes(kind: str, name: str) -> None:
    assert plans.plan(kind, name).report().ok


@pytest.mark.slow
def test_launchers_and_suites() -> None:
    assert check_launcher("local").ok

    class Equal(Squares):
        defaults: ClassVar[Mapping[str, Any]] = {"n": 1}

        def tasks(self, config: Mapping[str, Any]) -> list[Any]:
            return [[{"n": 1}], [{"n": 1}]]

    assert failures(check_suite, Equal) == {"plain"}
    assert check_suite(
        type("Good", (Squares,), {"defaults": {"n": 1}}), only=["plain", "evaluates"]
    ).ok

    def forgets(workers: int | None = None) -> Any:
        def launch(suite: Any, tasks: Any, folder: Path, context: Any) -> Any:
            for task in tasks:
                yield task, [{"cell": cell, "result": {}} for cell in task]

        return launch

    assert failures(check_launcher, forgets) == {"runs"}


def test_objects_shapes_and_conditions_of_ones_own() -> None:
    assert check_operator(Half().bind((5,)), only=["adjoint", "shapes"]).ok
    assert check_operator(Half(), shapes=[(7,)], only=["adjoint", "shapes"]).ok
    assert check_guidance(Pull(zeta=0.2), operator=Half(), only=["finite"]).ok

    def net(x: Tensor, sigma: Tensor, beside: Tensor) -> Tensor:
        return sigma[:, None] * x + 0.01 * beside

    vectors = Denoiser(net, schedule=SCHEDULE, time=lambda t: SCHEDULE(t).sigma)
    report = check_model(
        vectors,
        shape=(4,),
        cond={"beside": torch.ones(2, 4)},
        only=["shapes", "conditions", "batch", "options"],
    )
    assert [o.status for o in report.outcomes] == ["passed", "passed", "passed", "skipped"]


def test_the_command(
    registered: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["check", "denoise"]) == 0
    out = capsys.readouterr().out
    assert "operators denoise  (1 of 1)" in out and "adjoint           ok" in out
    assert main(["check", "denoize"]) == 2
    assert "Did you mean 'denoise'?" in capsys.readouterr().err

    registered("operators", "half", f"{AdjointIsOff.__module__}:{AdjointIsOff.__qualname__}")
    monkeypatch.setitem(sys.modules, AdjointIsOff.__module__, sys.modules[__name__])
    assert main(["check", "half", "--json"]) == 2
    captured = capsys.readouterr()
    (plugin,) = json.loads(captured.out)["plugins"]
    assert [c["check"] for c in plugin["checks"] if c["status"] == "failed"] == ["adjoint"]
    assert "1 checks failed: half adjoint" in captured.err
    registered("metrics", "gone", f"{__name__}:gone")
    assert main(["check", "gone"]) == 2
    assert "cannot be loaded" in capsys.readouterr().out
