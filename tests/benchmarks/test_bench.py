"""``invdiff bench``: the exact suite against other implementations, and the harness that runs the
cells of every suite."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import Mixture as Oracle
from oracles import correlated, rand
from scipy.stats import wasserstein_distance

import invdiff
from invdiff.benchmarks import exact, harness, statistics
from invdiff.benchmarks.exact import problems, suite
from invdiff.benchmarks.launchers.local import Local
from invdiff.commands.main import main
from invdiff.config import compose_suite
from invdiff.itineraries import LateStart
from invdiff.noise import generator_of
from invdiff.problem import LinearOperator, make_operator
from invdiff.solving.plan import complete

D = torch.float64
EXACT = exact.Exact("exact")


# Priors and posteriors ----------------------------------------------------------------------------


def mixture() -> tuple[exact.Mixture, Oracle]:
    """Three components with one full covariance, in both implementations."""
    C = correlated(5).covariance
    weights, means = torch.tensor([0.2, 0.5, 0.3], dtype=D), 2 * rand(3, 5, seed=4)
    return exact.Mixture.of(weights, means, C), Oracle(weights, means, C.expand(3, 5, 5))


@pytest.mark.parametrize("alpha, sigma", [(1.0, 0.3), (0.6, 0.8), (1.0, 30.0), (0.0, 1.0)])
def test_the_posterior_mean_is_the_oracles(alpha: float, sigma: float) -> None:
    ours, oracle = mixture()
    x_t = 3 * rand(7, 5, seed=8)
    torch.testing.assert_close(
        ours.posterior_mean(x_t, alpha, sigma), oracle.posterior_mean(x_t, alpha, sigma)
    )


def test_the_posterior_is_the_oracles_and_draws_have_its_moments() -> None:
    ours, oracle = mixture()
    A, y = rand(2, 5, seed=1), rand(2, seed=2)
    posterior, expected = ours.posterior(A, y, 0.4), oracle.posterior(A, y, 0.4)
    torch.testing.assert_close(posterior.weights, expected.weights)
    torch.testing.assert_close(posterior.means, expected.means)
    torch.testing.assert_close(posterior.covariance, expected.covariances[0])
    x = posterior.draw(200_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(x.mean(0), expected.mean, atol=0.02, rtol=0)
    torch.testing.assert_close(torch.cov(x.mT), expected.covariance, atol=0.03, rtol=0)


def test_the_mixture_of_cardoso_et_al() -> None:
    problem = exact.mixture_problem(8, 2, seed=3)
    prior_means = problem.prior.means
    pairs = {tuple(m[:2].tolist()) for m in prior_means}
    assert pairs == {(-8.0 * i, -8.0 * j) for i in range(-2, 3) for j in range(-2, 3)}
    assert all(torch.equal(m, m[:2].repeat(4)) for m in prior_means)
    s = problem.measurement.operator.bind((8,)).singular_values
    assert (
        bool((s[:2] > 0).all())
        and bool((s[:2] < 1).all())
        and s[0] >= s[1]
        and bool((s[2:] == 0).all())
    )
    assert 0 < problem.measurement.sigma < float(s.max())
    alpha_bar = torch.cumprod(1 - torch.linspace(0.02, 1e-4, 999, dtype=D), 0)
    level = problem.denoiser.schedule(torch.tensor(500))
    torch.testing.assert_close(level.alpha**2, alpha_bar[500])
    again = exact.mixture_problem(8, 2, seed=3)
    assert (
        again.measurement.hash
        == problem.measurement.hash
        != exact.mixture_problem(8, 2, seed=4).measurement.hash
    )


def test_the_gaussian_posterior_of_every_operator_is_that_of_its_matrix() -> None:
    """By information: C⁻¹ + AᵀA/sigma², with rows of zeros left in, which the module leaves out."""
    config = compose_suite("exact")["gaussian"]
    for name, parameters in config["operators"].items():
        problem = exact.gaussian_problem(
            {"name": name} | (parameters or {}), (3, 8, 8), 0.1, seed=0
        )
        A = problem.measurement.operator(torch.eye(192, dtype=D).view(-1, 3, 8, 8)).flatten(1).mT
        prior = torch.linalg.inv(problems.gaussian_prior((3, 8, 8)).covariance)
        C = torch.linalg.inv(prior + A.mT @ A / 0.1**2)
        torch.testing.assert_close(problem.posterior.covariance, C, atol=1e-8, rtol=1e-6)
        mean = C @ A.mT @ problem.measurement.y.flatten() / 0.1**2
        torch.testing.assert_close(problem.posterior.means[0], mean, atol=1e-7, rtol=1e-6)


def test_sliced_wasserstein_is_scipys_along_each_direction() -> None:
    a, b = rand(300, 4), 0.3 + 1.5 * rand(300, 4, seed=1)
    along = torch.randn(4, 20, dtype=D, generator=generator_of("directions"))
    along = along / along.norm(dim=0)
    expected = np.mean([wasserstein_distance(a @ u, b @ u) for u in along.mT])
    assert problems.sliced_wasserstein(a, b, directions=20) == pytest.approx(expected)


def test_the_suite_has_every_restoring_method_and_every_linear_operator() -> None:
    config = compose_suite("exact")
    methods = {(values or {}).get("name", label) for label, values in config["methods"].items()}
    for name in invdiff.list_plugins("guidance"):
        made = complete(name).method if name not in ("cfg", "classifier") else None
        pieces = [] if made is None else [*made.chain, made.transition]
        needed = [p.requires.__name__ for p in pieces if p.requires is not None]
        needed += ["start"] * (made is not None and isinstance(made.itinerary, LateStart))
        # `none` is the prior itself, beside which the others stand.
        restores = name == "none" or (bool(needed) and "Decoded" not in needed)
        conditional = made is None or any(g.sets for g in made.chain)
        jumps = name == "cm4ir"  # for networks that jump to an image, of which the suite has none
        assert (name in methods) == (restores and not conditional and not jumps), name
    for name in invdiff.list_plugins("operators"):
        try:
            linear = isinstance(make_operator(name), LinearOperator)
        except (TypeError, ValueError):  # it has no defaults, such as a composition
            linear = False
        assert (name in config["gaussian"]["operators"]) == linear, name


def test_cells_and_their_scores() -> None:
    small = [
        "mixture.d=[8]",
        "mixture.d_y=[1]",
        "mixture.seeds=1",
        "gaussian.seeds=1",
        "samples=200",
        "steps=20",
    ]
    config = compose_suite("exact", small)
    config["methods"] = {
        "none": None,
        "dps": {"name": "dps", "zeta": 0.5},
        "dps longer": {"name": "dps", "steps": 40},
    }
    config["gaussian"]["operators"] = {"colorize": None}
    records = [{"cell": cell, "result": suite.score(cell)} for (cell,) in EXACT.tasks(config)]
    assert len(records) == 2 * 4
    found = {(r["cell"]["method"], r["cell"]["problem"]): r["result"] for r in records}
    assert found["floor", "mixture"]["distance"] < 0.5 * found["none", "mixture"]["distance"]
    assert (
        found["dps", "gaussian"]["mean"] < 0.8 * found["none", "gaussian"]["mean"]
        and found["floor", "gaussian"]["mean"] < 0.15
    )
    assert (
        found["dps", "mixture"]["nfe"],
        found["dps longer", "mixture"]["nfe"],
        found["none", "mixture"]["nbe"],
    ) == (20, 40, 0)
    report = EXACT.report(config, records)
    assert "| dps longer |" in report and "(8, 1)" in report and "colorize" in report


# The harness --------------------------------------------------------------------------------------


def tiny(seeds: int = 2) -> list[harness.Task]:
    config = compose_suite(
        "exact",
        ["mixture.d=[8]", "mixture.d_y=[1]", f"mixture.seeds={seeds}", "samples=20", "steps=3"],
    )
    config["gaussian"]["operators"], config["methods"] = {}, {"none": None, "dps": None}
    return EXACT.tasks(config)


def run(tasks: list[harness.Task], folder: Path, workers: int = 1) -> list[dict[str, Any]]:
    return harness.run(EXACT, tasks, {}, folder, Local(workers), progress=False)


def without_time(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    untimed = [
        r | {"result": {k: v for k, v in r["result"].items() if k != "seconds"}} for r in records
    ]
    return [
        r | {"environment": {k: v for k, v in r["environment"].items() if k != "threads"}}
        for r in untimed
    ]


def test_finished_cells_are_not_run_again_and_workers_change_nothing(tmp_path: Path) -> None:
    tasks = tiny()
    first = run(tasks[:3], tmp_path / "a")
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "a").iterdir()}
    whole = run(tasks, tmp_path / "a", workers=2)
    assert whole[:3] == first and all(p.stat().st_mtime_ns == stamp for p, stamp in stamps.items())
    assert without_time(whole) == without_time(run(tasks, tmp_path / "b"))


def test_what_is_missing_of_a_task_is_computed_with_the_whole_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a batch has the same images before and after an interruption."""
    seen = []

    def evaluate(self: exact.Exact, task: harness.Task, *_: Any) -> list[harness.Result]:
        seen.append(len(task))
        return [suite.score(cell) for cell in task]

    monkeypatch.setattr(exact.Exact, "evaluate", evaluate)
    task = [cell for (cell,) in tiny(1)]
    records = run([task], tmp_path)
    lost, *kept = sorted(tmp_path.iterdir())
    content, stamps = lost.read_text(), [p.stat().st_mtime_ns for p in kept]
    lost.unlink()
    assert without_time(run([task], tmp_path)) == without_time(records) and seen == [3, 3]
    assert [p.stat().st_mtime_ns for p in kept] == stamps and json.loads(lost.read_text())[
        "cell"
    ] == json.loads(content)["cell"]


