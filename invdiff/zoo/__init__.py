"""Networks that ship inside the package: weights, model cards and the recipes that trained them.

They are diffusers folders, which :func:`~invdiff.loading.load_folder` reads as well; here they are
read without diffusers, whose import takes longer than restoring a small image.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from invdiff import schedules
from invdiff.loading.scheduler import PREDICTION_TYPES, overridden
from invdiff.loading.state_dict import dtypes, filled
from invdiff.loading.time_classifier import WEIGHTS, TimeClassifier
from invdiff.loading.unet import from_config
from invdiff.network import Denoiser, NoisyClassifier
from invdiff.schedules import Schedule

FOLDER = Path(__file__).parent


def photo64(**options: Any) -> Denoiser:
    """Unconditional prior for colour photographs of any size, trained on 64x64 crops; see its model
    card."""
    denoiser = _shipped(FOLDER / "photo64", options)
    colours = "it has not learnt the colours of objects; expect faces and skies in wrong ones"
    denoiser.source["weak at"] = {"colorize": colours}
    return denoiser


def digits32(**options: Any) -> Denoiser:
    """Class-conditional prior of handwritten digits, 32x32 grey, with a null class and a
    noise-aware classifier."""
    folder = FOLDER / "digits32"
    return _shipped(folder, {"classifier": _classifier(folder / "classifier")} | options)


def sr3x4(**options: Any) -> Denoiser:
    """Colour photographs given their four times smaller version (SR3), trained from 16x16 to 64x64;
    takes any size."""
    return _shipped(FOLDER / "sr3x4", {"factor": 4} | options)


def palette_jpeg(**options: Any) -> Denoiser:
    """Colour photographs given how a JPEG file of quality 5 to 30 shows them (Palette), trained on
    64x64 crops; takes any size."""
    return _shipped(FOLDER / "palette_jpeg", {"factor": 1} | options)


def kernels16(**options: Any) -> Denoiser:
    """Blur kernels of up to 15 pixels, camera paths and Gaussians, each over its largest value:
    ``prior=kernels16`` of a blur whose kernel is unknown; see its model card."""
    return _shipped(FOLDER / "kernels16", options)


def _shipped(folder: Path, options: dict[str, Any]) -> Denoiser:
    """The Denoiser of a folder with a plain U-Net that is trained on a linear DDPM schedule."""
    config, noise, schedule = _described(folder)
    weights = load_file(folder / WEIGHTS)
    net = Shipped(filled(lambda: from_config(config), weights))
    classes, channels = config["num_class_embeds"], config["out_channels"]
    found = {
        "predicts": PREDICTION_TYPES[noise["prediction_type"]],
        "schedule": schedule,
        "data_range": (-1.0, 1.0),
        "num_classes": None if classes is None else config["_null_label"],
        "null_label": False if classes is None else config["_null_label"],
        "cond_channels": config["in_channels"] - channels or None,
        "multiple": 2 ** (len(config["block_out_channels"]) - 1),
        "channels": channels,
        "image_size": config["sample_size"],
        "channels_last": True,  # 1.2 to 1.6 times as fast on a CPU
        "name": folder.name,
    }
    denoiser = Denoiser(net, **overridden(found, options))
    denoiser.source = {
        "path": str(folder),
        "network": config["_class_name"],
        "scheduler": noise["_class_name"],
        "variance": noise["variance_type"],
        "weights": WEIGHTS,
        "storage": dtypes(weights),
    }
    return denoiser


def _classifier(folder: Path) -> NoisyClassifier:
    config, _, schedule = _described(folder)
    net = TimeClassifier.from_folder(folder, config)
    return NoisyClassifier(net, schedule=schedule, channels=config["in_channels"], name=folder.name)


def _described(folder: Path) -> tuple[dict[str, Any], dict[str, Any], Schedule]:
    """(configuration, that of the scheduler, schedule) of a folder of this package."""
    config, noise = (
        json.loads((folder / name).read_text()) for name in ("config.json", "scheduler_config.json")
    )
    schedule = schedules.linear(
        noise["num_train_timesteps"], noise["beta_start"], noise["beta_end"]
    )
    return config, noise, schedule


class Shipped(nn.Module):
    """The network under the name ``net``, which belongs to the names of its parameters and so to
    the hash under which results are recorded."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        return self.net(x, t, label)

    def enable_gradient_checkpointing(self) -> None:
        """Residual blocks are computed again on the way back instead of being kept."""
        self.net.enable_gradient_checkpointing()  # type: ignore[operator]
