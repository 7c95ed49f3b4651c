"""Presets: values that were published, or tuned for a model."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invdiff.config.overrides import Override
from invdiff.config.packages import config_files, protocols
from invdiff.plugins.registry import did_you_mean, list_plugins

if TYPE_CHECKING:
    from invdiff.sampling import Method


def preset_values(name: str) -> dict[str, Any]:
    """The values that a preset sets, and nothing else."""
    if is_file(name):
        return preset_of_file(name)
    from omegaconf import OmegaConf

    text = config_files("preset")[name][1].read_text(encoding="utf-8")
    return OmegaConf.to_container(OmegaConf.create(text)) or {}  # type: ignore[return-value]


def is_file(preset: str) -> bool:
    """Whether a preset is meant by the path of its file."""
    return preset.endswith((".yaml", ".yml"))


def preset_of_file(path: str) -> dict[str, Any]:
    """The values of a preset's file: ``steps`` and, below ``guidance``, the method's ``name`` and
    parameters, as ``invdiff tune`` writes them.

    Raises:
        ValueError: it cannot be read, or says something else.
    """
    from omegaconf import OmegaConf

    try:
        values: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except Exception as error:  # of the YAML parser, the file system or OmegaConf
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} cannot be read as a preset: {said}") from error
    guidance = values.get("guidance") if isinstance(values, dict) else None
    if not isinstance(guidance, dict) or not isinstance(guidance.get("name"), str):
        raise ValueError(f"{path} is no preset: it has no guidance with the name of a method")
    if unknown := values.keys() - {"steps", "guidance"}:
        raise ValueError(f"{path} is no preset: it has {', '.join(map(str, unknown))}")
    return values


def method_of_preset(path: str | Path) -> tuple[Method, int | None]:
    """The method of a preset's file and its number of steps, for :func:`invdiff.solve`.

    Raises:
        ValueError: as :func:`preset_of_file`, or parameters that the method does not take.
    """
    from invdiff.sampling import make_method

    values = preset_of_file(str(path))
    parameters = dict(values["guidance"])
    return make_method(parameters.pop("name"), **parameters), values.get("steps")


def find_preset(
    preset: str,
    operator: str | None,
    registered: str | None,
    method: str,
    model: str,
) -> str | None:
    """The preset for an operator or protocol; for a protocol that has none, its operator's."""
    if preset == "none" or operator is None or is_file(preset):
        return None
    known = config_files("preset")
    name = re.sub(r"[^\w.-]", "_", model)
    for wanted in (operator, registered):
        found = f"{name if preset == 'auto' else preset}_{method}_{wanted}"
        if found in known:
            return found
    if preset == "auto":
        return None
    methods, operators = list_plugins("guidance"), [*list_plugins("operators"), *protocols()]
    here, of_method, of_operator = (
        [source for source in known if source.endswith(tuple(f"_{m}_{o}" for m in ms for o in os))]
        for ms, os in (
            ([method], [operator, registered]),
            ([method], operators),
            (methods, [operator, registered]),
        )
    )
    what = (
        f"method {method!r} with operator {operator!r}"
        if here
        else f"method {method!r}"
        if of_method
        else f"operator {operator!r}"
    )
    names = [
        n.removesuffix(f"_{registered}").removesuffix(f"_{operator}").removesuffix(f"_{method}")
        for n in here
    ]
    there = ", ".join(names or of_method or of_operator) or "none"
    raise ValueError(
        f"no preset {preset!r} for method {method!r} with operator "
        f"{operator!r}.{did_you_mean(preset, names)} The presets of {what}: {there}; or "
        "--preset auto, or none"
    )


def left_out(
    preset: str,
    stated: Mapping[str, Any],
    guidance: Mapping[str, Any],
    overrides: Sequence[Override],
) -> list[str]:
    """The values of a preset that are left out, since an override changed a switch (true
    or false) that it was tuned with."""
    changed = [
        key for key, value in stated.items() if isinstance(value, bool) and guidance[key] != value
    ]
    given = [override.parameter for override in overrides]
    left = [key for key in stated if changed and key not in changed and key not in given]
    if left:
        warnings.warn(
            f"the preset {preset} was tuned with "
            f"guidance.{changed[0]}={str(stated[changed[0]]).lower()}, so its "
            f"{', '.join(f'{key}={stated[key]}' for key in left)} is left out and the "
            "general value taken",
            stacklevel=2,
        )
    return left
