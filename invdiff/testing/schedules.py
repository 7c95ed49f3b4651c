"""Checks of schedules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, is_dataclass

import torch
from torch import Tensor

from invdiff.problem import make_operator
from invdiff.sampling.method import describe
from invdiff.schedules import Schedule
from invdiff.solving import solve
from invdiff.testing.imports import importing
from invdiff.testing.operators import photos
from invdiff.testing.priors import prior
from invdiff.testing.report import expect, plain, within

EXACT = 1e-6


@dataclass(frozen=True)
class Case:
    """A schedule under test, and the module whose import is tried."""

    schedule: Schedule
    module: str

    @property
    def times(self) -> Tensor:
        """Times from the least noisy to the noisiest one that has signal."""
        low, high = self.schedule.t_min, self.schedule.t_max
        times = torch.linspace(low, high, 41, dtype=torch.float64)
        return times[self.schedule(times).alpha > 0]


def levels(case: Case) -> str:
    """alpha and sigma are float64 on the CPU, not negative, finite and not both zero."""
    for times in (case.times, case.times[3]):
        level = case.schedule(times)
        for name, value in (("alpha", level.alpha), ("sigma", level.sigma)):
            expect(value.dtype == torch.float64, f"{name} is {value.dtype}, not float64")
            expect(
                value.shape == times.shape,
                f"{name} has shape {tuple(value.shape)} for times of shape {tuple(times.shape)}",
            )
            expect(
                bool(((value >= 0) & value.isfinite()).all()), f"{name} is negative or not finite"
            )
    return f"{len(case.times)} times"


def monotone(case: Case) -> str:
    """sigma / alpha grows from t_min to t_max."""
    ratio = case.schedule(case.times).ratio
    expect(bool((ratio[1:] > ratio[:-1]).all()), "sigma / alpha does not grow from t_min to t_max")
    return f"sigma/alpha from {float(ratio[0]):.3g} to {float(ratio[-1]):.3g}"


def inverse(case: Case) -> str:
    """``time`` is the inverse of sigma / alpha."""
    ratio = case.schedule(case.times).ratio
    back = case.schedule(case.schedule.time(ratio)).ratio
    return within("sigma/alpha there and back", float(((back - ratio) / ratio).abs().max()), EXACT)


def clean(case: Case) -> str:
    """The clean time has alpha = 1 and sigma = 0."""
    level = case.schedule(case.schedule.clean)
    alpha, sigma = float(level.alpha), float(level.sigma)
    expect(
        (alpha, sigma) == (1.0, 0.0),
        f"at clean = {case.schedule.clean} alpha is {alpha}, sigma {sigma}",
    )
    return f"at t = {case.schedule.clean:g}"


def runs(case: Case) -> str:
    """A short run of any network on it is finite."""
    photo = photos(2, 3, 16, 20)
    measurement = make_operator("denoise").measure(photo, sigma=0.1)
    start = None if case.schedule.from_noise else photo
    x = solve(
        measurement, prior(3), "none", schedule=case.schedule, steps=8, label=1, start=start
    ).x
    expect(bool(x.isfinite().all()), "the result is not finite")
    return "8 steps"


def described(case: Case) -> str:
    """Its record is plain data that is the same in every process."""
    named = is_dataclass(case.schedule)
    return plain(describe(case.schedule) if named else type(case.schedule).__name__)


def imports(case: Case) -> str:
    """Importing its module does nothing else."""
    return importing(case.module)


CHECKS: dict[str, Callable[[Case], str]] = {
    f.__name__: f for f in (levels, monotone, inverse, clean, runs, described, imports)
}
