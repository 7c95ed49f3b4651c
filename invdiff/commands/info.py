"""``invdiff info MODEL``: what was recognised in a checkpoint."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from invdiff.commands.common import checked, model_options
from invdiff.commands.jobs import image_id
from invdiff.config import compose
from invdiff.images import read_image
from invdiff.loading.model import is_registered, load_model
from invdiff.network import Denoiser
from invdiff.network.facts import describe_model
from invdiff.network.selfcheck import why_unchecked
from invdiff.solving.likelihood import log_likelihood


def run(args: argparse.Namespace) -> None:
    """Prints the description as lines or JSON, and what the self-check finds."""
    if other := [o for o in args.overrides if not o.startswith("model.")]:
        raise ValueError(
            f"info takes what concerns the model only, model.key=value, got {other[0]!r}"
        )
    if not args.likelihood and (args.probes is not None or args.seed is not None):
        raise ValueError("--probes and --seed are of --likelihood FILE")
    config = (
        compose(None, ["none"], args.model, "none", args.overrides)
        if args.overrides
        else {"model": {}}
    )
    denoiser = load_model(args.model, allow_pickle=args.allow_pickle, **model_options(config))
    if args.likelihood:
        likelihoods(args, denoiser)
        return
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


def likelihoods(args: argparse.Namespace, denoiser: Denoiser) -> None:
    """Prints the bits per dimension of each file as it is found: of its 256 grey levels, where the
    network's data are images."""
    rows = []
    levels = None if denoiser.image_range is None else 256
    width = max(len(Path(name).name) for name in args.likelihood)
    for file in map(Path, args.likelihood):
        found = log_likelihood(
            denoiser,
            read_image(file, denoiser.channels if denoiser.channels in (1, 3) else None),
            probes=1 if args.probes is None else args.probes,
            levels=levels,
            seed=args.seed or 0,
            image_ids=[image_id(file.name)],
        )
        bits, count = float(found.bits_per_dimension[0]), int(found.evaluations[0])
        rows.append({"file": str(file), "bits_per_dimension": bits, "evaluations": count})
        if not args.json:
            line = f"{file.name:{width}}  {bits:.3f} bits per dimension, {count} evaluations"
            print(line, flush=True)
    if args.json:
        print(json.dumps(rows, indent=2))
