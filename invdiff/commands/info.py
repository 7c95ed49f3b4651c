"""``invdiff info MODEL``: what was recognised in a checkpoint."""

from __future__ import annotations

import argparse
import json

from invdiff.commands.common import checked, model_options
from invdiff.config import compose
from invdiff.loading.model import is_registered, load_model
from invdiff.network.facts import describe_model
from invdiff.network.selfcheck import why_unchecked


def run(args: argparse.Namespace) -> None:
    """Prints the description as lines or JSON, and what the self-check finds."""
    if other := [o for o in args.overrides if not o.startswith("model.")]:
        raise ValueError(
            f"info takes what concerns the model only, model.key=value, got {other[0]!r}"
        )
    config = (
        compose(None, ["none"], args.model, "none", args.overrides)
        if args.overrides
        else {"model": {}}
    )
    denoiser = load_model(args.model, allow_pickle=args.allow_pickle, **model_options(config))
    facts = describe_model(denoiser)
    if args.no_check:
        facts["reading"] = "not checked (--no-check)"
    elif is_registered(args.model) and not args.overrides:
        facts["reading"] = "as its package registers it"
    elif why := why_unchecked(denoiser):
        facts["reading"] = f"not checked: {why}"
    else:
        facts["reading"] = (
            "; ".join(f"WARNING: {found}" for found in checked(denoiser))
            or "OK: the self-check found nothing wrong"
        )
    if args.json:
        print(json.dumps(facts, indent=2))
        return
    width = max(map(len, facts))
    for key, value in facts.items():
        print(f"{key:{width}}  {value}")
