"""The method and the network of ``solve`` where nobody chose them."""

from __future__ import annotations

import argparse
import contextlib
import warnings
from pathlib import Path
from typing import Any

from invdiff.commands.common import configure, load_models
from invdiff.commands.unknown import candidates
from invdiff.config import build_operator, override_value
from invdiff.config.presets import is_file, preset_of_file
from invdiff.network import Denoiser
from invdiff.plugins.registry import load
from invdiff.problem import Measurement, Operator
from invdiff.solving.plan import complete
from invdiff.solving.recommend import (
    Recommendation,
    evaluations_of,
    linear_is_better,
    recommend,
    recorded,
)

MODEL = "photo64"


def chosen(
    args: argparse.Namespace, operator: str, saved: Measurement | None
) -> tuple[argparse.Namespace, str, Denoiser | None]:
    """The arguments with a model and a method; a line that says why the method is taken, empty
    where it was asked for; and the network, where it had to be asked.

    Raises:
        ValueError: a budget beside a method, or one that is none; an operator that no method that
            was measured takes.
    """
    made = argparse.Namespace(**vars(args))
    if args.method is None and is_file(args.preset):
        made.method = [preset_of_file(args.preset)["guidance"]["name"]]
        return chosen(made, operator, saved)
    if args.method is not None:
        if args.budget is not None:
            raise ValueError("--budget chooses a method; leave out --budget or --method")
        made.model = args.model or _shipped(args, operator) or MODEL
        if worse := linear_is_better(operator, made.model, args.method[-1]):
            warnings.warn(worse, stacklevel=2)
        return made, "", None
    made.model = args.model or MODEL
    of_a_method = [o for o in args.overrides if o.lstrip().startswith("guidance.")]
    if args.preset not in ("auto", "none"):
        of_a_method.append(f"--preset {args.preset}")
    if of_a_method:
        raise ValueError(f"{of_a_method[0][:80]} is for a method; say which: --method NAME")
    choice, denoiser = _choice(made, operator, args.budget or "good", saved)
    made.method = [choice.name]
    said = {
        "steps": choice.steps,
        "num_samples": choice.num_samples,
        **{f"guidance.{key}": value for key, value in choice.values.items()},
    }
    made.overrides = [f"{k}={override_value(v)}" for k, v in said.items()] + args.overrides
    about = f"{choice.steps} steps, {choice.evaluations:g} evaluations"
    if args.steps is not None:
        about = f"{args.steps} steps"
    why = f"method: {choice.name}, {about}: {choice.why}; others: invdiff list guidance"
    return made, why, denoiser


def _shipped(args: argparse.Namespace, operator: str) -> str | None:
    """The network that ships for a method that does not take every one, trained for the operator,
    which may be a protocol's."""
    kinds = [load("guidance", name) for name in args.method]
    networks = [kind.shipped for kind in kinds if getattr(kind, "shipped", None)]
    if not networks:
        return None
    registered = configure(args, operator, args.method, "none")["operator"]["name"]
    return next((found[registered] for found in networks if registered in found), None)


def _choice(
    args: argparse.Namespace, operator: str, budget: str, saved: Measurement | None
) -> tuple[Recommendation, Denoiser | None]:
    """By name where this operator and model were measured; else both are made and asked."""
    limit = evaluations_of(budget)
    bare = argparse.Namespace(**vars(args) | {"upscale": None})
    config: dict[str, Any] = configure(bare, operator, ["none"], "none")
    found = recorded(config["operator"]["name"], args.model, limit)
    made = saved.operator if saved is not None else _made(args, config)
    if found is not None and _takes(found.name, made):
        return found, None
    denoiser, _ = load_models(bare, config)
    return recommend(saved or made, denoiser, budget), denoiser


def _made(args: argparse.Namespace, config: dict[str, Any]) -> Operator:
    """The operator of a run, as it is of a photograph where one is given."""
    tried = candidates(config)
    operator = build_operator(config | {"operator": tried[0]} if tried else config)
    if args.measurement is None:
        return operator
    with contextlib.suppress(ValueError):  # what a file does not tell is said when it is read
        return operator.of_file(Path(args.measurement))
    return operator


def _takes(method: str, operator: Operator) -> bool:
    """Whether an operator is of the kinds that the pieces of a method require."""
    plan = complete(method)
    kinds = [piece.requires for piece in (*plan.chain, plan.transition)]
    return all(kind is None or isinstance(operator, kind) for kind in kinds)
