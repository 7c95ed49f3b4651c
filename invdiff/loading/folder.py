"""diffusers folders: a network with its scheduler's configuration, alone or as a pipeline with what
else belongs to it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from invdiff.loading.classifier import load_classifier
from invdiff.loading.coder import Given, coder_of, has_autoencoder
from invdiff.loading.diffusers_class import read_controlnet, read_network
from invdiff.loading.folder_files import (
    PARTS,
    network_in,
    read_card,
    read_json,
    refuse_code,
    storage,
)
from invdiff.loading.network import NETWORKS, Network
from invdiff.loading.scheduler import (
    DISTILLED,
    check_variance,
    overridden,
    read_scheduler,
    settings_of,
)
from invdiff.loading.source import Source
from invdiff.loading.text import TextEncoder
from invdiff.network import Autoencoder, Denoiser


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
    controlnet: str | Path | None = None,
    autoencoder: Given = True,
    encode: str = "mode",
    decode: str = "whole",
    **options: Any,
) -> Denoiser:
    """A Denoiser from a diffusers folder: a pipeline (``unet/`` or ``transformer/``,
    ``scheduler/``) or a lone network with its ``scheduler_config.json`` beside ``config.json``.

    A latent pipeline (``vae/`` or ``vqvae/``) is a prior on the images that its autoencoder
    decodes; ``channels`` and ``image_size`` are theirs. With a ``tokenizer/`` and a
    ``text_encoder/`` it has :meth:`~invdiff.network.Denoiser.conditions_of` prompts. Without an
    autoencoder a network whose states have neither one nor three channels is a prior on latents:
    ``data_range`` is None.

    Args:
        source: the folder; pickles (``.bin``) are read only with its ``allow_pickle``, where there
            are no other weights.
        weights: which network of a pipeline with several, e.g. ``"unet"``; by default the averaged
            one, ``"unet_ema"``.
        controlnet: folder of a ``ControlNetModel`` for it; the conditions ``control`` and
            ``control_scale`` are then taken, see :class:`~invdiff.loading.network.Network`.
        autoencoder: by default the folder's own, if it has one; another one, as an object or the
            path of its folder; ``False`` or None: none, what is given and made are latents.
        encode, decode: how it is used, see :func:`~invdiff.loading.autoencoder.from_diffusers`.
        options: of :class:`~invdiff.network.Denoiser`, on top of what the checkpoint says. With
            ``schedule`` and ``predicts`` a scheduler configuration may be missing or of an unknown
            kind.

    Raises:
        ValueError: what is missing or not understood, with what is; custom code, which is never
            run.
    """
    folder = Path(source.given) if source.path is None else source.path
    parts = _read(folder, weights, controlnet, options, source.allow_pickle)
    coder = coder_of(folder, autoencoder, encode, decode, parts.channels, source.allow_pickle)
    latent = coder is not None or (not autoencoder and has_autoencoder(folder))
    text = None
    if (folder / "text_encoder").is_dir() and parts.adapter.facts.takes("encoder_hidden_states"):
        text = TextEncoder(folder, allow_pickle=source.allow_pickle)
    found = _found(parts, coder, latent) | {"text": text} | parts.implied
    if found["data_range"] is not None and not _clips(parts.noise):
        found = {"clip": False} | found
    denoiser = Denoiser(parts.adapter, **found)
    denoiser.source = _source(parts, coder, text is not None)
    return denoiser


def load_folder(folder: str | Path, *, allow_pickle: bool = False, **options: Any) -> Denoiser:
    """A Denoiser from a local diffusers folder, see :func:`load`."""
    return load(Source(Path(folder), allow_pickle), **options)


@dataclass(frozen=True)
class _Parts:
    """The parts of a folder that belong to its network: where it is, its configuration and its
    weights' file, the network as a Denoiser calls it; its scheduler's settings and the options of a
    Denoiser that they imply with the user's on top."""

    folder: Path
    place: Path
    file: str
    config: Mapping[str, Any]
    adapter: Network
    noise: Mapping[str, Any]
    implied: dict[str, Any]
    channels: int
    learned_variance: bool


def _read(
    folder: Path,
    weights: str | None,
    controlnet: str | Path | None,
    options: Mapping[str, Any],
    allow_pickle: bool,
) -> _Parts:
    place = network_in(folder, weights)
    scheduler = folder / "scheduler" if (folder / "scheduler").is_dir() else folder
    refuse_code(folder, place, scheduler, folder / "text_encoder", folder / "tokenizer")
    config = read_json(place / "config.json")
    noise, implied = _noise(scheduler, options)
    net, file = read_network(place, config, NETWORKS, allow_pickle)
    config = {**net.config, **config}  # type: ignore[dict-item]
    control = None
    if controlnet is not None:
        control = read_controlnet(Path(controlnet), net, allow_pickle)
    channels, learned_variance = _channels(place, config, noise)
    if noise.get("_class_name") in DISTILLED or config.get("time_cond_proj_dim"):
        _warn_distilled(folder, config)
    adapter = Network(
        net,
        cond_last=_cond_last(folder, config, channels),
        sign=implied.pop("sign", 1.0),
        controlnet=control,
    )
    return _Parts(folder, place, file, config, adapter, noise, implied, channels, learned_variance)


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


def _found(parts: _Parts, coder: Autoencoder | None, latent: bool) -> dict[str, Any]:
    """Options of a Denoiser that the folder shows."""
    config, folder = parts.config, parts.folder
    classes, null = _labels(parts.adapter, config)
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


def _source(parts: _Parts, coder: Autoencoder | None, prompted: bool) -> dict[str, Any]:
    """Facts about the checkpoint, for people."""
    beside = " with a ControlNet" if parts.adapter.controlnet is not None else ""
    return {
        "kind": "diffusers folder",
        "path": str(parts.folder),
        "network": parts.config["_class_name"] + beside,
        "autoencoder": coder
        and f"{type(coder.net or coder).__name__}, {coder.channels} channels, 1/{coder.factor} "
        "of the side",
        "text encoder": "its own, for prompts" if prompted else None,
        "scheduler": parts.noise.get("_class_name"),
        "variance": parts.noise.get("variance_type"),
        "needs": ", ".join(parts.adapter.facts.required) or None,
        "weights": str((parts.place / parts.file).relative_to(parts.folder)),
        "storage": storage(parts.place / parts.file),
        **read_card(parts.folder),
    }
