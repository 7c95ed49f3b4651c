"""Hydra configuration: config groups, presets and ``key=value`` overrides composed to plain data.

Nothing in a configuration names code to be run: objects are made through the registries only.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invdiff.registry import UnknownNameError, call, list_plugins, load, make_operator

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader

    from invdiff.method import Method
    from invdiff.operator import Operator
    from invdiff.sampling import Transition

KEYS = ("sigma", "gain", "steps", "seed", "num_samples", "batch_size")
MEASURING = ("operator", "sigma", "gain")  # what has no meaning where nothing is measured
FLAGS = {
    **{key: "--operator" for key in ("operator", "operator.name")},
    **{key: "--method" for key in ("guidance", "guidance.name")},
    **{key: "--model" for key in ("model", "model.name")},
    **{key: "--upscale" for key in ("upscale", "upscale.name")},
    "preset": "--preset",
    "guidance.label": "--label",
    "model.allow_pickle": "--allow-pickle",
}
OPEN_GROUPS = ("operator", "guidance", "model", "transition", "itinerary", "upscale")


def compose(
    operator: str | None, methods: Sequence[str], model: str, preset: str = "auto", overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """The configuration of a run.

    Args:
        operator: a registered name, whose YAML in the config group ``operator`` is optional, or one of :func:`protocols`. None where nothing is measured: the
            configuration then starts from ``generate.yaml`` instead of ``config.yaml``.
        methods: registered names, the first nearest to the network; likewise in the group ``guidance``. The result's
            ``guidance`` has one entry for each; everything else comes from the preset of the last, nearest to the data.
        model: a registered name or a folder.
        preset: ``"auto"`` takes the values tuned for this model, operator and method if there are any; ``"none"`` takes none;
            any other name, such as ``"paper"``, must exist for them.
        overrides: Hydra's ``key=value``. Keys below ``operator.``, ``guidance.``, ``model.``, ``transition.``, ``itinerary.`` and
            ``upscale.`` may be new: the object made from them checks them. In a chain ``guidance.key`` goes to the methods that
            have it.

    Raises:
        ValueError: an override that does not parse or names no key, a preset that does not exist, a ``_target_``.
    """
    refused = MEASURING if operator is None else ()
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not key:
            hint = "; for an image use --input" if Path(override).exists() else ""
            raise ValueError(f"{override!r} is not an override; write key=value, e.g. guidance.zeta=0.5{hint}")
        first = key.split(".")[0]
        if first in refused or first not in (*KEYS, *OPEN_GROUPS, *FLAGS):
            keys, groups = (", ".join(k for k in known if k not in refused) for known in (KEYS, OPEN_GROUPS))
            raise ValueError(f"unknown key in {override!r}; known: {keys}, and what stands below {groups}")
        if key.lstrip("+~") in FLAGS:
            raise ValueError(f"{override!r} cannot be overridden; use {FLAGS[key.lstrip('+~')]}")
    mine = [o for o in overrides if o.startswith("guidance.")]
    guidance, config = [], dict[str, Any]()
    for method in methods:
        allowed = inspect.signature(load("guidance", method)).parameters
        own = mine if len(methods) == 1 else [o for o in mine if o.partition("=")[0].removeprefix("guidance.") in allowed]
        config = _compose(operator, method, model, preset, [o for o in overrides if o not in mine] + own)
        guidance.append(config["guidance"])
    if left := [o for o in mine if not any(o.partition("=")[0].removeprefix("guidance.") in g for g in guidance)]:
        raise ValueError(f"none of the methods {', '.join(methods)} has the parameter of {left[0]!r}")
    return config | {"guidance": guidance}


def build_operator(config: dict[str, Any]) -> Operator:
    """The operator that a configuration describes."""
    return make_operator(config["operator"]["name"], **_parameters(config["operator"]))


def build_method(config: dict[str, Any], default: Transition | None = None) -> Method:
    """The method that a configuration describes, with every piece filled in; ``default`` where nobody chooses the transition."""
    from invdiff.method import make_method

    chain = [make_method(g["name"], **_parameters(g)) for g in config["guidance"]]
    transition, itinerary = (make_piece(config[kind], kind) for kind in ("transition", "itinerary"))
    if len(chain) > 1 and (transition or itinerary):  # what is chosen here settles what the chain disagrees about
        chain = [
            replace(
                m,
                transition=m.around(transition) if transition else m.transition,
                itinerary=None if itinerary else m.itinerary,
            )
            for m in chain
        ]
    made = make_method(chain) if len(chain) > 1 else chain[0]
    return made.completed(transition or (default if made.transition is None else None), itinerary)


def _parameters(node: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in node.items() if k != "name"}


def make_piece(node: dict[str, Any] | str | None, kind: str) -> Any:
    """A ``"transition"`` or ``"itinerary"`` from its name, or from a mapping of its name and parameters; None stays None."""
    from invdiff import itineraries, transitions

    if node is None:
        return None
    known: Mapping[str, Any] = transitions.BY_NAME if kind == "transition" else itineraries.BY_NAME
    node = {"name": node} if isinstance(node, str) else node
    name = node.get("name")
    if name is None:
        raise ValueError(f"say which {kind} is meant: {kind}.name=NAME with one of {', '.join(known)}")
    if name not in known:
        raise UnknownNameError(f"unknown {kind} {name!r}; write {kind}.name=NAME with one of {', '.join(known)}")
    parameters = {k: make_piece(v, kind) if k == "predictor" else v for k, v in _parameters(node).items()}
    return call(known[name], f"{kind} {name!r}", parameters)


def compose_suite(name: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The grid of a benchmark, ``configs/suite/NAME.yaml``, with Hydra's ``key=value`` applied; plug-ins' config packages have theirs.

    Raises:
        ValueError: no such suite, or an override that does not apply.
    """
    from hydra import compose as hydra_compose
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    with _configs() as loader:
        known = loader.get_group_options("suite")
        if name not in known:
            raise UnknownNameError(f"unknown suite {name!r}; known: {', '.join(known)}")
        try:
            config = hydra_compose(f"suite/{name}", [o if o[0] in "+~" else f"suite.{o}" for o in overrides])
        except (HydraException, OmegaConfBaseException) as error:
            first = str(error.__cause__ or error).strip().splitlines()[0]
            raise ValueError(f"cannot apply the overrides {' '.join(overrides) or '(none)'}: {first}") from error
    if missing := [key.removeprefix("suite.") for key in OmegaConf.missing_keys(config)]:
        raise ValueError(f"the suite {name!r} needs {missing[0]}; give it: {missing[0]}=VALUE")
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    _refuse_targets(plain)
    return plain["suite"]


