"""The grids of benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from invdiff.config.overrides import Override, parse
from invdiff.config.packages import cannot_apply, configs, refuse_targets
from invdiff.plugins.registry import UnknownNameError, did_you_mean

OPEN_TABLES = ("operators", "methods", "baselines", "models")
"""Tables of a suite: label -> parameters, which the labelled thing checks."""


def compose_suite(name: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The grid of a benchmark, ``configs/suite/NAME.yaml``, with Hydra's ``key=value`` applied;
    plug-ins' config packages have theirs.

    Raises:
        ValueError: no such suite, or an override that does not apply.
    """
    given = [parse(override) for override in overrides]
    from hydra import compose as hydra_compose
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    with configs() as loader:
        known = loader.get_group_options("suite")
        if name not in known:
            raise UnknownNameError(f"unknown suite {name!r}; known: {', '.join(known)}")
        _check_suite_keys(
            name, OmegaConf.to_container(hydra_compose(f"suite/{name}")["suite"]), given
        )
        try:
            config = hydra_compose(f"suite/{name}", [_in_suite(override) for override in given])
        except (HydraException, OmegaConfBaseException) as error:
            raise cannot_apply(overrides, error) from error
    if missing := [key.removeprefix("suite.") for key in OmegaConf.missing_keys(config)]:
        raise ValueError(f"the suite {name!r} needs {missing[0]}; give it: {missing[0]}=VALUE")
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    refuse_targets(plain)
    return plain["suite"]


def _in_suite(override: Override) -> str:
    """An override of a suite as Hydra takes it; parameters of what a table labels may be new
    (Hydra's ``++``)."""
    inside = any(part in OPEN_TABLES for part in override.path[:-2])
    inner = replace(override, path=("suite", *override.path))
    return inner.hydra(override.sign or ("++" if inside else ""))


def _check_suite_keys(suite: str, config: Any, overrides: Sequence[Override]) -> None:
    """Refuses keys that a suite does not have, with the nearest and those that are there."""
    for override in overrides:
        node, path = config, override.path
        for depth, part in enumerate(path if not override.sign.startswith("+") else ()):
            if not isinstance(node, dict) or (depth > 1 and path[depth - 2] in OPEN_TABLES):
                break  # what a method or an operator takes is its own to check
            if part not in node:
                below = f"{'.'.join(path[:depth])} of " if depth else ""
                raise ValueError(
                    f"{override!r}: {below}the suite {suite!r} has no {part!r}."
                    f"{did_you_mean(part, node)} It has: {', '.join(node)}."
                )
            node = node[part]
