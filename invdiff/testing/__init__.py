"""The plug-in kit: checks of each kind of plug-in for their authors' own tests.

    from invdiff.testing import check_guidance

    def test_my_method():
        check_guidance("my_method")

Each function runs a list of named checks and returns a :class:`Report`, or raises
:class:`CheckFailed` with the report if one failed. One test for each check:

    @pytest.mark.parametrize("check", GUIDANCE_CHECKS)
    def test_my_method(check):
        check_guidance("my_method", only=[check])

What is known to fail is declared with its reason, either here, ``expected_failures={"meta": "looks
at the data"}``, or on the registered class or function itself as an attribute of that name, which
``invdiff check`` sees too. What a check asks is its function's docstring.
"""

from __future__ import annotations

from invdiff.testing.plans import (
    BASELINE_CHECKS,
    FORMAT_CHECKS,
    GUIDANCE_CHECKS,
    ITINERARY_CHECKS,
    LAUNCHER_CHECKS,
    LOADER_CHECKS,
    METRIC_CHECKS,
    MODEL_CHECKS,
    OPERATOR_CHECKS,
    SCHEDULE_CHECKS,
    SUITE_CHECKS,
    TRACKER_CHECKS,
    TRANSITION_CHECKS,
    check_baseline,
    check_format,
    check_guidance,
    check_itinerary,
    check_launcher,
    check_loader,
    check_metric,
    check_model,
    check_operator,
    check_schedule,
    check_suite,
    check_tracker,
    check_transition,
)
from invdiff.testing.report import CheckFailed, Outcome, Report

__all__ = [
    "BASELINE_CHECKS",
    "FORMAT_CHECKS",
    "GUIDANCE_CHECKS",
    "ITINERARY_CHECKS",
    "LAUNCHER_CHECKS",
    "LOADER_CHECKS",
    "METRIC_CHECKS",
    "MODEL_CHECKS",
    "OPERATOR_CHECKS",
    "SCHEDULE_CHECKS",
    "SUITE_CHECKS",
    "TRACKER_CHECKS",
    "TRANSITION_CHECKS",
    "CheckFailed",
    "Outcome",
    "Report",
    "check_baseline",
    "check_format",
    "check_guidance",
    "check_itinerary",
    "check_launcher",
    "check_loader",
    "check_metric",
    "check_model",
    "check_operator",
    "check_schedule",
    "check_suite",
    "check_tracker",
    "check_transition",
]