def _compose(operator: str | None, method: str, model: str, preset: str, overrides: Sequence[str]) -> dict[str, Any]:
    from hydra import compose as hydra_compose
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    with _configs() as loader:
        registered = operator
        if operator in protocols():
            registered = hydra_compose("config", [f"operator={operator}"])["operator"]["name"]
        chosen: list[str] = []
        for group, name in (("operator", registered), ("guidance", method)):
            if name is None:
                continue
            if name in loader.get_group_options(group):
                chosen.append(f"{group}={name}")
            else:
                chosen += [f"~{group}", f"++{group}.name={name}"]
        found = _preset(preset, operator, registered, method, model, loader.get_group_options("preset"))
        if found is not None:
            chosen.append(f"+preset={found}")
        if registered != operator:
            chosen.append(f"+operator@_global_={operator}")  # after the preset: a protocol is kept, whatever was tuned on
        try:
            config = hydra_compose("config" if operator is not None else "generate", [*chosen, *map(_open, overrides)])
        except (HydraException, OmegaConfBaseException) as error:
            first = str(error.__cause__ or error).strip().splitlines()[0]
            raise ValueError(f"cannot apply the overrides {' '.join(overrides) or '(none)'}: {first}") from error
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    _refuse_targets(plain)
    plain["model"]["name"] = model
    plain["preset"] = found
    if operator is not None:
        plain["protocol"] = operator if registered != operator else None
    return plain  # type: ignore[return-value]


def protocols() -> dict[str, str]:
    """The problems of the literature: name -> file. They are files of the config group ``operator`` that bear no registered operator's name.

    Such a file starts with ``# @package _global_`` and holds ``operator`` (the registered ``name`` and its parameters) and ``sigma``.
    """
    found = dict[str, str]()
    for module in _config_packages().values():
        with contextlib.suppress(ImportError):  # a broken package of configurations takes nothing from the others
            group = files(module) / "operator"
            names = [file.name for file in group.iterdir() if file.name.endswith(".yaml")] if group.is_dir() else []
            found |= {name.removesuffix(".yaml"): f"{module}: operator/{name}" for name in names}
    return {name: found[name] for name in sorted(found) if name not in list_plugins("operators")}


@contextlib.contextmanager
def _configs() -> Iterator[ConfigLoader]:
    """Hydra, ready to compose, with what is found in the config packages."""
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra

    _find_plugin_configs()
    GlobalHydra.instance().clear()
    with initialize_config_module("invdiff.configs", version_base="1.3", job_name="invdiff"):
        yield GlobalHydra.instance().config_loader()


def _preset(preset: str, operator: str | None, registered: str | None, method: str, model: str, known: Sequence[str]) -> str | None:
    """The preset for an operator or protocol; for a protocol that has none, its operator's."""
    if preset == "none" or operator is None:
        return None
    name = re.sub(r"[^\w.-]", "_", model)
    for wanted in (operator, registered):
        found = f"{name if preset == 'auto' else preset}_{method}_{wanted}"
        if found in known:
            return found
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


def _config_packages() -> dict[str, str]:
    """Name -> module of the packages of the group ``invdiff.configs``."""
    return {name: origin.rsplit("(", 1)[1].rstrip(")") for name, origin in list_plugins("configs").items()}


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

    if not any(p.__name__ == "PluginConfigs" for p in Plugins.instance().discover(SearchPathPlugin)):
        Plugins.instance().register(PluginConfigs)
