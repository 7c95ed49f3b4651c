"""Hydra configuration: config groups, presets and ``key=value`` overrides composed to plain data.

Nothing in a configuration names code to be run: objects are made through the registries only.
"""

from __future__ import annotations

import contextlib
import inspect
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invdiff.plugins.registry import (
    UnknownNameError,
    did_you_mean,
    list_plugins,
    load,
    value_of,
)

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader

    from invdiff.problem import Operator
    from invdiff.sampling import Method, Transition

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
OPEN_TABLES = ("operators", "methods", "baselines", "models")  # of suites: label -> parameters


def compose(
    operator: str | None,
    methods: Sequence[str],
    model: str,
    preset: str = "auto",
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """The configuration of a run.

    Args:
        operator: a registered name, whose YAML in the config group ``operator`` is optional, or one
            of :func:`protocols`. None where nothing is measured: the configuration then starts from
            ``generate.yaml`` instead of ``config.yaml``.
        methods: registered names, the first nearest to the network; likewise in the group
            ``guidance``. The result's ``guidance`` has one entry for each; everything else comes
            from the preset of the last, nearest to the data.
        model: a registered name or a folder.
        preset: ``"auto"`` takes the values tuned for this model, operator and method if there are
            any; ``"none"`` takes none; any other name, such as ``"paper"``, must exist for them.
            Where an override changes a switch (true or false) of the method that the preset states,
            what else it states of the method is left out, with a warning: it was tuned with that.
        overrides: Hydra's ``key=value``. Keys below ``operator.``, ``guidance.``, ``model.``,
            ``transition.``, ``itinerary.`` and ``upscale.`` may be new: the object made from them
            checks them. In a chain ``guidance.key`` goes to the methods that have it, and
            ``guidance.METHOD.key`` to that one. ``transition=NAME`` is short for
            ``transition.name=NAME``, likewise for the itinerary.

    Raises:
        ValueError: an override that does not parse or names no key, a preset that does not exist, a
            ``_target_``.
    """
    refused = MEASURING if operator is None else ()
    registered = _registered(operator)
    said = [_addressed(_named(override), methods) for override in overrides]
    for _, override in said:
        key, equals, _ = override.partition("=")
        if not equals or not key:
            hint = "; for an image use --input" if Path(override).exists() else ""
            raise ValueError(
                f"{override!r} is not an override; write key=value, e.g. guidance.zeta=0.5{hint}"
            )
        first = key.split(".")[0]
        if first in refused or first not in (*KEYS, *OPEN_GROUPS, *FLAGS):
            keys, groups = (
                ", ".join(k for k in known if k not in refused) for known in (KEYS, OPEN_GROUPS)
            )
            raise ValueError(
                f"unknown key in {override!r}{_whose(override, registered, methods)}; "
                f"known: {keys}, and what stands below {groups}"
            )
        if key.lstrip("+~") in FLAGS:
            raise ValueError(f"{override!r} cannot be overridden; use {FLAGS[key.lstrip('+~')]}")
    mine = [(to, o) for to, o in said if o.startswith("guidance.")]
    rest = [o for to, o in said if (to, o) not in mine]
    guidance, config = [], dict[str, Any]()
    for method in methods:
        allowed = (
            inspect.signature(load("guidance", method)).parameters if len(methods) > 1 else None
        )
        own = [
            o
            for to, o in mine
            if to == method or (to is None and (allowed is None or _parameter(o) in allowed))
        ]
        config = _compose(operator, registered, method, model, preset, rest + own)
        guidance.append(config["guidance"])
    if left := [
        o for to, o in mine if to is None and not any(_parameter(o) in g for g in guidance)
    ]:
        raise ValueError(
            f"none of the methods {', '.join(methods)} has the parameter of {left[0]!r}"
        )
    return config | {"guidance": guidance}


def _named(override: str) -> str:
    """``transition=heun`` as ``transition.name=heun``: parameters may then stand beside the
    name."""
    key, _, value = override.partition("=")
    return (
        f"{key}.name={value}"
        if key in ("transition", "itinerary") and value.isidentifier() and value != "null"
        else override
    )


def _addressed(override: str, methods: Sequence[str]) -> tuple[str | None, str]:
    """The method that an override names, and what it says to it: ``guidance.dps.zeta=1`` ->
    ``("dps", "guidance.zeta=1")``."""
    key, equals, value = override.partition("=")
    group, _, inner = key.partition(".")
    method, _, parameter = inner.partition(".")
    if group != "guidance" or not parameter or method not in list_plugins("guidance"):
        return None, override
    if method not in methods:
        raise ValueError(
            f"{override!r} is for the method {method}, but this run has {', '.join(methods)}"
        )
    return method, f"guidance.{parameter}{equals}{value}"


def _parameter(override: str) -> str:
    return override.partition("=")[0].removeprefix("guidance.")


def _whose(override: str, operator: str | None, methods: Sequence[str]) -> str:
    """What to write for an override that leaves out whose parameter it sets."""
    key = override.partition("=")[0]
    for group, kind, names in (
        ("guidance", "guidance", methods),
        ("operator", "operators", [operator]),
    ):
        for name in names:
            if name in list_plugins(kind) and key in inspect.signature(load(kind, name)).parameters:
                return (
                    f"; the parameter of {name} is set by "
                    f"{FLAGS.get(f'{group}.{key}', f'{group}.{override}')}"
                )
    return ""


def override_value(value: Any) -> str:
    """A value in the grammar of Hydra's overrides."""
    match value:
        case dict():
            return "{" + ",".join(f"{k}:{override_value(v)}" for k, v in value.items()) + "}"
        case list() | tuple():
            return "[" + ",".join(map(override_value, value)) + "]"
        case str():
            escaped = value.replace("\\", "\\\\").replace("'", "\\'")
            return f"'{escaped}'"
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    )


