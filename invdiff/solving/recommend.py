"""Which method to take for an operator, a network and a budget, by what was measured.

``configs/recommended.json`` holds rows of the suite ``frontier``: method, values, steps, cost and
LPIPS on an operator with a network. Where this operator and network were measured the best row
within the budget is taken; elsewhere the methods are tried in the order of their mean rank in all
that was measured, and the first that accepts the operator and the network is taken with its general
values. No method is named here.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

import torch

from invdiff.network import Denoiser
from invdiff.plugins.registry import list_plugins, name_of
from invdiff.problem import Measurement, Operator
from invdiff.sampling import Method, make_method
from invdiff.solving.options import RunOptions
from invdiff.solving.run import Run

BUDGETS = {"fast": 20, "good": 100, "best": 1000}
"""Evaluations, forward and backward together, that a word stands for."""
SLACK = 1.25
"""A budget is about so many evaluations."""
SIGMA = 0.025
"""Noise that is assumed of an operator without a measurement."""


@dataclass(frozen=True)
class Measured:
    """One row of what was measured.

    Attributes:
        operator, model: registered names.
        images: of which the figures are means.
        method: a registered name; None for the measurement's own linear estimate.
        values: of its parameters, where they are not the general ones.
        evaluations: forward and backward together, per image.
    """

    operator: str
    model: str
    images: int
    method: str | None
    values: dict[str, Any]
    steps: int
    num_samples: int
    evaluations: float
    lpips: float
    psnr: float


@dataclass(frozen=True)
class Recommendation:
    """A method that was chosen.

    Attributes:
        name: its registered name.
        steps, num_samples: of the run.
        values: of its parameters, where they are not the general ones.
        evaluations: forward and backward together, per image, as measured.
        why: one sentence.
    """

    name: str
    steps: int
    num_samples: int
    evaluations: float
    why: str
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def method(self) -> Method:
        """The method, for :func:`invdiff.solve`."""
        return make_method(self.name, **self.values)


@cache
def measured() -> tuple[Measured, ...]:
    """The measured rows that ship with the package."""
    text = files("invdiff.configs").joinpath("recommended.json").read_text()
    return tuple(Measured(**row) for row in json.loads(text))


def evaluations_of(budget: str | float) -> float:
    """The evaluations that a budget stands for.

    Raises:
        ValueError: a word that is none, or a number below 1.
    """
    try:
        number = float(BUDGETS.get(str(budget), budget))
    except (ValueError, TypeError):
        number = 0.0
    if not 1 <= number < float("inf"):
        raise ValueError(
            f"budget must be {', '.join(BUDGETS)} or a number of evaluations, got {budget!r}"
        )
    return number


def recommend(
    measurement: Measurement | Operator, denoiser: Denoiser, budget: str | float = "good"
) -> Recommendation:
    """The method to take.

    Args:
        measurement: what is to be restored; of an operator alone, an image of the network's size.
        denoiser: the network.
        budget: ``"fast"`` (about 20 evaluations per image), ``"good"`` (100), ``"best"`` (1000), or
            a number of them.

    Raises:
        ValueError: no method that was measured accepts the operator with this network.

    Examples:
        >>> import invdiff
        >>> choice = invdiff.recommend(invdiff.make_operator("sr"), invdiff.load_model("photo64"))
        >>> choice.evaluations <= 125
        True
    """
    limit = evaluations_of(budget)
    if isinstance(measurement, Operator):
        measurement = _probe(measurement, denoiser)
    try:
        operator = name_of("operators", measurement.operator)
    except ValueError:  # one that is not registered
        operator = type(measurement.operator).__name__
    found = recorded(operator, denoiser.name, limit)
    if found is not None and _fits(found, measurement, denoiser):
        return found
    about = (
        f"nothing was measured for {operator} with {denoiser.name}"
        if found is None
        else f"{found.name}, the best for {operator} with {denoiser.name}, does not take this one"
    )
    dearer = sorted(ranked(float("inf")), key=lambda row: row.evaluations)
    for row in [*ranked(limit), *dearer]:
        more = "" if row.evaluations <= SLACK * limit else "; none that costs less fits"
        choice = Recommendation(
            row.method or "none",
            row.steps,
            row.num_samples,
            row.evaluations,
            f"ranks highest of those that fit, where methods were measured ({_where()}); "
            f"{about}{more}",
        )
        if _fits(choice, measurement, denoiser):
            return choice
    raise ValueError(
        f"no method that was measured takes {operator} with {denoiser.name}; choose one with "
        f"--method: {', '.join(list_plugins('guidance'))}"
    )


def recorded(operator: str, model: str, limit: float) -> Recommendation | None:
    """The best row for an operator and a network within a budget; None where nothing was
    measured."""
    own = [row for row in measured() if (row.operator, row.model) == (operator, model)]
    rows = _affordable([row for row in own if row.method in list_plugins("guidance")], limit)
    if not rows:
        return None
    best = min(rows, key=lambda row: (row.lpips, row.evaluations))
    methods = len({row.method for row in rows})
    many = f"{methods} method{'' if methods == 1 else 's'}"
    within = (
        f"within about {limit:g} evaluations"
        if best.evaluations <= SLACK * limit
        else f"where none takes {limit:g} evaluations or fewer"
    )
    return Recommendation(
        best.method or "none",
        best.steps,
        best.num_samples,
        best.evaluations,
        f"best LPIPS ({best.lpips:.3f}) of {many} measured for {operator} with {model} {within}",
        best.values,
    )


def ranked(limit: float) -> list[Measured]:
    """One row of each method that a budget affords, by its mean rank over all operators and
    networks; a method that was not measured on one has the last rank there."""
    groups: dict[tuple[str, str], list[Measured]] = {}
    for row in measured():
        if row.method in list_plugins("guidance"):
            groups.setdefault((row.operator, row.model), []).append(row)
    best: dict[str, list[tuple[float, Measured]]] = {}
    for rows in groups.values():
        order = sorted(_affordable(rows, limit), key=lambda row: row.lpips)
        for rank, row in enumerate(order):
            assert row.method is not None
            of_method = best.setdefault(row.method, [])
            if all(other is not row and other.operator != row.operator for _, other in of_method):
                of_method.append((rank / len(order), row))
    means = {
        method: (sum(rank for rank, _ in ranks) + len(groups) - len(ranks)) / len(groups)
        for method, ranks in best.items()
    }
    return [
        min(best[method], key=lambda r: r[0])[1] for method in sorted(means, key=means.__getitem__)
    ]


def linear_is_better(operator: str, model: str, method: str) -> str | None:
    """A sentence where every row of a method that was measured has a worse LPIPS than the
    measurement's own linear estimate."""
    own = [row for row in measured() if (row.operator, row.model) == (operator, model)]
    linear = [row.lpips for row in own if row.method is None]
    rows = [row.lpips for row in own if row.method == method]
    better = recorded(operator, model, BUDGETS["good"])
    if not linear or not rows or min(rows) <= min(linear) or better is None:
        return None
    return (
        f"{method} was measured to be worse than the linear estimate of {operator} alone (LPIPS "
        f"{min(rows):.3f} against {min(linear):.3f}); {better.name} is better"
    )


def _affordable(rows: Sequence[Measured], limit: float) -> list[Measured]:
    """The rows within a budget, or the cheapest."""
    within = [row for row in rows if row.evaluations <= SLACK * limit]
    return within or sorted(rows, key=lambda row: row.evaluations)[:1]


def _where() -> str:
    found: dict[str, dict[str, None]] = {}
    for row in measured():
        found.setdefault(row.model, {})[row.operator] = None
    return "; ".join(f"{model} on {', '.join(operators)}" for model, operators in found.items())


def _fits(choice: Recommendation, measurement: Measurement, denoiser: Denoiser) -> bool:
    """Whether a run is not refused before it samples."""
    shape = (len(measurement), *measurement.image_shape)
    options = RunOptions(steps=choice.steps)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said again by the run itself
            Run.prepare(denoiser, choice.method, shape, options, measurement=measurement)
    except (ValueError, TypeError):
        return False
    return True


def _probe(operator: Operator, denoiser: Denoiser) -> Measurement:
    """A measurement of an empty image."""
    size = denoiser.image_size or 64
    shape = operator.shape or operator.fit((denoiser.channels or 3, size, size))
    bound = operator.bind(shape)
    return Measurement(torch.zeros(1, *bound.measurement_shape), bound, SIGMA)
