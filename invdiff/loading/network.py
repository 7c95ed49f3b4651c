"""diffusers' networks, with or without a ControlNet, under our calling convention ``net(x, t,
label=None, **cond)``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from invdiff.loading.control import Control
from invdiff.loading.guided import scale_condition
from invdiff.loading.sizes import of_size
from invdiff.network import Facts

NETWORKS = (
    "UNet2DModel",
    "UNet2DConditionModel",
    "DiTTransformer2DModel",
    "PixArtTransformer2DModel",
    "SD3Transformer2DModel",
    "SanaTransformer2DModel",
    "FluxTransformer2DModel",
)
"""Classes of diffusers whose forward takes an image-shaped state and its time, and conditions by
keyword; Flux does so as :class:`~invdiff.loading.packed.Packed`. Not among them are others that
take packed patches (Qwen-Image, Chroma), count time otherwise (AuraFlow, Lumina) or need tables
made outside (HunyuanDiT)."""

SQUARE = ("DiTTransformer2DModel",)
"""Those whose output is put together as if it were square."""

ADDED = ("text_embeds", "time_ids", "image_embeds", "hint", "resolution", "aspect_ratio")
"""Conditions that diffusers wants inside ``added_cond_kwargs``."""

ADDED_BY_TYPE = {
    "text_time": ("text_embeds", "time_ids"),
    "text_image": ("text_embeds", "image_embeds"),
    "image": ("image_embeds",),
    "image_hint": ("image_embeds", "hint"),
    "image_proj": ("image_embeds",),
    "text_image_proj": ("image_embeds",),
    "ip_image_proj": ("image_embeds",),
}


EMBEDDED = ("timestep", "identity", "projection", "simple_projection")
"""Kinds of class embeddings that are no table: ``class_labels`` is then a vector or a number."""


class Network(torch.nn.Module):
    """A network of diffusers as a Denoiser calls it.

    Conditions keep diffusers' names: ``encoder_hidden_states`` (B, L, D), ``pooled_projections``
    (B, D), ``encoder_attention_mask`` (B, L), and those of :data:`ADDED`. Those that follow from
    the image's size are filled in where they are not given
    (:func:`~invdiff.loading.sizes.of_size`). With a ControlNet: ``control``, the condition image in
    [0, 1], (B, C, kH, kW) for a state (B, ., H, W), k what the ControlNet shrinks it by (8 for
    Stable Diffusion), and ``control_scale``, a number (default 1) or (B,).

    Args:
        net: one of :data:`NETWORKS`.
        cond_last: channels of an image condition, which a Denoiser puts before the state and
            diffusers' pipelines after it.
        sign: of the output.
        control: a ControlNet, see :class:`~invdiff.loading.control.Control`.
        pixels: how many pixels of the image a side of the state stands for; None: not known, and
            nothing follows from the size.
        guidance_scale: of a network that was distilled with classifier-free guidance and takes its
            scale (Flux-dev, LCM), where the conditions ``guidance`` or ``timestep_cond`` are not
            given.

    Attributes:
        facts: see :class:`~invdiff.network.Facts`.
        keywords: what its own ``forward`` takes beside the state and its time.
    """

    def __init__(
        self,
        net: torch.nn.Module,
        *,
        cond_last: int = 0,
        sign: float = 1.0,
        control: Control | None = None,
        pixels: int | None = None,
        guidance_scale: float | None = None,
        noise_level: float | None = None,
    ) -> None:
        super().__init__()
        self.net, self.cond_last, self.sign, self.control = net, cond_last, sign, control
        config: Mapping[str, Any] = net.config  # type: ignore[assignment]
        self.keywords = _keywords(net)
        self.time_scale = float(config.get("timestep_scale") or 1.0)
        sized, self._sized = of_size(net, config, pixels)
        self._noise_level = _level(config, noise_level)
        self._scale = scale_condition(config, guidance_scale)
        self._adapted = config.get("encoder_hid_dim_type") == "ip_image_proj"
        if self._noise_level is not None:
            sized += ("class_labels",)
        required = tuple(name for name in _required(net, config) if name not in sized)
        required += ("control",) if control is not None else ()
        taken = self.keywords - {"added_cond_kwargs", "class_labels", "return_dict", "more"}
        conditions = taken | {"label", *required, *sized}
        if "added_cond_kwargs" in self.keywords:
            conditions |= set(ADDED)
        if control is not None:
            conditions |= {"control_scale"}
        self.facts = Facts(
            conditions=conditions,
            required=required,
            image_conditions={} if control is None else {"control": control.shrinks},
            cond_last=cond_last > 0,
            guided=self._scale is not None,
        )

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None, **cond: Any) -> Tensor:
        absent = [name for name in self.facts.required if cond.get(name) is None]
        if absent:
            raise ValueError(f"{type(self.net).__name__} cannot run without {', '.join(absent)}")
        self._check_size(*x.shape[2:])
        cond = self._sized(x) | {
            k: v.to(x.dtype) if isinstance(v, Tensor) and v.is_floating_point() else v
            for k, v in cond.items()
        }
        if self._scale is not None:
            cond = self._scale(x) | cond
        if self._noise_level is not None:
            cond.setdefault("class_labels", x.new_full((len(x),), self._noise_level))
        control, scale = cond.pop("control", None), cond.pop("control_scale", 1.0)
        if self.cond_last:
            x = torch.cat([x[:, self.cond_last :], x[:, : self.cond_last]], dim=1)
        if label is not None:
            cond["class_labels"] = label
        if "encoder_hidden_states" in self.keywords:
            cond.setdefault("encoder_hidden_states", None)
        if self._adapted:  # one image for each of a list of adapters
            cond["image_embeds"] = [cond["image_embeds"].unsqueeze(1)]
        if added := {k: cond.pop(k) for k in ADDED if k in cond}:
            cond["added_cond_kwargs"] = added
        t = t * self.time_scale if self.time_scale != 1 else t
        if self.control is not None:
            cond |= self.control(x, t, control, scale, cond)
        return self.sign * self.net(x, timestep=t, return_dict=False, **cond)[0]

    def _check_size(self, height: int, width: int) -> None:
        """Refuses sides that the network has no positions for, which fail deep inside diffusers."""
        name = type(self.net).__name__
        table = getattr(getattr(self.net, "pos_embed", None), "pos_embed_max_size", None)
        most = None if table is None else table * getattr(self.net.pos_embed, "patch_size", 1)
        if most is not None and max(height, width) > most:
            raise ValueError(
                f"{name} takes states of at most {most}x{most}, got {height}x{width}; give "
                "smaller images, or denoise in windows with model.tile=..."
            )
        if name in SQUARE and height != width:
            raise ValueError(
                f"{name} takes square states only, got {height}x{width}; crop or pad the "
                "images, or denoise in square windows with "
                "model.tile=..., at most the shorter side"
            )

    def enable_gradient_checkpointing(self) -> None:
        """diffusers' own, for gradients through large networks."""
        self.net.enable_gradient_checkpointing()  # type: ignore[operator]


