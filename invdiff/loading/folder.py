"""diffusers folders: a network with its scheduler's configuration, alone or as a pipeline with what
else belongs to it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from invdiff.loading import adapters
from invdiff.loading.adapters import Adapters
from invdiff.loading.called import CALLED, PRIORED, Called
from invdiff.loading.classifier import load_classifier
from invdiff.loading.coder import Given, coder_of, has_autoencoder, pixels_of
from invdiff.loading.control import read_control
from invdiff.loading.diffusers_class import read_network
from invdiff.loading.folder_files import (
    PARTS,
    network_in,
    read_card,
    read_json,
    refuse_code,
    storage,
)
from invdiff.loading.guided import scale_of
from invdiff.loading.image_prompts import add_ip_adapter
from invdiff.loading.network import NETWORKS, Network
from invdiff.loading.packed import Packed
from invdiff.loading.prompts import Prompts, pipeline_of
from invdiff.loading.scheduler import (
    DISTILLED,
    check_variance,
    overridden,
    read_scheduler,
    settings_of,
)
from invdiff.loading.single_file import SingleFile
from invdiff.loading.source import Source
from invdiff.loading.text_parts import is_text
from invdiff.network import Autoencoder, Denoiser
from invdiff.schedules import Flow


def recognises(source: Source) -> bool:
    """Whether it is a folder with a configuration of a network or a pipeline."""
    if source.path is None or not source.path.is_dir():
        return False
    if not any((source.path / name).exists() for name in ("model_index.json", *PARTS)):
        read_json(source.path / "config.json")  # says what such a folder has
    return True


def load(
    source: Source,
    *,
    weights: str | None = None,
    single_file: str | Path | None = None,
    controlnet: str | Path | None = None,
    autoencoder: Given = True,
    encode: str = "mode",
    decode: str = "whole",
    lora: adapters.Given = None,
    textual_inversion: adapters.Given = None,
    ip_adapter: str | Path | None = None,
    image_encoder: str | Path | None = None,
    guidance_scale: float | None = None,
    noise_level: float | None = None,
    prompt_length: int | None = None,
    prior: str | Path | None = None,
    offload: bool = False,
    storage: str | None = None,
    **options: Any,
) -> Denoiser:
    """A Denoiser from a diffusers folder: a pipeline (``unet/`` or ``transformer/``,
    ``scheduler/``) or a lone network with its ``scheduler_config.json`` beside ``config.json``.

    A latent pipeline (``vae/`` or ``vqvae/``) is a prior on the images that its autoencoder
    decodes; ``channels`` and ``image_size`` are theirs. With tokenizers and text encoders it has
    :meth:`~invdiff.network.Denoiser.conditions_of` prompts. Without an autoencoder a network whose
    states have neither one nor three channels is a prior on latents: ``data_range`` is None.

    Args:
        source: the folder; pickles (``.bin``) are read only with its ``allow_pickle``, where there
            are no other weights.
        weights: which network of a pipeline with several, e.g. ``"unet"``; by default the averaged
            one, ``"unet_ema"``.
        single_file: a ``.safetensors`` file with the weights of the whole pipeline under their
            authors' names, as Stable Diffusion and SDXL are passed on; of the folder the
            configurations and tokenizers are then read, and weights that the file has not.
        controlnet: folder of a ControlNet or T2I-Adapter for it; the conditions ``control`` and
            ``control_scale`` are then taken, see :class:`~invdiff.loading.network.Network`.
        autoencoder: by default the folder's own, if it has one; another one, as an object or the
            path of its folder; ``False`` or None: none, what is given and made are latents.
        encode, decode: how it is used, see :func:`~invdiff.loading.autoencoder.from_diffusers`.
        lora: ``path.safetensors[:scale]`` of one LoRA, or a list; they are added to the weights.
        textual_inversion: ``path.safetensors[:word]`` of an embedding for a word of prompts, or a
            list.
        ip_adapter: ``path.safetensors[:scale]`` of an IP-Adapter; the condition ``image_embeds`` is
            then needed, which :meth:`~invdiff.network.Denoiser.conditions_of_image` makes.
        image_encoder: the folder of its image encoder; by default ``image_encoder/`` beside the
            file or in the pipeline.
        guidance_scale: what a network that was distilled with classifier-free guidance takes as its
            scale; by default what the pipeline's own call takes.
        noise_level: the time, 0 to 999, of the noise in the image that DeepFloyd's upscaling stages
            are conditioned on; by default 0, none.
        prompt_length: tokens of a prompt, by default as the pipeline's own call has it.
        prior: folder of the pipeline that makes image embeddings of prompts (Kandinsky).
        offload: the text encoders are dropped after each use and read again for the next.
        storage: ``"bfloat16"`` or ``"float16"``: the dtype that the network and the text encoders
            are kept and run in, for half the memory; states stay as they are. By default float32.
        options: of :class:`~invdiff.network.Denoiser`, on top of what the checkpoint says. With
            ``schedule`` and ``predicts`` a scheduler configuration may be missing or of an unknown
            kind.

    Raises:
        ValueError: what is missing or not understood, with what is; custom code, which is never
            run.
    """
    folder = Path(source.given) if source.path is None else source.path
    dtype = _storage(storage, options)
    added = Adapters.of(lora, textual_inversion)
    single = None if single_file is None else SingleFile(single_file, folder)
    parts = _read(folder, weights, options, source.allow_pickle, single)
    if added.lora:
        added.change_network(getattr(parts.net, "net", parts.net), pipeline_of(folder))
    seen = None
    if ip_adapter is not None:
        said, seen = add_ip_adapter(
            parts.net, folder, ip_adapter, image_encoder, source.allow_pickle, dtype
        )
    elif image_encoder is not None:
        raise ValueError("image_encoder= is of an IP-Adapter; give ip_adapter= too")
    if storage is not None:
        parts.net.to(dtype)
    coder = coder_of(
        folder, autoencoder, encode, decode, parts.channels, source.allow_pickle, single
    )
    control = None
    if controlnet is not None:
        control = read_control(Path(controlnet), parts.net, coder, source.allow_pickle)
        control.net.to(dtype)  # and not its autoencoder, which is the network's
    adapter = Network(
        parts.net,
        cond_last=_cond_last(folder, parts.config, parts.channels),
        sign=parts.implied.pop("sign", 1.0),
        control=control,
        pixels=pixels_of(folder, coder),
        guidance_scale=scale_of(folder, parts.config, guidance_scale),
        noise_level=noise_level,
    )
    text: Prompts | Called | None = None
    if _called(folder, prior):
        if added.words or prompt_length is not None:
            raise ValueError(f"{folder} encodes prompts itself: it takes no words and no length")
        text = Called(
            folder,
            None if prior is None else Path(prior),
            allow_pickle=source.allow_pickle,
            offload=offload,
            dtype=dtype,
        )
    elif any(is_text(p.name) for p in folder.iterdir()) and adapter.facts.takes(
        "encoder_hidden_states"
    ):
        text = Prompts(
            folder,
            adapter.facts.conditions or (),
            allow_pickle=source.allow_pickle,
            length=prompt_length,
            offload=offload,
            dtype=dtype,
            adapters=added,
            single=single,
        )
    elif added.words or prompt_length is not None:
        raise ValueError(f"{folder} has no text encoder, so it takes no words and no prompt length")
    latent = coder is not None or (not autoencoder and has_autoencoder(folder))
    found = _found(parts, adapter, coder, latent) | {"text": text, "image_encoder": seen}
    found |= parts.implied
    if found["data_range"] is not None and not _clips(parts.noise):
        found = {"clip": False} | found
    denoiser = Denoiser(adapter, **found)
    denoiser.source = _source(parts, adapter, coder, text is not None, added)
    if ip_adapter is not None:
        denoiser.source["IP-Adapter"] = said
    return denoiser


def _called(folder: Path, prior: str | Path | None) -> bool:
    """Whether prompts are encoded by the call of the pipeline.

    Raises:
        ValueError: a prior for a pipeline that takes none.
    """
    index = folder / "model_index.json"
    name = read_json(index).get("_class_name") if index.is_file() else None
    if prior is not None and name not in PRIORED:
        raise ValueError(f"prior= is of {' and '.join(PRIORED)}, and {folder} is a {name}")
    return name in CALLED


def load_folder(folder: str | Path, *, allow_pickle: bool = False, **options: Any) -> Denoiser:
    """A Denoiser from a local diffusers folder, see :func:`load`."""
    return load(Source(Path(folder), allow_pickle), **options)


@dataclass(frozen=True)
class _Parts:
    """The parts of a folder that belong to its network: where it is, its configuration and its
    weights' file, the network itself; its scheduler's settings and the options of a Denoiser that
    they imply with the user's on top."""

    folder: Path
    place: Path
    file: Path
    config: Mapping[str, Any]
    net: torch.nn.Module
    noise: Mapping[str, Any]
    implied: dict[str, Any]
    channels: int
    learned_variance: bool


