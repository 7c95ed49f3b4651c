"""The suite ``exact``: its cells, their scores and its tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from invdiff.benchmarks.exact.mixture import D
from invdiff.benchmarks.exact.problems import (
    Problem,
    gaussian_problem,
    mixture_problem,
    moments,
    sliced_wasserstein,
)
from invdiff.benchmarks.schema import Cell, Record, Result, Task
from invdiff.benchmarks.statistics import mean_and_interval
from invdiff.benchmarks.suite import Suite
from invdiff.benchmarks.tables import markdown
from invdiff.config import make_piece
from invdiff.noise import generator_of
from invdiff.sampling import Method, NonFiniteError, make_method
from invdiff.sampling.method import describe
from invdiff.solving import Restoration, solve
from invdiff.solving.plan import complete
from invdiff.solving.solve import check_solve

DIVERGED = 100.0
"""Scores beyond this count as diverged and stay out of the mean; the prior's are about 10."""


class Exact(Suite):
    """Every method, and the floor, on every problem and seed; each cell is a task of its own."""

    def tasks(self, config: Mapping[str, Any]) -> list[Task]:
        methods = {
            label: {"name": label} | (parameters or {})
            for label, parameters in config["methods"].items()
        }
        only = {label: parameters.pop("problem", None) for label, parameters in methods.items()}
        common = {"samples": config["samples"], "steps": config["steps"], "eta": config["eta"]}
        # With their defaults, so that another default is another cell.
        pieces = {
            label: describe(_method(parameters, config["eta"]))
            for label, parameters in methods.items()
        }
        found: list[Cell] = []
        for problem in _problems(config):
            found.append({"method": "floor"} | problem | {"samples": config["samples"]})
            for label, parameters in methods.items():
                if only[label] in (None, problem["problem"]):
                    own = {"parameters": parameters, "pieces": pieces[label]}
                    found.append({"method": label} | problem | own | common)
        return [[cell] for cell in found]

    def evaluate(self, task: Task, folder: Path, context: Mapping[str, Any]) -> list[Result]:
        return [score(cell) for cell in task]

    def report(self, config: Mapping[str, Any], records: Sequence[Record]) -> str:
        """Two tables: the mixture's distances, and the Gaussian's errors by operator."""
        methods = dict.fromkeys(r["cell"]["method"] for r in records)
        mixture, gaussian = (
            [r for r in records if r["cell"]["problem"] == kind] for kind in ("mixture", "gaussian")
        )
        parts = []
        if mixture:
            parts.append(
                "Sliced Wasserstein distance to the exact posterior, mean ± 1.96 sd/√n over "
                f"the seeds:\n\n{_distances(methods, mixture)}"
            )
        if gaussian:
            for part, what in (
                ("mean", "Error of the mean, in posterior standard deviations"),
                ("covariance", "Relative error of the covariance"),
            ):
                parts.append(
                    f"{what}, a Gaussian prior under linear operators:\n\n"
                    f"{_errors(methods, gaussian, part)}"
                )
        return "\n\n".join(parts)


