"""The configuration of a run: config groups, a preset and overrides composed to plain data."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from invdiff.config.overrides import Override, addressed, override_value, parse
from invdiff.config.packages import cannot_apply, config_files, configs, protocols, refuse_targets
from invdiff.config.presets import find_preset, is_file, left_out, preset_of_file, preset_values
from invdiff.plugins.registry import list_plugins, load

PROMPTS = ("prompt", "negative_prompt", "image_prompt")
KEYS = ("sigma", "gain", "steps", "seed", "num_samples", "batch_size", *PROMPTS)
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
PLAIN = (bool, int, float, str, tuple, list, type(None))
OPEN_GROUPS = ("operator", "guidance", "model", "transition", "itinerary", "upscale", "cond")


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
            any; ``"none"`` takes none; another name, such as ``"paper"``, must exist for them, and
            the path of a YAML file has the values itself, as ``invdiff tune`` writes them.
            Where an override changes a switch (true or false) of the method that the preset states,
            what else it states of the method is left out, with a warning: it was tuned with that.
        overrides: Hydra's ``key=value``. Keys below ``operator.``, ``guidance.``, ``model.``,
            ``transition.``, ``itinerary.``, ``upscale.`` and ``cond.`` may be new: what is made
            from them checks them. In a chain ``guidance.key`` goes to the methods that have it, and
            ``guidance.METHOD.key`` to that one. ``transition=NAME`` is short for
            ``transition.name=NAME``, likewise for the itinerary.

    Raises:
        ValueError: an override that does not parse or names no key, a preset that does not exist, a
            ``_target_``.
    """
    registered = _registered(operator)
    tuned = _of_file(preset, methods) if is_file(preset) else []
    given = [addressed(parse(override), methods) for override in [*tuned, *overrides]]
    for override in given:
        _check_key(override, registered, methods)
    for_methods = [o for o in given if o.path[0] == "guidance"]
    rest = [o for o in given if o.path[0] != "guidance"]
    guidance, config = [], dict[str, Any]()
    for method in methods:
        known = inspect.signature(load("guidance", method)).parameters if methods[1:] else None
        own = [
            o
            for o in for_methods
            if o.method == method or (o.method is None and (known is None or o.parameter in known))
        ]
        config = _compose(operator, registered, method, model, preset, rest + own)
        guidance.append(config["guidance"])
    for override in for_methods:
        if override.method is None and not any(override.parameter in g for g in guidance):
            raise ValueError(
                f"none of the methods {', '.join(methods)} has the parameter of {override!r}"
            )
    return config | {"guidance": guidance}


def _of_file(preset: str, methods: Sequence[str]) -> list[str]:
    """The overrides that a preset's file stands for."""
    values = preset_of_file(preset)
    guidance = dict(values["guidance"])
    name = guidance.pop("name")
    if name != methods[-1]:
        raise ValueError(f"{preset} is for the method {name}, but this run has {methods[-1]}")
    steps = [f"steps={override_value(values['steps'])}"] if "steps" in values else []
    return steps + [f"guidance.{name}.{k}={override_value(v)}" for k, v in guidance.items()]


def _check_key(override: Override, operator: str | None, methods: Sequence[str]) -> None:
    """Refuses keys that a run does not have, and those that have a flag."""
    refused = MEASURING if operator is None else ()
    first = override.path[0]
    if first in refused or first not in (*KEYS, *OPEN_GROUPS, *FLAGS):
        keys, groups = (
            ", ".join(k for k in known if k not in refused) for known in (KEYS, OPEN_GROUPS)
        )
        raise ValueError(
            f"unknown key in {override!r}{_whose(override, operator, methods)}; "
            f"known: {keys}, and what stands below {groups}"
        )
    if override.key in FLAGS:
        raise ValueError(f"{override!r} cannot be overridden; use {FLAGS[override.key]}")
    if override.sign == "~" and len(override.path) == 1:
        raise ValueError(f"{override!r} would delete what every run has; give it another value")


def _whose(override: Override, operator: str | None, methods: Sequence[str]) -> str:
    """The override with the group that it leaves out, where one of the run has the parameter."""
    for group, kind, names in (
        ("guidance", "guidance", methods),
        ("operator", "operators", [operator]),
    ):
        for name in names:
            if name is None or name not in list_plugins(kind):
                continue
            if override.key in inspect.signature(load(kind, name)).parameters:
                flag = FLAGS.get(f"{group}.{override.key}")
                return f"; the parameter of {name} is set by {flag or f'{group}.{override.text}'}"
    return ""


def _registered(operator: str | None) -> str | None:
    """The registered name of an operator or protocol."""
    if operator not in protocols():
        return operator
    from hydra import compose as hydra_compose

    with configs():
        return hydra_compose("config", [f"+operator={operator}"])["operator"]["name"]


def _compose(
    operator: str | None,
    registered: str | None,
    method: str,
    model: str,
    preset: str,
    overrides: Sequence[Override],
) -> dict[str, Any]:
    from hydra import compose as hydra_compose
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    chosen: list[str] = []
    for group, name in (("operator", registered), ("guidance", method)):
        if name is None:
            continue
        if name in config_files(group):
            chosen.append(f"+{group}={name}")  # a plug-in's
        else:
            chosen.append(f"++{group}.name={name}")
    general = list(chosen)
    found = find_preset(preset, operator, registered, method, model)
    if found is not None:
        chosen.append(f"+preset={found}")
    if registered != operator:
        chosen.append(
            f"+operator@_global_={operator}"
        )  # after the preset: a protocol is kept, whatever was tuned on
    with configs():
        try:
            config = hydra_compose(
                "config" if operator is not None else "generate", [*chosen, *map(_open, overrides)]
            )
        except (HydraException, OmegaConfBaseException) as error:
            raise cannot_apply([o.text for o in overrides], error) from error
        plain: Any = OmegaConf.to_container(config, resolve=True)
        plain["guidance"] = _filled("guidance", plain["guidance"])
        if found is not None:
            stated = preset_values(found).get("guidance") or {}
            if left := left_out(found, stated, plain["guidance"], overrides):
                own = {k: v for k, v in plain["guidance"].items() if k not in left}
                begun: Any = OmegaConf.to_container(hydra_compose("config", general)["guidance"])
                plain["guidance"] = _filled("guidance", begun | own)
    refuse_targets(plain)
    plain["cond"] = plain["cond"] or {}
    if not isinstance(plain["cond"], dict):
        raise ValueError(f"a condition has a name: cond.NAME={plain['cond']}")
    plain["model"]["name"] = model
    plain["preset"] = preset if is_file(preset) else found
    if operator is not None:
        plain["operator"] = _filled("operators", plain["operator"])
        plain["protocol"] = operator if registered != operator else None
    return plain


def _filled(kind: str, node: dict[str, Any]) -> dict[str, Any]:
    """A node with the defaults of the parameters that it does not state, where they are plain
    data."""
    general = {"name": node["name"]}
    for name, parameter in inspect.signature(load(kind, node["name"])).parameters.items():
        default = parameter.default
        if name not in ("shape", "state") and isinstance(default, PLAIN):
            general[name] = list(default) if isinstance(default, tuple) else default
    return general | node


def _open(override: Override) -> str:
    """Lets keys of open groups be new (Hydra's ``++``)."""
    opened = override.path[0] in OPEN_GROUPS and len(override.path) > 1
    return override.hydra("++" if opened else None)