def _read(
    folder: Path,
    weights: str | None,
    options: Mapping[str, Any],
    allow_pickle: bool,
    single: SingleFile | None,
) -> _Parts:
    place = network_in(folder, weights)
    schedulers = (folder / "scheduler", folder / f"{place.name}_scheduler")
    scheduler = next((s for s in schedulers if s.is_dir()), folder)
    texts = [part for part in sorted(folder.iterdir()) if part.is_dir() and is_text(part.name)]
    refuse_code(folder, place, scheduler, *texts)
    config = read_json(place / "config.json")
    noise, implied = _noise(scheduler, options)
    if single is None:
        net, name = read_network(place, config, NETWORKS, allow_pickle)
        file = place / name
    else:
        net, file = single.network(place, config, NETWORKS), single.file
    config = {**net.config, **config}  # type: ignore[dict-item]
    if config["_class_name"] == "FluxTransformer2DModel":
        net = Packed(net)
        config = net.config
        if "schedule" not in options and isinstance(implied["schedule"], Flow):
            # diffusers' FluxPipeline hands its scheduler this grid.
            implied["schedule"] = replace(implied["schedule"], spacing="trailing")
    channels, learned_variance = _channels(place, config, noise)
    if noise.get("_class_name") in DISTILLED or config.get("time_cond_proj_dim"):
        _warn_distilled(folder, config)
    return _Parts(folder, place, file, config, net, noise, implied, channels, learned_variance)


