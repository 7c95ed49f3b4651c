"""The networks inside a file of parameters, found by the names of their parameters.

A file is searched for networks wherever they lie (``state_dict``, ``model``, ``ema``, prefixes such
as ``module.``), and averaged weights are preferred. Every parameter must be there and none may be
left over: nothing loads half. A kind of network is recognised by its anchor, the name of a
parameter that all of its networks have and no others.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from invdiff import schedules
from invdiff.loading.checkpoint_file import read
from invdiff.loading.scheduler import overridden
from invdiff.loading.source import Source
from invdiff.loading.state_dict import check_finite, dtypes, listed
from invdiff.network import Denoiser
from invdiff.plugins.registry import list_plugins

# Constants of the noise schedule that some packages store beside the network.
_CONSTANTS = re.compile(
    r"(^|\.)(betas|(sqrt_|log_)?(one_minus_|1m_|recip_|recipm1_)?alphas_cumprod(_prev)?|posterior_\w+|p2_loss_weight|loss_weight|lvlb_weights|logvar)$"
)
_NOT_WEIGHTS = (
    "optimizer",
    "optim",
    "opt",
    "optimizer_state",
    "optimizer_states",
    "lr_schedulers",
    "callbacks",
    "loops",
    "scaler",
)
_AVERAGES = {"ema", "average", "averaged", "shadow", "swa"}
_UNTRAINED = re.compile(r"(^|\.)(sigmas|all_modules\.0\.W|map_noise\.freqs|resample_filter)$")


@dataclass(frozen=True)
class Found:
    """One network of a file: where it lies, its parameters without that prefix, whether they are an
    average, the betas that lie beside it, and what lies beside it and belongs to nothing."""

    name: str
    tensors: dict[str, Tensor]
    averaged: bool
    betas: Tensor | None = None
    left: tuple[str, ...] = field(default=())


def holds(source: Source, anchor: str) -> bool:
    """Whether a source is a file with a network of that anchor.

    Raises:
        ValueError: it is a file of parameters of something else.
    """
    held = source.once(read)
    if held is None:
        return False
    names = [key for _, tensors in _flat(held, "") for key in tensors]
    if any(name == anchor or name.endswith(f".{anchor}") for name in names):
        return True
    raise ValueError(f"{source.file}: {_unknown(held)}")


def network(source: Source, anchor: str, weights: str | None) -> Found:
    """The network of that anchor that is meant, complete and finite: the one named ``weights``, the
    only one, or the only average.

    Raises:
        ValueError: there are several, or none of that name; parameters that belong to none.
    """
    path, held = source.file, source.once(read)
    assert path is not None
    networks = list(_networks(held, anchor))
    found = _chosen(path, networks, weights)
    if found.left:
        latent = any(k.startswith("first_stage_model") for k in found.left)
        hint = (
            "; it is a latent diffusion model with its autoencoder, which is read beside a "
            "diffusers folder of its configurations: that folder is the model, and this file "
            "its single_file= (model.single_file=FILE)"
            if latent
            else ""
        )
        raise ValueError(
            f"{path} holds parameters that belong to no network known here{hint}: "
            f"{listed(found.left)}"
        )
    try:
        check_finite(found.tensors)
    except ValueError as error:
        others = [n.name for n in networks if _is_finite(n.tensors)]
        hint = f"; those of weights={others[0]!r} are finite" if others else ""
        raise ValueError(f"{path}, {found.name or 'its network'}: {error}{hint}") from error
    return found


def denoiser(
    source: Source,
    kind: str,
    found: Found,
    net: nn.Module,
    options: Mapping[str, Any],
    given: Mapping[str, Any],
) -> Denoiser:
    """The Denoiser of a network in a file, with the recognised ``options`` and those ``given`` by
    the user on top."""
    path = source.file
    assert path is not None
    options = dict(options)
    if found.betas is not None and options["predicts"] == "eps":
        options["schedule"] = schedules.from_betas(found.betas)
    made = Denoiser(net, **({"name": path.stem} | overridden(options, given)))
    made.source = {
        "kind": f"{kind} checkpoint",
        "path": str(path),
        "weights": found.name or "all",
        "storage": dtypes(found.tensors),
    }
    return made


def understood(source: Source, read: Callable[[], Any]) -> Any:
    """The result of ``read``; errors name the file and the parameter."""
    try:
        return read()
    except KeyError as error:
        raise ValueError(
            f"{source} lacks parameters without which its network cannot be built; missing: "
            f"{error.args[0]}. Nothing was loaded"
        ) from error
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _networks(held: Any, anchor: str) -> Iterator[Found]:
    """Every network of an anchor, wherever it lies."""
    plain = [one for name, tensors in _flat(held, "") for one in _within(name, tensors, anchor)]
    yield from plain
    for where, shadow in _shadows(held, ""):
        for one in plain:
            names = [n for n in one.tensors if not _UNTRAINED.search(n)]
            shapes = [one.tensors[n].shape for n in names]
            if not one.averaged and shapes == [s.shape for s in shadow]:
                averaged = one.tensors | dict(zip(names, shadow, strict=True))
                yield replace(one, name=where, tensors=averaged, averaged=True)


def _flat(held: Any, name: str, depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """(where, tensors by name) of every dictionary that holds tensors."""
    if isinstance(held, nn.Module):
        held = held.state_dict()
    if not isinstance(held, Mapping) or depth > 4:
        return
    tensors = {k: v for k, v in held.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if tensors:
        yield name, tensors
    for key, value in held.items():
        if key not in _NOT_WEIGHTS:
            yield from _flat(value, f"{name}{key}.", depth + 1)


def _shadows(held: Any, name: str, depth: int = 0) -> Iterator[tuple[str, list[Tensor]]]:
    """Averages kept as a list in the order of the parameters (torch_ema, score_sde)."""
    if not isinstance(held, Mapping) or depth > 4:
        return
    for key, value in held.items():
        if key == "shadow_params" and isinstance(value, list):
            yield name.rstrip("."), value
        elif key not in _NOT_WEIGHTS:
            yield from _shadows(value, f"{name}{key}.", depth + 1)


def _within(name: str, tensors: Mapping[str, Tensor], anchor: str) -> Iterator[Found]:
    """The networks of one flat dictionary, told apart by their prefixes."""
    prefixes = [
        key.removesuffix(anchor) for key in tensors if key == anchor or key.endswith(f".{anchor}")
    ]
    parts: dict[str, dict[str, Tensor]] = {prefix: {} for prefix in prefixes}
    rest: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if _CONSTANTS.search(key):
            continue
        prefix = max((p for p in prefixes if key.startswith(p)), key=len, default=None)
        if prefix is None:
            rest[key] = tensor
        else:
            parts[prefix][key.removeprefix(prefix)] = tensor
    betas = next(
        (v for k, v in tensors.items() if k.split(".")[-1] == "betas" and v.ndim == 1), None
    )
    counted = "n_averaged" in tensors  # torch's AveragedModel
    squeezed = {p: _without_dots(p, part, rest) for p, part in parts.items()}
    left = tuple(k for k, v in rest.items() if v.numel() > 1)
    for prefix in prefixes:
        where = f"{name}{prefix}".rstrip(".")
        yield Found(where, parts[prefix], counted or _is_average(where), betas, left)
        if average := squeezed[prefix]:
            yield Found(f"{name}model_ema", average, True, betas, left)


def _without_dots(
    prefix: str, part: Mapping[str, Tensor], rest: dict[str, Tensor]
) -> dict[str, Tensor] | None:
    """The average that latent-diffusion's trainer keeps of the network at ``prefix``, its names
    written without dots."""
    names = {k: "model_ema." + (prefix.removeprefix("model.") + k).replace(".", "") for k in part}
    if not all(n in rest for n in names.values()):
        return None
    return {k: rest.pop(n) for k, n in names.items()}


def _is_average(where: str) -> bool:
    words = set(re.split(r"[^a-z]+", where.lower()))
    return bool(words & _AVERAGES) and "online" not in words


def _is_finite(tensors: Mapping[str, Tensor]) -> bool:
    try:
        check_finite(tensors)
    except ValueError:
        return False
    return True


def _chosen(path: Path, networks: list[Found], weights: str | None) -> Found:
    """The network that is meant."""
    names = ", ".join(repr(n.name) for n in networks)
    if weights is not None:
        picked = [n for n in networks if n.name == weights]
        if len(picked) != 1:
            raise ValueError(f"{path} has no network {weights!r}; it holds {names}")
        return picked[0]
    averaged = [n for n in networks if n.averaged]
    picked = averaged if averaged and len(networks) > 1 else networks
    if len(picked) > 1:
        raise ValueError(
            f"{path} holds several networks: {names}; choose one: weights={picked[0].name!r}"
        )
    if len(networks) > 1:
        other = next(n.name for n in networks if not n.averaged)
        warnings.warn(
            f"{path.name}: the averaged weights {picked[0].name!r} are used; "
            f"weights={other!r} takes the others",
            stacklevel=2,
        )
    return picked[0]


def _unknown(held: Any) -> str:
    """Why no network is found in what a file holds."""
    names = [f"{name}{key}" for name, tensors in _flat(held, "") for key in tensors]
    top = set(held) if isinstance(held, Mapping) else set()
    if "param_groups" in top or (not names and top & set(_NOT_WEIGHTS)):
        return (
            "it holds the state of an optimiser and no network; training code keeps the network's "
            "weights under another key or in another file"
        )
    if not names:
        return "the file holds no tensors by name, so no network"
    first = f"its parameters begin with {listed(names)}"
    if any("down_blocks." in n or "transformer_blocks." in n for n in names):
        return (
            "these are parameters of a diffusers model, whose config.json says what it is: "
            f"give the folder that holds both; {first}"
        )
    return (
        f"no network known here: {first}. The installed loaders are "
        f"{', '.join(list_plugins('loaders'))}. Any other network works as a callable: "
        "invdiff.Denoiser(net, predicts=..., schedule=..., data_range=...)"
    )
