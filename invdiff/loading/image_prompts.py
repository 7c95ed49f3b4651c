"""Images as prompts: IP-Adapters (Ye et al. 2023, arXiv:2308.06721), by diffusers' own
``load_ip_adapter``, and what the image encoder beside one makes of an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invdiff.loading.adapters import split_path
from invdiff.loading.diffusers_log import silent
from invdiff.loading.prompts import bare_pipeline, pipeline_of
from invdiff.loading.text_parts import read_part

ENCODER = "image_encoder"
IMAGES = ("proj.weight", "proj.3.weight", "latents")
"""A parameter of each kind of projection of images: the plain one, the full one and that of
"plus"."""


class ImagePrompts:
    """Images as the condition ``image_embeds``, as ``encode_image`` of a pipeline makes it.

    Args:
        cls: of the pipeline.
        index: its ``model_index.json``.
        place: the folder of a ``CLIPVisionModelWithProjection``, read when an image is first
            encoded.
        hidden: the adapter takes the states of the encoder's last layer but one instead of the
            projected embedding.
        allow_pickle: read weights that are kept as pickles.
        dtype: that the encoder is kept and run in.
    """

    def __init__(
        self,
        cls: Any,
        index: dict[str, Any],
        place: Path,
        hidden: bool,
        allow_pickle: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.cls, self.index, self.place, self.hidden = cls, index, place, hidden
        self.allow_pickle, self.dtype = allow_pickle, dtype
        self.device = torch.device("cpu")
        self._pipeline: Any = None

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """The condition of images (B, 3, H, W) in [0, 1]. They are rounded to 8 bits, resized and
        cropped to the encoder's square as its own processor does it.

        Raises:
            ValueError: transformers is not installed, or the encoder is not complete.
        """
        pixels = (255 * images.detach().cpu().float().clamp(0, 1)).round().byte()
        return {"image_embeds": self._encoded(pixels)[0]}

    def negative(self, images: int) -> dict[str, Tensor]:
        """The condition that classifier-free guidance compares with, for so many images: zeros, or
        the states for an image of zeros."""
        pixels = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
        return {"image_embeds": self._encoded(pixels)[1].repeat_interleave(images, 0)}

    def to(self, device: torch.device | str) -> ImagePrompts:
        """Moves it, now or when it is read; returns itself."""
        self.device = torch.device(device)
        return self

    def _encoded(self, pixels: Tensor) -> Any:
        """(embeddings, those to compare with)."""
        if self._pipeline is None:
            self._pipeline = self._load()
        self._pipeline.image_encoder.to(self.device)
        with torch.no_grad():
            given = [image.movedim(0, -1).numpy() for image in pixels]
            return self._pipeline.encode_image(given, self.device, 1, self.hidden)

    def _load(self) -> Any:
        entry = ("transformers", "CLIPVisionModelWithProjection")
        encoder = read_part(self.place, entry, self.allow_pickle, self.dtype)
        from transformers import CLIPImageProcessor

        size = encoder.config.image_size
        eyes = CLIPImageProcessor(size=size, crop_size=size)
        return bare_pipeline(self.cls, self.index, image_encoder=encoder, feature_extractor=eyes)


def add_ip_adapter(
    net: Any,
    folder: Path,
    given: str | Path,
    encoder: str | Path | None,
    allow_pickle: bool,
    dtype: torch.dtype,
) -> tuple[str, ImagePrompts | None]:
    """Adds an IP-Adapter to a U-Net, in place, which then takes ``image_embeds``.

    Args:
        net: of the pipeline in ``folder``.
        given: ``path.safetensors[:scale]``.
        encoder: the folder of its image encoder; by default ``image_encoder/`` beside the file, or
            else the pipeline's own.
        allow_pickle, dtype: of the encoder.

    Returns:
        What was added, for people, and what makes conditions of images; None where there is no
        encoder, so that the embeddings have to be given.

    Raises:
        ValueError: a file that does not belong to such a network, a pipeline without IP-Adapters.
    """
    import diffusers

    file, rest = split_path(given)
    try:
        scale = 1.0 if rest is None else float(rest)
    except ValueError:
        raise ValueError(f"an IP-Adapter is path[:scale] with a number, got {given}") from None
    index = pipeline_of(folder)
    cls: Any = getattr(diffusers, str(index.get("_class_name")), None)
    if not hasattr(cls, "load_ip_adapter") or type(net).__name__ != "UNet2DConditionModel":
        raise ValueError(
            f"an IP-Adapter is read for the U-Nets of Stable Diffusion (1, 2, XL), not for a "
            f"{index.get('_class_name')}; leave out ip_adapter="
        )
    _check(file, net)
    pipeline = bare_pipeline(cls, index, unet=net)
    try:
        with silent():  # that there is no image encoder, which is read when it is needed
            pipeline.load_ip_adapter(
                str(file.parent),
                subfolder="",
                weight_name=file.name,
                image_encoder_folder=None,
                local_files_only=True,
                low_cpu_mem_usage=False,
            )
    except (RuntimeError, ValueError, KeyError) as error:
        said = " ".join(str(error).split())[:300]
        raise ValueError(f"the IP-Adapter {file} does not fit this network: {said}") from error
    pipeline.set_ip_adapter_scale(scale)
    net.register_to_config(encoder_hid_dim_type="ip_image_proj")
    net.requires_grad_(False)
    hidden = not isinstance(
        net.encoder_hid_proj.image_projection_layers[0], diffusers.models.embeddings.ImageProjection
    )
    place = _place(file, folder, encoder)
    said = f"{file.name} x {scale:g}"
    if place is None:
        return said, None
    return said, ImagePrompts(cls, index, place, hidden, allow_pickle, dtype)


def _check(file: Path, net: Any) -> None:
    """Refuses what diffusers would read by half, or what takes something else than images."""
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        names = set(opened.keys())
    attentions = sum(name.endswith("attn2.processor") for name in net.attn_processors)
    adapted = sum(name.startswith("ip_adapter.") for name in names)
    sees = any(f"image_proj.{name}" in names for name in IMAGES)
    faces = any("_lora." in name or "perceiver_resampler" in name for name in names)
    if faces or not sees:
        raise ValueError(
            f"{file} is no IP-Adapter of images: "
            + ("it takes embeddings of faces, which insightface makes" if faces else "")
            + ("" if faces else "it has no projection of their embeddings")
        )
    if adapted != 2 * attentions:
        raise ValueError(
            f"the IP-Adapter {file} does not fit this network: it has {adapted} matrices for its "
            f"attention to text, the network {attentions} layers, of two each"
        )


def _place(file: Path, folder: Path, encoder: str | Path | None) -> Path | None:
    if encoder is not None:
        place = Path(encoder).expanduser()
        if not (place / "config.json").is_file():
            raise ValueError(f"image_encoder={str(encoder)!r} is no folder with a config.json")
        return place
    places = (file.parent / ENCODER, folder / ENCODER)
    return next((place for place in places if place.is_dir()), None)
