"""Files of measurements: tensors, and as JSON the operator, its parameters, sigma and a hash."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invdiff.files import write_atomically
from invdiff.plugins.registry import name_of
from invdiff.problem.make import remade
from invdiff.problem.operator import Operator

FORMAT = 1
WIDE = " complex128"
"""Ends the name of a tensor that is stored as pairs of real numbers, since the format has no type
for it."""


def describe(operator: Operator, sigma: Tensor | float) -> dict[str, Any]:
    """Operator, parameters, image shape and sigma (None where it is a tensor) as plain data.

    Raises:
        ValueError: the operator is not registered, so it cannot be recorded by name.
    """
    assert operator.shape is not None
    made_by = {"versions": operator.versions} if operator.versions else {}
    return made_by | {
        "format": FORMAT,
        "operator": name_of("operators", operator),
        "parameters": _plain(operator.parameters),
        "image_shape": list(operator.shape),
        "sigma": sigma if isinstance(sigma, float) else None,
    }


def tensors_of(y: Tensor, operator: Operator, sigma: Tensor | float) -> dict[str, Tensor]:
    """Every tensor of a measurement, on the CPU, by its name in a file."""
    tensors = {"y": y} | {f"state.{k}": v for k, v in operator.state.items()}
    tensors |= _tensors_in("parameter", operator.parameters)
    if isinstance(sigma, Tensor):
        tensors["sigma"] = sigma
    # Copies: safetensors refuses tensors that share memory, as a state may share its parameter's.
    return {
        k: v.detach().cpu().resolve_conj().clone(memory_format=torch.contiguous_format)
        for k, v in tensors.items()
    }


def digest(tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> str:
    """SHA-256 of tensors and a description."""
    made = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        made.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        made.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    made.update(json.dumps(description, sort_keys=True).encode())
    return made.hexdigest()


def write(path: Path, y: Tensor, operator: Operator, sigma: Tensor | float) -> None:
    """Writes one ``.safetensors`` file."""
    from safetensors.torch import save

    tensors, description = tensors_of(y, operator, sigma), describe(operator, sigma)
    metadata = {"invdiff": json.dumps(description | {"hash": digest(tensors, description)})}
    stored = {
        f"{k}{WIDE}" if v.dtype == torch.complex128 else k: (
            torch.view_as_real(v).contiguous() if v.dtype == torch.complex128 else v
        )
        for k, v in tensors.items()
    }
    write_atomically(path, save(stored, metadata))


def read(path: Path) -> tuple[Tensor, Operator, Tensor | float]:
    """y, the bound operator and sigma that :func:`write` wrote.

    Raises:
        ValueError: it is no such file, is newer than this package, or does not match its hash.
    """
    tensors, description = _opened(path)
    recorded = description.pop("hash")
    if digest(tensors, description) != recorded:
        raise ValueError(f"{path} is damaged or was edited: its content does not match its hash")
    if description["format"] > FORMAT:
        raise ValueError(
            f"{path} was written by a newer invdiff (format {description['format']}); "
            f"this one reads up to {FORMAT}"
        )
    _compare(path, description.get("versions", {}))
    parameters, sigma = description["parameters"], description["sigma"]
    state = {k.removeprefix("state."): v for k, v in tensors.items() if k.startswith("state.")}
    try:
        for key, tensor in tensors.items():
            kind, *place = key.split(".")
            if kind == "parameter":
                _place(parameters, place, tensor)
        shape = tuple(int(n) for n in description["image_shape"])
        operator = remade(description["operator"], parameters, shape, state)
        return tensors["y"], operator, tensors["sigma"] if sigma is None else sigma
    except (TypeError, KeyError, IndexError, AttributeError) as error:
        raise ValueError(
            f"{path} does not describe an operator of this installation: "
            f"{type(error).__name__} {error}"
        ) from error


def _opened(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file and its description, which has every key."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = (file.metadata() or {}).get("invdiff")
            stored = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read as a measurement: {error}") from error
    # Made anew, not viewed: the file's memory need not be aligned as complex numbers have to be.
    tensors = {
        k.removesuffix(WIDE): torch.complex(v[..., 0], v[..., 1]) if k.endswith(WIDE) else v
        for k, v in stored.items()
    }
    if metadata is None:
        raise ValueError(f"{path} is a safetensors file, but not a measurement saved by invdiff")
    try:
        described = json.loads(metadata)
    except (ValueError, RecursionError):
        described = None
    kinds: dict[str, type | tuple[type, ...]] = {
        "format": int,
        "operator": str,
        "parameters": dict,
        "image_shape": list,
        "sigma": (float, int, type(None)),
        "hash": str,
    }
    if not isinstance(described, dict):
        raise ValueError(f"{path} is damaged: its description is no JSON object")
    wrong = [k for k, kind in kinds.items() if not isinstance(described.get(k, ...), kind)]
    if wrong or "y" not in tensors:
        raise ValueError(
            f"{path} is no whole measurement: its description lacks {', '.join(wrong) or 'y'}"
        )
    return tensors, described


def _compare(path: Path, versions: Mapping[str, str]) -> None:
    """Warns where an operator was made by another version of a package."""
    for package, recorded in versions.items():
        try:
            here = version(package)
        except PackageNotFoundError as error:
            raise ValueError(
                f"{path} was measured by {package} {recorded}, which is not installed here"
            ) from error
        if here != recorded:
            warnings.warn(
                f"{path} was measured by {package} {recorded}, here is {here}: its operator may "
                "not be the same",
                stacklevel=4,
            )


def _plain(value: Any) -> Any:
    """A parameter as plain data. Operators among it become mappings of their name and parameters;
    tensors are left out."""
    if isinstance(value, Operator):
        return {"name": name_of("operators", value), **_plain(value.parameters)}
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items() if not isinstance(v, Tensor)}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def _tensors_in(name: str, value: Any) -> dict[str, Tensor]:
    """The tensors that :func:`_plain` leaves out, each under the path to its place."""
    if isinstance(value, Tensor):
        return {name: value}
    inner = (
        value.parameters
        if isinstance(value, Operator)
        else dict(enumerate(value))
        if isinstance(value, list | tuple)
        else value
    )
    if not isinstance(inner, Mapping):
        return {}
    return {
        k: v for key, item in inner.items() for k, v in _tensors_in(f"{name}.{key}", item).items()
    }


def _place(parameters: Any, place: Sequence[str], tensor: Tensor) -> None:
    """Puts a tensor back into what :func:`_plain` made."""
    *outer, last = place
    for key in outer:
        parameters = parameters[int(key)] if isinstance(parameters, list) else parameters[key]
    parameters[last] = tensor
