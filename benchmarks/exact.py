"""How right methods are: samples against posteriors that are known exactly (``invdiff bench --suite
exact``).

Every prior is a mixture of Gaussians that share one covariance, so the posterior mean at each noise
level (which is what the network says), the posterior under ``y = A x + n`` and draws of it are
exact.

gaussian  one Gaussian of correlated small images, under every linear operator: error of the
          posterior's mean, in posterior standard deviations (root mean square), and of its
          covariance, relative (Frobenius).
mixture   the 25 components of Cardoso et al. (ICLR 2024, arXiv:2308.07983, section 5.1): means
          (−8i, −8j) repeated d/2 times, i and j in −2..2, identity covariance, weights prop. to
          N(0, 1)²; A = U diag(s) Vᵀ from the SVD of randn(d_y, d) with s sorted U(0, 1), sigma =
          U(0, 1) max s, y from a draw of the prior; betas falling from 0.02 to 1e-4. First-order
          sliced Wasserstein distance to exact draws, over 1000 directions.

Beside every method stand the floor (as many exact draws against others) and the prior (the method
``none``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invdiff.benchmarks.harness import Cell, Record, Result, Suite, Task, mean_and_interval
from invdiff.benchmarks.tables import markdown
from invdiff.config.compose import make_piece
from invdiff.network import Denoiser
from invdiff.noise import generator_of
from invdiff.operators.matrix import Matrix
from invdiff.problem import Measurement, make_operator
from invdiff.sampling import Method, NonFiniteError, make_method
from invdiff.sampling.method import describe
from invdiff.schedules import Discrete, Schedule, from_betas, linear
from invdiff.solving import solve
from invdiff.solving.plan import complete
from invdiff.solving.solve import check_solve

D = torch.float64
DIVERGED = 100.0
"""Scores beyond this are told as such: the prior's are about 10, and a mean with them in it would
say nothing."""


@dataclass(frozen=True)
class Mixture:
    """sum_k w_k N(m_k, C), float64.

    Args:
        weights: (K,), summing to one.
        means: (K, d).
        values, basis: C = basis diag(values) basisᵀ with values (d,); basis None is the identity.
    """

    weights: Tensor
    means: Tensor
    values: Tensor
    basis: Tensor | None = None

    @classmethod
    def of(cls, weights: Tensor, means: Tensor, covariance: Tensor) -> Mixture:
        """From a dense covariance (d, d)."""
        values, basis = torch.linalg.eigh((covariance + covariance.mT) / 2)
        return cls(weights, means, values.clamp(min=0), basis)

    @property
    def covariance(self) -> Tensor:
        """C, of each component, (d, d)."""
        return (
            torch.diag(self.values)
            if self.basis is None
            else (self.basis * self.values) @ self.basis.mT
        )

    def posterior_mean(self, x_t: Tensor, alpha: float, sigma: float) -> Tensor:
        """E[x0 | alpha x0 + sigma eps = x_t], for x_t (B, ...)."""
        means, values = self._in_basis(self.means).to(x_t), self.values.to(x_t)
        z = self._in_basis(x_t.flatten(1))
        noisy = alpha**2 * values + sigma**2
        # |z − alpha m|² without z², which the softmax does not see.
        share = (
            self.weights.log().to(x_t)
            + alpha * z @ (means / noisy).mT
            - alpha**2 / 2 * (means**2 / noisy).sum(1)
        ).softmax(1)
        mean = share @ means
        mean = mean + alpha * values / noisy * (z - alpha * mean)
        return (mean if self.basis is None else mean @ self.basis.to(mean).mT).view_as(x_t)

    def posterior(self, A: Tensor, y: Tensor, sigma: float) -> Mixture:
        """Under one y = A x + sigma n, A (m, d): again such a mixture."""
        C = self.covariance
        S = A @ C @ A.mT + sigma**2 * torch.eye(len(A), dtype=D)
        gain = torch.linalg.solve(S, A @ C).mT
        r = y - self.means @ A.mT
        log_w = self.weights.log() - 0.5 * (r * torch.linalg.solve(S, r.mT).mT).sum(1)
        return Mixture.of(log_w.softmax(0), self.means + r @ gain.mT, C - gain @ A @ C)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """n exact samples, (n, d)."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = self.values.sqrt() * torch.randn(n, len(self.values), dtype=D, generator=generator)
        return self.means[k] + (z if self.basis is None else z @ self.basis.mT)

    def denoiser(self, schedule: Schedule, name: str) -> Denoiser:
        """The network that is exact for this prior, as one trained on ``schedule`` would be."""
        at = cache(schedule.__call__)

        def net(x: Tensor, t: Tensor) -> Tensor:
            level = at(float(t[0]))
            return self.posterior_mean(x, float(level.alpha), float(level.sigma))

        return Denoiser(net, predicts="x0", schedule=schedule, dtype=D, name=name)

    def _in_basis(self, x: Tensor) -> Tensor:
        return x if self.basis is None else x @ self.basis.to(x)


@dataclass(frozen=True)
class Problem:
    """A prior, a measurement of one of its draws, and the exact posterior."""

    denoiser: Denoiser
    measurement: Measurement
    posterior: Mixture


