"""The suite ``exact``: its cells, their scores and its tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from invdiff.benchmarks.exact.mixture import D
from invdiff.benchmarks.exact.problems import (
    gaussian_problem,
    mixture_problem,
    moments,
    sliced_wasserstein,
)
from invdiff.benchmarks.harness import Cell, Record, Result, Task, mean_and_interval
from invdiff.benchmarks.tables import markdown
from invdiff.config.compose import make_piece
from invdiff.noise import generator_of
from invdiff.sampling import Method, NonFiniteError, make_method
from invdiff.sampling.method import describe
from invdiff.solving import solve
from invdiff.solving.plan import complete
from invdiff.solving.solve import check_solve

DIVERGED = 100.0
"""Scores beyond this are told as such: the prior's are about 10, and a mean with them in it would
say nothing."""


def tasks(config: dict[str, Any]) -> list[Task]:
    """Every method, the floor first, on every problem and seed; each cell is a task of its own."""
    problems = [
        {
            "problem": "gaussian",
            "operator": {"name": name} | (parameters or {}),
            "shape": config["gaussian"]["shape"],
        }
        | {"sigma": config["gaussian"]["sigma"], "seed": seed}
        for name, parameters in config["gaussian"]["operators"].items()
        for seed in range(config["gaussian"]["seeds"])
    ]
    problems += [
        {"problem": "mixture", "d": d, "d_y": d_y, "seed": seed}
        for d in config["mixture"]["d"]
        for d_y in config["mixture"]["d_y"]
        for seed in range(config["mixture"]["seeds"])
    ]
    methods = {
        label: {"name": label} | (parameters or {})
        for label, parameters in config["methods"].items()
    }
    only = {label: parameters.pop("problem", None) for label, parameters in methods.items()}
    common = {"samples": config["samples"], "steps": config["steps"], "eta": config["eta"]}
    # With their defaults, so that another default is another cell.
    pieces = {
        label: describe(_method(parameters, config["eta"])) for label, parameters in methods.items()
    }
    found: list[Cell] = []
    for problem in problems:
        found.append({"method": "floor"} | problem | {"samples": config["samples"]})
        for label, parameters in methods.items():
            if only[label] in (None, problem["problem"]):
                found.append(
                    {"method": label}
                    | problem
                    | {"parameters": parameters, "pieces": pieces[label]}
                    | common
                )
    return [[cell] for cell in found]


def context(config: dict[str, Any]) -> dict[str, Any]:
    """Nothing: the cells say it all."""
    return {}


def context_of(
    cell: Cell, source: str | None, network: str | None, allow_pickle: bool
) -> dict[str, Any]:
    """Nothing, likewise."""
    return {}


def evaluate(task: Task, folder: Path) -> list[Result]:
    """Samples one posterior and scores it."""
    (cell,) = task
    return [score(cell)]


def score(cell: Cell) -> Result:
    """What a cell's samples are worth and cost."""
    n = cell["samples"]
    if cell["problem"] == "gaussian":
        problem = gaussian_problem(
            cell["operator"], tuple(cell["shape"]), cell["sigma"], cell["seed"]
        )
    else:
        problem = mixture_problem(cell["d"], cell["d_y"], cell["seed"])
    cost: dict[str, float] = {}
    if cell["method"] == "floor":
        x = problem.posterior.draw(n, generator_of("exact", "floor", cell["seed"]))
    else:
        steps, method = (
            cell["parameters"].get("steps", cell["steps"]),
            _method(cell["parameters"], cell["eta"]),
        )
        try:
            check_solve(problem.measurement, problem.denoiser, method, steps=steps, dtype=D)
        except ValueError as error:
            return {"refused": str(error)}
        try:
            result = solve(
                problem.measurement,
                problem.denoiser,
                method,
                steps=steps,
                seed=cell["seed"],
                num_samples=n,
                dtype=D,
            )
        except NonFiniteError as error:
            return {"diverged": str(error)}
        x = result.samples.flatten(2)[:, 0]
        cost = {"nfe": result.nfe, "nbe": result.nbe, "seconds": round(result.seconds, 3)}
    if cell["problem"] == "gaussian":
        return moments(x, problem.posterior) | cost
    exact = problem.posterior.draw(n, generator_of("exact", "reference", cell["seed"]))
    return {"distance": sliced_wasserstein(x, exact)} | cost


