"""Checks of itineraries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch

from invdiff import schedules
from invdiff.problem import make_operator
from invdiff.sampling import Itinerary, Method
from invdiff.sampling.method import describe
from invdiff.schedules import Level, Schedule
from invdiff.solving import solve
from invdiff.testing.imports import importing
from invdiff.testing.operators import photos
from invdiff.testing.priors import prior
from invdiff.testing.report import expect, plain

STEPS = (1, 2, 20)


@dataclass(frozen=True)
class Case:
    """An itinerary under test, and the module whose import is tried."""

    itinerary: Itinerary
    module: str

    def levels(self, schedule: Schedule, steps: int = 10) -> list[Level]:
        """The levels that it visits."""
        return self.itinerary(schedule, steps)


SCHEDULES: tuple[Callable[[], Schedule], ...] = (schedules.linear, schedules.edm, schedules.flow)


def levels(case: Case) -> str:
    """Levels are 0-d float64 tensors on the CPU that lie on the schedule; the last one is clean,
    and no level follows itself."""
    for make in SCHEDULES:
        schedule = make()
        visited = case.levels(schedule)
        expect(len(visited) > 1, f"it visits {len(visited)} levels of {make.__name__}()")
        for level in visited:
            for name, value in zip(level._fields, level, strict=True):
                expect(
                    isinstance(value, torch.Tensor)
                    and (value.shape, value.dtype) == ((), torch.float64)
                    and value.device.type == "cpu",
                    f"{name} of a level must be a 0-d float64 tensor on the CPU, got {value!r}",
                )
            own = schedule(level.t)
            expect(
                bool(
                    torch.allclose(own.alpha, level.alpha) & torch.allclose(own.sigma, level.sigma)
                ),
                f"the level at t = {float(level.t):g} does not lie on {make.__name__}()",
            )
        expect(float(visited[-1].sigma) == 0, "its last level is not clean: end at schedule.clean")
        expect(
            all(float(a.ratio) != float(b.ratio) for a, b in pairwise(visited)),
            "a level follows itself",
        )
    return f"on {', '.join(make.__name__ for make in SCHEDULES)}"


def repeatable(case: Case) -> str:
    """The same levels every time: they are a function of the schedule and the number of steps."""
    for make in SCHEDULES:
        first, again = (case.levels(make()) for _ in range(2))
        expect(
            [*map(tuple, first)] == [*map(tuple, again)], "it visits other levels the second time"
        )
    return "the same levels twice"


def steps(case: Case) -> str:
    """It works with 1, 2 and many steps, or says before sampling which it takes."""
    ran = []
    for n in STEPS:
        try:
            case.levels(schedules.linear(), n)
        except ValueError:
            continue
        ran.append(n)
    expect(STEPS[-1] in ran, f"it refuses {STEPS[-1]} steps")
    return f"{', '.join(map(str, ran))} steps"


def runs(case: Case) -> str:
    """A short run along it is finite."""
    measurement = make_operator("denoise").measure(photos(2, 3, 16, 20), sigma=0.1)
    x = solve(measurement, prior(3), Method(itinerary=case.itinerary), steps=12, label=1).x
    expect(bool(x.isfinite().all()), "the result is not finite")
    return "12 steps"


def described(case: Case) -> str:
    """Its record is plain data that is the same in every process."""
    return plain(describe(case.itinerary))


def imports(case: Case) -> str:
    """Importing its module does nothing else."""
    return importing(case.module)


CHECKS: dict[str, Callable[[Case], str]] = {
    f.__name__: f for f in (levels, repeatable, steps, runs, described, imports)
}