def _problems(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    gaussian, mixture = config["gaussian"], config["mixture"]
    return [
        {
            "problem": "gaussian",
            "operator": {"name": name} | (parameters or {}),
            "shape": gaussian["shape"],
            "sigma": gaussian["sigma"],
            "seed": seed,
        }
        for name, parameters in gaussian["operators"].items()
        for seed in range(gaussian["seeds"])
    ] + [
        {"problem": "mixture", "d": d, "d_y": d_y, "seed": seed}
        for d in mixture["d"]
        for d_y in mixture["d_y"]
        for seed in range(mixture["seeds"])
    ]


def score(cell: Cell) -> Result:
    """The scores and the cost of a cell's samples."""
    n, cost = cell["samples"], dict[str, float]()
    if cell["problem"] == "gaussian":
        problem = gaussian_problem(
            cell["operator"], tuple(cell["shape"]), cell["sigma"], cell["seed"]
        )
    else:
        problem = mixture_problem(cell["d"], cell["d_y"], cell["seed"])
    if cell["method"] == "floor":
        x = problem.posterior.draw(n, generator_of("exact", "floor", cell["seed"]))
    else:
        try:
            result = _restored(problem, cell)
        except NonFiniteError as error:
            return {"diverged": str(error)}
        except _Refused as error:
            return {"refused": str(error)}
        x = result.samples.flatten(2)[:, 0]
        cost = {"nfe": result.nfe, "nbe": result.nbe, "seconds": round(result.seconds, 3)}
    if cell["problem"] == "gaussian":
        return moments(x, problem.posterior) | cost
    exact = problem.posterior.draw(n, generator_of("exact", "reference", cell["seed"]))
    return {"distance": sliced_wasserstein(x, exact)} | cost


class _Refused(ValueError):
    """A problem that a method cannot solve, by its own account."""


def _restored(problem: Problem, cell: Cell) -> Restoration:
    steps = cell["parameters"].get("steps", cell["steps"])
    method = _method(cell["parameters"], cell["eta"])
    given = (problem.measurement, problem.denoiser, method)
    try:
        check_solve(*given, steps=steps, dtype=D)
    except ValueError as error:
        raise _Refused(str(error)) from error
    return solve(*given, steps=steps, seed=cell["seed"], num_samples=cell["samples"], dtype=D)


def _method(given: dict[str, Any], eta: float) -> Method:
    """A method from its name and parameters; DDIM(eta) where it has no transition of its own."""
    parameters = {k: v for k, v in given.items() if k != "steps"}
    transition, itinerary = (
        make_piece(parameters.pop(kind, None), kind) for kind in ("transition", "itinerary")
    )
    made = make_method(parameters.pop("name"), **parameters)
    own = made.transition or make_piece({"name": "ddim", "eta": eta}, "transition")
    return complete(replace(made, transition=own), transition, itinerary).method


def _distances(methods: Iterable[str], records: Sequence[Record]) -> str:
    """The mixture's table: a column for each pair of dimensions."""
    columns = dict.fromkeys((r["cell"]["d"], r["cell"]["d_y"]) for r in records)
    rows = []
    for method in methods:
        own = [r for r in records if r["cell"]["method"] == method]
        row = {"(d, d_y)": method}
        for d, d_y in columns:
            these = [r for r in own if (r["cell"]["d"], r["cell"]["d_y"]) == (d, d_y)]
            row[f"({d}, {d_y})"] = _entry(these, "distance", interval=True)
        rows.append(row | _cost(own))
    return markdown(rows)


def _errors(methods: Iterable[str], records: Sequence[Record], part: str) -> str:
    """A table of the Gaussian: a column for each operator."""
    operators = dict.fromkeys(r["cell"]["operator"]["name"] for r in records)
    rows = []
    for method in methods:
        own = [r for r in records if r["cell"]["method"] == method]
        entries = {
            name: _entry([r for r in own if r["cell"]["operator"]["name"] == name], part)
            for name in operators
        }
        rows.append({"operator": method} | entries)
    return markdown(rows)


def _entry(records: Sequence[Record], score: str, interval: bool = False) -> str:
    """One figure of a table; what was refused has none."""
    found = [r["result"][score] for r in records if score in r.get("result", {})]
    if failed := sum("failure" in r for r in records):
        return f"{failed} failed"
    diverged = sum(
        "diverged" in r["result"] or r["result"].get(score, 0) > DIVERGED for r in records
    )
    note = f" ({diverged} of {len(records)} diverged)" if diverged else ""
    if not (kept := [value for value in found if value <= DIVERGED]):
        return note.strip(" ()") or "–"
    mean, half = mean_and_interval(kept)
    return (f"{mean:.2f} ± {half:.2f}" if interval else f"{mean:.2f}") + note


def _cost(records: Sequence[Record]) -> dict[str, str]:
    """Evaluations a sample, from the fewest to the most."""
    results = [r["result"] for r in records if "nfe" in r.get("result", {})]
    found = {}
    for kind in ("nfe", "nbe") if results else ():
        low, high = min(r[kind] for r in results), max(r[kind] for r in results)
        found[kind.upper()] = f"{low:g}" if low == high else f"{low:g} to {high:g}"
    return found
