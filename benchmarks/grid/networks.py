"""The networks of a grid: loaded once a process, identified by weights and by how they are read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from invdiff.benchmarks.schema import Dtype, Network, Weights, digest
from invdiff.device import choose_device
from invdiff.itineraries import Straight
from invdiff.loading import python_file
from invdiff.loading.model import is_registered, load_model
from invdiff.network import Denoiser
from invdiff.network.weights import weights_hash


def identity_of(label: str, config: Mapping[str, Any]) -> Network:
    """The identity of a network, with its precision. Where its file is stays out of it: others
    have it elsewhere."""
    name, options, dtype = _named(label, config)
    # This need not be where cells run.
    loaded = model(name, dtype, "cpu", json.dumps(options), config["allow_pickle"])
    return {
        "name": _without_folder(name),
        "options": options,
        **_identity(loaded),
        "dtype": dtype,
        "device": _kind_of_device(config["device"]),
    }


def _named(label: str, config: Mapping[str, Any]) -> tuple[str, dict[str, Any], Dtype]:
    """Name or path, options and dtype of a suite's model."""
    options = dict(config["models"][label] or {})
    return options.pop("name", label), options, options.pop("dtype", config["dtype"])


def _without_folder(name: str) -> str:
    """A path without its folder, anything else as it is."""
    if (written := python_file.parse(name)) is not None:
        return f"{written[0].name}:{written[1]}"
    return Path(name).name if not is_registered(name) and Path(name).exists() else name


def _kind_of_device(wanted: str) -> str:
    """The kind of device that cells run on; which one of several is the launcher's business."""
    if ":" in wanted:
        raise ValueError(
            f"--device {wanted} names one of several devices; give --device "
            f"{wanted.partition(':')[0]}, and CUDA_VISIBLE_DEVICES"
        )
    return choose_device(wanted).type if wanted == "auto" else wanted


@cache
def model(name: str, dtype: str, device: str, options: str, allow_pickle: bool) -> Denoiser:
    """A network, loaded once a process; ``options`` as JSON."""
    loaded = load_model(
        name,
        allow_pickle=allow_pickle,
        dtype=getattr(torch, dtype),
        **json.loads(options),
    )
    return loaded.to(torch.device(device))


def places(labels: Iterable[str], config: Mapping[str, Any]) -> dict[str, str]:
    """Where the networks of a suite are that no package registers, by their names in records."""
    names = [_named(label, config)[0] for label in labels]
    return {
        _without_folder(name): str(Path(name).absolute())
        for name in names
        if _without_folder(name) != name or "/" not in name and not is_registered(name)
    }


def network_of(wanted: Network, models: Mapping[str, str], allow_pickle: bool) -> Denoiser:
    """The network of a cell, where the cell is to run; ``models`` says where those that are not
    registered are."""
    name = models.get(wanted["name"], wanted["name"])
    denoiser = model(
        name,
        wanted["dtype"],
        str(choose_device(wanted["device"])),
        json.dumps(wanted["options"]),
        allow_pickle,
    )
    expected: Weights = {"weights": wanted["weights"], "reading": wanted["reading"]}
    if (found := _identity(denoiser)) != expected:
        raise ValueError(f"{name} is not the network of this cell: {found}, not {expected}")
    return denoiser


def _identity(denoiser: Denoiser) -> Weights:
    """Digests of a network's weights and of how they are read: prediction, levels of the schedule,
    range, autoencoder."""
    levels = [
        [f"{float(value):.6g}" for value in (level.t, level.alpha, level.sigma)]
        for level in Straight()(denoiser.schedule, 8)
    ]
    reading: list[Any] = [denoiser.predicts, levels, denoiser.data_range, denoiser.clip]
    if (encoder := denoiser.autoencoder) is not None:
        reading += [
            encoder.channels,
            encoder.factor,
            encoder.data_range,
            None if encoder.net is None else weights_hash(encoder.net),
        ]
    return {"weights": denoiser.hash, "reading": digest(reading)[:12]}
