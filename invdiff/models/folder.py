"""diffusers folders with their scheduler's configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from invdiff import schedules
from invdiff.classifier import NoisyClassifier
from invdiff.denoiser import Denoiser
from invdiff.schedules import Discrete

PREDICTION_TYPES = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
BETA_SCHEDULES = {"linear": schedules.linear, "scaled_linear": schedules.scaled_linear, "sigmoid": schedules.sigmoid}


def load_folder(folder: str | Path, **options: Any) -> Denoiser:
    """A Denoiser from a diffusers folder: a pipeline (``model_index.json``, ``unet/``, ``scheduler/``) or a lone
    ``UNet2DModel`` with its ``scheduler_config.json`` beside ``config.json``.

    Args:
        folder: local path; nothing is downloaded.
        options: of :class:`~invdiff.denoiser.Denoiser`, on top of what the checkpoint says.

    Raises:
        ValueError: what is missing or not understood, with what is.
    """
    from diffusers import UNet2DModel

    folder = Path(folder)
    network = folder / "unet" if (folder / "unet").is_dir() else folder
    scheduler = folder / "scheduler" if (folder / "scheduler").is_dir() else folder
    config, noise = _read(network / "config.json"), _read(scheduler / "scheduler_config.json")
    if config.get("_class_name") != "UNet2DModel":
        raise ValueError(f"{network} holds a {config.get('_class_name')}; diffusers' UNet2DModel is what is read from a folder")
    try:
        # fp16 storage is for size; the network runs in float32 unless a dtype is asked for.
        net = UNet2DModel.from_pretrained(network, torch_dtype=torch.float32, local_files_only=True, low_cpu_mem_usage=False)
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"the weights in {network} cannot be read: {error}") from error
    shown, made = int(config["in_channels"]), int(config["out_channels"])
    learned_variance = str(noise.get("variance_type", "")).startswith("learned") or made == 2 * shown
    channels = made // 2 if learned_variance else made
    if shown < channels:
        raise ValueError(f"{network} takes {shown} channels and returns {made}: it is not a denoiser")
    sample_size = config.get("sample_size")
    labels, null = config.get("num_class_embeds"), config.get("_null_label")  # diffusers leaves keys with an underscore alone
    found: dict[str, Any] = {
        "predicts": _prediction_type(noise),
        "schedule": schedule_of(noise),
        "data_range": (-1.0, 1.0),
        "learned_variance": learned_variance,
        "num_classes": labels - 1 if labels is not None and null == labels - 1 else labels,
        "null_label": False if null is None else null,
        "cond_channels": shown - channels or None,
        "classifier": load_classifier(folder / "classifier") if (folder / "classifier").is_dir() else None,
        "multiple": 2 ** (len(config["block_out_channels"]) - 1),
        "channels": channels,
        "image_size": sample_size if isinstance(sample_size, int) else None,
        "name": folder.name,
    }
    return Denoiser(_Diffusers(net), **(found | options))


def load_classifier(folder: str | Path) -> NoisyClassifier:
    """The noise-aware classifier of a folder: a ``TimeClassifier`` of this package with its ``scheduler_config.json``."""
    from invdiff.zoo.classifier import TimeClassifier

    folder = Path(folder)
    config, noise = _read(folder / "config.json"), _read(folder / "scheduler_config.json")
    if config.get("_class_name") != TimeClassifier.__name__:
        raise ValueError(
            f"{folder} holds a {config.get('_class_name')}, not a {TimeClassifier.__name__}; pass your own as a callable, classifier=net"
        )
    try:
        net = TimeClassifier.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True, low_cpu_mem_usage=False)
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"the weights in {folder} cannot be read: {error}") from error
    return NoisyClassifier(net, schedule=schedule_of(noise), channels=config["in_channels"], name=folder.name)


class _Diffusers(torch.nn.Module):
    """diffusers' calling convention as ours."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor, t: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        return self.net(x, t, class_labels=label, return_dict=False)[0]

    def enable_gradient_checkpointing(self) -> None:
        self.net.enable_gradient_checkpointing()  # type: ignore[operator]


def schedule_of(config: dict[str, Any]) -> Discrete:
    """The noise schedule a diffusers scheduler configuration describes."""
    zero = bool(config.get("rescale_betas_zero_snr", False))
    if config.get("trained_betas") is not None:
        return schedules.from_betas(config["trained_betas"], zero)
    T, kind = int(config.get("num_train_timesteps", 1000)), config.get("beta_schedule", "linear")
    if kind == "squaredcos_cap_v2":
        return schedules.cosine(T, zero_terminal_snr=zero)
    if kind not in BETA_SCHEDULES:
        raise ValueError(f"unknown beta_schedule {kind!r}; known: {', '.join([*BETA_SCHEDULES, 'squaredcos_cap_v2'])}, or trained_betas")
    return BETA_SCHEDULES[kind](T, config.get("beta_start", 1e-4), config.get("beta_end", 0.02), zero_terminal_snr=zero)


def _prediction_type(config: dict[str, Any]) -> str:
    kind = config.get("prediction_type", "epsilon")
    if kind not in PREDICTION_TYPES:
        raise ValueError(f"unknown prediction_type {kind!r}; known: {', '.join(PREDICTION_TYPES)}")
    return PREDICTION_TYPES[kind]


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ValueError(f"no {file.name} in {file.parent}; a model folder has config.json, scheduler_config.json and *.safetensors")
    try:
        return json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
