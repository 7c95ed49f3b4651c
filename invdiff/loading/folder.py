"""diffusers folders: a network with its scheduler's configuration, alone or as a pipeline with what
else belongs to it."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import torch

from invdiff.loading.autoencoder import AUTOENCODERS, from_diffusers
from invdiff.loading.network import NETWORKS, Network
from invdiff.loading.scheduler import (
    DISTILLED,
    check_variance,
    overridden,
    read_scheduler,
    schedule_of,
    settings_of,
)
from invdiff.loading.state_dict import check_finite
from invdiff.loading.text import TextEncoder
from invdiff.network import Autoencoder, Denoiser, NoisyClassifier
from invdiff.plugins.registry import check_names

PARTS = ("unet_ema", "unet", "transformer_ema", "transformer")
"""Where a pipeline keeps its network; training scripts leave averaged weights beside the last
ones."""

CODERS = ("vae", "vqvae")
"""Where a latent pipeline keeps its autoencoder."""

WEIGHTS = re.compile(r"diffusion_pytorch_model(\.\w+)?(-\d+-of-\d+)?(\.\w+)?\.(safetensors|bin)")


def load_folder(
    folder: str | Path,
    *,
    weights: str | None = None,
    controlnet: str | Path | None = None,
    autoencoder: Autoencoder | str | Path | bool | None = True,
    encode: str = "mode",
    decode: str = "whole",
    allow_pickle: bool = False,
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
        folder: local path; nothing is downloaded.
        weights: which network of a pipeline with several, e.g. ``"unet"``; by default the averaged
            one, ``"unet_ema"``.
        controlnet: folder of a ``ControlNetModel`` for it; the conditions ``control`` and
            ``control_scale`` are then taken, see :class:`~invdiff.loading.network.Network`.
        autoencoder: by default the folder's own, if it has one; another one, as an object or the
            path of its folder; ``False`` or None: none, what is given and made are latents.
        encode, decode: how it is used, see :func:`~invdiff.loading.autoencoder.from_diffusers`.
        allow_pickle: read weights that are kept as pickles (``.bin``) where there are no others;
            pickles can run code.
        options: of :class:`~invdiff.network.Denoiser`, on top of what the checkpoint says. With
            ``schedule`` and ``predicts`` a scheduler configuration may be missing or of an unknown
            kind.

    Raises:
        ValueError: what is missing or not understood, with what is; custom code, which is never
            run.
    """
    folder = Path(folder)
    network = _network(folder, weights)
    scheduler = folder / "scheduler" if (folder / "scheduler").is_dir() else folder
    _refuse_code(
        folder, network, scheduler, *(folder / part for part in ("text_encoder", "tokenizer"))
    )
    config = _read(network / "config.json")
    noise, sampled = _noise(scheduler, options)
    net, file = _load(network, config, NETWORKS, allow_pickle)
    config = {**net.config, **config}  # type: ignore[dict-item]
    control = None
    if controlnet is not None:
        control = _load_controlnet(Path(controlnet), net, allow_pickle)

    shown, made = (
        int(config["in_channels"]),
        int(config.get("out_channels") or config["in_channels"]),
    )
    learned_variance = check_variance(noise) == "learned_range" or made == 2 * shown
    channels = made // 2 if learned_variance else made
    if shown < channels:
        raise ValueError(
            f"{network} takes {shown} channels and returns {made}: it is not a denoiser"
        )
    beside = shown - channels
    # Pipelines, and networks that know text, are shown [state, image]; a lone UNet2DModel is an SR3
    # network, [image, state].
    state_first = (folder / "model_index.json").is_file() or config["_class_name"] != "UNet2DModel"
    labels, null = (
        config.get("num_class_embeds"),
        config.get("_null_label"),
    )  # diffusers leaves keys with an underscore alone
    if noise.get("_class_name") in DISTILLED or config.get("time_cond_proj_dim"):
        told = (
            f"; it is told the guidance scale as timestep_cond= (B, {n})"
            if (n := config.get("time_cond_proj_dim"))
            else ""
        )
        warnings.warn(
            f"{folder}: a distilled network, whose x0 is a sample and not a mean: use "
            f"transition Renoise{told}",
            stacklevel=2,
        )
    adapter = Network(
        net,
        cond_last=beside if state_first else 0,
        sign=sampled.pop("sign", 1.0),
        controlnet=control,
    )
    if labels is None and "class_labels" in adapter.keywords:
        labels = null = config.get(
            "num_embeds_ada_norm"
        )  # DiT: one embedding more than classes, for labels that are left out
    size = config.get("sample_size")
    latent = autoencoder is False or autoencoder is None
    coder = _autoencoder(folder, autoencoder, encode, decode, channels, allow_pickle)
    prompted = (folder / "text_encoder").is_dir() and adapter.facts.takes("encoder_hidden_states")
    found: dict[str, Any] = {
        "data_range": None
        if channels not in (1, 3) or coder is not None or (latent and _has_autoencoder(folder))
        else (-1.0, 1.0),
        "learned_variance": learned_variance,
        "num_classes": labels - 1 if labels is not None and null == labels - 1 else labels,
        "null_label": False if null is None else null,
        "cond_channels": beside or None,
        "classifier": load_classifier(folder / "classifier")
        if (folder / "classifier").is_dir()
        else None,
        "multiple": config.get("patch_size") or 2 ** (len(config["block_out_channels"]) - 1),
        "autoencoder": coder,
        "text": TextEncoder(folder, allow_pickle=allow_pickle) if prompted else None,
        "channels": channels if coder is None else coder.image_channels,
        "image_size": size * (1 if coder is None else coder.factor)
        if isinstance(size, int)
        else None,
        "name": folder.name,
    }
    options = found | sampled
    if options["data_range"] is not None and not (
        noise.get("clip_sample", True) and noise.get("clip_sample_range", 1.0) == 1.0
    ):
        options = {"clip": False} | options
    denoiser = Denoiser(adapter, **options)
    denoiser.source = {
        "kind": "diffusers folder",
        "path": str(folder),
        "network": config["_class_name"] + ("" if control is None else " with a ControlNet"),
        "autoencoder": coder
        and f"{type(coder.net or coder).__name__}, {coder.channels} channels, 1/{coder.factor} "
        "of the side",
        "text encoder": "its own, for prompts" if prompted else None,
        "scheduler": noise.get("_class_name"),
        "variance": noise.get("variance_type"),
        "needs": ", ".join(adapter.facts.required) or None,
        "weights": str((network / file).relative_to(folder)),
        "storage": _storage(network, file),
        **read_card(folder),
    }
    return denoiser


