"""The packages of configurations, composed by Hydra.

Nothing in a configuration names code to be run: objects are made through the registries only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import TYPE_CHECKING, Any

from invdiff.plugins.registry import list_plugins, value_of

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader


def config_files(group: str) -> dict[str, tuple[str, Traversable]]:
    """The files of a config group: name -> (where it comes from, the file). Imports nothing but the
    packages they are in."""
    found = dict[str, tuple[str, Traversable]]()
    for module in _config_packages().values():
        with contextlib.suppress(
            ImportError
        ):  # a broken package of configurations takes nothing from the others
            folder = files(module) / group
            names = (
                [file for file in folder.iterdir() if file.name.endswith(".yaml")]
                if folder.is_dir()
                else []
            )
            found |= {
                file.name.removesuffix(".yaml"): (f"{module}: {group}/{file.name}", file)
                for file in names
            }
    return {name: found[name] for name in sorted(found)}


def protocols() -> dict[str, str]:
    """The problems of the literature: name -> file. They are files of the config group ``operator``
    that bear no registered operator's name.

    Such a file starts with ``# @package _global_`` and holds ``operator`` (the registered ``name``
    and its parameters) and ``sigma``.
    """
    registered = list_plugins("operators")
    return {
        name: origin
        for name, (origin, _) in config_files("operator").items()
        if name not in registered
    }


@contextlib.contextmanager
def configs() -> Iterator[ConfigLoader]:
    """Hydra, ready to compose, with what is found in the config packages. A host that is a Hydra
    application itself finds its own state afterwards as it was."""
    from hydra import initialize_config_module, version
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    _find_plugin_configs()
    host, cfg = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
    base = version.VersionBase.instance().getbase()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("invdiff.configs", version_base="1.3", job_name="invdiff"):
            yield GlobalHydra.instance().config_loader()
    finally:
        GlobalHydra.instance().hydra, HydraConfig.instance().cfg = host, cfg
        version.VersionBase.instance().version_base = base


def cannot_apply(overrides: Sequence[str], error: Exception) -> ValueError:
    first = str(error.__cause__ or error).strip().splitlines()[0]
    return ValueError(f"cannot apply the overrides {' '.join(overrides) or '(none)'}: {first}")


def refuse_targets(node: Any) -> None:
    if isinstance(node, dict):
        for key, value in node.items():
            if str(key).startswith("_target"):
                raise ValueError(
                    f"{key!r} is not allowed in a configuration: objects are made from "
                    "registered names only"
                )
            refuse_targets(value)
    elif isinstance(node, list):
        for value in node:
            refuse_targets(value)


def _config_packages() -> dict[str, str]:
    """Name -> module of the packages of the group ``invdiff.configs``."""
    return {name: value_of("configs", name) for name in list_plugins("configs")}


def _find_plugin_configs() -> None:
    """Puts the config packages of the group ``invdiff.configs`` on Hydra's search path."""
    from hydra.core.config_search_path import ConfigSearchPath
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    class PluginConfigs(SearchPathPlugin):
        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            for name, module in _config_packages().items():
                if module != "invdiff.configs":
                    search_path.append(name, f"pkg://{module}")

    if not any(
        p.__name__ == "PluginConfigs" for p in Plugins.instance().discover(SearchPathPlugin)
    ):
        Plugins.instance().register(PluginConfigs)
