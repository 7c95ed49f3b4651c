"""Tokenizers and text encoders from their folders, complete."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from invdiff.loading.folder_files import read_json, refuse_code

FILES = (("model", ".safetensors"), ("model", ".safetensors.index.json"), ("pytorch_model", ".bin"))


def is_text(part: str) -> bool:
    """Whether a part of a pipeline turns prompts into conditions."""
    return part.startswith(("tokenizer", "text_encoder"))


def read_part(place: Path, entry: Sequence[str], allow_pickle: bool, dtype: torch.dtype) -> Any:
    """A tokenizer or a text encoder, of the class that ``model_index.json`` names.

    Args:
        entry: (library, class) of ``model_index.json``.
        dtype: of a text encoder.

    Raises:
        ValueError: transformers is not installed; a class that it does not have; weights that are
            not there, not complete, or pickles that may not be read.
    """
    try:
        import transformers
        from transformers.utils import logging
    except ImportError as error:
        raise ValueError(
            "prompts need the text encoder's package: pip install 'invdiff[text]' (transformers)"
        ) from error
    library, name = entry
    cls = class_of(entry)
    if cls is None:
        raise ValueError(
            f"{place.name}/ is a {library}.{name}, which the installed transformers "
            f"{transformers.__version__} does not have; encode prompts elsewhere and give "
            "conditions: encoder_hidden_states=..."
        )
    if not place.is_dir():
        raise ValueError(
            f"{place.parent} has no {place.name}/, so prompts cannot be encoded; the pipeline is "
            "not complete"
        )
    refuse_code(place)
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        if place.name.startswith("tokenizer"):
            return cls.from_pretrained(place, local_files_only=True)
        return _encoder(cls, place, allow_pickle, dtype)
    except (OSError, RuntimeError, TypeError, ImportError) as error:
        raise ValueError(f"{place} cannot be read: {error}") from error
    finally:
        if bars:
            logging.enable_progress_bar()


def class_of(entry: Sequence[str]) -> Any:
    """The class that an entry (library, class) of ``model_index.json`` names; diffusers writes the
    folder of a pipeline for classes that are kept beside it. None: there is no such class."""
    library, name = entry
    if library == "transformers":
        import transformers

        return getattr(transformers, name, None)
    import diffusers

    if library == "diffusers":
        return getattr(diffusers, name, None)
    for place in ("diffusers.pipelines", "diffusers.pipelines.deprecated"):
        if library.isidentifier() and importlib.util.find_spec(f"{place}.{library}") is not None:
            return getattr(importlib.import_module(f"{place}.{library}"), name, None)
    return None


def _encoder(cls: Any, place: Path, allow_pickle: bool, dtype: torch.dtype) -> Any:
    read_json(place / "config.json")  # says what is missing
    pickled = not any(place.glob("*.safetensors"))
    if pickled and not allow_pickle:
        raise ValueError(
            f"no safetensors in {place}; pickles (.bin) can run code when they are read: convert "
            "them, or allow_pickle=True if you trust whoever made them"
        )
    whole = any((place / f"{n}{e}").is_file() for n, e in FILES)
    net, info = cls.from_pretrained(
        place,
        dtype=dtype,
        local_files_only=True,
        use_safetensors=not pickled,
        variant=None if whole else _variant(place),
        output_loading_info=True,
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(map(str, info[kind])):
            raise ValueError(
                f"{place} has {len(names)} {kind.replace('_', ' ')}, nothing was "
                f"loaded: {', '.join(names[:8])}"
            )
    return net.eval().requires_grad_(False)


def _variant(place: Path) -> str | None:
    """E.g. "fp16", where there is only ``model.fp16.safetensors``."""
    for file in sorted((*place.glob("model.*.safetensors"), *place.glob("pytorch_model.*.bin"))):
        return file.name.split(".")[1]
    return None
