"""Tuning of a method's parameters on a user's network, operator and images, by Optuna.

The parameters and their ranges are those that the method declares with
:class:`~invdiff.sampling.Between`. An objective says how good the restorations of a trial are:

    lpips, psnr    against the truth
    measurement    without truth, by the prediction of what was held out of the measurement: of a
                   mask some known pixels; of other operators, by the coupled bootstrap (Oliveira,
                   Lei & Tibshirani 2021, arXiv:2111.09447), y + tau w is restored and y - w / tau
                   predicted, whose noises are independent for w of the measurement's own sigma

The last is a mean squared error: it prefers restorations that are near the posterior mean.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from invdiff.network import Denoiser
from invdiff.noise import generator_of
from invdiff.plugins.registry import load
from invdiff.problem import DiagonalOperator, Measurement
from invdiff.sampling import make_method, searched
from invdiff.sampling.method import describe
from invdiff.solving import solve

if TYPE_CHECKING:
    import optuna

OBJECTIVES = {"lpips": 1, "psnr": -1, "measurement": 1}
"""Times which each is better when it is lower."""
HELD = 0.1
"""Share of the known pixels of a mask that is held out."""
TAU = 0.5
AT_ONCE = 4
"""Images of a trial that are restored together; the trial may be given up after each such batch."""


@dataclass(frozen=True)
class Problem:
    """Images to tune on, of one shape.

    Attributes:
        given: the measurement that is restored.
        loss: the loss of restorations (B, C, H, W), one value per image.
        ids: the k of each image.
    """

    given: Measurement
    loss: Callable[[Tensor], Tensor]
    ids: Sequence[int]


@dataclass(frozen=True)
class Tuned:
    """The outcome of a search.

    Attributes:
        values: of the parameters that were searched.
        score, general: the objective with them, and with the values that the search began from.
        trials: how many were made, those of earlier runs included.
    """

    method: str
    objective: str
    values: dict[str, float]
    score: float
    general: float
    trials: int


def problems(
    measured: Sequence[tuple[Measurement, Tensor | None]],
    ids: Sequence[int],
    objective: str,
    seed: int = 0,
) -> list[Problem]:
    """The images of measurements as batches with their losses.

    Args:
        measured: measurements of one image each, and the truth where it is known.
        ids: the k of each image.
        objective: one of :data:`OBJECTIVES`.
        seed: of what is held out.

    Raises:
        ValueError: an objective that is none, or that needs what is not there.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, got {objective!r}")
    found: list[Problem] = []
    for group in _groups(measured):
        batch = Measurement.concatenate([measured[k][0] for k in group])
        own = [ids[k] for k in group]
        if objective == "measurement":
            found.append(_held_out(batch, own, seed))
            continue
        truths = [measured[k][1] for k in group]
        if any(truth is None for truth in truths):
            raise ValueError(
                f"{objective} needs the truth, which a picture that is degraded does not have; "
                "use --objective measurement"
            )
        truth = torch.cat([t for t in truths if t is not None])
        metric, sign = load("metrics", objective), OBJECTIVES[objective]
        found.append(Problem(batch, _against(metric, truth, sign), own))
    return found


def _against(
    metric: Callable[[Tensor, Tensor], Tensor], truth: Tensor, sign: int
) -> Callable[[Tensor], Tensor]:
    return lambda x: sign * metric(x.cpu().clamp(0, 1).float(), truth.cpu().float())


def _groups(measured: Sequence[tuple[Measurement, Tensor | None]]) -> Iterator[list[int]]:
    group: list[int] = []
    for k, (measurement, _) in enumerate(measured):
        first = measured[group[0]][0] if group else measurement
        fits = measurement.operator is first.operator and measurement.y.shape == first.y.shape
        if group and (not fits or len(group) == AT_ONCE):
            yield group
            group = []
        group.append(k)
    if group:
        yield group


def _held_out(batch: Measurement, ids: Sequence[int], seed: int) -> Problem:
    """A part of the measurement to restore from, and the loss that the rest gives."""
    operator, y = batch.operator, batch.y
    if operator.unknown:
        raise ValueError(
            f"what is held out is predicted by the operator, whose {operator.unknown[0]} is "
            f"unknown; give one, such as the {operator.unknown[0]}.npy that a first run writes"
        )
    if isinstance(operator, DiagonalOperator):
        s = operator.singular_values
        known = (s > 0).reshape(-1, *s.shape[-2:]).all(0).cpu()
        draw = torch.rand(known.shape, generator=generator_of("held out", seed))
        held = known & (draw < HELD)
        masked = operator.masked(known & ~held)
        if masked is not None and bool(held.any()):
            given = Measurement(y, masked, batch.sigma)
            return Problem(given, lambda x: (x - y)[..., held].square().flatten(1).mean(1), ids)
    sigma = batch.sigma
    if not isinstance(sigma, float):
        sigma = sigma.expand(y.shape)
    if float(torch.as_tensor(sigma).min()) <= 0:
        raise ValueError(
            "the objective measurement holds out known pixels of a mask, or splits the noise of "
            "other measurements, which needs sigma > 0"
        )
    w = sigma * torch.stack(
        [torch.randn(y.shape[1:], generator=generator_of("coupled", seed, k)) for k in ids]
    ).to(y)
    given = Measurement(y + TAU * w, operator, batch.sigma * math.sqrt(1 + TAU**2))
    predicted = replace(batch, y=y - w / TAU)
    return Problem(given, lambda x: predicted.loss(x.to(y)) / y[0].numel(), ids)


