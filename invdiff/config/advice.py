"""Advice on a run that works, but not as well as it could: ``invdiff solve`` warns of it, and
the records of ``invdiff bench`` keep it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from invdiff.config.presets import preset_values
from invdiff.plugins.registry import load
from invdiff.problem import Measurement
from invdiff.sampling import Method

FAR, SHARE = 3.0, 0.1
"""Consistency above which a restoration is said not to fit its measurement: samples of the
posterior have 1, as the true image has, and what works has 0.02 to 3; and the share of y that it
then misses at least: little noise makes small misfits large in its units."""


def untuned(config: Mapping[str, Any]) -> str | None:
    """A warning where a step size that was tuned for one number of steps is used with quite
    another."""
    tuned = preset_values(config["preset"]) if config["preset"] else {}
    node, steps, wanted = config["guidance"][-1], config["steps"], tuned.get("steps")
    sizes = [
        name
        for name in getattr(load("guidance", node["name"]), "scale", ())
        if name in tuned.get("guidance", {}) and node[name] == tuned["guidance"][name]
    ]
    if not wanted or not sizes or wanted / 2 <= steps <= 2 * wanted:
        return None
    said = " and ".join(f"guidance.{name}={node[name]}" for name in sizes)
    return (
        f"{said} of the preset {config['preset']} is tuned for {wanted} steps, and this run "
        f"has {steps}; "
        f"say --steps {wanted}, or guidance.{sizes[0]}=VALUE for {steps} steps"
    )


def misfit(
    measurement: Measurement,
    samples: Sequence[Tensor],
    consistency: Sequence[float],
    config: Mapping[str, Any],
    method: Method,
) -> str | None:
    """A warning where a method that follows the measurement ended far from it.

    Args:
        measurement: of one image.
        samples: its restorations, (1, C, H, W) each.
        consistency: of each.
        config: that was run.
        method: made of it.
    """
    follows = any(
        piece.requires is not None for piece in (*method.chain, method.transition) if piece
    )
    worst = max(consistency)  # nan, where nothing is known of the noise, is not above anything
    missed = max(float(measurement.norm(sample)[0]) for sample in samples)
    if follows and worst > FAR and missed > SHARE * float(torch.linalg.vector_norm(measurement.y)):
        scale = [
            f"guidance.{key}"
            for node in config["guidance"]
            for key in getattr(load("guidance", node["name"]), "scale", ())
        ]
        tune = f"another {' or '.join(scale)}, " if scale else ""
        return (
            f"the restoration does not fit its measurement: ‖A x − y‖ is "
            f"{worst:.1f} times what the noise explains (about 1 is right); "
            f"try {tune}more --steps, or a larger --sigma if the measurement is noisier than said"
        )
    return None
