"""The checks of each kind of plug-in, from its registered name, its class or function, or an
object."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

from torch import Tensor

from invdiff.network import Denoiser
from invdiff.plugins.registry import load
from invdiff.problem import Operator, make_operator
from invdiff.problem.make import as_operator
from invdiff.problem.operator import Shape
from invdiff.sampling import Itinerary, Method, Piece, Transition, make_method
from invdiff.schedules import Schedule
from invdiff.solving.plan import complete
from invdiff.testing import (
    baselines,
    formats,
    itineraries,
    launchers,
    loaders,
    methods,
    metrics,
    models,
    operators,
    schedules,
    suites,
    trackers,
)
from invdiff.testing.report import Plan, Report

OPERATOR_CHECKS = tuple(operators.CHECKS)
GUIDANCE_CHECKS = tuple(methods.CHECKS)
MODEL_CHECKS = tuple(models.CHECKS)
METRIC_CHECKS = tuple(metrics.CHECKS)
TRANSITION_CHECKS = tuple(c for c in methods.CHECKS if c not in ("scale", "remembers"))
ITINERARY_CHECKS = tuple(itineraries.CHECKS)
SCHEDULE_CHECKS = tuple(schedules.CHECKS)
LOADER_CHECKS = tuple(loaders.CHECKS)
BASELINE_CHECKS = tuple(baselines.CHECKS)
LAUNCHER_CHECKS = tuple(launchers.CHECKS)
SUITE_CHECKS = tuple(suites.CHECKS)
TRACKER_CHECKS = tuple(trackers.CHECKS)
FORMAT_CHECKS = tuple(formats.CHECKS)

Reasons = Mapping[str, str]
NONE: Reasons = MappingProxyType({})


def check_operator(
    operator: Any,
    *,
    shapes: Sequence[Shape] = operators.SHAPES,
    only: Sequence[str] | None = None,
    expected_failures: Reasons = NONE,
) -> Report:
    """Checks an operator.

    Args:
        operator: a registered name, a class or function that makes one of its defaults, or an
            object.
        shapes: of the images it is tried with, (C, H, W) or (d,), cropped to what it takes.
        only: some of :data:`OPERATOR_CHECKS`.
        expected_failures: check -> why it is known to fail.

    Raises:
        CheckFailed: a check failed that was not expected to.
        ValueError: a check of that name does not exist.
    """
    return plan("operators", operator, only, expected_failures, shapes=shapes).report()


def check_guidance(
    method: Any,
    *,
    operator: Operator | None = None,
    only: Sequence[str] | None = None,
    expected_failures: Reasons = NONE,
) -> Report:
    """Checks a method on the kit's own network and short runs.

    Args:
        method: a registered name, a class or function that makes one of its defaults, or an object.
        operator: what it restores from, of images with 3 channels; by default super-resolution by
            2, which is linear and has an SVD.
        only: some of :data:`GUIDANCE_CHECKS`.
        expected_failures: check -> why it is known to fail.

    Raises:
        CheckFailed, ValueError: as :func:`check_operator`.
    """
    return plan("guidance", method, only, expected_failures, operator=operator).report()


def check_transition(
    transition: Any,
    *,
    operator: Operator | None = None,
    only: Sequence[str] | None = None,
    expected_failures: Reasons = NONE,
) -> Report:
    """Checks a transition, as the method of it alone.

    Args:
        transition: a registered name, a class or function that makes one of its defaults, or an
            object.
        operator: as in :func:`check_guidance`.
        only: some of :data:`TRANSITION_CHECKS`.
        expected_failures: check -> why it is known to fail.

    Raises:
        CheckFailed, ValueError: as :func:`check_operator`.
    """
    return plan("transitions", transition, only, expected_failures, operator=operator).report()


def check_itinerary(
    itinerary: Any, *, only: Sequence[str] | None = None, expected_failures: Reasons = NONE
) -> Report:
    """Checks an itinerary.

    Args:
        itinerary: a registered name, a class or function that makes one of its defaults, or an
            object.
        only: some of :data:`ITINERARY_CHECKS`.
        expected_failures: check -> why it is known to fail.

    Raises:
        CheckFailed, ValueError: as :func:`check_operator`.
    """
    return plan("itineraries", itinerary, only, expected_failures).report()


def check_schedule(
    schedule: Any, *, only: Sequence[str] | None = None, expected_failures: Reasons = NONE
) -> Report:
    """Checks a schedule.

    Args:
        schedule: a registered name, a class or function that makes one of its defaults, or an
            object.
        only: some of :data:`SCHEDULE_CHECKS`.
        expected_failures: check -> why it is known to fail.

    Raises:
        CheckFailed, ValueError: as :func:`check_operator`.
    """
    return plan("schedules", schedule, only, expected_failures).report()


def check_loader(
    loader: Any, *, only: Sequence[str] | None = None, expected_failures: Reasons = NONE
) -> Report:
    """Checks a loader.

    Args:
        loader: a registered name, or the module or object with the two functions.
        only: some of :data:`LOADER_CHECKS`.
        expected_failures: check -> why it is known to fail.

    Raises:
        CheckFailed, ValueError: as :func:`check_operator`.
    """
    return plan("loaders", loader, only, expected_failures).report()


def check_baseline(
    baseline: Any, *, only: Sequence[str] | None = None, expected_failures: Reasons = NONE
) -> Report:
    """Checks a baseline.

    Args:
        baseline: a registered name, a class that makes one of its defaults, or an object.
        only: some of :data:`BASELINE_CHECKS`.
        expected_failures: check -> why it is known to fail.

    Raises:
        CheckFailed, ValueError: as :func:`check_operator`.
    """
    return plan("baselines", baseline, only, expected_failures).report()


def check_launcher(
    launcher: Any, *, only: Sequence[str] | None = None, expected_failures: Reasons = NONE
) -> Report:
    """Checks a launcher.

    Args:
        launcher: a registered name, or a function ``launcher(workers)``.
        only: some of :data:`LAUNCHER_CHECKS`.
        expected_failures: check -> why it is known to fail.

    Raises:
        CheckFailed, ValueError: as :func:`check_operator`.
    """
    return plan("launchers", launcher, only, expected_failures).report()


def check_suite(
    suite: Any, *, only: Sequence[str] | None = None, expected_failures: Reasons = NONE
) -> Report:
    """Checks a suite.

    Args:
        suite: a registered name, a class that makes one, or an object. Its attribute ``defaults``
            is a configuration to try.
        only: some of :data:`SUITE_CHECKS`.
        expected_failures: check -> why it is known to fail.

    Raises:
        CheckFailed, ValueError: as :func:`check_operator`.
    """
    return plan("suites", suite, only, expected_failures).report()


def check_tracker(
    tracker: Any, *, only: Sequence[str] | None = None, expected_failures: Reasons = NONE
) -> Report:
    """Checks a tracker.

    Args:
        tracker: a registered name or a class.
        only: some of :data:`TRACKER_CHECKS`.
        expected_failures: check -> why it is known to fail.

    Raises:
        CheckFailed, ValueError: as :func:`check_operator`.
    """
    return plan("trackers", tracker, only, expected_failures).report()


def check_format(
    format: str, *, only: Sequence[str] | None = None, expected_failures: Reasons = NONE
) -> Report:
    """Checks a format of files of science.

    Args:
        format: a registered suffix.
        only: some of :data:`FORMAT_CHECKS`.
        expected_failures: check -> why it is known to fail.

    Raises:
        CheckFailed, ValueError: as :func:`check_operator`.
    """
    return plan("formats", format, only, expected_failures).report()


def check_model(
    model: Any,
    *,
    shape: Shape | None = None,
    cond: Mapping[str, Tensor] = MappingProxyType({}),
    only: Sequence[str] | None = None,
    expected_failures: Reasons = NONE,
) -> Report:
    """Checks a model in some twenty evaluations.

    Args:
        model: a registered name, a function that makes one, or a
            :class:`~invdiff.network.Denoiser`.
        shape: of its images, (C, H, W) or (d,); by default an odd, non-square one.
        cond: what it cannot run without besides a label, an image and text, which the kit makes:
            tensors with two entries.
        only: some of :data:`MODEL_CHECKS`.
        expected_failures: check -> why it is known to fail.

    Raises:
        CheckFailed, ValueError: as :func:`check_operator`.
    """
    return plan("models", model, only, expected_failures, shape=shape, cond=cond).report()


def check_metric(
    metric: Any, *, only: Sequence[str] | None = None, expected_failures: Reasons = NONE
) -> Report:
    """Checks a metric.

    Args:
        metric: a registered name, or a function ``metric(x, reference)``.
        only: some of :data:`METRIC_CHECKS`.
        expected_failures: check -> why it is known to fail.

    Raises:
        CheckFailed, ValueError: as :func:`check_operator`.
    """
    return plan("metrics", metric, only, expected_failures).report()


# What each kind of plug-in is tried as: what it was given as (a class or function, or an object),
# which may declare expected failures, and the case that the checks take.


def _operator(operator: Any, shapes: Sequence[Shape] = operators.SHAPES) -> operators.Case:
    made = as_operator(_made(operator))
    return operators.Case(made, tuple(shapes), type(made).__module__)


def _guidance(method: Any, operator: Operator | None = None) -> methods.Case:
    given = getattr(method, "tried_with", dict)
    made = make_method(
        method if isinstance(method, Method | Piece | Itinerary) else method(**given())
    )
    own = [p for p in (*made.chain, made.transition, made.itinerary) if p is not None]
    return methods.Case(
        complete(made),
        made.transition is not None,
        operator or make_operator("sr", factor=2),
        method.__module__ if callable(method) else type(own[0]).__module__,
    )


def _transition(transition: Any, operator: Operator | None = None) -> methods.Case:
    given = getattr(transition, "tried_with", dict)
    made = transition if isinstance(transition, Transition) else transition(**given())
    whole = complete(Method(transition=made))
    return methods.Case(
        whole, True, operator or make_operator("sr", factor=2), _module(transition, made)
    )


def _itinerary(itinerary: Any) -> itineraries.Case:
    made = itinerary if isinstance(itinerary, Itinerary) else itinerary()
    return itineraries.Case(made, _module(itinerary, made))


def _schedule(schedule: Any) -> schedules.Case:
    made = schedule if isinstance(schedule, Schedule) else schedule()
    return schedules.Case(made, type(made).__module__ if made is schedule else schedule.__module__)


def _loader(loader: Any) -> loaders.Case:
    module = loader.__name__ if inspect.ismodule(loader) else type(loader).__module__
    return loaders.Case(loader, module)


def _baseline(baseline: Any) -> baselines.Case:
    made = _made(baseline)
    return baselines.Case(made, type(made).__module__)


def _launcher(launcher: Any) -> launchers.Case:
    return launchers.Case(launcher, launcher.__module__)


def _suite(suite: Any, name: str) -> suites.Case:
    make: Any = suite
    made = make(name) if inspect.isclass(suite) else make
    return suites.Case(made, made.defaults, type(made).__module__)


def _tracker(tracker: Any) -> trackers.Case:
    return trackers.Case(tracker, tracker.__module__)


def _format(format: Any, name: str) -> formats.Case:
    return formats.Case(format, name, format.__name__)


def _model(
    model: Any, shape: Shape | None = None, cond: Mapping[str, Tensor] = MappingProxyType({})
) -> models.Case:
    factory = None if isinstance(model, Denoiser) else model
    denoiser = model if factory is None else factory()
    module = (type(denoiser.net) if factory is None else factory).__module__
    return models.Case(denoiser, factory, shape, cond, module)


def _metric(metric: Any) -> metrics.Case:
    return metrics.Case(metric, metric.__module__)


def _made(plugin: Any) -> Any:
    return plugin() if inspect.isroutine(plugin) or inspect.isclass(plugin) else plugin


def _module(given: Any, made: Any) -> str:
    return str(given.__module__ if callable(given) else type(made).__module__)


@dataclass(frozen=True)
class Kind:
    """A kind of plug-in: its name in reports, what a plug-in is tried as, and the checks."""

    name: str
    case: Callable[..., Any]
    checks: Mapping[str, Callable[[Any], str]]


KINDS = {
    "operators": Kind("operator", _operator, operators.CHECKS),
    "guidance": Kind("guidance", _guidance, methods.CHECKS),
    "transitions": Kind(
        "transition", _transition, {name: methods.CHECKS[name] for name in TRANSITION_CHECKS}
    ),
    "itineraries": Kind("itinerary", _itinerary, itineraries.CHECKS),
    "schedules": Kind("schedule", _schedule, schedules.CHECKS),
    "loaders": Kind("loader", _loader, loaders.CHECKS),
    "baselines": Kind("baseline", _baseline, baselines.CHECKS),
    "launchers": Kind("launcher", _launcher, launchers.CHECKS),
    "suites": Kind("suite", _suite, suites.CHECKS),
    "trackers": Kind("tracker", _tracker, trackers.CHECKS),
    "formats": Kind("format", _format, formats.CHECKS),
    "models": Kind("model", _model, models.CHECKS),
    "metrics": Kind("metric", _metric, metrics.CHECKS),
}
"""By entry-point group."""


def plan(
    group: str,
    plugin: Any,
    only: Sequence[str] | None = None,
    expected: Reasons = NONE,
    **options: Any,
) -> Plan:
    """The checks of a plug-in.

    Args:
        group: of entry points.
        plugin: a registered name, the class or function that would be registered, or an object.
        only, expected: as in :func:`check_operator`.
        options: of this kind of plug-in.
    """
    kind = KINDS[group]
    given = load(group, plugin) if isinstance(plugin, str) else plugin
    name = plugin if isinstance(plugin, str) else getattr(plugin, "__name__", type(plugin).__name__)
    if "name" in inspect.signature(kind.case).parameters:
        options["name"] = name
    case = kind.case(given, **options)
    declared = getattr(given, "expected_failures", {})
    checks = {check: partial(f, case) for check, f in kind.checks.items()}
    return Plan(kind.name, name, checks, {**declared, **expected}, only)