def load_classifier(folder: str | Path, **options: Any) -> NoisyClassifier:
    """The noise-aware classifier of a folder: a ``TimeClassifier`` of this package with its
    ``scheduler_config.json``; or of a file, see
    :func:`~invdiff.loading.checkpoint.load_classifier_checkpoint`, which takes ``options``."""
    from invdiff.loading.time_classifier import TimeClassifier

    folder = Path(folder)
    if folder.is_file():
        from invdiff.loading.checkpoint import load_classifier_checkpoint

        return load_classifier_checkpoint(folder, **options)
    check_names(f"the classifier in {folder}", options, [])
    config, noise = _read(folder / "config.json"), _read(folder / "scheduler_config.json")
    if config.get("_class_name") != TimeClassifier.__name__:
        raise ValueError(
            f"{folder} holds a {config.get('_class_name')}, not a "
            f"{TimeClassifier.__name__}; pass your own as a callable, classifier=net"
        )
    net = TimeClassifier.from_folder(folder, config)
    return NoisyClassifier(
        net, schedule=schedule_of(noise), channels=config["in_channels"], name=folder.name
    )


def read_card(folder: Path) -> dict[str, Any]:
    """Licence and training data as the YAML header of a model card (``README.md``) states them;
    empty where it does not."""
    from huggingface_hub import metadata_load

    card = folder / "README.md"
    try:
        header = (metadata_load(card) if card.is_file() else None) or {}
    except Exception:  # a card is prose; a broken header must not keep a network from loading
        return {}
    stated = {
        "licence": header.get("license_name") or header.get("license"),
        "training data": header.get("datasets"),
    }
    return {k: ", ".join(map(str, v)) if isinstance(v, list) else v for k, v in stated.items() if v}


def _network(folder: Path, weights: str | None) -> Path:
    """Where a folder keeps the network that is meant: the one named, or the first of PARTS, or the
    folder itself."""
    parts = [part for part in PARTS if (folder / part).is_dir()]
    if weights is not None:
        if weights not in parts:
            raise ValueError(
                f"{folder} has no network {weights!r}; it has "
                f"{', '.join(map(repr, parts)) or 'a single one'}"
            )
        return folder / weights
    if len(parts) > 1:
        warnings.warn(
            f"{folder.name}: the averaged weights {parts[0]!r} are used; "
            f"weights={parts[1]!r} takes the others",
            stacklevel=2,
        )
    return folder / parts[0] if parts else folder