def test_a_failing_cell_is_told_and_tried_again(tmp_path: Path) -> None:
    tasks = tiny(1)
    broken = {**tasks[1][0], "parameters": {"name": "nothing_of_that_name"}}
    records = run([[broken], tasks[2]], tmp_path)
    assert "unknown method" in records[0]["failure"]["error"] and "result" in records[1]
    assert (
        harness.read(tmp_path, broken) is None and harness.read(tmp_path, tasks[2][0]) == records[1]
    )


def test_damaged_records_are_made_anew(tmp_path: Path) -> None:
    tasks = tiny(1)[:1]
    record = run(tasks, tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_text()
    for content in (whole[:40].encode(), b"\xff\xfe", b"[]", b"", b"[" * 100_000):
        file.write_bytes(content)
        with pytest.warns(UserWarning, match=f"{file.name} is damaged .*; its cell runs again"):
            assert without_time(run(tasks, tmp_path)) == without_time(record)


def test_the_interval() -> None:
    assert statistics.mean_and_interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 1.96 / 3**0.5))
    assert statistics.mean_and_interval([4.0]) == (4.0, 0.0)


def test_failures_name_no_folders_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = tmp_path / "private folder" / "x.png"

    def evaluate(*_: Any) -> None:
        absent.read_bytes()

    monkeypatch.setattr(exact.Exact, "evaluate", evaluate)
    (record,) = run(tiny(1)[:1], tmp_path)
    failure = record["failure"]
    assert "x.png" in failure["error"] and "test_bench.py" in failure["traceback"]
    for text in (str(tmp_path), "private", str(Path(__file__).parent), sys.prefix):
        assert text not in json.dumps(failure)