@cache
def gaussian_prior(shape: tuple[int, ...]) -> Mixture:
    """Small colour images in [-1, 1]: smooth over 2 pixels, correlated channels, standard deviation
    0.5 around grey."""
    channels, *size = shape
    grid = torch.cartesian_prod(*(torch.arange(n, dtype=D) for n in size))
    space = torch.exp(-(torch.cdist(grid, grid) ** 2) / (2 * 2.0**2)) + 0.02 * torch.eye(
        len(grid), dtype=D
    )
    colour = 0.8 * torch.ones(channels, channels, dtype=D) + 0.2 * torch.eye(channels, dtype=D)
    covariance = 0.25 * torch.kron(colour, space / space[0, 0])
    return Mixture.of(torch.ones(1, dtype=D), torch.zeros(1, len(covariance), dtype=D), covariance)


def gaussian_problem(
    operator: dict[str, Any], shape: tuple[int, ...], sigma: float, seed: int
) -> Problem:
    """A Gaussian image under a linear operator by name."""
    prior = gaussian_prior(shape)
    x = prior.draw(1, generator_of("exact", "gaussian", seed)).view(1, *shape)
    made = make_operator(operator["name"], **{k: v for k, v in operator.items() if k != "name"})
    measurement = made.measure(x, sigma=sigma, seed=seed)
    units = torch.eye(x.numel(), dtype=D).view(-1, *shape)
    A = measurement.operator(units).flatten(1).mT
    seen = A.abs().amax(1) > 0  # rows that measure nothing, as at missing pixels, say nothing
    return Problem(
        prior.denoiser(linear(1000), "gaussian"),
        measurement,
        prior.posterior(A[seen], measurement.y.flatten()[seen], sigma),
    )


def falling_betas() -> Discrete:
    """alpha_bar = cumprod(1 − linspace(0.02, 1e-4, 999)) and the clean level before it (Cardoso et
    al.)."""
    return from_betas(torch.linspace(0.02, 1e-4, 999, dtype=D))


def mixture_problem(d: int, d_y: int, seed: int) -> Problem:
    """One draw of Cardoso et al.'s problem."""
    generator = generator_of("exact", "mixture", d, d_y, seed)
    centres = torch.cartesian_prod(*(torch.arange(-2.0, 3.0, dtype=D),) * 2)
    weights = torch.randn(len(centres), dtype=D, generator=generator) ** 2
    prior = Mixture(
        weights / weights.sum(), (-8 * centres).repeat(1, d // 2), torch.ones(d, dtype=D)
    )
    u, _, vt = torch.linalg.svd(
        torch.randn(d_y, d, dtype=D, generator=generator), full_matrices=False
    )
    s = torch.rand(d_y, dtype=D, generator=generator).sort(descending=True).values
    A = (u * s) @ vt
    sigma = float(torch.rand((), dtype=D, generator=generator) * s.max())
    x = prior.draw(1, generator)
    y = x @ A.mT + sigma * torch.randn(1, d_y, dtype=D, generator=generator)
    measurement = Measurement(y, Matrix(A).bind((d,)), sigma)
    return Problem(
        prior.denoiser(falling_betas(), "mixture"), measurement, prior.posterior(A, y[0], sigma)
    )


def sliced_wasserstein(a: Tensor, b: Tensor, directions: int = 1000) -> float:
    """First-order Wasserstein distance between two samples (n, d), averaged over fixed
    directions."""
    along = torch.randn(a.shape[1], directions, dtype=a.dtype, generator=generator_of("directions"))
    along = along / along.norm(dim=0)
    return float(((a @ along).sort(0).values - (b @ along).sort(0).values).abs().mean())


def moments(x: Tensor, posterior: Mixture) -> dict[str, float]:
    """Errors of a sample's mean and covariance against a single Gaussian."""
    C = posterior.covariance
    mean = (x.mean(0) - posterior.means[0]).norm() / C.trace().sqrt()
    return {"mean": float(mean), "covariance": float((torch.cov(x.mT) - C).norm() / C.norm())}


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


class Exact(Suite):
    """Samples against posteriors that are known exactly."""

    def tasks(self, config: Mapping[str, Any]) -> list[Task]:
        """Every method, the floor first, on every problem and seed; each cell is a task of its
        own."""
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
            label: describe(_method(parameters, config["eta"]))
            for label, parameters in methods.items()
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

    def context(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Nothing: the cells say it all."""
        return {}

    def context_of(
        self, cell: Cell, source: str | None, network: str | None, allow_pickle: bool
    ) -> dict[str, Any]:
        """Nothing, likewise."""
        return {}

    def evaluate(self, task: Task, folder: Path, context: Mapping[str, Any]) -> list[Result]:
        """Samples one posterior and scores it."""
        (cell,) = task
        return [score(cell)]

    def report(self, config: Mapping[str, Any], records: Sequence[Record]) -> str:
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
                        name: _entry(
                            [r for r in own if r["cell"]["operator"]["name"] == name], score
                        )
                        for name in operators
                    }
                    rows.append(row)
                parts.append(
                    f"{what}, a Gaussian prior under linear operators:\n\n{markdown(rows)}"
                )
        return "\n\n".join(parts)