def build_operator(config: dict[str, Any]) -> Operator:
    """The operator that a configuration describes."""
    from invdiff.problem import make_operator

    return make_operator(config["operator"]["name"], **_parameters(config["operator"]))


def build_method(config: dict[str, Any], default: Transition | None = None) -> Method:
    """The method that a configuration describes, with every piece filled in; ``default`` where
    nobody chooses the transition."""
    from invdiff.sampling import make_method
    from invdiff.solving.plan import complete

    chain = [make_method(g["name"], **_parameters(g)) for g in config["guidance"]]
    transition, itinerary = (make_piece(config[kind], kind) for kind in ("transition", "itinerary"))
    if len(chain) > 1 and (
        transition or itinerary
    ):  # what is chosen here settles what the chain disagrees about
        chain = [
            replace(
                m,
                transition=m.around(transition) if transition else m.transition,
                itinerary=None if itinerary else m.itinerary,
            )
            for m in chain
        ]
    made = make_method(chain) if len(chain) > 1 else chain[0]
    if made.transition is None and transition is None:
        transition = default
    return complete(made, transition, itinerary).method


def _parameters(node: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in node.items() if k != "name"}


def make_piece(node: dict[str, Any] | str | None, kind: str) -> Any:
    """A ``"transition"`` or ``"itinerary"`` from its name, or from a mapping of its name and
    parameters; None stays None."""
    from invdiff.sampling import Itinerary, Transition
    from invdiff.sampling import make_piece as made

    if node is None:
        return None
    if isinstance(node, dict) and node.get("name") is None:
        group = {"transition": "transitions", "itinerary": "itineraries"}[kind]
        raise ValueError(
            f"say which {kind} is meant: {kind}.name=NAME with one of "
            f"{', '.join(list_plugins(group))}"
        )
    return made(node, Transition) if kind == "transition" else made(node, Itinerary)


