"""Hydra configuration: config groups, presets and ``key=value`` overrides composed to plain data.

Nothing in a configuration names code to be run: objects are made through the registries only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from invdiff.registry import list_plugins

OPEN_GROUPS = ("operator", "guidance", "model", "transition", "itinerary")


def compose(operator: str, method: str, model: str, preset: str = "auto", overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The configuration of a run.

    Args:
        operator, method: registered names; their YAML in the config groups ``operator`` and ``guidance`` is optional.
        model: a registered name or a folder.
        preset: ``"auto"`` takes the values tuned for this model if there are any, else the paper's; ``"none"`` takes none;
            any other name, such as ``"paper"``, must exist for this method and operator.
        overrides: Hydra's ``key=value``. Keys below ``operator.``, ``guidance.``, ``model.``, ``transition.`` and
            ``itinerary.`` may be new: the object made from them checks them.

    Raises:
        ValueError: an override that does not parse or names no key, a preset that does not exist, a ``_target_``.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    _find_plugin_configs()
    GlobalHydra.instance().clear()
    with initialize_config_module("invdiff.configs", version_base="1.3", job_name="invdiff"):
        loader = GlobalHydra.instance().config_loader()
        chosen: list[str] = []
        for group, name in (("operator", operator), ("guidance", method)):
            if name in loader.get_group_options(group):
                chosen.append(f"{group}={name}")
            else:
                chosen += [f"~{group}", f"++{group}.name={name}"]
        found = _preset(preset, operator, method, model, loader.get_group_options("preset"))
        if found is not None:
            chosen.append(f"+preset={found}")
        try:
            config = hydra_compose("config", [*chosen, *map(_open, overrides)])
        except (HydraException, OmegaConfBaseException) as error:
            first = str(error.__cause__ or error).strip().splitlines()[0]
            raise ValueError(f"cannot apply the overrides {' '.join(overrides) or '(none)'}: {first}") from error
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    _refuse_targets(plain)
    plain["model"]["name"] = model
    plain["preset"] = found
    return plain  # type: ignore[return-value]


def _preset(preset: str, operator: str, method: str, model: str, known: Sequence[str]) -> str | None:
    if preset == "none":
        return None
    name = re.sub(r"[^\w.-]", "_", model)
    for source in (name, "paper") if preset == "auto" else (preset,):
        if f"{source}_{method}_{operator}" in known:
            return f"{source}_{method}_{operator}"
    if preset == "auto":
        return None
    raise ValueError(f"no preset {preset!r} for method {method!r} with operator {operator!r}; presets: {', '.join(known)}")


def _open(override: str) -> str:
    """Lets keys of open groups be new (Hydra's ``++``)."""
    return f"++{override}" if override.split(".")[0] in OPEN_GROUPS and "." in override.split("=")[0] else override


def _refuse_targets(node: Any) -> None:
    if isinstance(node, dict):
        for key, value in node.items():
            if str(key).startswith("_target"):
                raise ValueError(f"{key!r} is not allowed in a configuration: objects are made from registered names only")
            _refuse_targets(value)
    elif isinstance(node, list):
        for value in node:
            _refuse_targets(value)


def _find_plugin_configs() -> None:
    """Puts the config packages of the group ``invdiff.configs`` on Hydra's search path."""
    from hydra.core.config_search_path import ConfigSearchPath
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    class PluginConfigs(SearchPathPlugin):
        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            for name, origin in list_plugins("configs").items():
                module = origin.rsplit("(", 1)[1].rstrip(")")
                if module != "invdiff.configs":
                    search_path.append(name, f"pkg://{module}")

    if not any(p.__name__ == "PluginConfigs" for p in Plugins.instance().discover(SearchPathPlugin)):
        Plugins.instance().register(PluginConfigs)