def tune(
    over: Sequence[Problem],
    denoiser: Denoiser,
    method: str,
    objective: str,
    *,
    trials: int = 30,
    steps: int = 100,
    seed: int = 0,
    start: Mapping[str, Any] | None = None,
    storage: Path | None = None,
    progress: bool = False,
    build: Callable[[Mapping[str, Any]], Any] | None = None,
    cond: Mapping[str, Any] = MappingProxyType({}),
) -> Tuned:
    """Searches the declared parameters of a method.

    Args:
        over: the images, see :func:`problems`.
        denoiser: the network.
        method: a registered name.
        objective: of the problems.
        trials: in all; with a storage those of earlier runs count.
        steps: of each run.
        seed: of the search and of the noise.
        start: values of parameters: those that are searched are tried first, others stay.
        storage: a file of searches; the next call that asks for the same goes on with its own.
        progress: show a bar on stderr.
        build: what is run with values of the method, e.g. a chain that holds it, under another
            transition; by default the method alone.
        cond: conditions of the network.

    Raises:
        ValueError: a method without declared ranges, or that the measurement does not suit.
    """
    import optuna
    from tqdm.auto import tqdm

    ranges = searched(load("guidance", method))
    if not ranges:
        raise ValueError(f"{method} declares no parameters with a range, so nothing is searched")
    begin, fixed = dict(start or {}), dict(start or {})
    for name in ranges:
        fixed.pop(name, None)
    make = build or (lambda values: make_method(method, **values))
    named = "" if storage is None else _identity(over, denoiser, make(begin), cond, seed)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        study_name=f"{method} {objective} {steps} {named}",
        storage=None if storage is None else _journal(storage),
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=8),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=8),
        load_if_exists=True,
    )

    def losses_of(problem: Problem, values: Mapping[str, Any]) -> list[float]:
        return _losses(problem, denoiser, make(values), steps, seed, cond)

    general = [v for p in over for v in losses_of(p, begin)]
    known = {n: begin[n] for n in ranges if begin.get(n) is not None}
    left = max(0, trials - len(study.trials))
    if not study.trials and known:
        study.enqueue_trial(known)

    def run(trial: optuna.Trial) -> float:
        values = {
            name: trial.suggest_int(name, int(r.low), int(r.high))
            if whole
            else trial.suggest_float(name, r.low, r.high, log=r.log)
            for name, (r, whole) in ranges.items()
        }
        losses: list[float] = []
        for k, problem in enumerate(over):
            with contextlib.suppress(ValueError):
                losses += losses_of(problem, fixed | values)
            if len(losses) < sum(len(p.given) for p in over[: k + 1]):
                return math.inf  # it diverged
            trial.report(sum(losses) / len(losses), k)
            if k + 1 < len(over) and trial.should_prune():
                raise optuna.TrialPruned
        return sum(losses) / len(losses)

    with tqdm(total=left, disable=not progress, unit="trial", desc=method) as bar:

        def moved(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
            bar.set_postfix_str(f"best {abs(study.best_value):.4g}")
            bar.update()

        study.optimize(run, n_trials=left, callbacks=[moved])
    sign = OBJECTIVES[objective]
    return Tuned(
        method,
        objective,
        dict(study.best_params),
        sign * study.best_value,
        sign * sum(general) / len(general),
        len(study.trials),
    )


def _identity(
    over: Sequence[Problem], denoiser: Denoiser, method: Any, cond: Mapping[str, Any], seed: int
) -> str:
    """A short name that changes with anything that a search depends on beside its objective and
    steps."""
    asked = {
        "method": describe(method),
        "cond": describe(cond),
        "network": denoiser.hash,
        "measurements": [problem.given.hash for problem in over],
        "seed": seed,
    }
    return hashlib.sha256(json.dumps(asked, default=str).encode()).hexdigest()[:12]


def _losses(
    problem: Problem,
    denoiser: Denoiser,
    method: Any,
    steps: int,
    seed: int,
    cond: Mapping[str, Any],
) -> list[float]:
    result = solve(
        problem.given,
        denoiser,
        method,
        steps=steps,
        seed=seed,
        image_ids=problem.ids,
        **cond,
    )
    losses = problem.loss(result.x)
    if not bool(losses.isfinite().all()):
        raise ValueError("a loss is not finite")
    return losses.tolist()


def _journal(path: Path) -> Any:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path.parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(path)))