def _method(given: dict[str, Any], eta: float) -> Method:
    """A method from its name and parameters; DDIM(eta) where it has no transition of its own."""
    parameters = {k: v for k, v in given.items() if k != "steps"}
    transition, itinerary = (
        make_piece(parameters.pop(kind, None), kind) for kind in ("transition", "itinerary")
    )
    made = make_method(parameters.pop("name"), **parameters)
    own = made.transition or make_piece({"name": "ddim", "eta": eta}, "transition")
    return complete(replace(made, transition=own), transition, itinerary).method


def report(config: dict[str, Any], records: Sequence[Record]) -> str:
    """Two tables: the mixture's distances, and the Gaussian's errors by operator."""
    methods = list(dict.fromkeys(r["cell"]["method"] for r in records))
    mixture, gaussian = (
        [r for r in records if r["cell"]["problem"] == kind] for kind in ("mixture", "gaussian")
    )
    parts = []
    if mixture:
        columns = {(r["cell"]["d"], r["cell"]["d_y"]): None for r in mixture}
        rows = []
        for method in methods:
            own = [r for r in mixture if r["cell"]["method"] == method]
            row = {"(d, d_y)": method}
            for d, d_y in columns:
                row[f"({d}, {d_y})"] = _entry(
                    [r for r in own if (r["cell"]["d"], r["cell"]["d_y"]) == (d, d_y)],
                    "distance",
                    True,
                )
            rows.append(row | _cost(own))
        parts.append(
            "Sliced Wasserstein distance to the exact posterior, mean ± 1.96 sd/√n over "
            f"the seeds:\n\n{markdown(rows)}"
        )
    if gaussian:
        operators = dict.fromkeys(r["cell"]["operator"]["name"] for r in gaussian)
        for score, what in (
            ("mean", "Error of the mean, in posterior standard deviations"),
            ("covariance", "Relative error of the covariance"),
        ):
            rows = []
            for method in methods:
                own = [r for r in gaussian if r["cell"]["method"] == method]
                row = {"operator": method}
                row |= {
                    name: _entry([r for r in own if r["cell"]["operator"]["name"] == name], score)
                    for name in operators
                }
                rows.append(row)
            parts.append(f"{what}, a Gaussian prior under linear operators:\n\n{markdown(rows)}")
    return "\n\n".join(parts)


def _entry(records: Sequence[Record], score: str, interval: bool = False) -> str:
    """One figure of a table; what was refused has none, and failures are told."""
    found = [r["result"][score] for r in records if score in r.get("result", {})]
    if failed := sum("failure" in r for r in records):
        return f"{failed} failed"
    diverged = sum(
        "diverged" in r["result"] or r["result"].get(score, 0) > DIVERGED for r in records
    )
    told = f" ({diverged} of {len(records)} diverged)" if diverged else ""
    if not (kept := [value for value in found if value <= DIVERGED]):
        return told.strip(" ()") or "–"
    mean, half = mean_and_interval(kept)
    return (f"{mean:.2f} ± {half:.2f}" if interval else f"{mean:.2f}") + told


def _cost(records: Sequence[Record]) -> dict[str, str]:
    """Evaluations a sample, from the fewest to the most."""
    results = [r["result"] for r in records if "nfe" in r.get("result", {})]
    spans = (
        {
            k.upper(): (min(r[k] for r in results), max(r[k] for r in results))
            for k in ("nfe", "nbe")
        }
        if results
        else {}
    )
    return {
        k: f"{low:g}" if low == high else f"{low:g} to {high:g}" for k, (low, high) in spans.items()
    }