# The command --------------------------------------------------------------------------------------

SMALL = [
    "--suite",
    "exact",
    "mixture.d=[8]",
    "mixture.d_y=[1]",
    "gaussian.seeds=0",
    "samples=50",
    "steps=10",
    "--method",
    "none",
    "--method",
    "dps",
]


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_as_if_nothing_had_been(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "invdiff",
        "bench",
        *SMALL,
        "mixture.seeds=12",
        "--output",
        "out",
    ]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("out/*.json"))) < 3:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = {p.name: p.read_bytes() for p in tmp_path.glob("out/*.json")}
    assert 3 <= len(kept) < 36
    assert (
        main(["bench", *SMALL, "mixture.seeds=12", "--output", str(tmp_path / "out"), "--quiet"])
        == 0
    )
    assert (
        main(["bench", *SMALL, "mixture.seeds=12", "--output", str(tmp_path / "whole"), "--quiet"])
        == 0
    )
    assert all((tmp_path / "out" / name).read_bytes() == content for name, content in kept.items())
    for file in (tmp_path / "whole").glob("*.json"):
        a, b = (
            without_time([json.loads((tmp_path / folder / file.name).read_text())])
            for folder in ("out", "whole")
        )
        assert a == b
    assert (tmp_path / "out" / "results.md").read_text() == (
        tmp_path / "whole" / "results.md"
    ).read_text()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--suite", "nothing"], "unknown suite 'nothing'; known: "),
        (["--suite", "exact", "--method", "dsp"], "Did you mean 'dps'"),
        (
            ["--suite", "exact", "--operator", "sr"],
            "has no operators, so --operator has no effect",
        ),
        (
            ["--suite", "exact", "--seeds", "2"],
            "--seeds has no effect; give gaussian.seeds=2 or mixture.seeds=2",
        ),
        (
            ["--suite", "exact", "mixture.sed=3"],
            "mixture of the suite 'exact' has no 'sed'. Did you mean 'seeds'? It has: d, "
            "d_y, seeds.",
        ),
        (["--suite", "exact", "stepz=3"], "Did you mean 'steps'? It has: kind, samples, steps"),
        (["--suite", "exact", "methods.dsp.zeta=3"], "Did you mean 'dps'"),
        (["--suite", "exact", "nonsense"], "write key=value"),
        (["--workers", "0"], "--workers must be at least 1"),
        (["--suite", "photo"], "needs images.source"),
        (["--reproduce", "missing.json"], "is no record of invdiff bench"),
    ],
)
def test_wrong_requests(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--output", str(tmp_path), *arguments]) == 2
    assert message in capsys.readouterr().err
