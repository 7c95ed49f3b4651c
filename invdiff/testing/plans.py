"""The checks of each kind of plug-in, from its registered name, its class or function, or an
object."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
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
    return plan_operator(operator, shapes, only, expected_failures).report()


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
    return plan_guidance(method, operator, only, expected_failures).report()


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
    return plan_transition(transition, operator, only, expected_failures).report()


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
    return plan_itinerary(itinerary, only, expected_failures).report()


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
    return plan_schedule(schedule, only, expected_failures).report()


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
    return plan_loader(loader, only, expected_failures).report()


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
    return plan_baseline(baseline, only, expected_failures).report()


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
    return plan_launcher(launcher, only, expected_failures).report()


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
    return plan_suite(suite, only, expected_failures).report()


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
    return plan_model(model, shape, cond, only, expected_failures).report()


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
    return plan_metric(metric, only, expected_failures).report()


def plan_operator(
    operator: Any,
    shapes: Sequence[Shape] = operators.SHAPES,
    only: Sequence[str] | None = None,
    expected: Reasons = NONE,
) -> Plan:
    """The checks of an operator."""
    made = loaded("operators", operator)
    made = as_operator(made() if inspect.isroutine(made) or inspect.isclass(made) else made)
    case = operators.Case(made, tuple(shapes), type(made).__module__)
    return _plan("operator", operator, made, operators.CHECKS, case, only, expected)


def plan_guidance(
    method: Any,
    operator: Operator | None = None,
    only: Sequence[str] | None = None,
    expected: Reasons = NONE,
) -> Plan:
    """The checks of a method."""
    factory = loaded("guidance", method)
    made = make_method(factory if isinstance(factory, Method | Piece | Itinerary) else factory())
    own = [p for p in (*made.chain, made.transition, made.itinerary) if p is not None]
    module = factory.__module__ if callable(factory) else type(own[0]).__module__
    case = methods.Case(
        complete(made),
        made.transition is not None,
        operator or make_operator("sr", factor=2),
        module,
    )
    return _plan("guidance", method, factory, methods.CHECKS, case, only, expected)


def plan_transition(
    transition: Any,
    operator: Operator | None = None,
    only: Sequence[str] | None = None,
    expected: Reasons = NONE,
) -> Plan:
    """The checks of a transition."""
    factory = loaded("transitions", transition)
    made = factory if isinstance(factory, Transition) else factory()
    module = factory.__module__ if callable(factory) else type(made).__module__
    case = methods.Case(
        complete(Method(transition=made)), True, operator or make_operator("sr", factor=2), module
    )
    checks = {name: methods.CHECKS[name] for name in TRANSITION_CHECKS}
    return _plan("transition", transition, factory, checks, case, only, expected)


def plan_itinerary(
    itinerary: Any, only: Sequence[str] | None = None, expected: Reasons = NONE
) -> Plan:
    """The checks of an itinerary."""
    factory = loaded("itineraries", itinerary)
    made = factory if isinstance(factory, Itinerary) else factory()
    module = factory.__module__ if callable(factory) else type(made).__module__
    case = itineraries.Case(made, module)
    return _plan("itinerary", itinerary, factory, itineraries.CHECKS, case, only, expected)


def plan_schedule(
    schedule: Any, only: Sequence[str] | None = None, expected: Reasons = NONE
) -> Plan:
    """The checks of a schedule."""
    factory = loaded("schedules", schedule)
    made = factory if isinstance(factory, Schedule) else factory()
    module = type(made).__module__ if isinstance(factory, Schedule) else factory.__module__
    case = schedules.Case(made, module)
    return _plan("schedule", schedule, factory, schedules.CHECKS, case, only, expected)


def plan_loader(loader: Any, only: Sequence[str] | None = None, expected: Reasons = NONE) -> Plan:
    """The checks of a loader."""
    made = loaded("loaders", loader)
    module = made.__name__ if inspect.ismodule(made) else type(made).__module__
    case = loaders.Case(made, module)
    return _plan("loader", loader, made, loaders.CHECKS, case, only, expected)


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
    return plan_tracker(tracker, only, expected_failures).report()


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
    return plan_format(format, only, expected_failures).report()


def plan_tracker(tracker: Any, only: Sequence[str] | None = None, expected: Reasons = NONE) -> Plan:
    """The checks of a tracker."""
    made = loaded("trackers", tracker)
    case = trackers.Case(made, made.__module__)
    return _plan("tracker", tracker, made, trackers.CHECKS, case, only, expected)


def plan_format(format: str, only: Sequence[str] | None = None, expected: Reasons = NONE) -> Plan:
    """The checks of a format."""
    made = loaded("formats", format)
    case = formats.Case(made, format, made.__name__)
    return _plan("format", format, made, formats.CHECKS, case, only, expected)


def plan_baseline(
    baseline: Any, only: Sequence[str] | None = None, expected: Reasons = NONE
) -> Plan:
    """The checks of a baseline."""
    factory = loaded("baselines", baseline)
    made: Any = factory() if inspect.isclass(factory) or inspect.isroutine(factory) else factory
    module = type(made).__module__
    case = baselines.Case(made, module)
    return _plan("baseline", baseline, factory, baselines.CHECKS, case, only, expected)


def plan_launcher(
    launcher: Any, only: Sequence[str] | None = None, expected: Reasons = NONE
) -> Plan:
    """The checks of a launcher."""
    factory = loaded("launchers", launcher)
    module = factory.__module__
    case = launchers.Case(factory, module)
    return _plan("launcher", launcher, factory, launchers.CHECKS, case, only, expected)


def plan_suite(suite: Any, only: Sequence[str] | None = None, expected: Reasons = NONE) -> Plan:
    """The checks of a suite."""
    factory: Any = loaded("suites", suite)
    name = suite if isinstance(suite, str) else "suite"
    make: Any = factory
    made: Any = make(name) if inspect.isclass(factory) else factory
    case = suites.Case(made, made.defaults, type(made).__module__)
    return _plan("suite", suite, factory, suites.CHECKS, case, only, expected)


def plan_model(
    model: Any,
    shape: Shape | None = None,
    cond: Mapping[str, Tensor] = MappingProxyType({}),
    only: Sequence[str] | None = None,
    expected: Reasons = NONE,
) -> Plan:
    """The checks of a model."""
    made = loaded("models", model)
    factory = None if isinstance(made, Denoiser) else made
    denoiser = made if factory is None else factory()
    module = (type(denoiser.net) if factory is None else factory).__module__
    return _plan(
        "model",
        model,
        made,
        models.CHECKS,
        models.Case(denoiser, factory, shape, cond, module),
        only,
        expected,
    )


def plan_metric(metric: Any, only: Sequence[str] | None = None, expected: Reasons = NONE) -> Plan:
    """The checks of a metric."""
    made = loaded("metrics", metric)
    return _plan(
        "metric", metric, made, metrics.CHECKS, metrics.Case(made, made.__module__), only, expected
    )


PLANS: dict[str, Callable[[Any], Plan]] = {
    "operators": plan_operator,
    "guidance": plan_guidance,
    "transitions": plan_transition,
    "itineraries": plan_itinerary,
    "schedules": plan_schedule,
    "loaders": plan_loader,
    "baselines": plan_baseline,
    "launchers": plan_launcher,
    "suites": plan_suite,
    "trackers": plan_tracker,
    "formats": plan_format,
    "models": plan_model,
    "metrics": plan_metric,
}
"""By entry-point group."""


def loaded(kind: str, plugin: Any) -> Any:
    """The object registered under a name; anything else as it is."""
    return load(kind, plugin) if isinstance(plugin, str) else plugin


def _plan(
    kind: str,
    plugin: Any,
    declaring: Any,
    checks: Mapping[str, Callable[[Any], str]],
    case: Any,
    only: Sequence[str] | None,
    expected: Reasons,
) -> Plan:
    name = plugin if isinstance(plugin, str) else getattr(plugin, "__name__", type(plugin).__name__)
    declared = getattr(declaring, "expected_failures", {})
    return Plan(
        kind,
        name,
        {check: partial(f, case) for check, f in checks.items()},
        {**declared, **expected},
        only,
    )