def _noise(scheduler: Path, options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
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
        config = _read(file)
        settings = settings_of(config)
        if "schedule" in options:
            settings["use_dynamic_shifting"] = False
        implied = read_scheduler(settings)
    except ValueError:
        if not {"schedule", "predicts"} <= options.keys():
            raise
        return config, overridden({}, options)
    return settings, overridden(implied, options)


def _load(
    network: Path, config: dict[str, Any], allowed: tuple[str, ...], allow_pickle: bool
) -> tuple[torch.nn.Module, str]:
    """A network of one of the allowed classes, complete, and what its weights are called."""
    import diffusers

    name = config.get("_class_name")
    if not hasattr(diffusers, str(name)) or name not in (*allowed, "Transformer2DModel"):
        raise ValueError(
            f"{network} holds a {name}; of diffusers' networks these are read from a "
            f"folder: {', '.join(allowed)}. Load it with its own "
            "package and wrap it: invdiff.Denoiser(lambda x, t, **cond: ..., predicts=..., "
            "schedule=...)"
        )
    weights, variant = _weights(network, allow_pickle)
    try:
        # fp16 storage is for size; the network runs in float32 unless a dtype is asked for.
        net, info = getattr(diffusers, str(name)).from_pretrained(
            network,
            torch_dtype=torch.float32,
            local_files_only=True,
            low_cpu_mem_usage=False,
            use_safetensors=weights.endswith(".safetensors"),
            variant=variant,
            output_loading_info=True,
        )
    except (OSError, RuntimeError, ValueError, ImportError) as error:
        said = " ".join(line.strip() for line in str(error).strip().splitlines()[:2])  # of hundreds
        raise ValueError(
            f"the weights in {network} cannot be read, do they fit its config.json? {said}"
        ) from error
    for kind in ("missing_keys", "unexpected_keys"):
        if info[kind]:
            names = sorted(info[kind])
            raise ValueError(
                f"{weights} in {network} has {len(names)} {kind.replace('_', ' ')}, nothing "
                f"was loaded: {', '.join(names[:8])}"
            )
    try:
        check_finite(net.state_dict())
    except ValueError as error:
        raise ValueError(f"{network}: {error}") from error
    if (
        type(net).__name__ not in allowed
    ):  # older configurations call every transformer a Transformer2DModel
        raise ValueError(
            f"{network} holds a {type(net).__name__}, which is not one of {', '.join(allowed)}"
        )
    return net, weights


def _weights(network: Path, allow_pickle: bool) -> tuple[str, str | None]:
    """(name of the first weight file, its variant such as "fp16"): safetensors before pickles, and
    files without a variant before those with one, such as the weights that are not averaged
    ("non_ema")."""
    found = [
        m
        for p in sorted(network.glob("diffusion_pytorch_model*"))
        if (m := WEIGHTS.fullmatch(p.name))
    ]
    if not found:
        raise ValueError(
            f"no weights in {network}; a network's folder has "
            "diffusion_pytorch_model.safetensors beside its config.json"
        )
    first, *_ = sorted(found, key=lambda m: (m[4] == "bin", bool(m[1] or m[3])))
    if first[4] == "bin" and not allow_pickle:
        raise ValueError(
            f"{network} keeps its weights as a pickle ({first[0]}), which can run code when "
            "it is read; convert it to safetensors, or "
            "allow_pickle=True if you trust whoever made it"
        )
    if "non_ema" not in first[0] and (others := [m[0] for m in found if "non_ema" in m[0]]):
        warnings.warn(
            f"{network}: the averaged weights {first[0]} are used, not {others[0]}; move "
            "the first away for these",
            stacklevel=2,
        )
    variant = first[1] or first[3]
    return first[0], variant[1:] if variant else None


def _storage(network: Path, weights: str) -> str | None:
    """The dtype the weights are kept in, e.g. ``"F16"``; None for pickles."""
    if not weights.endswith(".safetensors"):
        return None
    from safetensors import safe_open

    with safe_open(network / weights, "pt") as file:
        return ", ".join(sorted({file.get_slice(key).get_dtype() for key in file.keys()}))  # noqa: SIM118


def _load_controlnet(folder: Path, net: torch.nn.Module, allow_pickle: bool) -> torch.nn.Module:
    folder = folder / "controlnet" if (folder / "controlnet").is_dir() else folder
    if type(net).__name__ != "UNet2DConditionModel":
        raise ValueError(f"a ControlNet guides a UNet2DConditionModel, not a {type(net).__name__}")
    _refuse_code(folder)
    control, _ = _load(folder, _read(folder / "config.json"), ("ControlNetModel",), allow_pickle)
    mine, other = (m.config["block_out_channels"] for m in (net, control))  # type: ignore[index]
    if tuple(mine) != tuple(other):  # type: ignore[arg-type]
        raise ValueError(
            f"this ControlNet belongs to another network: its blocks have {tuple(other)} "
            f"channels, the network's {tuple(mine)}"
        )  # type: ignore[arg-type]
    return control


def _autoencoder(
    folder: Path,
    given: Autoencoder | str | Path | bool | None,
    encode: str,
    decode: str,
    channels: int,
    allow_pickle: bool,
) -> Autoencoder | None:
    """The autoencoder of a network whose states have so many channels, if it is to have one."""
    if given is True:
        given = next((folder / part for part in CODERS if (folder / part).is_dir()), None)
        if given is None and _has_autoencoder(folder):
            raise ValueError(
                f"{folder} has an autoencoder, but not in one of the folders "
                f"{', '.join(CODERS)}, where it is looked for; give its path, "
                "autoencoder=PATH, or autoencoder=False for the network in latent space"
            )
        if given is None and (
            named := [part for part in CODERS if any(_index(folder).get(part) or [])]
        ):
            raise ValueError(
                f"{folder / 'model_index.json'} names a {named[0]}, and that folder is not "
                "there: the pipeline is not complete; give another one, "
                "autoencoder=PATH, or autoencoder=False for the network in latent space"
            )
    if given is None or given is False:
        if (encode, decode) != ("mode", "whole"):
            raise ValueError(
                f"encode and decode say how an autoencoder is used, and {folder} is loaded "
                "without one"
            )
        return None
    if isinstance(given, Autoencoder):
        if (encode, decode) != ("mode", "whole"):
            raise ValueError(
                "encode and decode are of autoencoders that are loaded here; an "
                "Autoencoder object brings its own"
            )
        made = given
    else:
        place = Path(given)
        place = next((place / part for part in CODERS if (place / part).is_dir()), place)
        _refuse_code(place)
        config = _read(place / "config.json")
        if config.get("_class_name") not in AUTOENCODERS:
            raise ValueError(
                f"{place} holds a {config.get('_class_name')}; of autoencoders these are "
                f"read: {', '.join(AUTOENCODERS)}. Load it yourself and give "
                "autoencoder=invdiff.network.Autoencoder(encode, decode, ...), or "
                "autoencoder=False for the network in latent space"
            )
        made = from_diffusers(
            _load(place, config, AUTOENCODERS, allow_pickle)[0], encode=encode, decode=decode
        )
    if made.channels != channels:
        raise ValueError(
            f"the autoencoder makes latents with {made.channels} channels, but the "
            f"network's states have {channels}"
        )
    return made


def _index(folder: Path) -> dict[str, Any]:
    """What the folder says it is made of, by name; empty where it is no pipeline."""
    return _read(folder / "model_index.json") if (folder / "model_index.json").is_file() else {}


def _has_autoencoder(folder: Path) -> bool:
    """Whether a pipeline's images pass through an autoencoder, so that its network works on
    latents."""
    configs = [json.loads(file.read_text()) for file in folder.glob("*/config.json")]
    return any(
        str(config.get("_class_name")).startswith(
            ("Autoencoder", "AsymmetricAutoencoder", "VQModel")
        )
        for config in configs
    )


def _refuse_code(*folders: Path) -> None:
    """Refuses folders that bring code of their own."""
    for folder in dict.fromkeys(folders):
        if scripts := sorted(p.name for p in folder.glob("*.py")):
            raise ValueError(
                f"{folder} holds custom code ({', '.join(scripts)}), which is never run; if "
                "the network does not need it, take it out of the folder"
            )
        for name in ("model_index.json", "config.json", "scheduler_config.json"):
            config = _read(folder / name) if (folder / name).is_file() else {}
            if "auto_map" in config or isinstance(config.get("_class_name"), list):
                raise ValueError(
                    f"{folder / name} names custom code (auto_map, or a _class_name that is "
                    "a list), which is never run"
                )


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ValueError(
            f"no {file.name} in {file.parent}; a model folder has config.json, "
            "scheduler_config.json and *.safetensors"
        )
    try:
        return json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