def _storage(given: str | None, options: Mapping[str, Any]) -> torch.dtype:
    dtypes = {None: torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if given not in dtypes:
        raise ValueError(f"storage must be 'bfloat16' or 'float16', got {given!r}")
    if given is not None and options.get("dtype", torch.float32) == torch.float64:
        raise ValueError("storage= and dtype=float64 contradict each other; leave one out")
    return dtypes[given]


def _noise(scheduler: Path, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the scheduler's settings, the Denoiser's options they imply with the user's ``options`` on
    top)."""
    file = scheduler / "scheduler_config.json"
    config: dict[str, Any] = {}
    try:
        if not file.is_file():
            raise ValueError(
                f"no {file.name} in {scheduler}; give schedule= and predicts= of a network "
                "without one"
            )
        config = read_json(file)
        settings = settings_of(config)
        if "schedule" in options:
            settings["use_dynamic_shifting"] = False
        implied = read_scheduler(settings)
    except ValueError:
        if not {"schedule", "predicts"} <= options.keys():
            raise
        return config, overridden({}, options)
    return settings, overridden(implied, options)


def _channels(place: Path, config: Mapping[str, Any], noise: Mapping[str, Any]) -> tuple[int, bool]:
    """(channels of a state, whether the variance is learned)."""
    taken = int(config["in_channels"])
    made = int(config.get("out_channels") or taken)
    learned_variance = check_variance(noise) == "learned_range" or made == 2 * taken
    channels = made // 2 if learned_variance else made
    if taken < channels:
        raise ValueError(f"{place} takes {taken} channels and returns {made}: it is not a denoiser")
    return channels, learned_variance


def _cond_last(folder: Path, config: Mapping[str, Any], channels: int) -> int:
    """Channels of an image that the network takes after the state's. Pipelines, and networks that
    are conditioned on text, take [state, image]; a lone UNet2DModel is an SR3 network, [image,
    state]."""
    alone = not (folder / "model_index.json").is_file() and config["_class_name"] == "UNet2DModel"
    return 0 if alone else int(config["in_channels"]) - channels


def _warn_distilled(folder: Path, config: Mapping[str, Any]) -> None:
    width = config.get("time_cond_proj_dim")
    scale = f"; it takes the guidance scale as timestep_cond= (B, {width})" if width else ""
    warnings.warn(
        f"{folder}: a distilled network, whose x0 is a sample and not a mean: use "
        f"transition Renoise{scale}",
        stacklevel=2,
    )


def _found(
    parts: _Parts, adapter: Network, coder: Autoencoder | None, latent: bool
) -> dict[str, Any]:
    """Options of a Denoiser that the folder shows."""
    config, folder = parts.config, parts.folder
    classes, null = _labels(adapter, config)
    size = config.get("sample_size")
    factor = 1 if coder is None else coder.factor
    classifier = folder / "classifier"
    return {
        "data_range": None if latent or parts.channels not in (1, 3) else (-1.0, 1.0),
        "learned_variance": parts.learned_variance,
        "num_classes": classes,
        "null_label": False if null is None else null,
        "cond_channels": int(config["in_channels"]) - parts.channels or None,
        "classifier": load_classifier(classifier) if classifier.is_dir() else None,
        "multiple": config.get("patch_size") or 2 ** (len(config["block_out_channels"]) - 1),
        "autoencoder": coder,
        "channels": parts.channels if coder is None else coder.image_channels,
        "image_size": size * factor if isinstance(size, int) else None,
        "name": folder.name,
    }


def _labels(adapter: Network, config: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """(number of classes, the null label) of a network."""
    # diffusers ignores keys that begin with an underscore.
    rows, null = config.get("num_class_embeds"), config.get("_null_label")
    if rows is None and "class_labels" in adapter.keywords:
        # DiT: one embedding more than classes, for labels that are left out.
        rows = null = config.get("num_embeds_ada_norm")
    return (rows - 1 if rows is not None and null == rows - 1 else rows), null


def _clips(noise: Mapping[str, Any]) -> bool:
    """Whether diffusers' sampler clips to the whole range."""
    return bool(noise.get("clip_sample", True)) and noise.get("clip_sample_range", 1.0) == 1.0


def _source(
    parts: _Parts, adapter: Network, coder: Autoencoder | None, prompted: bool, added: Adapters
) -> dict[str, Any]:
    """Facts about the checkpoint, for people."""
    beside = "" if adapter.control is None else f" with a {adapter.control.kind}"
    return {
        "kind": "diffusers folder",
        "path": str(parts.folder),
        "network": parts.config["_class_name"] + beside,
        "LoRA": ", ".join(f"{file.name} x {scale:g}" for file, scale in added.lora) or None,
        "autoencoder": coder
        and f"{type(coder.net or coder).__name__}, {coder.channels} channels, 1/{coder.factor} "
        "of the side",
        "text encoder": "its own, for prompts" if prompted else None,
        "scheduler": parts.noise.get("_class_name"),
        "variance": parts.noise.get("variance_type"),
        "needs": ", ".join(adapter.facts.required) or None,
        "weights": str(
            parts.file.relative_to(parts.folder)
            if parts.file.is_relative_to(parts.folder)
            else parts.file
        ),
        "storage": storage(parts.file),
        **read_card(parts.folder),
    }
