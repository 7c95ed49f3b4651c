"""ControlNets and T2I-Adapters of diffusers: what they add to a network, from an image in [0, 1]
beside the state."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from invdiff.loading.autoencoder import Scaled
from invdiff.loading.diffusers_class import read_network
from invdiff.loading.folder_files import read_json, refuse_code
from invdiff.loading.packed import Packed
from invdiff.network import Autoencoder


class Control(torch.nn.Module):
    """A ControlNet: the residuals of a network for an image in [0, 1].

    Attributes:
        kind: what it is, for people.
        channels: of the image.

    Args:
        net: of diffusers.
        shrinks: how many times larger the image is than the state.
        coder: the network's autoencoder, where the ControlNet takes latents; None: it takes images.
    """

    kind = "ControlNet"

    def __init__(
        self,
        net: Any,
        shrinks: int,
        coder: Scaled | None = None,
    ) -> None:
        super().__init__()
        self.net, self.shrinks, self.scaled = net, shrinks, coder
        self.vae = None if coder is None else coder.net  # so that it is moved with the rest
        self.channels = 3 if coder is not None else self._channels()
        # These were trained without pooled text and without the shift of the latents.
        self.zeroed = bool(net.config.get("force_zeros_for_pooled_projection"))

    def forward(
        self, x: Tensor, t: Tensor, control: Tensor, scale: float | Tensor, cond: dict[str, Any]
    ) -> dict[str, Any]:
        """Keywords for the network's forward."""
        image = self._fitted(x, control)
        if self.scaled is not None:
            image = self.scaled.latents(2 * image - 1, shifted=not self.zeroed)
        if isinstance(scale, Tensor):  # of feature maps, or of sequences
            scale = scale.view(-1, *(1,) * (3 if self.scaled is None else 2))
        taken = inspect.signature(self.net.forward).parameters
        shared = {k: v for k, v in cond.items() if k in taken}
        if not self.net.config.get("guidance_embeds"):
            shared.pop("guidance", None)
        if self.zeroed:
            shared["pooled_projections"] = torch.zeros_like(shared["pooled_projections"])
        # An inpainting network's state is longer.
        found = self.net(
            x[:, : self.net.config["in_channels"]],
            timestep=t,
            controlnet_cond=image,
            conditioning_scale=scale,
            return_dict=False,
            **shared,
        )
        return self._named(found)

    def _channels(self) -> int:
        return int(self.net.config["conditioning_channels"])

    def _named(self, found: Any) -> dict[str, Any]:
        name = type(self.net).__name__
        if name == "ControlNetModel":
            names = ("down_block_additional_residuals", "mid_block_additional_residual")
            return dict(zip(names, found, strict=True))
        if isinstance(self.net, Packed):
            names = ("controlnet_block_samples", "controlnet_single_block_samples")
            return dict(zip(names, found, strict=True))
        return {"block_controlnet_hidden_states": found[0]}

    def _fitted(self, x: Tensor, control: Tensor) -> Tensor:
        """The image at the state's size, which may have been padded below and to the right."""
        shape = (len(x), self.channels, *(self.shrinks * n for n in x.shape[2:]))
        rows, columns = (wanted - n for wanted, n in zip(shape[2:], control.shape[2:], strict=True))
        if (
            control.shape[:2] != shape[:2]
            or min(rows, columns) < 0
            or max(rows / shape[2], columns / shape[3]) >= 0.5
        ):
            raise ValueError(
                f"the {self.kind} is conditioned on an image of shape {shape} beside the "
                f"state, got control of shape {tuple(control.shape)}"
            )
        return F.pad(control, (0, columns, 0, rows), mode="replicate")


class Adapter(Control):
    """A T2I-Adapter (Mou et al. 2023, arXiv:2302.08453): features that are added to those of a
    U-Net's way down. They depend on the image alone."""

    kind = "T2I-Adapter"

    def forward(
        self, x: Tensor, t: Tensor, control: Tensor, scale: float | Tensor, cond: dict[str, Any]
    ) -> dict[str, Any]:
        image = self._fitted(x, control)
        if isinstance(scale, Tensor):
            scale = scale.view(-1, 1, 1, 1)
        # A list of its own each time: the U-Net takes them out of it.
        features = [scale * feature for feature in self.net(image)]
        return {"down_intrablock_additional_residuals": features}

    def _channels(self) -> int:
        return int(self.net.config["in_channels"])


OF = {
    "UNet2DConditionModel": "ControlNetModel",
    "SD3Transformer2DModel": "SD3ControlNetModel",
    "FluxTransformer2DModel": "FluxControlNetModel",
}
"""The class of the ControlNets of a class of networks."""

MORE = ("num_mode", "conditioning_embedding_channels", "extra_conditioning_channels")
"""Settings of ControlNets of transformers that take more than the latents of an image."""


def read_control(
    folder: Path, net: torch.nn.Module, coder: Autoencoder | None, allow_pickle: bool
) -> Control:
    """The ControlNet or T2I-Adapter of a folder, for that network and its autoencoder.

    Raises:
        ValueError: it belongs to another network; one that takes more than an image.
    """
    folder = folder / "controlnet" if (folder / "controlnet").is_dir() else folder
    name = type(net.net if isinstance(net, Packed) else net).__name__
    kind = OF.get(name)
    if kind is None:
        raise ValueError(f"a ControlNet guides a {' or a '.join(OF)}, not a {name}")
    refuse_code(folder)
    config = read_json(folder / "config.json")
    if more := [key for key in MORE if kind != "ControlNetModel" and config.get(key)]:
        raise ValueError(
            f"{folder} is a ControlNet with {more[0]} = {config[more[0]]}, which takes something "
            "else than the latents of one image and is not read here"
        )
    if config.get("_class_name") == "T2IAdapter" and kind == "ControlNetModel":
        return _adapter(folder, config, net, allow_pickle)
    control, _ = read_network(folder, config, (kind,), allow_pickle)
    if kind == "ControlNetModel":
        mine, other = (tuple(m.config["block_out_channels"]) for m in (net, control))  # type: ignore[index, arg-type]
        if mine != other:
            raise ValueError(
                f"this ControlNet belongs to another network: its blocks have {other} "
                f"channels, the network's {mine}"
            )
        return Control(control, 2 ** (len(config["conditioning_embedding_out_channels"]) - 1))
    scaled = getattr(coder and coder.encode, "__self__", None)
    if coder is None or not isinstance(scaled, Scaled):
        raise ValueError(
            f"a {kind} takes the latents of its image, so the network needs its autoencoder; "
            "leave out autoencoder=False"
        )
    return Control(Packed(control) if kind.startswith("Flux") else control, coder.factor, scaled)


def _adapter(folder: Path, config: dict[str, Any], net: torch.nn.Module, pickle: bool) -> Adapter:
    """A T2I-Adapter for a U-Net."""
    adapter: Any = read_network(folder, config, ("T2IAdapter",), pickle)[0]
    mine, other = tuple(net.config["block_out_channels"]), tuple(adapter.config["channels"])  # type: ignore[index, arg-type]
    if other[: len(mine)] != mine:
        raise ValueError(
            f"this T2I-Adapter belongs to another network: its features have {other} channels, "
            f"the network's {mine}"
        )
    # That of SDXL begins after the first halving of the state.
    later = 2 if adapter.config["adapter_type"] == "full_adapter_xl" else 1
    return Adapter(adapter, adapter.config["downscale_factor"] // later)