def compose_suite(name: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The grid of a benchmark, ``configs/suite/NAME.yaml``, with Hydra's ``key=value`` applied;
    plug-ins' config packages have theirs.

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
        _check_suite_keys(
            name, OmegaConf.to_container(hydra_compose(f"suite/{name}")["suite"]), overrides
        )
        try:
            config = hydra_compose(f"suite/{name}", [_in_suite(override) for override in overrides])
        except (HydraException, OmegaConfBaseException) as error:
            raise _cannot_apply(overrides, error) from error
    if missing := [key.removeprefix("suite.") for key in OmegaConf.missing_keys(config)]:
        raise ValueError(f"the suite {name!r} needs {missing[0]}; give it: {missing[0]}=VALUE")
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    _refuse_targets(plain)
    return plain["suite"]


def _in_suite(override: str) -> str:
    """An override of a suite as Hydra takes it; parameters of what a table labels may be new
    (Hydra's ``++``)."""
    key = override.lstrip("+~")
    sign = override[: len(override) - len(key)]
    path = key.partition("=")[0].split(".")
    inside = any(part in OPEN_TABLES for part in path[:-2])
    return f"{sign or ('++' if inside else '')}suite.{key}"


def _check_suite_keys(suite: str, config: Any, overrides: Sequence[str]) -> None:
    """Refuses keys that a suite does not have, with the nearest and those that are there."""
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not key.strip("+~") or not (equals or key.startswith("~")):
            raise ValueError(f"{override!r} is not an override; write key=value, e.g. steps=50")
        node, path = config, key.lstrip("~").split(".")
        for depth, part in enumerate(path if not key.startswith("+") else ()):
            if not isinstance(node, dict) or (depth > 1 and path[depth - 2] in OPEN_TABLES):
                break  # what a method or an operator takes is its own to check
            if part not in node:
                where = (
                    f"{'.'.join(path[:depth])} of the suite {suite!r}"
                    if depth
                    else f"the suite {suite!r}"
                )
                raise ValueError(
                    f"{override!r}: {where} has no {part!r}.{did_you_mean(part, node)} It "
                    f"has: {', '.join(node)}."
                )
            node = node[part]


def _cannot_apply(overrides: Sequence[str], error: Exception) -> ValueError:
    first = str(error.__cause__ or error).strip().splitlines()[0]
    return ValueError(f"cannot apply the overrides {' '.join(overrides) or '(none)'}: {first}")


def _registered(operator: str | None) -> str | None:
    """The registered name of an operator or protocol."""
    if operator not in protocols():
        return operator
    from hydra import compose as hydra_compose

    with _configs():
        return hydra_compose("config", [f"operator={operator}"])["operator"]["name"]


def preset_values(name: str) -> dict[str, Any]:
    """What a preset sets, and nothing else."""
    from hydra import compose as hydra_compose
    from omegaconf import OmegaConf

    with _configs():
        return OmegaConf.to_container(hydra_compose(f"preset/{name}"))  # type: ignore[return-value]


def _compose(
    operator: str | None,
    registered: str | None,
    method: str,
    model: str,
    preset: str,
    overrides: Sequence[str],
) -> dict[str, Any]:
    from hydra import compose as hydra_compose
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    with _configs() as loader:
        chosen: list[str] = []
        for group, name in (("operator", registered), ("guidance", method)):
            if name is None:
                continue
            if name in loader.get_group_options(group):
                chosen.append(f"{group}={name}")
            else:
                chosen += [f"~{group}", f"++{group}.name={name}"]
        general = list(chosen)
        found = _preset(
            preset, operator, registered, method, model, loader.get_group_options("preset")
        )
        if found is not None:
            chosen.append(f"+preset={found}")
        if registered != operator:
            chosen.append(
                f"+operator@_global_={operator}"
            )  # after the preset: a protocol is kept, whatever was tuned on
        try:
            config = hydra_compose(
                "config" if operator is not None else "generate", [*chosen, *map(_open, overrides)]
            )
        except (HydraException, OmegaConfBaseException) as error:
            raise _cannot_apply(overrides, error) from error
        plain = OmegaConf.to_container(config, resolve=True)
        assert isinstance(plain, dict)
        if found is not None:
            stated = hydra_compose(f"preset/{found}").get("guidance") or {}
            if left := _left_out(found, stated, plain["guidance"], overrides):
                plain["guidance"] = dict(hydra_compose("config", general)["guidance"]) | {
                    key: value for key, value in plain["guidance"].items() if key not in left
                }
    _refuse_targets(plain)
    plain["model"]["name"] = model
    plain["preset"] = found
    if operator is not None:
        plain["protocol"] = operator if registered != operator else None
    return plain  # type: ignore[return-value]


def _left_out(
    preset: str, stated: Mapping[str, Any], guidance: Mapping[str, Any], overrides: Sequence[str]
) -> list[str]:
    """What a preset says of a method that does not count, since an override changed a switch (true
    or false) that it was tuned with."""
    changed = [
        key for key, value in stated.items() if isinstance(value, bool) and guidance[key] != value
    ]
    given = [_parameter(override) for override in overrides]
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
def _configs() -> Iterator[ConfigLoader]:
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


def _preset(
    preset: str,
    operator: str | None,
    registered: str | None,
    method: str,
    model: str,
    known: Sequence[str],
) -> str | None:
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


def _open(override: str) -> str:
    """Lets keys of open groups be new (Hydra's ``++``)."""
    return (
        f"++{override}"
        if override.split(".")[0] in OPEN_GROUPS and "." in override.split("=")[0]
        else override
    )


def _refuse_targets(node: Any) -> None:
    if isinstance(node, dict):
        for key, value in node.items():
            if str(key).startswith("_target"):
                raise ValueError(
                    f"{key!r} is not allowed in a configuration: objects are made from "
                    "registered names only"
                )
            _refuse_targets(value)
    elif isinstance(node, list):
        for value in node:
            _refuse_targets(value)


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