def _level(config: Mapping[str, Any], given: float | None) -> float | None:
    """The time of the noise in the image that a network is conditioned on; None of one that takes
    none.

    Raises:
        ValueError: one for a network that takes none.
    """
    if config.get("class_embed_type") == "timestep":
        return 0.0 if given is None else float(given)
    if given is not None:
        raise ValueError(
            f"noise_level={given:g} is of networks that take the noise of their image as a "
            "condition (DeepFloyd's upscaling stages), which this one does not"
        )
    return None


def _keywords(net: torch.nn.Module) -> set[str]:
    """The keywords of a network's forward beside the state, its first argument, and
    ``timestep``."""
    return set(list(inspect.signature(net.forward).parameters)[1:]) - {"timestep"}


def _required(net: torch.nn.Module, config: Mapping[str, Any]) -> tuple[str, ...]:
    """Conditions a network cannot run without: text where it attends to text, and what its
    configuration adds."""
    keywords = _keywords(net)
    blocks = [config.get(part) for part in ("down_block_types", "mid_block_type", "up_block_types")]
    found: list[str] = []
    if "encoder_hidden_states" in keywords and (
        "CrossAttn" in str(blocks) or "block_out_channels" not in config
    ):
        found.append("encoder_hidden_states")
    if "pooled_projections" in keywords:
        found.append("pooled_projections")
    for kind in ("encoder_hid_dim_type", "addition_embed_type"):
        found += ADDED_BY_TYPE.get(str(config.get(kind)), ())
    if config.get("encoder_hid_dim_type") == "image_proj":
        found.remove("encoder_hidden_states")
    if getattr(net, "use_additional_conditions", False):
        found += ["resolution", "aspect_ratio"]
    if config.get("class_embed_type") in EMBEDDED:
        found.append("class_labels")
    return tuple(dict.fromkeys(found))
