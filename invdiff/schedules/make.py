"""Schedules by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from invdiff.plugins.registry import call, load
from invdiff.schedules.base import Schedule


def make_schedule(schedule: Schedule | str | Mapping[str, Any]) -> Schedule:
    """A schedule from its name, or its name and parameters: ``"linear"``, ``{"name": "flow",
    "shift": 3.0}``; a schedule is passed through.

    Raises:
        ValueError: an unknown name or parameter; says which there are.
    """
    if isinstance(schedule, Schedule):
        return schedule
    if not isinstance(schedule, str | Mapping):
        raise TypeError(
            "schedule must be one of invdiff.schedules, e.g. schedules.linear(1000), or "
            f"the name of one, got {type(schedule).__name__}"
        )
    parameters = {"name": schedule} if isinstance(schedule, str) else dict(schedule)
    name = parameters.pop("name", None)
    if not isinstance(name, str):
        raise ValueError(
            f"a schedule is named by a text, got {name!r}; write {{'name': NAME, ...}} if "
            "it has parameters"
        )
    return call(load("schedules", name), f"schedule {name!r}", parameters)
