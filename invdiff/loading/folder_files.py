"""The files of a diffusers folder: which of them hold a network, its configuration and weights."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

PARTS = ("unet_ema", "unet", "transformer_ema", "transformer", "decoder")
"""Where a pipeline keeps its network (unCLIP: its decoder); training scripts leave averaged weights
beside the last ones."""

WEIGHTS = re.compile(r"diffusion_pytorch_model(\.\w+)?(-\d+-of-\d+)?(\.\w+)?\.(safetensors|bin)")


def read_json(file: Path) -> dict[str, Any]:
    """A configuration.

    Raises:
        ValueError: it is not there, or no JSON.
    """
    if not file.is_file():
        raise ValueError(
            f"no {file.name} in {file.parent}; a model folder has config.json, "
            "scheduler_config.json and *.safetensors"
        )
    content = file.read_bytes()
    if content.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(
            f"{file} begins with a byte order mark (BOM), which JSON must not have; save it as "
            "UTF-8 without BOM"
        )
    try:
        read = json.loads(content)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(read, dict):
        raise ValueError(f"{file} is no configuration: it holds a {type(read).__name__}")
    return read


def network_in(folder: Path, weights: str | None) -> Path:
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


def weights_in(network: Path, allow_pickle: bool) -> tuple[str, str | None]:
    """(name of the first weight file, its variant such as "fp16"): safetensors before pickles, and
    files without a variant before those with one, such as the weights that are not averaged
    ("non_ema")."""
    every = sorted(network.glob("diffusion_pytorch_model*"))
    found = [m for p in every if (m := WEIGHTS.fullmatch(p.name))]
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


def storage(file: Path) -> str | None:
    """The dtype the weights are kept in, e.g. ``"F16"``; None for pickles."""
    if file.suffix != ".safetensors":
        return None
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        names = opened.keys()
        return ", ".join(sorted({opened.get_slice(key).get_dtype() for key in names}))


def refuse_code(*folders: Path) -> None:
    """Refuses folders that bring code of their own."""
    for folder in dict.fromkeys(folders):
        if scripts := sorted(p.name for p in folder.glob("*.py")):
            raise ValueError(
                f"{folder} holds custom code ({', '.join(scripts)}), which is never run; if "
                "the network does not need it, take it out of the folder"
            )
        for name in ("model_index.json", "config.json", "scheduler_config.json"):
            config = read_json(folder / name) if (folder / name).is_file() else {}
            if "auto_map" in config or isinstance(config.get("_class_name"), list):
                raise ValueError(
                    f"{folder / name} names custom code (auto_map, or a _class_name that is "
                    "a list), which is never run"
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
